"""Keys are their owner's, made for one run, and fit no other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from dneuro.cluster import backend_of
from dneuro.cluster.security import ROLES, check_readable, make_credentials, place_of_keys, read_credentials
from dneuro.errors import DneuroError, UsageError
from dneuro.spec import ProfileSpec


def test_credentials__are_readable_by_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)  # even so
    try:
        folder = make_credentials(tmp_path / "keys")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert not list(folder.glob("ca.key")), "nobody can sign another certificate"


def test_certificates__are_one_for_each_role_and_signed_by_the_run(tmp_path: Path) -> None:
    folder = make_credentials(tmp_path / "keys")
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    for role in ROLES:
        certificate = x509.load_pem_x509_certificate((folder / f"{role}.pem").read_bytes())
        certificate.verify_directly_issued_by(authority)
        assert certificate.subject.rfc4514_string() == f"CN=dneuro {role}"
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    first = (folder / "worker.key").read_bytes()
    make_credentials(folder)
    assert (folder / "worker.key").read_bytes() != first, "a second run makes its own"


def test_credentials__of_another_run_do_not_open_a_scheduler(tmp_path: Path) -> None:
    from distributed import Client, SpecCluster
    from distributed.scheduler import Scheduler

    mine = read_credentials(make_credentials(tmp_path / "mine"))
    other = read_credentials(make_credentials(tmp_path / "other"))
    options: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "protocol": "tls://", "security": mine,
                               "dashboard": False, "dashboard_address": "127.0.0.1:0"}  # fmt: skip
    with SpecCluster({}, {"cls": Scheduler, "options": options}, security=mine, silence_logs=50) as cluster:
        with Client(cluster.scheduler_address, security=mine, timeout=10) as client:
            assert client.scheduler_info(n_workers=-1)["workers"] == {}
        with pytest.raises(OSError, match="TLS certificate does not match"):
            Client(cluster.scheduler_address, security=other, timeout=2, set_as_default=False)


def test_keys__that_others_may_read_are_refused(tmp_path: Path) -> None:
    folder = make_credentials(tmp_path / "keys")
    (folder / "client.key").chmod(0o640)
    with pytest.raises(UsageError, match=r"others may read this key \(mode 640\)") as caught:
        read_credentials(folder)
    assert caught.value.hint == f"chmod 600 {folder / 'client.key'}"
    with pytest.raises(UsageError, match="No such file"):
        check_readable(folder / "nothing.pem")


def test_credentials__where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DneuroError, match="no keys can be kept in"):
        make_credentials(tmp_path / "file" / "keys")


@pytest.mark.parametrize("own", [None, "own"])
@pytest.mark.parametrize("backend", ["local", "slurm"])
def test_keys__that_a_killed_run_has_left_are_removed_with_its_machines(
    tmp_path: Path, backend: str, own: str | None
) -> None:
    attempt = tmp_path / "job" / "attempts" / "001"
    keys = make_credentials(place_of_keys(attempt, None if own is None else str(tmp_path / own)))
    assert keys.is_relative_to(attempt if own is None else tmp_path / own)
    (attempt / "events.jsonl").write_text("")
    profile = ProfileSpec.model_validate({"backend": backend, "pools": {"extract": {"memory": "4GiB"}}})
    assert backend_of(profile).clean_up(tmp_path / "job") == []
    assert not keys.exists()
    assert list(tmp_path.rglob("*.key")) == []
    assert (attempt / "events.jsonl").is_file()
