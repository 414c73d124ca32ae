"""A disk that is really full, and what is on one before it is said to be done."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import DiskFullError, StoreError
from dneuro.jobs.calibration import forecast
from dneuro.jobs.driver import run_job
from dneuro.jobs.planning import plan_job
from dneuro.spec import JobSpec
from dneuro.spec.profile import ProfileSpec

SETTINGS = {"images": {"source": "digits", "sample": 400}, "layers": ["conv1", "fc"], "thumbnails": False}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system (mount -t tmpfs)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk__ends_the_run_and_a_resume_with_room_equals_a_clean_run(
    small_disk: Path, make_job: Callable[..., JobSpec], threads: ThreadExecutor,
    same_store: Callable[[Path, Path], None],
) -> None:  # fmt: skip
    job = make_job(store="disk/acts.zarr", **SETTINGS)
    for _ in range(2):  # in the same process: the lease of a run that could not even say that it ended is free
        with pytest.raises(StoreError, match=r"the disk under .*disk/acts.zarr is full") as caught:
            run_job(job, threads)
        assert "make room" in str(caught.value.hint)
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    resumed = run_job(job, threads)
    assert 0 < resumed.outcome.done_before < resumed.outcome.units, "what was done is kept"
    clean = run_job(make_job(store="clean.zarr", **SETTINGS), threads)
    same_store(resumed.store, clean.store)


@pytest.mark.usefixtures("threads_as_machines")
def test_full_disk__of_a_trial_keeps_nothing_and_says_so(
    small_disk: Path, make_job: Callable[..., JobSpec], threads: ThreadExecutor
) -> None:
    plan = plan_job(make_job(store="disk/acts.zarr", **SETTINGS), threads)
    with pytest.raises(DiskFullError, match=f"{small_disk} is full: the job was tried there on 400 images"):
        forecast(plan, ProfileSpec(backend="local"), images=400)
    assert list(small_disk.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="/proc names open files, on Linux only")
def test_marker__is_published_when_what_it_speaks_of_is_on_the_disk(
    make_job: Callable[..., JobSpec], threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was in memory alone when the power went is not there afterwards, whatever was read back from it."""
    kept: list[str] = []
    known: set[int] = set()
    honest = os.fsync

    def fsync(handle: int) -> None:
        kept.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        known.add(os.fstat(handle).st_ino)
        honest(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    settings = {"images": {"source": "digits", "sample": 48}, "layers": ["conv1", "fc"], "images_per_unit": 16}
    store = run_job(make_job({"moments": {"layer": "fc"}}, **settings), threads).store
    chunks = [path for path in store.rglob("*/c/**/*") if path.is_file()]
    assert chunks
    assert [path for path in chunks if path.stat().st_ino not in known] == []
    for part in ("images", "conv1", "fc"):
        for unit in range(3):
            marker = next(i for i, path in enumerate(kept) if f".units/extract/{part}/.{unit:05d}.done" in path)
            group = "status" if part == "images" else f"layers/{part}/activation"
            assert any(path.startswith(f"{store}/{group}/c/{unit}") for path in kept[:marker]), f"{part} {unit}"
    marker = next(i for i, path in enumerate(kept) if ".units/results/" in path and ".done" in path)
    assert any("/results/moments/fc/" in path and "/c/" in path for path in kept[:marker])
    assert f"{store}/results/moments/zarr.json" in kept[:marker]
