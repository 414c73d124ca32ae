"""An extraction at full size: 50,000 images, four layers, one of them in full; whole, and killed in its midst.

``python -m benchmarks.full_size --photos DIR --weights squeezenet1_1.safetensors --folder DIR``: makes a tar and a
devkit as ImageNet's, of the photographs below DIR many times over, and submits SqueezeNet over it twice. In the midst
of the second run all its processes are killed at once (SIGKILL), and it is resumed. What is printed: images per
second, the time left as it was foretold against the truth, what every process held, bytes, what was redone, and
whether both stores are equal, file by file; and in the end all of that as a table, which ``--keep`` puts into
RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import dneuro as dn
from benchmarks.imagenet import DEVKIT, TAR, make_imagenet
from benchmarks.keeping import keep, row, said, show
from dneuro import events
from dneuro.jobs.calibration import Forecast, forecast
from dneuro.jobs.handle import Job
from dneuro.jobs.planning import JobPlan, plan_job
from dneuro.jobs.trials import bytes_below
from dneuro.quantities import MiB, format_bytes, format_duration
from dneuro.spec import JobSpec, ProfileSpec, parse_profile
from dneuro.store.units import units_folder

EXTRACT = "extract"
WHOLE = "features.12.expand3x3_activation"
"""The layer that is kept in full."""
LOOKS = (0.1, 0.25, 0.5, 0.75)
"""Shares of the images after which the time left is held against the truth."""


def main() -> None:
    """Parse the command line, run twice, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for tar, stores and jobs: 20 GB for 50,000 images")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", default="1900MiB", help="of each worker")
    parser.add_argument("--calibrate", type=int, default=1024, help="images that the run is foretold from")
    parser.add_argument("--kill-at", type=float, default=0.4, help="share of the images")
    parser.add_argument("--keep", action="store_true", help="put the table into benchmarks/RESULTS.md")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    make_imagenet(asked.photos, asked.folder, asked.images)
    print(f"tar and devkit of {asked.images:,} images: {time.perf_counter() - began:.0f} s", flush=True)
    profile = parse_profile(
        f"backend: local\nstate: {asked.folder}/state\n"
        f"pools: {{workers: {{workers: {asked.workers}, memory: {asked.memory}}}}}\n"
    )
    plan, foretold = _foretell(_job(asked, "whole"), profile, asked.calibrate)
    whole = _run(_job(asked, "whole"), profile, kill_at=None)
    killed = _run(_job(asked, "killed"), profile, kill_at=asked.kill_at)
    compared = _compare(whole, killed)
    title = f"{asked.images:,} images, {len(plan.extract.layers)} layers of SqueezeNet"
    title += f"; {asked.workers} workers of {asked.memory}"
    show(f"\n### {title}\n")
    lines = show(f"{said('benchmarks.full_size', _words())}.", "")
    lines += show(*_table(asked, plan, foretold, whole, killed, compared))
    if asked.keep:
        keep("full_size", {title: "\n".join(lines)})


def _words() -> list[str]:
    """Return the command line, without where anything lies on this machine."""
    words = re.sub(r"--(photos|folder)[ =]\S+", r"--\1 DIR", " ".join(sys.argv[1:]))
    return re.sub(r"--weights[ =]\S+", "--weights FILE", words).split()


def _table(
    asked: argparse.Namespace, plan: JobPlan, foretold: Forecast, whole: Watched, killed: Watched,
    compared: tuple[int, int],
) -> list[str]:  # fmt: skip
    files, differing = compared
    looks = ", ".join(f"{look:.0%}" for look in sorted(whole.left))
    said_left = ", ".join(f"{left:.0f}" for _, (_, left) in sorted(whole.left.items()))
    taken = ", ".join(f"{whole.ended - when:.0f}" for _, (when, _) in sorted(whole.left.items()))
    held = [", ".join(f"{one.held.get(f'child {n}', 0) / MiB:,.0f} MiB" for n in range(1, asked.workers + 1))
            for one in (whole, killed)]  # fmt: skip
    of = f"foretold from {foretold.tried:,} images"
    rows = [
        ("images per second", f"{whole.rate:.0f}", f"{killed.rate:.0f} after the kill, starting again included"),
        (f"seconds of the extraction, {of}",
         f"{foretold.seconds.get(EXTRACT, 0):.0f}, taken {whole.extracting:.0f}", ""),
        (f"bytes on disk, {of}",
         f"{format_bytes(foretold.disk_bytes)}, taken {format_bytes(whole.disk)} (`{WHOLE.rpartition('.')[0]}` in "
         f"full: {format_bytes(whole.in_full)} before compression)", format_bytes(killed.disk)),
        (f"seconds left at {looks} of the images, foretold", f"{said_left}; it took {taken}", ""),
        (f"peak of a worker, planned {plan.worker_bytes / MiB:,.0f} MiB", *held),
        ("peak of the driver", *(f"{one.held.get('driver', 0) / MiB:,.0f} MiB" for one in (whole, killed))),
        ("units redone that were done; that were begun", "",
         f"{killed.redone}; {killed.begun} of {plan.units}"),
        ("files of the store that differ", "", f"{differing or 'none'} of {files:,}"),
    ]  # fmt: skip
    return [row(["", "whole", "killed and resumed"]), row(["---"] * 3), *map(row, rows)]


def _job(asked: argparse.Namespace, name: str) -> JobSpec:
    kept = {f"features.{number}.expand3x3_activation": {"keep": "max"} for number in (3, 6, 9)}
    images = {"source": "imagenet-val", "root": asked.folder / TAR, "labels": asked.folder / DEVKIT}
    return JobSpec.model_validate({
        "name": "full-size",  # of both: it stands in the store
        "images": {key: str(value) for key, value in images.items()},
        "network": {"name": "torchvision:squeezenet1_1", "weights": str(asked.weights)},
        "store": str(asked.folder / f"{name}.zarr"),
        "steps": [
            {EXTRACT: {"layers": kept | {WHOLE: {"keep": "full"}}}},
            {"cooccurrence": {"k": 100}},
            {"similarity": {"of": "cooccurrence", "metric": ["pearson"]}},
        ],
    })  # fmt: skip


def _foretell(job: JobSpec, profile: ProfileSpec, images: int) -> tuple[JobPlan, Forecast]:
    from dneuro.cluster import backend_of

    with events.only(lambda _event: None):
        plan = plan_job(job, backend_of(profile).sizes)
        foretold = forecast(plan, profile, images)
    print(
        f"foretold from {foretold.tried} images: {foretold.rate:.0f} images/s, {format_duration(foretold.total)}, "
        f"{format_bytes(foretold.disk_bytes)} on disk; planned: {format_bytes(plan.worker_bytes)} per worker",
        flush=True,
    )
    return plan, foretold


@dataclass
class Watched:
    """What was seen of a run.

    Parameters
    ----------
    store : Path
        Its store.
    seconds : float
        From submission to the end, of all attempts together.
    held : dict
        The most that each process held, by what it is.
    left : dict
        Share of the images done, to when that was and the seconds that were foretold to be left of the extraction.
    rate, extracting, ended : float
        Images per second and seconds of the extraction, in the last attempt, and when it ended.
    disk, in_full : int
        Bytes on disk, and those of the layer that is kept in full, before compression.
    redone, begun : int
        Units that were done when all was killed and were done again; units that were begun then.
    """

    store: Path
    seconds: float = 0.0
    held: dict[str, int] = field(default_factory=dict)
    left: dict[float, tuple[float, float]] = field(default_factory=dict)
    rate: float = 0.0
    extracting: float = 0.0
    ended: float = 0.0
    disk: int = 0
    in_full: int = 0
    redone: int = 0
    begun: int = 0


def _run(job: JobSpec, profile: ProfileSpec, *, kill_at: float | None) -> Watched:
    seen = Watched(Path(job.store))
    began = time.perf_counter()
    submitted = dn.submit(job, profile)
    if kill_at is not None:
        _watch(submitted, seen, until=kill_at)
        ended = _kill(submitted)
        done, begun = _markers(seen.store)
        print(f"SIGKILL to {ended} processes; {len(done)} markers, {len(begun)} units begun", flush=True)
        submitted.resume()
        _watch(submitted, seen)
        after, _ = _markers(seen.store)
        seen.redone, seen.begun = sum(after[name] != when for name, when in done.items()), len(begun)
        print(f"resumed; redone were {seen.redone} units that were done, {seen.begun} that were begun", flush=True)
    else:
        _watch(submitted, seen)
    seen.seconds = time.perf_counter() - began
    _report(job, submitted, seen)
    return seen


def _watch(job: Job, seen: Watched, until: float = 2.0) -> None:
    """Look at a job until it is over or a share of its images is done."""
    while not (now := job.status()).is_over:
        step = next((one for one in now.found.get("steps", ()) if one["step"] == EXTRACT), None)
        share = step["done"] / step["total"] if step and step["total"] else 0.0
        for look in LOOKS:
            if step and share >= look and look not in seen.left and step["left"] is not None:
                seen.left[look] = (time.time(), step["left"])
        if share >= until:
            return
        for name, held in _processes(job):
            seen.held[name] = max(seen.held.get(name, 0), held)
        time.sleep(0.5)


def _processes(job: Job) -> Iterator[tuple[str, int]]:
    """Yield what every process of a job is, and the memory that it holds."""
    for driver in _driver(job):
        yield "driver", driver.memory_info().rss
        others = sorted(_below(driver), key=lambda process: process.pid)
        held = []
        for process in others:
            with contextlib.suppress(psutil.Error):
                held.append(process.memory_info().rss)
        for number, rss in enumerate(sorted(held, reverse=True), 1):
            yield f"child {number}", rss


def _driver(job: Job) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error, OSError):
        kept = json.loads((Path(job.status().found["folder"]) / "driver.json").read_text())
        return [psutil.Process(int(kept["id"]))]
    return []


def _below(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        found: list[psutil.Process] = process.children(recursive=True)
        return found
    return []


def _kill(job: Job) -> int:
    """Kill the driver and all that it started, at once."""
    every = [process for driver in _driver(job) for process in (driver, *_below(driver))]
    for process in every:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(every, timeout=60)
    return len(every)


def _markers(store: Path) -> tuple[dict[str, int], set[str]]:
    """Return when each marker of the extraction was written, and the units that were begun and are not done."""
    folder = Path(str(units_folder(store))) / EXTRACT
    done = {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/*.done")}
    return done, {path.stem for path in folder.glob("*/*.attempts")}


def _report(job: JobSpec, submitted: Job, seen: Watched) -> None:
    now = submitted.status()
    print(f"{Path(job.store).name}: {now.state} after {format_duration(seen.seconds)}", flush=True)
    for step in now.found.get("steps", ()):
        print(f"  {step['step']}: {format_duration(step['seconds'])}" + (
            f", {step['rate']:.0f} {step['what']}/s" if step["step"] == EXTRACT else ""))  # fmt: skip
        if step["step"] == EXTRACT:
            seen.rate, seen.extracting = step["rate"], step["seconds"]
    seen.ended = next(
        event["time"] for event in submitted.logs() if event["step"] == EXTRACT and event["kind"] == "finished"
    )
    for share, (when, left) in sorted(seen.left.items()):
        took = seen.ended - when
        print(f"  at {share:.0%} of the images {left:.0f} s were foretold to be left, it took {took:.0f} s")
    largest = sorted(seen.held.items(), key=lambda one: -one[1])[:6]
    held = ", ".join(f"{name} {held / MiB:.0f}" for name, held in largest)
    print(f"  held at most, MiB: {held}; the workers' own count: {now.found.get('peak_memory', 0) / MiB:.0f}")
    store = dn.open(seen.store)
    right = float(store.images["correct"].mean())
    seen.disk = bytes_below(seen.store) + bytes_below(Path(f"{seen.store}.units"))
    seen.in_full = store[WHOLE].nbytes
    print(f"  {format_bytes(seen.in_full)} in full, {format_bytes(seen.disk)} on disk; {right:.1%} right")


def _compare(one: Watched, other: Watched) -> tuple[int, int]:
    """Return how many files the larger of two stores has, and how many differ."""
    first, second = _contents(one.store), _contents(other.store)
    differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    print(f"{len(first)} files of one store, {len(second)} of the other, {len(differing)} differ: {differing[:5]}")
    return max(len(first), len(second)), len(differing)


def _contents(store: Path) -> dict[str, str]:
    found = {}
    for path in sorted(store.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(store))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


if __name__ == "__main__":
    main()
