"""The folder of a job: what it is, how far it is, what happened in each attempt.

::

    <state>/jobs/<id>/
      job.yaml  profile.yaml     what was submitted, settings put in, paths as they were given
      submitted.json             when, by which command, in which folder
      plan.json                  what the plan foretold
      status.json                state, progress, workers; written by the driver
      driver.json                who was started last to drive it: process, Slurm job, Kubernetes Job
      cancel.json                that it is to end, if somebody said so, and why machines of it may be left
      attempts/NNN/              lease.json  events.jsonl  driver.log, and what the machines leave

It lies on a disk that all machines share, or in an object store.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dneuro.cluster import DriverRef
from dneuro.errors import UsageError, suggest
from dneuro.jobs.written import is_status
from dneuro.spec import AnyJob, members_of, parse_profile, parse_study
from dneuro.spec.profile import ProfileSpec
from dneuro.store.files import Location, locate, read_json, remove, write_atomically, write_json
from dneuro.store.remote import RemotePath, is_url

JOBS = "jobs"
"""Folder of all jobs in the state folder of a profile."""


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job.

    Parameters
    ----------
    path : Path or RemotePath
        Where it lies.
    """

    path: Location

    @classmethod
    def of(cls, state: str | Location, job: AnyJob) -> JobFolder:
        """Return the folder of a job in a state folder: one per name and store; it need not be there yet."""
        identity = hashlib.sha256(str(locate(job.store).absolute()).encode()).hexdigest()[:8]
        return cls(locate(state).absolute() / JOBS / f"{job.name}-{identity}")

    @property
    def id(self) -> str:
        """Name of the folder, which is the name of the job and eight digits that stand for its store."""
        return self.path.name

    @property
    def attempts(self) -> Location:
        """One folder per attempt."""
        return self.path / "attempts"

    def attempt(self, number: int) -> Location:
        """Return the folder of one attempt."""
        return self.attempts / f"{number:03d}"

    def attempt_numbers(self) -> list[int]:
        """Return the numbers of the attempts there were."""
        at = self.attempts
        below = at.iterdir() if isinstance(at, RemotePath) or at.is_dir() else ()
        return sorted(int(path.name) for path in below if path.name.isdigit())

    def write(self, job: AnyJob, profile: ProfileSpec | None, plan: Mapping[str, Any], command: str) -> None:
        """Write what is submitted, in the place of what was before.

        Raises
        ------
        UsageError
            If nothing can be written there.
        """
        try:
            self._write(job, profile, plan, command)
        except OSError as error:
            raise UsageError(
                f"the state of the job cannot be written to {self.path}: {error.strerror or error}",
                hint="state: in the profile, a folder that you may write to",
            ) from error

    def _write(self, job: AnyJob, profile: ProfileSpec | None, plan: Mapping[str, Any], command: str) -> None:
        (self.path / "cancel.json").unlink(missing_ok=True)
        self._write_yaml("job.yaml", job.model_dump(mode="json"))
        if profile is not None:
            self._write_yaml("profile.yaml", profile.model_dump(mode="json"))
        write_json(self.path / "plan.json", dict(plan))
        submitted = {"time": time.time(), "command": command, "folder": str(Path.cwd()), "user": _user()}
        write_json(self.path / "submitted.json", submitted)

    def _write_yaml(self, name: str, value: Any) -> None:
        text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
        write_atomically(self.path / name, lambda file: file.write(text.encode()))

    def read_job(self) -> AnyJob:
        """Return the job."""
        return parse_study(self._text("job.yaml"), str(self.path / "job.yaml"))

    def read_profile(self) -> ProfileSpec:
        """Return the profile that the job was submitted with."""
        return parse_profile(self._text("profile.yaml"), str(self.path / "profile.yaml"))

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text()
        except (FileNotFoundError, UnicodeDecodeError) as error:
            what = "is not there" if isinstance(error, FileNotFoundError) else "is no text"
            raise UsageError(
                f"{self.path / name} {what}", hint="dneuro submit JOB, which writes the folder of the job anew"
            ) from None

    def read(self, name: str) -> dict[str, Any]:
        """Return the content of one of the JSON files; empty if there is none."""
        found = read_json(self.path / f"{name}.json")
        return found if isinstance(found, dict) else {}

    def read_status(self) -> dict[str, Any]:
        """Return what the driver last wrote; empty if it wrote nothing, or what is there is damaged."""
        found = self.read("status")
        return found if is_status(found) else {}

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one of the JSON files."""
        write_json(self.path / f"{name}.json", dict(value))

    def read_driver(self) -> DriverRef | None:
        """Return where the driver was started last; None if none was, or it cannot be read."""
        return DriverRef.read(self.read("driver"))

    @property
    def submitted_in(self) -> str:
        """The folder in which the job was submitted: relative paths are relative to it."""
        return str(self.read("submitted").get("folder", os.curdir))

    @property
    def stores(self) -> dict[str, Location]:
        """The store of each member, from wherever one looks; of a job about one network its store, with no name."""
        own = {member: job.store for member, job in members_of(self.read_job()).items()}
        return {member: locate(to) if is_url(to) else Path(self.submitted_in) / to for member, to in own.items()}

    def remove(self) -> None:
        """Remove the folder; the store is not in it."""
        remove(self.path)


def folders(state: str | Location) -> Iterator[JobFolder]:
    """Yield the folder of every job below a state folder, by name.

    Raises
    ------
    UsageError
        If something else than a folder is there.
    """
    top = locate(state).absolute() / JOBS
    if isinstance(top, Path):
        there = next(place for place in (top, *top.parents) if place.exists())
        if not there.is_dir():
            what = "" if there == top.parent else f": {there} is none"
            raise UsageError(f"state: {locate(state)} is no folder{what}", hint="state: in the profile, a folder")
    if isinstance(top, RemotePath) or top.is_dir():
        below: list[Location] = list(top.iterdir())
        for path in sorted(below, key=lambda path: path.name):
            if (path / "submitted.json").is_file():
                yield JobFolder(path)


def find(name: str, state: str | Location) -> JobFolder:
    """Return the folder of the job with this id, unique beginning of an id, name, or path of a folder.

    Raises
    ------
    UsageError
        If there is none, with those that look most like it, or if several fit.
    """
    if "/" in name and (locate(name) / "submitted.json").is_file():
        return JobFolder(locate(name).absolute())
    known = {folder.id: folder for folder in folders(state)}
    fitting = [name] if name in known else [one for one in known if one.startswith(name)]
    fitting = [one for one in fitting if one.rpartition("-")[0] == name] or fitting
    if len(fitting) == 1:
        return known[fitting[0]]
    if fitting:
        raise UsageError(f"{name!r} fits {len(fitting)} jobs: {', '.join(fitting)}", hint="write more of the id")
    where = f"there is no job {name!r} in {locate(state)}"
    if not known:
        raise UsageError(where, hint="jobs of another profile: --cluster PROFILE; `dneuro list` shows all of one")
    raise UsageError(where, hint=suggest(name, known))


class _Dumper(yaml.SafeDumper):
    """Text in quotes, so that every reader takes it for text."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that nobody has
        return str(os.getuid())
