"""A scheduler that somebody else started: its workers are used, and stay."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

from dneuro import events
from dneuro.cluster import backend_of, standing, versions
from dneuro.cluster.address import connect_to
from dneuro.cluster.security import make_credentials, read_credentials
from dneuro.errors import DneuroError, UsageError
from dneuro.quantities import GiB
from dneuro.spec import ProfileSpec
from dneuro.spec.sites import AddressSpec


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_credentials(tmp_path_factory.mktemp("address") / "keys")


@pytest.fixture(scope="module")
def address(keys: Path) -> Iterator[str]:
    from distributed import Scheduler, SpecCluster, Worker

    security = read_credentials(keys)
    common: dict[str, Any] = {"host": "127.0.0.1", "security": security, "dashboard": False}
    workers = {
        name: {"cls": Worker, "options": {**common, "nthreads": 1, "memory_limit": GiB, "resources": resources,
                                          "dashboard_address": "127.0.0.1:0"}}
        for name, resources in (("gpu-0", {"GPU": 1}), ("gpu-1", {"GPU": 1}), ("big-0", {}))
    }  # fmt: skip
    options = {**common, "port": 0, "protocol": "tls://", "dashboard_address": "127.0.0.1:0"}
    # The workers are threads of this process, which may hold more than their limit of other tests: none is to pause.
    with (
        dask.config.set({f"distributed.worker.memory.{at}": False for at in ("target", "spill", "pause")}),
        SpecCluster(workers, {"cls": Scheduler, "options": options}, security=security, silence_logs=50) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.fixture
def profile(address: str, keys: Path) -> Any:
    def make(pools: dict[str, Any] | None = None, **settings: Any) -> ProfileSpec:
        there = {"scheduler": address, "ca": str(keys / "ca.pem"), "cert": str(keys / "client.pem"),
                 "key": str(keys / "client.key"), **settings.pop("address", {})}  # fmt: skip
        return ProfileSpec.model_validate(
            {"backend": "address", "address": there, "pools": pools or {}, "start_timeout": "20s", **settings}
        )

    return make


def names(machines: Any, pool: str) -> set[str]:
    def place() -> str:
        from distributed import get_worker

        return str(get_worker().name)

    executor = machines.executor(pool)
    return {future.result() for future in [executor.submit(place) for _ in range(12)]}


def test_address__without_pools_is_all_workers(profile: Any) -> None:
    backend = backend_of(profile())
    assert (backend.sizes("extract").workers, backend.sizes("memory").memory) == (3, GiB)
    with backend.open() as machines:
        assert machines.executor("memory").slots == 3
        assert names(machines, "memory") == {"gpu-0", "gpu-1", "big-0"}


def test_address__pools_are_workers_that_offer_a_resource_or_have_a_name(profile: Any) -> None:
    backend = backend_of(profile({"extract": {"resource": "GPU"}, "memory": {"names": "big-*"}}))
    assert (backend.sizes("extract").workers, backend.sizes("memory").workers) == (2, 1)
    with backend.open() as machines:
        assert names(machines, "extract") == {"gpu-0", "gpu-1"}
        assert names(machines, "memory") == {"big-0"}
        client = machines.client
    with backend.open() as machines:
        assert machines.client is not client
        assert len(machines.client.scheduler_info(n_workers=-1)["workers"]) == 3, "the workers have stayed"


def test_address__pool_without_a_worker_is_named(profile: Any) -> None:
    asked = profile({"extract": {"resource": "TPU"}, "memory": {"names": "big-*"}}, start_timeout="0.5s")
    with pytest.raises(DneuroError, match=r"pool extract: .* has no worker that offers TPU after 0\.5 s"):
        backend_of(asked).sizes("extract")
    with (
        pytest.raises(DneuroError, match=r"pool extract: .* has no worker that offers TPU") as caught,
        backend_of(asked).open(),
    ):
        raise AssertionError("there is no such worker")
    assert "--resources TPU=1" in str(caught.value.hint)


@pytest.fixture(scope="module")
def wide() -> Iterator[str]:
    """The address of a scheduler whose workers were started with more threads than a profile says by itself."""
    from distributed import Scheduler, SpecCluster, Worker

    common: dict[str, Any] = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    workers = {
        name: {"cls": Worker, "options": {**common, "nthreads": threads, "memory_limit": limit, "resources": resources}}
        for name, threads, limit, resources in (
            ("wide-0", 8, 4 * GiB, {}), ("gpu-0", 4, 2 * GiB, {"GPU": 2}), ("free-0", 2, 0, {})
        )
    }  # fmt: skip
    with (
        dask.config.set({f"distributed.worker.memory.{at}": False for at in ("target", "spill", "pause")}),
        SpecCluster(workers, {"cls": Scheduler, "options": {**common, "port": 0}}, silence_logs=50) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.mark.parametrize(
    ("pool", "threads", "cpus", "memory"),
    [
        ({"names": "wide-*", "memory": "8GiB"}, 8, 1, 4 * GiB),
        ({"names": "wide-*", "memory": "1GiB"}, 8, 1, GiB),
        ({"names": "wide-*", "memory": "8GiB", "threads": 16}, 8, 1, 4 * GiB),
        ({"resource": "GPU", "memory": "8GiB"}, 2, 4, 2 * GiB),
        ({"names": "free-*", "memory": "8GiB"}, 2, 4, 8 * GiB),
    ],
    ids=["limits of workers", "limit of the profile", "threads of workers", "what is offered", "no limit"],
)
def test_address__plans_for_the_workers_that_will_do_it(
    profile: Any, wide: str, pool: dict[str, Any], threads: int, cpus: int, memory: int
) -> None:
    there = {"scheduler": wide, "ca": None, "cert": None, "key": None}
    backend = backend_of(profile({"extract": {"workers": 1, "cpus": 8, **pool}}, address=there))
    sizes = backend.sizes("extract")
    assert (sizes.workers, sizes.threads, sizes.cpus, sizes.memory) == (1, threads, cpus, memory)
    with backend.open() as machines:
        executor = machines.executor("extract")
        found = executor.slots, executor.slots_per_process, executor.memory
    assert found == (sizes.slots, sizes.slots_per_process, sizes.memory)


@pytest.mark.parametrize("said", [{"memory": 8 * GiB}, {"memory": 4 * GiB}, {"memory": 4 * GiB, "threads": 8}])
def test_address__workers_that_come_later_and_are_not_as_planned_are_refused(
    profile: Any, wide: str, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]
) -> None:
    there = {"scheduler": wide, "ca": None, "cert": None, "key": None}
    backend = backend_of(profile({"extract": {"workers": 1, "names": "wide-*", **said}}, address=there))
    with monkeypatch.context() as before:
        before.setattr("dneuro.cluster.address.serves", lambda *_: False)
        sizes = backend.sizes("extract")
    assert (sizes.threads, sizes.memory) == (said.get("threads", 1), said["memory"])
    if "threads" in said:
        with backend.open() as machines:
            assert machines.executor("extract").slots_per_process == 8
        return
    with (
        pytest.raises(UsageError, match=r"pool extract: planned were 1 units .*, the workers .* do 8 in 4 GiB"),
        backend.open(),
    ):
        raise AssertionError("they would work on eight units in the memory of one")


def test_address__workers_that_others_started_are_refused_where_dneuros_were_planned_for(
    profile: Any, wide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"scheduler": wide, "ca": None, "cert": None, "key": None}
    backend = backend_of(profile({"extract": {"workers": 1, "names": "wide-*"}}, address=there))
    with monkeypatch.context() as before:
        before.setattr("dneuro.cluster.address.coalesces_there", lambda _worker: True)
        assert backend.sizes("extract").coalescing
    with (
        pytest.raises(UsageError, match=r"pool extract: planned .*not all were started by dneuro, as those were"),
        backend.open(),
    ):
        raise AssertionError("their forward passes would take more than was planned")


def test_address__plans_by_the_words_of_the_profile_where_nobody_answers(
    profile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.cluster.address.ANSWER", 0.2)
    said: list[str] = []
    pool = {"workers": 3, "threads": 2, "cpus": 8, "memory": "5GiB"}
    backend = backend_of(profile({"extract": pool}, address={"scheduler": "tls://127.0.0.1:9"}))
    with events.listening(lambda event: said.append(event.message)):
        sizes = [backend.sizes(pool) for pool in ("extract", "memory")]
    assert [(one.workers, one.threads, one.cpus, one.memory) for one in sizes] == [(3, 2, 4, 5 * GiB)] * 2
    (note,) = said
    assert note.startswith("pool extract is as the profile says: no connection to the scheduler at tls://127.0.0.1:9")


def test_address__nobody_answers(profile: Any) -> None:
    asked = profile(address={"scheduler": "tls://127.0.0.1:9"})
    with pytest.raises(DneuroError, match=r"no connection to the scheduler at tls://127\.0\.0\.1:9"):
        backend_of(asked).sizes("extract")


def test_address__wants_its_files(profile: Any, keys: Path) -> None:
    with pytest.raises(UsageError, match=r"needs address\.ca, address\.key"):
        connect_to(AddressSpec(scheduler="tls://127.0.0.1:9", cert=str(keys / "client.pem")), timeout=1)
    with pytest.raises(UsageError, match="is not encrypted"):
        backend_of(
            profile(address={"scheduler": "tcp://127.0.0.1:9"}, security={"tls": "required"})
        ).sizes("extract")  # fmt: skip


def test_connect__is_as_careful_as_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    connected, said, path = [], [], tmp_path / "there.yaml"
    monkeypatch.setattr(distributed, "Client", lambda address, **settings: connected.append(address))
    text = "backend: address\naddress: {scheduler: tcp://10.1.2.3:8786}\n"
    path.write_text(f"{text}security: {{tls: required}}\n")
    with pytest.raises(UsageError, match=r"tcp://10\.1\.2\.3:8786 is not encrypted"):
        standing.connect(path)
    assert connected == []
    path.write_text(text)
    with events.listening(lambda event: said.append((event.kind, event.message))):
        standing.connect(path)
        standing.connect("tcp://10.1.2.3:8786")
        standing.connect("tcp://127.0.0.1:8786")
    assert said == [("warning", "tcp://10.1.2.3:8786: whoever reaches it can run code on its workers")] * 2
    assert len(connected) == 3


def test_address__key_that_others_may_read_is_refused_whatever_it_is_called(profile: Any, tmp_path: Path) -> None:
    own = make_credentials(tmp_path / "own")
    key = (own / "client.key").rename(own / "client-key.pem")
    key.chmod(0o644)
    with pytest.raises(UsageError, match=r"client-key\.pem: others may read this key \(mode 644\)"):
        backend_of(profile(address={"key": str(key)})).sizes("extract")


def test_workers__of_other_versions_are_refused_by_name(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = versions.versions()
    monkeypatch.setattr(versions, "versions", lambda: {**real, "torch": "99.0"})
    with (
        pytest.raises(DneuroError, match=rf"3 workers have other versions .* torch {real['torch']} instead of 99\.0"),
        backend_of(profile()).open(),
    ):
        raise AssertionError("they must not work together")


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"torch": "2.14.1+cpu"}, []),
        ({"torch": "2.14.0+cpu"}, ["torch 2.14.0+cpu instead of 2.14.1+cu128"]),
        ({"dneuro": "1.0+mine"}, ["dneuro 1.0+mine instead of 1.0"]),
        ({"torch": "missing"}, ["torch missing instead of 2.14.1+cu128"]),
    ],
)
def test_versions__of_torch_are_the_same_whatever_it_was_built_for(there: dict[str, str], said: list[str]) -> None:
    """As where the image has the wheels without CUDA, and the login node those of the package index."""
    here = {"dneuro": "1.0", "torch": "2.14.1+cu128"}
    assert versions.differences(here, {**here, **there}) == said


def test_workers__of_another_python_are_sent_nothing(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent whole to run there ends such a process before it can answer."""
    from distributed import Client

    real = versions.versions()
    monkeypatch.setattr(versions, "versions", lambda: {**real, "python": "3.99"})
    sent: list[Any] = []
    monkeypatch.setattr(Client, "_run", lambda self, *args, **settings: sent.append(args))
    with (
        pytest.raises(DneuroError, match=rf"3 workers have other versions .* python {real['python']} instead of 3\.99"),
        backend_of(profile()).open(),
    ):
        raise AssertionError("they must not work together")
    assert sent == []


def test_workers__that_do_not_say_their_versions_are_refused_by_name(
    profile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client

    honest = Client._run

    async def run(self: Any, *args: Any, **settings: Any) -> dict[str, Any]:
        there = await honest(self, *args, **settings)
        last = max(self.scheduler_info(n_workers=-1)["workers"])
        return {at: OSError("killed by signal 11") if at == last else said for at, said in there.items()}

    monkeypatch.setattr(Client, "_run", run)
    with (
        pytest.raises(DneuroError, match=r"1 workers .*; tls://127\S+ has not said which: OSError: killed by"),
        backend_of(profile()).open(),
    ):
        raise AssertionError("it may have any")


@pytest.mark.parametrize("others", [{}, {"torch": "99.0"}])
def test_workers__that_are_silent_are_told_from_those_that_answer(
    profile: Any, monkeypatch: pytest.MonkeyPatch, others: dict[str, str]
) -> None:
    from distributed import Client

    honest, real, silent = Client._run, versions.versions(), []

    async def run(self: Any, *args: Any, workers: list[str], **settings: Any) -> dict[str, Any]:
        silent[:] = [max(self.scheduler_info(n_workers=-1)["workers"])]
        if workers == silent:
            await asyncio.sleep(60)
        return await honest(self, *args, workers=workers, **settings)

    monkeypatch.setattr(Client, "_run", run)
    monkeypatch.setattr(versions, "versions", lambda: {**real, **others})
    monkeypatch.setattr(versions, "PATIENCE", 2.0)
    with pytest.raises(DneuroError) as caught, backend_of(profile()).open():
        raise AssertionError("it may have any")
    if others:
        assert caught.value.message.startswith("2 workers have other versions than this process; ")
        assert silent[0] not in caught.value.message
    else:
        assert caught.value.message.startswith("1 of 3 workers do not say")
        assert f"no answer from {silent[0]} within" in caught.value.message
        assert "busy or stopped" in str(caught.value.hint)


def test_workers__that_join_later_are_looked_at(profile: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "POLL", 0.02)
    heard, said = threading.Event(), []

    def listen(event: events.Event) -> None:
        if event.kind == "warning":
            said.append(event.message)
            heard.set()

    with events.listening(listen), backend_of(profile()).open() as machines:
        workers = sorted(machines.client.scheduler_info(n_workers=-1)["workers"])
        real = versions.versions()
        monkeypatch.setattr(versions, "versions", lambda: {**real, "zarr": "9.9"})
        with monkeypatch.context() as without:  # one seems to leave, and comes back
            without.setattr(versions, "_there", lambda client: set(workers[1:]))
            time.sleep(0.2)
        assert heard.wait(30)
    assert said == [f"joined since the work began: 1 workers have other versions than this process; {workers[0]} has "
                    f"zarr {real['zarr']} instead of 9.9"]  # fmt: skip


def test_worker__refuses_to_start_beside_other_versions() -> None:
    with dask.config.set({"dneuro.versions": versions.versions()}):
        versions.dask_setup(None)
    with (
        dask.config.set({"dneuro.versions": {**versions.versions(), "zarr": "9.9", "nothing": "1"}}),
        pytest.raises(SystemExit, match=r"zarr .* instead of 9\.9, nothing missing instead of 1"),
    ):
        versions.dask_setup(None)
