"""What may stand at a key path: its keys, choices and description, out of the JSON schema of a model."""

from __future__ import annotations

import functools
import re
from typing import Any

from pydantic import BaseModel

from dneuro.spec.problems import KeyPath

Schema = dict[str, Any]


@functools.cache
def outline(model: type[BaseModel]) -> Outline:
    """Return the outline of a model; made once."""
    return Outline(describe(model))


def describe(model: type[BaseModel]) -> Schema:
    """Return the JSON schema of a model, its docstrings as one paragraph of Markdown each."""
    schema: Schema = _tidy(model.model_json_schema())
    return schema


def _tidy(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _prose(value) if key == "description" and isinstance(value, str) else _tidy(value)
                for key, value in node.items()}  # fmt: skip
    return [_tidy(item) for item in node] if isinstance(node, list) else node


def _prose(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()


class Outline:
    """Looks things up in a JSON schema, by the key path of a value and the whole data it is part of."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def keys(self, path: KeyPath, data: Any = None) -> list[str]:
        """Return the keys that a mapping at `path` may have, as far as they are known; in order."""
        names = [key for node in self._at(path, data) for key in _named_keys(node)]
        return list(dict.fromkeys(names))

    def free_keys(self, path: KeyPath, data: Any = None) -> bool:
        """Return whether a mapping at `path` may have any key, such as the name of a layer."""
        return any(isinstance(_other(node), dict) and not _named_keys(node) for node in self._at(path, data))

    def choices(self, path: KeyPath, data: Any = None) -> list[str]:
        """Return the values there are to choose from at `path`, as they are written in YAML."""
        nodes = self._at(path, data)
        found = [_written(value) for node in nodes for value in _enumerated(node)]
        null = ["null"] if found and any(node.get("type") == "null" for node in nodes) else []
        return list(dict.fromkeys(found + null))

    def description(self, path: KeyPath, data: Any = None) -> str:
        """Return what the value at `path` is, in one sentence; empty if nothing says so."""
        for node in self._at(path[:-1], data) if path else ():
            child = _child(node, path[-1])
            if child is not None and "description" in child:
                return re.split(r"\.\s+(?=[A-Z])", child["description"])[0].rstrip(".")
        return ""

    def _at(self, path: KeyPath, data: Any) -> list[Schema]:
        """Return the alternatives at `path`, narrowed down by what `data` says there and above."""
        nodes = _fitting(self._flat(self.schema), data)
        for step in path:
            children = [child for node in nodes if (child := _child(node, step)) is not None]
            data = below(data, step)
            nodes = _fitting([flat for child in children for flat in self._flat(child)], data)
        return nodes

    def _flat(self, node: Schema) -> list[Schema]:
        """Return the alternatives that `node` is made of, references followed."""
        if "$ref" in node:
            return self._flat(self.schema["$defs"][node["$ref"].removeprefix("#/$defs/")])
        if "properties" in node:  # alternatives beside them say which keys go together, nothing about what they are
            return [node]
        parts = node.get("anyOf") or node.get("oneOf")
        return [flat for part in parts for flat in self._flat(part)] if parts else [node]


def _child(node: Schema, step: str | int) -> Schema | None:
    if isinstance(step, int):
        prefix = node.get("prefixItems", [])
        found = prefix[step] if step < len(prefix) else node.get("items")
    else:
        found = node.get("properties", {}).get(step, _other(node))
    return found if isinstance(found, dict) else None


def _other(node: Schema) -> Any:
    """Return what a key may hold that has no name in the schema."""
    return node.get("additionalProperties", next(iter(node.get("patternProperties", {}).values()), None))


def _named_keys(node: Schema) -> list[str]:
    return [*node.get("properties", {}), *node.get("propertyNames", {}).get("enum", [])]


def _enumerated(node: Schema) -> list[Any]:
    return [node["const"]] if "const" in node else list(node.get("enum", []))


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def below(data: Any, step: str | int) -> Any:
    """Return the value at one key or index of plain data; None if there is none."""
    if isinstance(data, dict):
        return data.get(step)
    return data[step] if isinstance(data, list) and isinstance(step, int) and step < len(data) else None


def _fitting(nodes: list[Schema], data: Any) -> list[Schema]:
    """Drop the alternatives that a constant, such as ``source: folder``, rules out, but not all of them."""
    if not isinstance(data, dict):
        return nodes
    fitting = [
        node
        for node in nodes
        if all(data.get(key, value.get("const")) == value.get("const")
               for key, value in node.get("properties", {}).items() if "const" in value)
    ]  # fmt: skip
    return fitting or nodes
