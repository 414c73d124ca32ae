"""``python -m benchmarks``: measure, print the table, and keep it if asked."""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

import psutil

from benchmarks import analyses, extraction

HEADINGS = ["operation", "dneuro s", "dneuro MiB", "instead", "s", "MiB", "ratio", "difference"]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", default=["analyses", "extraction"], help="analyses, extraction")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--neurons", type=int, default=2_048)
    parser.add_argument("--keep", action="store_true", help="write benchmarks/RESULTS.md")
    asked = parser.parse_args()
    found: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        if "analyses" in asked.what:
            found += analyses.rows(Path(folder), asked.images, asked.neurons)
        if "extraction" in asked.what:
            found += extraction.rows(Path(folder))
    lines = [f"| {' | '.join(row)} |" for row in [HEADINGS, ["---"] * len(HEADINGS), *found]]
    table = "\n".join(lines)
    print(table)
    if asked.keep:
        cores, memory = len(psutil.Process().cpu_affinity() or [0]), psutil.virtual_memory().total / 2**30
        text = (
            f"# Results\n\n`python -m benchmarks --images {asked.images} --neurons {asked.neurons} --keep`, Python "
            f"{platform.python_version()}, {cores} cores, {memory:.0f} GiB.\nAnalyses: {asked.images:,} images × "
            f"{asked.neurons:,} neurons, float32, sparse, from a Zarr store.\n"
            "Ratio: dneuro's time over the other's.\n\n"
        )
        Path(__file__).with_name("RESULTS.md").write_text(text + table + "\n")


if __name__ == "__main__":
    main()
