"""A disk that is really full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import StoreError
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec

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
