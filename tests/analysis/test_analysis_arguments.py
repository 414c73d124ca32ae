"""What is asked in a way that cannot be is refused in words, and names that clash are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, UsageError

EXECUTOR = ThreadExecutor(1)
X = xr.DataArray(np.random.default_rng(0).random((30, 6), dtype="f4"), dims=("image", "channel"))
TWO = [X.rename("a"), X.rename("b")]


@pytest.mark.parametrize(
    "ask",
    [
        *(lambda xs=xs: dn.coupled_nmf(xs, rank=2) for xs in (5, None, (x for x in TWO), "ab")),
        *(lambda w=w: dn.coupled_nmf(TWO, rank=2, weights=w) for w in (5, ["a", "b"], {"a": 1, "b": 2}, [1, None])),
        *(lambda r=r: dn.nmf(X, rank=r, init=dn.nmf(X, rank=2, max_iter=1)) for r in (None, "a", 2.5, True)),
        *(lambda at=at: dn.svd(X, threshold=3.0, threshold_images=at) for at in ("a", [1], 2.5)),
        *(lambda name=name: dn.plan(name, X) for name in (5, None, ["svd"])),
        *(lambda out=out: dn.similarity(X, metric="pearson", out=out) for out in (5, "", "s3://bucket/m.zarr")),
        lambda: dn.gini(X, dim=5),
        lambda: dn.gini(["a", "b"]),
        lambda: dn.gini([[1, 2], [3]]),
        lambda: dn.class_selectivity(np.array([1j, 2])),
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
        ("top_images", "rank", {"k": 2}, "top_image"),
        ("cooccurrence", "class", {"k": 2}, "count"),
    ],
)
def test_result__keeps_a_dim_of_the_input_apart_from_its_own(name: str, dim: str, asked: Any, found: str) -> None:
    labels = {"label": ("image", np.arange(30) % 3), "channel": np.arange(10, 16)}
    x, per = X.assign_coords(labels), {"per": "neuron"} if name in ("kmeans", "top_images", "cooccurrence") else {}
    plain = getattr(dn, name)(x, client=EXECUTOR, **asked, **per)
    clashing = getattr(dn, name)(x.rename(channel=dim), client=EXECUTOR, **asked, **per)
    assert f"input_{dim}" in clashing[found].dims
    back = clashing[found].rename({f"input_{dim}": "channel"})
    assert back.coords["channel"].values.tolist() == list(range(10, 16))
    np.testing.assert_array_equal(back.transpose(*plain[found].dims), plain[found])


@pytest.mark.parametrize("index", [dn.gini, dn.spectral_flatness, dn.class_selectivity])
def test_index__leaves_out_images_that_take_no_part(index: Any) -> None:
    rows = np.arange(30) % 3 > 0
    status = xr.where(xr.DataArray(rows, dims="image"), 0, 1)
    masked = X.where(xr.DataArray(rows, dims="image"), 99.0).assign_coords(status=status)
    np.testing.assert_array_equal(index(masked, dim="image"), index(X[rows], dim="image"))
    some = dn.select(X, images=[1, 5, 7, 8])
    np.testing.assert_array_equal(index(some, dim="image"), index(X[[1, 5, 7, 8]], dim="image"))
