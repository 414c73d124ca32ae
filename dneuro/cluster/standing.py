"""A cluster that stands: started once, used by many jobs and notebooks, until it is ended.

Its folder, ``<state>/clusters/<name>/``, holds the profile, the reference to the process that holds the scheduler,
and, as long as that runs, ``cluster.json`` with the address and the folder of credentials.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dneuro import events
from dneuro.cluster import processes, whereabouts
from dneuro.cluster.address import connect_to
from dneuro.cluster.backends import DriverRef, DriverState, backend_of
from dneuro.cluster.claims import claimed
from dneuro.cluster.profiles import profile_folders
from dneuro.cluster.record import STANDING
from dneuro.cluster.security import note_keys
from dneuro.errors import BusyError, DneuroError, UsageError
from dneuro.files import write_atomically
from dneuro.quantities import format_duration
from dneuro.spec import find_profile, read_profile
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.sites import AddressSpec

PROFILE, DRIVER, CLUSTER = "profile.json", "driver.json", "cluster.json"

GRACE = 30.0
"""Seconds that a cluster is given to end its workers in order."""

SLACK = 30.0
"""Seconds beside the pools' ``start_timeout`` for the scheduler's own start, once its process runs."""

ASKED = 5.0
"""Seconds between two questions why the process that holds the scheduler is not started."""

TAKEN_AWAY = 143
"""Exit code of a process that was told to end and is to be started again."""

Target = str | os.PathLike[str]


@dataclass(frozen=True)
class StandingCluster:
    """A cluster that was started by `up`.

    Parameters
    ----------
    name : str
        The profile's.
    state : str
        Of the process that holds the scheduler: ``pending``, ``running``, ``ending``, ``gone`` or ``unknown``, also
        where it may have been started, and whoever started it was told nothing of it.
    address : str
        The scheduler's; empty until it listens.
    credentials : str
        Folder with ``ca.pem``, ``client.pem`` and ``client.key``, readable by its owner only.
    dashboard : str
        URL on the scheduler's machine; empty if there is none.
    folder : str
        Logs and records.
    workers : dict of str to int
        Workers there are, by pool; empty where it was not asked.
    note : str
        Why it is ``pending``, as far as anybody says.
    """

    name: str
    state: DriverState
    address: str
    credentials: str
    dashboard: str
    folder: str
    workers: dict[str, int]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)


def up(profile: Target) -> StandingCluster:
    """Start a cluster that stands until `down`, and wait until each of its pools has a worker.

    Parameters
    ----------
    profile : str or path
        A profile file, or the name of one.

    Raises
    ------
    BusyError
        If it stands already, another process is about to start it, or nobody can tell.
    UsageError
        If its state cannot be written, or is no folder.
    DneuroError
        If it does not come up: with the last lines of its log.
    """
    path, spec = _read_profile(profile)
    folder = _own_folder(profile, path, spec)
    # Over loopback too: what stands for days is reached by everybody who is logged in to the machine.
    wanted = spec.model_copy(update={"security": spec.security.model_copy(update={"tls": "required"}),
                                     "state": str(Path(spec.state).absolute())})  # fmt: skip
    with contextlib.ExitStack() as stack:
        with _writing_to(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Nothing else tells others of it until its process is written down, and a queue takes its time.
            stack.enter_context(claimed(folder, f"the cluster {path.stem} is being started"))
            before = _kept(folder) or spec
            _refuse_a_second(profile, path.stem, before, folder)
            if folder.is_dir():
                backend_of(before).clean_up(folder)  # what a dead one has left is known by its folder alone
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
        whereabouts.remember(path, folder)
        with _ended_if_it_fails(profile):
            ref = _start(wanted, folder, path)
    with _ended_if_it_fails(profile):
        _wait(wanted, folder, ref)
    return status(profile)


def status(profile: Target) -> StandingCluster:
    """Return where a cluster stands, and how many workers its pools have.

    Raises
    ------
    UsageError
        If none was started from this profile.
    """
    path, spec, folder = _find_started(profile)
    state, said = _state(spec, folder), _read(folder / CLUSTER)
    workers: dict[str, int] = {}
    if state == "running" and said:
        with connect_to(_address(said), timeout=10) as client:
            there = client.scheduler_info(n_workers=-1)["workers"].values()
        for group in spec.groups:
            workers[group] = sum(group in worker.get("resources", {}) for worker in there)
    here = said if state == "running" else {}
    ref = _driver(folder)
    note = backend_of(spec).why_waiting(ref) if state == "pending" and ref is not None else ""
    return StandingCluster(path.stem, state, here.get("address", ""), here.get("credentials", ""),
                           here.get("dashboard", ""), str(folder), workers, note)  # fmt: skip


def down(profile: Target) -> list[str]:
    """End a cluster and everything that it has started; return what had to be ended by force.

    Raises
    ------
    UsageError
        If none was started from this profile.
    """
    path, spec, folder = _find_started(profile)
    backend, ref = backend_of(spec), _driver(folder)
    if ref is not None:
        backend.stop_driver(ref, grace=GRACE)
    ended = backend.clean_up(folder)
    for file in (DRIVER, CLUSTER, PROFILE):
        (folder / file).unlink(missing_ok=True)
    whereabouts.forget(path, folder)
    return ended


def connect(cluster: Target, *, credentials: Target | None = None, timeout: float = 30.0) -> Any:
    """Return a plain dask client of a cluster that stands.

    Parameters
    ----------
    cluster : str or path
        The address that ``dneuro cluster up`` printed, or the profile it was started from, or one with
        ``backend: address``.
    credentials : str or path, optional
        Folder with ``ca.pem``, ``client.pem`` and ``client.key``; found by itself for a cluster that was started from
        one of the profiles here.
    timeout : float
        Seconds to wait for an answer.

    Returns
    -------
    distributed.Client

    Raises
    ------
    UsageError
        If there is no such cluster, no credentials for it, or its profile asks for encryption and it has none.
    DneuroError
        If it does not answer.
    """
    text = os.fspath(cluster)
    if "://" in text:
        said = {"address": text, "credentials": os.fspath(credentials) if credentials else _known(text)}
        return connect_to(_address(said), timeout=timeout)
    path, spec = _read_profile(cluster)
    if spec.address is not None:
        return connect_to(spec.address, timeout=timeout, tls=spec.security.tls)
    folder = _folder_started(path, spec)
    said = _read(folder / CLUSTER) if folder else {}
    if not said:
        raise _none(cluster, path, spec, "no cluster of the profile {} stands")
    return connect_to(_address(said | ({"credentials": os.fspath(credentials)} if credentials else {})),
                      timeout=timeout)  # fmt: skip


def hold(folder: Path) -> int:
    """Open the profile in a folder, say there where it is, and hold it until this process is told to end.

    Returns
    -------
    int
        The exit code: 0. On Kubernetes, where only `down` means it, and deletes the Job whatever its pod ends with,
        that of a driver whose node is taken away: its Job starts another one elsewhere.
    """
    import signal
    import threading

    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    (folder / CLUSTER).unlink(missing_ok=True)  # of one before it that was killed
    spec = ProfileSpec.model_validate_json((folder / PROFILE).read_text())
    with backend_of(spec).open(folder=folder, name=folder.name) as machines:
        client = machines.client
        keys, credentials = Path(client.security.tls_client_key).parent, folder / "credentials"
        if spec.security.folder is not None:
            credentials = keys.with_name(f"{keys.name}-credentials")
            note_keys(folder, credentials)
        shutil.rmtree(credentials, ignore_errors=True)
        credentials.mkdir(mode=0o700)
        for file in ("ca.pem", "client.pem", "client.key"):  # the scheduler's own stay with it
            shutil.copy2(keys / file, credentials / file)
        said = {"address": client.scheduler.address, "credentials": str(credentials),
                "dashboard": client.dashboard_link if spec.security.dashboard else ""}  # fmt: skip
        _write(folder / CLUSTER, json.dumps(said))
        over.wait()
        (folder / CLUSTER).unlink(missing_ok=True)
    return TAKEN_AWAY if spec.backend == "kubernetes" else 0


def _read_profile(profile: Target) -> tuple[Path, ProfileSpec]:
    """Return a profile's file, and what it says."""
    path = find_profile(os.fspath(profile), profile_folders())
    return path, read_profile(path)


def _own_folder(profile: Target, path: Path, spec: ProfileSpec) -> Path:
    """Return the folder of the cluster that `up` would start.

    Raises
    ------
    UsageError
        If it would start none.
    """
    if spec.backend == "address":
        hint = f"dneuro run JOB --cluster {shlex.quote(os.fspath(profile))}"
        raise UsageError("this profile is of a cluster that stands already", hint=hint)
    if "://" in spec.state:
        raise UsageError(
            f"state: {spec.state} is no path, and a cluster that stands has its keys and its log in a folder",
            hint="state: a folder that all its machines see; the jobs it works on may have theirs in s3://…",
        )
    return Path(spec.state).absolute() / STANDING / path.stem


def _folder_started(path: Path, spec: ProfileSpec) -> Path | None:
    """Return the folder of the cluster that was started from a profile, be it edited since; None if none was.

    One whose process nobody wrote down counts: it was about to be started, and may have been.

    Raises
    ------
    UsageError
        If there is none but one that another user keeps to himself.
    """
    own = [] if "://" in spec.state else [Path(spec.state).absolute() / STANDING / path.stem]
    places = [*own, *whereabouts.folders_of(path)]
    closed = []
    for one in places:
        try:
            if _is_there(one / DRIVER) or _is_there(one / PROFILE):
                return one
        except PermissionError:
            closed.append(one)
    if closed:
        raise UsageError(
            f"the cluster of {closed[0]} is another user's, who alone may look into its folder",
            hint="its address and credentials, which its user can give away; or another state:",
        )
    return None


def _is_there(path: Path) -> bool:
    """Return whether there is such a file; unlike `Path.is_file` of some Pythons it never hides a PermissionError."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _find_started(profile: Target) -> tuple[Path, ProfileSpec, Path]:
    """Return a profile's file, and settings and folder of the cluster that was started from it.

    Raises
    ------
    UsageError
        If none was.
    """
    path, spec = _read_profile(profile)
    folder = _folder_started(path, spec)
    if folder is None:
        raise _none(profile, path, spec, "no cluster was started from the profile {}")
    return path, _kept(folder) or spec, folder


def _none(profile: Target, path: Path, spec: ProfileSpec, message: str) -> UsageError:
    """Return the error that there is no cluster, with what to do; raises that of `up` where it would refuse."""
    _own_folder(profile, path, spec)
    return UsageError(message.format(path.stem), hint=f"dneuro cluster up {shlex.quote(os.fspath(profile))}")


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Say of an error of the file system what it means for the cluster."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"the state of the cluster cannot be written to {folder}: {error.strerror or error}",
            hint="state: in the profile, a folder that you may write to",
        ) from error


@contextlib.contextmanager
def _ended_if_it_fails(profile: Target) -> Iterator[None]:
    """End what was started of a cluster where the block fails; where that cannot be just now, `down` can later."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(DneuroError):
            down(profile)
        raise


def _start(spec: ProfileSpec, folder: Path, profile: Path) -> DriverRef:
    """Start the process that holds the scheduler, and write down where.

    The profile is written first: a queue may take the process without an answer, and then `down` has only the folder
    to find it by. What a UsageError is said of was sent to nobody, and there is nothing to find.
    """
    _write(folder / PROFILE, spec.model_dump_json(indent=1))
    command = [sys.executable, "-m", "dneuro.cluster.standing", str(folder)]
    try:
        ref = backend_of(spec).start_driver(folder, command, f"dneuro-cluster-{profile.stem}")
    except UsageError:
        (folder / PROFILE).unlink(missing_ok=True)
        whereabouts.forget(profile, folder)
        raise
    _write(folder / DRIVER, json.dumps(ref.to_dict()))
    return ref


def _kept(folder: Path) -> ProfileSpec | None:
    """Return the settings that a cluster was started with; None if none was, or they are another version's."""
    try:
        return ProfileSpec.model_validate_json((folder / PROFILE).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _refuse_a_second(profile: Target, name: str, spec: ProfileSpec, folder: Path) -> None:
    """Refuse to start one beside, or in place of, one that stands or may stand."""
    ref = _driver(folder)
    state = backend_of(spec).driver_state(ref) if ref else "gone"
    if ref is None or state == "gone":
        return
    given = shlex.quote(os.fspath(profile))
    if state == "ending":
        raise BusyError(f"what is left of the cluster {name} is being ended", hint=f"dneuro cluster down {given}")
    if state != "unknown":
        raise BusyError(f"the cluster {name} stands already", hint=f"dneuro cluster status {given}")
    forget = f"where it is gone for certain: rm -r {shlex.quote(str(folder))}"
    if host := ref.details.get("host"):
        raise BusyError(
            f"the cluster {name} was started on {host}, and from here nobody can tell whether it still stands",
            hint=f"dneuro cluster down {given}, on {host}; {forget}",
        )
    raise BusyError(
        f"nobody can tell whether the cluster {name} still stands: {ref.backend} does not answer for {ref.id}",
        hint=f"dneuro cluster status {given}, until it does; {forget}",
    )


def _driver(folder: Path) -> DriverRef | None:
    kept = _read(folder / DRIVER)
    return DriverRef.from_dict(kept) if kept else None


def _state(spec: ProfileSpec, folder: Path) -> DriverState:
    ref = _driver(folder)
    return "unknown" if ref is None else backend_of(spec).driver_state(ref)


def _wait(spec: ProfileSpec, folder: Path, ref: DriverRef) -> None:
    """Wait until the cluster says where it is; the clock starts when its process does."""
    backend = backend_of(spec)
    longest = max(spec.timeout(group) for group in spec.groups)
    queued = time.monotonic() + longest
    over: float | None = None
    asked, reason = -ASKED, ""
    while not (folder / CLUSTER).is_file():
        state = backend.driver_state(ref)
        if state == "pending" and time.monotonic() - asked > ASKED:
            asked, reason = time.monotonic(), backend.why_waiting(ref)
            if reason:
                events.emit("note", message=f"its process waits to be started: {reason}")
        if state == "running" and over is None:
            over = time.monotonic() + longest + SLACK
        if state == "gone" or time.monotonic() > (over or queued):
            log = folder / processes.LOG
            why = "its process has ended" if state == "gone" else f"{state} after {format_duration(longest)}"
            why += f", {reason}" if state == "pending" and reason else ""
            raise DneuroError(f"the cluster did not come up: {why}; log {log}{_tail(log)}",
                              hint="the sizes and the start_timeout in the profile")  # fmt: skip
        time.sleep(0.3)


def _tail(log: Path, count: int = 6) -> str:
    try:
        return "".join(f"\n  {line}" for line in log.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return ""


def _address(said: dict[str, Any]) -> AddressSpec:
    folder = said.get("credentials")
    files = {"ca": f"{folder}/ca.pem", "cert": f"{folder}/client.pem", "key": f"{folder}/client.key"} if folder else {}
    return AddressSpec(scheduler=said["address"], **files)


def _known(address: str) -> str | None:
    """Return the credentials for an address, if a cluster of one of the profiles here has it."""
    for folder in _folders():
        said = _read(folder / CLUSTER)
        if said and said["address"] == address:
            return str(said["credentials"])
    return None


def _folders() -> Iterator[Path]:
    for place in profile_folders():
        for path in sorted(place.glob("*.yaml")):
            with contextlib.suppress(DneuroError):
                if folder := _folder_started(*_read_profile(path)):
                    yield folder


def _read(path: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return kept


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode() + b"\n"))


if __name__ == "__main__":
    try:
        sys.exit(hold(Path(sys.argv[1])))
    except DneuroError as error:
        sys.exit(f"error: {error}")
