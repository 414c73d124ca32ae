"""How many components, from which side, in which precision."""

from __future__ import annotations

import itertools
import re
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask_ml.decomposition import TruncatedSVD

import dneuro as dn
from dneuro import events
from dneuro.analysis.svd import in_panels
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError, MemoryLimitError, NonFiniteError
from dneuro.quantities import MiB

METHODS = pytest.mark.parametrize("method", ["tsqr", "gram", "krylov"])


def made(images: int, sizes: Any, neurons: int = 60, dtype: str = "f8") -> np.ndarray:
    """A matrix of so many images and neurons with these singular values."""
    rng = np.random.default_rng(8)
    left, right = (np.linalg.qr(rng.standard_normal((n, len(sizes))))[0] for n in (images, neurons))
    return ((left * np.asarray(sizes)) @ right.T).astype(dtype)


def labelled(values: np.ndarray, chunks: Any = (50, -1)) -> xr.DataArray:
    return xr.DataArray(da.from_array(values, chunks=chunks), dims=("image", "channel"))


def notes(call: Any) -> tuple[Any, list[str]]:
    seen: list[events.Event] = []
    with events.listening(seen.append):
        result = call()
    return result, [event.message for event in seen if event.kind in ("note", "warning")]


class Room:
    """A place to compute with so much memory, which is never used."""

    slots = slots_per_process = 1
    process_bytes = 280 * MiB

    def __init__(self, memory: int, driver_memory: int) -> None:
        self.memory, self.driver_memory = memory, driver_memory


SIZES = 100 * 0.9 ** np.arange(40)


@METHODS
@pytest.mark.parametrize("count", [1, 7, 25])
def test_svd__threshold_keeps_those_above(method: Any, count: int) -> None:
    found = dn.svd(labelled(made(200, SIZES)), threshold=(SIZES[count - 1] + SIZES[count]) / 2, method=method,
                   standardize=None)  # fmt: skip
    np.testing.assert_allclose(found["singular_value"], SIZES[:count], rtol=1e-5)
    assert found.attrs["converged"]


@METHODS
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 1.0])
def test_svd__explained_variance_takes_the_smallest_rank(method: Any, share: float) -> None:
    values = made(200, SIZES)
    found = dn.svd(labelled(values), explained_variance=share, method=method, standardize=None)
    shares = np.cumsum(SIZES**2) / np.sum(SIZES**2)
    expected = int(np.flatnonzero(shares >= share - 1e-9)[0]) + 1
    assert found.sizes["component"] >= expected
    if share < 1:
        assert found.sizes["component"] == expected
    assert found["explained_variance_ratio"].sum() >= share - 1e-9


def test_svd__threshold_that_nothing_reaches() -> None:
    with pytest.raises(ArrayError, match="no singular value reaches threshold=101, the largest is 100"):
        dn.svd(labelled(made(200, SIZES)), threshold=101, standardize=None)


@pytest.mark.parametrize(
    "asked",
    [{}, {"rank": 3, "threshold": 2.0}, {"rank": 0}, {"rank": 61}, {"rank": "most"}, {"threshold": -1.0},
     {"threshold": float("nan")}, {"explained_variance": 0.0}, {"explained_variance": 1.5}],
)  # fmt: skip
def test_svd__refuses_what_says_not_how_many(asked: Any) -> None:
    with pytest.raises(ArrayError):
        dn.svd(labelled(made(200, SIZES)), **asked)


@pytest.mark.parametrize("chunks", [(50, -1), (-1, 20)])
def test_svd__whole_spectrum_of_a_narrow_layer(chunks: Any) -> None:
    """Sixteen decades: ZᵀZ would lose all but eight of them."""
    sizes = 10.0 ** -np.linspace(0, 12, 40)
    values = made(300, sizes, neurons=40)
    found = dn.svd(labelled(values, chunks), rank="all", standardize=None)
    assert found.attrs["method"] == "tsqr"
    np.testing.assert_allclose(found["singular_value"], sizes, rtol=1e-3)
    u, v = found["score"].values, found["vector"].values.T
    np.testing.assert_allclose(u * found["singular_value"].values @ v.T, values, atol=1e-14)


def test_svd__tsqr_is_that_of_dask_ml() -> None:
    values = np.random.default_rng(1).standard_normal((400, 30))
    peer = TruncatedSVD(29, algorithm="tsqr").fit(da.from_array(values, chunks=(100, -1)))
    found = dn.svd(labelled(values), rank=29, method="tsqr", standardize=None)
    np.testing.assert_allclose(found["singular_value"], peer.singular_values_, rtol=1e-12)
    np.testing.assert_allclose(np.abs((found["vector"].values * peer.components_).sum(1)), 1, rtol=1e-9)


@METHODS
@pytest.mark.parametrize("standardize", ["image", "neuron", "center", None])
def test_svd__panels_are_decomposed_from_the_side_of_the_images(method: Any, standardize: Any) -> None:
    values = np.maximum(np.random.default_rng(3).standard_normal((60, 6, 5, 2)) + np.arange(6)[:, None, None] / 3, 0)
    values[:, 2], values[7] = 0.0, 0.1  # a dead channel, a constant image
    dims = ("image", "channel", "y", "x")
    status = xr.DataArray(np.arange(60) == 11, dims="image").astype("u1")
    values[11] = np.nan
    rows, panels = (
        xr.DataArray(da.from_array(values.astype("f4"), chunks=chunks), dims=dims).assign_coords(status=status)
        for chunks in ((20, 6, 5, 2), (60, 2, 5, 2))
    )
    a, b = (dn.svd(x, rank=4, method=method, standardize=standardize, tolerance=1e-5) for x in (rows, panels))
    assert (a.attrs["side"], b.attrs["side"]) == ("neuron", "image")
    np.testing.assert_allclose(a["singular_value"], b["singular_value"], rtol=1e-5)
    assert a.attrs["total_variance"] == pytest.approx(b.attrs["total_variance"], rel=1e-5)
    for name in ("vector", "score"):
        assert a[name].dims == b[name].dims
        np.testing.assert_allclose(a[name], b[name], atol=2e-3, err_msg=name)
    np.testing.assert_array_equal(a["image"], b["image"])


def test_svd__panels_name_the_image_that_is_no_number() -> None:
    values = made(40, SIZES[:20], dtype="f4")
    values[13, 44] = np.inf
    with pytest.raises(NonFiniteError, match=r"image 13, neuron \(44,\) is inf"):
        dn.svd(labelled(values, (-1, 20)), rank=2, standardize=None)


def test_svd__goes_on_in_float64_where_float32_does_not_do() -> None:
    """The smallest of these is 10⁻⁵ of the largest: its square drowns in the rounding of float32."""
    sizes = [1.0, 0.1, 1e-3, 1e-5]
    values = made(3000, sizes, dtype="f4")
    true = np.linalg.svd(values.astype("f8"), compute_uv=False)[:4]
    call = lambda: dn.svd(labelled(values, (200, -1)), rank=4, method="krylov", standardize=None)  # noqa: E731
    found, said = notes(call)
    assert any("going on in float64" in message for message in said)
    np.testing.assert_allclose(found["singular_value"], true, rtol=1e-6)


def test_svd__of_a_driver_with_little_memory_stops_sooner_and_says_so() -> None:
    x = labelled(np.random.default_rng(3).standard_normal((1600, 1500)), (100, -1))
    asked: dict[str, Any] = {"rank": 4, "method": "krylov", "tolerance": 1e-12, "persist": False}
    plan = dn.plan("svd", x, client=ThreadExecutor(1, memory=1 << 40), **asked)
    little = ThreadExecutor(1, memory=plan.worker_bytes + 3 * plan.driver_bytes // 4)
    found, said = notes(lambda: dn.svd(x, client=little, **asked))
    assert found.attrs["passes"] == dn.plan("svd", x, client=little, **asked).passes - 1 < plan.passes - 1
    assert not found.attrs["converged"]
    assert said[-1].startswith(f"not converged after {found.attrs['passes']} passes")
    assert said[-1].endswith("with more memory this process would go on")


def test_svd__share_that_takes_more_components_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many explain it, only the first pass finds out."""
    monkeypatch.setattr("dneuro.analysis.components.MOST_SOUGHT", 4)
    x = labelled(np.random.default_rng(3).standard_normal((40_000, 60)).astype("f4"), (2000, -1))
    for method in ("gram", "tsqr"):
        asked: dict[str, Any] = {"explained_variance": 0.9, "method": method, "persist": False}
        plan = dn.plan("svd", x, client=ThreadExecutor(1, memory=1 << 40), **asked)
        little = ThreadExecutor(1, memory=plan.worker_bytes + plan.driver_bytes + (1 << 20))
        with pytest.raises(MemoryLimitError, match=r"svd of 5\d components needs") as caught:
            dn.svd(x, client=little, **asked)
        assert "rank=" in str(caught.value.hint)
        assert dn.svd(x, client=ThreadExecutor(1, memory=4 << 30), **asked).sizes["component"] > 50


@pytest.mark.parametrize("asked", [{"rank": 5}, {"rank": 5, "method": "gram"}, {"rank": 5, "persist": False}])
@pytest.mark.parametrize("where", ["worker", "driver"])
def test_svd__of_few_images_that_does_not_fit_names_the_chunks_in_which_it_does(asked: Any, where: str) -> None:
    """What the hint says, done."""
    x = xr.DataArray(da.zeros((1000, 64, 55, 55), "f4", chunks=(32, 11, 55, 28)), dims=("image", "channel", "y", "x"))
    little = Room(550 * MiB, 1 << 60) if where == "worker" else Room(1 << 60, 200 * MiB)
    with pytest.raises(MemoryLimitError, match="per worker" if where == "worker" else "in the driver") as caught:
        dn.svd(x, client=little, **asked)
    hint = str(caught.value.hint)
    (cut,) = re.findall(r"^x\.chunk\(image=-1, channel=(\d+), x=-1\), which takes the side of the images, ", hint)
    assert ("krylov" in hint) == ("method" in asked), "what was refused is no way out"
    plan = dn.plan("svd", x.chunk(image=-1, channel=int(cut), x=-1), client=little, **asked)
    assert plan.fits(little)
    assert "on the side of the images" in plan.method
    other = x.isel(channel=slice(1), y=slice(9), x=slice(9))
    assert in_panels(other, client=Room(1, 1), **asked) == {}, "more images than neurons"


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_svd__float32_neither_overflows_nor_vanishes(factor: float) -> None:
    values = made(300, SIZES, dtype="f4")
    plain, scaled = (
        dn.svd(labelled(v.astype("f4")), rank=3, method="krylov", standardize=None) for v in (values, values * factor)
    )
    np.testing.assert_allclose(scaled["singular_value"], plain["singular_value"] * factor, rtol=1e-5)


def test_svd__a_sample_makes_the_start(counted: Any) -> None:
    """Half of a pass over a sample saves more than that: counted in reads of all chunks."""
    rng = np.random.default_rng(5)
    values = (rng.standard_normal((3200, 40)) / np.arange(1, 41) ** 0.7) @ rng.standard_normal((40, 300))
    values += 0.5 * rng.standard_normal(values.shape)
    true = np.linalg.svd((values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True), compute_uv=False)
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dneuro.engine.plan.BLOCK_BYTES", 1 << 16)
        for height in (50, 400):
            x, reads = counted(values.astype("f4"), (height, 300))
            found = dn.svd(x, rank=16, method="krylov", persist=False)
            np.testing.assert_allclose(found["singular_value"], true[:16], rtol=1e-5)
            read.append(sum(reads.values()) / len(reads))
    assert read[0] < read[1]


@pytest.mark.parametrize("method", ["auto", "tsqr"])
def test_svd__of_few_images_of_many_neurons_holds_no_square_of_the_neurons(method: Any) -> None:
    values = np.random.default_rng(5).standard_normal((24, 30_000)).astype(np.float32)
    x = xr.DataArray(values, dims=("image", "channel")).chunk(image=8)
    executor = ThreadExecutor(2, memory=1 << 30)
    assert dn.plan("svd", x, rank=6, method=method, standardize=None, client=executor).driver_bytes < 64 << 20
    found = dn.svd(x, rank=6, method=method, standardize=None, client=executor)
    expected = np.linalg.svd(values.astype(np.float64), compute_uv=False)[:6]
    np.testing.assert_allclose(found["singular_value"], expected, rtol=1e-6)


@METHODS
def test_svd__threshold_of_other_images_is_scaled_to_these(method: Any) -> None:
    x = labelled(made(200, SIZES))
    found = dn.svd(x, threshold=40.0, threshold_images=50, method=method, standardize=None)
    assert found.attrs["threshold"] == pytest.approx(80.0)  # √(200 / 50) = 2
    assert found.sizes["component"] == (SIZES >= 80).sum()
    assert found.attrs["entries"] == 200 * 60
    some = dn.select(x, images=list(range(128)))
    assert dn.svd(some, threshold=1.0, threshold_images=50, method=method, standardize=None).attrs["threshold"] == 1.6


@pytest.mark.parametrize(
    ("given", "message"),
    [({"rank": 2, "threshold_images": 50}, "without a threshold"), ({"threshold": 9.0, "threshold_images": 0}, "no n")],
)
def test_svd__threshold_images_belongs_to_a_threshold(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArrayError, match=message):
        dn.svd(labelled(made(200, SIZES)), **given)


def by_class(noise: float, sizes: Any) -> np.ndarray:
    """Images of one class after the other, 100 of each, and each class with a direction of its own."""
    rng = np.random.default_rng(2)
    directions = np.linalg.qr(rng.standard_normal((500, len(sizes))))[0]
    values = noise * rng.standard_normal((100 * len(sizes), 500))
    for i, size in enumerate(sizes):
        values[100 * i : 100 * (i + 1)] += size * rng.standard_normal((100, 1)) * directions[:, i]
    return values.astype("f4")


CLASSES = [30, 50, 50, 50, 30, 60, 30, 30, 40, 30, 30, 30, 30, 30, 30, 30]


NOISE = [0.01, 0.1, 0.5]
ASKED: list[dict[str, Any]] = [{"rank": 2}, {"rank": 5}, {"threshold": 350.0}, {"explained_variance": 0.6}]
PAIRS = [(height, NOISE[(i + j) % 3], asked) for i, height in enumerate([20, 50, 100]) for j, asked in enumerate(ASKED)]
"""Each height with each noise, and with each way to ask; each noise with each of these too."""


@pytest.mark.parametrize(("height", "noise", "asked"), PAIRS)
def test_svd__misses_no_direction_of_images_in_class_order(
    monkeypatch: pytest.MonkeyPatch, height: int, noise: float, asked: Any
) -> None:
    """A sample of every eighth block has nothing of most classes, and the largest directions are theirs."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 1 << 14)  # a chunk is a block
    values = by_class(noise, CLASSES)
    true = np.linalg.svd(values.astype("f8"), compute_uv=False)
    found = dn.svd(labelled(values, (height, -1)), method="krylov", standardize=None, **asked)
    assert found.attrs["converged"]
    np.testing.assert_allclose(found["singular_value"], true[: found.sizes["component"]], rtol=1e-4)


def in_classes(classes: int, per: int, neurons: int, sizes: Any, noise: float) -> np.ndarray:
    """Images in class order; the directions of a class, of these sizes (times √per), are its own."""
    rng = np.random.default_rng(4)
    each = np.reshape(sizes, (classes, -1))
    directions = np.linalg.qr(rng.standard_normal((neurons, each.size)))[0].T.reshape(*each.shape, neurons)
    values = noise * rng.standard_normal((classes * per, neurons))
    for number in range(classes):
        rows = slice(number * per, (number + 1) * per)
        scores = np.linalg.qr(rng.standard_normal((per, each.shape[1])))[0] * np.sqrt(per)
        values[rows] += scores * each[number] @ directions[number]
    return values.astype("f4")


@pytest.fixture(scope="module")
def clustered() -> tuple[np.ndarray, np.ndarray]:
    """1,000 neurons, 24 classes: 40 singular values within 4 % of each other, 8 well below, then noise."""
    sizes = np.linspace(1.0, 0.96, 48)
    sizes[5::6] = 0.7  # one class in three has a weaker direction
    values = in_classes(24, 40, 1000, sizes[np.random.default_rng(1).permutation(48)], 0.02)
    return values, np.sqrt(np.linalg.eigvalsh(values.astype("f8") @ values.T.astype("f8"))[::-1].clip(0))


@pytest.mark.parametrize("asked", ["inside the cluster", "all but noise", "some of the variance"])
def test_svd__finds_all_of_a_cluster_that_a_sample_of_the_images_lacks(
    clustered: Any, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than are looked for at first, and most of them in no block that is sampled."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 1 << 14)
    values, true = clustered
    shares = np.cumsum(true**2) / (true**2).sum()
    count = {"inside the cluster": 23, "all but noise": 48, "some of the variance": 17}[asked]
    limit = {"threshold": float(true[count - 1] + true[count]) / 2}
    if asked == "some of the variance":
        limit = {"explained_variance": float(shares[count - 2] + shares[count - 1]) / 2}
    found = dn.svd(labelled(values, (20, -1)), method="krylov", standardize=None, **limit)
    assert found.attrs["converged"]
    assert found.sizes["component"] == count
    np.testing.assert_allclose(found["singular_value"], true[:count], rtol=1e-4)


@pytest.mark.parametrize("place", [1, 23])
@pytest.mark.parametrize("size", [1.1, 1.6, 3.0])
def test_svd__threshold_sees_a_direction_that_one_class_alone_has(
    place: int, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others, and the noise, are near the threshold, so that what is not seen is easily taken for nothing."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 1 << 14)
    sizes = np.full(24, 0.9)
    sizes[[0, 8, 16]] = 1.5  # the first block of every eighth: those that are sampled
    sizes[place] = size
    values = in_classes(24, 20, 700, sizes, 0.05)
    true = np.sqrt(np.linalg.eigvalsh(values.astype("f8") @ values.T.astype("f8"))[::-1].clip(0))
    limit = float(np.sqrt(20))
    found = dn.svd(labelled(values, (20, -1)), threshold=limit, method="krylov", standardize=None)
    count = int((true >= limit).sum())
    assert count >= 4
    assert found.sizes["component"] == count
    np.testing.assert_allclose(found["singular_value"], true[:count], rtol=1e-4)


WAYS: list[Any] = list(itertools.product(["neuron", "image"], ["image", "neuron", "center", None]))
PLACES = [(*way, 3 * ((i + j) % 11)) for i, way in enumerate(WAYS) for j in (0, 4, 7)]
"""Three of eleven places in each way, each place in two ways or more."""


@pytest.mark.parametrize(("side", "standardize", "place"), PLACES)
def test_svd__finds_a_direction_that_only_one_block_has(
    monkeypatch: pytest.MonkeyPatch, side: str, standardize: Any, place: int
) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 1 << 14)
    rng = np.random.default_rng(3)
    values = rng.standard_normal((640, 4)) * [3, 2.8, 2.5, 2] @ np.linalg.qr(rng.standard_normal((640, 4)))[0].T
    values += 0.001 * rng.standard_normal(values.shape)
    values[20 * place : 20 * (place + 1)] = 30 * np.outer(rng.standard_normal(20), rng.standard_normal(640))
    values = (values if side == "neuron" else values.T).astype("f4")
    z = values.astype("f8")
    if standardize:
        axis = 1 if standardize == "image" else 0
        z = z - z.mean(axis, keepdims=True)
        z = z / (z.std(axis, keepdims=True) if standardize != "center" else 1)
    chunks = (20, -1) if side == "neuron" else (-1, 20)
    found = dn.svd(labelled(values, chunks), rank=4, method="krylov", standardize=standardize)
    assert found.attrs["side"] == side
    assert found.attrs["converged"]
    np.testing.assert_allclose(found["singular_value"], np.linalg.svd(z, compute_uv=False)[:4], rtol=1e-4)


def test_svd__more_directions_than_random_columns_stay_hidden_from_the_sample() -> None:
    sizes = np.where(np.arange(48) % 8, 30 + np.arange(48), 20)
    values = by_class(0.05, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dneuro.engine.plan.BLOCK_BYTES", 1 << 14)
        found = dn.svd(labelled(values, (100, -1)), rank=30, method="krylov", standardize=None)
    true = np.linalg.svd(values.astype("f8"), compute_uv=False)[:30]
    assert found.attrs["converged"]
    np.testing.assert_allclose(found["singular_value"], true, rtol=1e-4)


CUTS = [("neuron" if (i + j) % 2 else "image", height, slices)
        for i, height in enumerate([1, 3, 8]) for j, slices in enumerate([None, 1, 4])]  # fmt: skip


@pytest.mark.parametrize(("side", "height", "slices"), CUTS)
def test_svd__of_what_is_constant_nothing_is_made(
    monkeypatch: pytest.MonkeyPatch, side: str, height: int, slices: int | None
) -> None:
    """Constant images of a wide layer, constant neurons over many images: the dust of their mean is no variation."""
    if slices:
        monkeypatch.setattr("dneuro.kernels.krylov.SINGLE_ITEMS", slices * 20_001)
    rng = np.random.default_rng(9)
    values = np.maximum(rng.standard_normal((48, 3)) @ rng.standard_normal((3, 20_001)) + 0.1, 0).astype("f4")
    values[::2] = rng.uniform(0.1, 3, (24, 1))
    z = values[1::2].astype("f8")
    z = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    x = labelled(values, (height, -1)) if side == "neuron" else labelled(values.T, (-1, height))
    standardize = "image" if side == "neuron" else "neuron"
    found = dn.svd(x, rank=3, method="krylov", standardize=standardize)  # type: ignore[arg-type]
    assert found.attrs["side"] == side
    assert found.attrs["total_variance"] == pytest.approx(24 * 20_001, rel=1e-5)
    np.testing.assert_allclose(found["singular_value"], np.linalg.svd(z, compute_uv=False)[:3], rtol=1e-5)
    of_each = found["score"].values if side == "neuron" else found["vector"].values.T
    assert np.abs(of_each[::2]).max() <= 1e-12


@pytest.mark.parametrize(
    ("shape", "chunks", "side"),
    [((1400, 40), (-1, 8), "neuron"), ((1400, 400), (-1, 50), "neuron"), ((40, 1400), (8, -1), "image"),
     ((400, 1400), (50, -1), "image"), ((400, 1400), (-1, 50), "image"), ((1400, 400), (50, -1), "neuron")],
)  # fmt: skip
def test_svd__makes_the_matrix_of_the_smaller_side(shape: tuple[int, int], chunks: Any, side: str) -> None:
    values = np.random.default_rng(4).standard_normal(shape).astype("f4")
    found = dn.svd(labelled(values, chunks), rank=2, standardize=None)
    assert (found.attrs["side"], found.attrs["method"]) == (side, "gram" if min(shape) > 256 else "tsqr")
    true = np.linalg.svd(values.astype("f8"), compute_uv=False)[:2]
    np.testing.assert_allclose(found["singular_value"], true, rtol=1e-9)
    large = labelled(np.broadcast_to(values[:1, :1], (400_000, 400)), (-1, 50))
    assert "krylov" in dn.plan("svd", large, rank=2, standardize=None, client=ThreadExecutor(2, memory=1 << 45)).method
