"""What an extraction will write, hold and read, known before it starts."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dneuro.engine.device import CUDA_BYTES, TORCH_BYTES
from dneuro.errors import MemoryLimitError
from dneuro.extract.gathering import GATHERED
from dneuro.extract.slots import SLACK, card_bytes, cast_bytes, forward_bytes, room_bytes, slot_bytes, writing_bytes
from dneuro.images.headers import PictureSizes
from dneuro.images.memory import LEAST, MARGIN
from dneuro.kernels.feeds import Feed
from dneuro.quantities import MiB, format_bytes
from dneuro.spec.device import CPU
from dneuro.spec.steps import DEFAULT_CODEC, Codec
from dneuro.store.layout import ArrayPlan, LayerPlan, images_per_unit, root_arrays

COMPILER_BYTES = 256 * MiB
"""Memory of a worker process that compiled its network: 80 to 180 MiB were measured, the C++ compiler's own apart."""

PICTURE_SIDE = 112
"""Longer side, in pixels, of the pictures kept for the report."""


@dataclass(frozen=True)
class ExtractPlan:
    """The sizes of one extraction.

    Parameters
    ----------
    images, unit : int
        Images in all and per unit.
    layers : tuple of LayerPlan
        What is kept of each layer.
    root : tuple of ArrayPlan
        Arrays with one entry per image.
    batch : int
        Images per forward pass.
    bare_bytes : int
        Peak memory of one worker process that feeds nothing on the way, but for the pictures that are being read.
    input_shape : (int, int, int)
        Colours, height and width of the network's input.
    widths : dict
        Neurons of each layer.
    feeding_bytes : int
        What a worker process holds besides for the reductions that are fed on the way.
    partial_bytes : int
        Bytes of the partial statistics of one unit.
    slots_bytes, forward_bytes : int
        Bytes that are free again: of all slots of a process in the end, of the forward passes among them, but for what
        is cast, while reductions are fed. Zero where a card reads from them: torch keeps what is pinned.
    writing_bytes : int
        What waits to be written and is packed, of all slots of a process.
    rooms : dict
        Bytes that a process holds of each layer's output, for all its slots.
    spared_bytes : int
        Bytes of those that need not be held.
    pictures_bytes : int
        What the threads of a process would hold of pictures that are being read, if all that were looked at can be.
    largest_picture : int
        What the largest of those takes.
    limit : int
        Bytes that a worker may use; 0 where that is not known.
    device : str
        Device that the network runs on; empty for the processor.
    device_bytes : int
        What a worker process takes of it at most.
    slots : int
        Units that a process works on at a time.
    """

    images: int
    unit: int
    layers: tuple[LayerPlan, ...]
    root: tuple[ArrayPlan, ...]
    batch: int
    bare_bytes: int
    input_shape: tuple[int, int, int]
    widths: dict[str, int] = field(default_factory=dict)
    feeding_bytes: int = 0
    partial_bytes: int = 0
    slots_bytes: int = 0
    forward_bytes: int = 0
    writing_bytes: int = 0
    rooms: dict[str, int] = field(default_factory=dict)
    spared_bytes: int = 0
    pictures_bytes: int = LEAST
    largest_picture: int = 0
    limit: int = 0
    device: str = ""
    device_bytes: int = 0
    slots: int = 1

    @property
    def worker_bytes(self) -> int:
        """Peak memory of one worker process; pictures that would not fit into its limit are masked, and do not count.

        More is only held for a picture that is larger than all that were looked at, and then no more than the limit.
        """
        counted = self.pictures_bytes
        if self.limit:
            counted = min(counted, self.picture_bytes(self.limit))
        return self.besides_bytes + counted

    @property
    def besides_bytes(self) -> int:
        """What a worker process holds besides pictures that are being read."""
        return self.bare_bytes + self.feeding_bytes - self.spared_bytes

    @property
    def least_picture_bytes(self) -> int:
        """What there must be for pictures."""
        return min(LEAST, self.pictures_bytes)

    def picture_bytes(self, limit: int) -> int:
        """Return what a worker process of `limit` bytes has for pictures that are being read: all that is left."""
        return max(self.least_picture_bytes, int(MARGIN * limit) - self.besides_bytes)

    @property
    def units(self) -> int:
        """Number of units."""
        return math.ceil(self.images / self.unit)

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """(rows, columns, colours) of the pictures kept; empty where none are."""
        return next((array.shape[1:] for array in self.root if array.name == "picture"), ())

    def span(self, unit: int) -> tuple[int, int]:
        """Return the first image of a unit and the one after its last."""
        return unit * self.unit, min((unit + 1) * self.unit, self.images)

    def arrays(self) -> list[ArrayPlan]:
        """Return every array that will be written."""
        return [*self.root, *(array for layer in self.layers for array in layer.arrays(self.images, self.unit))]

    @property
    def store_bytes(self) -> int:
        """Bytes of all arrays, uncompressed."""
        return sum(array.nbytes for array in self.arrays())

    def feeding(self, feeds: Mapping[str, Collection[Feed]], slots_per_process: int = 1) -> ExtractPlan:
        """Return the plan of the same extraction that feeds reductions on the way, by layer.

        Notes
        -----
        All states of a unit live at the same time, and are read back once they are written; one kernel after the
        other works, in the memory of the forward pass as far as it goes. In the end, when no slot holds anything, one
        task merges the states of all units: that so far, that of a unit, the new one; and makes results of them, which
        takes five times a state.
        """
        shapes = {layer.name: layer.shape for layer in self.layers}
        batch = min(self.batch, self.unit, self.images)
        states, works, merging = [0], [0], [0]
        waiting: set[tuple[str, str]] = set()
        for layer, those in feeds.items():
            for feed in those:
                # As many are gathered as have room where they are smallest, in 16 bits.
                rows = max(batch, min(self.unit, GATHERED // (2 * feed.features(shapes[layer]))))
                state, work = feed.memory(self.unit, rows, shapes[layer])
                states.append(state)
                works.append(work)
                waiting.add((layer, feed.look))
                whole, work = feed.memory(self.images, rows, shapes[layer])
                merging.append(max(2 * whole + state + work, 5 * whole))
        gathered = len(waiting) * GATHERED
        working = max(0, max(works) - self.forward_bytes // slots_per_process)
        feeding = slots_per_process * (gathered + 2 * sum(states) + working)
        merging_bytes = round(SLACK * slots_per_process * max(merging))
        spared = sum(self.rooms[layer] for layer in pooled(self.layers, feeds))
        return replace(
            self,
            feeding_bytes=max(feeding, merging_bytes - max(0, self.slots_bytes - spared)),
            partial_bytes=sum(states),
            spared_bytes=spared,
        )

    def too_large(self, before: int | None = None) -> str:
        """Return what there is to say of pictures that a worker has no room for; empty if nothing.

        Parameters
        ----------
        before : int, optional
            What it had for pictures when the store was begun, if it was: what takes more is masked, whatever there is
            now, and nothing else is.
        """
        room = self.picture_bytes(self.limit)
        if not self.limit or self.largest_picture <= min(room, room if before is None else before):
            return ""
        wanted = format_bytes(1.05 * (self.besides_bytes + self.largest_picture) / MARGIN)
        takes = f"some pictures take up to {format_bytes(self.largest_picture)} to read, and a worker"
        has = f"{takes} has {format_bytes(room)} for pictures"
        if before is None:
            return f"{has}: those that take more will be masked; workers with {wanted} each would read them"
        had = f"had {format_bytes(before)} when the store was begun"
        if self.largest_picture > before:
            return f"{takes} {had}: those that take more are masked; another store, and {wanted} each, would have them"
        return f"{has}, and {had}: the first that takes more ends the run; workers with {wanted} each would read them"

    def check(self, limit: int) -> None:
        """Refuse a plan that does not fit into a worker of `limit` bytes.

        Raises
        ------
        MemoryLimitError
            With the numbers and what to change.
        """
        needed = self.besides_bytes + self.least_picture_bytes
        if needed > limit:
            slots = f"fewer threads than {self.slots} (each has a batch of its own), " if self.slots > 1 else ""
            raise MemoryLimitError(
                f"extract needs {format_bytes(needed)} per worker (batch of {self.batch}), the limit is "
                f"{format_bytes(limit)}; nothing was started",
                hint=f"extract: {{batch: {max(1, self.batch // 4)}}}, fewer layers at once, keep: max instead of full, "
                f"{slots}or fewer workers with {format_bytes(1.05 * needed)} each (pools: in a profile)",
            )


def plan_extraction(
    *,
    images: int,
    kept: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    held: tuple[int, int, int],
    input_shape: tuple[int, int, int],
    weight_bytes: int,
    dtype: str,
    codec: Codec = DEFAULT_CODEC,
    batch: int,
    unit: int | None,
    predictions: bool,
    labels: bool,
    thumbnails: bool,
    source_bytes: int = 0,
    pictures: PictureSizes = PictureSizes(),  # noqa: B008  (frozen)
    compiled: bool = False,
    largest_half: int = 0,
    device: str = CPU,
    slots_per_process: int = 1,
    readers: int = 1,
    coalescing: bool = False,
    limit: int = 0,
) -> ExtractPlan:
    """Return the plan of an extraction; reads nothing.

    Parameters
    ----------
    images : int
        Number of images.
    kept : mapping of str to str
        Layers, and what is kept of each.
    shapes : mapping of str to tuple
        Shape per image of the output of each of them.
    held : (int, int, int)
        Bytes per image of all that a forward pass holds at the same time, of the largest of it, and from the first to
        the last of it.
    input_shape : (int, int, int)
        Colours, height and width of the network's input.
    weight_bytes : int
        Size of the network's weights.
    dtype : str
        How activations are stored.
    codec : str
        How they are packed.
    batch : int
        Images per forward pass.
    unit : int, optional
        Images per unit.
    predictions, labels, thumbnails : bool
        What is stored per image.
    source_bytes : int
        What a process keeps of the images in memory.
    pictures : PictureSizes
        What pictures take that are being read.
    compiled : bool
        Whether the network is compiled there.
    largest_half : int
        Bytes of the largest of its weights, where it computes in half precision.
    device : str
        Where the network runs.
    slots_per_process : int
        Units that one process works on at a time.
    readers : int
        Threads that read the pictures of a unit.
    coalescing : bool
        Whether what a process frees becomes one with its free neighbours at once.
    limit : int
        Bytes that a worker may use, if that is known.
    """
    unit = unit or images_per_unit(images)
    layers = tuple(LayerPlan(name, keep, shapes[name], dtype, codec) for name, keep in kept.items())
    picture = picture_shape(input_shape) if thumbnails else ()
    root = tuple(root_arrays(images, unit, predictions=predictions, labels=labels, picture=picture))
    pixels, at_once, on_card = math.prod(input_shape), min(batch, unit, images), device != CPU
    arrays = [*root, *(array for layer in layers for array in layer.arrays(images, unit))]
    forward = 0
    if not on_card:
        forward = forward_bytes(
            held, at_once, coalescing=coalescing, slots=slots_per_process, largest_half=largest_half
        )
    per_slot = slot_bytes(
        layers, arrays, forward, batch=at_once, pixels=pixels, picture=math.prod(picture), on_card=on_card
    )
    slots_bytes = round(SLACK * slots_per_process * per_slot)
    waiting, cast = cast_bytes(layers, at_once)
    idle = max(0, forward + waiting - cast)
    there = CUDA_BYTES + weight_bytes
    there += round(slots_per_process * card_bytes(layers, held, batch=at_once, pixels=pixels))
    of_process = TORCH_BYTES + source_bytes + weight_bytes
    of_process += COMPILER_BYTES * compiled + CUDA_BYTES * on_card
    return ExtractPlan(
        images=images,
        unit=unit,
        layers=layers,
        root=root,
        batch=batch,
        bare_bytes=of_process + slots_bytes,
        input_shape=input_shape,
        widths={name: math.prod(shapes[name]) for name in kept},
        slots_bytes=0 if on_card else slots_bytes,
        forward_bytes=slots_per_process * idle,
        writing_bytes=slots_per_process * writing_bytes(arrays),
        rooms={
            layer.name: round(SLACK * slots_per_process * room_bytes(layer, at_once, pinned=on_card))
            for layer in layers
        },
        device=device if on_card else "",
        device_bytes=there if on_card else 0,
        pictures_bytes=pictures.of(slots_per_process * readers),
        largest_picture=pictures.largest if pictures.looked_at else 0,
        limit=limit,
        slots=slots_per_process,
    )


def pooled(layers: Iterable[LayerPlan], feeds: Mapping[str, Collection[Feed]]) -> frozenset[str]:
    """Return the layers of which the maxima per channel are all that is wanted: nothing else of them is held.

    Where numbers are rounded for the store they lie among all others until they are, for which of two is the larger,
    and so its position, may depend on that.
    """
    return frozenset(
        layer.name
        for layer in layers
        if len(layer.shape) == 3
        and layer.dtype == "float32"
        and layer.keep in ("max", "stats")
        and all(feed.look == "max" for feed in feeds.get(layer.name, ()))
    )


def picture_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (rows, columns, colours) of the pictures kept of inputs (colours, height, width)."""
    colors, height, width = input_shape
    scale = min(1.0, PICTURE_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale)), colors


def to_dict(plan: ExtractPlan) -> dict[str, Any]:
    """Return the plan's numbers, JSON-able."""
    return {
        "images": plan.images,
        "units": plan.units,
        "images_per_unit": plan.unit,
        "store_bytes": plan.store_bytes,
        "partial_bytes": plan.units * plan.partial_bytes,
        "worker_bytes": plan.worker_bytes,
        "picture_bytes": plan.worker_bytes - plan.besides_bytes,
        **({"device": plan.device, "device_bytes": plan.device_bytes} if plan.device else {}),
        "layers": {layer.name: {"keep": layer.keep, "shape": list(layer.shape)} for layer in plan.layers},
    }
