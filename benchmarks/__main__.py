"""``python -m benchmarks``: measure, print the table, and keep it if asked."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import benchmarks
from benchmarks.keeping import keep, row, said, show
from benchmarks.measure import Measured, measure
from benchmarks.question import Question, run
from benchmarks.setting import Setting
from dneuro.quantities import format_bytes, format_duration, parse_bytes

HEADINGS = (
    "", "where", "seconds", "of it reading", "CPU s", "peak MiB", "planned", "worker MiB", "planned", "error",
    "dneuro ÷ this",
)  # fmt: skip


def main() -> None:
    """Parse the command line, measure, print; with ``--keep`` put each group into RESULTS.md once it is whole."""
    groups = _groups()
    asked = _parse(list(groups))
    with tempfile.TemporaryDirectory(prefix="dneuro-benchmark-") as temporary:
        settings = list(_settings(asked, asked.folder or Path(temporary)))
        for setting in settings:
            setting.make()
        for name in asked.what:
            began = time.monotonic()
            show(f"\n## {name}")
            sections = {}
            for setting in settings:
                questions = [q for q in groups[name] if q.large or setting.images == asked.images]
                if questions:
                    title = f"{setting.images:,} images × {setting.neurons:,} neurons, {format_bytes(setting.nbytes)}"
                    title += f"; {setting.workers} workers of {format_bytes(setting.memory)}"
                    show(f"\n### {title}\n")
                    lines = show(_said(name, asked))
                    for question in questions:
                        lines += _table(question, setting, asked)
                    sections[title] = "\n".join(lines)
            print(f"\n{name} took {format_duration(time.monotonic() - began)}", flush=True)
            if asked.keep:
                keep(name, sections)


def _said(group: str, asked: argparse.Namespace) -> str:
    """Return how tables came about."""
    return f"{said('benchmarks', [group, *_options()])}; medians of {asked.rounds}."


def _options() -> list[str]:
    """Return the command line without the names of groups, and without what changes no number."""
    first = next((i for i, word in enumerate(sys.argv) if word.startswith("--")), len(sys.argv))
    words = " ".join(shlex.quote(word) for word in sys.argv[first:])
    return shlex.split(re.sub(r"--folder \S+", "", words))


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
    parser.add_argument("--all", action="store_true", help="also candidates that are hopeless at this size")
    parser.add_argument("--patience", type=float, default=300, help="seconds after which a candidate is ended")
    parser.add_argument("--folder", type=Path, help="keep the arrays here")
    parser.add_argument("--keep", action="store_true", help="put the tables of whole groups into benchmarks/RESULTS.md")
    asked = parser.parse_args()
    if asked.keep and asked.only:
        # Rows of another run beside it would have ratios and errors that nobody has measured.
        parser.error("--keep takes whole groups, --only leaves some of their candidates out; leave out one of them")
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
    candidates = question.candidates
    left_out = {} if asked.all else {i: why for i, c in enumerate(candidates) if (why := c.hopeless(setting))}
    named = [i for i, c in enumerate(candidates) if i == 0 or re.search(asked.only, c.name)]
    chosen = [i for i in named if i not in left_out]
    found: dict[int, list[Measured]] = {i: [] for i in chosen}
    for _ in range(asked.rounds):
        for i in chosen:
            if not any(one.failure for one in found[i]):  # once dead is enough
                found[i].append(
                    measure(run, setting, question, i, patience=asked.patience, variables=candidates[i].variables)
                )
    truth = question.reference(setting) if question.reference else found[chosen[0]][0].value
    lines = show(f"\n#### {question.name.format(rank=setting.rank)}\n")
    lines += show(row(HEADINGS), row(["---"] * len(HEADINGS)))
    for i in named:
        name, where = candidates[i].name.replace("{device}", setting.device), candidates[i].where
        if i in left_out:
            cells = [f"left out: {left_out[i]}", *[""] * (len(HEADINGS) - 3)]
        else:
            cells = _cells(question, found[i], found[chosen[0]], truth)
        lines += show(row([name, where, *cells]))
    return lines


def _cells(question: Question, runs: list[Measured], ours: list[Measured], truth: object) -> list[str]:
    dead = next((one for one in runs if one.failure), None)
    if dead is not None:
        return [f"**{dead.failure}**", "", "", *_memory([dead]), "", ""]
    error = question.error(runs[0].value, truth) if question.error and truth is not None else None
    ratios = [a.seconds / b.seconds for a, b in zip(ours, runs, strict=False)]  # of the same round
    return [
        f"{statistics.median(one.seconds for one in runs):.2f}",
        f"{statistics.median(one.reading for one in runs):.2f}" if runs[0].reading else "",
        f"{statistics.median(one.cpu for one in runs):.1f}",
        *_memory(runs),
        "" if error is None or error != error else f"{error:.0e}",
        f"{statistics.median(ratios):.2f}" if not any(one.failure for one in ours) else "",
    ]


def _memory(runs: list[Measured]) -> list[str]:
    """Return the cells of what was held, of all processes and of a worker, each with what was planned beside it."""
    sizes = (max(getattr(one, name) for one in runs) for name in ("peak", "planned", "worker", "planned_worker"))
    return [f"{size / 2**20:.0f}" if size else "" for size in sizes]


if __name__ == "__main__":
    main()
