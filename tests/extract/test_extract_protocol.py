"""The unit protocol under faults: never a wrong "done", and only what is torn is redone."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import BusyError, PartialError, StoreError
from dneuro.extract import pipeline, task
from dneuro.extract.run import extract
from dneuro.extract.task import QuarantinedError, extract_unit
from dneuro.extract.work import ExtractWork
from dneuro.jobs import answers, growth, recording
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec
from dneuro.store.units import Unit, units_folder
from dneuro.store.writing import RowWriter

MakeJob = Callable[..., JobSpec]
Same = Callable[[Path, Path], None]
PARTS = ("images", "relu1", "fc")


class Killed(BaseException):
    """What no code may catch and go on from."""


@pytest.fixture
def clean(make_job: MakeJob, threads: ThreadExecutor) -> Path:
    """The store of a run without faults."""
    return run_job(make_job(store="clean.zarr", batch=4), threads).store


def attempts(store: Path) -> dict[str, int]:
    """Which run published each marker."""
    folder = units_folder(store) / "extract"
    return {
        str(path.relative_to(folder)): json.loads(path.read_bytes())["attempt"]
        for path in sorted(folder.glob("*/*.done"))
    }


def die_in(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Kill whoever comes to this step of the protocol."""

    def dying(*_: Any, **__: Any) -> Any:
        raise Killed

    def then_dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            function(*args, **kwargs)
            raise Killed

        return run

    if step == "after begin":
        monkeypatch.setattr(task, "batches", dying)
    elif step == "in the first chunks":
        monkeypatch.setattr(RowWriter, "_flush", then_dying(RowWriter._flush))
    elif step == "after some images":
        honest = task.batches

        def some(*args: Any) -> Iterator[Any]:
            for number, batch in enumerate(honest(*args)):
                if number == 1:
                    raise Killed
                yield batch

        monkeypatch.setattr(task, "batches", some)
    elif step == "after the chunks":
        monkeypatch.setattr(Unit, "save_partials", dying)
    elif step == "after the partials":
        monkeypatch.setattr(Unit, "save_partials", then_dying(Unit.save_partials))
    elif step == "before publishing":
        monkeypatch.setattr(Unit, "publish", dying)
    else:
        raise AssertionError(step)


STEPS = ["after begin", "in the first chunks", "after some images", "after the chunks", "after the partials",
         "before publishing"]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_kill__at_any_step_is_never_taken_for_done(
    make_job: MakeJob, begin: Callable[[JobSpec], ExtractWork], threads: ThreadExecutor, clean: Path, same_store: Same,
    monkeypatch: pytest.MonkeyPatch, step: str,
) -> None:  # fmt: skip
    job = make_job(batch=4)
    work = begin(job)
    extract_unit(work, 0, work.missing(0))
    with monkeypatch.context() as patched:
        die_in(patched, step)
        with pytest.raises(Killed):
            extract_unit(work, 1, work.missing(1))
    done = {name.split("/")[0] for name in attempts(work.store) if name.endswith("/00001.done")}
    assert set(work.missing(1)) == set(PARTS) - done
    # The arrays of images have no partial statistics, so they may be done when the first layer dies at its own.
    assert done == ({"images"} if "partials" in step or step == "after the chunks" else set())

    before = attempts(work.store)
    work = begin(job)  # lets go of the lease, as a dead process does
    assert {number: len(work.missing(number)) for number in range(3)} == {0: 0, 1: 3 - len(done), 2: 3}
    outcome = extract(work, threads)
    assert (outcome.units, outcome.done_before, outcome.quarantined) == (3, 1, {})
    after = attempts(work.store)
    assert {name: after[name] for name in before} == before, "what was done is not redone"
    assert {after[name] for name in after.keys() - before.keys()} == {2}
    assert len(after) == 9
    for layer in ("relu1", "fc"):
        a, b = (zarr.open_array(s, path=f"layers/{layer}/activation")[:] for s in (work.store, clean))
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("step", STEPS)
def test_kill__then_the_same_job_again_equals_a_clean_run(
    make_job: MakeJob, begin: Callable[[JobSpec], ExtractWork], threads: ThreadExecutor, clean: Path, same_store: Same,
    monkeypatch: pytest.MonkeyPatch, step: str,
) -> None:  # fmt: skip
    job = make_job(batch=4)
    with monkeypatch.context() as patched:
        work = begin(job)
        extract_unit(work, 2, work.missing(2))
        die_in(patched, step)
        with pytest.raises(Killed):
            extract_unit(work, 0, work.missing(0))
    units_folder(work.store).joinpath("attempts", "001", "lease.json").write_text('{"ended": 1}')
    result = run_job(job, threads)
    assert result.outcome.done_before == 1
    same_store(result.store, clean)


def test_kill__between_the_markers_of_a_unit_leaves_the_first_done(
    make_job: MakeJob, begin: Callable[[JobSpec], ExtractWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = begin(make_job())
    honest = Unit.publish

    def publish(unit: Unit, marker: dict[str, Any]) -> None:
        if unit.folder.name == "fc":
            raise Killed
        honest(unit, marker)

    monkeypatch.setattr(Unit, "publish", publish)
    with pytest.raises(Killed):
        extract_unit(work, 0, work.missing(0))
    assert work.missing(0) == ("fc",)


def test_resume__redoes_a_unit_with_a_damaged_marker_or_partial_only(
    make_job: MakeJob, threads: ThreadExecutor, clean: Path, same_store: Same
) -> None:
    job = make_job(batch=4)
    folder = units_folder(run_job(job, threads).store) / "extract"
    marker = folder / "fc" / "00001.done"
    marker.write_bytes(marker.read_bytes()[:40])
    (folder / "relu1" / "00002.npz").write_bytes(b"")
    chunk = Path(job.store) / "layers/fc/activation/c/1/0"
    chunk.write_bytes(chunk.read_bytes()[:10])
    result = run_job(job, threads)
    assert result.outcome.done_before == 1
    published = attempts(result.store)
    assert sorted(name for name, attempt in published.items() if attempt == 2) == ["fc/00001.done", "relu1/00002.done"]
    same_store(result.store, clean)


def test_resume__sweeps_what_a_killed_writer_left(
    make_job: MakeJob, threads: ThreadExecutor, clean: Path, same_store: Same
) -> None:
    job = make_job(batch=4)
    store = run_job(job, threads).store
    stray = [
        store / "layers/fc/activation/c/0/0.9a.partial",
        units_folder(store) / "extract/fc/.00001.npz.9a.partial",
        store.parent / ".acts.zarr.9a.partial",
    ]
    stray[0].write_bytes(b"half")
    stray[1].write_bytes(b"half")
    (stray[2] / "layers").mkdir(parents=True)
    seen: list[events.Event] = []
    with events.listening(seen.append):
        result = run_job(job, threads)
    assert not any(path.exists() for path in stray)
    assert any("removed 3 files" in event.message for event in seen)
    assert result.outcome.done_before == 3
    same_store(result.store, clean)


def test_unit__begun_three_times_is_not_begun_again(
    make_job: MakeJob, begin: Callable[[JobSpec], ExtractWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler that silently tries a task again when its worker dies is counted too."""
    work = begin(make_job())
    with monkeypatch.context() as patched:
        die_in(patched, "after begin")
        for _ in range(3):
            with pytest.raises(Killed):
                extract_unit(work, 1, work.missing(1))
    with pytest.raises(QuarantinedError, match="unit 1 was begun 3 times and never finished"):
        extract_unit(work, 1, work.missing(1))
    extract_unit(work, 0, work.missing(0))
    again = begin(make_job())
    with monkeypatch.context() as patched:
        die_in(patched, "after begin")
        with pytest.raises(Killed):
            extract_unit(again, 1, again.missing(1))
    extract_unit(again, 1, again.missing(1))
    assert again.missing(1) == (), "another run begins its own count"
    tries = {(number, part): again.unit(part, number).read()["tries"] for number in (0, 1) for part in PARTS}
    assert tries == {(number, part): number + 1 for number in (0, 1) for part in PARTS}, "markers say how many it took"


def test_unit__asked_for_again_in_the_same_run_is_not_redone(
    make_job: MakeJob, begin: Callable[[JobSpec], ExtractWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler makes a result again when the worker that holds it is lost; a done unit must stay done meanwhile."""
    work = begin(make_job())
    first = extract_unit(work, 0, PARTS)
    before = {path: path.stat().st_mtime_ns for path in units_folder(work.store).rglob("*")}
    with monkeypatch.context() as patched:
        die_in(patched, "after begin")
        again = extract_unit(work, 0, PARTS)
    assert (again.number, again.images, again.masked) == (first.number, first.images, first.masked)
    assert {path: path.stat().st_mtime_ns for path in units_folder(work.store).rglob("*")} == before


class Failing:
    """Stands in for `batches`: fails on some units, as often as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: dict[int, int], error: Exception) -> None:
        self.calls: list[int] = []
        honest = task.batches

        def batches(work: ExtractWork, layers: Any, start: int, stop: int) -> Iterator[Any]:
            unit = start // work.plan.unit
            self.calls.append(unit)
            if self.calls.count(unit) <= times.get(unit, 0):
                raise error
            yield from honest(work, layers, start, stop)

        monkeypatch.setattr(task, "batches", batches)


def test_run__tries_a_failing_unit_again(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch, clean: Path, same_store: Same
) -> None:
    failing = Failing(monkeypatch, {1: 2}, OSError(errno.EIO, "hiccup"))
    seen: list[events.Event] = []
    with events.listening(seen.append):
        result = run_job(make_job(batch=4), threads)
    assert sorted(failing.calls) == [0, 1, 1, 1, 2]
    warnings = [event.message for event in seen if event.kind == "warning"]
    assert len(warnings) == 2
    assert all("unit 1 failed and is tried again" in text and "hiccup" in text for text in warnings)
    same_store(result.store, clean)


def test_run__leaves_out_a_unit_that_fails_each_time_and_finishes_the_others(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch, clean: Path, same_store: Same
) -> None:
    job = make_job({"moments": None}, batch=4)
    with monkeypatch.context() as patched:
        failing = Failing(patched, {1: 99}, ValueError("torn"))
        with pytest.raises(PartialError, match=r"1 of 3 units.*unit 1 \(images 16 to 31\): ValueError: torn") as caught:
            run_job(job, threads)
    assert caught.value.exit_code == 3
    assert sorted(failing.calls) == [0, 1, 1, 1, 2]
    assert sorted(attempts(Path(job.store))) == sorted(f"{part}/{n:05d}.done" for part in PARTS for n in (0, 2))
    with pytest.raises(StoreError):
        dn.open(job.store).statistics("nope")
    assert "mean" not in dn.open(job.store).statistics("fc"), "no statistics of a part of the images"
    result = run_job(job, threads)
    assert (result.outcome.done_before, result.outcome.images, result.computed) == (2, 16, 2)
    a, b = (dn.open(store).statistics("fc")["top_image"].values for store in (result.store, clean))
    assert a.tolist() == b.tolist()


def test_quarantine__of_a_store_that_is_gone_holds_for_no_other(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(batch=4)
    with monkeypatch.context() as patched:
        Failing(patched, {1: 99}, ValueError("torn"))
        with pytest.raises(PartialError, match="torn"):
            run_job(job, threads)
    with pytest.raises(PartialError, match="torn"):  # as a driver does that is started again
        run_job(job, threads, retry=False)
    shutil.rmtree(job.store)
    outcome = run_job(job, threads, retry=False).outcome
    assert (outcome.images, outcome.quarantined) == (40, {})


def test_older_run__does_not_touch_what_a_newer_one_has_done(
    make_job: MakeJob, begin: Callable[[JobSpec], ExtractWork]
) -> None:
    job = make_job()
    old = begin(job)
    new = begin(job)
    assert (old.attempt.number, new.attempt.number) == (1, 2)
    extract_unit(new, 0, new.missing(0))
    with pytest.raises(BusyError, match="another run has taken over; unit 0"):
        extract_unit(old, 0, PARTS)
    assert new.missing(0) == ()
    assert set(attempts(old.store).values()) == {2}


def test_older_run__overtaken_in_mid_unit_does_not_publish(
    make_job: MakeJob, begin: Callable[[JobSpec], ExtractWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = begin(make_job())
    honest = task.batches

    def batches(*args: Any) -> Iterator[Any]:
        yield from honest(*args)
        (work.attempt.folder / "002").mkdir()

    monkeypatch.setattr(task, "batches", batches)
    with pytest.raises(BusyError, match="another run has taken over"):
        extract_unit(work, 0, work.missing(0))
    assert attempts(work.store) == {}


def test_run__ends_at_once_when_it_is_overtaken(
    make_job: MakeJob, begin: Callable[[JobSpec], ExtractWork], threads: ThreadExecutor
) -> None:
    work = begin(make_job())
    (work.attempt.folder / "002").mkdir()
    with pytest.raises(BusyError):
        extract(work, threads)
    assert not list((units_folder(work.store) / "extract").glob("*/*.attempts")), "nothing is tried again and again"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_disk__that_is_full_ends_the_run_with_a_hint_and_no_false_marker(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch, clean: Path, same_store: Same,
    code: int,
) -> None:  # fmt: skip
    job = make_job(batch=4)
    with monkeypatch.context() as patched:
        honest, room = RowWriter._flush, iter(range(4))

        def flush(writer: RowWriter) -> None:
            if next(room, None) is None:
                raise OSError(code, "no room")
            honest(writer)

        patched.setattr(RowWriter, "_flush", flush)
        with pytest.raises(StoreError, match="is full" if code != errno.EROFS else "cannot be written") as caught:
            run_job(job, threads)
    assert caught.value.hint
    done = run_job(job, threads)
    assert done.outcome.done_before < 3
    same_store(done.store, clean)


@pytest.mark.parametrize("where", ["create", "record", "answer"])
def test_disk__that_is_full_for_the_driver_says_the_same(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    job = make_job({"svd": {"layer": "fc", "rank": 2}})
    with monkeypatch.context() as patched:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        target: dict[str, tuple[Any, str]] = {
            "create": (growth, "create"), "record": (recording, "add_variables"), "answer": (answers.results, "write"),
        }  # fmt: skip
        patched.setattr(*target[where], full)
        with pytest.raises(StoreError, match=r"the disk under .*acts.zarr is full") as caught:
            run_job(job, threads)
    assert "run the same command again" in str(caught.value.hint)
    assert run_job(job, threads).computed == 1, "in the same process: the lease was given back"


def test_progress__counts_images_and_says_what_was_done_before(make_job: MakeJob, threads: ThreadExecutor) -> None:
    job = make_job()
    run_job(job, threads)
    (units_folder(job.store) / "extract" / "fc" / "00002.done").unlink()
    seen: list[events.Event] = []
    with events.listening(seen.append):
        run_job(job, threads)
    of_extract = [event for event in seen if event.step == "extract"]
    assert [(e.kind, e.done, e.total) for e in of_extract] == [
        ("started", 32, 40), ("progress", 40, 40), ("finished", 40, 40)]  # fmt: skip
    assert "2 of 3 units were done before" in of_extract[0].message


def test_threads__share_one_network_without_mixing_their_outputs(
    make_job: MakeJob, same_store: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    network_of = pipeline.network_of
    monkeypatch.setattr(pipeline, "network_of", lambda work: loaded.append(network_of(work)) or loaded[-1])
    one, many = ThreadExecutor(1), ThreadExecutor(6)
    settings: dict[str, Any] = {"layers": ["conv1", "relu2"], "images_per_unit": 2, "batch": 1}
    stores = [run_job(make_job(store=f"{n}.zarr", **settings), ex).store for n, ex in enumerate((one, many))]
    for executor in (one, many):
        executor._pool.shutdown()
    same_store(*stores)
    assert len(loaded) == 40
    assert len(set(map(id, loaded))) == 2, "one for each run"
    assert not pipeline._networks, "it is let go of in the end"
