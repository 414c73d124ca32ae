"""Tables as they are shown, and RESULTS.md, which keeps them."""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.measure import free_cores
from dneuro.quantities import format_bytes

RESULTS = Path(__file__).with_name("RESULTS.md")


def said(module: str, words: Iterable[str]) -> str:
    """Return how tables came about: the command, and the machine."""
    memory = format_bytes(psutil.virtual_memory().total)
    command = shlex.join(["python", "-m", module, *words])
    return f"`{command}`, Python {platform.python_version()}, {free_cores()} cores, {memory}"


def row(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def show(*lines: str) -> list[str]:
    """Print lines at once, and return them."""
    print(*lines, sep="\n", flush=True)
    return list(lines)


def keep(group: str, sections: Mapping[str, str]) -> None:
    """Put a group's tables, by their titles, into RESULTS.md, in place of those that it has under the same titles."""
    kept = _below("##", RESULTS.read_text() if RESULTS.exists() else "")
    whole = {name: _below("###", text) for name, text in kept.items()}
    whole[group] = {**whole.get(group, {}), **sections}
    lines = ["# Results", "What the columns mean: README.md."]
    for name in sorted(whole):
        lines.append(f"## {name}")
        for title, text in whole[name].items():
            lines += [f"### {title}", text.strip()]
    RESULTS.write_text("\n\n".join(lines) + "\n")


def _below(level: str, text: str) -> dict[str, str]:
    """Return what stands below each heading of a level, by its title."""
    return dict(re.findall(rf"^{level} ([^\n]+)\n(.*?)(?=^{level} |\Z)", text, re.M | re.S))
