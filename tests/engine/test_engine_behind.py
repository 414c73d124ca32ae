"""A plan says how often what stands behind a derived array is computed: as often as it is, counted."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro import events
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError

EXECUTOR = ThreadExecutor(1)


@pytest.fixture(autouse=True)
def a_chunk_is_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 64)
    monkeypatch.setattr("dneuro.engine.regions.BAND_ROWS", 8)


DERIVED: dict[str, Any] = {
    "as it is": lambda x: x,
    "clipped": lambda x: 2 * x.clip(min=0),
    "less its own mean": lambda x: x - x.mean("channel"),
    "selected": lambda x: x.isel(image=slice(3, 90), channel=[0, 2, 5]),
    "less the mean image": lambda x: x - x.mean("image"),
    "divided by the largest": lambda x: x / abs(x).max(),
    "rechunked": lambda x: x.chunk(image=-1, channel=1).chunk(image=6, channel=-1),
}
OF_ALL = {"less the mean image", "divided by the largest", "rechunked"}


@pytest.mark.parametrize("how", DERIVED)
@pytest.mark.parametrize(
    ("analysis", "asked"),
    [("moments", {}), ("svd", {"rank": 2, "method": "gram", "persist": False}), ("top_images", {"k": 3})],
)
def test_plan__says_how_often_what_an_array_is_made_of_is_computed(
    counted: Any, how: str, analysis: str, asked: dict[str, Any]
) -> None:
    values = np.random.default_rng(0).random((96, 6), dtype="f4") + 1
    x, reads = counted(values, (6, 6))
    derived = DERIVED[how](x)
    reads.clear()
    plan = dn.plan(analysis, derived, client=EXECUTOR, **asked)
    assert not reads, "nothing is computed to plan"
    seen: list[events.Event] = []
    with events.listening(seen.append):
        getattr(dn, analysis)(derived, client=EXECUTOR, **asked)
    read = sum(reads.values()) / len(reads) / plan.passes
    if how in OF_ALL:
        assert plan.times_over == pytest.approx(read, rel=0.15)
        assert read > 10
    else:
        assert plan.times_over == 1
        assert read <= 1.5
    said = [event.message for event in seen if event.kind == "warning"]
    assert any("is derived from is computed" in message for message in said) == (how in OF_ALL)
    assert ("is derived from is computed" in str(plan)) == (how in OF_ALL)


def test_plan__of_what_is_computed_already_says_nothing(counted: Any) -> None:
    x, _ = counted(np.random.default_rng(0).random((96, 6), dtype="f4"), (6, 6))
    for derived in (x - x.mean("image").compute(), (x - x.mean("image")).persist(), (x - x.mean("image")).compute()):
        assert dn.plan("moments", derived, client=EXECUTOR).times_over == 1


def test_plan__of_tiles_says_it_too(counted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.analysis.pairing.ROWS_NEURONS", 0)
    x, _ = counted(np.random.default_rng(0).random((96, 6), dtype="f4"), (6, 6))
    assert dn.plan("similarity", x, client=EXECUTOR).times_over == 1
    assert dn.plan("similarity", x - x.mean("image"), client=EXECUTOR).times_over > 10


def test_plan__of_arrays_in_memory_says_nothing() -> None:
    x = xr.DataArray(np.ones((96, 6), "f4"), dims=("image", "channel"))
    assert dn.plan("moments", x, client=EXECUTOR).times_over == 1


@pytest.mark.parametrize("keep", [(slice(None), slice(3)), (slice(3), slice(None))])
def test_blocks__that_are_not_as_declared_are_refused(keep: tuple[slice, slice], threads: ThreadExecutor) -> None:
    """Left alone, what is laid out for the declared shape would keep whatever was in memory before."""
    whole = da.from_array(np.random.default_rng(0).random((30, 6), dtype="f4"), chunks=(10, 6))
    x = xr.DataArray(whole.map_blocks(lambda block: block[keep], dtype="f4"), dims=("image", "channel"))
    for ask in (dn.moments, dn.similarity, dn.top_images):
        with pytest.raises(ArrayError, match=r"declared to have \(\d+, 6\) there") as caught:
            ask(x, client=threads)
        assert "chunks=" in str(caught.value.hint)
