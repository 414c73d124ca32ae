"""``python -m benchmarks``: measure, print the table, and keep it if asked."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import platform
import re
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

import benchmarks
from benchmarks.measure import Measured, free_cores, measure
from benchmarks.question import Question, run
from benchmarks.setting import Setting
from dneuro.quantities import format_bytes, parse_bytes

HEADINGS = ("", "where", "seconds", "of it reading", "CPU s", "peak MiB", "worker MiB", "error", "dneuro ÷ this")


def main() -> None:
    """Parse the command line, measure, print; with ``--keep`` put it into RESULTS.md, one group after the other."""
    groups = _groups()
    asked = _parse(list(groups))
    with tempfile.TemporaryDirectory(prefix="dneuro-benchmark-") as temporary:
        settings = list(_settings(asked, asked.folder or Path(temporary)))
        for setting in settings:
            setting.make()
        for name in asked.what:
            memory = format_bytes(psutil.virtual_memory().total)
            lines = _show(
                f"\n## {name}\n",
                f"`python -m benchmarks {shlex.join([name, *_options()])}`, Python {platform.python_version()}, "
                f"{free_cores()} cores, {memory}; medians of {asked.rounds}.",
            )
            for setting in settings:
                questions = [q for q in groups[name] if q.large or setting.images == asked.images]
                if questions:
                    title = f"{setting.images:,} images × {setting.neurons:,} neurons, {format_bytes(setting.nbytes)}"
                    lines += _show(f"\n### {title}; {setting.workers} workers of {format_bytes(setting.memory)}")
                for question in questions:
                    lines += _table(question, setting, asked)
            if asked.keep:
                _keep(name, "\n".join(lines).strip())


def _options() -> list[str]:
    """Return the command line without the names of groups, and without what changes no number."""
    first = next((i for i, word in enumerate(sys.argv) if word.startswith("--")), len(sys.argv))
    words = " ".join(shlex.quote(word) for word in sys.argv[first:])
    return shlex.split(re.sub(r"--(folder|patience) \S+", "", words))


def _keep(group: str, text: str) -> None:
    """Put a group's tables into RESULTS.md, in place of those that it has of this group."""
    path = Path(__file__).with_name("RESULTS.md")
    kept = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", path.read_text() if path.exists() else "", re.M | re.S))
    kept[group] = text.removeprefix(f"## {group}\n")
    parts = [f"## {name}\n\n{kept[name].strip()}\n" for name in sorted(kept)]
    path.write_text("\n".join(["# Results\n\nWhat the columns mean: README.md.\n", *parts]))


def _groups() -> dict[str, tuple[Question, ...]]:
    """Return the questions of every module of this package that has some."""
    names = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_")]
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    return {name: module.QUESTIONS for name, module in modules.items() if hasattr(module, "QUESTIONS")}


def _parse(groups: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", default=groups, help=", ".join(groups))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--neurons", type=int, default=2_304)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", type=parse_bytes, default="512MiB", help="of each worker")
    parser.add_argument("--rounds", type=int, default=1, help="turns of all candidates of a question")
    parser.add_argument("--device", default="", help="of the group `devices`: cuda, or torch:cpu to try it out")
    parser.add_argument("--large", action="store_true", help="also an array of 4 times the workers' memory")
    parser.add_argument("--only", default="", help="candidates whose name matches this pattern")
    parser.add_argument("--patience", type=float, default=900, help="seconds after which a candidate is ended")
    parser.add_argument("--folder", type=Path, help="keep the arrays here")
    parser.add_argument("--keep", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    asked = parser.parse_args()
    if unknown := set(asked.what) - set(groups):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    if not asked.device:
        if asked.what == ["devices"]:
            parser.error("devices takes --device cuda")
        asked.what = [name for name in asked.what if name != "devices"]
    return asked


def _settings(asked: argparse.Namespace, folder: Path) -> Iterator[Setting]:
    counts = [asked.images]
    if asked.large:
        counts.append(max(asked.images + 1, -(-4 * asked.workers * asked.memory // (4 * asked.neurons))))
    for images in counts:
        path = folder / f"{images}x{asked.neurons}.zarr"
        yield Setting(path, images, asked.neurons, asked.rank, asked.workers, asked.memory, asked.device)


def _table(question: Question, setting: Setting, asked: argparse.Namespace) -> list[str]:
    """Measure all candidates of a question, in turns, so that what else the machine does falls on all of them."""
    chosen = [i for i, c in enumerate(question.candidates) if i == 0 or re.search(asked.only, c.name)]
    found: dict[int, list[Measured]] = {i: [] for i in chosen}
    for _ in range(asked.rounds):
        for i in chosen:
            if not any(one.failure for one in found[i]):  # once dead is enough
                found[i].append(measure(run, setting, question, i, patience=asked.patience))
    truth = question.reference(setting) if question.reference else found[chosen[0]][0].value
    lines = _show(f"\n#### {question.name.format(rank=setting.rank)}\n")
    lines += _show(_row(HEADINGS), _row(["---"] * len(HEADINGS)))
    for i, runs in found.items():
        candidate = question.candidates[i]
        name = candidate.name.replace("{device}", setting.device)
        lines += _show(_row([name, candidate.where, *_cells(question, runs, found[chosen[0]], truth)]))
    return lines


def _cells(question: Question, runs: list[Measured], ours: list[Measured], truth: object) -> list[str]:
    dead = next((one for one in runs if one.failure), None)
    if dead is not None:
        return [f"**{dead.failure}**", "", "", f"{dead.peak / 2**20:.0f}", f"{dead.worker / 2**20:.0f}", "", ""]
    error = question.error(runs[0].value, truth) if question.error and truth is not None else None
    ratios = [a.seconds / b.seconds for a, b in zip(ours, runs, strict=False)]  # of the same round
    return [
        f"{statistics.median(one.seconds for one in runs):.2f}",
        f"{statistics.median(one.reading for one in runs):.2f}" if runs[0].reading else "",
        f"{statistics.median(one.cpu for one in runs):.1f}",
        f"{max(one.peak for one in runs) / 2**20:.0f}",
        f"{max(one.worker for one in runs) / 2**20:.0f}" if runs[0].worker else "",
        "" if error is None or error != error else f"{error:.0e}",
        f"{statistics.median(ratios):.2f}" if not any(one.failure for one in ours) else "",
    ]


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _show(*lines: str) -> list[str]:
    print(*lines, sep="\n", flush=True)
    return list(lines)


if __name__ == "__main__":
    main()
