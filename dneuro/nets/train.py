"""Training a network on the job's images: cross-entropy, Adam."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dneuro.errors import NetworkError, NonFiniteError
from dneuro.nets.catalogue import find, kind_of_weights
from dneuro.nets.describe import trace
from dneuro.nets.device import parse_device, seeded
from dneuro.nets.fit import attach, fit
from dneuro.nets.weights import State, read_state, save_state
from dneuro.products import PRODUCTS
from dneuro.spec.network import EXPORT, NetworkSpec

__all__ = ["save_state", "train"]


def train(
    spec: NetworkSpec,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    on_epoch: Callable[[int, float, float], object] | None = None,
) -> tuple[State, list[tuple[float, float]]]:
    """Train a network and return its weights.

    Parameters
    ----------
    spec : NetworkSpec
        The network. It starts from random weights, or from those of a file if ``weights`` names one.
    images : ndarray of float32 (n, channel, y, x)
        The network's input, preprocessed.
    labels : ndarray of int64 (n,)
        Class of each image, from 0.
    epochs : int
        Times that every image is seen.
    batch : int
        Images per step of the optimiser.
    learning_rate : float
        Adam's step size.
    seed : int
        Seed of the first weights, of the order of the images and of dropout.
    on_epoch : callable, optional
        Called after each epoch with its number (from 1), mean loss and accuracy.

    Returns
    -------
    state : dict of Tensor
        The weights by name, on the CPU.
    history : list of (float, float)
        Mean cross-entropy and accuracy of each epoch, over the images as they were seen in it.

    Raises
    ------
    NetworkError
        If images or labels do not fit the network.
    NonFiniteError
        If the loss is no longer a number.

    Notes
    -----
    On the CPU the result depends on nothing but the arguments and the number of threads. Cost: `epochs`
    passes over the images, forward and back; the images are only ever copied batch by batch.
    """
    device = parse_device(spec.device)
    architecture = find(spec)
    if images.ndim != 4 or not len(images) or images.dtype != np.float32:
        found = f"{images.shape} {images.dtype}"
        raise NetworkError(f"cannot train {spec.name} on images {found}: it takes (n, channel, y, x) float32")
    if spec.name.startswith(EXPORT):
        architecture.build()  # says why it cannot be trained
    steps = trace(architecture.build_shapes(), images.shape[1:], spec.name, shapes=architecture.shapes)
    _check_labels(spec, images, labels, steps.classes)
    history = []
    with seeded(seed, device), _exact_convolutions():
        module = architecture.build().train()
        state = module.state_dict()
        if kind_of_weights(spec.weights) == "file":
            given = read_state(spec.weights)
            state, _ = fit(module, given, f"{spec.weights} does not fit {spec.name}")
        attach(module, state, device)
        optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
        order = torch.Generator().manual_seed(seed)
        for epoch in range(1, epochs + 1):
            loss, accuracy = _run_epoch(module, optimizer, _batches(images, labels, batch, order), device)
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"training {spec.name}: the loss is {loss} in epoch {epoch}",
                    hint=f"a smaller step: learning_rate: {learning_rate / 10:g}",
                )
            history.append((loss, accuracy))
            if on_epoch is not None:
                on_epoch(epoch, loss, accuracy)
    return {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}, history


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Return the context in which cuDNN gives the same results each time, in float32: torch's own rounds to TF32."""
    with PRODUCTS.rounded(False), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def _batches(
    images: NDArray[np.float32], labels: NDArray[np.int64], batch: int, order: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images once, in random order."""
    parts = list(torch.split(torch.randperm(len(images), generator=order), batch))
    if len(parts) > 1 and len(parts[-1]) == 1:  # batch normalisation cannot learn from a single image
        parts[-2:] = [torch.cat(parts[-2:])]
    for part in parts:
        rows = part.numpy()
        yield torch.from_numpy(images[rows]), torch.from_numpy(labels[rows]).long()


def _run_epoch(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    device: torch.device,
) -> tuple[float, float]:
    """Take one step per batch; return mean loss and accuracy, each batch's before its step."""
    count, loss_sum, right = 0, 0.0, 0
    module.train()
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        outputs = module(images)
        loss = nn.functional.cross_entropy(outputs, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        count += len(labels)
        loss_sum += float(loss.detach()) * len(labels)
        right += int((outputs.detach().argmax(1) == labels).sum())
    return loss_sum / count, right / count


def _check_labels(
    spec: NetworkSpec, images: NDArray[np.float32], labels: NDArray[np.int64], classes: int | None
) -> None:
    what = f"cannot train {spec.name}"
    if classes is None or classes < 2:
        raise NetworkError(f"{what}: its output is not one number for each of two classes or more")
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise NetworkError(f"{what}: {len(images)} images but labels {labels.shape} {labels.dtype}")
    unknown = int((labels < 0).sum())
    if unknown:
        raise NetworkError(
            f"{what}: {unknown} of {len(labels)} images have no class",
            hint="train on images that all have one, such as source: folder, or leave the train step out",
        )
    if labels.max() >= classes:
        raise NetworkError(
            f"{what}: there are labels up to {labels.max()}, but it has {classes} outputs",
            hint=f"network: {{name: {spec.name}, classes: {labels.max() + 1}}}",
        )
