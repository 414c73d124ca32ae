"""The graph of an exported network, read from its JSON as data: which operations run on which values.

The graph may call ATen's operators that neither read files nor work on memory directly, and arithmetic on sizes;
nothing else, whatever the file says. The schema is ``torch/_export/serde/schema.yaml`` of torch, version 8.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from dneuro.nets.archive import AGAIN, DTYPES, UnfitError

SCHEMA = 8
"""Major version of the graphs that can be read."""

_SIZES: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in (
        "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos",
        "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    "torch.sym_max": max, "torch.sym_min": min, "torch.sym_float": float, "torch.sym_int": int,
    "torch.sym_not": operator.not_,
}  # fmt: skip
"""Arithmetic on sizes."""

_PRIVATE = (
    r"_assert_scalar|_assert_tensor_metadata|_safe_softmax|_unsafe_index|_unsafe_view|__and__|__or__|__xor__"
    r"|_upsample_\w+2d(_aa)?|_scaled_dot_product_\w*attention\w*"
)
"""Operators with an underscore that may be called, beside ATen's core."""

_FORBIDDEN = frozenset(("from_file", "set", "set_", "resize", "resize_", "resize_as_", "record_stream"))

_MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d,
                   4: torch.preserve_format}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """Stands for a value of the graph by name, in the arguments of an operation."""

    name: str


@dataclass(frozen=True)
class SameDevice:
    """Stands for the device of the images, in the arguments of an operation."""


Limits = tuple[int, int, int | None]
"""Least, usual and largest length of an axis; None where there is no largest."""


@dataclass
class Step:
    """One operation of the graph.

    Parameters
    ----------
    target : str
        What the file calls the operator: ``torch.ops.aten.conv2d.default``.
    function : callable
        The operator.
    arguments : dict
        By name; may hold `Value` and `SameDevice`, also in lists.
    outputs : list
        What its results are called: names, lists of names, None for what nobody wants.
    name : str
        What torch calls the operation: ``relu_3``.
    stack : list of (str, str, str)
        The modules of the original network around it, outermost first: a name of this call, the module's name and
        its class. Empty where that is not known.
    last_used : list of str
        Values that no later operation uses.
    """

    target: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    outputs: list[Any]
    name: str
    stack: list[tuple[str, str, str]]
    last_used: list[str] = field(default_factory=list)

    @property
    def made(self) -> list[str]:
        """Names of the values it makes."""
        return [name for name in _flatten(self.outputs) if name is not None]

    @property
    def used(self) -> list[str]:
        """Names of the values it uses."""
        return values_in(list(self.arguments.values()))

    def run(self, arguments: dict[str, Any]) -> Any:
        """Return the results, for arguments without `Value` and `SameDevice`."""
        if self.target in _SIZES:
            return self.function(*arguments.values())
        return self.function(**arguments)


@dataclass
class Program:
    """The graph of an exported network.

    Parameters
    ----------
    steps : list of Step
        In the order of execution.
    image : str
        Name of the value that is the batch of images.
    sizes : list of (int, int, int or None)
        Limits of each axis of the images.
    held : dict
        Names of values that are parameters, buffers or constants, and what these are called in the state.
    buffers : dict
        Which of these are buffers, and whether they belong to the state.
    constants : dict
        Values that are numbers.
    result : list
        What the network yields, as `Value`.
    """

    steps: list[Step] = field(default_factory=list)
    image: str = ""
    sizes: list[Limits] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, bool] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    result: list[Any] = field(default_factory=list)


def read_program(content: bytes) -> Program:
    """Return the graph that a JSON document describes.

    Raises
    ------
    UnfitError
        If it is of another version, takes something else than one batch of images, changes its own state, or calls
        what it may not.
    """
    document = json.loads(content)
    version = document["schema_version"]["major"]
    if version != SCHEMA:
        raise UnfitError(f"its graph has schema version {version}, dneuro reads {SCHEMA}", f"{AGAIN} with torch 2.14")
    graph, signature = document["graph_module"]["graph"], document["graph_module"]["signature"]
    program = Program()
    images = [name for spec in signature["input_specs"] for name in _read_input(spec, program)]
    if len(images) != 1:
        raise UnfitError(f"it takes {len(images)} inputs, not one batch of images")
    program.image = images[0]
    program.sizes = [_range(size, document["range_constraints"]) for size in graph["tensor_values"][images[0]]["sizes"]]
    for spec in signature["output_specs"]:
        if "user_output" not in spec:
            raise UnfitError(f"it changes its own state ({next(iter(spec))})", AGAIN)
        program.result.append(_read_argument(spec["user_output"]["arg"]))
    program.steps = [_read_step(node) for node in graph["nodes"]]
    _note_last_uses(program)
    return program


def _read_input(spec: dict[str, Any], program: Program) -> Iterator[str]:
    """Note what an input of the graph is; yield its name if it is the user's."""
    ((kind, content),) = spec.items()
    if kind == "user_input":
        yield content["arg"]["as_tensor"]["name"] if "as_tensor" in content["arg"] else ""
    elif kind == "constant_input":
        program.constants[content["name"]] = None if "as_none" in content["value"] else _only(content["value"])
    elif kind in ("parameter", "buffer", "tensor_constant"):
        name = content["arg"]["name"]
        program.held[name] = content[f"{kind}_name"]
        if kind != "parameter":
            program.buffers[name] = bool(content.get("persistent", False))
    else:
        raise UnfitError(f"it needs a {kind} as input, which is no plain tensor")


def _range(size: dict[str, Any], limits: dict[str, Any]) -> Limits:
    if "as_int" in size:
        return size["as_int"], size["as_int"], size["as_int"]
    usual = size["as_expr"]["hint"]["as_int"]
    symbol = re.fullmatch(r"Symbol\('(\w+)'[^()]*\)", size["as_expr"]["expr_str"])
    limit = limits.get(symbol[1], {}) if symbol else {}
    # torch notes 2 as the least for every axis that is free
    low = limit.get("min_val") or 0
    return (low if low > 2 else 0), usual, limit.get("max_val")


def _read_step(node: dict[str, Any]) -> Step:
    function = _function(node["target"])  # first: it is the better reason
    arguments = {entry["name"]: _read_argument(entry["arg"]) for entry in node["inputs"]}
    _check_mode(node["target"], arguments)
    stack = [entry.split(",") for entry in node["metadata"].get("nn_module_stack", "").split(";")]
    known = all(len(entry) == 3 and re.fullmatch(r"(\w+(\.\w+)*)?", entry[1]) for entry in stack)
    step = Step(
        target=node["target"],
        function=function,
        arguments=arguments,
        outputs=[_read_output(output) for output in node["outputs"]],
        name=node.get("name") or "",
        stack=[(call, path, kind.rpartition(".")[2]) for call, path, kind in stack] if known else [],
    )
    step.name = step.name or (step.made or ["operation"])[0]
    return step


def values_in(argument: Any) -> list[str]:
    """Return the names of the graph's values in an argument."""
    return [value.name for value in _flatten([argument]) if isinstance(value, Value)]


def _note_last_uses(program: Program) -> None:
    waiting = set(values_in(program.result))
    for step in reversed(program.steps):
        step.last_used = sorted({*step.used, *step.made} - waiting)
        waiting.update(step.used)


def _function(target: str) -> Callable[..., Any]:
    if target in _SIZES:
        return _SIZES[target]
    found = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target)
    if found:
        name, overload = found.groups()
        full = f"aten::{name}" + ("" if overload == "default" else f".{overload}")
        # Only the dispatcher's: torch.ops.aten has TorchScript's too, and aten::save writes files.
        if torch._C._dispatch_has_kernel(full) and name not in _FORBIDDEN:
            function: Any = getattr(getattr(torch.ops.aten, name), overload)
            private = name.startswith("_") and not re.fullmatch(_PRIVATE, name)
            if not private or torch.Tag.core in function.tags:
                return function  # type: ignore[no-any-return]
    raise UnfitError(
        f"it calls {target}, which is not among the operators that dneuro runs",
        "export a network without custom operators and without control flow that depends on its numbers",
    )


def _check_mode(target: str, arguments: dict[str, Any]) -> None:
    """Refuse what behaves as in training."""
    dropout = "dropout" in target and arguments.get("train", arguments.get("training")) is True
    norm = "batch_norm" in target and arguments.get("training") is True and arguments.get("running_mean") is not None
    if dropout or norm:
        raise UnfitError(f"it was exported in training mode ({target})", AGAIN)


def _read_argument(argument: dict[str, Any]) -> Any:
    """Return the value of an argument; other values of the graph as `Value`."""
    ((kind, content),) = argument.items()
    if kind == "as_none":
        return None
    if kind in ("as_tensor", "as_optional_tensor", "as_sym_int", "as_sym_float", "as_sym_bool"):
        return _named_or_plain(content)
    if kind in ("as_tensors", "as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return [_named_or_plain(entry) for entry in content]
    if kind in ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_int_lists"):
        return content
    if kind == "as_device":
        return SameDevice()
    if kind == "as_scalar_type":
        return DTYPES[content]
    if kind == "as_memory_format":
        return _MEMORY_FORMATS[content]
    if kind == "as_layout" and content == 7:
        return torch.strided
    if kind == "as_complex":
        return complex(content["real"], content["imag"])
    raise UnfitError(f"an operation takes {kind.removeprefix('as_')}, which dneuro does not read")


def _named_or_plain(content: Any) -> Any:
    if "name" in content:  # a tensor
        return Value(content["name"])
    ((kind, inner),) = content.items()
    if kind == "as_name":
        return Value(inner)
    if kind == "as_tensor":
        return Value(inner["name"])
    return None if kind == "as_none" else inner


def _read_output(output: dict[str, Any]) -> Any:
    found = _read_argument(output)
    if isinstance(found, list):
        return [value.name if isinstance(value, Value) else None for value in found]
    return found.name if isinstance(found, Value) else None


def _only(mapping: dict[str, Any]) -> Any:
    (value,) = mapping.values()
    return value


def _flatten(values: list[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from _flatten(value)
        else:
            yield value
