"""Arrays that dask would rechunk by a shuffle between all workers: each block of theirs is computed by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine import ThreadExecutor
from dneuro.engine.rechunked import by_tasks

VALUES = (np.random.default_rng(0).standard_normal((600, 96)) * 0.95 ** np.arange(96)).astype("f4")

HOWS: dict[str, Callable[[xr.DataArray], xr.DataArray]] = {
    "by columns": lambda x: x.chunk(image=-1, channel=4),
    "by columns and back": lambda x: x.chunk(image=-1, channel=4).chunk(image=40, channel=-1),
    "by columns, derived": lambda x: abs(2 * x.chunk(image=-1, channel=4)).chunk(image=100),
    "less the mean of columns": lambda x: x - x.chunk(image=-1, channel=4).mean("image").chunk(channel=-1),
}


@pytest.fixture(autouse=True)
def shuffles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small arrays are rechunked as large ones are, and are many blocks."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 20_000)
    with dask.config.set({"array.rechunk.method": "p2p"}):
        yield


def has_shuffle(array: Any) -> bool:
    return any(type(layer).__name__ == "P2PRechunkLayer" for layer in array.__dask_graph__().layers.values())


@pytest.mark.parametrize(
    ("analysis", "asked"),
    [
        ("moments", {}),
        ("moments", {"per": "image"}),
        ("similarity", {}),
        ("svd", {"rank": 3, "method": "krylov", "persist": True}),
        ("svd", {"rank": 3, "method": "krylov", "persist": False}),
    ],
)
@pytest.mark.parametrize("how", HOWS)
def test_rechunked__under_a_client_is_what_it_is_without(
    cluster: Any, how: str, analysis: str, asked: dict[str, Any]
) -> None:
    x = xr.DataArray(da.from_array(VALUES, chunks=(40, 96)), dims=("image", "channel"))
    y = HOWS[how](x)
    assert has_shuffle(y.data), "dask makes no shuffle here any more"
    with dask.config.set({"array.rechunk.method": "tasks"}):
        plain = HOWS[how](x)
    assert not has_shuffle(plain.data)
    there = getattr(dn, analysis)(y, client=cluster, **asked)
    here = getattr(dn, analysis)(plain, client=ThreadExecutor(2), **asked)
    for name in here:
        np.testing.assert_array_equal(there[name].values, here[name].values, err_msg=name)
    assert dn.plan(analysis, y, client=cluster, **asked) == dn.plan(analysis, plain, client=cluster, **asked)


def test_turned__of_positions_in_pieces_is_read_by_itself_too(cluster: Any) -> None:
    values = VALUES.reshape(600, 6, 4, 4)
    x = xr.DataArray(da.from_array(values, chunks=(60, 2, 2, 2)), dims=("image", "channel", "y", "x"))
    there = dn.similarity(x.isel(image=slice(50)), per="image", client=cluster)
    here = dn.similarity(xr.DataArray(values[:50], dims=x.dims), per="image", client=ThreadExecutor(2))
    np.testing.assert_allclose(there["pearson"].values, here["pearson"].values, atol=1e-6)


def test_by_tasks__leaves_other_arrays_as_they_are() -> None:
    for array in (da.zeros((6, 4), chunks=2), da.zeros((6, 4), chunks=2).sum(axis=0)):
        assert by_tasks(array) is array
