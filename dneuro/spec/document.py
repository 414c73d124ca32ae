"""A YAML text as plain data that remembers where each of its keys stands.

Scalars are read as YAML 1.2 reads them, so the traps of 1.1 are not there: ``no`` and ``on`` are text (a
setting that wants true or false takes them as such), ``2024-01-31`` and ``12:30`` are text, ``010`` is ten,
``1e-3`` is a number. Keys are always text: ``1.10`` names a layer. A key given twice is a problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from dneuro.spec.problems import KeyPath, Problem

LIMIT = 100_000
"""Values in one document; aliases of aliases can make more of a few lines than any memory holds."""

_TAG = "tag:yaml.org,2002:"
_EXPONENT = r"[eE][-+]?[0-9]+"
_SCALARS = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", rf"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:{_EXPONENT})?|[-+]?[0-9]+{_EXPONENT}"
              r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a key, or an item of a list, begins: line and column, counted from 1."""

    line: int
    column: int
    text: str | None = None
    """The value as it was written, where it is a scalar."""


@dataclass
class Document:
    """Plain data, the place of everything in it, and what is wrong with its keys."""

    data: Any = None
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[tuple[Place, Problem]] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """Return the place of `path`, or of the nearest thing above it that is written down."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(1, 1))


class NotYamlError(ValueError):
    """Text that is not YAML, and where it stops being so."""

    def __init__(self, message: str, hint: str | None, place: Place) -> None:
        super().__init__(message)
        self.message, self.hint, self.place = message, hint, place


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def read(text: str) -> Document:
    """Return the data of a YAML text; keys given twice are listed in the document's problems.

    Raises
    ------
    NotYamlError
        If the text is not YAML, or holds what dneuro has no use for (tags, keys that are not scalars).
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        return _Builder().build(root)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, error.position - before.rfind("\n"))
        raise NotYamlError(f"not YAML: character U+{error.character:04X}", "delete it", place) from None
    except RecursionError:
        raise NotYamlError("nested too deeply", None, Place(1, 1)) from None


def _syntax_error(error: yaml.MarkedYAMLError) -> NotYamlError:
    what = ", ".join(part for part in (error.context, error.problem) if part)
    mark, begun = error.problem_mark or error.context_mark, error.context_mark
    place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
    if begun and begun.line + 1 < place.line:
        what += f" (begun in line {begun.line + 1})"
    return NotYamlError(f"not YAML: {what}", _syntax_hint(what), place)


def _syntax_hint(what: str) -> str | None:
    if r"'\t'" in what:
        return "indent with spaces, not with tabs"
    if "mapping values are not allowed" in what:
        return "put the text in quotes if it holds `: `, or check the indentation here and in the line above"
    if "expected ',' or" in what or "<stream end>" in what or "unexpected end of stream" in what:
        return "close every [ { and quotation mark, and put a comma between items"
    if "cannot start any token" in what:
        return "put the text in quotes"
    if "single document" in what:
        return "keep one document per file: delete the line `---`"
    if "expected <block end>" in what:
        return "give the keys of one mapping, and the dashes of one list, the same indentation"
    return None


class _Builder:
    """Turns composed nodes into a Document."""

    def __init__(self) -> None:
        self.document = Document()
        self.open: list[yaml.Node] = []

    def build(self, root: yaml.Node | None) -> Document:
        if root is not None:
            self.document.data = self.value(root, (), root)
        return self.document

    def value(self, node: yaml.Node, path: KeyPath, begin: yaml.Node) -> Any:
        place = _place(begin, node.value if isinstance(node, yaml.ScalarNode) else None)
        if node in self.open:
            raise NotYamlError("an alias that contains itself", "write the value out", place)
        if len(self.document.places) >= LIMIT:
            raise NotYamlError(f"more than {LIMIT:,} values", "use fewer aliases", place)
        self.document.places[path] = place
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
                return {key.value: self.value(value, (*path, key.value), key)
                        for key, value in self.pairs(node)}  # fmt: skip
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
                return [self.value(item, (*path, i), item) for i, item in enumerate(node.value)]
        finally:
            self.open.pop()
        raise _unknown_tag(node)

    def pairs(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Yield keys and values: the mapping's own, then those of ``<<`` that it does not override."""
        seen: dict[str, yaml.Node] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise NotYamlError("a key must be text", "write `key: value`", _place(key))
            if key.tag == f"{_TAG}merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif key.value in seen:
                first = seen[key.value].start_mark.line + 1
                what = f"key {key.value!r} is given twice, first in line {first}"
                problem = (_place(key), Problem(what, "delete one of the two"))
                if problem not in self.document.problems:  # an alias comes by again
                    self.document.problems.append(problem)
            else:
                seen[key.value] = key
                yield key, value
        for other in merged:
            if not isinstance(other, yaml.MappingNode):
                raise NotYamlError("`<<` takes a mapping, or a list of them", None, _place(other))
            for key, value in self.pairs(other):
                if key.value not in seen:
                    seen[key.value] = key
                    yield key, value


def _place(node: yaml.Node, text: str | None = None) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1, text)


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    try:
        match node.tag.removeprefix(_TAG):
            case "str" | "merge":
                return text
            case "null":
                return None
            case "bool":
                return {"true": True, "false": False}[text.lower()]
            case "int":
                return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
            case "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except (ValueError, KeyError):
        # `!!int abc`, or an integer beyond Python's limit on digits: whoever wants a number will say so.
        return text
    raise _unknown_tag(node)


def _unknown_tag(node: yaml.Node) -> NotYamlError:
    tag = node.tag.replace(_TAG, "!!")
    return NotYamlError(f"tag {tag} has no meaning here", "delete the tag", _place(node))
