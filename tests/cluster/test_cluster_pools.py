"""Several pools on this machine: each has worker processes of its own, and tasks go where their pool is."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from dneuro.cluster import Machines, backend_of, local, settings
from dneuro.errors import DneuroError, UsageError
from dneuro.quantities import GiB
from dneuro.spec import ProfileSpec


def profile(**pools: dict[str, Any]) -> ProfileSpec:
    return ProfileSpec.model_validate({"backend": "local", "pools": pools, "security": {"tls": "required"}})



@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pools")


@pytest.fixture(scope="module")
def machines(folder: Path) -> Iterator[Machines]:
    """GPUs are pretended: a worker gets the name of one, and nothing is done with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        asked = profile(
            extract={"gpus": 1, "memory": "1GiB", "threads": 2, "cpus": 2},
            memory={"workers": 1, "memory": "2GiB", "cpus": 3, "env": {"WHERE": "here"}},
        )
        with backend_of(asked).open(folder=folder) as machines:
            yield machines
    assert not (folder / "keys").exists(), "keys end with the run"



def everywhere(machines: Machines, name: str) -> dict[str, set[str | None]]:
    def get() -> str | None:

        return os.environ.get(name)

    pools = {
        address: next(iter(worker["resources"]))
        for address, worker in machines.client.scheduler_info(n_workers=-1)["workers"].items()
    }
    found: dict[str, set[str | None]] = {}
    for address, value in machines.client.run(get).items():
        found.setdefault(pools[address], set()).add(value)
    return found


def test_pools__have_the_workers_that_the_profile_says(machines: Machines) -> None:
    workers = machines.client.scheduler_info(n_workers=-1)["workers"].values()
    assert sorted((worker["nthreads"], worker["memory_limit"], worker["resources"]) for worker in workers) == [
        (1, 2 * GiB, {"memory": 1.0}),
        (2, GiB, {"extract": 2.0}),
        (2, GiB, {"extract": 2.0}),
    ]
    sizes = {pool: (machines.executor(pool).slots, machines.executor(pool).memory) for pool in ("extract", "memory")}
    assert sizes == {"extract": (4, GiB), "memory": (1, 2 * GiB)}
    with pytest.raises(UsageError, match="no pool 'extra'") as caught:
        machines.executor("extra")
    assert "did you mean 'extract'" in str(caught.value)


def test_pools__have_an_environment_of_their_own(machines: Machines) -> None:
    assert everywhere(machines, "OMP_NUM_THREADS") == {"extract": {"1"}, "memory": {"3"}}
    assert everywhere(machines, "WHERE") == {"extract": {None}, "memory": {"here"}}
    assert "WHERE" not in os.environ, "this process keeps its own"


def test_worker__that_does_not_come_up_is_named_and_ended(tmp_path: Path) -> None:
    """Its process is there, and waits for something; dask would wait for it without end."""
    (tmp_path / "waits.py").write_text("import os, time\nif os.environ.get('WAITS'):\n    time.sleep(600)\n")
    asked = profile(
        extract={"workers": 1, "memory": "1GiB"},
        memory={"workers": 1, "memory": "1GiB", "start_timeout": "8s", "env": {"WAITS": 1}},
    )
    with (
        dask.config.set({"distributed.worker.preload": [str(tmp_path / "waits.py")]}),
        pytest.raises(DneuroError, match=r"worker memory-0 was not there after 8\.0 s") as caught,
        backend_of(asked).open(),
    ):
        raise AssertionError("pool memory has no worker")
    assert "start_timeout" in str(caught.value.hint)
    assert not [process for process in psutil.Process().children(recursive=True) if "WAITS" in _environment(process)]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:  # it has just ended
        return {}


def test_gpus__are_one_for_each_worker(machines: Machines) -> None:
    assert everywhere(machines, "CUDA_VISIBLE_DEVICES") == {"extract": {"4", "7"}, "memory": {""}}


def test_tasks__run_in_their_pool(machines: Machines) -> None:
    def place() -> str:
        from distributed import get_worker

        return str(get_worker().name)

    for pool in ("extract", "memory"):
        executor = machines.executor(pool)
        futures = [executor.submit(place) for _ in range(8)]
        assert {future.result().split("-")[0] for future in futures} == {pool}


def test_workers__with_keys_are_shut_to_others(machines: Machines, folder: Path) -> None:
    import socket

    assert machines.client.scheduler.address.startswith("tls://127.0.0.1:")
    port = int(machines.client.scheduler.address.rpartition(":")[2])
    context = ssl.create_default_context(cafile=str(folder / "keys" / "ca.pem"))
    context.check_hostname = False
    with (
        pytest.raises((ssl.SSLError, ConnectionError)),
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain) as line,
    ):
        line.sendall(b"hello")
        if not line.recv(1):
            raise ConnectionError("hung up")


def test_gpus__there_are_not_enough_of_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "gpus", lambda: ["0"])
    assert backend_of(profile(extract={"gpus": 1})).sizes("extract").workers == 1
    with pytest.raises(DneuroError, match="2 workers with a GPU each are asked for, this machine has 1"):
        backend_of(profile(extract={"gpus": 1, "workers": 2})).sizes("extract")
    monkeypatch.setattr(local, "gpus", list)
    with pytest.raises(DneuroError, match="1 workers with a GPU each are asked for, this machine has 0"):
        backend_of(profile(extract={"gpus": 1})).sizes("extract")


def test_gpus__of_one_pool_are_not_those_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def cards(**pools: dict[str, Any]) -> dict[str, list[str]]:
        return local._cards(profile(**pools).groups)

    monkeypatch.setattr(local, "gpus", lambda: ["0", "1", "2"])
    assert cards(extract={"gpus": 1}, memory={"gpus": 1}) == {"extract": ["0", "1"], "memory": ["2"]}
    assert cards(extract={"gpus": 1}, memory={"gpus": 1, "workers": 2}) == {"extract": ["0"], "memory": ["1", "2"]}
    assert cards(extract={"gpus": 1, "workers": 1}, memory={"cpus": 1}) == {"extract": ["0"]}
    monkeypatch.setattr(local, "gpus", lambda: ["0"])
    with pytest.raises(DneuroError, match="2 workers with a GPU each are asked for, this machine has 1") as caught:
        backend_of(profile(extract={"gpus": 1}, memory={"gpus": 1})).sizes("extract")
    assert "a pool left empty has the workers of the other" in str(caught.value.hint)


def test_pools__that_are_left_empty_share_the_workers_of_the_other() -> None:
    one = profile(extract={"workers": 2, "memory": "1GiB"}, memory={})
    assert list(one.groups) == ["extract"]
    assert one.group("memory") == "extract"
    assert profile(memory={"workers": 1}).group("extract") == "memory"
    assert profile(big={"workers": 1}).group("memory") == "big"
    two = profile(extract={"workers": 1, "memory": "1GiB"}, memory={"cpus": 1})
    assert (two.group("extract"), two.group("memory")) == ("extract", "memory")


def test_task__that_no_worker_can_take_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resource that nobody offers: dask's own wait for it has no end."""
    from distributed.scheduler import NoValidWorkerError

    asked = profile(extract={"workers": 1, "memory": "1GiB", "start_timeout": "20s"})
    monkeypatch.setattr(settings, "SLACK", -19.0)
    with backend_of(asked).open() as short:
        lost = short.client.submit(sum, [1, 2], resources={"nothing": 1})
        with pytest.raises(NoValidWorkerError):
            lost.result(timeout=60)
