"""What happens to one batch: read ahead, run the network, wait, cast."""

from __future__ import annotations

import contextlib
import gc
import platform
import threading
import weakref
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dneuro.allocation import keep_memory, keep_until_others_come, leave_gaps, release_memory
from dneuro.engine.device import CUDA_BYTES
from dneuro.errors import NetworkError, NonFiniteError
from dneuro.extract.plan import pooled
from dneuro.extract.reading import Pictures, read_ahead
from dneuro.extract.slots import AHEAD, layer_batches
from dneuro.extract.work import IMAGES, ExtractWork
from dneuro.images.manifest import Manifest
from dneuro.images.memory import PictureMemory
from dneuro.images.sources import ImageSource, open_source
from dneuro.store.files import local_copy
from dneuro.store.rounding import LARGEST, rounded

if TYPE_CHECKING:
    from dneuro.nets.load import Network
    from dneuro.nets.running import Runner, Running

_lock = threading.RLock()
_networks: dict[tuple[Any, ...], Network] = {}
_sources: dict[tuple[Any, ...], ImageSource] = {}
_memories: dict[tuple[Any, ...], PictureMemory] = {}


Output = NDArray[Any] | tuple[NDArray[Any], NDArray[np.int32]]
"""Of a layer: all of it, or the maximum per channel and its position."""


@dataclass
class Batch:
    """A run of images and what the network made of them.

    Parameters
    ----------
    pictures : Pictures
        The images; those that could not be read are masked.
    outputs : dict of array
        Per layer (readable images, …), or of a pooled one the maximum per channel and its position.
    predictions : array (readable images,) of int64, or None
        The class with the largest output, −1 where that is NaN or infinite.
    status : array (images,) of uint8
        0 read, 1 could not be read, 2 read, and masked for what the network made of it.
    """

    pictures: Pictures
    outputs: dict[str, Output]
    predictions: NDArray[np.int64] | None
    status: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.status = (~self.pictures.readable).astype(np.uint8)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Images, as the manifest numbers them."""
        return self.pictures.numbers

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Whether each image could be read and is not masked."""
        found: NDArray[np.bool_] = self.status == 0
        return found

    def mask(self, images: NDArray[np.bool_]) -> None:
        """Leave readable images out as if they could not be read; their outputs go, without taking more memory."""
        kept = np.flatnonzero(~images[self.readable])
        for layer, output in self.outputs.items():
            few = tuple(_rows(part, kept) for part in output) if isinstance(output, tuple) else _rows(output, kept)
            self.outputs[layer] = few  # type: ignore[assignment]
        if self.predictions is not None:
            self.predictions = self.predictions[kept]
        self.status[images & self.readable] = 2

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

    from dneuro.nets.device import check_room, parse_device
    from dneuro.nets.load import load

    # The fingerprint knows the weights themselves: a file may have other content now than in an earlier run.
    key = (work.network, work.weights, work.fingerprints[IMAGES], tuple(work.plan.widths), work.predictions)
    with _lock:
        torch.set_num_threads(work.threads)
        if key not in _networks:
            keep_memory()
            _networks.clear()
            if work.plan.device_bytes:
                check_room(parse_device(work.network.device), work.plan.device_bytes - CUDA_BYTES, work.plan.batch)
            partial = None if work.predictions else list(work.plan.widths)
            with local_copy(work.weights) as weights:
                network = load(work.network, weights=weights, partial_for=partial, input_shape=work.plan.input_shape)
            if (network.identity, network.weights_sha256) != work.loaded:
                raise NetworkError(
                    f"{work.network.name} is another network on {platform.node()} than where the job was planned: "
                    "its code, its file or its weights differ",
                    hint="give every machine the same files and the same versions, and run the job again",
                )
            release_memory()  # what loading took besides
            if not work.plan.device:
                leave_gaps(work.plan.writing_bytes + work.plan.feeding_bytes)
            _networks[key] = network
        return _networks[key]


def forget() -> bool:
    """Let go of what this process keeps from unit to unit, and return whether there was anything.

    Notes
    -----
    Whoever works on a unit now has its own references; the next unit loads again what it needs.
    """
    with _lock:
        kept = bool(_networks or _sources or _memories)
        modules = [weakref.ref(network.module) for network in _networks.values()]
        for memo in (_networks, _sources, _memories):
            memo.clear()
    if any(module() is not None for module in modules):
        gc.collect()  # parts that refer to each other; a look at all objects, which takes a third of a second
    return kept


keep_until_others_come(__name__.rpartition(".")[0], forget)


def source_of(work: ExtractWork) -> ImageSource:
    """Return the images, opened once per process."""
    key = (work.images.model_dump_json(), str(work.manifest), work.fingerprints[IMAGES], work.attempt.number)
    with _lock:
        if key not in _sources:
            _sources.clear()
            manifest = Manifest.from_bytes(work.manifest.read_bytes(), str(work.manifest))
            _sources[key] = open_source(work.images, manifest)
        return _sources[key]


def memory_of(work: ExtractWork) -> PictureMemory:
    """Return the memory for pictures that are being read, which all units of a process share."""
    key = (work.fingerprints[IMAGES], work.attempt.number, work.picture_bytes)
    with _lock:
        if key not in _memories:
            _memories.clear()
            besides, promised = work.plan.besides_bytes, work.promised_bytes
            _memories[key] = PictureMemory(work.picture_bytes, besides=besides, promised=promised)
        return _memories[key]


def batches(work: ExtractWork, layers: Sequence[str], start: int, stop: int) -> Generator[Batch, None, None]:
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
    from dneuro.nets.running import Runner

    source = source_of(work)
    with contextlib.ExitStack() as stack:
        runner = None
        if layers or work.predictions:
            network, plan = network_of(work), work.plan
            batch = min(plan.batch, plan.unit)
            few = pooled(plan.layers, work.feeds)
            wholly = [layer for layer in plan.layers if layer.name in layers and layer.name not in few]
            runner = stack.enter_context(
                Runner(network, layers, to_end=work.predictions, batch=batch, pooled=few.intersection(layers))
            )
            held = ((layer.shape, layer_batches(layer)) for layer in wholly)
            runner.furnish((*plan.input_shape[1:], plan.input_shape[0]), AHEAD + 2, held)
        room = _room if runner is None else runner.pixels
        read = stack.enter_context(contextlib.closing(read_ahead(work, source, memory_of(work), start, stop, room)))
        started: deque[tuple[Pictures, Running | None]] = deque()
        for pictures in read:
            started.append((pictures, _start(runner, pictures)))
            if runner is None or not runner.ahead or len(started) > 1:
                yield _batch(work, layers, *started.popleft())
        while started:
            yield _batch(work, layers, *started.popleft())


def _rows(values: NDArray[Any], kept: NDArray[np.intp]) -> NDArray[Any]:
    """Return some of the rows, moved to the front of their array."""
    for place, row in enumerate(kept):
        values[place] = values[row]
    return values[: len(kept)]


def _room(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.empty(shape, np.uint8)


def _start(runner: Runner | None, pictures: Pictures) -> Running | None:
    """Send the readable images of a batch on their way; None where there is nothing to run."""
    if runner is None or not pictures.readable.any():
        return None
    if pictures.readable.all():
        return runner.start(pictures.pixels)
    kept = runner.pixels((int(pictures.readable.sum()), *pictures.pixels.shape[1:]))
    np.compress(pictures.readable, pictures.pixels, axis=0, out=kept)
    return runner.start(kept)


def _batch(work: ExtractWork, layers: Sequence[str], pictures: Pictures, running: Running | None) -> Batch:
    """Wait for a batch; where nothing of it could be read, its outputs have no rows."""
    outputs: dict[str, Output] = {
        plan.name: np.empty((0, *plan.shape), np.float32) for plan in work.plan.layers if plan.name in layers
    }
    predictions = np.empty(0, np.int64) if work.predictions else None
    if running is not None:
        found, predictions = running.result()
        outputs |= found
    return Batch(pictures, outputs, predictions)


def cast(values: NDArray[Any], dtype: str, layer: str, numbers: NDArray[np.int64]) -> NDArray[Any]:
    """Return activations in the dtype of the store.

    Raises
    ------
    NonFiniteError
        If a number does not fit.
    """
    if dtype == "float32":
        return np.ascontiguousarray(values, dtype=np.float32)
    small = np.empty(values.shape, np.float32 if dtype == "bfloat16" else dtype)
    for row in range(len(values)):  # one by one: what that takes besides stays small
        image, found = values[row : row + 1], small[row : row + 1]
        found[:] = rounded(image, dtype)
        lost = np.isinf(found) & np.isfinite(image)
        if lost.any():
            raise NonFiniteError(
                f"{layer}: image {numbers[row]} has an activation of {image[lost][0]:.6g}, beyond what {dtype} holds "
                f"(±{LARGEST[dtype]})",
                hint="extract: {dtype: float32} and another store:; or extract: {on_nonfinite: mask}, which leaves "
                "such images out and lists them, with another store: where this one has them in other layers",
            )
    return small
