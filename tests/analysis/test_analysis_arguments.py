"""What is asked in a way that cannot be is refused in words, and names that clash are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, UsageError

EXECUTOR = ThreadExecutor(1)
X = xr.DataArray(np.random.default_rng(0).random((30, 6), dtype="f4"), dims=("image", "channel"))
TWO = [X.rename("a"), X.rename("b")]
PATCHES = xr.DataArray(np.random.default_rng(1).random((3, 20, 4, 4, 3), dtype="f4"),
                       dims=("channel", "sample", "row", "column", "color"))  # fmt: skip


LABELS = {"label": ("image", np.arange(30) % 3)}
OF_EACH = (("image", "channel"), np.ones((30, 6), "u1"))


def unknown(x: xr.DataArray) -> xr.DataArray:
    """The same array, of which nobody knows how many channels it has."""
    data = da.from_array(x.values, chunks=(1, *x.shape[1:]))
    return xr.DataArray(data[data[(slice(None), *[0] * (x.ndim - 1))] > -1], dims=x.dims)


@pytest.mark.parametrize(
    "ask",
    [
        *(lambda xs=xs: dn.coupled_nmf(xs, rank=2) for xs in (5, None, (x for x in TWO), "ab")),
        *(lambda w=w: dn.coupled_nmf(TWO, rank=2, weights=w) for w in (5, ["a", "b"], {"a": 1, "b": 2}, [1, None])),
        *(lambda r=r: dn.nmf(X, rank=r, init=dn.nmf(X, rank=2, max_iter=1)) for r in (None, "a", 2.5, True)),
        *(lambda at=at: dn.svd(X, threshold=3.0, threshold_images=at) for at in ("a", [1], 2.5)),
        *(lambda name=name: dn.plan(name, X) for name in (5, None, ["svd"])),
        *(lambda out=out: dn.similarity(X, metric="pearson", out=out) for out in (5, "", True, "\0m", "\ud800")),
        *(lambda out=out: dn.patch_components(PATCHES, rank=2, out=out) for out in (5, "", True, "\0m")),
        lambda: dn.patch_components(PATCHES, rank=2, out="m.zarr", checkpoint="s.zarr"),
        *(lambda act=act: act("\0m") for act in (dn.open, dn.verify, dn.report, dn.export)),
        *(lambda slots=slots: ThreadExecutor(slots) for slots in (-1, 0, "a", 1.5, True)),
        *(lambda memory=memory: ThreadExecutor(1, memory) for memory in (-1, 0, "2GiB")),
        *(lambda tf32=tf32: dn.on_device("cuda", tf32=tf32).__enter__() for tf32 in ("yes", 2, None)),
        lambda: dn.moments(X.rename(channel=7)),
        *(lambda of=of: dn.moments(X.assign_coords(status=of)) for of in (OF_EACH, 0)),
        lambda: dn.select(X.assign_coords(correct=OF_EACH), correct=True),
        lambda: dn.select(X.assign_coords(selected=OF_EACH), sample=3),
        lambda: dn.gini(X.assign_coords(status=OF_EACH), dim="image"),
        *(lambda names=names: dn.cooccurrence(X.assign_coords(LABELS).assign_attrs(class_names=names), k=2)
          for names in (5, "cat", {"a": 1}, np.array("cat"))),
        lambda: dn.ica(PATCHES[..., 0].rename(row=3), rank=2),
        lambda: dn.ica(unknown(PATCHES[..., 0]), rank=2),
        lambda: dn.patch_components(unknown(PATCHES), rank=2),
        lambda: dn.patch_components(PATCHES.rename(channel="component"), rank=2),
        lambda: dn.gini(X, dim=5),
        lambda: dn.gini(["a", "b"]),
        lambda: dn.gini([[1, 2], [3]]),
        lambda: dn.class_selectivity(np.array([1j, 2])),
        lambda: dn.class_selectivity(X.astype("c8"), dim="channel"),
        lambda: dn.gini(X.astype(str), dim="channel"),
        *(lambda index=index: index(X.to_dataset(name="a"), dim="channel")
          for index in (dn.gini, dn.spectral_flatness, dn.class_selectivity)),
    ],
)
def test_arguments__that_cannot_be_are_refused_with_a_way_out(
    ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        ask()
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_similarity__writes_into_the_home_folder_and_not_below_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    dn.similarity(X, metric="pearson", out="~/m.zarr", client=EXECUTOR)
    assert (tmp_path / "m.zarr").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ArrayError, match="is no folder"):
        dn.similarity(X, metric="pearson", out=tmp_path / "file" / "m.zarr", client=EXECUTOR)


@pytest.mark.parametrize(
    ("name", "dim", "asked", "found"),
    [
        ("svd", "component", {"rank": 2}, "vector"),
        ("svd", "component", {"rank": 6}, "vector"),
        ("nmf", "component", {"rank": 2}, "neuron_weight"),
        ("nmf", "iteration", {"rank": 2}, "neuron_weight"),
        ("random_projections", "direction", {"directions": 2}, "vector"),
        ("kmeans", "group", {"count": 2}, "centre"),
        ("kmeans", "rank", {"count": 2}, "centre"),
        ("kmeans", "class", {"count": 2}, "centre"),
        ("random_projections", "rank", {"directions": 2}, "vector"),
        ("single_neurons", "chosen", {"count": 2, "baseline": 1}, "variance"),
        ("single_neurons", "rank", {"count": 2, "baseline": 1}, "variance"),
        ("similarity", "neighbour", {"neighbours": 2, "metric": "pearson"}, "pearson_value"),
        ("clusters", "group", {"count": 2}, "cluster"),
        ("clusters", "rank", {"count": 2}, "cluster"),
        ("clusters", "column", {"count": 2}, "order"),
        ("regression", "rank", {"source": X, "folds": 2}, "coefficient"),
        ("regression", "source_channel", {"source": X, "folds": 2}, "coefficient"),
        ("top_images", "rank", {"k": 2}, "top_image"),
        ("cooccurrence", "class", {"k": 2}, "count"),
    ],
)
def test_result__keeps_a_dim_of_the_input_apart_from_its_own(name: str, dim: str, asked: Any, found: str) -> None:
    x = X.assign_coords(LABELS).assign_coords(channel=np.arange(10, 16))
    per = {"per": "neuron"} if name in ("kmeans", "top_images", "cooccurrence") else {}
    plain = getattr(dn, name)(x, client=EXECUTOR, **asked, **per)
    clashing = getattr(dn, name)(x.rename(channel=dim), client=EXECUTOR, **asked, **per)
    assert f"input_{dim}" in clashing[found].dims
    back = clashing[found].rename({f"input_{dim}": "channel"})
    assert back.coords["channel"].values.tolist() == list(range(10, 16))
    np.testing.assert_array_equal(back.transpose(*plain[found].dims), plain[found])


def test_result__keeps_even_a_dim_apart_that_is_called_so_already() -> None:
    x = xr.DataArray(np.random.default_rng(2).random((30, 3, 2)), dims=("image", "component", "input_component"))
    found = dn.svd(x, rank=2, client=EXECUTOR)["vector"]
    assert found.dims == ("component", "input_input_component", "input_component")
    x = PATCHES[..., 0].rename(channel="component").assign_coords(component=[5, 6, 7])
    found = dn.ica(x, rank=2, client=EXECUTOR)["mixing"]
    assert found.dims == ("input_component", "component", "row", "column")
    assert found["input_component"].values.tolist() == [5, 6, 7]
    plain = dn.ica(x.rename(component="channel"), rank=2, client=EXECUTOR)["mixing"]
    np.testing.assert_array_equal(found, plain)


def test_layer__is_not_called_after_the_name_that_dask_gives_an_array() -> None:
    made = da.from_array(X.values, chunks=(7, 6))
    assert str(made.name).startswith("array-")
    x = xr.DataArray(made, dims=X.dims)
    for lazy in (x, x.chunk(image=5), 2 * x, xr.DataArray(da.from_array(X.values, name=False), dims=X.dims)):
        assert dn.moments(lazy, client=EXECUTOR).attrs["layer"] == ""
    assert dn.moments(x.rename("relu-2"), client=EXECUTOR).attrs["layer"] == "relu-2"


def test_checkpoint__of_an_array_without_a_name_goes_on_with_other_chunks(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"rank": 2, "tol": 0, "checkpoint": tmp_path / "state.npz", "client": EXECUTOR}
    first, second = (xr.DataArray(da.from_array(X.values, chunks=chunks), dims=X.dims) for chunks in ((7, 6), (30, 6)))
    dn.nmf(first, max_iter=3, **asked)
    assert dn.nmf(second, max_iter=5, **asked).attrs["passes"] == 1 + 2


def test_class_names__may_be_none() -> None:
    x = X.assign_coords(LABELS).assign_attrs(class_names=None)
    assert dn.cooccurrence(x, k=2, client=EXECUTOR)["class"].values.tolist() == ["0", "1", "2"]


@pytest.mark.parametrize("index", [dn.gini, dn.spectral_flatness, dn.class_selectivity])
def test_index__leaves_out_images_that_take_no_part(index: Any) -> None:
    rows = np.arange(30) % 3 > 0
    status = xr.where(xr.DataArray(rows, dims="image"), 0, 1)
    masked = X.where(xr.DataArray(rows, dims="image"), 99.0).assign_coords(status=status)
    np.testing.assert_array_equal(index(masked, dim="image"), index(X[rows], dim="image"))
    some = dn.select(X, images=[1, 5, 7, 8])
    np.testing.assert_array_equal(index(some, dim="image"), index(X[[1, 5, 7, 8]], dim="image"))
