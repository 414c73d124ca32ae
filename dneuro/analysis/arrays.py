"""What every analysis asks of its input: a labelled array, and a view of it as images × features."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.core.indexing import LazilyVectorizedIndexedArray  # what xarray makes of an array in a file that is turned

from dneuro import events
from dneuro.analysis.images import SELECTED, has_numbers, image_numbers, taking_part
from dneuro.analysis.taken import TAKEN, Taken
from dneuro.engine.blocks import BLOCK_BYTES
from dneuro.engine.executors import Executor, Sizes
from dneuro.engine.parts import Source
from dneuro.engine.passes import reduce
from dneuro.engine.plan import Plan, plan_pass
from dneuro.errors import ArrayError, suggest
from dneuro.kernels.base import Array, Kernel, Origin, check_finite, check_range, pool
from dneuro.kernels.feeds import Feed, Look

Per = Literal["channel", "neuron"]
Pool = Literal["max", "mean"]

INPUT = "input_"
"""Begins the name that a dim of the input has in a result with a dim of that name of its own."""

_TOKEN = re.compile(r"-([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$")
"""Ends the name that dask gives an array, and xarray takes over: another one for other chunks."""

POSITION = "activation_"
"""Coordinates ``activation_y`` and ``activation_x`` say where a stored maximum was found."""
POSITION_LIMIT = 1 << 15
"""More than either can be: two of them fit into an int32."""


@dataclass(frozen=True)
class Labels:
    """Names and coordinates of the features that a result is about.

    Parameters
    ----------
    dims : tuple of str
        Dims of the features, such as ``("channel",)`` or ``("channel", "y", "x")``.
    sizes : tuple of int
        Their lengths.
    coords : dict
        Coordinates along them, by dim.
    positions : dict of str to int
        Dims that were pooled away, with their lengths: where in the layer a value was found.
    """

    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    coords: dict[str, Any] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of features."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Prepare:
    """The blocks of a task before the kernels see them: checked, and pooled where asked.

    Parameters
    ----------
    layer : str
        Name of it, for errors.
    how : {"max", "mean"} or None
        How positions are pooled, if they are.
    images : array (images,) of int64
        The number of each row, for errors.
    by_place : bool
        These numbers are places: the array's own coordinate ``image`` holds none.
    """

    layer: str
    how: Pool | None
    images: NDArray[np.int64]
    by_place: bool = field(default=False, kw_only=True)

    def __call__(self, blocks: Sequence[Array], origin: Origin) -> Sequence[Array]:
        """Return (values,) or (values, positions)."""
        place = {**origin, "image": self.images[origin["image"]]}
        check_finite(blocks[0], place, self.layer, by_place=self.by_place)
        check_range(blocks[0], place, self.layer)
        return pool(blocks[0], self.how) if self.how is not None else blocks


@dataclass(frozen=True)
class View:
    """An array as an analysis wants to see it.

    Parameters
    ----------
    xs : tuple of DataArray
        The activations (image, features…), and the position of each value where it is stored beside them.
    labels : Labels
        The features after pooling.
    rows : array (images,) of bool, or None
        Images that take part: those that could be read, and were selected where some were.
    prepare : Prepare
        What happens to each block first.
    look : {"max", "mean", "neuron"}
        What of the layer the kernels see.
    taken : Taken or None
        What is known of the layer without a pass over it.
    """

    xs: tuple[xr.DataArray, ...]
    labels: Labels
    rows: NDArray[np.bool_] | None
    prepare: Prepare
    look: Look = "neuron"
    taken: Taken | None = None

    @cached_property
    def sources(self) -> list[Source]:
        """What tasks are given of the arrays, found out once for all passes."""
        return [Source(x) for x in self.xs]

    @property
    def layer(self) -> str:
        """Name of the layer, as far as known."""
        return self.prepare.layer

    @property
    def images(self) -> NDArray[np.int64]:
        """The number of each row, as the array's own ``image`` coordinate gives it; its place where that has none."""
        return self.prepare.images

    @property
    def image_index(self) -> Any:
        """The array's own ``image`` coordinate as an index, of numbers, names or dates; None where it has none."""
        x = self.xs[0]
        return x.coords["image"].to_index() if "image" in x.coords else None

    @property
    def pooled(self) -> bool:
        """True if the kernels see one number for all positions of a channel."""
        return self.prepare.how is not None

    @property
    def taking_part(self) -> NDArray[np.int64]:
        """Numbers of the images that take part."""
        return self.images if self.rows is None else self.images[self.rows]

    @property
    def readable(self) -> bool:
        """False if the activations themselves were not kept."""
        return self.taken is None or not self.taken.only

    def knows(self, kernel: Kernel) -> bool:
        """Return whether what a kernel finds was taken along, so that it needs no pass."""
        return self.taken is not None and self.taken.serves(Feed(self.look, kernel))

    def reduce(
        self, kernels: dict[str, Kernel], executor: Executor, step: str, every: int = 1
    ) -> dict[str, dict[str, NDArray[Any]]]:
        """Run one pass, unless the answers were taken along; see `dneuro.engine.passes.reduce`."""
        found: dict[str, dict[str, NDArray[Any]]] = {}
        if self.taken is not None and self.taken.answer is not None:
            along = {name: Feed(self.look, kernel) for name, kernel in kernels.items() if self.knows(kernel)}
            found = {name: self.taken.answer(feed) for name, feed in along.items()}
        rest = {name: kernel for name, kernel in kernels.items() if name not in found}
        if not rest:
            return found
        return found | reduce(
            self.xs, rest, executor, prepare=self.prepare, pooled=self.pooled, rows=self.rows, step=step,
            every=every, sources=self.sources,
        )  # fmt: skip

    def plan(
        self, operation: str, kernels: dict[str, Kernel], executor: Sizes, *, passes: int = 1, **known: Any
    ) -> Plan:
        """Return the plan of such a pass, the first of `passes`; see `dneuro.engine.plan.plan_pass`.

        A pass whose kernels were all taken along is none.
        """
        along = [self.knows(kernel) for kernel in kernels.values()]  # a list: each of them is to be asked for
        if all(along):
            passes -= 1
            if not passes:
                size = known.get("result_bytes", 0)
                driver = known.get("driver_bytes")
                return Plan(operation, 0, 0, 0, 0, 2 * size if driver is None else driver, size, "with extract")
        return plan_pass(operation, self.xs, kernels, executor, pooled=self.pooled, passes=passes, **known)


def view(
    x: xr.DataArray, *, per: Per, pool: Pool = "max", places: bool = False, own: Sequence[str] = ()
) -> View:
    """Return `x` as images × features.

    Parameters
    ----------
    x : DataArray, dims (image, features…)
        Backed by dask, NumPy or a file; floating point.
    per : {"channel", "neuron"}
        One feature per channel (all positions made one by `pool`), or one per neuron.
    pool : {"max", "mean"}
        How all positions of a channel become one number.
    places : bool
        The position of every value is wanted too, where it is stored beside the values.
    own : sequence of str
        Dims and variables that the result has of its own. A dim of `x` with such a name, as the scores of another
        analysis have, is called ``input_…`` there: ``component`` becomes ``input_component``.

    Raises
    ------
    ArrayError
        If `x` has no dim ``image``, no features, no images, or numbers that are not floating point; if its positions
        were pooled in another way before it was stored.
    """
    check_labelled(x)
    choose("per", per, ("channel", "neuron"))
    choose("pool", pool, ("max", "mean"))
    layer = layer_of(x)
    what = f"array {layer!r}" if layer else "the array"
    _check(x, what)
    x = told_apart(in_parts(x, "image").transpose("image", ...), own)
    xs: tuple[xr.DataArray, ...] = (x,)
    how: Pool | None = None
    positions: dict[str, int] = {}
    if per == "channel" and x.ndim > 2:
        x = _channel_second(x, what)
        how, xs = pool, (x,)
        positions = {str(dim): x.sizes[dim] for dim in x.dims[2:]} if pool == "max" else {}
    elif per == "channel":
        _check_pooled(x, pool, what)
    if places and how is None and (stored := [str(c) for c in x.coords if str(c).startswith(POSITION)]):
        positions = dict.fromkeys((name.removeprefix(POSITION) for name in stored), POSITION_LIMIT)
        xs = (x, _flat_positions(x, stored))
    dims = tuple(map(str, x.dims[1:]))[: 1 if how else None]
    labels = Labels(
        dims=dims,
        sizes=tuple(x.sizes[dim] for dim in dims),
        coords={dim: x.coords[dim].values for dim in dims if dim in x.coords},
        positions=positions,
    )
    taken = x.attrs.get(TAKEN) if SELECTED not in x.coords else None  # it was taken of all images
    by_place = "image" in x.coords and not has_numbers(x)
    if by_place:
        name = f"{layer}: " if layer else ""
        events.emit_once("note", "", f"{name}the coordinate 'image' holds no whole numbers, results have images by "
                         "their places: x['image'][n] is the n-th")  # fmt: skip
    prepare = Prepare(layer, how, image_numbers(x), by_place=by_place)
    return View(xs, labels, taking_part(x), prepare, _look(x, how), taken)


def in_parts(x: xr.DataArray, along: str) -> xr.DataArray:
    """Return an array that still lies in its file in chunks of dask, with a note; any other as it is.

    xarray opens files so where ``chunks=`` is not given, and whoever asks for the data of such an array loads all of
    them. Reads nothing.

    Parameters
    ----------
    x : DataArray
        Any.
    along : str
        Dim along which it is cut where the file itself has no chunks.
    """
    if not _lies_in_file(x.variable):
        return x
    per_step = x.dtype.itemsize * math.prod(length for dim, length in x.sizes.items() if dim != along)
    lengths: dict[Any, int] = {along: max(1, BLOCK_BYTES // max(1, per_step))}
    lengths |= _stored_lengths(x)
    coords = {
        name: (coord.dims, _chunked(coord.variable, lengths))
        for name, coord in x.coords.items()
        if coord.ndim > 1 and _lies_in_file(coord.variable)
    }
    parts = x.copy(deep=False, data=_chunked(x.variable, lengths)).assign_coords(coords)
    shape = " × ".join(str(max(some, default=0)) for some in parts.chunks or ())
    name = f"{layer}: " if (layer := layer_of(x)) else ""
    events.emit_once("note", "", f"{name}opened without chunks=, read in chunks of {shape} all the same")
    return parts


def _lies_in_file(variable: xr.Variable) -> bool:
    """Return whether a variable is what xarray makes of one in a file: not loaded, nor an array of any library."""
    return variable.chunks is None and not variable._in_memory and not hasattr(variable._data, "__array_function__")


def _stored_lengths(x: xr.DataArray) -> dict[Any, int]:
    """Return the lengths of the file's chunks along the dims of an array, as far as they are known.

    xarray keeps them by the names that the dims have in the file. Dims that were renamed since then lie as they do
    there, unless they were turned too: then names alone say which is which, and of several new ones nothing does.
    """
    stored = x.encoding.get("preferred_chunks", {})
    in_order = not isinstance(x.variable._data, LazilyVectorizedIndexedArray)
    if in_order and len(stored) == x.ndim:
        stored = dict(zip(x.dims, stored.values(), strict=True))
    gone, new = [dim for dim in stored if dim not in x.dims], [dim for dim in x.dims if dim not in stored]
    if new and not (len(gone) == len(new) and (in_order or len(new) == 1)):
        return {}
    stored = {**stored, **{now: stored[before] for now, before in zip(new, gone, strict=False)}}
    return {dim: int(stored[dim]) for dim in x.dims if isinstance(stored[dim], int | np.integer)}


def _chunked(variable: xr.Variable, lengths: Mapping[Any, int]) -> Any:
    """Return the data in chunks; whole along other dims."""
    here = {dim: lengths.get(dim, -1) for dim in variable.dims}
    return variable.chunk(here, name=f"file-{uuid.uuid4().hex}").data


def layer_of(x: xr.DataArray) -> str:
    """Return the name of the layer: its attribute, else the array's own name, if somebody gave it one."""
    layer = x.attrs.get("layer")
    if layer is None:
        layer = "" if x.name is None or _TOKEN.search(str(x.name)) else x.name
    return str(layer)


def of_ends(x: object) -> tuple[str, ...]:
    """Return the names of what a result says of the images at either end, positions in `x` among them."""
    dims = map(str, getattr(x, "dims", ()))
    return tuple(f"{end}_{name}" for name in ("value", "image", "label", *dims) for end in ("top", "bottom"))


def told_apart(x: xr.DataArray, own: Iterable[str]) -> xr.DataArray:
    """Return `x` with ``input_…`` in the names of those dims that are names of something in the result."""
    others = {*map(str, x.dims), *map(str, x.coords)}
    names = {}
    for dim in own:
        if dim in x.dims:
            names[dim] = f"{INPUT}{dim}"
            while names[dim] in others:
                names[dim] = f"{INPUT}{names[dim]}"
    return x.rename(names)


def _look(x: xr.DataArray, how: Pool | None) -> Look:
    """Return what of the layer the kernels see: pooled here, or before it was stored."""
    keep = x.attrs.get("keep")
    if how is None and keep in ("max", "mean") and _had_positions(x):
        how = keep
    return how or "neuron"


def _had_positions(x: xr.DataArray) -> bool:
    """Return whether the layer that an array was stored of has more dims than channels."""
    shape = x.attrs.get("shape")
    return shape is not None and np.size(shape) > 1


def check_labelled(x: object) -> None:
    """Refuse what is no labelled array."""
    if not isinstance(x, xr.DataArray):
        raise ArrayError(
            f"expected an xarray.DataArray with a dim 'image', got {type(x).__name__}",
            hint=one_of(x, "xr.DataArray(array, dims=('image', 'channel'))"),
        )


def dims_of(x: object) -> tuple[Any, ...]:
    """Return the dims of a labelled array; none of anything else, a dataset too."""
    return x.dims if isinstance(x, xr.DataArray) else ()


def one_of(x: object, otherwise: str) -> str:
    """Return the way out for whoever gives a dataset, a store or the like in place of an array; else another."""
    names = [str(name) for name in x] if isinstance(x, Mapping) else []
    return f"one of what it holds: x[{names[0]!r}]; {suggest('', names)}" if names else otherwise


def _check(x: xr.DataArray, what: str) -> None:
    """Refuse an array that no analysis can use."""
    check_dims(x, what)
    dims = tuple(map(str, x.dims))
    if "image" not in dims:
        raise ArrayError(
            f"{what} has dims {dims}, none is named 'image'",
            hint=f"x.rename({{{(dims or ('…',))[0]!r}: 'image'}})",
        )
    if len(dims) < 2 or 0 in x.shape:
        raise ArrayError(
            f"{what} has shape {dict(x.sizes)}; an analysis needs at least one image and one feature",
            hint="check the selection that made it",
        )
    if x.dtype.kind != "f":
        raise ArrayError(f"{what} holds {x.dtype}, activations are floating point", hint="x.astype('float32')")


def check_dims(x: xr.DataArray, what: str) -> None:
    """Refuse an array with a dim whose name is no text, or whose length nobody knows.

    Raises
    ------
    ArrayError
        With what to do.
    """
    odd = [dim for dim in x.dims if not isinstance(dim, str)]
    if odd:
        raise ArrayError(
            f"{what} has dims {x.dims}, and {odd[0]!r} is no text", hint=f"x.rename({{{odd[0]!r}: 'channel'}})"
        )
    if any(math.isnan(length) for length in x.shape):
        raise ArrayError(
            f"{what} has shape {x.shape}: a length is not known before something is computed",
            hint="x.data.compute_chunk_sizes(), or select with a mask that is in memory",
        )


def _channel_second(x: xr.DataArray, what: str) -> xr.DataArray:
    """Return an array (image, channel, positions…)."""
    if "channel" not in x.dims:
        raise ArrayError(
            f"{what} has dims {tuple(map(str, x.dims))}; per='channel' needs one named 'channel'",
            hint="per='neuron', or x.rename(…)",
        )
    return x.transpose("image", "channel", ...)


def _check_pooled(x: xr.DataArray, pool: Pool, what: str) -> None:
    """Refuse an array of a layer with positions that were pooled in another way when it was stored."""
    keep = x.attrs.get("keep")
    if keep in ("max", "mean") and keep != pool and _had_positions(x):
        raise ArrayError(
            f"{what} holds the {keep} over positions; the {pool} cannot be had of it any more",
            hint=f"pool={keep!r}, or extract the layer again with keep: full",
        )


def _flat_positions(x: xr.DataArray, stored: Sequence[str]) -> xr.DataArray:
    """Return the stored position of each value as one number."""
    number: xr.DataArray = x.coords[stored[0]].reset_coords(drop=True).astype("int32")
    for name in stored[1:]:
        number = number * POSITION_LIMIT + x.coords[name].reset_coords(drop=True).astype("int32")
    return number


def choose(what: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a value that is none of the choices."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ArrayError(f"{what}={value!r} is unknown", hint=suggest(str(value), [str(c) for c in choices]))


def is_count(number: object) -> bool:
    """Return whether `number` is a whole number, at least 1."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool) and int(number) >= 1
