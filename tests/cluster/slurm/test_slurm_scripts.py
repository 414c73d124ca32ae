"""The batch scripts that are sent to Slurm."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dneuro.cluster import backend_of
from dneuro.cluster.slurm import scripts
from dneuro.cluster.slurm.scripts import driver_script
from dneuro.errors import UsageError
from tests.cluster.slurm.conftest import profile, script


def test_worker_script__asks_for_what_the_pool_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=3:glibc.rtld.nns=5")
    lines = script(profile(), "extract")
    assert lines[0] == "#!/bin/bash"
    assert [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")] == [
        "-J a-1f-extract-0-0", "-p gpu", "-A lab", "-n 1", "--cpus-per-task=8", "--mem=32768M", "-t 04:00:00",
        "--output=/scratch/me/jobs/a/attempts/001/logs/a-1f-extract-0-0.log", "--no-requeue", "--gres=gpu:a100:1",
        "--constraint=nvme", "--qos=high", "--exclude=n7",
    ]  # fmt: skip
    assert [line for line in lines if line and not line.startswith("#")][:-1] == [
        "module load cuda", "export OMP_NUM_THREADS=4", "export MKL_NUM_THREADS=4", "export OPENBLAS_NUM_THREADS=4",
        "export MALLOC_ARENA_MAX=1",
        "export GLIBC_TUNABLES=glibc.rtld.nns=5:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
        "export WHERE='a b'",
        "export DASK_CONFIG=/scratch/me/jobs/a/attempts/001/workers-extract.yaml",
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


@pytest.mark.parametrize("back", [True, False])
def test_driver_script__whose_time_is_up_asks_to_be_queued_again_until_somebody_answers_or_its_limit(
    commands: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    again = f"[ -e {tmp_path}/asked ] && exec touch {tmp_path}/queued; " if back else ""
    commands("scontrol", f"{again}touch {tmp_path}/asked; echo 'Unable to contact slurm controller' >&2; exit 1")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(scripts, "NOTICE", 4)
    out_of_time = ["bash", "-c", "trap 'exit 9' TERM; kill -USR1 $PPID; sleep 3 & wait"]
    text = driver_script(profile(slurm=None), tmp_path, out_of_time, "a")
    done = subprocess.run(["bash", "-c", text], check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 9
    assert (tmp_path / "queued").exists() == back
    assert done.stderr.count("Unable to contact") == (1 if back else 2), "every five seconds"


def test_driver_script__that_is_cancelled_while_it_asks_is_not_queued_again(
    commands: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = f"[ -e {tmp_path}/asked ] && exec touch {tmp_path}/queued"
    commands("scontrol", f'{second}; touch {tmp_path}/asked; kill -TERM "$PPID"; exit 1')
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    out_of_time = ["bash", "-c", "trap 'exit 9' TERM; kill -USR1 $PPID; sleep 9 & wait"]
    text = driver_script(profile(slurm=None), tmp_path, out_of_time, "a")
    assert subprocess.run(["bash", "-c", text], check=False, timeout=60).returncode == 9
    assert not (tmp_path / "queued").exists()


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


def test_scripts__leave_ctrl_c_to_whoever_has_it() -> None:
    program = (
        "import signal; before = signal.getsignal(signal.SIGINT)\n"
        "from dneuro.cluster.slurm.scripts import _slurm_job; _slurm_job()\n"
        "print(signal.getsignal(signal.SIGINT) is before)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "True\n"
