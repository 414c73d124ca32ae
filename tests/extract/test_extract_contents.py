"""What a store holds equals what torch, NumPy and Pillow make of the same pictures on their own."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ImageSourceError, NonFiniteError
from dneuro.extract.pipeline import cast
from dneuro.jobs.driver import run_job
from dneuro.nets.convnet import ConvNet
from dneuro.spec import JobSpec
from dneuro.spec.steps import Codec
from dneuro.store.rounding import to_bfloat16

MakeJob = Callable[..., JobSpec]
PICTURES = np.random.default_rng(1).integers(0, 256, (40, 28, 28), np.uint8)
LABELS = np.arange(40) % 10


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, ConvNet]:
    """Weights in a file, and the network that has them."""
    torch.manual_seed(3)
    module = ConvNet().eval()
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth", module


@pytest.fixture
def job(tmp_path: Path, make_job: MakeJob, weights: tuple[Path, ConvNet]) -> Callable[..., JobSpec]:
    """Return a function that makes a job over `PICTURES` and these weights."""
    np.savez(tmp_path / "pictures.npz", images=PICTURES, labels=LABELS)

    def make(layers: Any, *steps: Any, **settings: Any) -> JobSpec:
        return make_job(
            *steps,
            **{
                "images": {"source": "array", "root": str(tmp_path / "pictures.npz")},
                "network": {"name": "dneuro:convnet", "weights": str(weights[0])},
                "layers": layers,
                **settings,
            },
        )

    return make


def forward(module: nn.Module, inputs: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    """Outputs of every named module, by hooks of this test's own."""
    found: dict[str, NDArray[np.float32]] = {}
    handles = [
        part.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: out.numpy().copy()}))
        for name, part in module.named_modules()
    ]
    with torch.no_grad():
        module(inputs)
    for handle in handles:
        handle.remove()
    return found


def expected(module: nn.Module) -> dict[str, NDArray[np.float32]]:
    return forward(module, torch.from_numpy(PICTURES[:, None].astype(np.float32) / 255))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_full__is_what_the_layer_yields(
    job: MakeJob, weights: tuple[Path, ConvNet], threads: ThreadExecutor, batch: int
) -> None:
    result = run_job(job(["conv1", "relu2", "fc"], batch=batch), threads)
    store, wanted = dn.open(result.store), expected(weights[1])
    assert {name: array.shape for name, array in store.items()} == {
        "conv1": (40, 10, 24, 24), "relu2": (40, 20, 4, 4), "fc": (40, 10)}  # fmt: skip
    for name, array in store.items():
        np.testing.assert_allclose(array.values, wanted[name], rtol=1e-4, atol=1e-6)
    assert (store["conv1"].values < 0).any()
    assert not (store["relu2"].values < 0).any()


def test_max_and_mean__are_those_of_the_positions(
    job: MakeJob, weights: tuple[Path, ConvNet], threads: ThreadExecutor
) -> None:
    full = dn.open(run_job(job(["conv1", "relu2"], store="full.zarr"), threads).store)
    kept = dn.open(
        run_job(job({"conv1": {"keep": "max"}, "relu2": {"keep": "max"}}, store="max.zarr"), threads).store
    )
    mean = dn.open(run_job(job({"conv1": {"keep": "mean"}, "fc": {"keep": "max"}}, store="mean.zarr"), threads).store)
    wanted = expected(weights[1])
    for layer in ("conv1", "relu2"):
        cells = full[layer].values.reshape(40, full[layer].shape[1], -1)
        assert kept[layer].dims == ("image", "channel")
        np.testing.assert_array_equal(kept[layer].values, cells.max(axis=2))
        places = cells.argmax(axis=2)  # ReLU's zeros tie: the first position counts
        width = full[layer].shape[3]
        np.testing.assert_array_equal(kept[layer].coords["activation_y"].values, places // width)
        np.testing.assert_array_equal(kept[layer].coords["activation_x"].values, places % width)
        np.testing.assert_allclose(kept[layer].values, wanted[layer].max(axis=(2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mean["conv1"].values, wanted["conv1"].mean(axis=(2, 3)), rtol=1e-4, atol=1e-6)
    assert mean["fc"].dims == ("image", "channel"), "a layer without positions is its own maximum"
    assert "activation_y" not in mean["fc"].coords
    np.testing.assert_allclose(mean["fc"].values, wanted["fc"], rtol=1e-4, atol=1e-6)


def test_stats__are_those_of_the_maxima(
    job: MakeJob, weights: tuple[Path, ConvNet], threads: ThreadExecutor
) -> None:
    store = dn.open(run_job(job({"conv1": {"keep": "stats"}}, top_k=4), threads).store)
    assert list(store) == []
    assert not (store.path / "layers/conv1/activation").exists()
    found, largest = store.statistics("conv1"), expected(weights[1])["conv1"].max(axis=(2, 3)).astype(np.float64)
    np.testing.assert_array_equal(found["count"], 40)
    np.testing.assert_allclose(found["mean"], largest.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["std"], largest.std(axis=0), rtol=1e-3)
    np.testing.assert_allclose(found["variance"], largest.var(axis=0), rtol=1e-3)
    np.testing.assert_allclose(found["min"], largest.min(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["max"], largest.max(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["fraction_active"], (largest > 0).mean(axis=0))
    order = np.argsort(-largest, axis=0, kind="stable")
    np.testing.assert_array_equal(found["top_image"], order[:4].T)
    np.testing.assert_array_equal(found["bottom_image"], np.argsort(largest, axis=0, kind="stable")[:4].T)
    np.testing.assert_array_equal(found["top_label"], LABELS[order[:4].T])
    np.testing.assert_allclose(found["top_value"], np.sort(largest, axis=0)[::-1][:4].T, rtol=1e-4)


def test_float16__is_the_float32_rounded(job: MakeJob, threads: ThreadExecutor) -> None:
    kept = {"conv1": {"keep": "full"}, "relu2": {"keep": "max"}, "pool2": {"keep": "mean"}}
    whole = dn.open(run_job(job(kept, store="whole.zarr"), threads).store)
    half = dn.open(run_job(job(kept, dtype="float16", store="half.zarr"), threads).store)
    for layer in kept:
        assert half[layer].dtype == np.float16
        np.testing.assert_allclose(half[layer].values, whole[layer].values, rtol=2**-10, atol=2**-24)
    np.testing.assert_array_equal(half["conv1"].values, whole["conv1"].values.astype(np.float16))
    np.testing.assert_array_equal(half["relu2"].values, whole["relu2"].values.astype(np.float16))
    # what is recorded is about what is stored
    np.testing.assert_array_equal(half.statistics("relu2")["max"], half["relu2"].values.max(axis=0))


def test_bfloat16__is_the_float32_rounded(job: MakeJob, threads: ThreadExecutor) -> None:
    kept = {"conv1": {"keep": "full"}, "relu2": {"keep": "max"}, "relu1": {"keep": "mean"}}
    whole = dn.open(run_job(job(kept, store="whole.zarr"), threads).store)
    half = dn.open(run_job(job(kept, dtype="bfloat16", store="half.zarr"), threads).store)
    for layer in kept:
        assert half[layer].dtype == np.float32
        np.testing.assert_array_equal(half[layer].values, to_bfloat16(whole[layer].values))
    mean = half["conv1"].max(("y", "x")).values.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(half.statistics("conv1")["mean"], mean, err_msg="taken of the values as they are stored")


@pytest.mark.parametrize("keep", ["full", "max", "stats"])
def test_bfloat16__is_asked_of_like_any_other(job: MakeJob, threads: ThreadExecutor, keep: str) -> None:
    steps = [{kind: {"layer": "relu2"}} for kind in ("moments", "top_images", "cooccurrence", "similarity")]
    half = dn.open(run_job(job({"relu2": {"keep": keep}}, *steps, dtype="bfloat16", store="half.zarr"), threads).store)
    whole = dn.open(run_job(job({"relu2": {"keep": "full"}}, store="whole.zarr"), threads).store)
    expected = dn.moments(whole["relu2"].copy(data=to_bfloat16(whole["relu2"].values)), client=threads)
    np.testing.assert_allclose(half.results["moments"]["relu2"]["mean"], expected["mean"], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_positions__do_not_depend_on_what_else_is_asked(job: MakeJob, threads: ThreadExecutor, dtype: str) -> None:
    """Of two values that are rounded to the same the first counts, wherever they are compared."""
    found = []
    for number, (keep, *steps) in enumerate([("max",), ("max", {"moments": {"per": "image"}}), ("full",)]):
        made = run_job(job({"relu2": {"keep": keep}}, *steps, dtype=dtype, store=f"{number}.zarr"), threads)
        found.append(dn.open(made.store).statistics("relu2"))
    for other in found[1:]:
        for name in ("top_image", "top_y", "top_x"):
            np.testing.assert_array_equal(other[name], found[0][name], err_msg=name)


@pytest.mark.parametrize("codec", get_args(Codec))
def test_codec__changes_no_number(job: MakeJob, threads: ThreadExecutor, codec: str) -> None:
    whole = dn.open(run_job(job(["conv1"], store="whole.zarr"), threads).store)
    packed = dn.open(run_job(job(["conv1"], codec=codec, store="packed.zarr"), threads).store)
    np.testing.assert_array_equal(packed["conv1"].values, whole["conv1"].values)
    assert packed["conv1"].attrs["codec"] == codec


def test_float16__refuses_what_it_cannot_hold(
    job: MakeJob, weights: tuple[Path, ConvNet], threads: ThreadExecutor
) -> None:
    path, module = weights
    with torch.no_grad():
        module.conv1.bias[4] = 1e5
    torch.save(module.state_dict(), path)
    message = r"conv1: image \d+ has an activation of (9999|1000)[.\d]+, beyond what float16 holds"
    with pytest.raises(NonFiniteError, match=message) as caught:
        run_job(job(["conv1"], dtype="float16"), threads)
    assert caught.value.hint is not None
    assert "extract: {dtype: float32} and another store:" in caught.value.hint
    assert "with another store: where this one has them in other layers" in caught.value.hint
    store = dn.open(run_job(job(["conv1"], store="whole.zarr"), threads).store)
    assert float(store["conv1"].max()) > 65504


def test_float16__masks_what_it_cannot_hold_where_the_job_says_so(
    job: MakeJob, weights: tuple[Path, ConvNet], threads: ThreadExecutor
) -> None:
    path, module = weights
    before = dn.open(run_job(job(["conv1"], store="before.zarr"), threads).store)["conv1"]
    largest = np.median(before.values.max(axis=(1, 2, 3)))
    with torch.no_grad():  # so that half of the images go beyond
        module.conv1.weight *= 65504 / largest
        module.conv1.bias *= 65504 / largest
    torch.save(module.state_dict(), path)
    store = dn.open(run_job(job(["conv1"], dtype="float16", on_nonfinite="mask"), threads).store)
    whole = dn.open(run_job(job(["conv1"], store="whole.zarr"), threads).store)["conv1"]
    beyond = np.abs(whole.values).max(axis=(1, 2, 3)) >= 65520  # what is less is rounded to the largest
    assert 0 < beyond.sum() < len(beyond)
    np.testing.assert_array_equal(store["conv1"]["status"].values == 2, beyond)
    assert "beyond what float16 holds (±65504)" in str(store.masked)
    assert np.isfinite(store["conv1"].values[~beyond]).all()


def test_cast__leaves_infinity_to_the_check_of_finiteness() -> None:
    values = np.array([[1.0, np.inf, np.nan]], np.float32)
    np.testing.assert_array_equal(cast(values, "float16", "conv", np.array([3])), values.astype(np.float16))
    with pytest.raises(NonFiniteError, match="conv: image 9 has an activation of -70000"):
        cast(np.array([[0.0], [-7e4]], np.float32), "float16", "conv", np.array([8, 9]))


def test_nan_weights__name_layer_image_and_neuron(
    job: MakeJob, weights: tuple[Path, ConvNet], threads: ThreadExecutor
) -> None:
    path, module = weights
    with torch.no_grad():
        module.conv2.weight[7] = np.nan
    torch.save(module.state_dict(), path)
    with pytest.raises(NonFiniteError, match=r"pool2: image \d+, neuron \(7, 0, 0\) is nan") as caught:
        run_job(job(["relu1", "pool2"]), threads)
    assert caught.value.exit_code == 4


def test_predictions__are_the_largest_output(
    job: MakeJob, weights: tuple[Path, ConvNet], threads: ThreadExecutor
) -> None:
    store = dn.open(run_job(job(["relu1"]), threads).store)
    wanted = expected(weights[1])["fc"].argmax(axis=1)
    np.testing.assert_array_equal(store.images["prediction"], wanted)
    np.testing.assert_array_equal(store.images["correct"], wanted == LABELS)
    assert store.images["correct"].dtype == bool
    assert 0 < int(store.images["correct"].sum()) < 40, "the pictures must tell right from wrong"


def test_predictions__can_be_left_out_and_need_labels_to_be_correct(
    tmp_path: Path, job: MakeJob, threads: ThreadExecutor
) -> None:
    without = dn.open(run_job(job(["relu1"], predictions=False), threads).store)
    assert {"prediction", "correct"}.isdisjoint(without.images.variables)
    np.savez(tmp_path / "unlabelled.npz", images=PICTURES)
    images = {"source": "array", "root": str(tmp_path / "unlabelled.npz")}
    unlabelled = dn.open(run_job(job(["relu1"], images=images, store="u.zarr"), threads).store)
    assert "prediction" in unlabelled.images
    assert "correct" not in unlabelled.images
    np.testing.assert_array_equal(unlabelled.images["label"], -1)
    np.testing.assert_array_equal(unlabelled["relu1"].values, without["relu1"].values)


def test_root__holds_what_the_source_says(job: MakeJob, threads: ThreadExecutor) -> None:
    store = dn.open(run_job(job(["fc"]), threads).store)
    assert store.images["filename"].values.tolist() == [f"image-{i:04d}" for i in range(40)]
    np.testing.assert_array_equal(store.images["label"], LABELS)
    np.testing.assert_array_equal(store.images["status"], 0)
    np.testing.assert_array_equal(store.images["checksum"], [zlib.crc32(p.tobytes()) for p in PICTURES])
    assert store.images["class"].values.tolist() == [str(i) for i in range(10)]


def test_pictures__are_what_the_network_saw(job: MakeJob, threads: ThreadExecutor) -> None:
    store = dn.open(run_job(job(["fc"]), threads).store)
    np.testing.assert_array_equal(store.tree["pictures/picture"], PICTURES[..., None])
    without = dn.open(run_job(job(["fc"], thumbnails=False, store="w.zarr"), threads).store)
    assert "pictures" not in without.tree.children


@pytest.fixture
def color_photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    for number, (height, width) in enumerate([(250, 300), (224, 224), (300, 240), (64, 70)]):
        path = tmp_path / "color" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "color"


def test_alexnet__is_captured_before_the_relu_that_works_in_place(
    color_photos: Path, make_job: MakeJob, threads: ThreadExecutor
) -> None:
    from torchvision.models import AlexNet_Weights, alexnet

    job = make_job(
        images={"source": "folder", "root": str(color_photos)},
        network={"name": "torchvision:alexnet", "weights": "none", "seed": 2},
        layers=["features.0", "features.1"],
        batch=2,
    )
    store = dn.open(run_job(job, threads).store)
    raw, rectified = store["features.0"].values, store["features.1"].values
    assert raw.shape == (4, 64, 55, 55)
    assert (raw < 0).mean() > 0.1
    np.testing.assert_array_equal(np.maximum(raw, 0), rectified)

    torch.manual_seed(2)
    module = alexnet().eval()
    transform = AlexNet_Weights.DEFAULT.transforms()
    pictures = [Image.open(path).convert("RGB") for path in sorted((color_photos / "a").iterdir())]
    inputs = torch.stack([transform(picture) for picture in pictures])
    with torch.no_grad():
        np.testing.assert_allclose(raw, module.features[0](inputs).numpy(), rtol=1e-3, atol=1e-4)
        wanted = module(inputs).argmax(dim=1)
    np.testing.assert_array_equal(store.images["prediction"], wanted)

    kept = store.tree["pictures/picture"].values
    assert kept.shape == (4, 112, 112, 3)
    whole = pictures[1].resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    np.testing.assert_array_equal(kept[1], whole.reduce(2))


def test_sizes__that_differ_are_refused_naming_the_image(
    tmp_path: Path, make_job: MakeJob, threads: ThreadExecutor
) -> None:
    """Also where the batches are of one size each: a 1 × 1 map must not be spread over the 3 × 3 of the others."""
    for number in range(8):
        path = tmp_path / "sizes" / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((64, 64) if number < 4 else (32, 32), number, np.uint8)).save(path)
    job = make_job(
        images={"source": "folder", "root": str(tmp_path / "sizes")},
        network={"name": "torchvision:squeezenet1_1", "weights": "none", "preprocessing": {}},
        layers=["features.12.squeeze"],
        predictions=False,
        batch=4,
    )
    with pytest.raises(ImageSourceError, match=r"a/4.png is 32×32 pixels, the first image is 64×64") as caught:
        run_job(job, threads)
    assert "resize" in str(caught.value.hint)


def test_weights__that_changed_in_their_file_are_read_again(
    job: MakeJob, weights: tuple[Path, ConvNet], threads: ThreadExecutor
) -> None:
    """The network is loaded once per process: but not if it is another one by now."""
    path, module = weights
    first = dn.open(run_job(job(["fc"], store="1.zarr"), threads).store)
    with torch.no_grad():
        module.fc.bias += 1
    torch.save(module.state_dict(), path)
    second = dn.open(run_job(job(["fc"], store="2.zarr"), threads).store)
    assert first.attrs["weights_sha256"] != second.attrs["weights_sha256"]
    np.testing.assert_allclose(second["fc"].values, first["fc"].values + 1, rtol=1e-4)


def test_extract__is_the_same_bit_for_bit_on_any_number_of_threads(
    job: MakeJob, same_store: Callable[[Path, Path], None]
) -> None:
    stores = []
    for slots in (1, 4):
        executor = ThreadExecutor(slots)
        stores.append(run_job(job(["relu1", "fc"], store=f"{slots}.zarr"), executor).store)
        executor._pool.shutdown()
    same_store(*stores)


def test_random_weights__follow_the_seed(job: MakeJob, threads: ThreadExecutor) -> None:
    stores = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        network = {"name": "dneuro:convnet", "weights": "none", "seed": seed}
        stores.append(dn.open(run_job(job(["fc"], network=network, store=f"{name}.zarr"), threads).store)["fc"].values)
    np.testing.assert_array_equal(stores[0], stores[1])
    assert not np.array_equal(stores[0], stores[2])


def test_prediction__says_what_the_networks_classes_are_called(
    tmp_path: Path, make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor
) -> None:
    """Two folders of photographs, a thousand classes of the network: class 0 is no cat."""
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "s.pth")
    photos = make_photos(8, side=64)
    network = {"name": "torchvision:squeezenet1_1", "weights": str(tmp_path / "s.pth"), "preprocessing": {}}
    job = make_job(images=photos["images"], network=network, layers={"features.12": {"keep": "max"}})
    images = dn.open(run_job(job, threads).store).images
    assert "correct" not in images
    assert images["class"].values.tolist() == ["cat", "dog"]
    assert images["prediction"].attrs["class_names"] == SqueezeNet1_1_Weights.DEFAULT.meta["categories"]

    photos = make_photos(8, root="small")
    own = dn.open(run_job(make_job(layers=["fc"], store="own.zarr", **photos), threads).store).images
    assert own["prediction"].attrs["class_names"] == ["cat", "dog"]
    unknown = photos | {"network": {**photos["network"], "classes": 10}}
    other = dn.open(run_job(make_job(layers=["fc"], store="other.zarr", **unknown), threads).store).images
    assert "class_names" not in other["prediction"].attrs
