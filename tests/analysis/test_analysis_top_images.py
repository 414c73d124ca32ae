"""Top images to the last bit, and what is counted of them."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro import events
from dneuro.analysis.cooccurrence import count_classes
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, MemoryLimitError

RNG = np.random.default_rng(0)
RELU = np.maximum(RNG.integers(-30, 6, (400, 6, 3, 3)) / 4, 0).astype("f4")  # nearly all ties


@pytest.mark.parametrize("chunks", [(400, 6, 3, 3), (7, 6, 3, 3), (50, 1, 2, 3), ((1, 199, 200), 4, 3, 1)])
@pytest.mark.parametrize("per", ["channel", "neuron"])
def test_top_images__same_bits_under_any_chunking(chunks: Any, per: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 2000)
    dims = ("image", "channel", "y", "x")
    whole = dn.top_images(xr.DataArray(RELU, dims=dims), k=30, per=per, client=ThreadExecutor(1))
    cut = dn.top_images(xr.DataArray(da.from_array(RELU, chunks=chunks), dims=dims), k=30, per=per)
    assert set(whole) == set(cut)
    for name in whole:
        assert whole[name].values.tobytes() == cut[name].values.tobytes(), name
        assert whole[name].dtype == cut[name].dtype
    ties = (whole["top_value"].values[..., 1:] == whole["top_value"].values[..., :-1]).mean()
    assert ties > 0.5
    where = whole["top_value"].values[..., 1:] == whole["top_value"].values[..., :-1]
    assert (np.diff(whole["top_image"].values)[where] > 0).all(), "of equal values the lower image first"


def test_top_images__more_wanted_than_there_are() -> None:
    x = xr.DataArray(RELU[:5, :, 0, 0], dims=("image", "channel"))
    found = dn.top_images(x, k=100)
    assert found.sizes == {"channel": 6, "rank": 5}
    assert (np.sort(found["top_image"], axis=1) == np.arange(5)).all()
    plan = dn.plan("top_images", x, k=100)
    assert plan.result_bytes == sum(found[name].nbytes for name in found)


def test_top_images__carry_the_classes_of_the_images() -> None:
    labels = RNG.integers(0, 9, 400)
    x = xr.DataArray(RELU, dims=("image", "channel", "y", "x"), coords={"label": ("image", labels)})
    found = dn.top_images(x, k=4)
    np.testing.assert_array_equal(found["top_label"], labels[found["top_image"]])
    np.testing.assert_array_equal(found["bottom_label"], labels[found["bottom_image"]])
    assert dn.plan("top_images", x, k=4).result_bytes == sum(found[name].nbytes for name in found)


def test_top_images__float64_is_refused_where_it_would_be_rounded() -> None:
    x = xr.DataArray(RELU.astype("f8"), dims=("image", "channel", "y", "x"))
    with pytest.raises(ArrayError, match="orders float32 exactly, the array holds float64") as caught:
        dn.top_images(x, k=3)
    assert caught.value.hint == "x.astype('float32')"
    means = dn.top_images(x, k=3, pool="mean")
    np.testing.assert_array_equal(
        means["top_value"], dn.top_images(x.astype("f4"), k=3, pool="mean")["top_value"]
    )


@pytest.mark.parametrize("k", [0, -1, 2.0, "3", True, None])
def test_top_images__k_is_a_whole_number(k: Any) -> None:
    with pytest.raises(ArrayError, match="at least 1"):
        dn.top_images(xr.DataArray(RELU, dims=("image", "channel", "y", "x")), k=k)
    assert dn.top_images(xr.DataArray(RELU, dims=("image", "channel", "y", "x")), k=np.int64(2)).sizes["rank"] == 2


def labelled(labels: Any, **attrs: Any) -> xr.DataArray:
    values = np.array([[3.0, 0], [2, 0], [1, -1], [4, 0]], "f4")
    return xr.DataArray(values, dims=("image", "channel"), coords={"label": ("image", labels)}, attrs=attrs)


def test_cooccurrence__counts_only_what_is_active_and_has_a_class() -> None:
    found = dn.cooccurrence(labelled([0, 2, -1, 2], class_names=["ant", "bee", "cow"]), k=3)
    assert found["count"].values.tolist() == [[1, 0, 2], [0, 0, 0]]
    assert found["class"].values.tolist() == ["ant", "bee", "cow"]
    assert dn.cooccurrence(labelled([0, 2, -1, 2]), k=3)["class"].values.tolist() == ["0", "1", "2"]


def test_cooccurrence__says_when_a_class_is_too_small() -> None:
    seen: list[events.Event] = []
    with events.listening(seen.append):
        dn.cooccurrence(labelled([0, 1, 1, 1]), k=3)
        dn.cooccurrence(labelled([0, 0, 1, 1]), k=2)
    notes = [event.message for event in seen if event.kind == "note"]
    assert len(notes) == 1
    assert "the smallest class has 1 images, fewer than k=3" in notes[0]


def test_cooccurrence__with_fewer_readable_images_than_k() -> None:
    x = labelled([0, 0, 1, 1]).assign_coords(status=("image", [0, 1, 0, 0]))
    assert dn.cooccurrence(x, k=100)["count"].values.tolist() == [[1, 2], [0, 0]]


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (labelled([0, 0, 0, 0]).drop_vars("label"), "no coordinate 'label'"),
        (labelled([-1, -1, -1, -1]), "none of these images has one"),
    ],
)
def test_cooccurrence__without_classes(x: xr.DataArray, said: str) -> None:
    with pytest.raises(ArrayError, match=said):
        dn.cooccurrence(x, k=2)


def test_count_classes__needs_as_many_ranks() -> None:
    top = dn.top_images(labelled([0, 1, 0, 1]), k=2)
    with pytest.raises(ArrayError, match="hold 2 ranks, k=3 needs more"):
        count_classes(top, np.array([0, 1, 0, 1]), ["a", "b"], k=3)


def test_cooccurrence__is_planned_with_its_table_of_counts() -> None:
    values = np.random.default_rng(0).random((40, 300), dtype="f4")
    x = xr.DataArray(values, dims=("image", "channel"), coords={"label": ("image", np.arange(40) * 100)})
    for k in (2, 30):
        plan = dn.plan("cooccurrence", x, k=k)
        found = dn.cooccurrence(x, k=k)
        assert plan.result_bytes >= found["count"].nbytes == 8 * 300 * 3901
        assert plan.driver_bytes > plan.result_bytes
    many = x.assign_coords(label=("image", np.arange(40) * 25_641))
    with pytest.raises(MemoryLimitError, match=r"cooccurrence needs .* in the driver") as caught:
        dn.cooccurrence(many, k=5, client=ThreadExecutor(1, memory=1 << 30))
    assert caught.value.hint


def test_top_images__k_of_a_narrow_type() -> None:
    x = xr.DataArray(np.random.default_rng(0).random((70_000, 2), dtype="f4"), dims=("image", "channel"))
    xr.testing.assert_equal(dn.top_images(x, k=np.int16(3)), dn.top_images(x, k=3))  # type: ignore[arg-type]
