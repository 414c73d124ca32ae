"""What a kernel is, and the little that all kernels share.

Blocks are arrays (images, *features): a run of images by a run of features (channels, or channels and
their positions). All arithmetic goes through the array's own namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ArrayError, NonFiniteError

Array = Any
"""A NumPy array or a torch tensor."""

State = dict[str, Array]
"""What a kernel knows so far: named arrays. The empty dictionary knows nothing yet."""

Origin = Mapping[str, NDArray[np.int64]]
"""Where a block lies: ``origin["image"]`` holds the image index of each of its rows, ``origin["channel"]`` (or
whatever the second dim is called) the index of each of its columns."""

LARGEST = 1e150
"""Numbers beyond this have squares that float64 does not hold many of."""

SLICE_ITEMS = 1 << 20
"""Kernels work through a block in slices of about this many elements, so that what they need besides the
block itself is bounded (8 MiB in float64)."""


class Kernel(Protocol):
    """A reduction as data.

    ``merge`` is associative up to rounding, and the state of one task may live across many blocks. Blocks of
    one task arrive in image order; `merge` gets the lower images first. `update` may work in place, as its state
    belongs to the task, and may keep what `origin` holds, but no view of a block; `merge` may not, as a scheduler may
    hold on to its arguments and merge them again.
    """

    whole_rows: ClassVar[bool]
    """True if a block must hold all features of its images.

    A kernel may also have ``by_image``, names of what its state holds one row per image of: a pass brings those to
    the driver as they are, in the order of the images, and `merge` does not see them. One that is the faster the more
    it has seen, and whose results do not depend on the cut, not even in rounding, has ``long_runs = True``."""

    def start(self) -> State:
        """Return the state that knows nothing."""
        ...

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:
        """Return the state after these blocks; may change `state` in place."""
        ...

    def merge(self, a: State, b: State) -> State:
        """Return the state that knows what `a` and `b` know; changes neither of them."""
        ...

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return named NumPy results; their last dims are the features."""
        ...

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:
        """Return (bytes of state, bytes of work besides block and state).

        Work is what an update or a merge needs besides the states that go in: the new state too, where it is not
        the old one.

        Parameters
        ----------
        images : int
            Images that the state is about.
        rows, features : int
            Shape of one block.
        """
        ...


class Sums:
    """What those kernels have in common whose states are sums, and add up name by name."""

    def start(self) -> State:
        """Return the state that knows nothing."""
        return {}

    def merge(self, a: State, b: State) -> State:
        """Return the sums over what `a` and `b` know."""
        if not a or not b:
            return a or b
        return {name: a[name] + b[name] for name in a}

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return the sums."""
        return state_to_numpy(state)


def key_of(kernel: Kernel) -> str:
    """Return the name under which a kernel's partial states are kept; empty if it cannot be fed on the way.

    Only kernels with a ``key`` can be: all that they need to know is known before the first activation is there, and
    the key says it all.
    """
    return str(getattr(kernel, "key", ""))


def serving(kernel: Kernel, keys: Iterable[str], images: int) -> str | None:
    """Return the key, among `keys`, of states that `kernel` can merge; None if there is none.

    Parameters
    ----------
    kernel : Kernel
        What is wanted.
    keys : iterable of str
        Kernels whose states there are.
    images : int
        Images that a state is about: a list that is shorter than asked for is long enough if it holds all of them.
    """
    own = key_of(kernel)
    choose: Callable[[Iterable[str], int], str | None] | None = getattr(kernel, "serving", None)
    if choose is not None:
        return choose(keys, images)
    return own if own and own in set(keys) else None


def to_numpy(array: Array) -> NDArray[Any]:
    """Return `array` on the CPU as NumPy."""
    if array_api_compat.is_torch_array(array):
        array = array.detach().cpu()
    return np.asarray(array)


def placed(values: NDArray[Any], xp: Any, where: Any, dtype: Any = None) -> Array:
    """Return NumPy `values`, which a kernel knows beforehand, in the namespace `xp` of a block and on its device."""
    if xp.__name__.endswith("torch"):  # it takes no negative strides, and warns of what is read-only
        backwards = any(stride < 0 for stride in values.strides)  # a single column counts as contiguous either way
        values = values.copy() if backwards else np.require(values, requirements=["C", "W"])
    return xp.asarray(values, dtype=dtype, device=where)


def state_to_numpy(state: State) -> dict[str, NDArray[Any]]:
    """Return `state` with NumPy arrays, fit for a file."""
    return {name: to_numpy(array) for name, array in state.items()}


def join_rows(a: State, b: State) -> State:
    """Return the rows of both states, one row per image in each of their arrays."""
    if not a or not b:
        return a or b
    xp = array_api_compat.array_namespace(a["image"], b["image"])
    return {name: xp.concat([a[name], b[name]]) for name in a}


def rows_by_image(state: State) -> dict[str, NDArray[Any]]:
    """Return the rows of a state in ascending order of ``image``."""
    order = np.argsort(to_numpy(state["image"]))
    return {name: to_numpy(array)[order] for name, array in state.items()}


def flat(block: Array) -> Array:
    """Return `block` as images × features."""
    xp = array_api_compat.array_namespace(block)
    return xp.reshape(block, (block.shape[0], -1)) if block.ndim != 2 else block


def take_along(array: Array, which: Array, axis: int) -> Array:
    """Return the elements of `array` that `which` numbers along an axis; the array standard has no such verb."""
    if array_api_compat.is_torch_array(array):
        return array.gather(axis, which)
    return np.take_along_axis(array, which, axis=axis)


def spans(length: int, step: int) -> Iterator[slice]:
    """Cut `length` into slices of `step`, at least 1; the last may be shorter."""
    step = max(1, step)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def row_slices(table: Array, least: int = 1) -> Iterator[slice]:
    """Cut the rows of images × features into slices of about `SLICE_ITEMS` elements, and `least` rows."""
    return spans(table.shape[0], max(least, SLICE_ITEMS // max(1, table.shape[1])))


def pool(block: Array, how: str) -> tuple[Array, Array | None]:
    """Make one number per channel of all positions.

    Parameters
    ----------
    block : array (images, channels, *positions)
        Activations.
    how : {"max", "mean"}
        The maximum, with the position where it is first reached, or the mean (summed in float64).

    Returns
    -------
    values : array (images, channels)
        In the dtype of `block`; the mean as float32.
    positions : array (images, channels) of int32, or None
        Index into the flattened positions; None for the mean and where there are no positions.
    """
    if block.ndim == 2:
        return block, None
    xp = array_api_compat.array_namespace(block)
    where = array_api_compat.device(block)
    cells = xp.reshape(block, (block.shape[0], block.shape[1], -1))
    shape = cells.shape[:2]
    values = xp.empty(shape, dtype=block.dtype if how == "max" else xp.float32, device=where)
    positions = xp.empty(shape, dtype=xp.int32, device=where) if how == "max" else None
    for rows in spans(shape[0], SLICE_ITEMS // max(1, shape[1] * cells.shape[2])):
        some = cells[rows, :, :]
        if positions is None:
            values[rows, :] = xp.astype(xp.sum(some, axis=2, dtype=xp.float64) / some.shape[2], xp.float32)
            continue
        # argmax of half precision is slow on the CPU and not defined everywhere; float32 holds it exactly.
        places = xp.argmax(xp.astype(some, xp.float32) if some.dtype.itemsize < 4 else some, axis=2)
        values[rows, :] = take_along(some, places[:, :, None], axis=2)[:, :, 0]
        positions[rows, :] = xp.astype(places, xp.int32)
    return values, positions


def check_range(block: Array, origin: Origin, layer: str) -> None:
    """Raise if squares of the numbers of a float64 block would leave the range of float64; narrower ones cannot.

    Raises
    ------
    ArrayError
        Names layer, image and neuron of the largest.
    """
    if block.dtype.itemsize <= 4:
        return
    xp = array_api_compat.array_namespace(block)
    if max(float(xp.max(block)), -float(xp.min(block))) < LARGEST:
        return
    sizes = np.abs(to_numpy(block))
    image, neuron = _place(np.unravel_index(int(sizes.argmax()), sizes.shape), origin)
    raise ArrayError(
        f"{layer or 'activations'}: image {image}, neuron {neuron} is ±{sizes.max():.3g}; squares of numbers beyond "
        f"{LARGEST:g} cannot be added up",
        hint=f"x / {sizes.max():.0e}",
    )


def _place(first: Sequence[Any], origin: Origin) -> tuple[int, tuple[int, ...]]:
    """Return the image and the neuron of an element of a block."""
    neuron = [int(i) for i in first[1:]]
    columns = next((origin[name] for name in origin if name != "image"), None)
    if columns is not None:
        neuron[:1] = np.ravel(columns[neuron[0]]).tolist()  # several numbers where columns are stacked
    return int(origin["image"][first[0]]), tuple(neuron)


def check_finite(block: Array, origin: Origin, layer: str, *, by_place: bool = False) -> None:
    """Raise if `block` holds NaN or infinity, naming the place.

    With `by_place` the numbers of the images in `origin` are their places, and their coordinate holds others.

    Raises
    ------
    NonFiniteError
        Names layer, image and neuron of the first such value.

    Notes
    -----
    The sum is finite if all terms are, unless it overflows; only then is every element looked at.
    """
    xp = array_api_compat.array_namespace(block)
    with np.errstate(over="ignore", invalid="ignore"):
        total = xp.sum(block, dtype=xp.float64 if block.dtype.itemsize > 4 else xp.float32)
    if bool(xp.isfinite(total)):
        return
    bad = to_numpy(~xp.isfinite(block))
    if not bad.any():
        return
    first = np.unravel_index(int(bad.argmax()), bad.shape)
    image, neuron = _place(first, origin)
    value = float(block[tuple(first)])
    unwritten = "in a store whose job has not ended, it may not be extracted yet (dneuro verify, dneuro resume); "
    without = f"x.drop_isel(image={image})" if by_place else f"x.isel(image=x['image'] != {image})"
    raise NonFiniteError(
        f"{layer or 'activations'}: image {image}, neuron {neuron} is {value} "
        f"({int(bad.sum())} such values in this block)",
        hint=f"look at this image and at the network's weights; {unwritten if np.isnan(value) else ''}"
        f"{without} leaves the image out",
    )
