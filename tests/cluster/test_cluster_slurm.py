"""What is sent to Slurm and made of its answers; tests/slurm has a real one."""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dneuro import events
from dneuro.cluster import DriverRef, backend_of
from dneuro.cluster.record import Record
from dneuro.cluster.slurm import backend, keeper, queue, scripts
from dneuro.cluster.slurm.keeper import Keeper
from dneuro.cluster.slurm.queue import BatchJob, NoAnswerError, SlurmError
from dneuro.cluster.slurm.scripts import Site, driver_script, worker_script
from dneuro.errors import DneuroError, UsageError
from dneuro.spec import ProfileSpec


def profile(**settings: Any) -> ProfileSpec:
    return ProfileSpec.model_validate(
        {
            "backend": "slurm",
            "state": "/scratch/me",
            "pools": {
                "extract": {
                    "workers": 2, "gpus": 1, "gres": "gpu:a100:1", "cpus": 8, "threads": 2, "memory": "32GiB",
                    "partition": "gpu", "walltime": "4h", "constraint": "nvme", "directives": ["--exclude=n7"],
                    "env": {"WHERE": "a b"},
                },
                "memory": {"memory": "8GiB"},
            },
            "driver": {"cpus": 3, "memory": "4GiB", "walltime": "24h", "max_restarts": 2, "partition": "cpu"},
            "slurm": {"account": "lab", "qos": "high", "setup": ["module load cuda"], "scratch": "/local",
                      "python": "apptainer exec --nv dneuro.sif python"},
            "security": {"bind": "ib0"},
            **settings,
        }
    )  # fmt: skip


def script(of: ProfileSpec, group: str) -> list[str]:
    site = Site(of, Path("/scratch/me/jobs/a/attempts/001"), "tls://10.0.0.1:99", {"--tls-key": "/k/worker.key"})
    return worker_script(site, group, backend_of(of).sizes(group), "a-1f-extract-0-0", f"{group}-0").splitlines()


def test_worker_script__asks_for_what_the_pool_says() -> None:
    lines = script(profile(), "extract")
    assert lines[0] == "#!/bin/bash"
    assert [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")] == [
        "-J a-1f-extract-0-0", "-p gpu", "-A lab", "-n 1", "--cpus-per-task=8", "--mem=32768M", "-t 04:00:00",
        "--output=/scratch/me/jobs/a/attempts/001/logs/a-1f-extract-0-0.log", "--no-requeue", "--gres=gpu:a100:1",
        "--constraint=nvme", "--qos=high", "--exclude=n7",
    ]  # fmt: skip
    assert [line for line in lines if line and not line.startswith("#")][:-1] == [
        "module load cuda", "export OMP_NUM_THREADS=4", "export MKL_NUM_THREADS=4", "export OPENBLAS_NUM_THREADS=4",
        "export WHERE='a b'", "export DASK_CONFIG=/scratch/me/jobs/a/attempts/001/workers-extract.yaml",
    ]  # fmt: skip
    command = lines[-1]
    python = "exec apptainer exec --nv dneuro.sif python"
    assert command.startswith(f"{python} -m distributed.cli.dask_worker tls://10.0.0.1:99 ")
    for option in (
        "--name extract-0.${SLURM_JOB_ID} ", "--nthreads 2 ", f"--memory-limit {(32 * 1024 - 192) * 1024**2} ",
        "--resources extract=2 ", "--dashboard-address 127.0.0.1:0 ", "--interface ib0 ", "--protocol tls://",
        "--tls-key /k/worker.key ", "--local-directory /local ", "--lifetime 14280s ", "--death-timeout 60 ",
    ):  # fmt: skip
        assert option in f"{command} ", option
    assert "--nworkers" not in command, "one process for each job, always"


@pytest.mark.parametrize(
    ("pool", "asked"),
    [
        ({}, []),
        ({"gpus": 1}, ["#SBATCH --gres=gpu:1"]),
        ({"gres": "nvme:1"}, ["#SBATCH --gres=nvme:1"]),
        ({"gpus": 1, "gres": "gpu:a100:1"}, ["#SBATCH --gres=gpu:a100:1"]),
    ],
)
def test_worker_script__asks_for_generic_resources_also_without_gpus(pool: dict[str, Any], asked: list[str]) -> None:
    lines = script(profile(pools={"extract": {"memory": "8GiB", **pool}}), "extract")
    assert [line for line in lines if "--gres" in line] == asked


def test_worker_script__without_settings_leaves_them_to_the_site() -> None:
    lines = script(profile(slurm=None, security={}), "memory")
    text = "\n".join(lines)
    unsaid = ("#SBATCH -t", "#SBATCH -p", "#SBATCH -A", "--qos", "--gres", "--interface")
    assert [option for option in unsaid if option in text] == []
    assert "--lifetime" not in text
    assert '--local-directory "${TMPDIR:-/tmp}"' in text


def test_preview__shows_every_script_that_would_be_sent() -> None:
    shown = backend_of(profile()).preview(Path("/scratch/me/jobs/a"), ["python", "-m", "dneuro", "drive", "x y"], "a")
    assert [line for line in shown.splitlines() if line.startswith("### ")] == [
        "### driver, sbatch", "### pool extract, sbatch × 2", "### pool memory, sbatch × 1",
    ]  # fmt: skip
    for line in (
        "#SBATCH --requeue", "#SBATCH --cpus-per-task=3", "#SBATCH --mem=4096M", "#SBATCH --time=24:00:00",
        "#SBATCH --partition=cpu", "#SBATCH --signal=B:USR1@120", "#SBATCH --output=/scratch/me/jobs/a/driver.log",
        "apptainer exec --nv dneuro.sif python -m dneuro drive 'x y' &",
    ):  # fmt: skip
        assert line in shown.splitlines(), line
    assert subprocess.run(["bash", "-n"], input=shown, text=True, check=False).returncode == 0
    on_login = profile(slurm={"submit_workers_from": "login"})
    assert "\npython -m dneuro\n" in backend_of(on_login).preview(Path("/a"), ["python", "-m", "dneuro"], "a")


@pytest.mark.parametrize(("driver", "notice"), [({}, 120), ({"walltime": "3m"}, 90), ({"walltime": "20s"}, 30)])
def test_driver_script__is_always_told_before_its_time_is_up(driver: dict[str, Any], notice: int) -> None:
    """The partition's limit ends a driver, too, that has none of its own."""
    shown = backend_of(profile(driver=driver)).preview(Path("/a"), ["python", "-m", "dneuro"], "a")
    assert f"#SBATCH --signal=B:USR1@{notice}" in shown.splitlines()


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("a%jb", "/s/a%%jb/"),
        ("a b", '"/s/a b/'),
        ("a'b", "\"/s/a'b/"),
        ('a"b', '"/s/a\\"b/'),
        ("a#b", '"/s/a#b/'),
        (r"a\b", r'"/s/a\\\\b/'),
        (r"a\b %j", r'"/s/a\\\\b %j/'),
        ("photos-Ä", "/s/photos-Ä/"),
    ],
)
def test_scripts__name_the_log_whatever_letters_are_in_its_path(folder: str, said: str) -> None:
    """tests/slurm has a real sbatch read them: with a backslash there, the per cent sign means nothing to it."""
    shown = backend_of(profile(slurm=None)).preview(Path("/s") / folder, ["python", "-m", "dneuro"], "a")
    end = '"' if said.startswith('"') else ""
    logs = [line.removeprefix("#SBATCH --output=") for line in shown.splitlines() if "--output=" in line]
    assert logs[0] == f"{said}driver.log{end}"
    assert logs[1] == f"{said}attempts/001/logs/a-extract-0.log{end}"
    assert f"export DASK_CONFIG={shlex.quote(f'/s/{folder}/attempts/001/workers-extract.yaml')}" in shown
    assert subprocess.run(["bash", "-n"], input=shown, text=True, check=False).returncode == 0


def test_scripts__refuse_a_path_of_two_lines() -> None:
    with pytest.raises(UsageError, match=r"no batch script can hold"):
        backend_of(profile()).preview(Path("/s/a\nb"), ["python"], "a")


def test_names_of_jobs__are_one_word() -> None:
    shown = backend_of(profile()).preview(Path("/s"), ["python"], "dneuro-cluster-my 'own' | cluster")
    names = [line for line in shown.splitlines() if line.startswith(("#SBATCH -J", "#SBATCH --job-name"))]
    assert names == [
        "#SBATCH --job-name=dneuro-cluster-my-own-cluster", "#SBATCH -J dneuro-cluster-my-own-cluster-extract-0",
        "#SBATCH -J dneuro-cluster-my-own-cluster-memory-0",
    ]  # fmt: skip


def test_driver_script__ends_as_its_driver_does_however_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for code in [0, 7] * 20:
        text = driver_script(profile(slurm=None), tmp_path, ["bash", "-c", f"exit {code}"], "a")
        assert subprocess.run(["bash", "-c", text], check=False).returncode == code
    waits = ["bash", "-c", "trap 'exit 9' TERM; kill $PPID; sleep 9 & wait"]
    told = driver_script(profile(slurm=None), tmp_path, waits, "a")
    assert subprocess.run(["bash", "-c", told], check=False).returncode == 9


def test_driver_script__that_is_not_to_be_queued_again_ends_as_its_driver_does(tmp_path: Path) -> None:
    of = profile(slurm={"requeue": False})
    for code in (0, 7):
        text = driver_script(of, tmp_path, ["bash", "-c", f"exit {code}"], "a")
        assert "#SBATCH --no-requeue" in text.splitlines()
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
        assert subprocess.run(["bash", "-c", text], check=False).returncode == code
    out_of_time = ["bash", "-c", "trap 'exit 9' TERM; kill -USR1 $PPID; sleep 9 & wait"]
    told = driver_script(of, tmp_path, out_of_time, "a")
    assert subprocess.run(["bash", "-c", told], check=False).returncode == 9


def test_driver_script__whose_time_is_up_is_queued_again_whatever_its_setup_has_set(
    commands: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands("scontrol", f'echo "$@" >>{tmp_path}/told')
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    out_of_time = ["bash", "-c", "trap 'exit 9' TERM; kill -USR1 $PPID; sleep 9 & wait"]
    text = driver_script(profile(slurm={"setup": ["set -eu", "true"]}), tmp_path, out_of_time, "a")
    assert subprocess.run(["bash", "-c", text], check=False).returncode == 9
    assert (tmp_path / "told").read_text() == "requeue 17\n"


@pytest.mark.parametrize("away", [False, True])
def test_driver_script__whose_driver_does_not_end_in_time_is_queued_again_before_the_limit(
    commands: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    """It may be in one long call of a library, and what reaches its limit Slurm does not start again."""
    first = f"[ -e {tmp_path}/told ] || {{ touch {tmp_path}/told; exit 1; }}; " if away else ""
    commands("scontrol", f'{first}echo "$@" >>{tmp_path}/told; touch {tmp_path}/asked')
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(scripts, "NOTICE", 4)
    wait = f"for i in $(seq 200); do [ -e {tmp_path}/asked ] && sleep 1.5 && exit 3; sleep 0.1; done; exit 4"
    busy = ["bash", "-c", f"trap '' TERM; kill -USR1 $PPID; {wait}"]
    text = driver_script(profile(slurm=None), tmp_path, busy, "a")
    assert subprocess.run(["bash", "-c", text], check=False).returncode == 3, "asked while it still ran"
    assert (tmp_path / "told").read_text() == "requeue 17\n", "once"


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (['echo "a', "echo b"], r"slurm\.setup: line 1, 'echo \"a', is no whole piece of shell: .*matching `\"'"),
        (["module load cuda", "export A='it"], r"slurm\.setup: line 2, .*matching `''"),
        (["if true; then", "echo a"], r"slurm\.setup: line 2, 'echo a', .*unexpected end of file"),
        (["cat <<EOF", "a"], r"slurm\.setup: line 2, 'a', .*here-document"),
        (["echo a", "export A=b \\"], r"slurm\.setup: line 2, .*backslash"),
    ],
)
def test_scripts__refuse_lines_of_setup_that_would_go_on_in_the_rest(setup: list[str], said: str) -> None:
    backend = backend_of(profile(slurm={"setup": setup}))
    with pytest.raises(UsageError, match=said) as caught:
        backend.preview(Path("/a"), ["python"], "a")
    assert "must end there" in str(caught.value.hint)
    with pytest.raises(UsageError, match=r"slurm\.python: line 1"):
        backend_of(profile(slurm={"python": "apptainer exec 'a b.sif python"})).preview(Path("/a"), ["python"], "a")


def test_scripts__take_lines_of_setup_that_are_whole_together() -> None:
    setup = ["if [ -f ~/env ]; then", "  source ~/env # don't fail", "fi", "export A='one", "two'", "cat <<EOF", "it's",
             "EOF", 'echo "$(echo "it\'s")" \\\\']  # fmt: skip
    shown = backend_of(profile(slurm={"setup": setup})).preview(Path("/a"), ["python"], "a")
    assert shown.count("export A='one\ntwo'\ncat <<EOF\nit's\nEOF\n") == 3


def test_sizes__leave_something_for_the_worker() -> None:
    small = backend_of(profile(pools={"extract": {"memory": "100MiB"}}))
    with pytest.raises(UsageError, match="100 MiB are too few for a worker"):
        small.sizes("extract")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return ``commands(name, shell)``: Slurm's commands as scripts of the test."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(name: str, shell: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/bash\n{shell}\n")
        (tmp_path / name).chmod(0o755)

    return make


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


def test_queue__hides_the_job_that_this_process_is_part_of(
    commands: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_MEM_PER_CPU", "SLURM_JOB_ID", "SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "1")
    commands("squeue", "env | grep -E '^(SLURM|SBATCH)' | sort | tr '\\n' ' '")
    assert queue.call("squeue").split() == ["SBATCH_ACCOUNT=1", "SLURM_CONF=1"]


VARIABLES = (
    "ACCOUNT", "ARRAY_INX", "CONSTRAINT", "ERROR", "EXCLUSIVE", "GPUS", "GRES", "MEM_PER_CPU", "MEM_PER_NODE",
    "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "PARTITION", "QOS", "REQUEUE", "RESERVATION", "SIGNAL", "TIMELIMIT", "WAIT",
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


class Pretended:
    """A Slurm of the test's own: jobs are what it says they are."""

    def __init__(self) -> None:
        self.jobs: dict[str, BatchJob] = {}
        self.workers: set[str] = set()
        self.cancelled: list[str] = []
        self.state = "PENDING"

    def submit(self, path: Path, name: str) -> str:
        number = str(len(self.jobs) + 1)
        self.jobs[number] = BatchJob(number, name, self.state, "Priority")
        return number

    def look(self, patience: float = 0) -> dict[str, BatchJob]:
        return dict(self.jobs)

    def cancel(self, ids: Any, **settings: Any) -> None:
        self.cancelled += sorted(ids)

    def turn(self, number: str, state: str) -> None:
        self.jobs[number] = BatchJob(number, self.jobs[number].name, state, "")

    def worker(self, number: str) -> str:
        *_, pool, slot, _ = self.jobs[number].name.split("-")
        return f"{pool}-{slot}.{number}"

    def come(self, number: str) -> None:
        self.turn(number, "RUNNING")
        self.workers.add(self.worker(number))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    site = Pretended()
    for name in ("submit", "look", "cancel"):
        monkeypatch.setattr(queue, name, getattr(site, name))
    monkeypatch.setattr(queue, "look_back", lambda ids: {})
    monkeypatch.setattr(keeper, "POLL", 0.02)
    return site


@pytest.fixture
def kept(site: Pretended, tmp_path: Path) -> Iterator[Keeper]:
    workers = {"extract": 2, "memory": 1}
    kept = Keeper(workers, lambda pool, name, worker: "true", lambda: set(site.workers), tmp_path, "a-1")
    kept.start()
    yield kept
    kept.close()
    assert not set(site.jobs) - set(site.cancelled) - {n for n, job in site.jobs.items() if job.ended}


def until(true: Callable[[], Any]) -> None:
    over = time.monotonic() + 10
    while not true():
        assert time.monotonic() < over
        time.sleep(0.01)


def test_keeper__replaces_a_job_that_ended(site: Pretended, kept: Keeper, tmp_path: Path) -> None:
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})
    time.sleep(0.1)
    assert len(site.jobs) == 3
    site.turn("2", "PREEMPTED")
    until(lambda: len(site.jobs) == 4)
    assert site.jobs["4"].name.startswith("a-1-extract-1-"), "in the place of the lost one"
    assert site.jobs["4"].name != site.jobs["2"].name
    recorded = (tmp_path / "machines.jsonl").read_text()
    assert all(f'"id": "{number}"' in recorded for number in "1234")
    assert "ended: PREEMPTED" in recorded


def test_keeper__replaces_a_job_whose_number_is_anothers_and_leaves_that_one_alone(
    site: Pretended, kept: Keeper
) -> None:
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})
    site.jobs["2"] = BatchJob("2", "mine", "RUNNING", "")
    until(lambda: len(site.jobs) == 4)
    assert site.jobs["4"].name.startswith("a-1-extract-1-")
    kept.close()
    assert sorted(site.cancelled) == ["1", "3", "4"]
    site.turn("2", "COMPLETED")


def test_keeper__replaces_a_job_that_slurm_is_ending_however_long_that_takes(site: Pretended, kept: Keeper) -> None:
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})
    site.turn("2", "COMPLETING")
    until(lambda: len(site.jobs) == 4)
    assert site.jobs["4"].name.startswith("a-1-extract-1-")
    time.sleep(0.1)
    assert len(site.jobs) == 4


def test_keeper__replaces_a_running_job_whose_worker_went_away(
    site: Pretended, kept: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "LOST", 0.1)
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})
    time.sleep(0.1)
    site.workers.discard(site.worker("1"))
    until(lambda: "1" in site.cancelled)
    until(lambda: len(site.jobs) == 4)


def test_keeper__gives_up_where_jobs_end_one_after_the_other(site: Pretended, tmp_path: Path) -> None:
    site.state = "FAILED"
    kept = Keeper({"extract": 2}, lambda pool, name, worker: "true", lambda: set(), tmp_path, "a-1")
    kept.start()
    try:
        with pytest.raises(DneuroError, match=r"pool extract has no worker: \d of its jobs ended") as caught:
            kept.wait({"extract": 60})
        assert "job 1 FAILED (Priority)" in str(caught.value)
        tried = len(site.jobs)
        time.sleep(0.3)
        assert len(site.jobs) <= tried + 1, "ever more slowly"
    finally:
        kept.close()


def test_keeper__ends_a_job_that_was_taken_without_an_answer(
    site: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before it was looked for."""

    def late(path: Path, name: str) -> str:
        site.submit(path, name)
        raise NoAnswerError("sbatch did not answer within 20 s")

    site.jobs["1"] = BatchJob("1", "b-2-extract-0-0", "RUNNING", "")
    monkeypatch.setattr(queue, "submit", late)
    monkeypatch.setattr(keeper, "POLL", 60)
    kept = Keeper({"extract": 1}, lambda pool, name, worker: "true", lambda: set(), tmp_path, "a-1")
    kept.start()
    kept.close()
    assert site.cancelled == ["2"], "that one, and nobody else's"


@pytest.mark.parametrize("taken", [True, False])
def test_keeper__goes_on_where_slurm_does_not_answer_at_the_start(
    site: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    asked: list[str] = []

    def silent(path: Path, name: str) -> str:
        if threading.current_thread() is threading.main_thread():  # the keeper's own may look for them already
            asked.append(name)
        if taken:
            site.submit(path, name)
        raise NoAnswerError("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")

    monkeypatch.setattr(queue, "submit", silent)
    kept = Keeper({"extract": 7}, lambda pool, name, worker: "true", lambda: set(site.workers), tmp_path, "a-1")
    monkeypatch.setattr(keeper, "POLL", 0.2)
    kept.start()
    try:
        assert len(asked) == keeper.SILENT, "a controller that is away for long is not asked for each of them"
        monkeypatch.setattr(queue, "submit", site.submit)
        until(lambda: all(slot.job for slot in kept.pools["extract"].slots))
        time.sleep(0.5)
        assert len(site.jobs) == 7, "each place has one job"
        for number in site.jobs:
            site.come(number)
        kept.wait({"extract": 5})
    finally:
        kept.close()
    assert sorted(site.cancelled) == sorted(site.jobs)


@pytest.fixture
def five(site: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """Five places without a job, and nobody who looks after them but the test."""
    monkeypatch.setattr(keeper, "POLL", 5.0)
    return Keeper({"extract": 5}, lambda pool, name, worker: "true", lambda: set(site.workers), tmp_path, "a-1")


@pytest.mark.parametrize(("lived", "replaced"), [(keeper.SOON - 1, [1, 2, 2, 3]), (keeper.SOON, [5, 5, 5, 5])])
def test_keeper__replaces_one_at_a_time_what_comes_up_and_dies(
    site: Pretended, five: Keeper, lived: float, replaced: list[int]
) -> None:
    """What has lived for a while was taken away, which may happen to many at once and says nothing about the next."""
    five._look(site.look(), site.workers, 100.0)
    assert len(site.jobs) == 5, "places that the start has left: all at once"
    for number in list(site.jobs):
        site.come(number)
    five._look(site.look(), site.workers, 101.0)
    site.workers.clear()
    for number in list(site.jobs):
        site.turn(number, "FAILED")
    found = []
    for later in (0.0, keeper.POLL, 1.5 * keeper.POLL, 2 * keeper.POLL):
        five._look(site.look(), site.workers, 101.0 + lived + later)
        found.append(len(site.jobs) - 5)
    assert found == replaced


def test_keeper__asks_seldom_where_slurm_refuses_what_replaces_many(
    site: Pretended, five: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    five._look(site.look(), site.workers, 100.0)
    for number in list(site.jobs):
        site.come(number)
    five._look(site.look(), site.workers, 101.0)
    asked: list[str] = []

    def refused(path: Path, name: str) -> str:
        asked.append(name)
        raise SlurmError("sbatch: error: partition is down")

    monkeypatch.setattr(queue, "submit", refused)
    for number in list(site.jobs):
        site.turn(number, "NODE_FAIL")
    five._look(site.look(), set(), 1000.0)
    assert len(asked) == 1
    five._look(site.look(), set(), 1000.0 + 2 * keeper.POLL)
    assert len(asked) == 2


def test_keeper__that_is_closed_submits_no_more(
    site: Pretended, five: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last(path: Path, name: str) -> str:
        five._over.set()
        return site.submit(path, name)

    monkeypatch.setattr(queue, "submit", last)
    five._look(site.look(), site.workers, 100.0)
    assert len(site.jobs) == 1
    five.close()
    assert site.cancelled == ["1"]


def test_keeper__whose_jobs_are_refused_at_the_start_does_not_begin(
    site: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, name: str) -> str:
        raise SlurmError("sbatch: error: invalid partition specified: x")

    monkeypatch.setattr(queue, "submit", refused)
    kept = Keeper({"extract": 1}, lambda pool, name, worker: "true", lambda: set(), tmp_path, "a-1")
    with pytest.raises(SlurmError, match="invalid partition"):
        kept.start()
    kept.close()


@pytest.mark.parametrize("silent", [3, 4])
def test_open__asks_slurm_again_that_does_not_answer_for_what_an_earlier_attempt_has_left(
    commands: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    monkeypatch.setattr(backend, "PAUSE", 0.01)
    count = f'echo x >>{tmp_path}/asked; [ "$(wc -l <{tmp_path}/asked)" -gt {silent} ]'
    commands("squeue", f"{count} || {{ echo 'error: Socket timed out' >&2; exit 1; }}; echo '17|RUNNING|None|b'")
    commands("scancel", f'echo "$@" >>{tmp_path}/told')
    commands("sbatch", "echo 'sbatch: error: not today' >&2; exit 1")
    Record(tmp_path / "job").write(kind="slurm", role="worker", name="b", id="17")
    of = profile(state=str(tmp_path), security={"bind": "lo"}, slurm=None)
    said = "Socket timed out" if silent == backend.TRIES else "not today"
    with (
        pytest.raises(SlurmError, match=said),
        backend_of(of).open(folder=tmp_path / "job" / "attempts" / "002"),
    ):
        raise AssertionError("there are no workers")
    assert (tmp_path / "told").exists() == (silent < backend.TRIES)


def test_keeper__takes_in_a_job_that_was_taken_without_an_answer(
    site: Pretended, kept: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In mid-run, too: else its worker would be one too many until the end."""
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})

    def late(path: Path, name: str) -> str:
        site.submit(path, name)
        monkeypatch.setattr(queue, "submit", site.submit)
        raise SlurmError("sbatch did not answer within 20 s")

    monkeypatch.setattr(queue, "submit", late)
    site.turn("2", "PREEMPTED")
    until(lambda: kept.pools["extract"].slots[1].job == "4")
    time.sleep(0.1)
    assert len(site.jobs) == 4, "it fills the place"
    site.come("4")
    site.turn("4", "PREEMPTED")
    until(lambda: kept.pools["extract"].slots[1].job == "5")


def test_keeper__ends_a_job_that_was_taken_too_late(
    site: Pretended, kept: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "POLL", 0.01)
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})
    late: list[str] = []

    def without_answer(path: Path, name: str) -> str:
        late.append(name)
        monkeypatch.setattr(queue, "submit", site.submit)
        raise SlurmError("sbatch did not answer within 20 s")

    monkeypatch.setattr(queue, "submit", without_answer)
    site.turn("2", "PREEMPTED")
    until(lambda: len(site.jobs) == 4)
    assert site.jobs["4"].name not in late
    site.jobs["5"] = BatchJob("5", late[0], "PENDING", "Priority")
    until(lambda: "5" in site.cancelled)
    assert kept.pools["extract"].slots[1].job == "4"


def test_keeper__whose_jobs_are_refused_looks_after_the_others_all_the_same(
    site: Pretended, kept: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "POLL", 0.01)
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})

    def partly(path: Path, name: str) -> str:
        if "-extract-" in name:
            raise SlurmError("sbatch: error: partition is down")
        return site.submit(path, name)

    monkeypatch.setattr(queue, "submit", partly)
    for number in ("1", "3"):
        site.turn(number, "PREEMPTED")
    until(lambda: len(site.jobs) == 4)
    assert "-memory-" in site.jobs["4"].name
    monkeypatch.setattr(queue, "submit", site.submit)
    until(lambda: len(site.jobs) == 5)
    assert "-extract-" in site.jobs["5"].name


def test_keeper__names_the_pool_that_waits(site: Pretended, kept: Keeper) -> None:
    site.come("1")
    with pytest.raises(DneuroError, match=r"pool memory has no worker: none came within 0\.2 s; job 3 PENDING"):
        kept.wait({"extract": 0.2, "memory": 0.2})


def test_keeper__bears_a_controller_that_is_away(
    site: Pretended, kept: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in ("1", "2", "3"):
        site.come(number)
    kept.wait({"extract": 5, "memory": 5})

    def away(patience: float = 0) -> dict[str, BatchJob]:
        raise SlurmError("no answer")

    monkeypatch.setattr(queue, "look", away)
    time.sleep(0.1)
    monkeypatch.setattr(queue, "look", lambda patience=0: {n: job for n, job in site.jobs.items() if n != "3"})
    until(lambda: len(site.jobs) == 4)
    assert site.cancelled == ["3"], "forgotten by the queue: to be sure"


def test_keeper__goes_on_whatever_a_look_at_the_queue_has_come_to(
    site: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with events.listening(lambda event: said.append(event.message)):
        kept = Keeper({"extract": 1}, lambda pool, name, worker: "true", lambda: set(site.workers), tmp_path, "a-1")
    kept.start()
    try:
        site.come("1")
        kept.wait({"extract": 5})

        def torn(patience: float = 0) -> dict[str, BatchJob]:
            raise ValueError("not enough values to unpack")

        monkeypatch.setattr(queue, "look", torn)
        until(lambda: said)
        assert "could not be looked after this time: ValueError: not enough values to unpack" in said[0]
        monkeypatch.setattr(queue, "look", site.look)
        site.turn("1", "PREEMPTED")
        until(lambda: len(site.jobs) == 2)
    finally:
        kept.close()


def test_scripts__leave_ctrl_c_to_whoever_has_it() -> None:
    program = (
        "import signal; before = signal.getsignal(signal.SIGINT)\n"
        "from dneuro.cluster.slurm.scripts import _slurm_job; _slurm_job()\n"
        "print(signal.getsignal(signal.SIGINT) is before)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "True\n"
