"""What each elementary operation does to the axes of its inputs.

An operation without a rule ends the knowledge, up to the next convolution: that says by what it is which of its
axes are channels and positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dneuro.nets.axes import (
    UNKNOWN,
    Axes,
    Axis,
    grid,
    name_of,
    named,
    resized,
    unified,
    view,
)
from dneuro.nets.receptive import UnknownError


@dataclass(frozen=True)
class Call:
    """One operation and one of its outputs.

    Parameters
    ----------
    arguments : dict
        By the names of its schema, defaults filled in.
    output : Tensor
        What it yields, or one of the tensors it yields.
    inputs : list of (Tensor, Axes or None)
        Those of its tensors that depend on the images, and their axes where they are known.
    """

    arguments: dict[str, Any]
    output: Tensor
    inputs: list[tuple[Tensor, Axes | None]]

    @property
    def known(self) -> list[Axes]:
        """Axes of all inputs."""
        return [_known(axes) for _, axes in self.inputs]

    @property
    def axes(self) -> Axes:
        """Axes of the first input."""
        return _known(self.inputs[0][1])

    def of(self, name: str) -> Axes | None:
        """Axes of an argument; None if it does not depend on the images."""
        found = [axes for tensor, axes in self.inputs if tensor is self.arguments[name]]
        return _known(found[0]) if found else None

    def dims(self, *names: str) -> list[int]:
        """Return dimensions of the first input, counted from the front; all of them where none is named."""
        rank = self.inputs[0][0].ndim
        found: list[int] = []
        for name in names:
            given = self.arguments.get(name)
            found += [given] if isinstance(given, int) else given or range(rank)
        return [number % rank for number in found]

    def pair(self, name: str, otherwise: Sequence[int] = ()) -> tuple[int, int]:
        """Return an argument as (y, x)."""
        value = list(self.arguments.get(name) or otherwise)
        if len(value) not in (1, 2):
            raise UnknownError(f"{name}={value} is not two-dimensional")
        return value[0], value[-1]


def _known(axes: Axes | None) -> Axes:
    if axes is None:
        raise UnknownError("the axes of what it works on are not known")
    return axes


def _same(call: Call) -> Axes:
    return call.axes


def _broadcast(call: Call) -> Axes:
    rank = call.output.ndim
    aligned = [((),) * (rank - len(axes)) + axes for axes in call.known]
    return tuple(resized(unified(axes), size) for *axes, size in zip(*aligned, call.output.shape, strict=True))


def _view(call: Call) -> Axes | None:
    return view(call.axes, call.output.shape)


def _permute(call: Call) -> Axes:
    return tuple(call.axes[number] for number in call.dims("dims"))


def _transpose(call: Call) -> Axes:
    axes = list(call.axes)
    one, other = call.dims("dim0", "dim1") if "dim0" in call.arguments else (0, len(axes) - 1)
    axes[one], axes[other] = axes[other], axes[one]
    return tuple(axes)


def _unsqueeze(call: Call) -> Axes:
    at = call.arguments["dim"] % call.output.ndim
    return *call.axes[:at], (), *call.axes[at:]


def _squeeze(call: Call) -> Axes:
    gone = [number for number in call.dims("dim") if call.inputs[0][0].shape[number] == 1]
    return tuple(axis for number, axis in enumerate(call.axes) if number not in gone)


def _resize(call: Call) -> Axes:
    return tuple(resized(axis, size) for axis, size in zip(call.axes, call.output.shape, strict=True))


def _reduce(call: Call) -> Axes:
    gone = call.dims("dim")
    if call.arguments.get("keepdim"):
        return tuple(() if number in gone else axis for number, axis in enumerate(call.axes))
    return tuple(axis for number, axis in enumerate(call.axes) if number not in gone)


def _select(call: Call) -> Axes:
    (gone,) = call.dims("dim")
    return call.axes[:gone] + call.axes[gone + 1 :]


def _restride(call: Call) -> Axes:
    """Pooling to a single position ends in one, to mark the memory format."""
    if list(call.output.shape[2:]) != [1, 1]:
        raise UnknownError("axes may have changed places")
    return call.axes


def _cat(call: Call) -> Axes:
    at = call.arguments["dim"] % call.output.ndim
    found = [unified(axes) for axes in zip(*call.known, strict=True)]
    names = {name_of(axes[at]) for axes in call.known} - {""}
    found[at] = named(names.pop() if len(names) == 1 else UNKNOWN, call.output.shape[at])
    return tuple(found)


def _stack(call: Call) -> Axes:
    at = call.arguments["dim"] % call.output.ndim
    found = [unified(axes) for axes in zip(*call.known, strict=True)]
    return *found[:at], named(UNKNOWN, call.output.shape[at]), *found[at:]


def _product(call: Call) -> Axes:
    left, right = factors(call)
    *_, height, width = call.output.shape
    batch = (left or right or ())[:-2]
    rows = left[-2] if left else _made_of(contracted(call), height)
    columns = right[-1] if right else _made_of(contracted(call), width)
    return *batch, rows, columns


def factors(call: Call) -> list[Axes | None]:
    """Axes of the two factors: the last two tensors of mm and bmm, addmm and baddbmm."""
    names = [name for name, value in call.arguments.items() if isinstance(value, Tensor)]
    return [call.of(name) for name in names[-2:]]


def contracted(call: Call) -> Axis:
    """Return the axis that a product of two matrices sums over."""
    left, right = factors(call)
    return left[-1] if left else _known(right)[-2]


def _made_of(axis: Axis, size: int) -> Axis:
    """Return what a product with weights puts in the place of an axis that it sums over."""
    channels = not axis or any(piece.name == "channel" for piece in axis)
    return named("channel" if channels else UNKNOWN, size)


def _attention(call: Call) -> Axes:
    return *_known(call.of("query"))[:-1], _known(call.of("value"))[-1]


def _projected_attention(call: Call) -> Axes:
    return *_known(call.of("query"))[:-1], named("channel", call.output.shape[-1])


def _over_positions(call: Call) -> Axes:
    """An operation on (batch, channel, y, x): that is what its axes are, if nothing else is known of them."""
    tensor, axes = call.inputs[0]
    if tensor.ndim != 4 or call.output.ndim != 4:
        return _resize(call)
    batch, channels, height, width = tensor.shape
    axes = grid(batch, channels, height, width) if axes is None else axes
    rows, columns = call.output.shape[2:]
    return *axes[:2], resized(axes[2] or named("y", 2), rows), resized(axes[3] or named("x", 2), columns)


def _convolution(call: Call) -> Axes:
    batch, _, *places = _over_positions(call)
    return batch, named("channel", call.output.shape[1]), *places


Rule = Callable[[Call], Axes | None]

pointwise = _broadcast
"""The rule of what torch calls pointwise."""

LAYOUT = ("view", "_unsafe_view", "reshape", "_reshape_alias")
SAME = ("alias", "detach", "contiguous", "_to_copy", "lift_fresh", "lift_fresh_copy", "native_dropout", "fill_")
NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
         "cudnn_batch_norm", "miopen_batch_norm")  # fmt: skip
REDUCTIONS = ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm", "linalg_vector_norm", "argmax")
UPSAMPLED = ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_nearest_exact2d",
             "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")  # fmt: skip
ATTENTIONS = ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
              "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
              "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable")  # fmt: skip

AXES: dict[str, Rule] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _over_positions,
    "avg_pool2d": _over_positions,
    "_adaptive_avg_pool2d": _over_positions,
    "adaptive_max_pool2d": _over_positions,
    **dict.fromkeys(UPSAMPLED, _over_positions),
    **dict.fromkeys(NORMS, _over_positions),
    "native_group_norm": _same,
    "native_layer_norm": _same,
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), _same),
    **dict.fromkeys(("hardswish", "hardswish_", "copy_"), pointwise),
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(("roll", "flip"), _same),
    **dict.fromkeys(LAYOUT, _view),
    "permute": _permute,
    **dict.fromkeys(("transpose", "t"), _transpose),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _broadcast,
    "as_strided_": _restride,
    "constant_pad_nd": _resize,
    **dict.fromkeys(("reflection_pad2d", "replication_pad2d"), _resize),
    **dict.fromkeys(("slice", "split", "split_with_sizes", "narrow"), _resize),
    **dict.fromkeys(("select", "unbind"), _select),
    "cat": _cat,
    "stack": _stack,
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _product),
    **dict.fromkeys(ATTENTIONS, _attention),
    "_native_multi_head_attention": _projected_attention,
    "_transformer_encoder_layer_fwd": _same,
}
"""By name in ATen."""

CONSTANT = frozenset(
    f"{form}{what}" for what in ("zeros", "ones", "full", "empty", "empty_strided") for form in ("", "new_")
) | {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "sym_size"}
"""Operations that take no more than shape or kind from their input."""

WHOLE = frozenset(UPSAMPLED)
"""Operations that are followed as they are, though torch could take them apart."""
