"""`verify` finds what was altered, and only that; after a repair the job makes it again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import CancelledError, StoreError
from dneuro.jobs import recording
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.jobs.verifying import Verification, verify
from dneuro.spec import JobSpec
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]
Same = Callable[[Path, Path], None]
LAYERS = {"relu1": {"keep": "full"}, "relu2": {"keep": "max"}, "fc": {"keep": "stats"}}
STEPS: tuple[Any, ...] = ("moments", {"svd": {"layer": "relu1", "rank": 2}})


@pytest.fixture
def job(make_job: MakeJob) -> JobSpec:
    return make_job(*STEPS, layers=LAYERS)


@pytest.fixture
def store(job: JobSpec, threads: ThreadExecutor) -> Path:
    """Three units: images 0 to 15, 16 to 31, 32 to 39."""
    path = run_job(job, threads).store
    assert isinstance(path, Path)
    shutil.copytree(path, path.with_name("as-written.zarr"))
    return path


def chunk(store: Path, row: int, array: str = "layers/relu1/activation") -> Path:
    return next(path for path in sorted((store / array / "c" / str(row)).rglob("0")) if path.is_file())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_chunk(store: Path) -> None:
    flip(chunk(store, 1))


def truncate(store: Path) -> None:
    path = chunk(store, 1)
    path.write_bytes(path.read_bytes()[:-7])


def delete(store: Path) -> None:
    chunk(store, 1).unlink()


def swap(store: Path) -> None:
    a, b = chunk(store, 0), chunk(store, 1)
    one, other = a.read_bytes(), b.read_bytes()
    a.write_bytes(other)
    b.write_bytes(one)


def flip_partial(store: Path) -> None:
    flip(units_folder(store) / "extract/fc/00001.npz")


def exchange_units(store: Path) -> None:
    folder = units_folder(store) / "extract/fc"
    for suffix in ("npz", "done"):
        one, other = (folder / f"0000{number}.{suffix}" for number in (0, 1))
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)


def alter_result(store: Path) -> None:
    zarr.open_array(store, path="results/svd/relu1/score", mode="r+")[3, 0] = 0.5


def drop_result(store: Path) -> None:
    shutil.rmtree(store / "results/moments/fc")


def alter_statistics(store: Path) -> None:
    zarr.open_array(store, path="layers/relu2/mean", mode="r+")[0] = 9.0


def alter_labels(store: Path) -> None:
    zarr.open_array(store, path="layers/relu1/label", mode="r+")[7] = 0


def reorder_names(store: Path) -> None:
    array = zarr.open_array(store, path="filename", mode="r+")
    array[:] = array[:][::-1]


def break_array(store: Path) -> None:
    (store / "layers/relu2/activation_y/zarr.json").write_text('{"zarr_format": 3')


FAULTS: dict[str, tuple[Callable[[Path], None], list[tuple[str, int | None]]]] = {
    "a flipped bit": (flip_chunk, [("layers/relu1/activation", 1)]),
    "a truncated chunk": (truncate, [("layers/relu1/activation", 1)]),
    "a deleted chunk": (delete, [("layers/relu1/activation", 1)]),
    "two chunks swapped": (swap, [("layers/relu1/activation", 0), ("layers/relu1/activation", 1)]),
    "a flipped bit of partial statistics": (flip_partial, [("layers/fc", 1)]),
    "two units of partial statistics exchanged": (exchange_units, [("layers/fc", 0), ("layers/fc", 1)]),
    "another result": (alter_result, [("results/svd/relu1/score", None)]),
    "a result gone": (drop_result, [("results/moments/fc", None)]),
    "other statistics": (alter_statistics, [("layers/relu2/mean", None)]),
    "another label": (alter_labels, [("layers/relu1/label", None)]),
    "names in another order": (reorder_names, [("filename", None)]),
}


def places(found: Verification) -> list[tuple[str, int | None]]:
    return [(finding.where, finding.unit) for finding in found.damaged]


def test_verify__finds_nothing_wrong_with_what_was_written(store: Path, threads: ThreadExecutor) -> None:
    found = verify(store, client=threads)
    assert (found.ok, found.exit_code, found.findings, found.advice) == (True, 0, [], "")
    assert found.units == 4 * 3, "images and three layers, three units each"
    assert dn.verify(store, client=threads).to_dict() == found.to_dict()


@pytest.mark.parametrize("fault", FAULTS)
def test_verify__names_what_is_damaged_and_repairs_it(
    fault: str, job: JobSpec, store: Path, threads: ThreadExecutor, same_store: Same
) -> None:
    alter, expected = FAULTS[fault]
    alter(store)
    found = verify(store, client=threads)
    assert places(found) == expected
    assert found.exit_code == 4
    assert "--repair" in found.advice
    for finding in found.damaged:
        assert finding.images == (None if finding.unit is None else (16 * finding.unit, 16 * finding.unit + 15))
    repaired = verify(store, repair=True, client=threads)
    assert (repaired.exit_code, repaired.repaired) == (3, len(expected))
    units = {unit for _, unit in expected if unit is not None}
    again = run_job(job, threads)
    assert again.outcome.images == 16 * len(units), "only what was damaged is made again"
    assert verify(store, client=threads).ok
    if "label" not in fault and "names" not in fault:  # those are written in one piece, in other chunks perhaps
        same_store(store, store.with_name("as-written.zarr"))


def drop(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


GONE = {
    "layers": {"layers/relu1", "layers/relu2", "layers/fc"},
    "layers/fc": {"layers/fc"},
    "layers/relu1/activation": {"layers/relu1/activation"},
    "layers/relu1/zarr.json": {"layers/relu1"},
    "status": {"status"},
    "pictures": {"pictures/picture"},
}


@pytest.mark.parametrize("gone", GONE)
def test_verify__names_what_is_not_there_and_the_job_makes_it_again(
    gone: str, job: JobSpec, store: Path, threads: ThreadExecutor, same_store: Same
) -> None:
    drop(store / gone)
    found = verify(store, client=threads)
    assert {where for where, _ in places(found)} == GONE[gone]
    assert found.exit_code == 4
    images = 0 if gone == "layers/fc" else 40  # of statistics alone, what the units found is beside the store
    assert plan_job(job, threads).done == (3 if gone == "layers/fc" else 0)
    heard: list[str] = []
    with events.listening(lambda event: heard.append(event.message)):
        assert run_job(job, threads).outcome.images == images
    assert any("is not there any more" in message for message in heard)
    assert verify(store, client=threads).ok
    same_store(store, store.with_name("as-written.zarr"))


def test_verify__withdraws_what_is_not_there(job: JobSpec, store: Path, threads: ThreadExecutor) -> None:
    for gone in ("layers/relu2", "checksum", "prediction"):
        drop(store / gone)
    repaired = verify(store, repair=True, client=threads)
    assert {where for where, _ in places(repaired)} == {"layers/relu2", "checksum", "prediction"}
    assert {finding.where for finding in verify(store, client=threads).findings} == {"images"}, "relu2 is not asked for"
    assert run_job(job, threads).outcome.images == 40
    assert verify(store, client=threads).ok


def alter_attribute(path: Path) -> None:
    metadata = json.loads(path.read_text())
    metadata["attributes"]["units"] = "mV"
    path.write_text(json.dumps(metadata))


METADATA: dict[str, tuple[Callable[[Path], None], str]] = {
    "zarr.json": (drop, "the root"),
    "layers/zarr.json": (drop, "layers"),
    "layers/relu1/zarr.json": (drop, "layers/relu1"),
    "layers/relu1/activation/zarr.json": (drop, "layers/relu1/activation"),
    "layers/relu2/mean/zarr.json": (alter_attribute, "layers/relu2/mean"),
    "layers/relu2/zarr.json": (alter_attribute, "layers/relu2"),
    "filename/zarr.json": (alter_attribute, "filename"),
    "results/svd/zarr.json": (drop, "results/svd"),
    "results/svd/relu1/zarr.json": (alter_attribute, "results/svd/relu1"),
}


def test_verify__puts_metadata_back(job: JobSpec, store: Path, threads: ThreadExecutor, same_store: Same) -> None:
    for name, (alter, _) in METADATA.items():
        alter(store / name)
    with pytest.raises(StoreError):
        verify(store, client=threads)  # of a store without a root nothing can be listed
    shutil.copy(store.with_name("as-written.zarr") / "zarr.json", store)
    wanted = {where for _, where in METADATA.values()}
    assert {where for where, _ in places(verify(store, client=threads))} == wanted - {"the root"}
    drop(store / "zarr.json")
    repaired = verify(store, repair=True, client=threads)
    assert {where for where, _ in places(repaired)} == wanted
    assert repaired.repaired == len(wanted)
    assert verify(store, client=threads).ok
    same_store(store, store.with_name("as-written.zarr"))
    assert run_job(job, threads).outcome.images == 0


def test_verify__compares_chunks_under_metadata_that_it_put_back(
    job: JobSpec, store: Path, threads: ThreadExecutor
) -> None:
    drop(store / "layers/relu1/activation/zarr.json")
    delete(store)
    repaired = verify(store, repair=True, client=threads)
    assert places(repaired) == [("layers/relu1/activation", None), ("layers/relu1/activation", 1)]
    assert run_job(job, threads).outcome.images == 16
    assert verify(store, client=threads).ok


def test_damaged_partial_statistics__are_named_or_taken_again(
    job: JobSpec, store: Path, threads: ThreadExecutor, make_job: MakeJob
) -> None:
    path = units_folder(store) / "extract/fc/00001.npz"
    assert isinstance(path, Path)
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(StoreError, match=r"extract/fc/00001\.npz cannot be read") as caught:
        run_job(make_job(*STEPS, {"moments": {"name": "again"}}, layers=LAYERS), threads)
    assert f"dneuro verify {store} --repair" in str(caught.value.hint)
    counting = make_job(*STEPS, {"similarity": {"layer": "fc", "metric": ["pearson"]}}, layers=LAYERS)
    assert run_job(counting, threads).outcome.images == 40, "each unit of fc lacks the products"
    assert verify(store, client=threads).ok


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter_digit(path: Path) -> None:
    path.write_text(path.read_text().replace('"zarr_format": 3', '"zarr_format": 4', 1))


RECORDS = ["root", "layers/relu1", "layers/fc", "results/svd/relu1"]


@pytest.mark.parametrize("alter", [drop, empty, truncate_file, alter_digit])
def test_verify__misses_records_of_metadata_and_writes_them_anew(
    alter: Callable[[Path], None], job: JobSpec, store: Path, threads: ThreadExecutor, same_store: Same
) -> None:
    places = [f"metadata/{name}.json" for name in RECORDS]
    before = {place: (units_folder(store) / place).read_bytes() for place in places}
    for place in places:
        alter(units_folder(store) / place)
    found = verify(store, client=threads)
    assert sorted(finding.where for finding in found.findings) == sorted(places)
    assert {finding.kind for finding in found.findings} == {"missing" if alter is drop else "damaged"}
    assert "--repair" in found.advice
    repaired = verify(store, repair=True, client=threads)
    assert all("written anew" in finding.what for finding in repaired.findings)
    assert {place: (units_folder(store) / place).read_bytes() for place in places} == before
    assert verify(store, client=threads).findings == []
    assert run_job(job, threads).outcome.images == 0
    same_store(store, store.with_name("as-written.zarr"))


def test_verify__makes_again_what_is_damaged_and_has_no_record(
    job: JobSpec, store: Path, threads: ThreadExecutor, same_store: Same
) -> None:
    for name in RECORDS:
        drop(units_folder(store) / f"metadata/{name}.json")
    delete(store)
    alter_result(store)
    flip(chunk(store, 1, "pictures/picture"))
    repaired = verify(store, repair=True, client=threads)
    said = {finding.where: finding.what for finding in repaired.findings}
    assert "written anew" in said["metadata/layers/fc.json"]
    for name in ("root", "layers/relu1", "results/svd/relu1"):
        assert "is removed" in said[f"metadata/{name}.json"]
    assert run_job(job, threads).outcome.images == 40
    assert verify(store, client=threads).findings == []
    same_store(store, store.with_name("as-written.zarr"))


def test_metadata__of_an_older_store_are_kept_from_its_next_run_on(
    job: JobSpec, store: Path, threads: ThreadExecutor
) -> None:
    records = units_folder(store) / "metadata"
    before = {path: path.read_bytes() for path in records.rglob("*.json")}
    shutil.rmtree(records)
    alter_labels(store)
    assert verify(store, repair=True, client=threads).repaired == 1
    assert not records.exists(), "with a few of them the others would be missed"
    assert run_job(job, threads).outcome.images == 0
    assert set(records.rglob("*.json")) == before.keys()
    assert verify(store, client=threads).findings == []


def test_verify__repairs_what_was_made_before_metadata_were_kept(
    job: JobSpec, store: Path, threads: ThreadExecutor
) -> None:
    shutil.rmtree(units_folder(store) / "metadata")
    assert verify(store, client=threads).ok
    break_array(store)
    found = verify(store, client=threads)
    assert {where for where, _ in places(found)} == {"layers/relu2/activation_y"}
    verify(store, repair=True, client=threads)
    assert run_job(job, threads).outcome.images == 40
    assert verify(store, client=threads).ok
    before = zarr.open_array(store.with_name("as-written.zarr"), path="layers/relu1/activation", mode="r")
    np.testing.assert_array_equal(zarr.open_array(store, path="layers/relu1/activation", mode="r")[:], before[:])


def test_a_unit_under_anothers_number__is_not_done(
    job: JobSpec, store: Path, threads: ThreadExecutor, make_job: MakeJob
) -> None:
    folder = units_folder(store) / "extract/fc"
    for suffix in ("npz", "done"):
        shutil.copy(folder / f"00001.{suffix}", folder / f"00000.{suffix}")
    (finding,) = verify(store, client=threads).findings
    assert str(finding) == "damaged: layers/fc, unit 0 (images 0 to 15): its marker is that of unit 00001"
    again = run_job(make_job(*STEPS, {"moments": {"name": "again"}}, layers=LAYERS), threads)
    assert again.outcome.images == 16
    results = dn.open(store).results
    assert results["again"]["fc"].load().equals(results["moments"]["fc"].load())


def test_markers_that_name_no_unit__stay_valid(job: JobSpec, store: Path, threads: ThreadExecutor) -> None:
    for path in units_folder(store).glob("extract/*/0*.done"):
        marker = json.loads(path.read_text())
        del marker["unit"]
        path.write_text(json.dumps(marker))
    assert verify(store, client=threads).findings == []
    assert run_job(job, threads).outcome.images == 0


def test_verify__tells_missing_from_damaged(store: Path, threads: ThreadExecutor) -> None:
    (units_folder(store) / "extract/relu2/00002.done").unlink()
    (units_folder(store) / "results/svd/relu1.done").unlink()
    found = verify(store, client=threads)
    assert found.damaged == []
    assert [str(finding) for finding in found.missing] == [
        "missing: layers/relu2, unit 2 (images 32 to 39): is not marked as done",
        "missing: results/svd/relu1: is not marked as done",
    ]
    assert found.exit_code == 3


def test_verify__misses_the_marker_of_statistics(job: JobSpec, store: Path, threads: ThreadExecutor) -> None:
    place = units_folder(store) / "extract/statistics.done"
    marker = json.loads(place.read_text())
    drop(place)
    found = verify(store, client=threads)
    layers = [f"layers/{layer}" for layer in sorted(LAYERS)]
    assert [(one.kind, one.where, one.what) for one in found.findings] == [
        ("missing", layer, "its statistics are not marked as done") for layer in layers
    ]
    assert found.exit_code == 3
    assert run_job(job, threads).outcome.images == 0
    assert json.loads(place.read_text())["checksums"] == marker["checksums"]
    assert verify(store, client=threads).ok


def test_verify__misses_checksums_in_markers(job: JobSpec, store: Path, threads: ThreadExecutor) -> None:
    for name in ("extract/statistics", "results/moments/fc"):
        place = units_folder(store) / f"{name}.done"
        place.write_text(json.dumps({**json.loads(place.read_text()), "checksums": {}}))
    found = verify(store, client=threads)
    assert {where.rpartition("/")[0] for where, _ in places(found)} == {"layers", "results/moments/fc"}
    assert verify(store, repair=True, client=threads).exit_code == 3
    assert run_job(job, threads).outcome.images == 0
    assert verify(store, client=threads).ok


def test_statistics__of_layers_that_a_later_job_does_not_name_stay_compared(
    store: Path, threads: ThreadExecutor, make_job: MakeJob
) -> None:
    run_job(make_job(layers={"fc": {"keep": "stats"}}, statistics=["moments"]), threads)
    assert verify(store, client=threads).findings == []
    alter_statistics(store)
    assert places(verify(store, client=threads)) == [("layers/relu2/mean", None)]


@pytest.fixture
def other(make_job: MakeJob) -> JobSpec:
    """A job that names one of the store's layers, and takes other statistics of it."""
    return make_job(layers={"fc": {"keep": "stats"}}, statistics=["moments"])


def test_statistics__that_are_damaged_stay_missing_until_a_job_names_them(
    job: JobSpec, other: JobSpec, store: Path, threads: ThreadExecutor, same_store: Same
) -> None:
    alter_statistics(store)
    assert verify(store, repair=True, client=threads).exit_code == 3
    run_job(other, threads)
    found = verify(store, client=threads)
    assert [str(one) for one in found.findings] == ["missing: layers/relu2/mean: is not marked as done"]
    assert found.exit_code == 3
    zarr.open_array(store, path="layers/relu2/variance", mode="r+")[0] = 9.0
    repaired = verify(store, repair=True, client=threads)
    assert places(repaired) == [("layers/relu2/variance", None)], "it is still compared"
    run_job(job, threads)
    assert verify(store, client=threads).findings == []
    same_store(store, store.with_name("as-written.zarr"))


@pytest.mark.parametrize("step", ["merge_feeds", "add_variables"])
def test_statistics__of_other_layers_stay_compared_when_their_writing_is_killed(
    job: JobSpec, other: JobSpec, store: Path, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def dying(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(recording, step, dying)
        with pytest.raises(CancelledError):
            run_job(other, threads)
    alter_statistics(store)
    found = verify(store, client=threads)
    assert places(found) == [("layers/relu2/mean", None)]
    unsure = {finding.where.rpartition("/")[0] for finding in found.missing}
    assert unsure == ({"layers/fc"} if step == "add_variables" else set()), "what was about to be written anew"
    verify(store, repair=True, client=threads)
    run_job(job, threads)
    assert verify(store, client=threads).findings == []


def test_statistics__whose_marker_was_lost_stay_missing_until_a_job_names_them(
    job: JobSpec, other: JobSpec, store: Path, threads: ThreadExecutor
) -> None:
    drop(units_folder(store) / "extract/statistics.done")
    run_job(other, threads)
    found = verify(store, client=threads)
    unsure = [("missing", "layers/relu1"), ("missing", "layers/relu2")]
    assert [(one.kind, one.where) for one in found.findings] == unsure
    run_job(job, threads)
    assert verify(store, client=threads).findings == []


def test_verify__takes_another_extractions_marker_for_none(store: Path, threads: ThreadExecutor) -> None:
    path = units_folder(store) / "extract/relu1/00000.done"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "other"}))
    (finding,) = verify(store, client=threads).findings
    assert (finding.kind, finding.unit) == ("missing", 0)
    assert "another extraction" in finding.what


def test_verify__lists_what_is_foreign_and_lets_it_be(store: Path, threads: ThreadExecutor) -> None:
    strange = ["notes.txt", "layers/relu1/activation/c/7/0/0/0", "layers/old/c/0", "layers/relu1/activation/x"]
    for name in strange:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text("mine")
    found = verify(store, repair=True, client=threads)
    assert sorted(finding.where for finding in found.findings) == sorted(strange)
    assert {finding.kind for finding in found.findings} == {"foreign"}
    assert found.exit_code == 0
    assert all((store / name).exists() for name in strange)


def put_foreign_groups(store: Path) -> set[str]:
    """Put into a store what is no layer of it, and return where."""
    layers = zarr.open_group(store, path="layers", mode="r+")
    layers.create_array("numbers", shape=(9,), dtype="f4", dimension_names=("place",))
    for name, attrs in [("mine", {}), ("odd", {"keep": ["all"], "shape": "3", "dtype": 4}), ("images", {"keep": "max"}),
                        ("halved", {"keep": "full", "shape": [0], "dtype": "float32"})]:  # fmt: skip
        group = layers.create_group(name, attributes=attrs)
        group.create_array("values", shape=(5, 3), dtype="f4", dimension_names=("a", "b"))
    return {f"layers/{name}" for name in ("numbers", "mine", "odd", "images", "halved")}


def test_verify__lists_groups_that_are_no_layers_and_lets_them_be(
    make_job: MakeJob, store: Path, threads: ThreadExecutor
) -> None:
    wanted = put_foreign_groups(store)
    found = verify(store, client=threads)
    assert {finding.where for finding in found.findings} == wanted
    assert {finding.kind for finding in found.findings} == {"foreign"}
    assert (found.ok, found.exit_code) == (True, 0)
    alter_labels(store)
    repaired = verify(store, repair=True, client=threads)
    assert {one.where for one in repaired.findings if one.kind == "foreign"} == wanted
    assert list(zarr.open_group(store, path="layers/mine", mode="r")) == ["values"], "no labels are written there"
    assert run_job(make_job(*STEPS, {"moments": {"name": "again"}}, layers=LAYERS), threads).outcome.images == 0
    assert {finding.where for finding in verify(store, client=threads).findings} == wanted
    assert list(dn.open(store)) == ["relu1", "relu2"]


def test_job__refuses_a_group_in_the_place_of_a_new_layer(
    make_job: MakeJob, store: Path, threads: ThreadExecutor
) -> None:
    group = zarr.open_group(store, mode="r+").create_group("layers/conv1")
    group.create_array("mine", data=np.arange(3))
    with pytest.raises(StoreError, match=r"attributes of layers/conv1 in .* the job did not put it there") as caught:
        run_job(make_job(layers={**LAYERS, "conv1": {"keep": "full"}}), threads)
    assert f"move {store}/layers/conv1 away" in str(caught.value.hint)
    assert (store / "layers/conv1/mine/zarr.json").exists()


def replace_attributes(path: Path, **attributes: Any) -> None:
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps({**metadata, "attributes": attributes}))


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("layer", ["relu1", "fc"])
def test_verify__names_a_layer_whose_attributes_were_replaced(
    job: JobSpec, store: Path, threads: ThreadExecutor, same_store: Same, layer: str, recorded: bool
) -> None:
    replace_attributes(store / f"layers/{layer}/zarr.json", note="mine")
    if not recorded:
        shutil.rmtree(units_folder(store) / "metadata")
    found = verify(store, client=threads)
    assert [(one.kind, one.where) for one in found.findings] == [("damaged", f"layers/{layer}")]
    with pytest.raises(StoreError, match=f"attributes of layers/{layer} .* they were replaced") as caught:
        run_job(job, threads)
    assert f"dneuro verify {store} --repair" in str(caught.value.hint)
    verify(store, repair=True, client=threads)
    assert run_job(job, threads).outcome.images == (0 if recorded else 40)
    assert verify(store, client=threads).ok
    same_store(store, store.with_name("as-written.zarr"))


@pytest.mark.parametrize("said", [5, {"identity": "mine"}, {"identity": {"images": "x", "images_per_unit": 0}}])
def test_verify__names_an_origin_that_was_replaced(
    job: JobSpec, store: Path, threads: ThreadExecutor, said: Any
) -> None:
    replace_attributes(store / "zarr.json", dneuro=said)
    with pytest.raises(StoreError, match="its metadata are damaged: it says nothing of its origin") as caught:
        verify(store, client=threads)
    assert caught.value.hint == f"dneuro verify {store} --repair"
    with pytest.raises(StoreError, match=r"do not say what it was made from|was made from something else"):
        run_job(job, threads)
    assert verify(store, repair=True, client=threads).repaired == 1
    assert verify(store, client=threads).ok
    assert run_job(job, threads).outcome.images == 0


@pytest.mark.parametrize("path", ["nothing.zarr", "empty.zarr"])
def test_verify__refuses_what_is_no_store(path: str, tmp_path: Path, threads: ThreadExecutor) -> None:
    zarr.create_group(tmp_path / "empty.zarr")
    with pytest.raises(StoreError, match="no store"):
        verify(tmp_path / path, repair=True, client=threads)
    assert not (tmp_path / f"{path}.units").exists()


@pytest.fixture
def trained_job(make_job: MakeJob) -> JobSpec:
    torch.set_num_threads(1)  # extraction does so, and weights trained before it would have other last bits
    return make_job({"train": {"epochs": 1}}, layers={"fc": {"keep": "max"}})


def flip_weights(folder: Path) -> None:
    flip(next(folder.glob("*.safetensors")))


def drop_weights(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


WEIGHTS: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "a flipped bit": (flip_weights, "not what was trained", 4),
    "a file gone": (drop_weights, "marked as done and not there", 4),
    "all gone": (shutil.rmtree, "not marked as done", 3),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_verify__compares_trained_weights(fault: str, trained_job: JobSpec, threads: ThreadExecutor) -> None:
    store = run_job(trained_job, threads).store
    assert verify(store, client=threads).findings == []
    folder = units_folder(store) / "train"
    assert isinstance(folder, Path)
    weights = next(folder.glob("*.safetensors"))
    before = weights.read_bytes()
    alter, what, code = WEIGHTS[fault]
    alter(folder)
    found = verify(store, client=threads)
    (finding,) = found.findings
    assert finding.where.startswith("train")
    assert what in finding.what
    assert found.exit_code == code
    assert verify(store, repair=True, client=threads).exit_code == 3
    assert run_job(trained_job, threads).outcome.images == 0, "the weights are trained again, and are the same"
    assert weights.read_bytes() == before
    assert verify(store, client=threads).findings == []
