"""Slurm's commands: submit, look, cancel. Everything is given up after a while, for a controller may be away."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dneuro.errors import DneuroError

PATIENCE = 20.0
"""Seconds to wait for one of Slurm's commands."""

ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
})  # fmt: skip
"""States from which a job does not come back."""

WAITING = frozenset({
    "CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT",
})  # fmt: skip
"""States in which nothing of a job runs yet; in those that are in neither list, such as SIGNALING, something does."""


class SlurmError(DneuroError):
    """A command of Slurm that is not there, does not answer, or says no."""


class NoAnswerError(SlurmError):
    """A command of Slurm that did not get its answer in time: whether it has done its work nobody knows."""


class AwayError(SlurmError):
    """A controller that is not there, as while it starts again: it has taken nothing, and may be asked later."""


_UNSURE = re.compile(r"(?i)timed out|zero bytes|reset by peer|\((send|receive|shutdown) failure\)")
"""In what Slurm's commands say when the controller has heard them, perhaps, and they not it."""

_AWAY = re.compile("(?i)unable to contact|connection refused|standby mode")
"""In what they say when there is no controller to be heard, and nothing of the above."""

_IS_UP = "sinfo: is the controller up?"


@dataclass(frozen=True)
class BatchJob:
    """What the queue says of a job.

    Parameters
    ----------
    id, name : str
        Slurm's number, our name.
    state : str
        ``"PENDING"``, ``"RUNNING"``, ``"FAILED"``, ….
    reason : str
        Why it waits or ended, in Slurm's word, such as ``"Resources"``.
    """

    id: str
    name: str
    state: str
    reason: str

    @property
    def ended(self) -> bool:
        """Whether it will not run any more."""
        return self.state in ENDED

    @property
    def waits(self) -> bool:
        """Whether it has not begun, or not again."""
        return self.state in WAITING

    @property
    def ending(self) -> bool:
        """Whether Slurm is ending it: for long where a node does not answer, and it may be queued again after that."""
        return self.state == "COMPLETING"

    def __str__(self) -> str:
        known = self.reason not in ("", "None")
        return f"job {self.id} {self.state}" + (f" ({self.reason})" if known else "")


OTHERS = ("SLURM_", "SQUEUE_", "SACCT_", "SCANCEL_")
"""How variables begin that would have a command answer about other jobs than it was asked about, or ask back."""

OURS = ("SLURM_CONF", "SLURM_JWT")
"""Those of them that say where Slurm is, and who asks."""


def environment() -> dict[str, str]:
    """Return this process's environment without what Slurm told the job that it may be part of, or its user Slurm.

    A job that is submitted from another one would inherit that one's memory and cores, and be refused if its own are
    said in another way. With the user's ``SQUEUE_PARTITION`` jobs of other partitions would seem to be gone.
    """
    return {key: value for key, value in os.environ.items() if key in OURS or not key.startswith(OTHERS)}


def submit(script: Path, name: str) -> str:
    """Submit a batch script; return the job's number.

    Its name is said once more: that counts, whatever SBATCH_JOB_NAME says, or another one has just written as script.
    And what is said in the script counts, whatever the user's SBATCH_… say, which sbatch would follow instead.

    Raises
    ------
    NoAnswerError
        If it may have been taken all the same.
    AwayError
        If there is nobody to take it.
    SlurmError
        With what sbatch says.
    """
    said = _options_in(script.read_text(errors="replace"))
    hidden = {f"SBATCH_{variable}" for option in said for variable in (_name(option), *_ALSO.get(option, ()))}
    text = call("sbatch", "--parsable", f"--job-name={name}", str(script), hidden=hidden | NEVER)
    return text.strip().split(";")[0]


NEVER = frozenset({"SBATCH_ARRAY_INX", "SBATCH_CLUSTERS", "SBATCH_WAIT"})
"""Variables that would have sbatch start many jobs in place of one, or one where squeue and scancel do not ask, or come
back only when it has ended."""

_LETTERS = {
    "A": "account", "C": "constraint", "G": "gpus", "J": "job-name", "O": "overcommit", "S": "core-spec",
    "e": "error", "i": "input", "k": "no-kill", "m": "distribution", "o": "output", "p": "partition", "q": "qos",
    "t": "time",
}  # fmt: skip
"""Short options of sbatch that it also has variables for, by the long ones that mean the same."""

_ALSO = {
    "gres": ("GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK"),
    "mem": ("MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE"),
    "no-requeue": ("REQUEUE",),
    "output": ("ERROR",),
    "requeue": ("NO_REQUEUE",),
    "switches": ("REQ_SWITCH", "WAIT4SWITCH"),
    "time": ("TIMELIMIT",),
}
"""Variables that have other names than the option, or ask for something else in its place."""


def _name(option: str) -> str:
    return option.upper().replace("-", "_")


def _options_in(script: str) -> set[str]:
    """Return the options of sbatch that a batch script holds, by their long names."""
    words = [word for line in script.splitlines() if line.startswith("#SBATCH ") for word in line.split()[1:]]
    long = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    return long | {_LETTERS[word[1]] for word in words if re.match("-[A-Za-z]", word) and word[1] in _LETTERS}


def look(patience: float = PATIENCE, user: str | None = None) -> dict[str, BatchJob]:
    """Return this user's jobs by their numbers, those that ended a short while ago too; or another user's, by name.

    Those of others are not among them where the site keeps them private.
    """
    text = call("squeue", "--noheader", f"--user={user or os.geteuid()}", "--states=all", "--format=%i|%T|%r|%j",
                patience=patience)  # fmt: skip
    return {number: BatchJob(number, name, state, reason) for number, state, reason, name in _fields(text)}


def look_back(ids: Iterable[str]) -> dict[str, BatchJob]:
    """Return what the accounts say of jobs that the queue has forgotten; nothing where there are no accounts."""
    wanted = ",".join(ids)
    try:
        text = call("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode,JobName",
                    f"--jobs={wanted}") if wanted else ""  # fmt: skip
    except SlurmError:
        return {}
    said = _fields(text)
    return {number: BatchJob(number, name, state.split()[0], f"exit code {code}") for number, state, code, name in said}


_JOB = re.compile(r"(\d+)\|([A-Z_]+(?: [^|]*)?)\|([^|]*)\|(.*)")
"""A line about a job: number, state, reason or exit code, name."""


def _fields(text: str) -> Iterator[tuple[str, ...]]:
    """Yield what lines about jobs say; others are left out.

    None is about ours: another job's name may have a line break, an array's number more than digits.
    """
    for line in text.splitlines():
        if job := _JOB.fullmatch(line):
            yield job.groups()


def find(jobs: dict[str, BatchJob], number: str, name: str | None) -> BatchJob | None:
    """Return what the queue says of a job in its answer `jobs`, else the accounts.

    None too if its number is by now that of a job with another name; a `name` of None is any.
    """
    job = jobs.get(number) or look_back([number]).get(number)
    return job if job is not None and name in (None, job.name) else None


def cancel(ids: Iterable[str], *, signal: str | None = None, patience: float = PATIENCE) -> None:
    """End jobs; those that have ended are no error. With a signal, send it to their batch scripts instead."""
    numbers = sorted(set(ids))
    options = ["--batch", f"--signal={signal}"] if signal else []
    if numbers:
        call("scancel", *options, *numbers, patience=patience, allowed=re.compile("(?i)invalid job|already"))


def call(
    command: str, *arguments: str, patience: float = PATIENCE, allowed: re.Pattern[str] | None = None,
    hidden: Collection[str] = (),
) -> str:  # fmt: skip
    """Run one of Slurm's commands and return its output; some variables of the environment may be `hidden` from it.

    Raises
    ------
    NoAnswerError
        If it does not end in `patience` seconds, or has waited for the controller in vain.
    AwayError
        If there is no controller.
    SlurmError
        If it is not installed, or fails with a message that is not `allowed`.
    """
    try:
        done = subprocess.run(
            [command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=patience, env={key: value for key, value in environment().items() if key not in hidden},
            check=False,
        )  # fmt: skip
    except FileNotFoundError:
        hint = "run this on a login node of the cluster, or module load slurm"
        raise SlurmError(f"{command} is not on this machine's PATH", hint) from None
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{command} did not answer within {patience:g} s", hint=_IS_UP) from None
    if done.returncode and not (allowed and allowed.search(done.stderr)):
        said = done.stderr.strip() or f"exit code {done.returncode}"
        kind = NoAnswerError if _UNSURE.search(said) else AwayError if _AWAY.search(said) else SlurmError
        wrong = command == "sbatch" and kind is SlurmError
        hint = "the partition, account and sizes in the profile; sinfo, sacctmgr" if wrong else _IS_UP
        raise kind(f"{command}: {said}", hint=hint)
    return done.stdout
