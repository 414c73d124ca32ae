"""A cluster that stands is started once, used by whoever has its credentials, and ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import dneuro as dn
from dneuro.cluster import DriverRef, processes, standing
from dneuro.cluster.local import LocalBackend
from dneuro.cluster.record import Record
from dneuro.cluster.standing import StandingCluster, asking
from dneuro.errors import BusyError, DneuroError, UsageError


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standing")
    path = folder / "mine.yaml"
    path.write_text(
        f"backend: local\nstate: {folder}/state\npools:\n  extract: {{workers: 1, memory: 1GiB}}\n"
        "  memory: {workers: 1, memory: 2GiB}\n"
    )
    return path


@pytest.fixture(scope="module")
def cluster(profile: Path) -> Iterator[StandingCluster]:
    found = standing.up(profile)
    yield found
    standing.down(profile)


def test_up__says_where_it_is(cluster: StandingCluster) -> None:
    assert (cluster.name, cluster.state) == ("mine", "running")
    assert cluster.workers == {"extract": 1, "memory": 1}
    assert cluster.address.startswith("tls://127.0.0.1:"), "also over loopback: it stands for days"
    files = {path.name: path.stat().st_mode & 0o777 for path in Path(cluster.credentials).iterdir()}
    assert files == dict.fromkeys(("ca.pem", "client.pem", "client.key"), 0o600)


def test_connect__gives_a_plain_client(cluster: StandingCluster, profile: Path) -> None:
    from distributed import Client

    for where, options in ((profile, {}), (cluster.address, {"credentials": cluster.credentials})):
        with dn.connect(where, **options) as client:  # the first ends before the second: dask's settings are a stack
            assert type(client) is Client
            assert client.submit(sum, [1, 2]).result() == 3


def test_connect__finds_the_credentials_of_an_address(
    cluster: StandingCluster, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"needs address\.ca, address\.cert, address\.key"):
        dn.connect(cluster.address)
    monkeypatch.setenv("DNEURO_PROFILE_DIR", str(profile.parent))
    with dn.connect(cluster.address) as client:
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2


def test_command_line__says_the_same(cluster: StandingCluster, profile: Path) -> None:
    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "dneuro", "cluster", *arguments, str(profile)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert json.loads(call("status", "--json")) == cluster.to_dict()
    lines = call("status").splitlines()
    assert lines == ["state  running", f"address  {cluster.address}", f"credentials  {cluster.credentials}",
                     "pool extract  1 workers", "pool memory  1 workers"]  # fmt: skip


def test_up__twice_is_refused(cluster: StandingCluster, profile: Path) -> None:
    with pytest.raises(BusyError, match="the cluster mine stands already"):
        standing.up(profile)
    assert standing.status(profile) == cluster


def test_up__at_the_same_moment_as_another_one_is_refused_and_takes_nothing_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "both.yaml"
    path.write_text(f"backend: local\nstate: {tmp_path}/state\n")

    def start(self: LocalBackend, folder: Path, command: list[str], name: str) -> DriverRef:
        before = {file.name: file.read_text() for file in folder.iterdir()}
        with pytest.raises(BusyError, match=f"the cluster both is being started by process {os.getpid()}"):
            standing.up(path)
        assert {file.name: file.read_text() for file in folder.iterdir()} == before != {}
        raise DneuroError("not today")

    monkeypatch.setattr(LocalBackend, "start_driver", start)
    for _ in range(2):
        with pytest.raises(DneuroError, match="not today"):
            standing.up(path)
    assert [found.name for found in (tmp_path / "state" / "clusters").iterdir()] == ["both"], "no claim is left"


def test_up__with_its_state_in_an_object_store_is_told_what_a_cluster_needs(tmp_path: Path) -> None:
    path = tmp_path / "far.yaml"
    path.write_text("backend: local\nstate: s3://bucket/state\n")
    for command in (standing.up, standing.status, standing.down, standing.connect):
        with pytest.raises(UsageError, match="s3://bucket/state is no path, and a cluster that stands") as caught:
            command(path)
        assert str(caught.value.hint).startswith("state: a folder that all its machines see")


@pytest.mark.parametrize(
    ("settings", "driver", "said"),
    [
        ("backend: local", {"host": "elsewhere", "started": 0.0}, "was started on elsewhere"),
        ("backend: slurm\npools: {extract: {memory: 1GiB}}", {}, "slurm does not answer for 17"),
    ],
)
def test_up__leaves_alone_what_nobody_can_tell_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, driver: dict[str, object], said: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no controller answers
    path, folder = tmp_path / "far.yaml", tmp_path / "state" / "clusters" / "far"
    path.write_text(f"{settings}\nstate: {tmp_path}/state\n")
    folder.mkdir(parents=True)
    kept = {"backend": settings.split()[1], "id": "17", "details": driver}
    files = {"driver.json": json.dumps(kept), "cluster.json": '{"address": "tls://far:1", "credentials": "x"}'}
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(BusyError, match=said) as caught:
        standing.up(path)
    assert f"rm -r {folder}" in str(caught.value.hint)
    assert {file.name: file.read_text() for file in folder.iterdir()} == files, "nothing of it is lost"


def test_down__ends_every_process(profile: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text(f"backend: local\nstate: {tmp_path}/state\npools: {{extract: {{workers: 1, memory: 1GiB}}}}\n")
    found = standing.up(path)
    holder = psutil.Process(int(json.loads((Path(found.folder) / "driver.json").read_text())["id"]))
    family = [holder, *holder.children(recursive=True)]
    assert len(family) > 1
    assert standing.down(path) == []
    _, alive = psutil.wait_procs(family, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    assert not Path(found.credentials).exists()
    with pytest.raises(UsageError, match="no cluster was started from the profile short") as caught:
        standing.down(path)
    assert caught.value.hint == f"dneuro cluster up {path}", "as it was written: a name alone would not be found"
    with pytest.raises(UsageError, match="no cluster of the profile short stands"):
        dn.connect(path)


def test_up__that_fails_shows_the_log(tmp_path: Path) -> None:
    path = tmp_path / "hasty.yaml"
    path.write_text(f"backend: local\nstate: {tmp_path}/state\nstart_timeout: 0.001s\n")
    with pytest.raises(DneuroError, match="the cluster did not come up: its process has ended") as caught:
        standing.up(path)
    assert "not all workers came up within 0.001 s" in str(caught.value)


def test_up__whose_state_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "nowhere.yaml"
    path.write_text(f"backend: local\nstate: {tmp_path}/file/state\n")
    with pytest.raises(UsageError, match=f"cannot be written to {tmp_path}/file/state") as caught:
        standing.up(path)
    assert str(caught.value.hint).startswith("state: in the profile")


def test_up__keeps_its_keys_where_the_profile_asks_for_them(tmp_path: Path) -> None:
    path, own = tmp_path / "careful.yaml", tmp_path / "own"
    path.write_text(
        f"backend: local\nstate: {tmp_path}/state\npools: {{extract: {{workers: 1, memory: 1GiB}}}}\n"
        f"security: {{folder: {own}}}\n"
    )
    found = standing.up(path)
    try:
        assert Path(found.credentials).parent == own
        assert list((tmp_path / "state").rglob("*.key")) == []
        with dn.connect(path) as client:
            assert client.submit(sum, [1, 2]).result() == 3
    finally:
        standing.down(path)
    assert list(own.iterdir()) == []


@pytest.mark.parametrize(
    "edited",
    ["backend: local\nstate: {}/other\n", "backend: slurm\nstate: {}/state\npools: {{extract: {{memory: 1GiB}}}}\n"],
    ids=["state", "backend"],
)
def test_commands__are_about_the_cluster_that_was_started_though_its_profile_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: str
) -> None:
    def start(self: LocalBackend, folder: Path, command: list[str], name: str) -> DriverRef:
        (folder / "cluster.json").write_text("{}")  # as if it listened
        return processes.start("local", folder, [sys.executable, "-c", "import time; time.sleep(600)"])

    monkeypatch.setattr(LocalBackend, "start_driver", start)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))  # there is no Slurm
    path = tmp_path / "mine.yaml"
    path.write_text(f"backend: local\nstate: {tmp_path}/state\n")
    began = standing.up(path)
    process = psutil.Process(int(json.loads((Path(began.folder) / "driver.json").read_text())["id"]))
    path.write_text(edited.format(tmp_path))
    try:
        assert standing.status(path) == began
        assert standing.down(path) == []
        assert not process.is_running()
    finally:
        if process.is_running():
            process.kill()
    with pytest.raises(UsageError, match="no cluster was started from the profile mine"):
        standing.status(path)
    assert list((tmp_path / "cache" / "dneuro" / "clusters").iterdir()) == []


def test_up__over_a_dead_cluster_ends_what_that_has_left_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = {"squeue": "echo '18|PENDING|Priority|left-over'", "scancel": f'echo "$@" >>{tmp_path}/told',
                "sacct": "exit 1", "sbatch": "echo 'sbatch: error: no' >&2; exit 1"}  # fmt: skip
    for name, shell in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{shell}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path, folder = tmp_path / "far.yaml", tmp_path / "state" / "clusters" / "far"
    path.write_text(f"backend: slurm\nstate: {tmp_path}/state\npools: {{extract: {{memory: 1GiB}}}}\n")
    Record(folder).write(kind="slurm", role="worker", name="left-over", id="18")
    ref = DriverRef("slurm", "17", {"name": "gone"})
    (folder / "driver.json").write_text(json.dumps(ref.to_dict()))
    with pytest.raises(DneuroError, match="sbatch: error: no"):
        standing.up(path)
    assert (tmp_path / "told").read_text() == "18\n"


def test_commands__pass_over_a_cluster_that_another_user_keeps_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is 0700; the profiles of both lie in one folder."""
    for name in ("hers", "mine"):
        (tmp_path / f"{name}.yaml").write_text(f"backend: local\nstate: {tmp_path}/{name}-state\n")
    hers, mine = (tmp_path / f"{name}-state" / "clusters" / name for name in ("hers", "mine"))
    for folder in (hers, mine):
        folder.mkdir(parents=True)
        (folder / "driver.json").write_text("{}")
    (mine / "cluster.json").write_text('{"address": "tls://far:1", "credentials": "/keys"}')
    honest = Path.stat

    def closed(path: Path, **settings: Any) -> os.stat_result:  # root may look into every folder
        if hers in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return honest(path, **settings)

    monkeypatch.setattr(Path, "stat", closed)
    monkeypatch.setenv("DNEURO_PROFILE_DIR", str(tmp_path))
    monkeypatch.setattr(asking, "connect_to", lambda spec, **settings: spec)
    assert str(standing.connect("tls://far:1").ca) == "/keys/ca.pem"
    for command in (standing.status, standing.down, standing.connect):
        with pytest.raises(UsageError, match=f"the cluster of {hers} is another user's"):
            command(tmp_path / "hers.yaml")


@pytest.mark.parametrize("ends", ["at once", "later"])
def test_up__whose_process_is_taken_without_an_answer_leaves_nothing_that_cannot_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    queued = f'name=$(cat {tmp_path}/name 2>/dev/null) && echo "17|RUNNING|None|$name"'
    commands = {
        "sbatch": f'echo "$2" | cut -d= -f2 >{tmp_path}/name; echo "sbatch: error: Socket timed out" >&2; exit 1',
        "squeue": f'[ -e {tmp_path}/away ] && {{ echo "error: Socket timed out" >&2; exit 1; }}; {queued}; true',
        "scancel": f'echo "$@" >>{tmp_path}/told; rm {tmp_path}/name',
        "sacct": "exit 1",
    }
    for name, shell in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{shell}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path, folder = tmp_path / "far.yaml", tmp_path / "state" / "clusters" / "far"
    path.write_text(f"backend: slurm\nstate: {tmp_path}/state\npools: {{extract: {{memory: 1GiB}}}}\n")
    if ends == "later":
        (tmp_path / "away").touch()
    with pytest.raises(DneuroError, match="sbatch: error: Socket timed out"):
        standing.up(path)
    if ends == "later":
        assert not (tmp_path / "told").exists(), "there is nobody to ask"
        assert standing.status(path).state == "unknown"
        (tmp_path / "away").unlink()
        assert standing.down(path) == ["17"]
    assert (tmp_path / "told").read_text() == "17\n"
    assert not (folder / "profile.json").exists(), "should it be started after all, it ends for want of it"
    with pytest.raises(UsageError, match="no cluster was started from the profile far"):
        standing.status(path)


def test_up__where_there_is_no_slurm_leaves_nothing_to_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "far.yaml"
    path.write_text(f"backend: slurm\nstate: {tmp_path}/state\npools: {{extract: {{memory: 1GiB}}}}\n")
    for _ in range(2):
        with pytest.raises(DneuroError, match="sbatch is not on this machine's PATH"):
            standing.up(path)
        with pytest.raises(UsageError, match="no cluster was started from the profile far"):
            standing.status(path)


def test_up__whose_process_was_sent_to_nobody_leaves_nothing_to_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: LocalBackend, folder: Path, command: list[str], name: str) -> DriverRef:
        raise UsageError("the folder is on no volume")

    def away(self: LocalBackend, folder: Path) -> list[str]:
        raise DneuroError("nobody answers")

    monkeypatch.setattr(LocalBackend, "start_driver", start)
    monkeypatch.setattr(LocalBackend, "clean_up", away)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "mine.yaml"
    path.write_text(f"backend: local\nstate: {tmp_path}/state\n")
    with pytest.raises(UsageError, match="on no volume"):
        standing.up(path)
    with pytest.raises(UsageError, match="no cluster was started from the profile mine"):
        standing.status(path)
    assert list((tmp_path / "cache" / "dneuro" / "clusters").iterdir()) == []


def test_up__that_is_interrupted_while_its_process_is_started_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[Path] = []

    def start(self: LocalBackend, folder: Path, command: list[str], name: str) -> DriverRef:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalBackend, "start_driver", start)
    monkeypatch.setattr(LocalBackend, "clean_up", lambda self, folder: cleaned.append(folder) or [])
    path = tmp_path / "mine.yaml"
    path.write_text(f"backend: local\nstate: {tmp_path}/state\n")
    with pytest.raises(KeyboardInterrupt):
        standing.up(path)
    assert cleaned == [tmp_path / "state" / "clusters" / "mine"]


def test_up__of_a_scheduler_that_stands_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "there.yaml"
    path.write_text("backend: address\naddress: {scheduler: tcp://127.0.0.1:8786}\n")
    for command in (standing.up, standing.status, standing.down):
        with pytest.raises(UsageError, match="stands already") as caught:
            command(path)
        assert caught.value.hint == f"dneuro run JOB --cluster {path}"
