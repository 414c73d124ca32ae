"""Which values of an exported graph are the outputs of layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from dneuro.nets.program import Program, Step, values_in

_NO_LAYERS = frozenset((
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "slice", "select", "split", "chunk",
    "unbind", "unsqueeze", "squeeze", "expand", "expand_as", "contiguous", "clone", "detach", "detach_", "alias", "to",
    "_to_copy", "lift_fresh_copy", "_unsafe_view", "_assert_scalar", "_assert_tensor_metadata",
))  # fmt: skip
"""Operations that compute nothing."""


@dataclass(frozen=True)
class TracedLayer:
    """A value of the graph that is the output of a layer.

    Parameters
    ----------
    step : int
        The operation that makes it.
    value : str
        Its name in the graph.
    path : str
        Name of the module that yielded it in the original network; empty for an operation outside any leaf module.
    name : str
        What torch calls the operation.
    kind : str
        Class of the module, or the operation's.
    """

    step: int
    value: str
    path: str
    name: str
    kind: str


def layers_of(program: Program) -> Iterator[TracedLayer]:
    """Yield the layers of a graph.

    A call of a leaf module is a layer if it yields one value: the one that is used outside of it. An operation that
    no leaf module makes (a sum in a residual block, a functional ReLU) is a layer of its own.
    """
    inside = {path for step in program.steps for _, path, _ in step.stack[:-1]} | {""}
    calls: dict[str, list[int]] = defaultdict(list)
    for number, step in enumerate(program.steps):
        leaf = step.stack and step.stack[-1][1] not in inside
        calls[step.stack[-1][0] if leaf else f"operation {number}"].append(number)
    users = _users(program)
    for numbers in calls.values():
        made = {value: number for number in numbers for value in program.steps[number].made}
        wanted = [value for value in made if users[value].difference(numbers)]
        first = program.steps[numbers[0]]
        leaf = first.stack and first.stack[-1][1] not in inside
        if leaf and not wanted:  # worked in place, and the network goes on with what it was given
            wanted = list(made)[-1:]
        if len(wanted) != 1 or not (leaf or _computes(first)):
            continue
        _, path, kind = first.stack[-1] if leaf else ("", "", _operation(first).rstrip("_"))
        yield TracedLayer(made[wanted[0]], wanted[0], path, first.name, kind)


def _users(program: Program) -> dict[str, set[int]]:
    """Return which operations use each value; -1 is the network's result."""
    users: dict[str, set[int]] = defaultdict(set)
    for number, step in enumerate(program.steps):
        for value in step.used:
            users[value].add(number)
    for value in values_in(program.result):
        users[value].add(-1)
    return users


def _operation(step: Step) -> str:
    return step.target.split(".")[3] if step.target.startswith("torch.ops.aten.") else ""


def _computes(step: Step) -> bool:
    name = _operation(step)
    return bool(name) and not name.startswith("sym_") and name not in _NO_LAYERS
