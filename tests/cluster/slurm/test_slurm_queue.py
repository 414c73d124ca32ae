"""What is asked of Slurm, and made of its answers."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dneuro.cluster import DriverRef, backend_of
from dneuro.cluster.record import Record
from dneuro.cluster.slurm import queue
from dneuro.cluster.slurm.queue import AwayError, BatchJob, NoAnswerError, SlurmError
from dneuro.cluster.slurm.scripts import driver_script
from tests.cluster.slurm.conftest import profile, script


def test_queue__reads_what_the_commands_print(commands: Callable[[str, str], None], tmp_path: Path) -> None:
    commands("squeue", "echo '17|PENDING|Resources|a|b'; echo '18|FAILED|NonZeroExitCode|c'")
    commands("sbatch", f'echo "$@" >{tmp_path}/sent; echo "19;cluster"')
    commands("sacct", "echo '20|CANCELLED by 0|0:15|d'")
    assert queue.look() == {
        "17": BatchJob("17", "a|b", "PENDING", "Resources"),
        "18": BatchJob("18", "c", "FAILED", "NonZeroExitCode"),
    }
    assert [job.ended for job in queue.look().values()] == [False, True]
    (tmp_path / "x.sh").write_text("#!/bin/bash\n")
    assert queue.submit(tmp_path / "x.sh", "x") == "19"
    assert (tmp_path / "sent").read_text() == f"--parsable --job-name=x {tmp_path}/x.sh\n"
    assert queue.look_back(["20"])["20"].state == "CANCELLED"
    commands("sacct", "echo disabled >&2; exit 1")
    assert queue.look_back(["20"]) == {}, "sites without accounts"


def test_queue__knows_jobs_beside_others_whatever_their_names_are(
    commands: Callable[[str, str], None], tmp_path: Path
) -> None:
    """Anything may be in the name of another job of this user: line breaks, letters that are no UTF-8."""
    lines = r"16|RUNNING|None|two\nlines\n\n9\n|\n17|RUNNING|None|a\n18_[1-8]|PENDING|None|x\n19|RUNNING|None|\xff\n"
    commands("squeue", f"printf '{lines}'")
    commands("sacct", r"printf '17|CANCELLED by 0|0:15|two\nlines|\n'")
    assert {number: job.name for number, job in queue.look().items()} == {"16": "two", "17": "a", "19": "\ufffd"}
    assert queue.look_back(["17"]) == {"17": BatchJob("17", "two", "CANCELLED", "exit code 0:15")}
    record = Record(tmp_path / "job")
    record.write(kind="slurm", role="driver", name="a", id="17")
    commands("scancel", f'echo "$@" >>{tmp_path}/told')
    assert backend_of(profile()).clean_up(tmp_path / "job") == ["17"]


@pytest.mark.parametrize(
    ("state", "said"),
    [("PENDING", "pending"), ("REQUEUED", "pending"), ("CONFIGURING", "pending"), ("RUNNING", "running"),
     ("SIGNALING", "running"), ("COMPLETING", "ending"), ("SUSPENDED", "running"), ("PREEMPTED", "gone")],
)  # fmt: skip
def test_driver__to_which_a_signal_is_on_its_way_still_runs(
    commands: Callable[[str, str], None], state: str, said: str
) -> None:
    """Else whoever tells it to stop would not wait until it has."""
    commands("squeue", f"echo '17|{state}|None|a'")
    assert backend_of(profile()).driver_state(DriverRef("slurm", "17")) == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("17|PENDING|QOSMaxJobsPerUserLimit|a", "job 17 PENDING (QOSMaxJobsPerUserLimit)"),
        ("17|REQUEUE_HOLD|JobHeldUser|a", "job 17 REQUEUE_HOLD (JobHeldUser)"),
        ("17|PENDING|None|a", ""),
        ("17|RUNNING|None|a", ""),
        ("17|PENDING|Priority|another of that number", ""),
        ("18|PENDING|Priority|a", ""),
    ],
)
def test_driver__that_waits_does_so_for_the_reason_that_slurm_gives(
    commands: Callable[[str, str], None], line: str, said: str
) -> None:
    commands("squeue", f"echo '{line}'")
    commands("sacct", "exit 1")
    backend, ref = backend_of(profile()), DriverRef("slurm", "17", {"name": "a"})
    assert backend.why_waiting(ref) == said
    assert backend.why_waiting(DriverRef("slurm", "17", {"host": "login1"})) == "", "a process does not wait"
    commands("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert backend.why_waiting(ref) == ""


def test_this_driver__is_its_batch_job_unless_drivers_stay_on_the_login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it may be in a batch job, too, as the shell that salloc gives."""
    on_login = backend_of(profile(slurm={"submit_workers_from": "login"}))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NAME", "a")
    me = pwd.getpwuid(os.geteuid()).pw_name
    assert backend_of(profile()).this_driver() == DriverRef("slurm", "17", {"name": "a", "user": me})
    assert on_login.driver_state(on_login.this_driver()) == "running"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert backend_of(profile()).this_driver().id == str(os.getpid())


def test_driver__of_another_user_is_not_dead_because_nothing_is_to_be_seen_of_it(
    commands: Callable[[str, str], None], tmp_path: Path
) -> None:
    """A state folder may be several users', who see their own jobs alone, and have no accounts to ask."""
    commands("squeue", f'echo "$@" >>{tmp_path}/asked; cat {tmp_path}/there 2>/dev/null; true')
    commands("sacct", "echo disabled >&2; exit 1")
    commands("scancel", f'echo "$@" >>{tmp_path}/told')
    backend, me = backend_of(profile()), pwd.getpwuid(os.geteuid()).pw_name
    hers = DriverRef("slurm", "17", {"name": "a", "user": "somebody-else"})
    assert backend.driver_state(hers) == "unknown"
    assert "--user=somebody-else" in (tmp_path / "asked").read_text()
    with pytest.raises(SlurmError, match="job 17 of user somebody-else"):
        backend.stop_driver(hers, grace=0)
    assert not (tmp_path / "told").exists(), "its number may be another's by now"
    assert backend.driver_state(DriverRef("slurm", "17", {"name": "a", "user": me})) == "gone"
    (tmp_path / "there").write_text("17|RUNNING|None|a\n")  # on most sites it is to be seen
    assert backend.driver_state(hers) == "running"
    (tmp_path / "there").write_text("17|FAILED|None|a\n")
    assert backend.driver_state(hers) == "gone"


def test_driver__that_slurm_is_ending_is_cancelled_without_waiting_for_its_node(
    commands: Callable[[str, str], None], tmp_path: Path
) -> None:
    """A node that does not answer keeps it in that state for hours, and after it the job may be queued again."""
    (tmp_path / "state").write_text("RUNNING")
    commands("squeue", f"echo \"17|$(cat {tmp_path}/state)|None|a\"; echo '18|RUNNING|None|b'; echo '19|RUNNING||c'")
    commands("scancel", f"echo \"$@\" >>{tmp_path}/told; echo COMPLETING >{tmp_path}/state")
    backend, began = backend_of(profile()), time.monotonic()
    backend.stop_driver(DriverRef("slurm", "17"), grace=60)
    assert time.monotonic() - began < 30
    assert (tmp_path / "told").read_text().splitlines() == ["--batch --signal=TERM 17", "17"]
    record = Record(tmp_path / "job")
    record.write(kind="slurm", role="driver", name="a", id="17")
    record.write(kind="slurm", role="worker", name="b", id="18")
    assert backend.clean_up(tmp_path / "job") == ["18"], "it is ended already"
    assert (tmp_path / "told").read_text().splitlines()[-1] == "17 18"


def test_jobs__that_were_given_the_numbers_of_ours_are_left_alone(
    commands: Callable[[str, str], None], tmp_path: Path
) -> None:
    """Slurm counts from 1 again when its own state is new, as after a restart of one that lies in /tmp."""
    commands("squeue", "echo '17|RUNNING|None|mine-1'; echo '18|RUNNING|None|mine-2'; echo '19|RUNNING|None|c-3'")
    commands("sacct", "echo '17|RUNNING|0:0|mine-1'")
    commands("scancel", f'echo "$@" >>{tmp_path}/told')
    backend, job = backend_of(profile()), tmp_path / "job"
    record, ref = Record(job), DriverRef("slurm", "17", {"name": "a-1"})
    record.write(kind="slurm", role="driver", name="a-1", id="17")
    record.write(kind="slurm", role="worker", name="b-2", id="18")
    assert backend.driver_state(ref) == "gone"
    assert backend.driver_state(DriverRef("slurm", "17", {"name": "mine-1"})) == "running"
    backend.stop_driver(ref, grace=0)
    assert backend.clean_up(job) == []
    assert not (tmp_path / "told").exists()
    record.write(kind="slurm", role="worker", name="c-3")
    assert backend.clean_up(job) == ["19"]
    assert (tmp_path / "told").read_text() == "19\n"


def test_queue__says_what_slurm_says(commands: Callable[[str, str], None], tmp_path: Path) -> None:
    commands("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    (tmp_path / "x.sh").write_text("#!/bin/bash\n")
    with pytest.raises(SlurmError, match="invalid partition specified: x") as caught:
        queue.submit(tmp_path / "x.sh", "x")
    assert "the partition, account and sizes in the profile" in str(caught.value.hint)
    away = "Unable to contact slurm controller (connect failure)"
    for command in ("sbatch", "squeue", "scancel"):
        commands(command, f"echo '{command}: error: {away}' >&2; exit 1")
    for ask in (lambda: queue.submit(tmp_path / "x.sh", "x"), queue.look, lambda: queue.cancel(["1"])):
        with pytest.raises(SlurmError, match="Unable to contact") as caught:
            ask()
        assert caught.value.hint == "sinfo: is the controller up?"
    commands("squeue", "sleep 5")
    with pytest.raises(SlurmError, match=r"squeue did not answer within 0\.2 s"):
        queue.look(patience=0.2)
    commands("scancel", "echo 'scancel: error: Kill job error on job id 1: Invalid job id specified' >&2; exit 1")
    queue.cancel(["1"])
    with pytest.raises(SlurmError, match="is not on this machine's PATH"):
        queue.call("no-such-command-of-slurm")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Unable to contact slurm controller (connect failure)", AwayError),
        ("Slurm backup controller in standby mode", AwayError),
        ("Unable to contact slurm controller (receive failure)", NoAnswerError),
        ("Socket timed out on send/recv operation", NoAnswerError),
        ("Invalid partition name specified", SlurmError),
    ],
)
def test_queue__knows_whether_a_job_may_have_been_taken(
    commands: Callable[[str, str], None], tmp_path: Path, said: str, kind: type[SlurmError]
) -> None:
    commands("sbatch", f"echo 'sbatch: error: Batch job submission failed: {said}' >&2; exit 1")
    (tmp_path / "x.sh").write_text("#!/bin/bash\n")
    with pytest.raises(SlurmError) as caught:
        queue.submit(tmp_path / "x.sh", "x")
    assert type(caught.value) is kind


def test_queue__hides_the_job_that_this_process_is_part_of_and_what_else_would_change_the_question(
    commands: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = ("SQUEUE_PARTITION", "SQUEUE_NAMES", "SCANCEL_INTERACTIVE", "SACCT_FORMAT")
    for name in ("SLURM_MEM_PER_CPU", "SLURM_JOB_ID", "SLURM_CONF", "SLURM_JWT", "SBATCH_ACCOUNT", *others):
        monkeypatch.setenv(name, "1")
    commands("squeue", "env | grep -E '^(SLURM|SBATCH|SQUEUE|SCANCEL|SACCT)' | sort | tr '\\n' ' '; cat")
    seen = queue.call("squeue").split()
    assert seen == ["SBATCH_ACCOUNT=1", "SLURM_CONF=1", "SLURM_JWT=1"], "and nobody is there to answer it"


VARIABLES = (
    "ACCOUNT", "ARRAY_INX", "CLUSTERS", "CONSTRAINT", "ERROR", "EXCLUSIVE", "GPUS", "GRES", "MEM_PER_CPU",
    "MEM_PER_NODE", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "PARTITION", "QOS", "REQUEUE", "RESERVATION", "SIGNAL",
    "TIMELIMIT", "WAIT",
)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "worker", "driver"),
    [
        ({}, {"EXCLUSIVE", "OPEN_MODE", "RESERVATION", "SIGNAL"},
         {"CONSTRAINT", "EXCLUSIVE", "GPUS", "GRES", "RESERVATION"}),
        ({"slurm": None, "driver": {}, "pools": {"extract": {"memory": "8GiB", "directives": ["-x n7 --exclusive"]}}},
         {"ACCOUNT", "CONSTRAINT", "GPUS", "GRES", "OPEN_MODE", "PARTITION", "QOS", "RESERVATION", "SIGNAL",
          "TIMELIMIT"},
         {"ACCOUNT", "CONSTRAINT", "EXCLUSIVE", "GPUS", "GRES", "PARTITION", "QOS", "RESERVATION", "TIMELIMIT"}),
    ],
)  # fmt: skip
def test_submit__follows_the_script_where_it_speaks_and_the_users_variables_elsewhere(
    commands: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any],
    worker: set[str], driver: set[str],
) -> None:  # fmt: skip
    """To sbatch a variable counts more than the script."""
    for name in VARIABLES:
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    commands("sbatch", f"env | sed -n 's/^SBATCH_\\(.*\\)=.*/\\1/p' >{tmp_path}/seen; echo 17")
    of = profile(**settings)
    texts = ("\n".join(script(of, "extract")), driver_script(of, tmp_path, ["true"], "a"))
    for text, left in zip(texts, (worker, driver), strict=True):
        (tmp_path / "x.sh").write_text(text)
        queue.submit(tmp_path / "x.sh", "x")
        assert set((tmp_path / "seen").read_text().split()) == left
