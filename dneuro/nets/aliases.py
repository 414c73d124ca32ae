"""Which views of an exported graph may be copies.

A ``view`` was possible with the strides that values had when the graph was made. Another backend of attention, or
another memory format, gives them other strides; the same numbers can then be had by a copy, unless something later
writes into memory that the view shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dneuro.nets.program import Program, Step, values_in

_QUIET = ("dropout", "feature_dropout", "alpha_dropout", "type_as")
"""Operators that may return what they were given, though their schema does not say so."""


def views_to_copy(program: Program) -> Iterator[Step]:
    """Yield the steps of ``aten.view`` whose result nobody writes into, nor into what it is a view of."""
    family: dict[str, str] = {}

    def head(value: str) -> str:
        while family.setdefault(value, value) != value:
            value = family[value]
        return value

    for step in program.steps:
        for value in _shared(step):
            for made in step.made:
                family[head(made)] = head(value)
    written: set[str] = set()
    for step in reversed(program.steps):
        if step.target == "torch.ops.aten.view.default" and head(step.made[0]) not in written:
            yield step
        written.update(head(value) for value in _values(step, write=True))


def _shared(step: Step) -> list[str]:
    if step.target.startswith("torch.ops.aten.") and step.target.split(".")[3] in _QUIET:
        return step.used
    return _values(step, write=False)


def _values(step: Step, *, write: bool) -> list[str]:
    """Return the values that a step may share memory with, or those that it writes into."""
    schema: Any = getattr(step.function, "_schema", None)
    arguments = schema.arguments if schema is not None else []
    names = [one.name for one in arguments if one.alias_info is not None and (one.alias_info.is_write or not write)]
    return [value for name in names for value in values_in(step.arguments.get(name))]
