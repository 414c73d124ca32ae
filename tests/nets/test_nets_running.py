"""From pixels to outputs: the input equals the preprocessing's to the last bit; precision is what was asked for."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dneuro.errors import NetworkError
from dneuro.images.preprocess import to_input
from dneuro.nets.load import Network, load
from dneuro.nets.precision import Precision, check_precision, computing_in
from dneuro.nets.running import Runner
from dneuro.spec.network import NetworkSpec, Preprocessing

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
LAYERS = ["features.3.expand3x3_activation", "features.12.expand1x1"]


def squeezenet(**settings: str) -> Network:
    preprocessing = Preprocessing(crop=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    spec = NetworkSpec(name="torchvision:squeezenet1_1", weights="none", preprocessing=preprocessing, **settings)  # type: ignore[arg-type]
    return load(spec)


def pixels(count: int = 5, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


def run(network: Network, images: NDArray[np.uint8]) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    with Runner(network, LAYERS, to_end=True) as runner:
        outputs, classes = runner.start(images).result()
    assert classes is not None
    return outputs, classes


@pytest.mark.parametrize("color", ["rgb", "grey", "rgb, one number for all"])
def test_inputs__equal_the_preprocessing_bit_for_bit(color: str) -> None:
    three = color == "rgb"  # the others have one mean
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if three else (0.1307, 0.3081)
    how = Preprocessing(color="grey" if color == "grey" else "rgb", mean=mean, std=std)  # type: ignore[arg-type]
    network = squeezenet()
    network.preprocessing = how
    images = np.random.default_rng(1).integers(0, 256, (3, 20, 30, how.channels), np.uint8)
    images[0, :16, :16, 0] = np.arange(256).reshape(16, 16)
    with Runner(network, [], to_end=True) as runner:
        found = runner.inputs(torch.from_numpy(images))
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(found.numpy(), np.stack([to_input(image, how) for image in images]))


def test_runner__equals_the_network_run_by_hand() -> None:
    network, images = squeezenet(), pixels()
    outputs, classes = run(network, images)
    inputs = torch.from_numpy(np.stack([to_input(image, network.preprocessing) for image in images]))
    with torch.inference_mode():
        middle = network.module.features[:4](inputs)
        last = network.module(inputs)
    expected = middle[:, 64:].numpy()  # a Fire block yields its 1×1 and 3×3 halves, behind each other
    np.testing.assert_allclose(outputs[LAYERS[0]], expected, rtol=1e-5, atol=1e-6)
    assert outputs[LAYERS[0]].flags.c_contiguous
    np.testing.assert_array_equal(classes, last.argmax(dim=1))


def test_classes__are_unknown_where_the_largest_output_is_not_finite() -> None:
    network, images = squeezenet(), pixels(4)
    expected = run(network, images)[1]
    bad = torch.tensor([[0.0], [torch.nan], [torch.inf], [-torch.inf]])
    place = torch.arange(1000) == 7
    handle = network.module.register_forward_hook(lambda _module, _args, out: torch.where(place, out + bad, out))
    outputs, classes = run(network, images)
    handle.remove()
    assert classes.tolist() == [expected[0], -1, -1, expected[3]], "-inf says that it is another class"
    assert classes.dtype == np.int64
    assert all(np.isfinite(output).all() for output in outputs.values())


def test_convolutions__run_channels_last_in_the_runner() -> None:
    network, seen = squeezenet(), []
    for part in network.module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(
                lambda _part, args, output: seen.append(
                    [value.is_contiguous(memory_format=torch.channels_last) for value in (args[0], output)]
                )
            )
    run(network, pixels())
    assert len(seen) == 26
    assert np.all(seen)


def test_bfloat16__is_what_autocast_computes_and_comes_as_float32() -> None:
    images = pixels()
    exact, half = run(squeezenet(), images)[0], run(squeezenet(precision="bfloat16"), images)[0]
    plain = squeezenet()
    inputs = torch.from_numpy(np.stack([to_input(image, plain.preprocessing) for image in images]))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain.module.features[:4](inputs)[:, 64:].float().numpy()
    np.testing.assert_array_equal(half[LAYERS[0]], expected)
    for layer in LAYERS:
        assert half[layer].dtype == np.float32
        error = np.abs(half[layer] - exact[layer]).max() / np.abs(exact[layer]).max()
        assert 1e-5 < error < 0.05, "less exact, and not another network"


def test_float32__stays_so_inside_somebody_elses_autocast() -> None:
    images, network = pixels(), squeezenet()
    expected = run(network, images)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(network, images)[0]
    for layer in LAYERS:
        np.testing.assert_array_equal(found[layer], expected[layer])


def test_tf32__is_refused_where_there_is_none() -> None:
    with pytest.raises(NetworkError, match="precision tf32 is one of NVIDIA's GPUs, device cpu") as caught:
        check_precision("tf32", torch.device("cpu"))
    assert "bfloat16" in str(caught.value.hint)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_products__on_a_card_are_what_was_asked_for_and_then_as_before(precision: Precision) -> None:
    """The words are torch's own for a card, which need not be there."""
    matmul, cudnn, tf32 = torch.backends.cuda.matmul, torch.backends.cudnn, precision == "tf32"
    for own in (False, True):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=own):
            before = (matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision())
            assert before[1] is own
            with computing_in(precision, torch.device("cuda")):
                assert (matmul.allow_tf32, cudnn.allow_tf32) == (tf32, tf32)
                with computing_in(precision, torch.device("cuda")):  # a program is made inside
                    assert (matmul.allow_tf32, cudnn.allow_tf32) == (tf32, tf32)
            assert (matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_precision__that_an_older_card_only_emulates_is_refused(
    monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(NetworkError, match=f"device cuda:1 does not compute in {precision}"):
        check_precision(precision, torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_precision(precision, torch.device("cuda:1"))


FAULTS = """
    import resource, sys, torch
    from dneuro import allocation

    if sys.argv[1] == "kept" and not allocation.keep_memory():
        sys.exit(77)
    for turn in range(24):
        if turn == 8:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(12 << 20).fill_(1.0)  # 48 MiB
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    allocation.release_memory()
"""


def test_memory__of_large_layers_is_kept_for_the_next() -> None:
    faults = {}
    for how in ("usual", "kept"):
        command = [sys.executable, "-c", textwrap.dedent(FAULTS), how]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 77:
            pytest.skip("another allocator than glibc's")
        assert done.returncode == 0, done.stderr
        faults[how] = int(done.stdout)
    assert faults["kept"] < faults["usual"] / 4


@needs_cuda
def test_cuda__float32_is_not_tf32_and_runs_ahead() -> None:
    images = [pixels(8, seed) for seed in range(4)]
    on_cpu, on_gpu = squeezenet(), squeezenet(device="cuda")
    with Runner(on_gpu, LAYERS, to_end=True) as runner:
        assert runner.ahead
        started = []
        for some in images:
            room = runner.pixels(some.shape)
            room[...] = some
            started.append(runner.start(room))
        results = [running.result() for running in started]
    for some, (outputs, classes) in zip(images, results, strict=True):
        expected, wanted = run(on_cpu, some)
        np.testing.assert_array_equal(classes, wanted)
        for layer in LAYERS:
            scale = np.abs(expected[layer]).max()
            np.testing.assert_allclose(outputs[layer] / scale, expected[layer] / scale, atol=2e-5)


@needs_cuda
@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_cuda__other_precisions_only_when_asked_for(precision: str) -> None:
    images = pixels(8)
    exact = run(squeezenet(device="cuda"), images)[0]
    found = run(squeezenet(device="cuda", precision=precision), images)[0]
    for layer in LAYERS:
        error = np.abs(found[layer] - exact[layer]).max() / np.abs(exact[layer]).max()
        assert 1e-6 < error < 0.05
