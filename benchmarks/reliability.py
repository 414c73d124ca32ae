"""``make faults``: inject every fault into real runs, and write docs/reliability.md with what was measured.

``python -m benchmarks.reliability [--only WORD]``: each promise is one line of the table; its tests are named there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from dneuro.quantities import format_bytes

ROOT = Path(__file__).parents[1]
WORKERS, DRIVERS = "tests/faults/test_faults_workers.py", "tests/faults/test_faults_drivers.py"
SLURM_WORKERS, SLURM_DRIVERS = "tests/slurm/test_slurm_workers.py", "tests/slurm/test_slurm_drivers.py"
KEPT = ROOT / "build" / "faults.json"
"""What the last run found, so that one fault can be tried again alone."""
PROTOCOL = "tests/extract/test_extract_protocol.py"


@dataclass(frozen=True)
class Promise:
    """A fault, what is promised, and the tests that inject it."""

    fault: str
    promise: str
    tests: tuple[str, ...]
    seconds: tuple[tuple[str, float], ...] = ()
    """What the tests measure but never assert, and the seconds that it may take."""


PROMISES = (
    Promise(
        "a random worker killed, told to end, crashed by a segmentation fault or restarted by the scheduler, 20 times",
        "every unit done, none failed; the store equals that of a clean run, file by file",
        (f"{WORKERS}::test_workers__lost_at_random_cost_nothing",),
    ),
    Promise(
        "the driver killed at 25 random moments, then `resume`",
        "at most 2 units per slot redone, what was done left alone, first new unit within 30 s; the store equals a "
        "clean run's",
        (f"{DRIVERS}::test_driver__killed_at_random_and_resumed_redoes_next_to_nothing",),
        seconds=(("seconds_to_first_unit", 30),),
    ),
    Promise(
        "killed at each step of the unit protocol; truncated partials, damaged markers, stray temporary files",
        "never a wrong done; only torn units redone",
        tuple(
            f"{PROTOCOL}::{name}"
            for name in (
                "test_kill__at_any_step_is_never_taken_for_done",
                "test_kill__then_the_same_job_again_equals_a_clean_run",
                "test_kill__between_the_markers_of_a_unit_leaves_the_first_done",
                "test_resume__redoes_a_unit_with_a_damaged_marker_or_partial_only",
                "test_resume__sweeps_what_a_killed_writer_left",
            )
        ),
    ),
    Promise(
        "chunks of a finished store truncated, altered or removed",
        "`dneuro verify` names them, and what it withdraws is redone",
        ("tests/jobs/test_jobs_verify.py::test_verify__names_what_is_damaged_and_repairs_it",),
    ),
    Promise(
        "a unit that segfaults, or exhausts its worker's memory, each time",
        "left out after 3 tries, everything else done, exit code 3; it stays left out until `retry --failed`",
        (
            f"{WORKERS}::test_unit__that_kills_its_worker_each_time_is_left_out",
            "tests/jobs/test_jobs_lives.py::test_failed_units__stay_left_out_until_they_are_asked_for",
        ),
    ),
    Promise(
        "a worker that stands still (SIGSTOP)",
        "given up after dask's `worker-ttl` (5 minutes; 15 s here), its units done by others",
        (f"{WORKERS}::test_worker__that_stands_still_is_given_up_and_its_units_move",),
    ),
    Promise(
        "damaged, odd, huge and hostile image files",
        "masked and listed, or read right; never a dead worker",
        ("tests/images/test_images_hostile.py", "tests/extract/test_extract_masked.py"),
    ),
    Promise(
        "a second driver",
        "leaves, with the reason, within 5 s after it has started",
        (
            f"{DRIVERS}::test_second_driver__of_a_job_that_runs_leaves_within_seconds",
            f"{PROTOCOL}::test_older_run__overtaken_in_mid_unit_does_not_publish",
            f"{PROTOCOL}::test_older_run__does_not_touch_what_a_newer_one_has_done",
            "tests/jobs/test_jobs_overtaken.py",
        ),
        seconds=(("seconds_until_the_second_left", 5),),
    ),
    Promise(
        "a driver elsewhere that falls silent",
        "respected for 90 s, then taken over; at once where it is known to be dead",
        ("tests/jobs/test_jobs_lease.py",),
    ),
    Promise(
        "images, weights or settings that have changed",
        "refused with what differs, exit code 64",
        ("tests/jobs/test_jobs_lives.py::test_resume__of_a_job_whose_images_are_others_now_is_refused",),
    ),
    Promise(
        "workers with other versions of Python or of what computes",
        "refused by name, with what differs, before they do anything",
        (
            "tests/cluster/test_cluster_address.py::test_workers__of_other_versions_are_refused_by_name",
            "tests/cluster/test_cluster_address.py::test_worker__refuses_to_start_beside_other_versions",
        ),
    ),
    Promise(
        "no worker of a pool",
        "named within `start_timeout` + 10 s; in mid-run once none has come for the profile's `start_timeout`, "
        "of itself 1 minute on one machine and 15 in a queue",
        (
            f"{WORKERS}::test_pool__whose_workers_cannot_start_is_named_in_time",
            "tests/engine/test_engine_pools.py::test_pool__without_workers_for_too_long_says_so",
            "tests/engine/test_engine_deserted.py",
        ),
        seconds=(("seconds_until_named", 15),),  # its start_timeout there is 5 s
    ),
    Promise(
        "`cancel`, the driver alive or dead",
        "nothing of the job is left; state cancelled, exit code 5; `resume` goes on",
        (
            "tests/jobs/test_jobs_lives.py::test_cancelled_job__leaves_no_process_and_resumes",
            "tests/jobs/test_jobs_lives.py::test_job__whose_driver_was_killed_or_told_to_end_says_so",
        ),
    ),
    Promise(
        "in Slurm: `scancel` of a worker, its walltime, a slurmd stopped; the driver queued again by "
        "`scontrol requeue`, at its walltime, when its node is lost",
        "the job finishes; the store equals that of threads, file by file",
        (
            f"{SLURM_WORKERS}::test_job__whose_worker_is_cancelled_ends_with_what_threads_compute",
            f"{SLURM_WORKERS}::test_worker__whose_time_is_up_is_replaced",
            f"{SLURM_WORKERS}::test_slurmd__stopped_costs_its_node_and_no_more",
            f"{SLURM_DRIVERS}::test_job__whose_worker_is_cancelled_and_whose_driver_is_queued_again_"
            "ends_as_on_threads",
            f"{SLURM_DRIVERS}::test_driver__whose_time_is_up_queues_itself_again",
            f"{SLURM_DRIVERS}::test_driver__whose_node_is_lost_goes_on_on_another",
        ),
    ),
    Promise(
        "in Slurm: `cancel`, the driver alive or dead",
        "no job is left in the queue after 30 s",
        (f"{SLURM_DRIVERS}::test_cancel__leaves_nothing_in_the_queue",),
    ),
    Promise(
        "a full disk",
        "said clearly, no false marker; with room again, the same command finishes",
        (
            "tests/jobs/test_jobs_disk.py",
            f"{PROTOCOL}::test_disk__that_is_full_ends_the_run_with_a_hint_and_no_false_marker",
        ),
    ),
    Promise(
        "a scan of all ports while a job runs",
        "nothing listens beyond loopback",
        (f"{WORKERS}::test_ports__of_a_running_job_listen_on_loopback_alone",),
    ),
)


@dataclass(frozen=True)
class Found:
    """What came of the tests of a promise."""

    held: int
    broken: tuple[str, ...]
    skipped: int
    measured: dict[str, str]
    seconds: float


def main() -> None:
    """Parse the command line, run, write the table; exit code 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability", description=__doc__)
    parser.add_argument("--times", default="all", help="a number: no fault more often than that")
    parser.add_argument("--only", default="", help="faults whose text has this word; of the others the last run counts")
    asked = parser.parse_args()
    known = json.loads(KEPT.read_text()) if asked.only and KEPT.is_file() else {}
    for promise in PROMISES:
        if asked.only in promise.fault:
            found = _try(promise, asked.times)
            print(_row(promise, found), flush=True)
            known[promise.fault] = asdict(found)
            KEPT.parent.mkdir(exist_ok=True)
            KEPT.write_text(json.dumps(known, indent=1))
    table = {promise: Found(**known[promise.fault]) for promise in PROMISES if promise.fault in known}
    (ROOT / "docs" / "reliability.md").write_text(_document(table))
    sys.exit(any(one.broken for one in table.values()))


def _try(promise: Promise, times: str) -> Found:
    with tempfile.TemporaryDirectory(prefix="dneuro-faults-") as folder:
        report = Path(folder) / "found.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--timeout=900",
            "-o",
            "junit_family=xunit1",
            f"--junitxml={report}",
            *promise.tests,
        ]
        environment = {**os.environ, "DNEURO_FAULTS": times}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if not report.is_file():
            said = done.stdout[-4000:] + done.stderr[-4000:]
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{said}")
        cases = list(ET.parse(report).getroot().iter("testcase"))
    bad = [case for case in cases if any(case.find(tag) is not None for tag in ("failure", "error"))]
    broken = tuple(case.get("name", "") for case in bad)
    for case in bad:
        why = [case.find("failure"), case.find("error")]
        print(*(one.text for one in why if one is not None), sep="\n", file=sys.stderr)
    skipped = sum(case.find("skipped") is not None for case in cases)
    measured = {one.get("name", ""): one.get("value", "") for case in cases for one in case.iter("property")}
    seconds = sum(float(case.get("time", 0)) for case in cases)
    return Found(len(cases) - len(broken) - skipped, broken, skipped, measured, seconds)


def _row(promise: Promise, found: Found | None) -> str:
    if found is None:
        return f"| {promise.fault} | {promise.promise} | not tried on this machine yet | |"
    words = [f"{name.replace('_', ' ')}: {value}" for name, value in found.measured.items()]
    tests = f"{found.held} test{'s' if found.held != 1 else ''}, {found.seconds:.0f} s"
    tests += f", {found.skipped} skipped" if found.skipped else ""
    tried = "not tried on this machine" if not found.held else _kept(promise, found)
    held = f"**broken**: {', '.join(found.broken)}" if found.broken else tried
    return f"| {promise.fault} | {promise.promise} | {held} ({tests}) | {'; '.join(words)} |"


def _kept(promise: Promise, found: Found) -> str:
    """Return whether a promise whose tests have passed is kept in the time that it names, too."""
    slower = [
        f"{name.replace('_', ' ')} {found.measured[name]}, not {limit:g}"
        for name, limit in promise.seconds
        if name in found.measured and float(found.measured[name]) > limit
    ]
    return f"kept, but **slower than promised**: {', '.join(slower)}" if slower else "kept"


def _document(found: dict[Promise, Found]) -> str:
    cores, memory = psutil.cpu_count(), format_bytes(psutil.virtual_memory().total)
    lines = [
        "# Reliability",
        "",
        "Machines are lost; a job finishes all the same, and never says that something is done which is not. Each line",
        "is a fault that is injected into real runs on real worker processes. A few of them, with a seed, are part of",
        "`make test`; `make faults` runs all and writes this file.",
        "",
        f"Python {platform.python_version()}, {cores} cores, {memory}.",
        "",
        "| fault | promise | kept? | measured |",
        "|---|---|---|---|",
        *(_row(promise, found.get(promise)) for promise in PROMISES),
        "",
        "A power cut is not injected. Chunks, partial statistics, results and metadata are on the disk (fsync) before",
        "the marker that speaks of them: what a machine had in memory alone is lost without a marker, and redone. That",
        "holds where the file system keeps what it says that it has; an object store has what it has answered for.",
        "",
        "NFS is not tried. Its clients may remember for a minute that a file was not there: driver and workers wait",
        "for the markers of what others have done, and never take one that they do not see for one without statistics.",
        "Tests imitate such a client. An NFS that is mounted with `lookupcache=positive` spares the wait.",
        "",
        "How a unit becomes done, and when a driver may take over, is in [jobs.md](jobs.md). The faults of Slurm are",
        "injected into a real one of two nodes on this machine (`make test-slurm`); those of",
        "[Kubernetes](kubernetes.md#when-pods-are-lost) (a lost driver, a lost scheduler) have tests of their own,",
        "`make test-kubernetes`.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
