"""Pictures that are large for a worker: read one after another, or masked and listed; the worker lives."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import MemoryLimitError
from dneuro.extract.task import extract_unit
from dneuro.extract.work import ExtractWork
from dneuro.images.decode import decoding_bytes
from dneuro.images.memory import LEAST, MARGIN
from dneuro.images.preprocess import view_bytes
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.quantities import GiB, MiB
from dneuro.spec import JobSpec
from dneuro.spec.network import Preprocessing
from dneuro.store.units import Unit, units_folder

MakeJob = Callable[..., JobSpec]

NETWORK = {
    "name": "dneuro:convnet", "weights": "none",
    "preprocessing": {"resize": 28, "crop": 28, "color": "grey"},
}  # fmt: skip


@cache
def png(side: int) -> bytes:
    """Return a valid PNG of side × side blue pixels: three bytes each, and little on the disk."""
    row = b"\0" + b"\x10\x20\xf0" * side
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def photos(root: Path, *sides: int) -> dict[str, object]:
    root.mkdir()
    for number, side in enumerate(sides):
        (root / f"{number}.png").write_bytes(png(side))
    return {"images": {"source": "files", "root": str(root)}, "network": NETWORK}


RUN = """
import json, sys
import dneuro
from distributed import Client, LocalCluster
from dneuro import events
from dneuro.jobs.driver import run_job
from dneuro.spec import parse_job

def peak():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) * 1024

def run(job, limit):
    seen = []
    # as dask has it, but that nothing waits while it is seen: ends a worker at 95 % of its memory
    with LocalCluster(n_workers=1, threads_per_worker=1, memory_limit=limit, dashboard_address=None) as cluster:
        with Client(cluster) as client, events.only(seen.append):
            first = list(client.run(peak))
            result = run_job(job, client, threads=4)
            peaks = client.run(peak)
            same = list(peaks) == first
    return {
        "same": same, "peak": max(peaks.values()), "masked": result.outcome.masked,
        "warnings": [e.message for e in seen if e.kind == "warning"],
    }

if __name__ == "__main__":
    print(json.dumps([run(parse_job(json.dumps(job)), limit) for job, limit in json.loads(sys.argv[1])]))
"""


def run_on_a_worker(jobs: list[tuple[JobSpec, int]], tmp_path: Path) -> list[dict[str, object]]:
    """Run each job on a worker with so much memory, a new one for each."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    text = json.dumps([(job.model_dump(mode="json"), limit) for job, limit in jobs])
    done = subprocess.run(
        [sys.executable, script, text], capture_output=True, text=True, check=False,
        env=os.environ | {"DASK_TEMPORARY_DIRECTORY": str(tmp_path)}, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def least(job: JobSpec) -> int:
    """Return the least memory with which a job is not refused."""
    plan = plan_job(job, ThreadExecutor(1)).extract
    return plan.besides_bytes + plan.least_picture_bytes


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells the peak memory, on Linux only")
def test_large__pictures_among_small_ones_leave_the_worker_alive(tmp_path: Path, make_job: MakeJob) -> None:
    sides = [9400] * 3 + [64] * 2 + [9400]
    job = make_job(images_per_unit=4, batch=4, **photos(tmp_path / "photos", *sides))
    limits = {2 * GiB: True, 1344 * MiB: False}
    stores = [Path(job.store).with_suffix(f".{limit}.zarr") for limit in limits]
    jobs = [job.model_copy(update={"store": str(store)}) for store in stores]
    ran = run_on_a_worker(list(zip(jobs, limits, strict=True)), tmp_path)
    for (limit, read), store, found in zip(limits.items(), stores, ran, strict=True):
        assert found["same"], "the worker is another one: the first was killed"
        plan = plan_job(job, ThreadExecutor(1, memory=limit)).extract
        assert plan.worker_bytes < limit
        assert found["peak"] <= plan.worker_bytes <= max(MARGIN * limit, plan.besides_bytes + LEAST)
        masked = dict(found["masked"])  # type: ignore[call-overload]
        assert sorted(masked) == ([] if read else [f"{n}.png" for n in (0, 1, 2, 5)])
        for why in masked.values():
            assert "a picture of 9400 × 9400 = 88,360,000 pixels takes" in why
            assert "a worker has" in why
            assert "workers with" in why
        status = dn.open(store).images["status"].values
        np.testing.assert_array_equal(status == 0, np.array([read or side == 64 for side in sides]))


def test_large__is_the_same_picture_whoever_resumes(tmp_path: Path, make_job: MakeJob) -> None:
    """A store that was begun with less memory goes on with as much, and takes layers of the same images."""
    given = photos(tmp_path / "photos", 28, 7000, 28)
    job = make_job(layers=["fc"], **given)
    need = least(job)
    small, large = ThreadExecutor(1, memory=need), ThreadExecutor(1, memory=2 * need)
    first = run_job(job, small)
    assert [name for name, _ in first.outcome.masked] == ["1.png"]
    assert Unit(units_folder(job.store) / "extract", "pictures").read() == {"picture_bytes": LEAST}
    more = run_job(make_job(layers=["fc", "relu1"], **given), large)
    assert [name for name, _ in more.outcome.masked] == ["1.png", "1.png"][: len(more.outcome.masked)]
    assert np.isnan(dn.open(more.store)["relu1"].values[1]).all()
    other = run_job(make_job(layers=["fc"], store="other.zarr", **given), large)
    assert other.outcome.masked == []


def test_large__is_not_masked_by_a_run_with_less_memory(tmp_path: Path, make_job: MakeJob) -> None:
    """A store that was begun with more memory goes on with less, but for a picture that it could read before."""
    job = make_job(layers=["fc"], images_per_unit=1, **photos(tmp_path / "photos", 28, 7000, 28))
    need = least(job)
    small, large = ThreadExecutor(1, memory=need), ThreadExecutor(1, memory=2 * need)
    assert run_job(job, large).outcome.masked == []
    units = units_folder(job.store) / "extract"
    begun = Unit(units, "pictures").read()

    def interrupted(number: int) -> None:
        for part in ("images", "fc"):
            Unit(units / part, f"{number:05d}").withdraw()

    interrupted(2)
    assert run_job(job, small).outcome.images == 1, "what is small enough is read"
    interrupted(1)
    told: list[events.Event] = []
    with events.listening(told.append), pytest.raises(MemoryLimitError, match=r"1\.png: .*49,000,000 pixels") as caught:
        run_job(job, small)
    assert re.search(r"has 128 MiB for pictures; when the store was begun it had [\d.]+ [MG]iB", caught.value.message)
    assert "workers with" in str(caught.value.hint)
    assert any("the first that takes more ends the run" in event.message for event in told)
    assert Unit(units, "pictures").read() == begun
    assert run_job(job, large).outcome.masked == []
    assert (dn.open(job.store).images["status"].values == 0).all()
    assert dn.verify(job.store).ok


def test_large__is_what_the_first_run_that_finishes_a_unit_has_no_room_for(
    tmp_path: Path, make_job: MakeJob, begin: Callable[..., ExtractWork]
) -> None:
    job = make_job(layers=["fc"], images_per_unit=1, **photos(tmp_path / "photos", 28, 7000, 28))
    need = least(job)
    small, large = (begin(job, ThreadExecutor(1, memory=memory)) for memory in (need, 2 * need))
    assert (small.picture_bytes, small.promised_bytes) == (LEAST, LEAST)
    assert large.picture_bytes == large.promised_bytes > LEAST, "nothing was masked yet"
    extract_unit(large, 0, large.missing(0))
    again = begin(job, ThreadExecutor(1, memory=need))
    assert (again.picture_bytes, again.promised_bytes) == (LEAST, large.picture_bytes)


def test_large__plan_counts_what_pictures_take(
    tmp_path: Path, make_job: MakeJob, begin: Callable[..., ExtractWork]
) -> None:
    job = make_job(**photos(tmp_path / "photos", 28, 3000, 28))
    plan = plan_job(job, ThreadExecutor(1)).extract
    small = plan_job(make_job(**photos(tmp_path / "small", 28, 28, 28)), ThreadExecutor(1)).extract
    how = Preprocessing(resize=28, crop=28, color="grey")
    with Image.open(tmp_path / "photos" / "1.png") as image:
        taken = 2 * len(png(3000)) + max(decoding_bytes(image), view_bytes(3000, 3000, how))
    assert plan.worker_bytes - plan.besides_bytes == taken > 80 * MiB
    assert small.worker_bytes - small.besides_bytes < MiB, "nothing is kept for large pictures where there are none"
    assert plan.besides_bytes == small.besides_bytes
    limit = 3 * plan.worker_bytes
    assert plan.picture_bytes(plan.worker_bytes) == taken
    assert plan.picture_bytes(limit) == int(MARGIN * limit) - plan.besides_bytes
    assert begin(job, ThreadExecutor(1, memory=limit)).picture_bytes == plan.picture_bytes(limit)
    held = np.zeros((50, 300, 300, 3), np.uint8)
    np.savez(tmp_path / "held.npz", images=held)
    array = make_job(images={"source": "array", "root": str(tmp_path / "held.npz")}, network=NETWORK, store="b.zarr")
    assert plan_job(array, ThreadExecutor(1)).extract.bare_bytes >= plan.bare_bytes + held.nbytes


def test_large__masked_pictures_are_warned_of(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job(layers=["fc"], **photos(tmp_path / "photos", 28, 7000))
    need = least(job)
    seen: list[events.Event] = []
    with events.listening(seen.append):
        run_job(job, ThreadExecutor(1, memory=need))
    (foretold,) = [event.message for event in seen if event.kind == "note" and "to read" in event.message]
    assert re.match(r"some pictures take up to \d+ MiB to read, and a worker has 128 MiB for pictures", foretold)
    (told,) = [event.message for event in seen if event.kind == "warning"]
    assert told.startswith("masked 1.png: ")
    assert "7000 × 7000 = 49,000,000 pixels" in told


def test_large__training_leaves_out_what_extraction_masks(tmp_path: Path, make_job: MakeJob) -> None:
    for name, sides in (("cat", (28, 7000, 28)), ("dog", (28, 28, 28))):
        photos(tmp_path / name, *sides)
    (tmp_path / "all").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / name).rename(tmp_path / "all" / name)
    images = {"source": "folder", "root": str(tmp_path / "all")}
    network = {**NETWORK, "classes": 2}
    job = make_job({"train": {"epochs": 1, "batch": 2}}, layers=["fc"], images=images, network=network)
    need = least(job)
    largest = []

    def decoding(shape: tuple[int, ...]) -> np.ndarray:
        largest.append(np.prod(shape))
        return np.empty(shape, np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dneuro.images.decode._room", decoding)
        result = run_job(job, ThreadExecutor(1, memory=need))
    assert [name for name, _ in result.outcome.masked] == ["cat/1.png"]
    assert not largest, "pictures of 28 pixels need no strips, and the large one was decoded"
