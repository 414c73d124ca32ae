"""What each elementary operation does to the receptive fields of its inputs.

An operation has a rule here if a position of its output sees no more than a window of the input's positions.
"""

from __future__ import annotations

from collections.abc import Callable

from dneuro.nets.axes import Axes, Piece, name_of
from dneuro.nets.operations import LAYOUT, NORMS, REDUCTIONS, SAME, Call, contracted, factors
from dneuro.nets.receptive import ReceptiveField, UnknownError

Rule = Callable[[Call, ReceptiveField, Axes], ReceptiveField]
"""From an operation, what its inputs see together and the axes of its output, to what that sees."""


def _kept(call: Call, field: ReceptiveField, made: Axes) -> ReceptiveField:
    return field


def local(call: Call, field: ReceptiveField, made: Axes) -> ReceptiveField:
    """Each position depends on the same position of each input: true if they have the same positions."""
    if any(_positions(axes) != _positions(made) for axes in call.known):
        raise UnknownError("positions are spread, joined or left out")
    return field


def _per_position(call: Call, field: ReceptiveField, made: Axes) -> ReceptiveField:
    """Sums over some axes (``dim``, or the last ones) and leaves the shape: local if none has positions."""
    rank = call.output.ndim
    if "dim" in call.arguments:
        mixed = call.dims("dim")
    else:
        mixed = list(range(rank - len(call.arguments["normalized_shape"]), rank))
    if any(_positions((call.axes[number],)) for number in mixed):
        raise UnknownError("it works along positions")
    return field


def _weighted(call: Call, field: ReceptiveField, made: Axes) -> ReceptiveField:
    if all(axes is not None for axes in factors(call)) or _positions((contracted(call),)):
        raise UnknownError("it works along positions")
    return field


def _normalised(call: Call, field: ReceptiveField, made: Axes) -> ReceptiveField:
    if call.arguments.get("training"):
        raise UnknownError("it takes the mean over positions")
    return local(call, field, made)


def _convolved(call: Call, field: ReceptiveField, made: Axes) -> ReceptiveField:
    _check_grid(call)
    weight = call.arguments["weight"]
    if call.arguments["transposed"]:
        raise UnknownError("transposed")
    kernel = (weight.shape[2], weight.shape[3])
    return field.window(kernel, call.pair("stride"), call.pair("padding"), call.pair("dilation"))


def _pooled(call: Call, field: ReceptiveField, made: Axes) -> ReceptiveField:
    _check_grid(call)
    kernel = call.pair("kernel_size")
    stride = call.pair("stride", otherwise=kernel)
    return field.window(kernel, stride, call.pair("padding"), call.pair("dilation", otherwise=(1, 1)))


def _padded(call: Call, field: ReceptiveField, made: Axes) -> ReceptiveField:
    before = dict(enumerate(call.arguments["pad"][::2]))  # from the last axis to the first
    names = [name_of(axis) for axis in call.axes][::-1]
    if "y" not in names or "x" not in names:
        raise UnknownError("its input has no rows and columns")
    return field.window((1, 1), padding=(before.get(names.index("y"), 0), before.get(names.index("x"), 0)))


def _check_grid(call: Call) -> None:
    names = [name_of(axis) for axis in call.axes]
    if len(names) != 4 or names[2] not in ("y", "") or names[3] not in ("x", ""):
        raise UnknownError(f"it slides over {names[1:]}")


def _positions(axes: Axes) -> list[Piece]:
    return [piece for axis in axes for piece in axis if piece.name in ("y", "x")]


FIELDS: dict[str, Rule] = {
    "convolution": _convolved,
    "max_pool2d_with_indices": _pooled,
    "avg_pool2d": _pooled,
    "_adaptive_avg_pool2d": local,
    "adaptive_max_pool2d": local,
    **dict.fromkeys(NORMS, _normalised),
    "native_layer_norm": _per_position,
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), _per_position),
    **dict.fromkeys(("hardswish", "hardswish_", "copy_"), local),
    **dict.fromkeys(SAME, _kept),
    **dict.fromkeys(LAYOUT, _kept),
    "permute": _kept,
    **dict.fromkeys(("transpose", "t"), _kept),
    "unsqueeze": _kept,
    "squeeze": _kept,
    "expand": local,
    "as_strided_": local,
    "constant_pad_nd": _padded,
    **dict.fromkeys(("slice", "split", "split_with_sizes", "narrow"), local),
    **dict.fromkeys(("select", "unbind"), local),
    "cat": local,
    "stack": local,
    **dict.fromkeys(REDUCTIONS, local),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _weighted),
}
"""By name in ATen."""
