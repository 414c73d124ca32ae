"""What happens to one batch: read, decode, run the network, cast, pool."""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError, NetworkError, NonFiniteError, UnreadableImageError
from dneuro.extract.work import IMAGES, ExtractWork
from dneuro.images.manifest import Manifest
from dneuro.images.preprocess import to_input, view
from dneuro.images.sources import ImageSource, open_source
from dneuro.images.thumbnails import reduce_to

if TYPE_CHECKING:
    from dneuro.nets.load import Network

_lock = threading.RLock()
_networks: dict[tuple[Any, ...], Network] = {}
_sources: dict[tuple[Any, ...], ImageSource] = {}


@dataclass
class Batch:
    """A run of images and what the network made of them.

    Parameters
    ----------
    numbers : array (images,) of int64
        Images, as the manifest numbers them.
    readable : array (images,) of bool
        Those that could be read; the others are masked.
    checksums : array (images,) of uint32
        CRC-32 of the stored bytes.
    pictures : array (images, rows, columns, colors) of uint8
        The images as the network saw them, reduced.
    reasons : list of (str, str)
        Name and cause of each masked image.
    outputs : dict of array
        Per layer (readable images, …).
    predictions : array (readable images,) of int64, or None
        The class with the largest output.
    """

    numbers: NDArray[np.int64]
    readable: NDArray[np.bool_]
    checksums: NDArray[np.uint32]
    pictures: NDArray[np.uint8]
    reasons: list[tuple[str, str]]
    outputs: dict[str, NDArray[Any]]
    predictions: NDArray[np.int64] | None

    def spread(self, values: NDArray[Any], blank: Any) -> NDArray[Any]:
        """Return `values` of the readable images as rows for all images, `blank` where masked."""
        if self.readable.all():
            return values
        rows = np.full((len(self.readable), *values.shape[1:]), blank, dtype=values.dtype)
        rows[self.readable] = values
        return rows


def network_of(work: ExtractWork) -> Network:
    """Return the network, loaded once per process."""
    import torch

    from dneuro.nets.load import load

    # The fingerprint knows the weights themselves: a file may have other content now than in an earlier run.
    key = (work.network, work.weights, work.fingerprints[IMAGES], tuple(work.plan.widths), work.predictions)
    with _lock:
        torch.set_num_threads(work.threads)
        if key not in _networks:
            _networks.clear()
            partial = None if work.predictions else list(work.plan.widths)
            network = load(
                work.network, weights=work.weights, partial_for=partial, input_shape=work.plan.input_shape
            )
            if (network.identity, network.weights_sha256) != work.loaded:
                raise NetworkError(
                    f"{work.network.name} is another network on {platform.node()} than where the job was planned: "
                    "its code, its file or its weights differ",
                    hint="give every machine the same files and the same versions, and run the job again",
                )
            _networks[key] = network
        return _networks[key]


def source_of(work: ExtractWork) -> ImageSource:
    """Return the images, opened once per process."""
    key = (work.images.model_dump_json(), str(work.manifest), work.manifest.stat().st_mtime_ns)
    with _lock:
        if key not in _sources:
            _sources.clear()
            _sources[key] = open_source(work.images, Manifest.load(work.manifest))
        return _sources[key]


def batches(work: ExtractWork, layers: Sequence[str], start: int, stop: int) -> Iterator[Batch]:
    """Yield the images from `start` to `stop` batch by batch, through the network.

    Parameters
    ----------
    work : ExtractWork
        The extraction.
    layers : sequence of str
        Layers wanted; may be empty.
    start, stop : int
        Images.
    """
    import torch

    from dneuro.nets.taps import tap

    source = source_of(work)
    network = network_of(work) if layers or work.predictions else None
    for first in range(start, stop, work.plan.batch):
        batch, inputs = _read(work, source, np.arange(first, min(first + work.plan.batch, stop)))
        if network is not None and inputs:
            stacked = torch.from_numpy(np.stack(inputs)).to(work.network.device)
            with tap(network.module, layers, to_end=work.predictions, dims=network.dims) as tapped:
                captured, output = tapped(stacked)
            batch.outputs = {name: captured[name].cpu().numpy() for name in layers}
            if work.predictions:
                assert output is not None
                batch.predictions = output.argmax(dim=1).cpu().numpy()
        elif network is not None:
            batch.outputs = {p.name: np.empty((0, *p.shape), np.float32) for p in work.plan.layers if p.name in layers}
            batch.predictions = np.empty(0, np.int64) if work.predictions else None
        yield batch


def _read(
    work: ExtractWork, source: ImageSource, numbers: NDArray[np.int64]
) -> tuple[Batch, list[NDArray[np.float32]]]:
    """Read and prepare a batch; an image that cannot be read is masked."""
    shape = next(((a.shape[1], a.shape[2], a.shape[3]) for a in work.plan.root if a.name == "picture"), None)
    batch = Batch(
        numbers=numbers,
        readable=np.zeros(len(numbers), bool),
        checksums=np.zeros(len(numbers), np.uint32),
        pictures=np.zeros((len(numbers), *(shape or ())), np.uint8),
        reasons=[],
        outputs={},
        predictions=None,
    )
    inputs: list[NDArray[np.float32]] = []
    for row, number in enumerate(numbers):
        try:
            picture, checksum = source.read(int(number))
            seen = view(picture, work.preprocessing)
        except UnreadableImageError as error:
            batch.reasons.append((str(source.manifest.names[number]), error.message))
            continue
        made = to_input(seen, work.preprocessing)
        if made.shape != work.plan.input_shape:
            _, height, width = work.plan.input_shape
            raise ImageSourceError(
                f"{source.manifest.names[number]} is {made.shape[2]}×{made.shape[1]} pixels, the first image is "
                f"{width}×{height}: a network takes one size",
                hint="network: {preprocessing: {resize: 256, crop: 224, …}}",
            )
        inputs.append(made)
        batch.readable[row] = True
        batch.checksums[row] = checksum
        if shape is not None:
            batch.pictures[row] = reduce_to(seen, shape[:2])
    return batch, inputs


def cast(values: NDArray[Any], dtype: str, layer: str, numbers: NDArray[np.int64]) -> NDArray[Any]:
    """Return activations in the dtype of the store.

    Raises
    ------
    NonFiniteError
        If a number does not fit into float16.
    """
    if dtype == "float32":
        return np.ascontiguousarray(values, dtype=np.float32)
    with np.errstate(over="ignore"):
        small = values.astype(dtype)
    lost = np.isinf(small) & np.isfinite(values)
    if lost.any():
        row = int(np.argwhere(lost)[0][0])
        raise NonFiniteError(
            f"{layer}: image {numbers[row]} has an activation of {values[lost][0]:.6g}, beyond what {dtype} holds "
            "(±65504)",
            hint="extract: {dtype: float32}",
        )
    return small
