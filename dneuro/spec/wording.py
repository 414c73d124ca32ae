"""What pydantic found wrong, in the words of the person who wrote the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dneuro.errors import nearest, suggest
from dneuro.spec.outline import Outline, below
from dneuro.spec.problems import KeyPath, Problem, ProblemsError, shown

_LIMITS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
}
_SHAPES = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text",
    "list": "must be a list",
    "tuple": "must be a list",
    "dict": "must be a mapping, `key: value`",
    "model": "must be a mapping, `key: value`",
}


def problems(
    error: ValidationError, outline: Outline, data: Any, written: Callable[[KeyPath], str | None]
) -> list[Problem]:
    """Return what is wrong with `data`, each problem with its full key path.

    Parameters
    ----------
    error : ValidationError
        What pydantic found.
    outline : Outline
        What may be written where.
    data : object
        What was validated.
    written : callable
        Gives the text of the scalar at a path, before YAML made a number or a date of it.
    """
    explain = _Explainer(outline, data, written)
    found = [problem for detail in error.errors(include_url=False) for problem in explain(detail)]
    return [problem for problem in found if not explain.misspelt(problem)]


class _Explainer:
    def __init__(self, outline: Outline, data: Any, written: Callable[[KeyPath], str | None]) -> None:
        self.outline, self.data, self.written = outline, data, written
        self.unknown: dict[KeyPath, list[str]] = {}
        self.missing: set[KeyPath] = set()

    def misspelt(self, problem: Problem) -> bool:
        """Return whether a key is missing only because another line of the mapping misspells it."""
        *parent, key = problem.at or ("",)
        return problem.at in self.missing and any(
            nearest(unknown, self.outline.keys(tuple(parent), self.data), 1) == [key]
            for unknown in self.unknown.get(tuple(parent), [])
        )

    def __call__(self, detail: ErrorDetails) -> list[Problem]:
        path = _key_path(detail["loc"], self.data)
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ProblemsError):
            return [Problem(p.message, p.hint, (*path, *p.at)) for p in cause.problems]
        if detail["loc"][-1:] == ("[key]",) or detail["type"] == "extra_forbidden":
            return [self._unknown_key(path)]
        if detail["type"] == "missing":
            return [self._missing(path)]
        message = _message(detail, str(cause) if cause else "")
        return [Problem(message, self._hint(detail, path), path)]

    def _unknown_key(self, path: KeyPath) -> Problem:
        key, parent = str(path[-1]), path[:-1]
        self.unknown.setdefault(parent, []).append(key)
        known = self.outline.keys(parent, self.data)
        before, colon, after = key.partition(":")
        if colon and before in known:
            hint = f"write a space after the colon: `{before}: {after}`"
        else:
            hint = suggest(key, known)
        return Problem(f"unknown key {key!r}", hint, path)

    def _missing(self, path: KeyPath) -> Problem:
        self.missing.add(path)
        if isinstance(path[-1], int):
            return Problem(f"must have more items, has {path[-1]}", self._about(path), path[:-1])
        description = self.outline.description(path, self.data)
        return Problem("missing", f"add `{path[-1]}: …`" + (f" - {description}" if description else ""), path)

    def _hint(self, detail: ErrorDetails, path: KeyPath) -> str | None:
        value, choices = detail["input"], self.outline.choices(path, self.data)
        if detail["type"] == "literal_error":
            if str(value).lower() == "none" and "null" in choices:
                return f"write `null` for none; choices: {', '.join(choices)}"
            return suggest(str(value), choices)
        if detail["type"] == "string_type" and isinstance(value, bool | int | float):
            return f'write it in quotes: "{self.written(path) or value}"'
        if detail["type"].startswith(("model", "dict")) and (keys := self.outline.keys(path, self.data)):
            meant = [key for key in keys if value in self.outline.choices((*path, key), self.data)]
            return f"write `{{{meant[0]}: {value}}}`" if meant else f"keys: {', '.join(keys)}"
        return self._about(path)

    def _about(self, path: KeyPath) -> str | None:
        """Return what the setting at `path` is, the list's where it is an item of a list."""
        while path and isinstance(path[-1], int):
            path = path[:-1]
        description = self.outline.description(path, self.data)
        return f"{path[-1]}: {description}" if description else None


def _key_path(loc: KeyPath, data: Any) -> KeyPath:
    """Return `loc` without what is no key: tags of unions, in angle brackets, and marks of keys."""
    path: list[str | int] = []
    for part in loc:
        is_key = isinstance(data, dict) and part in data
        if is_key or not (part == "[key]" or str(part).startswith("<")):
            path.append(part)
            data = below(data, part)
    return tuple(path)


def _message(detail: ErrorDetails, cause: str) -> str:
    kind, value, limits = detail["type"], detail["input"], detail.get("ctx", {})
    if cause:
        return cause
    if kind == "literal_error":
        return f"unknown value {shown(value)}"
    if kind == "too_short" and limits["min_length"] == 1:
        return "must not be empty"
    if kind in ("too_short", "too_long"):
        limit = "at least {min_length}" if kind == "too_short" else "at most {max_length}"
        return f"must have {limit.format(**limits)} items, has {limits['actual_length']}"
    shape = _SHAPES.get(kind.split("_")[0], detail["msg"])
    wanted = _LIMITS[kind].format(**limits) if kind in _LIMITS else shape
    return f"{wanted}, not {shown(value)}"
