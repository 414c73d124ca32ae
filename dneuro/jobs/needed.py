"""The files that a job reads and writes, and whether its machines would find them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dneuro.cluster import Backend
from dneuro.cluster.backends import NeededFile
from dneuro.spec import AnyJob, JobSpec, members_of
from dneuro.spec.images import DigitsImages, FilesImages, ImagenetValImages
from dneuro.spec.network import EXPORT, PYTHON, split_factory

NO_FILE = ("DEFAULT", "none")
"""Weights that are none of the user's files."""


def check_files(job: AnyJob, backend: Backend) -> None:
    """Refuse a job whose files its machines would not find; relative paths are those of this process.

    Raises
    ------
    UsageError
        Names the first, and where it would be found.
    """
    for one in members_of(job).values():
        backend.check_files(needed_files(one))


def needed_files(job: JobSpec) -> Iterator[NeededFile]:
    """Yield what a job reads and writes on disks; what lies in an object store is found from everywhere."""
    for key, where in _said(job):
        if (path := _on_disk(where)) is not None:
            yield NeededFile(key, path, written=key == "store")


def _said(job: JobSpec) -> Iterator[tuple[str, str]]:
    yield "store", job.store
    if not isinstance(job.images, DigitsImages):
        yield "images.root", job.images.root
    if isinstance(job.images, FilesImages | ImagenetValImages) and job.images.labels is not None:
        yield "images.labels", job.images.labels
    name, weights = job.network.name, job.network.weights
    if name.startswith(EXPORT):
        yield "network.name", name.removeprefix(EXPORT)
    if name.startswith(PYTHON) and (module := split_factory(name)[0]).endswith(".py"):
        yield "network.name", module
    if weights not in NO_FILE:
        yield "network.weights", weights


def _on_disk(where: str) -> Path | None:
    """Return the path that a path or URL means; None if that is in no file system. ``zip::/a/b.zip`` is a file."""
    last = where.rpartition("::")[2]
    scheme, separator, rest = last.partition("://")
    if separator and scheme not in ("file", "local"):
        return None
    return Path(os.path.normpath(Path(rest if separator else last).absolute()))
