"""``--set key=value``: settings from the command line, put into a file's data before it is checked."""

from __future__ import annotations

import re
from typing import Any

from dneuro.errors import suggest
from dneuro.spec import document
from dneuro.spec.outline import Outline
from dneuro.spec.problems import KeyPath, ProblemsError, refusal, shown

STEPS_PATH: KeyPath = ("steps",)


def apply(data: dict[str, Any], override: str, outline: Outline) -> KeyPath:
    """Put one ``key=value`` into `data`, in place, and return the key path that was set.

    The key is dotted. A step is addressed by its name or kind, or by its index: ``steps.svd.rank``,
    ``steps.1.rank``. Names of layers may hold dots: ``steps.extract.layers.features.12.keep``. The value is
    YAML. Whether the key may be there at all is left to the validation of the whole.

    Raises
    ------
    ProblemsError
        If there is nothing to set: no such step or item, something below a number, a value that is not YAML.
    """
    key, equals, text = override.partition("=")
    words = re.sub(r"\[(\d+)\]", r".\1", key.strip()).split(".")
    if not equals or not all(words):
        raise refusal("is not `key=value`", "write `--set store=/tmp/x.zarr` or `--set steps.svd.rank=4`")
    _, path = _Setter(_value(text), data, outline).put(data, words, ())
    return path


def _value(text: str) -> Any:
    try:
        found = document.read(text)
    except document.NotYamlError as error:
        raise refusal(f"the value is {error.message}", error.hint) from None
    if found.problems:
        raise ProblemsError(*(problem for _, problem in found.problems))
    return found.data


class _Setter:
    def __init__(self, value: Any, data: dict[str, Any], outline: Outline) -> None:
        self.value, self.data, self.outline = value, data, outline

    def put(self, node: Any, words: list[str], path: KeyPath) -> tuple[Any, KeyPath]:
        """Return what takes the place of `node`, the value put at `words` below it, and the value's path."""
        if not words:
            return self.value, path
        if path == STEPS_PATH:
            return self._put_step(node, words)
        names = self.outline.free_keys(path, self.data)
        if isinstance(node, list) and names and all(isinstance(name, str) for name in node):
            node = dict.fromkeys(node)  # a list of layers becomes the mapping that says more of each
        if isinstance(node, list):
            index = _index(words[0], len(node), path)
            node[index], full = self.put(node[index], words[1:], (*path, index))
            return node, full
        if node is None:
            node = {}
        if not isinstance(node, dict):
            raise refusal(f"is {shown(node)}: there is nothing below it to set", at=path)
        key, rest = self._split(node, words, path) if names else (words[0], words[1:])
        node[key], full = self.put(node.get(key), rest, (*path, key))
        return node, full

    def _split(self, node: dict[str, Any], words: list[str], path: KeyPath) -> tuple[str, list[str]]:
        """Split dotted words into a free key, such as a layer's name, and what is below it."""
        for count in range(len(words), 0, -1):
            if (key := ".".join(words[:count])) in node:
                return key, words[count:]
        below = self.outline.keys((*path, ".".join(words[:-1])), self.data)
        cut = len(words) - 1 if len(words) > 1 and words[-1] in below else len(words)
        return ".".join(words[:cut]), words[cut:]

    def _put_step(self, steps: Any, words: list[str]) -> tuple[Any, KeyPath]:
        if not isinstance(steps, list):
            raise refusal(f"must be a list, not {shown(steps)}", at=STEPS_PATH)
        kinds = [_kind(step) for step in steps]
        index, rest = _find_step(words, kinds, [_id(step) for step in steps])
        kind = kinds[index]
        if kind is None:
            raise refusal("is not a step", "write it as `- svd: {rank: 8}`", (*STEPS_PATH, index))
        if rest[:1] == [kind]:  # as in the key paths of error messages
            rest = rest[1:]
        settings = None if isinstance(steps[index], str) else steps[index][kind]
        settings, full = self.put(settings, rest, (*STEPS_PATH, index, kind))
        steps[index] = {kind: settings}
        return steps, full


def _find_step(words: list[str], kinds: list[str | None], ids: list[str | None]) -> tuple[int, list[str]]:
    """Return the index of the step that the first words name, and the words after them."""
    for names in (ids, kinds):
        for count in range(len(words), 0, -1):
            name = ".".join(words[:count])
            found = [index for index, known in enumerate(names) if known == name]
            if len(found) == 1:
                return found[0], words[count:]
            if found:
                indices = " or ".join(f"steps.{index}" for index in found)
                what = f"{len(found)} steps are called {name!r}"
                raise refusal(what, f"take the index: {indices}", ("steps", name))
    if words[0].isdecimal():
        return _index(words[0], len(ids), STEPS_PATH), words[1:]
    known_ids = [name for name in ids if name is not None]
    raise refusal(f"no step is called {words[0]!r}", suggest(words[0], known_ids), ("steps", words[0]))


def _kind(step: Any) -> str | None:
    if isinstance(step, dict):
        return str(next(iter(step))) if len(step) == 1 else None
    return step if isinstance(step, str) else None


def _id(step: Any) -> str | None:
    kind = _kind(step)
    settings = step.get(kind) if isinstance(step, dict) else None
    name = settings.get("name") if isinstance(settings, dict) else None
    return name if isinstance(name, str) else kind


def _index(word: str, count: int, path: KeyPath) -> int:
    if not word.isdecimal() or int(word) >= count:
        there = f"the items are 0 … {count - 1}" if count else "the list is empty"
        raise refusal(f"no item {word}", there, (*path, word))
    return int(word)
