"""The folder of a cluster that stands, ``<state>/clusters/<name>/``: where it is, and what is written in it.

The profile the cluster was started with, the reference to the process that holds the scheduler, and, as long as that
runs, its address and the folder of credentials.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
from pathlib import Path
from typing import Any

from dneuro.cluster import whereabouts
from dneuro.cluster.backends import DriverRef
from dneuro.cluster.profiles import profile_folders
from dneuro.cluster.record import STANDING
from dneuro.errors import UsageError
from dneuro.files import write_atomically
from dneuro.spec import find_profile, read_profile
from dneuro.spec.profile import ProfileSpec

PROFILE, DRIVER, CLUSTER = "profile.json", "driver.json", "cluster.json"

Target = str | os.PathLike[str]


def profile_at(profile: Target) -> tuple[Path, ProfileSpec]:
    """Return a profile's file, and what it says."""
    path = find_profile(os.fspath(profile), profile_folders())
    return path, read_profile(path)


def own_folder(profile: Target, path: Path, spec: ProfileSpec) -> Path:
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


def folder_started(path: Path, spec: ProfileSpec) -> Path | None:
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


def find_started(profile: Target) -> tuple[Path, ProfileSpec, Path]:
    """Return a profile's file, and settings and folder of the cluster that was started from it.

    Raises
    ------
    UsageError
        If none was.
    """
    path, spec = profile_at(profile)
    folder = folder_started(path, spec)
    if folder is None:
        raise none_stands(profile, path, spec, "no cluster was started from the profile {}")
    return path, kept_profile(folder) or spec, folder


def none_stands(profile: Target, path: Path, spec: ProfileSpec, message: str) -> UsageError:
    """Return the error that there is no cluster, with what to do; raises that of `up` where it would refuse."""
    own_folder(profile, path, spec)
    return UsageError(message.format(path.stem), hint=f"dneuro cluster up {shlex.quote(os.fspath(profile))}")


def kept_profile(folder: Path) -> ProfileSpec | None:
    """Return the settings that a cluster was started with; None if none was, or they are another version's."""
    try:
        return ProfileSpec.model_validate_json((folder / PROFILE).read_text())
    except (FileNotFoundError, ValueError):
        return None


def kept_driver(folder: Path) -> DriverRef | None:
    """Return the reference to the process that holds the scheduler; None if nobody wrote it down."""
    kept = read(folder / DRIVER)
    return DriverRef.from_dict(kept) if kept else None


def read(path: Path) -> dict[str, Any]:
    """Return what a file of JSON in the folder says; nothing where there is none, or no whole one."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return kept


def write(path: Path, text: str) -> None:
    """Write a file in the folder, so that nobody ever reads half of it."""
    write_atomically(path, lambda file: file.write(text.encode() + b"\n"))
