from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from dneuro.errors import NetworkError, NonFiniteError
from dneuro.nets.load import load
from dneuro.nets.train import save_state, train
from dneuro.nets.weights import state_sha256
from dneuro.spec.network import NetworkSpec, Preprocessing

SPEC = NetworkSpec(name="dneuro:convnet")
ONE_CLASS = NetworkSpec(name="dneuro:convnet", classes=1)
SETTINGS: dict[str, Any] = {"epochs": 1, "batch": 64, "learning_rate": 1e-3, "seed": 0}


@pytest.fixture(scope="module")
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scikit-learn's digits, enlarged from 8×8 to 28×28."""
    data = load_digits()
    small = torch.from_numpy(data.images[:, None] / 16).float()
    images = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear")
    return images.numpy(), data.target.astype(np.int64)


def random_images(count: int, channels: int = 1, size: int = 28) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((count, channels, size, size), dtype=np.float32)


def test_train__learns_digits_and_tells(
    digits: tuple[NDArray[np.float32], NDArray[np.int64]], tmp_path: Path
) -> None:
    images, labels = digits
    heard: list[tuple[int, float, float]] = []
    state, history = train(
        SPEC, images[:1500], labels[:1500], epochs=3, batch=32, learning_rate=3e-3, seed=1,
        on_epoch=lambda *numbers: heard.append(numbers),
    )  # fmt: skip
    assert heard == [(epoch + 1, *numbers) for epoch, numbers in enumerate(history)]
    assert [epoch for epoch, _, _ in heard] == [1, 2, 3]
    assert history[0][0] > history[1][0] > history[2][0]
    assert history[2][1] > 0.9
    save_state(state, tmp_path / "digits.safetensors")
    network = load(SPEC, weights=str(tmp_path / "digits.safetensors"))
    assert network.weights_sha256 == state_sha256(state)
    with torch.inference_mode():
        guesses = network.module(torch.from_numpy(images[1500:])).argmax(1).numpy()
    assert (guesses == labels[1500:]).mean() > 0.8


def test_train__equals_a_plain_loop() -> None:
    images, labels = random_images(10), np.arange(10)
    state, history = train(SPEC, images, labels, epochs=1, batch=10, learning_rate=0.01, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = type(load(SPEC, weights="none").module)()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    loss = torch.nn.functional.cross_entropy(module(torch.from_numpy(images)), torch.from_numpy(labels))
    loss.backward()
    optimizer.step()
    assert history[0][0] == pytest.approx(loss.item(), rel=1e-5)
    for key, value in module.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-4)


def test_train__is_repeatable_and_follows_its_seed_alone() -> None:
    images, labels = random_images(40), np.arange(40) % 10
    settings = {**SETTINGS, "batch": 8, "epochs": 2}
    before = torch.get_rng_state()
    first = train(SPEC, images, labels, **settings)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(100)
    second = train(SPEC, images, labels, **settings)
    assert state_sha256(first[0]) == state_sha256(second[0])
    assert first[1] == second[1]
    other = train(SPEC, images, labels, **{**settings, "seed": 1})
    assert state_sha256(first[0]) != state_sha256(other[0])


def test_train__dropout_is_repeatable_too() -> None:
    spec = NetworkSpec(
        name="torchvision:squeezenet1_1",
        classes=2,
        preprocessing=Preprocessing(resize=(32, 32)),
        weights="none",
    )
    images, labels = random_images(4, 3, 32), np.array([0, 1, 0, 1])
    runs = [train(spec, images, labels, **{**SETTINGS, "batch": 2, "epochs": 2}) for _ in range(2)]
    assert runs[0][1] == runs[1][1]


def test_train__does_not_let_a_card_round(monkeypatch: pytest.MonkeyPatch) -> None:
    cross_entropy, allowed = torch.nn.functional.cross_entropy, []

    def look(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        allowed.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return cross_entropy(outputs, labels)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", look)
    train(SPEC, random_images(4), np.arange(4), **SETTINGS)
    assert set(allowed) == {(False, False)}


def test_train__sees_every_image_once_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    # Labels that are all the same: with the outputs at hand, the accuracy counts the images.
    images = random_images(9)
    seen: list[int] = []
    cross_entropy = torch.nn.functional.cross_entropy

    def count(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.extend(labels.tolist())
        return cross_entropy(outputs, labels)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", count)
    train(SPEC, images, np.arange(9), **{**SETTINGS, "batch": 4, "epochs": 2})
    assert sorted(seen[:9]) == list(range(9))
    assert sorted(seen[9:]) == list(range(9))
    assert seen[:9] != seen[9:]


def test_train__a_last_batch_of_one_image_does_not_stop_batch_normalisation() -> None:
    spec = NetworkSpec(name="torchvision:resnet18", classes=2, preprocessing=Preprocessing(resize=(16, 16)))
    _, history = train(spec, random_images(5, 3, 16), np.array([0, 1, 0, 1, 0]), **{**SETTINGS, "batch": 2})
    assert len(history) == 1


def test_train__goes_on_from_a_file(tmp_path: Path) -> None:
    images, labels = random_images(20), np.arange(20) % 10
    state, _ = train(SPEC, images, labels, **SETTINGS)
    path = tmp_path / "first.safetensors"
    save_state(state, path)
    spec = SPEC.model_copy(update={"weights": str(path)})
    again, _ = train(spec, images, labels, **{**SETTINGS, "learning_rate": 1e-12})
    for key, value in state.items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=1e-8)


def test_train__one_class_is_a_study_of_its_own() -> None:
    # Saini & Papalexakis train on the digit 0 alone; the network then knows nothing else.
    _, history = train(
        SPEC, random_images(16), np.zeros(16, np.int64), **{**SETTINGS, "batch": 4, "epochs": 3}
    )
    assert history[-1][1] == 1.0


@pytest.mark.parametrize(
    ("spec", "images", "labels", "message", "hint"),
    [
        (SPEC, random_images(0), np.zeros(0, np.int64), r"on images \(0, 1, 28, 28\) float32", None),
        (SPEC, random_images(2, 3), np.zeros(2, np.int64), "cannot take an input of 3×28×28", "pre"),
        (SPEC, random_images(2).astype(np.float64), np.zeros(2, np.int64), "float64: it takes", None),
        (SPEC, random_images(3), np.array([0, -1, -1]), "2 of 3 images have no class", "leave the train"),
        (SPEC, random_images(2), np.array([0, 12]), "labels up to 12, but it has 10 outputs", "classes: 13"),
        (SPEC, random_images(2), np.zeros(3, np.int64), r"2 images but labels \(3,\) int64", None),
        (SPEC, random_images(2), np.zeros(2), r"2 images but labels \(2,\) float64", None),
        (ONE_CLASS, random_images(2), np.zeros(2, np.int64), "two classes or more", None),
    ],
)  # fmt: skip
def test_train__refuses_what_it_cannot_learn_from(
    spec: NetworkSpec, images: Any, labels: Any, message: str, hint: str | None
) -> None:
    with pytest.raises(NetworkError, match=message) as caught:
        train(spec, images, labels, **SETTINGS)
    assert hint is None or hint in str(caught.value.hint)


def test_train__says_when_the_loss_is_no_number() -> None:
    with pytest.raises(NonFiniteError, match=r"the loss is (nan|inf) in epoch") as caught:
        settings = {**SETTINGS, "learning_rate": 1e30, "batch": 2}
        train(SPEC, random_images(20) * 1e18, np.arange(20) % 10, **settings)
    assert "learning_rate: 1e+29" in str(caught.value.hint)
