"""Keys and certificates of one run: an authority that exists only while they are made, and one certificate per role.

Whoever holds a certificate of the run's authority may run code on its scheduler and workers, and nobody else. dask
does not compare the host's name with the certificate's, so none is in it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
from pathlib import Path
from typing import Any

from dneuro.cluster.record import Record, entries
from dneuro.errors import DneuroError, UsageError

ROLES = ("scheduler", "worker", "client")

VALID = datetime.timedelta(days=90)
"""How long certificates are good for; every run makes its own."""

FILES = ("ca.pem", *(f"{role}.{ending}" for role in ROLES for ending in ("pem", "key")))
"""What is in a folder of keys, and in one of credentials some of it."""


def place_of_keys(folder: Path, own: str | None) -> Path:
    """Return the folder for the keys of a run: in its own one, or a new one where the profile asks for them.

    Parameters
    ----------
    folder : Path
        The run's; a place outside it is written down there, for `remove_keys` to find.
    own : str or None
        ``security.folder`` of the profile.
    """
    if own is None:
        return folder / "keys"
    keys = Path(own).absolute() / f"{folder.name}-{secrets.token_hex(4)}"
    note_keys(folder, keys)
    return keys


def note_keys(folder: Path, keys: Path) -> None:
    """Write down in a run's folder that it has keys outside of it."""
    Record(folder).write(kind="keys", path=str(keys))


def remove_keys(job_folder: Path) -> None:
    """Remove the keys that runs have left which were killed; they are worth nothing any more.

    Parameters
    ----------
    job_folder : Path
        A job's, or a standing cluster's; none of its runs goes on.
    """
    elsewhere = [Path(entry["path"]) for entry in entries(job_folder) if entry.get("kind") == "keys"]
    here = [job_folder / "keys", job_folder / "credentials", *(job_folder / "attempts").glob("*/keys")]
    for folder in (*here, *elsewhere):
        with contextlib.suppress(OSError):  # it is not there, or holds something else too
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            folder.rmdir()


def make_credentials(folder: Path) -> Path:
    """Write an authority's certificate and a certificate and key for each role; return the folder.

    Parameters
    ----------
    folder : Path
        Made with mode 0700; what is in it, with mode 0600, is replaced. All machines of the run must see it.

    Raises
    ------
    DneuroError
        If the folder belongs to another user, or nothing can be written.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.stat().st_uid != os.geteuid():
            raise DneuroError(f"the folder for keys, {folder}, is another user's", hint="another path as state:")
        folder.chmod(0o700)
    except OSError as error:
        raise DneuroError(f"no keys can be kept in {folder}: {error.strerror}", "another path as state:") from error
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = _name("authority")
    own = _builder(issuer, issuer, authority.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    _write(folder / "ca.pem", _pem(_sign(own, authority)))
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        its = _builder(_name(role), issuer, key.public_key()).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        _write(folder / f"{role}.pem", _pem(_sign(its, authority)))
        _write(folder / f"{role}.key", _key_text(key))
    return folder


def read_credentials(folder: Path, roles: tuple[str, ...] = ROLES) -> Any:
    """Return the `distributed.Security` of the credentials in a folder.

    Raises
    ------
    UsageError
        If a file is missing, or others may read a key.
    """
    from distributed import Security

    files = {"tls_ca_file": folder / "ca.pem"}
    for role in roles:
        files[f"tls_{role}_cert"] = folder / f"{role}.pem"
        files[f"tls_{role}_key"] = folder / f"{role}.key"
    for name, path in files.items():
        check_readable(path, private=name.endswith("_key"))
    return Security(require_encryption=True, **{name: str(path) for name, path in files.items()})


def check_readable(path: Path, *, private: bool = False) -> None:
    """Refuse a file that is not there, and a key that others than its owner may read.

    Parameters
    ----------
    path : Path
        The file.
    private : bool
        It holds a key, whatever it is called.

    Raises
    ------
    UsageError
        Says which.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="the path that `dneuro cluster up` printed") from None
    if private and mode & 0o077:
        raise UsageError(f"{path}: others may read this key (mode {mode & 0o777:o})", hint=f"chmod 600 {path}")


def _name(role: str) -> Any:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"dneuro {role}")])


def _builder(subject: Any, issuer: Any, public_key: Any) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks of nodes differ
        .not_valid_after(now + VALID)
    )


def _sign(builder: Any, authority: Any) -> Any:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(authority, hashes.SHA256())


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _key_text(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _write(path: Path, text: bytes) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # never, even for a moment, open to others
    with os.fdopen(handle, "wb") as file:
        file.write(text)
