"""The batch scripts that are submitted: one for each worker, one for a driver."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dneuro.cluster.settings import process_variables
from dneuro.cluster.sizes import WorkerSizes
from dneuro.cluster.slurm.shell import whole
from dneuro.errors import UsageError
from dneuro.quantities import MiB
from dneuro.spec.profile import PoolSpec, ProfileSpec
from dneuro.spec.sites import SlurmSpec

DEATH_TIMEOUT = 60
"""Seconds without a scheduler after which a worker ends itself, and its job with it."""

NOTICE = 120
"""Seconds before its time limit at which a driver is told to stop, to be queued again; at most half of its time."""

LAST = 30
"""Of those, the seconds that are left for queueing it again where it has not ended; at most half of them."""


@dataclass(frozen=True)
class Site:
    """What the scripts of one run have in common.

    Parameters
    ----------
    profile : ProfileSpec
        With ``backend: slurm``.
    folder : Path
        For logs and settings, on a file system that all nodes see.
    address : str
        The scheduler's.
    keys : dict of str to str
        Options of ``dask worker`` that name its certificate and key.
    """

    profile: ProfileSpec
    folder: Path
    address: str
    keys: dict[str, str]

    @property
    def slurm(self) -> SlurmSpec:
        """The profile's section, or its defaults."""
        return self.profile.slurm or SlurmSpec()

    def log(self, name: str) -> Path:
        """Return where the output of a worker's job goes."""
        return self.folder / "logs" / f"{name}.log"

    def settings(self, group: str) -> Path:
        """Return the file with dask's settings for the workers of a pool."""
        return self.folder / f"workers-{group}.yaml"


def _slurm_job() -> Any:
    """Return dask-jobqueue's class of jobs.

    When it is imported it takes Ctrl-C for itself, which is the driver's, or the notebook's.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        from dask_jobqueue.slurm import SLURMJob
    except ImportError:
        hint = 'pip install ".[slurm]" in the sources of dneuro'
        raise UsageError("dask-jobqueue is not installed", hint=hint) from None
    if signal.getsignal(signal.SIGINT) is not before:
        signal.signal(signal.SIGINT, before)
    return SLURMJob


def worker_script(site: Site, group: str, sizes: WorkerSizes, name: str, worker: str) -> str:
    """Return the script of one worker; dask-jobqueue writes its header and command.

    Always one process: with several, all of them would load their network into the one GPU of the job.
    """
    make_job, pool = _slurm_job(), site.profile.groups[group]
    slurm = site.slurm
    job = make_job(
        scheduler=site.address,
        # The job's number tells workers of the same place apart: one may still be known when the next one comes.
        name=f"{worker}.${{SLURM_JOB_ID}}",
        job_name=name,
        queue=pool.partition,
        account=slurm.account,
        walltime=None if pool.walltime is None else _clock(pool.walltime),
        cores=sizes.threads,
        processes=1,
        job_cpu=pool.cpus or sizes.threads,
        memory=f"{sizes.memory}B",
        job_mem=f"{math.ceil((pool.memory or sizes.memory) / MiB)}M",
        nanny=True,
        protocol="tls://",
        interface=site.profile.security.bind,
        death_timeout=DEATH_TIMEOUT,
        local_directory=shlex.quote(slurm.scratch) if slurm.scratch else '"${TMPDIR:-/tmp}"',
        worker_command="distributed.cli.dask_worker",
        worker_extra_args=list(_worker_options(site, group, sizes, pool)),
        job_extra_directives=list(_directives(site, pool, name)),
        job_script_prologue=list(_prologue(site, group, sizes, pool)),
        # dask-jobqueue fills in a time limit and two log files of its own where it is given none.
        job_directives_skip=["#SBATCH -e", "#SBATCH -o", *([] if pool.walltime else ["#SBATCH -t"])],
        shebang="#!/bin/bash",
        python=f"exec {_python(slurm)}",
        config_name="slurm",
    )
    return str(job.job_script())


def _worker_options(site: Site, group: str, sizes: WorkerSizes, pool: PoolSpec) -> Iterator[str]:
    yield from ("--memory-limit", str(sizes.memory))  # exactly: dask-jobqueue's own is rounded
    yield from ("--no-dashboard", "--dashboard-address", "127.0.0.1:0")
    yield from ("--resources", shlex.quote(f"{group}={sizes.threads}"))
    for option, value in site.keys.items():
        yield from (option, shlex.quote(value))
    if pool.walltime is not None and pool.walltime > 10 * NOTICE:
        # Leaving in time, a worker hands over what it holds; one that is killed loses it.
        yield from ("--lifetime", f"{pool.walltime - NOTICE:.0f}s")


def _directives(site: Site, pool: PoolSpec, name: str) -> Iterator[str]:
    yield _output(site.log(name))
    # Slurm would hold a job that it queues again for two minutes, and the driver replaces what is lost.
    yield "--no-requeue"
    if gres := pool.gres or (f"gpu:{pool.gpus}" if pool.gpus else None):
        yield f"--gres={gres}"
    if pool.constraint:
        yield f"--constraint={pool.constraint}"
    if site.slurm.qos:
        yield f"--qos={site.slurm.qos}"
    yield from pool.directives


def _prologue(site: Site, group: str, sizes: WorkerSizes, pool: PoolSpec) -> Iterator[str]:
    variables = process_variables(sizes.cpus, pool.env, inherited=os.environ)
    yield from _common(site.slurm)
    for key, value in {**variables, "DASK_CONFIG": str(site.settings(group))}.items():
        yield f"export {key}={shlex.quote(value)}"


def _common(slurm: SlurmSpec) -> Iterator[str]:
    path = os.environ.get("PYTHONPATH")
    if path and slurm.python is None:  # sites that start jobs in a bare environment
        absolute = os.pathsep.join(str(Path(part).absolute()) for part in path.split(os.pathsep) if part)
        yield f"export PYTHONPATH={shlex.quote(absolute)}"
    yield from whole(slurm.setup, "slurm.setup")


def _python(slurm: SlurmSpec) -> str:
    """Return what starts Python on a node."""
    return shlex.quote(sys.executable) if slurm.python is None else whole((slurm.python,), "slurm.python")[0]


def worker_settings_of(group: str, sizes: WorkerSizes, pool: PoolSpec, settings: dict[str, Any]) -> dict[str, Any]:
    """Return dask's settings for the workers of a pool: the nanny sets threads to 1 unless it is told otherwise."""
    variables = process_variables(sizes.cpus, pool.env, inherited=os.environ)
    return {**settings, "distributed.nanny.pre-spawn-environ": variables}


def driver_script(profile: ProfileSpec, folder: Path, command: Sequence[str], name: str) -> str:
    """Return the script of a driver: queued again when its node or its time is lost, but not for ever."""
    slurm, driver = profile.slurm or SlurmSpec(), profile.driver
    header = [
        f"--job-name={name}",
        _output(folder / "driver.log"),
        "--open-mode=append",
        "--requeue" if slurm.requeue else "--no-requeue",
        "--ntasks=1",
        f"--cpus-per-task={driver.cpus}",
        f"--mem={math.ceil(driver.memory / MiB)}M",
    ]
    settings = {"--partition": driver.partition, "--account": slurm.account, "--qos": slurm.qos,
                "--time": None if driver.walltime is None else _clock(driver.walltime)}  # fmt: skip
    header += [f"{option}={value}" for option, value in settings.items() if value]
    # Without a limit of its own it has the partition's, and is told of that one too.
    notice = NOTICE if driver.walltime is None else min(NOTICE, 30 * _minutes(driver.walltime))
    last = min(LAST, notice // 2)
    header.append(f"--signal=B:USR1@{notice}")
    return _DRIVER.format(
        header="\n".join(f"#SBATCH {line}" for line in [*header, *driver.directives]),
        restarts=driver.max_restarts,
        patience=notice - last,
        last=last,
        setup="\n".join(_common(slurm)),
        command=shlex.join(command) if slurm.python is None else f"{_python(slurm)} {shlex.join(command[1:])}",
        again="scontrol requeue" if slurm.requeue else ":",  # bash wants a command there
    )


def job_name(text: str) -> str:
    """Return a text as the name of a job: in one word, as a line of options and the queue's answers need it."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text)


def _output(path: Path) -> str:
    """Return the option that names a job's output, so that it is this file whatever letters are in the path.

    Raises
    ------
    UsageError
        If no line of a batch script can hold it.
    """
    text = str(path)
    if not text.isprintable():
        raise UsageError(f"the path {text!r} has a letter in it that no batch script can hold", hint="another state:")
    # Slurm puts a job's number in the place of %j and the like; where there is a backslash it takes away one of two.
    text = text.replace("\\", "\\\\") if "\\" in text else text.replace("%", "%%")
    if re.search(r"[\s\"'\\#]", text):  # in quotes a backslash stands before those two that still mean something
        text = '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    return f"--output={text}"


_DRIVER = """\
#!/bin/bash
{header}

if [ "${{SLURM_RESTART_COUNT:-0}}" -gt {restarts} ]; then
  echo "error: this driver was started {restarts} times again, that is enough (driver.max_restarts)"
  exit 4
fi
{setup}
set +eu # what was set above would end this shell by the signals that it gets

# The shell gets the signals: told to end, it tells the driver; out of time, it has itself queued again after that, or,
# where the driver is in the midst of something long, before the limit: what reaches that does not come back.
late=
asked=
# ($!: the driver is known by it as soon as it is there, by a variable only in the next line.)
trap 'if [ "$!" ]; then kill -TERM "$!"; else exit 143; fi' TERM INT
trap 'late=${{late:-$((SECONDS + {patience}))}}; [ "$!" ] && kill -TERM "$!"' USR1
{command} &
driver=$!
while kill -0 $driver 2>/dev/null; do # a signal ends the waiting, not the driver
  if [ -z "$late" ]; then
    wait $driver
  elif [ "$SECONDS" -lt "$late" ]; then
    sleep 1
  elif [ -z "$asked" ] && ! {again} "$SLURM_JOB_ID"; then
    sleep 5
  else
    asked=1
    wait $driver
  fi
done
wait $driver
code=$?
if [ -n "$late" ] && [ -z "$asked" ] && [ "$code" -ne 0 ]; then
  trap 'exit "$code"' TERM INT # cancelled meanwhile
  until {again} "$SLURM_JOB_ID" || [ "$SECONDS" -ge $((late + {last})) ]; do # the controller may be away
    sleep 5
  done
fi
exit $code
"""


def _clock(seconds: float) -> str:
    """Return a time limit as Slurm writes it, in whole minutes, for it counts no less."""
    minutes = _minutes(seconds)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def _minutes(seconds: float) -> int:
    return max(1, math.ceil(seconds / 60))
