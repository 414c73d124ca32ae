"""What is wrong with a value, and where: the form in which validators and readers say it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

KeyPath = tuple[str | int, ...]
"""Where a value lies: the keys and list indices that lead to it."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, below the value that a validator was given.

    Parameters
    ----------
    message : str
        What, the actual value, the limit.
    hint : str, optional
        A way out that can be followed.
    at : tuple of str and int
        Keys and indices from the validated value down to the guilty one.
    """

    message: str
    hint: str | None = None
    at: KeyPath = ()


class ProblemsError(ValueError):
    """What a validator raises that knows a way out, several problems, or a place further down."""

    def __init__(self, *problems: Problem) -> None:
        texts = [p.message if p.hint is None else f"{p.message} ({p.hint})" for p in problems]
        super().__init__("; ".join(texts))
        self.problems = problems


def refusal(message: str, hint: str | None = None, at: KeyPath = ()) -> ProblemsError:
    """Return the error of one problem, to be raised by a validator."""
    return ProblemsError(Problem(message, hint, at))


def shown(value: object) -> str:
    """Return a value as an error message names it, on one line and at most 60 characters long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"a mapping with {_some(map(str, value))}" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}…{text[-1]}"


def _some(names: Iterable[str], limit: int = 4) -> str:
    known = list(names)
    return ", ".join(known[:limit]) + (", …" if len(known) > limit else "")


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, each once, in order."""
    known = list(names)
    return [name for name in dict.fromkeys(known) if known.count(name) > 1]
