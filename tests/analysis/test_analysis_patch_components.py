"""Components of patches against scikit-learn's, whole and in blocks, in memory and in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import FastICA

import dneuro as dn
from dneuro import events
from dneuro.analysis import gathering
from dneuro.analysis.patching import rendering
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, FingerprintError, MemoryLimitError, NonFiniteError, UsageError
from dneuro.kernels import patches as kernel
from dneuro.quantities import MiB

CHANNELS, SAMPLES, SIDE, RANK = 5, 400, 6, 3
EXECUTOR = ThreadExecutor(2)
DIMS = ("channel", "sample", "row", "column", "color")


@pytest.fixture
def values() -> np.ndarray:
    """Patches that are mixed of few independent pictures, other ones in every channel; colours go together."""
    rng = np.random.default_rng(0)
    hidden = rng.laplace(size=(CHANNELS, SAMPLES, RANK))
    shapes = rng.standard_normal((CHANNELS, RANK, SIDE, SIDE))
    tints = rng.uniform(0.4, 1, (CHANNELS, RANK, 3))
    mixed = np.einsum("csk,ckyx,ckr->csyxr", hidden, shapes, tints) * 10 + 128
    return np.clip(np.rint(mixed + rng.standard_normal(mixed.shape)), 0, 255).astype(np.uint8)


def labelled(values: np.ndarray, chunk: int | None = 2, **coords: Any) -> xr.DataArray:
    x = xr.DataArray(values, dims=DIMS, attrs={"layer": "conv"}).assign_coords(coords)
    return x if chunk is None else x.chunk(channel=chunk)


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """The least |cos| between the rows that go together best."""
    a, b = (side.reshape(len(side), -1).astype("f8") for side in (a, b))
    a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (a, b))
    return float(np.abs(a @ b.T).max(axis=1).min())


def theirs(samples: np.ndarray) -> np.ndarray:
    """Pictures that scikit-learn finds."""
    found = FastICA(RANK, whiten="unit-variance", tol=1e-10, max_iter=2000, random_state=1)
    found.fit(samples.reshape(len(samples), -1).astype("f8"))
    return np.asarray(found.mixing_.T.reshape(RANK, *samples.shape[1:3]))


def find(x: xr.DataArray, **settings: Any) -> xr.Dataset:
    settings = {"rank": RANK, "k": SAMPLES, "tol": 1e-10, "max_iter": 2000, "dtype": "float32", **settings}
    return dn.patch_components(x, client=EXECUTOR, **settings)


def test_grey__is_scikit_learns_up_to_order_and_sign(values: np.ndarray) -> None:
    found = find(labelled(values))
    assert found["grey_converged"].all()
    for channel in range(CHANNELS):
        expected = theirs(kernel.grey(values[channel]))
        assert alike(found["grey"][channel].values, expected) > 1 - 1e-5
    flat = kernel.grey(values).reshape(CHANNELS, SAMPLES, -1)
    sizes = (found["grey"].values.reshape(CHANNELS, RANK, -1).astype("f8") ** 2).sum(axis=2)
    np.testing.assert_allclose(found["grey_share"], sizes / flat.var(axis=1).sum(axis=1)[:, None], rtol=1e-5)
    assert (found["grey_share"].sum("component") > 0.9).all(), "the patches were mixed of so many"


def test_rgb__is_each_colour_alone_in_the_order_and_sign_of_green(values: np.ndarray) -> None:
    found = find(labelled(values))
    for channel in range(CHANNELS):
        for color in range(3):
            mine = found["rgb"][channel, ..., color].values
            assert alike(mine, theirs(values[channel, ..., color])) > 1 - 1e-5
        flat = found["rgb"][channel].values.reshape(RANK, -1, 3)
        for component in range(RANK):
            r = np.corrcoef(flat[component].T)
            assert (r > 0.95).all(), "colours of a component go together, with one sign"
            np.testing.assert_allclose(found["rgb_correlation"][channel, component], r[1], atol=1e-5)
    green = dn.ica(labelled(values)[..., 1], rank=RANK, tol=1e-10, max_iter=2000, client=EXECUTOR)
    np.testing.assert_allclose(found["rgb"][..., 1], green["mixing"], rtol=1e-5, atol=1e-4)


def test_rgb__unmatched_is_as_it_comes(values: np.ndarray) -> None:
    values = values[..., [0, 1, 0]] // np.array([2, 1, 4], np.uint8)
    found = find(labelled(values), match=False, renderings="rgb")
    for color in range(3):
        alone = dn.ica(labelled(values)[..., color], rank=RANK, tol=1e-10, max_iter=2000, client=EXECUTOR)
        np.testing.assert_allclose(found["rgb"][..., color], alone["mixing"], rtol=1e-5, atol=1e-5)
    assert "grey" not in found
    assert "rgb8" not in found


def test_rgb8__is_rgb_in_bytes(values: np.ndarray) -> None:
    found = find(labelled(values))
    assert found["rgb8"].dtype == np.uint8
    rgb = found["rgb"].values
    largest = np.abs(rgb).max(axis=(2, 3, 4), keepdims=True)
    np.testing.assert_array_equal(found["rgb8"], np.rint(128 + 127 * rgb / largest))


@pytest.mark.parametrize("chunk", [None, 1, 3, 5])
def test_blocks__make_no_difference(values: np.ndarray, chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find(labelled(values, 2), keep=4)
    monkeypatch.setattr(rendering, "BATCH_ITEMS", 1 if chunk == 5 else 10**9)
    monkeypatch.setattr("dneuro.analysis.patching.asked.BLOCK_BYTES", 3 * SAMPLES * SIDE * SIDE * 3)
    xr.testing.assert_identical(find(labelled(values, chunk), keep=4), whole)


def test_blocks__of_uneven_or_cut_chunks(values: np.ndarray) -> None:
    x = labelled(values, None)
    odd = x.chunk(channel=(1, 3, 1), sample=7, row=4)
    xr.testing.assert_identical(find(odd), find(x))


def test_out__holds_the_same(values: np.ndarray, tmp_path: Path) -> None:
    x = labelled(values, channel=np.arange(CHANNELS) + 10)
    x = x.assign_coords({name: (DIMS[:2], np.arange(CHANNELS * SAMPLES).reshape(CHANNELS, -1))
                         for name in ("top_image", "top_value", "top_y", "top_x")})  # fmt: skip
    whole = find(x, keep=4)
    found = find(x, keep=4, out=tmp_path / "pictures.zarr")
    assert found["rgb"].chunks is not None
    xr.testing.assert_identical(found.load().drop_attrs(), whole.drop_attrs())
    assert found.attrs == whole.attrs
    assert whole["top_image"].values.tolist() == x["top_image"].values[:, :4].tolist()
    np.testing.assert_array_equal(whole["patch"], values[:, :4])
    assert [path.name for path in tmp_path.iterdir()] == ["pictures.zarr"]
    with pytest.raises(UsageError, match="exists; it is left as it is"):
        find(x, out=tmp_path / "pictures.zarr")


class Failing:
    """Patches of which some channels cannot be had until they are mended; notes which were asked for."""

    def __init__(self, values: np.ndarray, broken: int) -> None:
        self.values, self.broken, self.asked = values, broken, set[int]()

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        number = int(numbers.ravel()[0])
        if number == self.broken:
            raise RuntimeError("the storage fails")
        self.asked.add(number)
        return self.values[number : number + 1]

    @property
    def array(self) -> xr.DataArray:
        numbers = da.arange(len(self.values), chunks=1).reshape(-1, 1, 1, 1, 1)
        chunks = ((1,) * len(self.values), *((length,) for length in self.values.shape[1:]))
        lazy = da.map_blocks(self, numbers, chunks=chunks, dtype=np.uint8, meta=np.empty((0,) * 5, np.uint8))
        return xr.DataArray(lazy, dims=DIMS)


def test_checkpoint__goes_on_after_what_is_done(
    values: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "EVERY", 0.0)
    one = ThreadExecutor(1)
    patches = Failing(values, broken=3)
    place = {"out": tmp_path / "out" / "pictures.zarr", "checkpoint": tmp_path / "state" / "s.npz", "client": one}
    settings: dict[str, Any] = {"rank": RANK, "k": SAMPLES, **place}
    place["out"].parent.mkdir()
    with pytest.raises(RuntimeError, match="the storage fails"):
        dn.patch_components(patches.array, **settings)
    assert patches.asked >= {0, 1, 2}
    assert not place["out"].exists()
    kept = {int(name.split("/")[0]) for name in np.load(place["checkpoint"]).files if "/" in name}
    assert kept
    with pytest.raises(FingerprintError, match="is not the state of this result"):
        dn.patch_components(patches.array, **{**settings, "rank": 2})
    patches.broken, patches.asked = -1, set()
    seen: list[events.Event] = []
    with events.listening(seen.append):
        found = dn.patch_components(patches.array, **settings)
    assert patches.asked == set(range(CHANNELS)) - kept
    assert any("done before" in event.message for event in seen)
    whole = dn.patch_components(labelled(values), rank=RANK, k=SAMPLES, client=one)
    xr.testing.assert_identical(found.load().drop_attrs(), whole.drop_attrs())
    assert list((tmp_path / "state").iterdir()) == []


def test_checkpoint__goes_with_a_file(values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="goes with out="):
        find(labelled(values), checkpoint=tmp_path / "s.npz")


def test_failure__leaves_nothing_behind(values: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        dn.patch_components(Failing(values, 0).array, rank=2, out=tmp_path / "p.zarr", client=EXECUTOR)
    assert list(tmp_path.iterdir()) == []


def test_count__samples_beyond_it_are_not_there(values: np.ndarray) -> None:
    spoilt = values.copy()
    counts = np.array([SAMPLES, 20, 3, 1, 0])
    for channel, count in enumerate(counts):
        spoilt[channel, count:] = 99
    seen: list[events.Event] = []
    with events.listening(seen.append):
        found = find(labelled(spoilt, count=("channel", counts)), keep=4)
    np.testing.assert_array_equal(found["count"], counts)
    assert found["grey_rank"].values.tolist() == [3, 3, 2, 0, 0]
    alone = find(labelled(values[:, :20]), k=20)
    for name in ("grey", "rgb", "rgb8", "grey_share", "rgb_correlation", "grey_iterations"):
        np.testing.assert_array_equal(found[name][1], alone[name][1])
    known = np.isfinite(found["rgb"].values).all(axis=(2, 3, 4)).sum(axis=1)
    assert known.tolist() == [3, 3, 2, 0, 0]
    assert (found["rgb8"].values[3:] == 128).all()
    assert np.isnan(found["grey_share"].values[3:]).all()
    assert (found["patch"].values[2, 3:] == 0).all()
    assert (found["patch"].values[4] == 0).all()
    np.testing.assert_array_equal(found["patch"][2, :3], values[2, :3])
    said = [event.message for event in seen if event.kind == "note"]
    assert "1 of 5 channels have no activation above 0" in said
    assert "grey: 3 of 5 have fewer than 3 components" in said


def test_count__of_ica_is_as_if_the_others_were_not_there(values: np.ndarray) -> None:
    x = labelled(values[..., 1].astype("f4")[..., None], count=("channel", [SAMPLES, 20, 3, 1, 0]))[..., 0]
    spoilt = x.copy(data=x.values)
    spoilt[1, 20:] = np.nan
    found = dn.ica(spoilt, rank=RANK, client=EXECUTOR)
    assert found["rank"].values.tolist() == [3, 3, 2, 0, 0]
    assert np.isnan(found["source"].values[1, 20:]).all()
    for channel, count in ((0, SAMPLES), (1, 20)):
        alone = dn.ica(x[:, :count].drop_vars("count"), rank=RANK, client=EXECUTOR)
        for name in ("mixing", "component", "mean", "iterations"):
            np.testing.assert_array_equal(found[name][channel], alone[name][channel])
        np.testing.assert_array_equal(found["source"][channel, :count], alone["source"][channel])
    assert dn.plan("ica", spoilt, rank=RANK).passes == 1
    for wrong in ([0.5] * 5, [SAMPLES + 1] * 5, [-1] * 5):
        with pytest.raises(ArrayError, match="the coordinate 'count' is"):
            dn.ica(x.assign_coords(count=("channel", wrong)), rank=RANK)


def test_constant__patches_have_no_components(values: np.ndarray) -> None:
    values[1] = 77
    found = find(labelled(values))
    assert found["grey_rank"].values.tolist() == [3, 0, 3, 3, 3]
    assert np.isnan(found["grey"][1]).all()
    assert not found["grey_converged"][1]


def test_grey_patches__have_no_colours(values: np.ndarray) -> None:
    seen: list[events.Event] = []
    with events.listening(seen.append):
        found = find(labelled(values[..., :1]))
    assert "rgb" not in found
    assert [event.message for event in seen if event.kind == "note"] == ["patches have one colour: no rgb and no rgb8"]
    assert alike(found["grey"][0].values, theirs(values[0, ..., 0])) > 1 - 1e-5
    with pytest.raises(ArrayError, match="of patches of one colour"):
        find(labelled(values[..., :1]), renderings=["rgb"])


def test_k__takes_the_first(values: np.ndarray) -> None:
    xr.testing.assert_identical(
        find(labelled(values), k=30).drop_attrs(), find(labelled(values[:, :30]), k=30).drop_attrs()
    )


def test_dtype__half_precision_is_near(values: np.ndarray) -> None:
    found, exact = find(labelled(values), dtype="float16"), find(labelled(values))
    assert found["rgb"].dtype == np.float16
    np.testing.assert_allclose(found["rgb"], exact["rgb"], rtol=1e-3, atol=1e-3)
    with pytest.raises(NonFiniteError, match="beyond what float16 holds"):
        find(labelled(values.astype("f4") * 1e5), dtype="float16")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 37}, "rank=37 of 100 patches × 36 pixels"),
        ({"rank": 0}, "rank=0"),
        ({"k": 2}, "rank=3 of 2 patches"),
        ({"renderings": ["sepia"]}, "renderings='sepia' is unknown"),
        ({"renderings": []}, "renderings='' is unknown"),
        ({"fun": "tanh"}, "fun='tanh' is unknown"),
        ({"dtype": "float64"}, "dtype='float64' is unknown"),
        ({"keep": -1}, "keep=-1"),
    ],
)
def test_patch_components__what_cannot_be_asked(values: np.ndarray, wrong: dict[str, Any], message: str) -> None:
    x = labelled(values)
    with pytest.raises(ArrayError, match=message):
        dn.patch_components(x, **{"rank": 3, **wrong})
    with pytest.raises(ArrayError, match=message):
        dn.plan("patch_components", x, **{"rank": 3, **wrong})


def test_patch_components__takes_patches_only(values: np.ndarray) -> None:
    for wrong in (labelled(values).rename(sample="image"), labelled(values)[..., 0], values):
        with pytest.raises(ArrayError, match=r"takes an xarray\.DataArray \(channel, sample, row, column, color\)"):
            dn.patch_components(wrong)  # type: ignore[arg-type]
    with pytest.raises(ArrayError, match="patches of 2 colours"):
        dn.patch_components(labelled(values[..., :2]))
    spoilt = values.astype("f4")
    spoilt[2, 7, 1, 1, 0] = np.nan
    with pytest.raises(NonFiniteError, match="problem 2, sample 7 holds NaN"):
        find(labelled(spoilt))


def test_plan__says_what_it_takes(values: np.ndarray, tmp_path: Path) -> None:
    x = labelled(values, 2)
    plan = dn.plan("patch_components", x, rank=RANK, k=SAMPLES, keep=4)
    found = dn.patch_components(x, rank=RANK, k=SAMPLES, keep=4, client=EXECUTOR)
    large = sum(found[name].nbytes for name in ("grey", "rgb", "rgb8", "patch"))
    assert (plan.passes, plan.tasks, plan.read_bytes) == (1, 3, x.nbytes)
    assert large < plan.result_bytes < large + 1000 * CHANNELS
    placed = dn.plan("patch_components", x, rank=RANK, keep=4, out=tmp_path / "p.zarr")
    assert placed.driver_bytes < plan.driver_bytes


def test_plan__what_does_not_fit_is_refused_before_a_patch_is_cut(values: np.ndarray, tmp_path: Path) -> None:
    asked: list[tuple[int, ...]] = []

    def ask(block: np.ndarray) -> np.ndarray:
        asked.append(block.shape)
        return block

    zeros = da.zeros((64, 100, 200, 200, 3), chunks=(1, 100, 200, 200, 3), dtype=np.uint8)
    patches = xr.DataArray(zeros.map_blocks(ask, dtype=np.uint8, meta=np.empty((0,) * 5, np.uint8)), dims=DIMS)
    little = ThreadExecutor(1, memory=400 * MiB)
    with pytest.raises(MemoryLimitError, match=r"patch_components needs .* per worker") as caught:
        dn.patch_components(patches, out=tmp_path / "p.zarr", client=little)
    assert "fewer channels" in str(caught.value.hint)
    with pytest.raises(MemoryLimitError, match="in the driver") as caught:
        dn.patch_components(patches, client=ThreadExecutor(1, memory=900 * MiB))
    assert "out=" in str(caught.value.hint)
    assert asked == []
    assert list(tmp_path.iterdir()) == []


def test_components__of_vgg16s_widest_layer_are_planned() -> None:
    """512 channels × 8 components × 196² pixels, of 5.9 GB of patches that nobody holds."""
    lazy = da.zeros((512, 100, 196, 196, 3), chunks=(2, 100, 196, 196, 3), dtype=np.uint8)
    plan = dn.plan("patch_components", xr.DataArray(lazy, dims=DIMS), out="p.zarr", client=ThreadExecutor(1))
    assert plan.read_bytes == 512 * 100 * 196**2 * 3
    assert 1.7e9 < plan.result_bytes < 2.5e9
    assert plan.driver_bytes < MiB
    assert plan.worker_bytes < 900 * MiB
