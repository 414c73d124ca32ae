"""Receptive fields: which part of the input a position of a layer can see.

The fields are worked out by following shapes through the network (a dry run on the meta device): each
elementary operation says how the field of its output follows from that of its inputs. An operation without
such a rule ends the knowledge: what comes after it has no field.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dneuro.nets.calls import dry_run, empty_images

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReceptiveField:
    """The rectangle of input pixels that each position (y, x) of a layer can see.

    Parameters
    ----------
    size : (int, int)
        Height and width in input pixels.
    stride : (int, int)
        Input pixels from one position to the next, down and to the right.
    start : (int, int)
        First row and first column that position (0, 0) sees; negative where the input is padded.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]

    def box(self, y: int, x: int) -> tuple[int, int, int, int]:
        """Return (top, left, bottom, right), the last two exclusive; may reach outside the input."""
        top, left = self.start[0] + y * self.stride[0], self.start[1] + x * self.stride[1]
        return top, left, top + self.size[0], left + self.size[1]


PIXEL = ReceptiveField(size=(1, 1), stride=(1, 1), start=(0, 0))
"""The field of the input itself."""


class _UnknownError(Exception):
    """The field cannot be said; the argument is the reason."""


def receptive_fields(
    module: nn.Module, input_shape: tuple[int, int, int]
) -> dict[str, ReceptiveField | None]:
    """Return the receptive field of every layer.

    Parameters
    ----------
    module : torch.nn.Module
        The network, in eval mode.
    input_shape : (int, int, int)
        Channels, height and width of its input.

    Returns
    -------
    dict
        Layer name to field, in the order of execution. None where a position sees everything, where the
        layer has no positions, and where it is not known; the reason is in the log at level DEBUG.

    Raises
    ------
    NetworkError
        If the network cannot take images of that shape.
    """
    images = empty_images(input_shape)
    fields: dict[str, ReceptiveField | None] = {}
    with FieldTracker(images) as tracker:
        dry_run(module, images, lambda name, _part, output: fields.update({name: tracker.field(output)}))
    return fields


class FieldTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows receptive fields through every operation inside the ``with`` block.

    Parameters
    ----------
    images : Tensor
        The network's input (batch, channel, y, x); only its shape matters.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fields: dict[int, ReceptiveField | None] = {id(images): PIXEL}
        self._alive = [images]  # an id stays one tensor's as long as the tensor lives

    def field(self, output: object) -> ReceptiveField | None:
        """Return the field of a layer's output (batch, channel, y, x), or None."""
        positions = isinstance(output, Tensor) and output.ndim == 4
        return self._fields.get(id(output)) if positions else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        seen = [tensor for tensor in _tensors((args, kwargs)) if id(tensor) in self._fields]
        if seen:
            field = self._follow(func, args, kwargs, seen, result)
            for tensor in _tensors(result):
                self._fields[id(tensor)] = field
                self._alive.append(tensor)
        return result

    def _follow(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seen: list[Tensor], result: Any
    ) -> ReceptiveField | None:
        known = [self._fields[id(tensor)] for tensor in seen]
        fields = [field for field in known if field is not None]
        if len(fields) < len(known):
            return None
        name = func.overloadpacket.__name__
        rule = _RULES.get(name) or (_pointwise if torch.Tag.pointwise in func.tags else None)
        try:
            if rule is None:
                raise _UnknownError("no rule for it")
            call = _Call(_arguments(func, args, kwargs), next(_tensors(result)), seen, _union(fields))
            return rule(call)
        except _UnknownError as reason:
            _log.debug("no receptive field after %s: %s", name, reason)
            return None


@dataclass(frozen=True)
class _Call:
    """One operation: its arguments by name, its output, the inputs with fields, and their union."""

    arguments: dict[str, Any]
    output: Tensor
    seen: list[Tensor]
    field: ReceptiveField

    def pair(self, name: str, otherwise: Sequence[int] = ()) -> tuple[int, int]:
        """Return the argument `name` as (y, x)."""
        value = list(self.arguments.get(name) or otherwise)
        if len(value) not in (1, 2):
            raise _UnknownError(f"{name}={value} is not two-dimensional")
        return value[0], value[-1]


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an operation by the names of its schema, defaults filled in."""
    schema = func._schema.arguments
    values = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    values.update({argument.name: value for argument, value in zip(schema, args, strict=False)})
    return {**values, **kwargs}


def _union(fields: list[ReceptiveField]) -> ReceptiveField:
    """Return the smallest field that covers them all, position by position."""
    stride = fields[0].stride
    if any(field.stride != stride for field in fields):
        raise _UnknownError(f"strides differ: {sorted({field.stride for field in fields})}")
    start = min(f.start[0] for f in fields), min(f.start[1] for f in fields)
    end = max(f.box(0, 0)[2] for f in fields), max(f.box(0, 0)[3] for f in fields)
    return ReceptiveField((end[0] - start[0], end[1] - start[1]), stride, start)


def _window(
    field: ReceptiveField,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> ReceptiveField:
    """Return the field of a window that slides over positions with `field`."""
    (height, width), (down, right), (top, left) = field.size, field.stride, field.start
    return ReceptiveField(
        size=(
            height + (kernel[0] - 1) * dilation[0] * down,
            width + (kernel[1] - 1) * dilation[1] * right,
        ),
        stride=(down * stride[0], right * stride[1]),
        start=(top - padding[0] * down, left - padding[1] * right),
    )


def _convolution(call: _Call) -> ReceptiveField:
    weight = call.arguments["weight"]
    if call.arguments["transposed"] or weight.ndim != 4:
        raise _UnknownError("transposed or not two-dimensional")
    kernel = (weight.shape[2], weight.shape[3])
    return _window(call.field, kernel, call.pair("stride"), call.pair("padding"), call.pair("dilation"))


def _pool(call: _Call) -> ReceptiveField:
    kernel = call.pair("kernel_size")
    stride = call.pair("stride", otherwise=kernel)
    return _window(call.field, kernel, stride, call.pair("padding"), call.pair("dilation", otherwise=(1, 1)))


def _pad(call: _Call) -> ReceptiveField:
    left, top = call.arguments["pad"][0], (*call.arguments["pad"], 0, 0)[2]
    return _window(call.field, (1, 1), padding=(top, left))


def _pointwise(call: _Call) -> ReceptiveField:
    if any(tensor.ndim < 3 or tensor.shape[-2:] != call.output.shape[-2:] for tensor in call.seen):
        raise _UnknownError("it spreads one value over all positions")
    return call.field


def _same_grid(call: _Call) -> ReceptiveField:
    """Anything that leaves the last two dimensions as they are: (…, y, x) to (…, y, x)."""
    if call.output.ndim < 3 or call.output.shape[-2:] != call.seen[0].shape[-2:]:
        raise _UnknownError("positions are lost")
    return call.field


def _leading(*dims: str) -> Callable[[_Call], ReceptiveField]:
    """Return the rule of an operation along the dimensions given in `dims`, none of which is y or x."""

    def rule(call: _Call) -> ReceptiveField:
        rank = max(call.output.ndim, call.seen[0].ndim)
        if any(call.arguments[dim] % rank >= rank - 2 for dim in dims):
            raise _UnknownError("it works along positions")
        return call.field

    return rule


_RULES: dict[str, Callable[[_Call], ReceptiveField]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _pool,
    "avg_pool2d": _pool,
    "constant_pad_nd": _pad,
    "_adaptive_avg_pool2d": _same_grid,
    "adaptive_max_pool2d": _same_grid,
    "native_batch_norm": _same_grid,
    "_native_batch_norm_legit_no_training": _same_grid,
    "cudnn_batch_norm": _same_grid,
    "hardswish": _pointwise,
    "hardswish_": _pointwise,
    "view": _same_grid,
    "_unsafe_view": _same_grid,
    "alias": _same_grid,
    "detach": _same_grid,
    "cat": _leading("dim"),
    "stack": _leading("dim"),
    "select": _leading("dim"),
    "slice": _leading("dim"),
    "split": _leading("dim"),
    "unsqueeze": _leading("dim"),
    "transpose": _leading("dim0", "dim1"),
}
"""What each operation does to the field, by its name in ATen; pointwise ones are tagged so by torch."""
