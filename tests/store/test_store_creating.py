from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from dneuro.errors import StoreError
from dneuro.store import creating, results
from dneuro.store.layout import REGISTRY, ArrayPlan, LayerPlan, root_arrays
from dneuro.store.units import NOT_YET

IMAGES, UNIT = 20, 8


def coords(classes: tuple[str, ...] = ("cat", "Käfer 甲虫")) -> xr.Dataset:
    names = np.array([f"ø/{i}.png" for i in range(IMAGES)], dtype=object)
    wnids = [f"n{number:08d}" for number in range(len(classes))]
    return creating.root_coords(names, np.arange(IMAGES) % 3 - 1, classes, wnids)


def every_array() -> list[ArrayPlan]:
    plans = root_arrays(IMAGES, UNIT, predictions=True, labels=True, picture=(4, 4, 1))
    for name, keep in [("a", "full"), ("b", "max"), ("c", "mean")]:
        plans += LayerPlan(name, keep, (3, 2, 2), "float16").arrays(IMAGES, UNIT)
    return plans


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "acts.zarr"
    creating.create(path, coords(), every_array(), {"job": "test"})
    return path


def test_create__describes_every_array_of_the_registry(store: Path) -> None:
    root = zarr.open_group(store, mode="r")
    groups = {"picture": "pictures", "activation": "layers/a", "activation_mean": "layers/c"}
    groups |= dict.fromkeys(["activation_max", "activation_y", "activation_x"], "layers/b")
    for name, meaning in REGISTRY.items():
        array = root[f"{groups.get(name, '')}/{name}".lstrip("/")]
        dims = tuple(d for known in meaning.dims for d in (("channel", "y", "x") if known == "..." else (known,)))
        assert array.metadata.dimension_names == dims, name
        assert array.attrs["units"] == meaning.unit, name
        assert array.attrs["long_name"] == meaning.text, name
        if meaning.dtype not in ("", "string"):
            assert array.dtype == meaning.dtype, name


def test_create__says_that_nothing_is_extracted_yet(store: Path) -> None:
    root = zarr.open_group(store, mode="r")
    assert (root["status"][:] == NOT_YET).all()
    assert (root["prediction"][:] == -1).all()
    assert not root["correct"][:].any()
    for name in ("layers/a/activation", "layers/b/activation_max", "layers/c/activation_mean"):
        assert np.isnan(root[name][:]).all(), name
    opened = xr.open_datatree(store, engine="zarr", consolidated=False)
    assert opened["status"].dtype == np.uint8, "no reader takes it for a missing value"
    assert opened["status"].values.tolist() == [NOT_YET] * IMAGES


def test_create__keeps_text_as_it_is(store: Path) -> None:
    opened = xr.open_zarr(store, consolidated=False)
    assert opened["filename"].values.tolist() == [f"ø/{i}.png" for i in range(IMAGES)]
    assert opened["class"].values.tolist() == ["cat", "Käfer 甲虫"]
    assert opened["wnid"].values.tolist() == ["n00000000", "n00000001"]
    assert opened["label"].values.tolist() == [i % 3 - 1 for i in range(IMAGES)]
    assert opened["label"].dtype == np.int64
    assert opened.attrs["dneuro"] == {"job": "test"}
    assert creating.exists(store)


def test_create__makes_all_of_it_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(creating, "create_arrays", fail)
    with pytest.raises(OSError, match="no space"):
        creating.create(tmp_path / "acts.zarr", coords(), every_array(), {})
    assert list(tmp_path.iterdir()) == []


def test_exists__is_false_where_nothing_is(tmp_path: Path) -> None:
    assert not creating.exists(tmp_path / "acts.zarr")


@pytest.mark.parametrize("what", ["file", "empty folder", "photos", "group", "array", "broken", "zarr 2"])
def test_exists__refuses_what_is_no_store(tmp_path: Path, what: str) -> None:
    path = tmp_path / "mine"
    if what == "file":
        path.write_text("precious")
    elif what == "group":
        zarr.create_group(path)
    elif what == "array":
        zarr.create_array(path, shape=(3,), dtype="f4")
    else:
        path.mkdir()
        name = {"photos": "a.png", "broken": "zarr.json", "zarr 2": ".zgroup"}.get(what)
        if name:
            (path / name).write_text('{"zarr_format": 2')
    with pytest.raises(StoreError, match=r"mine (exists and is not a store|is no Zarr group)") as caught:
        creating.exists(path)
    assert "store:" in str(caught.value.hint)


def test_add_group__replaces_what_was_there(store: Path) -> None:
    for numbers in ([1.0, 2.0], [3.0]):
        creating.add_group(store, "results/step/a", xr.Dataset({"value": ("rank", numbers)}, attrs={"n": 1}), [])
    found = xr.open_zarr(store, group="results/step/a", consolidated=False)
    assert found["value"].values.tolist() == [3.0]
    assert sorted(p.name for p in store.parent.iterdir()) == ["acts.zarr"]


@pytest.mark.parametrize("moment", ["before it is written", "before it is moved in place"])
def test_add_group__that_fails_leaves_no_half(store: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    creating.add_group(store, "results/step/a", xr.Dataset({"value": ("rank", [1.0])}), [])

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space")

    if moment == "before it is written":
        monkeypatch.setattr(creating, "create_arrays", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        creating.add_group(store, "results/step/a", xr.Dataset({"value": ("rank", [2.0])}), [])
    found = xr.open_zarr(store, group="results/step/a", consolidated=False)
    assert found["value"].values.tolist() == [1.0]
    assert sorted(p.name for p in store.parent.iterdir()) == ["acts.zarr"]


def test_add_variables__leaves_the_rest_of_the_group_alone(store: Path) -> None:
    creating.add_group(store, "layers/d", coords(()).assign_attrs(layer="d"), [])
    before = {p: p.stat().st_mtime_ns for p in (store / "layers/d").rglob("*") if p.parent.name != "d"}
    for numbers in ([1.0, 2.0, 3.0], [4.0, 5.0]):
        creating.add_variables(store, "layers/d", xr.Dataset({"mean": ("channel", numbers)}, attrs={"layer": "?"}))
    found = xr.open_zarr(store, group="layers/d", consolidated=False)
    assert found["mean"].values.tolist() == [4.0, 5.0]
    assert found.attrs == {"layer": "d"}
    assert found["filename"].attrs["long_name"] == REGISTRY["filename"].text
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_results__are_marked_once_they_are_there(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = xr.Dataset({"mean": ("channel", [1.0])}, attrs={"analysis": "moments"})
    results.write(store, "moments", "a", result, "f1", {"seconds": 0.1})
    assert results.unit(store, "moments", "a").marker("f1") is not None
    found = xr.open_zarr(store, group="results/moments/a", consolidated=False)
    assert found.attrs == {"analysis": "moments", "seconds": 0.1, "fingerprint": "f1"}

    def fail(*_: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr(results, "add_group", fail)
    with pytest.raises(OSError, match="no space"):
        results.write(store, "moments", "a", result, "f2", {})
    assert results.unit(store, "moments", "a").read() is None, "what is being replaced no longer counts as done"
