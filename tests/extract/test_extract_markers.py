"""Markers that other machines publish are waited for by one that remembers that they were not there."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import StoreError
from dneuro.extract import markers
from dneuro.extract import run as extract_run
from dneuro.extract.run import extract, merge_feeds
from dneuro.extract.work import ExtractWork
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec
from dneuro.store.opening import open_store
from dneuro.store.units import Unit, units_folder

MakeJob = Callable[..., JobSpec]


class Client:
    """A client of NFS: what was not there when it looked is not there, until it changes something in that folder.

    Parameters
    ----------
    driver : bool
        It is that of the machine of the driver, which is the main thread here; else that of all workers.
    looks : int, optional
        So many looks later it sees what is there, by itself.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, driver: bool, looks: int | None = None) -> None:
        self.driver, self.looks = driver, looks
        self.absent: Counter[Path] = Counter()
        self.changed: set[Path] = set()
        self._read, self._partial, self._lock = Unit.read, markers.partial, threading.Lock()
        monkeypatch.setattr(Unit, "read", lambda unit: self.read(unit))
        monkeypatch.setattr(markers, "partial", self.partial)
        monkeypatch.setattr(markers, "FIRST_PAUSE", 0.001)
        monkeypatch.setattr(markers, "LONGEST_PAUSE", 0.002)

    @property
    def here(self) -> bool:
        return (threading.current_thread() is threading.main_thread()) == self.driver

    def read(self, unit: Unit) -> dict[str, Any] | None:
        assert isinstance(unit.folder, Path)
        place = unit.folder / unit.name
        found = self._read(unit)
        if not self.here or not unit.name.isdigit():
            return found
        with self._lock:
            if found is not None and (place not in self.absent or self.absent[place] == self.looks):
                return found
            self.absent[place] += found is not None
        return None

    def partial(self, path: Path) -> Path:
        if self.here and self.looks is None:
            with self._lock:
                self.changed.add(path.parent)
                for place in [place for place in self.absent if place.parent == path.parent]:
                    del self.absent[place]
        return self._partial(path)


@pytest.mark.parametrize("looks", [None, 3], ids=["a change of its own helps", "time helps"])
@pytest.mark.parametrize("driver", [True, False], ids=["driver", "workers"])
def test_markers__that_are_not_seen_at_first_are_waited_for(
    make_job: MakeJob, threads: ThreadExecutor, same_store: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch, driver: bool, looks: int | None,
) -> None:  # fmt: skip
    step = {"selectivity": {}}
    clean = run_job(make_job(step, store="clean.zarr"), threads).store
    with monkeypatch.context() as patched:
        client = Client(patched, driver=driver, looks=looks)
        store = run_job(make_job(step), threads).store
        assert client.absent or client.changed, "it has looked before they were there"
    assert {"mean", "top_value"} <= set(open_store(store).statistics("relu1").data_vars)
    assert isinstance(store, Path) and isinstance(clean, Path)
    same_store(store, clean)
    assert list(units_folder(store).rglob("*.partial")) == []
    parts = {"images", "relu1", "fc"} if driver else {"relu1", "fc"}
    expected = {units_folder(store) / "extract" / part for part in parts} if looks is None else set()
    assert expected <= client.changed


@pytest.mark.parametrize(("driver", "part"), [(True, "images"), (False, "relu1")])
def test_markers__that_are_never_seen_end_the_run(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch, driver: bool, part: str
) -> None:
    job = make_job(layers=["relu1"])
    with monkeypatch.context() as patched:
        Client(patched, driver=driver, looks=10**9)
        patched.setattr(markers, "PATIENCE", 0.05)
        with pytest.raises(StoreError, match=rf"unit 0 of {part} is done, but .* has not seen its marker .*") as caught:
            run_job(job, threads)
    assert "lookupcache=positive" in str(caught.value.hint)
    result = run_job(job, threads)
    assert result.outcome.done_before == result.outcome.units == 3
    assert {"mean", "top_value"} <= set(open_store(result.store).statistics("relu1").data_vars)


def test_markers__of_units_that_are_left_out_are_not_waited_for(
    make_job: MakeJob, begin: Callable[..., ExtractWork], threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = extract_run.extract_unit

    def extract_unit(work: ExtractWork, number: int, parts: Any) -> Any:
        if number == 1:
            raise RuntimeError("always")
        return honest(work, number, parts)

    monkeypatch.setattr(extract_run, "extract_unit", extract_unit)
    monkeypatch.setattr(markers, "PATIENCE", -1.0)
    work = begin(make_job())
    assert set(extract(work, threads).quarantined) == {1}
    wanted = [(layer, feed) for layer, feeds in work.feeds.items() for feed in feeds]
    assert wanted
    assert merge_feeds(work, wanted, threads) == {}
    work.left_out(1).unlink()
    with pytest.raises(StoreError, match="unit 1 of relu1 is done, but"):
        merge_feeds(work, wanted[:1], threads)
