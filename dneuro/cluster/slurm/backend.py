"""Slurm as a backend: workers in batch jobs, the driver in one too or on the login node."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dneuro import events
from dneuro.allocation import is_told
from dneuro.cluster import processes
from dneuro.cluster.backends import DriverRef, DriverState, Folder, NeededFile, this_user
from dneuro.cluster.machines import DaskMachines
from dneuro.cluster.record import STANDING, Record, entries, job_folder_of
from dneuro.cluster.security import make_credentials, place_of_keys, read_credentials, remove_keys
from dneuro.cluster.settings import process_variables, scheduler_settings, worker_settings
from dneuro.cluster.sizes import WorkerSizes
from dneuro.cluster.slurm import queue
from dneuro.cluster.slurm.keeper import Keeper
from dneuro.cluster.slurm.scripts import Site, driver_script, job_name, worker_script, worker_settings_of
from dneuro.cluster.versions import check_versions, versions
from dneuro.errors import DneuroError, UsageError
from dneuro.files import write_atomically
from dneuro.quantities import MiB, format_bytes
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.sites import SlurmSpec

NANNY = 192 * MiB
"""Of a job's memory, what the process takes that watches over the worker (120 MiB measured)."""

TRIES = 4
"""Times that Slurm is asked at a driver's start before its silence ends the attempt."""

PAUSE = 5.0
"""Seconds between them, beside those that each of its commands waits."""


class SlurmBackend:
    """Batch jobs of Slurm, one for each worker, around a scheduler in this process.

    Parameters
    ----------
    profile : ProfileSpec
        With ``backend: slurm``.
    """

    def __init__(self, profile: ProfileSpec) -> None:
        self.profile = profile
        self.slurm = profile.slurm or SlurmSpec()

    def sizes(self, pool: str) -> WorkerSizes:
        """Return what the workers of a pool have: what the profile says."""
        spec = self.profile.groups[self.profile.group(pool)]
        assert spec.memory is not None  # the profile was checked
        if spec.memory <= 2 * NANNY:
            raise UsageError(f"{format_bytes(spec.memory)} are too few for a worker",
                             hint=f"memory: at least {4 * NANNY // MiB}MiB")  # fmt: skip
        cpus = max(1, (spec.cpus or spec.threads) // spec.threads)
        driver = self.profile.driver.memory if self.slurm.submit_workers_from == "driver" else None
        coalescing = is_told(process_variables(cpus, spec.env))
        memory = spec.memory - NANNY
        return WorkerSizes(spec.workers or 1, spec.threads, cpus, memory, spec.gpus, driver, coalescing=coalescing)

    def check_files(self, files: Iterable[NeededFile]) -> None:
        """Refuse nothing: which of this machine's disks the nodes share nobody can tell."""

    @contextlib.contextmanager
    def open(self, *, folder: Path | None = None, name: str = "dneuro") -> Iterator[DaskMachines]:
        """Start a scheduler here and a batch job for each worker; they end with the block, and lost ones are replaced.

        Everything but HTTP on loopback is encrypted and needs a certificate of this run.

        Raises
        ------
        DneuroError
            If Slurm refuses a job, a pool has no worker within its ``start_timeout``, or versions differ.
        """
        import dask
        from distributed import Client, Scheduler, SpecCluster

        folder = self._folder(folder, name)
        whole = job_folder_of(folder) or folder
        _patiently(lambda: end_jobs(whole, {"worker"}))  # of an attempt whose driver was killed
        remove_keys(whole)
        keys = make_credentials(place_of_keys(folder, self.profile.security.folder))
        security = read_credentials(keys)
        groups = self.profile.groups
        self._write_settings(folder)
        options = {
            "protocol": "tls://", "port": 0, "interface": self.profile.security.bind, "security": security,
            "dashboard": bool(self.profile.security.dashboard), "dashboard_address": "127.0.0.1:0",
        }  # fmt: skip
        with contextlib.ExitStack() as stack:
            stack.enter_context(dask.config.set(scheduler_settings(max(map(self.profile.timeout, groups)))))
            try:
                cluster = stack.enter_context(
                    SpecCluster({}, {"cls": Scheduler, "options": options}, security=security, name=name,
                                silence_logs=50)
                )  # fmt: skip
            except (OSError, RuntimeError, ValueError) as error:
                raise DneuroError(
                    f"the scheduler could not listen on {self.profile.security.bind or socket.gethostname()}: {error}",
                    hint="security.bind: a network interface of this machine (ip -brief address)",
                ) from error
            client = stack.enter_context(Client(cluster, security=security))
            site = Site(self.profile, folder, cluster.scheduler.address, _options(keys))
            keeper = Keeper(
                {group: self.sizes(group).workers for group in groups},
                lambda group, job, worker: worker_script(site, group, self.sizes(group), job, worker),
                lambda: {str(worker.name) for worker in list(cluster.scheduler.workers.values())},
                folder,
                f"{job_name(name)}-{secrets.token_hex(3)}",
            )
            stack.callback(shutil.rmtree, keys, ignore_errors=True)  # worth nothing any more
            stack.callback(keeper.close)
            keeper.start()
            keeper.wait({group: self.profile.timeout(group) for group in groups})
            check_versions(client)
            yield DaskMachines(client, self.profile)

    def start_driver(self, job_folder: Folder, command: Sequence[str], name: str) -> DriverRef:
        """Submit the driver as a batch job; or start it as a process here, where only login nodes may submit.

        Raises
        ------
        SlurmError
            If Slurm refuses it.
        """
        folder = processes.as_path(job_folder).absolute()
        if self.slurm.submit_workers_from == "login":
            return processes.start("slurm", folder, command)
        record, script = Record(folder), folder / "driver.sh"
        unique = f"{job_name(name)}-{secrets.token_hex(3)}"
        text = driver_script(self.profile, folder, command, unique)
        write_atomically(script, lambda file: file.write(text.encode()))  # another one may be submitted just now
        record.write(kind="slurm", role="driver", name=unique)
        try:
            number = queue.submit(script, unique)
        except queue.NoAnswerError:
            raise  # it may have been taken
        except queue.SlurmError as error:
            record.write(kind="slurm", role="driver", name=unique, refused=error.message)
            raise
        record.write(kind="slurm", role="driver", name=unique, id=number)
        return DriverRef("slurm", number, {"name": unique, "user": this_user()})

    def this_driver(self) -> DriverRef:
        """Return the batch job that this process is in; where drivers stay on the login node the process itself."""
        number = os.environ.get("SLURM_JOB_ID")
        if number is None or self.slurm.submit_workers_from == "login":
            return processes.this_process("slurm")
        name = os.environ.get("SLURM_JOB_NAME")
        return DriverRef("slurm", number, {"user": this_user()} | ({"name": name} if name else {}))

    def driver_state(self, ref: DriverRef) -> DriverState:
        """Return what the queue says of the driver; ``"unknown"`` while the controller does not answer.

        Of another user's driver, too, of which nothing is to be seen: the site may keep it from others.
        A job of its number that bears another name is another one: Slurm counts from 1 again when its own state is new.
        """
        if "host" in ref.details:
            return processes.state(ref)
        try:
            return _state_of_job(ref)
        except queue.SlurmError:
            return "unknown"

    def why_waiting(self, ref: DriverRef) -> str:
        """Return Slurm's word for why the driver's job waits, such as ``JobHeldUser``; nothing where there is none."""
        if "host" in ref.details:
            return ""
        try:
            job = queue.find(queue.look(), ref.id, ref.details.get("name"))
        except queue.SlurmError:
            return ""
        return str(job) if job is not None and job.waits and job.reason not in ("", "None") else ""

    def stop_driver(self, ref: DriverRef, *, grace: float) -> None:
        """Tell the driver to stop; cancel its job if it has not after `grace` seconds.

        Raises
        ------
        SlurmError
            If the controller does not answer, or it is another user's, who alone may do so.
        """
        if "host" in ref.details:
            processes.stop(ref, grace)
            return
        before = _state_of_job(ref)
        if before == "unknown":
            owner = ref.details.get("user")
            raise queue.SlurmError(f"the driver is job {ref.id} of user {owner}, and nothing is to be seen of it",
                                   hint=f"the same command, by {owner}")  # fmt: skip
        if before == "running":
            queue.cancel([ref.id], signal="TERM")
            over = time.monotonic() + grace
            while self.driver_state(ref) == "running" and time.monotonic() < over:
                time.sleep(0.5)
        if _state_of_job(ref) != "gone":  # else its number may be another's by now
            queue.cancel([ref.id])

    def clean_up(self, job_folder: Folder) -> list[str]:
        """Cancel every batch job of a job that is left, the driver's too, and remove keys; return their numbers."""
        folder = processes.as_path(job_folder)
        ended = end_jobs(folder, {"worker", "driver"})
        remove_keys(folder)
        return ended

    def preview(self, job_folder: Folder, command: Sequence[str], name: str) -> str:
        """Return the batch scripts of the driver and of one worker of each pool."""
        folder, name = processes.as_path(job_folder).absolute(), job_name(name)
        attempt = folder / "attempts" / "001"
        site = Site(self.profile, attempt, "tls://DRIVER:PORT", _options(attempt / "keys"))
        in_queue = self.slurm.submit_workers_from == "driver"
        parts = {
            "driver, sbatch" if in_queue else "driver, a process of this machine":
                driver_script(self.profile, folder, command, name) if in_queue else f"{processes.shown(command)}\n",
        }  # fmt: skip
        for group in self.profile.groups:
            sizes = self.sizes(group)
            text = worker_script(site, group, sizes, f"{name}-{group}-0", f"{group}-0")
            parts[f"pool {group}, sbatch × {sizes.workers}"] = text
        return "\n".join(f"### {title}\n{text}" for title, text in parts.items())

    def _folder(self, folder: Path | None, name: str) -> Path:
        if folder is None:
            folder = processes.as_path(self.profile.state) / STANDING / f"{name}-{secrets.token_hex(4)}"
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
        return folder

    def _write_settings(self, folder: Path) -> None:
        settings = {
            **worker_settings(),
            "distributed.nanny.preload": ["dneuro.cluster.versions"],
            "dneuro.versions": versions(),
        }
        for group, pool in self.profile.groups.items():
            its = worker_settings_of(group, self.sizes(group), pool, settings)
            (folder / f"workers-{group}.yaml").write_text(yaml.safe_dump(_nested(its)))


def _patiently(ask: Callable[[], object]) -> None:
    """Ask Slurm, and again where it does not answer: a controller that is busy or away is no reason for a job to end.

    Raises
    ------
    SlurmError
        If it has not answered `TRIES` times, or has said no.
    """
    for left in reversed(range(TRIES)):
        try:
            ask()
            return
        except (queue.NoAnswerError, queue.AwayError) as error:
            if not left:
                raise
            events.emit("note", message=f"asked once more in {PAUSE:g} s: {error.message}")
            time.sleep(PAUSE)


def end_jobs(job_folder: Path, roles: set[str]) -> list[str]:
    """Cancel the batch jobs that were recorded for a job and are still in the queue; return their numbers.

    Those that Slurm has ``refused`` are not asked for: where no other was recorded, Slurm need not be there.
    They are known by their names, which are drawn at random for each: a number may be another job's by now. Those that
    Slurm is ending already do not count, but may be queued again, and are cancelled too.
    """
    recorded = [entry for entry in entries(job_folder) if entry.get("kind") == "slurm" and entry["role"] in roles]
    names = {entry["name"] for entry in recorded} - {entry["name"] for entry in recorded if "refused" in entry}
    if not names:
        return []
    left = [job for job in queue.look().values() if job.name in names and not job.ended]
    left = [job for job in left if job.id != os.environ.get("SLURM_JOB_ID")]
    queue.cancel(job.id for job in left)
    return [job.id for job in left if not job.ending]


def _state_of_job(ref: DriverRef) -> DriverState:
    """Return what Slurm says of a driver's batch job; raises SlurmError where it does not answer."""
    jobs = queue.look(user=ref.details["user"]) if ref.is_anothers else queue.look()
    job = queue.find(jobs, ref.id, ref.details.get("name"))
    if job is None:
        return "unknown" if ref.is_anothers else "gone"
    if job.ended:
        return "gone"
    if job.ending:
        return "ending"
    return "pending" if job.waits else "running"


def _options(keys: Path) -> dict[str, str]:
    return {"--tls-ca-file": str(keys / "ca.pem"), "--tls-cert": str(keys / "worker.pem"),
            "--tls-key": str(keys / "worker.key")}  # fmt: skip


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` of ``{"a.b": 1}``, as dask's files are written."""
    found: dict[str, Any] = {}
    for path, value in settings.items():
        *above, last = path.split(".")
        place = found
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return found
