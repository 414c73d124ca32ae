"""A cluster that stands is started, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dneuro import events
from dneuro.cluster import processes, whereabouts
from dneuro.cluster.backends import DriverRef, backend_of
from dneuro.cluster.claims import claimed
from dneuro.cluster.standing.asking import StandingCluster, status
from dneuro.cluster.standing.folder import (
    CLUSTER,
    DRIVER,
    PROFILE,
    Target,
    find_started,
    kept_driver,
    kept_profile,
    own_folder,
    profile_at,
    write,
)
from dneuro.errors import BusyError, DneuroError, UsageError
from dneuro.quantities import format_duration
from dneuro.spec.profile import ProfileSpec

GRACE = 30.0
"""Seconds that a cluster is given to end its workers in order."""

SLACK = 30.0
"""Seconds beside the pools' ``start_timeout`` for the scheduler's own start, once its process runs."""

ASKED = 5.0
"""Seconds between two questions why the process that holds the scheduler is not started."""


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
    path, spec = profile_at(profile)
    folder = own_folder(profile, path, spec)
    # Over loopback too: what stands for days is reached by everybody who is logged in to the machine.
    wanted = spec.model_copy(update={"security": spec.security.model_copy(update={"tls": "required"}),
                                     "state": str(Path(spec.state).absolute())})  # fmt: skip
    with contextlib.ExitStack() as stack:
        with _writing_to(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Nothing else tells others of it until its process is written down, and a queue takes its time.
            stack.enter_context(claimed(folder, f"the cluster {path.stem} is being started"))
            before = kept_profile(folder) or spec
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


def down(profile: Target) -> list[str]:
    """End a cluster and everything that it has started; return what had to be ended by force.

    Raises
    ------
    UsageError
        If none was started from this profile.
    """
    path, spec, folder = find_started(profile)
    backend, ref = backend_of(spec), kept_driver(folder)
    if ref is not None:
        backend.stop_driver(ref, grace=GRACE)
    ended = backend.clean_up(folder)
    for file in (DRIVER, CLUSTER, PROFILE):
        (folder / file).unlink(missing_ok=True)
    whereabouts.forget(path, folder)
    return ended


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
    write(folder / PROFILE, spec.model_dump_json(indent=1))
    command = [sys.executable, "-m", "dneuro.cluster.standing", str(folder)]
    try:
        ref = backend_of(spec).start_driver(folder, command, f"dneuro-cluster-{profile.stem}")
    except UsageError:
        (folder / PROFILE).unlink(missing_ok=True)
        whereabouts.forget(profile, folder)
        raise
    write(folder / DRIVER, json.dumps(ref.to_dict()))
    return ref


def _refuse_a_second(profile: Target, name: str, spec: ProfileSpec, folder: Path) -> None:
    """Refuse to start one beside, or in place of, one that stands or may stand."""
    ref = kept_driver(folder)
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
