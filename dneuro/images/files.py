"""Image files: listed once, read one by one from wherever they lie."""

from __future__ import annotations

import contextlib
import re
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images.decode import Picture, as_array, load
from dneuro.images.imagenet import imagenet_classes
from dneuro.images.labels import Labels, own_classes
from dneuro.images.local import LocalFolder, is_folder
from dneuro.images.manifest import Manifest
from dneuro.images.memory import NO_LIMIT, CrowdedError, Share
from dneuro.images.remote import RemoteFolder
from dneuro.images.sampling import draw
from dneuro.images.storage import EXTENSIONS, Entry, Storage, is_url
from dneuro.images.table import read_table
from dneuro.images.tar import TarArchive, check_tar
from dneuro.spec.images import FilesImages, FolderImages, ImagenetValImages

MAX_FILE_BYTES = 512 * 1024**2
"""A larger file is not read into memory; the largest picture allowed takes 256 MiB uncompressed."""

_ARCHIVE = re.compile(r"\.(tar|tgz|tar\.\w+|zip)$", re.IGNORECASE)


class FileSource:
    """Image files of one root, as a manifest lists them."""

    held_bytes = 0

    def __init__(self, root: str, manifest: Manifest) -> None:
        self.manifest = manifest
        self._storage = _reopen(root, manifest)

    @property
    def is_near(self) -> bool:
        """Whether the files lie on a disk."""
        return self._storage.is_near

    def fetch(self, index: int) -> None:
        """Have the file read from its disk; see `ImageSource.fetch`."""
        with contextlib.suppress(OSError):  # whoever reads it says so
            self._storage.fetch(self._entry(index))

    def read(self, index: int, share: Share = NO_LIMIT) -> tuple[NDArray[np.uint8], int]:
        """Return picture and CRC-32 of its file; see `ImageSource.read`."""
        picture, crc = self.load(index, share)
        return as_array(picture), crc

    def load(self, index: int, share: Share = NO_LIMIT) -> tuple[Picture, int]:
        """Return picture and CRC-32 of its file; see `ImageSource.load`."""
        entry = self._entry(index)
        where = self._storage.where(entry.name)
        if entry.size > MAX_FILE_BYTES:
            raise UnreadableImageError(f"{where}: {entry.size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
        share.file(entry.size, where)
        try:
            return self._read(entry, where, share)
        except CrowdedError:
            pass  # and let go of the file's content, which the error still holds here
        share.wait()
        return self._read(entry, where, share)

    def _entry(self, index: int) -> Entry:
        offset = int(self.manifest.offsets[index]) if len(self.manifest.offsets) else -1
        path = self.manifest.paths[index] if len(self.manifest.paths) else ""
        return Entry(self.manifest.names[index], int(self.manifest.identity[index]), offset, path)

    def _read(self, entry: Entry, where: str, share: Share) -> tuple[Picture, int]:
        data = self._storage.read(entry)
        if len(data) != entry.size:
            now = "more" if len(data) > entry.size else f"{len(data):,}"
            raise UnreadableImageError(
                f"{where}: changed since it was listed: it had {entry.size:,} bytes, now {now}"
            )
        picture = load(data, where, partial(share.picture, where=where))
        return picture, zlib.crc32(data)


def list_files(spec: FilesImages) -> Manifest:
    """List the image files at the root and below, with what the table of labels says of them.

    Raises
    ------
    ImageSourceError
        If there are none, or the table does not fit them.
    """
    entries = list_entries(spec.root)
    names = [entry.name for entry in entries]
    known = imagenet_classes() if spec.classes == "imagenet" else None
    if spec.labels is None:
        unlabelled = [-1] * len(names)
        labels = known.label(unlabelled) if known else Labels(np.array(unlabelled, np.int64))
    else:
        table = read_table(spec.labels, names, spec.root)
        labels = known.of_table(table) if known else own_classes(table)
    return list_as(spec, entries, labels)


def list_entries(root: str) -> list[Entry]:
    """Return every image file at the root and below; never none.

    Raises
    ------
    ImageSourceError
        If there are none.
    """
    entries = open_storage(root).images()
    if not entries:
        raise _no_images(root)
    return entries


def _no_images(root: str) -> ImageSourceError:
    """Return the error that a place holds no images; an archive that is no local file may hold many."""
    kind = _ARCHIVE.search(root.partition("?")[0]) if is_url(root) and "::" not in root else None
    if kind is None:
        return ImageSourceError(
            f"{root} holds no image files: nothing in it ends in {' '.join(EXTENSIONS)}", hint="correct root:"
        )
    way = "zip" if kind[1] == "zip" else "tar"
    return ImageSourceError(
        f"{root} is one file, and no folder of image files; only a tar on a local disk is read in place",
        hint=f"copy it here and set root: to its path, or read it where it lies, more slowly: root: {way}::{root}",
    )


def list_as(spec: FilesImages | FolderImages | ImagenetValImages, entries: list[Entry], labels: Labels) -> Manifest:
    """Return the manifest of the files that `spec` asks for: all, or a sample.

    Parameters
    ----------
    spec : FilesImages, FolderImages or ImagenetValImages
        What was asked for.
    entries : list of Entry
        All files, in order.
    labels : Labels
        Their classes.
    """
    indices = draw(spec, len(entries), spec.root)
    chosen = [entries[i] for i in indices]
    in_place = bool(chosen) and chosen[0].offset >= 0
    return Manifest(
        names=np.array([entry.name for entry in chosen], object),
        labels=labels.labels[indices],
        class_names=labels.class_names,
        identity=np.array([str(entry.size) for entry in chosen], object),
        indices=indices,
        source=spec.model_dump(mode="json"),
        wnids=labels.wnids,
        offsets=np.array([entry.offset for entry in chosen] if in_place else [], np.int64),
        paths=np.array([entry.path for entry in chosen] if any(entry.path for entry in chosen) else [], object),
    )


def open_storage(root: str) -> Storage:
    """Open the place that `root` names; nothing is listed yet.

    Raises
    ------
    ImageSourceError
        If there is nothing, or a file that is no tar.
    """
    if is_url(root):
        return RemoteFolder(root)
    path = Path(root)
    if is_folder(path):
        return LocalFolder(path)
    check_tar(path)
    return TarArchive(path)


def _reopen(root: str, manifest: Manifest) -> Storage:
    """Return the place without a look at it: what it is, the manifest says."""
    if is_url(root):
        return RemoteFolder(root)
    return TarArchive(Path(root)) if len(manifest.offsets) else LocalFolder(Path(root))
