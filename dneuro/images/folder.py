"""A folder per class: ``root/<class>/<image file>``."""

from __future__ import annotations

import os
import shlex
import stat
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images.decode import decode
from dneuro.images.manifest import Manifest
from dneuro.images.paths import missing
from dneuro.images.sampling import draw
from dneuro.spec.images import FolderImages

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What makes a file an image file, in upper or lower case."""

MAX_FILE_BYTES = 512 * 1024**2
"""A larger file is not read into memory; the largest picture allowed takes 256 MiB uncompressed."""


class FolderSource:
    """Image files in one folder per class; the class names are the folders', in sorted order.

    Files in a class folder come in sorted order, too (by code point, as in torchvision's ``ImageFolder``).
    Hidden files, files of other kinds and folders inside a class folder are left out. Links are followed
    one level deep, so they cannot lead in a circle.

    Cost of listing: one ``os.scandir`` per class and one ``stat`` per image; no file is opened.
    """

    def __init__(self, spec: FolderImages, manifest: Manifest | None = None) -> None:
        self._root = Path(spec.root)
        self.manifest = _list(spec) if manifest is None else manifest

    def read(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Return picture and CRC-32 of its file; see `ImageSource.read`."""
        path = self._root / self.manifest.names[index]
        size = int(self.manifest.identity[index])
        if size > MAX_FILE_BYTES:
            raise UnreadableImageError(f"{path}: {size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
        try:
            with path.open("rb") as file:
                data = file.read(size + 1)  # one more, to notice a file that has grown
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise UnreadableImageError(f"{path}: {error.strerror}") from error
        if len(data) != size:
            now = "more" if len(data) > size else f"{len(data):,}"
            raise UnreadableImageError(f"{path}: changed since it was listed: it had {size:,} bytes, now {now}")
        return decode(data, str(path)), zlib.crc32(data)


def _list(spec: FolderImages) -> Manifest:
    root = Path(spec.root)
    classes = _class_folders(root)
    files = [(label, name, size) for label, folder in enumerate(classes) for name, size in _image_files(folder)]
    indices = draw(spec, len(files), str(root))
    chosen = [files[i] for i in indices]
    return Manifest(
        names=np.array([f"{classes[label].name}/{name}" for label, name, _ in chosen], object),
        labels=np.array([label for label, _, _ in chosen], np.int64),
        class_names=tuple(folder.name for folder in classes),
        identity=np.array([str(size) for _, _, size in chosen], object),
        indices=indices,
        source=spec.model_dump(mode="json"),
    )


def _class_folders(root: Path) -> list[Path]:
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except OSError as error:
        raise missing(root, error) from error
    if not is_folder:
        raise ImageSourceError(
            f"{root} is a file; source: folder needs a folder that holds one folder per class",
            hint="unpack an archive first; images in an .npz file or a Zarr group are source: array",
        )
    folders, loose = [], []
    for entry in _entries(root):
        if stat.S_ISDIR(_status(entry).st_mode):
            folders.append(Path(entry.path))
        elif _is_image(entry.name):
            loose.append(entry.name)
    if loose:
        here, suffix = shlex.quote(str(root)), Path(loose[0]).suffix
        raise ImageSourceError(
            f"{root} itself holds image files ({_some(loose)}; {len(loose):,} in all); they belong into class folders",
            hint=f"mkdir {here}/all && mv {here}/*{suffix} {here}/all/",
        )
    if not folders:
        raise ImageSourceError(
            f"{root} holds no class folders, so there are no images",
            hint=f"put the images there: {root}/<class>/<image file>",
        )
    return folders


def _image_files(folder: Path) -> list[tuple[str, int]]:
    """Return name and size in bytes of each image file in a class folder; never none."""
    files = []
    entries = _entries(folder)
    for entry in entries:
        if not _is_image(entry.name):
            continue
        status = _status(entry)
        if stat.S_ISREG(status.st_mode):
            files.append((entry.name, status.st_size))
        elif not stat.S_ISDIR(status.st_mode):
            raise ImageSourceError(f"{entry.path} is neither a file nor a folder", hint="remove it")
    if not files:
        raise _no_images(folder, entries)
    return files


def _no_images(folder: Path, entries: list[os.DirEntry[str]]) -> ImageSourceError:
    names = [entry.name for entry in entries]
    if names and all(stat.S_ISDIR(_status(entry).st_mode) for entry in entries):
        return ImageSourceError(
            f"class folder {folder} holds only folders ({_some(names)}); a class folder holds image files",
            hint=f"if these are the classes, set root: {folder}",
        )
    if names:
        return ImageSourceError(
            f"class folder {folder} holds no image files: none of {_some(names)} has one of the extensions "
            f"{' '.join(EXTENSIONS)}",
            hint=f"put images into it, or move it out of {folder.parent}",
        )
    return ImageSourceError(
        f"class folder {folder} is empty", hint=f"put images into it, or remove it: rmdir {shlex.quote(str(folder))}"
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name, without what is hidden."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    except PermissionError as error:
        raise ImageSourceError(
            f"folder {folder} may not be read: {error.strerror}", hint=f"chmod u+rx {shlex.quote(str(folder))}"
        ) from error
    for entry in entries:
        if not _is_utf8(entry.name):
            raise ImageSourceError(
                f"the name {os.fsencode(entry.name)!r} in {folder} is not valid UTF-8",
                hint=f"convmv -r -f latin1 -t utf8 --notest {shlex.quote(str(folder))}",
            )
    return entries


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        what = "a link that leads nowhere" if entry.is_symlink() else "not accessible"
        raise ImageSourceError(
            f"{entry.path} is {what}: {error.strerror}", hint="remove it, or mend what it points to"
        ) from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _some(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
