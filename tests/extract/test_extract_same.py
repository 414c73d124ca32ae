"""A layer that is added later is of the same images as those that are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import FingerprintError
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec

MakeJob = Callable[..., JobSpec]


def replace(path: Path) -> None:
    """Put another picture of the same size in bytes in the place of one."""
    size = path.stat().st_size
    Image.fromarray(np.full((28, 28), 77, np.uint8)).save(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    assert path.stat().st_size == size


def test_added_layer__of_a_file_that_was_replaced_is_refused(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor, tmp_path: Path
) -> None:
    photos = make_photos()
    first = run_job(make_job(**photos, layers=["fc"]), threads)
    replace(tmp_path / "photos/dog/017.png")
    with pytest.raises(FingerprintError, match=r"image 17, dog/017\.png, has another content than when .* was made"):
        run_job(make_job(**photos, layers=["fc", "relu1"]), threads)
    assert np.isfinite(dn.open(first.store)["fc"].values).all(), "what was there is as it was"


@pytest.mark.parametrize(
    ("broken", "message"),
    [((), "cannot be read any more, as it could"), ((17,), "can be read, which it could not")],
)
def test_added_layer__of_a_file_that_broke_or_was_mended_is_refused(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor, tmp_path: Path,
    broken: tuple[int, ...], message: str,
) -> None:  # fmt: skip
    photos = make_photos()
    path = tmp_path / "photos/dog/017.png"
    whole = path.read_bytes()
    torn = b"no picture".ljust(len(whole), b"\0")
    path.write_bytes(torn if broken else whole)
    run_job(make_job(**photos, layers=["fc"]), threads)
    path.write_bytes(whole if broken else torn)
    with pytest.raises(FingerprintError, match=message):
        run_job(make_job(**photos, layers=["fc", "relu1"]), threads)


def test_added_layer__of_the_same_images_is_added(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], threads: ThreadExecutor
) -> None:
    photos = make_photos(broken=[5])
    run_job(make_job(**photos, layers=["fc"]), threads)
    both = dn.open(run_job(make_job(**photos, layers=["fc", "relu1"]), threads).store)
    assert np.isnan(both["relu1"].values[5]).all()
    assert np.isfinite(np.delete(both["relu1"].values, 5, axis=0)).all()
