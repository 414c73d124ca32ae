"""k-means of images against scikit-learn from the same first centres."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import dneuro as dn
from dneuro import events
from dneuro.engine import ThreadExecutor, get_executor
from dneuro.errors import ArrayError, MemoryLimitError, NonFiniteError

EXECUTOR = ThreadExecutor(2)


@pytest.fixture
def threads_client() -> Iterator[Any]:
    """A client whose only worker is a thread of this process."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, memory_limit="4GiB",
            dashboard_address=None, silence_logs=50,
        ) as running,
        Client(running) as client,
    ):  # fmt: skip
        yield client


RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 120)
VALUES = (RNG.standard_normal((120, 5, 2, 2)) + 6 * RNG.standard_normal((4, 5, 2, 2))[LABELS]).astype("f4")


def layer(values: Any = VALUES, chunks: Any = None, **coords: Any) -> xr.DataArray:
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    return xr.DataArray(data, dims=("image", "channel", "y", "x")[: values.ndim], coords=coords, name="layer")


@pytest.mark.parametrize(("per", "pool"), [("channel", "max"), ("channel", "mean"), ("neuron", "max")])
@pytest.mark.parametrize("how", [None, "image", "neuron"])
def test_kmeans__is_a_fixed_point_of_scikit_learn(per: Any, pool: Any, how: Any) -> None:
    x = layer(chunks=(50, 2, 2, 1), label=("image", LABELS))
    found = dn.kmeans(x, count=4, per=per, pool=pool, standardize=how, tol=0, client=EXECUTOR)
    cells = VALUES.reshape(120, 5, -1).astype("f8")
    pooled = cells.max(2) if pool == "max" else cells.mean(2).astype("f4").astype("f8")
    z = VALUES.reshape(120, -1).astype("f8") if per == "neuron" else pooled
    if how is not None:
        axis = 1 if how == "image" else 0
        z = (z - z.mean(axis, keepdims=True)) / z.std(axis, keepdims=True)
    centres = found["centre"].values.reshape(4, -1)
    model = KMeans(4, init=centres, n_init=1, tol=0).fit(z)
    np.testing.assert_allclose(model.cluster_centers_, centres, atol=1e-5)
    np.testing.assert_array_equal(model.labels_, found["cluster"])
    assert found.attrs["inertia"] == pytest.approx(model.inertia_, rel=1e-5)
    assert found.attrs["converged"], "centres that stay are found, whatever the tolerance"
    np.testing.assert_allclose(found["distance"], np.linalg.norm(z - centres[model.labels_], axis=1), atol=1e-9)
    assert adjusted_rand_score(LABELS, found["cluster"]) == 1.0
    np.testing.assert_array_equal(found["size"], np.bincount(found["cluster"]))
    assert (np.diff(found["size"]) <= 0).all()
    table = [[int(((c == LABELS) & (found["cluster"] == g)).sum()) for c in range(4)] for g in range(4)]
    assert found["class_count"].values.tolist() == table


def test_kmeans__does_not_depend_on_the_chunking() -> None:
    whole = dn.kmeans(layer(), count=6, seed=2, client=ThreadExecutor(1))
    for chunks in ((7, 5, 2, 2), (120, 1, 2, 1), ((1, 100, 19), 4, 1, 2)):
        cut = dn.kmeans(layer(chunks=chunks), count=6, seed=2, client=EXECUTOR)
        xr.testing.assert_identical(whole["cluster"], cut["cluster"])
        xr.testing.assert_identical(whole["member"], cut["member"])
        xr.testing.assert_allclose(whole["centre"], cut["centre"], rtol=1e-4, atol=1e-5)
    other = dn.kmeans(layer(), count=6, seed=3, client=EXECUTOR)
    assert (other["cluster"] != whole["cluster"]).any()


def test_kmeans__leaves_out_images_that_could_not_be_read() -> None:
    values, status = VALUES.copy(), np.zeros(120, "u1")
    status[[3, 50]] = 1
    values[status == 1] = np.nan
    numbers = np.arange(120) + 1000
    x = layer(values, (33, 5, 2, 2), status=("image", status), image=numbers)
    found = dn.kmeans(x, count=4, k=500, client=EXECUTOR)
    assert found["size"].sum() == 118
    np.testing.assert_array_equal(found["image"], numbers[status == 0])
    members = found["member"].values
    assert sorted(members[members >= 0].tolist()) == numbers[status == 0].tolist()
    for group, row in enumerate(members):
        near = found.sel(image=row[row >= 0])
        assert (near["cluster"] == group).all()
        assert (np.diff(near["distance"]) >= 0).all()
    assert "class_count" not in found


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_kmeans__of_anything(data: st.DataObject) -> None:
    images, neurons = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 3, (images, neurons))
    values = values.astype(data.draw(st.sampled_from(["f2", "f4", "f8"])))
    if data.draw(st.booleans()):
        values[:] = 2
    count = data.draw(st.integers(1, images))
    x = layer(values, (data.draw(st.integers(1, images)), data.draw(st.integers(1, neurons))))
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.message)):
        found = dn.kmeans(x, count=count, client=EXECUTOR)
    different = len(np.unique(values, axis=0))
    assert found.sizes["group"] == min(count, different)
    assert any("as many clusters" in note for note in notes) == (different < count)
    assert found["size"].sum() == images
    assert found.attrs["converged"], "also where nothing varies"
    centres = found["centre"].values
    apart = np.linalg.norm(values[:, None].astype("f8") - centres[None], axis=2)
    np.testing.assert_allclose(found["distance"], apart.min(1), atol=1e-6)
    if count >= different:
        np.testing.assert_allclose(found["distance"], 0, atol=1e-6)


def test_kmeans__says_when_it_has_not_converged() -> None:
    noise = np.random.default_rng(1).standard_normal((400, 3)).astype("f4")
    found = dn.kmeans(layer(noise), count=7, max_iter=1, client=EXECUTOR)
    assert found.attrs["converged"] is False
    assert found.attrs["iterations"] == 1
    assert dn.kmeans(layer(noise), count=7, max_iter=300, client=EXECUTOR).attrs["converged"] is True


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 121}, "count=121 of 120 images"),
        ({"count": 0}, "count=0"),
        ({"count": 2, "tol": -1.0}, "tol"),
        ({"count": 2, "max_iter": 0}, "max_iter=0"),
        ({"count": 2, "k": 1.5}, r"k=1\.5"),
        ({"count": 2, "standardize": "center"}, "standardize='center'"),
    ],
)
def test_kmeans__refuses_what_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        dn.kmeans(layer(), **wrong)


@pytest.mark.parametrize("how", [None, "neuron"])
def test_kmeans__whose_long_chunks_do_not_fit_goes_by_passes(how: Any) -> None:
    rng = np.random.default_rng(4)
    kinds = rng.integers(0, 5, 4000)
    values = (rng.standard_normal((4000, 60)) + 4 * rng.standard_normal((5, 60))[kinds]).astype("f4")
    x = layer(values, (2000, 20), label=("image", kinds))
    asked: dict[str, Any] = {"count": 5, "standardize": how, "tol": 0, "seed": 1}
    roomy = ThreadExecutor(2, memory=2**33)
    whole, planned = dn.kmeans(x, **asked, client=roomy), dn.plan("kmeans", x, **asked, client=roomy)
    assert whole.attrs["method"] == planned.method == "dask-ml"
    streamed = dn.plan("kmeans", x, **asked, persist=False, client=roomy)
    little = ThreadExecutor(2, memory=streamed.process_bytes(roomy) - 1)
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.message)):
        found = dn.kmeans(x, **asked, client=little)
    plan = dn.plan("kmeans", x, **asked, client=little)
    assert plan.fits(little)
    assert plan.passes == 100 + 2 + (how is not None), "each iteration reads the array"
    assert found.attrs["method"] == plan.method == "passes over blocks, in float64"
    assert any("whole rows of 4000 images at once" in note for note in notes)
    for name in ("cluster", "member", "size", "class_count"):
        xr.testing.assert_identical(found[name], whole[name])
    for name in ("centre", "distance"):
        xr.testing.assert_allclose(found[name], whole[name], rtol=1e-5, atol=1e-5)
    assert found.attrs["converged"]
    assert found.attrs["inertia"] == pytest.approx(whole.attrs["inertia"], rel=1e-6)


def test_kmeans__that_does_not_fit_is_refused() -> None:
    with pytest.raises(MemoryLimitError, match="kmeans needs"):
        dn.kmeans(layer(), count=2, client=ThreadExecutor(1, memory=2**20))
    values = VALUES.copy()
    values[7, 4, 1, 1] = np.inf
    with pytest.raises(NonFiniteError, match=r"image 7, neuron \(4, 1, 1\)"):
        dn.kmeans(layer(values), count=2, client=EXECUTOR)


def test_kmeans__on_the_workers_of_a_client(threads_client: Any) -> None:
    from distributed import get_worker

    x = layer(chunks=(30, 5, 2, 2))
    found = dn.kmeans(x, count=4, seed=5, client=threads_client)
    xr.testing.assert_identical(found["cluster"], dn.kmeans(x, count=4, seed=5, client=EXECUTOR)["cluster"])
    with get_executor(threads_client).computing():
        where = dask.delayed(lambda: get_worker().address)().compute()
    assert where in threads_client.scheduler_info()["workers"], "what a library computes, workers compute"


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_kmeans__of_tiny_numbers_finds_the_same(dtype: str) -> None:
    rng = np.random.default_rng(5)
    values = rng.random((200, 4)) @ rng.random((4, 30)) + 0.05 * rng.random((200, 30))
    found, tiny = (
        dn.kmeans(xr.DataArray((scale * values).astype(dtype), dims=("image", "channel")), count=3, seed=0)
        for scale in (1.0, 2.0**-70)
    )
    assert tiny["cluster"].values.tolist() == found["cluster"].values.tolist()
    assert tiny.attrs["iterations"] == found.attrs["iterations"]


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
def test_kmeans__kept_or_read_anew_is_the_same(counted: Any, device: str) -> None:
    found, roomy = {}, ThreadExecutor(2, memory=2**33)
    for persist in ("auto", True, False):
        x, reads = counted(VALUES, (50, 5, 2, 2))
        said: list[events.Event] = []
        with dn.on_device(device), events.listening(said.append):
            plan = dn.plan("kmeans", x, count=4, tol=0, persist=persist, client=roomy)
            assert not reads
            found[persist] = dn.kmeans(x, count=4, tol=0, persist=persist, client=roomy)
        assert [event.data["persisted"] for event in said if event.data] == [persist is not False], "said once"
        times = found[persist].attrs["iterations"] + 2
        if persist is False:
            assert min(reads.values()) >= times
            assert max(reads.values()) <= plan.passes
            continue
        assert set(reads.values()) == {3 if device == "cpu" else 1}
        xr.testing.assert_identical(found[persist], found["auto"])
    for name in ("cluster", "member", "centre", "distance"):
        xr.testing.assert_identical(found["auto"][name], found[False][name])


class Workers:
    """A hundred workers of two threads."""

    slots, slots_per_process, process_bytes = 200, 2, 2**28
    memory = driver_memory = 16 * 2**30

    def device_memory(self, name: str) -> None:
        return None


def test_kmeans__is_kept_by_all_workers_together() -> None:
    images = xr.DataArray(da.zeros((5_000_000, 1000), chunks=(10_000, 1000), dtype="f4"), dims=("image", "channel"))
    kept, streamed = (
        dn.plan("kmeans", images, count=3, persist=persist, client=Workers()) for persist in ("auto", False)
    )
    assert (kept.passes, streamed.passes) == (3, 104)
    assert kept.worker_bytes > streamed.worker_bytes
    with pytest.raises(MemoryLimitError, match=r"persist=True needs"):
        dn.kmeans(images.isel(image=slice(0, 500_000)), count=3, persist=True, client=ThreadExecutor(1, memory=2**30))
