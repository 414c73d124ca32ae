"""Arrays that still lie in a file, as xarray opens them without ``chunks=``: read in parts, and never loaded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from xarray.backends.scipy_ import ScipyArrayWrapper
from xarray.backends.zarr import ZarrArrayWrapper

import dneuro as dn
from dneuro import events
from dneuro.engine import ThreadExecutor

EXECUTOR = ThreadExecutor(2)
VALUES = np.random.default_rng(4).random((24, 6, 2, 2), dtype="f4")
CHUNKS = {"netcdf": (5, 6, 2, 2), "zarr": (7, 3, 2, 2)}
ASKED: dict[str, dict[str, Any]] = {
    "moments": {},
    "top_images": {"k": 3},
    "cooccurrence": {"k": 3},
    "svd": {"rank": 2, "method": "krylov"},
    "nmf": {"rank": 2, "max_iter": 3, "tol": 0},
    "similarity": {"per": "neuron"},
    "similar_places": {},
    "clusters": {"count": 2},
    "kmeans": {"count": 2},
}

Store = Callable[..., xr.DataArray]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what is read of arrays of more than one dim, as it is read."""
    found: list[tuple[int, ...]] = []
    for wrapper in (ScipyArrayWrapper, ZarrArrayWrapper):

        def read(self: Any, key: Any, ask: Any = wrapper.__getitem__) -> Any:
            part = ask(self, key)
            if part.ndim > 1 and part.size:
                found.append(part.shape)
            return part

        monkeypatch.setattr(wrapper, "__getitem__", read)
    return found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Return a function that writes an array to a file, and gives what is there as xarray opens it."""
    monkeypatch.setattr("dneuro.analysis.arrays.BLOCK_BYTES", 5 * VALUES[0].nbytes)  # five images of a netCDF file
    opened: list[xr.Dataset] = []

    def write(x: xr.DataArray, kind: str = "netcdf", chunks: Any = None) -> xr.DataArray:
        path, data = tmp_path / f"acts.{kind}", x.to_dataset(name="a")
        if kind == "netcdf":
            data.to_netcdf(path, engine="scipy")
            opened.append(xr.open_dataset(path, engine="scipy"))
        else:
            data.to_zarr(path, encoding={"a": {"chunks": chunks}}, consolidated=False)
            opened.append(xr.open_dataset(path, engine="zarr", chunks=None, consolidated=False))
        found = opened[-1]["a"]
        assert not found.variable._in_memory
        return found

    yield write
    for data in opened:
        data.close()


def layer() -> xr.DataArray:
    coords = {"image": np.arange(24) + 3, "label": ("image", np.arange(24) % 2)}
    return xr.DataArray(VALUES, dims=("image", "channel", "y", "x"), coords=coords)


@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("analysis", ASKED)
def test_opened__is_read_in_the_chunks_of_its_file(store: Store, reads: Any, kind: str, analysis: str) -> None:
    x, asked = store(layer(), kind, CHUNKS["zarr"]), ASKED[analysis]
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.message)):
        plan = dn.plan(analysis, x, client=EXECUTOR, **asked)
        assert not reads, "a plan reads nothing"
        found = getattr(dn, analysis)(x, client=EXECUTOR, **asked)
    assert set(reads) <= {*itertools.product(*({chunk, length % chunk} for chunk, length in
                                              zip(CHUNKS[kind], x.shape, strict=True)))}  # fmt: skip
    loaded = x.compute().chunk(dict(zip(x.dims, CHUNKS[kind], strict=True)))
    assert dn.plan(analysis, loaded, client=EXECUTOR, **asked) == plan
    xr.testing.assert_equal(found, getattr(dn, analysis)(loaded, client=EXECUTOR, **asked))
    shape = " × ".join(map(str, CHUNKS[kind]))
    said = [note for note in notes if "opened without chunks=" in note]
    assert said == [f"a: opened without chunks=, read in chunks of {shape} all the same"]


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
@pytest.mark.parametrize("analysis", ["similarity", "clusters"])
def test_opened__counts_are_not_loaded_either(store: Store, reads: Any, kind: str, analysis: str) -> None:
    counts = np.random.default_rng(5).integers(0, 9, (12, 8), dtype="i4")
    x = store(xr.DataArray(counts, dims=("channel", "class")), kind, (4, 3))
    asked: dict[str, Any] = {"client": EXECUTOR} | ASKED[analysis]
    asked.pop("per", None)
    dn.plan(analysis, x, **asked)
    assert not reads, "a plan reads nothing"
    found = getattr(dn, analysis)(x, **asked)
    assert reads
    assert kind == "netcdf" or max(map(math.prod, reads)) <= 12
    xr.testing.assert_equal(found, getattr(dn, analysis)(x.compute(), **asked))


def test_opened__matrices_are_read_in_blocks(tmp_path: Path, reads: Any) -> None:
    table = xr.DataArray(VALUES.reshape(24, -1), dims=("image", "channel"))
    dn.similarity(table, client=EXECUTOR).chunk(7).to_zarr(tmp_path / "m.zarr", consolidated=False)
    with xr.open_dataset(tmp_path / "m.zarr", engine="zarr", chunks=None, consolidated=False) as matrices:
        reads.clear()
        plan = dn.plan("mean_similarity", {"a": matrices}, client=EXECUTOR)
        assert not reads, "a plan reads nothing"
        found = dn.mean_similarity({"a": matrices}, client=EXECUTOR)
        assert max(map(math.prod, reads)) == 7 * 7
        in_chunks = {"a": matrices.chunk(7)}
        assert dn.plan("mean_similarity", in_chunks, client=EXECUTOR) == plan
        xr.testing.assert_equal(found, dn.mean_similarity(in_chunks, client=EXECUTOR))


@pytest.mark.parametrize("index", [dn.gini, dn.spectral_flatness, dn.class_selectivity])
def test_opened__indices_are_read_in_chunks(store: Store, reads: Any, index: Any) -> None:
    x = store(layer(), "zarr", CHUNKS["zarr"])
    dn.plan(index.__name__, x, dim="image")
    found = index(x, dim="image")
    assert not reads
    values = found.values
    assert max(map(math.prod, reads)) <= math.prod(CHUNKS["zarr"])
    np.testing.assert_allclose(values, index(x.compute(), dim="image"), rtol=1e-12)


def test_opened__selected_and_turned(store: Store, reads: Any) -> None:
    x = store(layer(), "zarr", CHUNKS["zarr"])
    part = x.isel(image=slice(2, 20), channel=[0, 3, 4]).transpose("y", "channel", "x", "image")
    found = dn.top_images(part, k=4, client=EXECUTOR)
    assert reads
    assert max(map(math.prod, reads)) <= math.prod(CHUNKS["zarr"])
    xr.testing.assert_equal(found, dn.top_images(part.compute(), k=4, client=EXECUTOR))


DIMS = ("image", "channel", "y", "x")


@pytest.mark.parametrize("named", [("dim_0", "dim_1", "dim_2", "dim_3"), ("image", "unit", "y", "x"), DIMS[::-1]])
def test_opened__and_renamed_is_read_in_the_same_chunks(store: Store, reads: Any, named: tuple[str, ...]) -> None:
    x = store(xr.DataArray(VALUES, dims=named), "zarr", CHUNKS["zarr"]).rename(dict(zip(named, DIMS, strict=True)))
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.message)):
        found = dn.moments(x, client=EXECUTOR)
    assert "a: opened without chunks=, read in chunks of 7 × 3 × 2 × 2 all the same" in notes
    assert max(map(math.prod, reads)) == math.prod(CHUNKS["zarr"])
    xr.testing.assert_equal(found, dn.moments(x.compute(), client=EXECUTOR))


@pytest.mark.parametrize("how", ["turned", "cut"])
def test_opened__renamed_so_that_nobody_knows_its_chunks_is_cut_along_the_images(
    store: Store, reads: Any, how: str
) -> None:
    named = ("image", "unit", "row", "x")
    x = store(xr.DataArray(VALUES, dims=named), "zarr", (24, 3, 2, 2)).rename(unit="channel")
    x = x.isel(row=0) if how == "cut" else x.rename(row="y").transpose("x", "y", "channel", "image")
    images = 10 if how == "cut" else 5
    found = dn.moments(x, client=EXECUTOR)
    assert max(map(math.prod, reads)) == images * math.prod(x.sizes[dim] for dim in x.dims if dim != "image")
    xr.testing.assert_allclose(found, dn.moments(x.compute(), client=EXECUTOR))


def test_opened__stored_positions_are_not_loaded_either(store: Store, reads: Any) -> None:
    places = {f"activation_{dim}": (("image", "channel"), VALUES[:, :, 0, i] > 0.5) for i, dim in enumerate("yx")}
    coords = {name: (dims, where.astype("i4")) for name, (dims, where) in places.items()}
    x = store(layer().max(["y", "x"]).assign_coords(coords), "zarr", (7, 3))
    dn.plan("top_images", x, k=4, client=EXECUTOR)
    assert not reads
    found = dn.top_images(x, k=4, client=EXECUTOR)
    assert (7, 3) in reads
    assert max(map(math.prod, reads)) == 21
    expected = dn.top_images(x.compute(), k=4, client=EXECUTOR)
    assert {"top_y", "top_x"} <= set(expected)
    xr.testing.assert_equal(found, expected)


def test_opened__patches_are_read_problem_by_problem(store: Store, reads: Any) -> None:
    values = np.random.default_rng(1).random((6, 20, 9), dtype="f4")
    x = store(xr.DataArray(values, dims=("channel", "sample", "pixel")))
    found = dn.ica(x, rank=2, client=EXECUTOR)
    assert set(reads) == {(1, 20, 9)}
    xr.testing.assert_allclose(found, dn.ica(x.compute(), rank=2, client=EXECUTOR))


def test_opened__in_memory_stays_there(store: Store) -> None:
    x = store(layer()).load()
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.message)):
        dn.moments(x, client=EXECUTOR)
    assert not [note for note in notes if "opened without chunks=" in note]
