"""Following axes and receptive fields through a network, operation by operation.

The forward pass is watched while it runs, usually over shapes alone. What an operation does is in
`dneuro.nets.operations` and `dneuro.nets.windows`; an operation without a rule there ends the knowledge.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from dneuro.nets.axes import Axes, dims, fits, grid, name_of
from dneuro.nets.calls import dry_run, empty_images
from dneuro.nets.operations import AXES, CONSTANT, WHOLE, Call, Rule, pointwise
from dneuro.nets.output import layer_output
from dneuro.nets.receptive import PIXEL, ReceptiveField, UnknownError, union
from dneuro.nets.windows import FIELDS, local

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Known:
    """What is known of a tensor that depends on the images."""

    axes: Axes | None
    field: ReceptiveField | None


class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the images through every operation inside the ``with`` block.

    Parameters
    ----------
    images : Tensor
        The network's input (batch, channel, y, x).
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # By identity, and weakly: a pass with numbers should not keep every activation.
        self._known = WeakIdKeyDictionary()
        batch, channels, height, width = images.shape
        self._known[images] = _Known(grid(batch, channels, height, width), PIXEL)
        self._batch = batch
        self._written: dict[int, Any] = {}  # memory of constants into which something was written that depends on them

    def per_image(self, output: Tensor) -> bool:
        """Tell whether a tensor has one row per image."""
        axes = self._of(output).axes
        rows = output.ndim > 1 and len(output) == self._batch
        return rows and (axes is None or name_of(axes[0]) == "batch")

    def dims(self, output: Tensor) -> tuple[str, ...] | None:
        """Return the names of a tensor's axes per image, as `dneuro.nets.axes.KINDS` has them, or None."""
        if output.ndim == 2:
            return ("channel",)
        axes = self._of(output).axes
        return None if axes is None else dims(axes[1:])

    def field(self, output: Tensor) -> ReceptiveField | None:
        """Return what each position (y, x) of a tensor sees of the input; None if everything, or unknown."""
        named = self.dims(output)
        return self._of(output).field if named and "y" in named else None

    def _of(self, tensor: Tensor) -> _Known:
        found: _Known = self._known[tensor] if tensor in self._known else _Known(None, None)
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name not in WHOLE:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        seen = [tensor for tensor in _tensors((args, kwargs)) if self._depends(tensor)]
        if seen and name not in CONSTANT:
            arguments = _arguments(func, args, kwargs)
            if func._schema.is_mutable:
                self._note_written(func, arguments, seen)
            self._follow(func, arguments, seen, list(_tensors(result)))
        return result

    def _depends(self, tensor: Tensor) -> bool:
        return tensor in self._known or _memory(tensor) in self._written

    def _note_written(self, func: Any, arguments: dict[str, Any], seen: list[Tensor]) -> None:
        """Forget what is known of tensors that share memory with one that is written to, such as a part of them."""
        schema = func._schema.arguments
        for name in (one.name for one in schema if one.alias_info is not None and one.alias_info.is_write):
            target = arguments[name]
            if isinstance(target, Tensor) and any(tensor is not target for tensor in seen):
                if target not in self._known:
                    self._written[_memory(target)] = target.untyped_storage()  # kept, or another might take its place
                for other in list(self._known):
                    if other is not target and _memory(other) == _memory(target):
                        self._known[other] = _Known(None, None)

    def _follow(self, func: Any, arguments: dict[str, Any], seen: list[Tensor], outputs: list[Tensor]) -> None:
        name, known = func.overloadpacket.__name__, [self._of(tensor) for tensor in seen]
        fields = [one.field for one in known if one.field is not None]
        simple = torch.Tag.pointwise in func.tags
        for output in outputs:
            call = Call(arguments, output, [(tensor, one.axes) for tensor, one in zip(seen, known, strict=True)])
            axes = field = None
            try:
                axes = _made(AXES.get(name) or (pointwise if simple else None), call)
                rule = FIELDS.get(name) or (local if simple else None)
                if rule is None:
                    raise UnknownError("it has no window")
                if len(fields) == len(known):
                    field = rule(call, union(fields), axes)
            except (UnknownError, LookupError, TypeError, ValueError) as reason:  # or a form that rules do not know
                _log.debug("no receptive field after %s: %s", name, reason)
            self._known[output] = _Known(axes, field)


def _made(rule: Rule | None, call: Call) -> Axes:
    if rule is None:
        raise UnknownError("no rule for it")
    axes = rule(call)
    if axes is None or not fits(axes, call.output.shape):
        raise UnknownError("its axes cannot be followed")
    return axes


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

    def note(name: str, _part: nn.Module, output: object) -> None:
        output = layer_output(output)
        fields[name] = follower.field(output) if isinstance(output, Tensor) else None

    with Follower(images) as follower:
        dry_run(module, images, note)
    return fields


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else 0


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
