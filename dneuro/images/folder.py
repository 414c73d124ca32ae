"""A folder per class: ``root/<class>/<image file>``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import numpy as np

from dneuro.errors import ImageSourceError
from dneuro.images.files import list_as, list_entries
from dneuro.images.imagenet import imagenet_classes
from dneuro.images.labels import Labels
from dneuro.images.local import entries_of, is_folder, size_of, status_of
from dneuro.images.manifest import Manifest
from dneuro.images.storage import EXTENSIONS, Entry, is_image, is_url, listed, readable, some
from dneuro.spec.images import FolderImages


def list_folder(spec: FolderImages) -> Manifest:
    """List image files in one folder per class; the class names are the folders', in sorted order.

    Files in a class folder come in sorted order, too (by code point, as in torchvision's ``ImageFolder``).
    Hidden files, files of other kinds and folders inside a class folder are left out. Links are followed
    one level deep, so they cannot lead in a circle.

    With ``classes: imagenet`` folders are named by wnid, and the classes are ImageNet's 1,000.

    Raises
    ------
    ImageSourceError
        If a class folder is missing, empty or, with ``classes: imagenet``, none of ImageNet's.

    Notes
    -----
    Cost: one ``os.scandir`` per class and one ``stat`` per image; no file is opened.
    """
    is_local = not is_url(spec.root) and is_folder(Path(spec.root))
    entries = _in_folder(Path(spec.root)) if is_local else _in_archive(spec.root)
    folders = [entry.parts[-2] for entry in entries]
    if spec.classes == "imagenet":
        labels = imagenet_classes().of_wnids(folders, spec.root)
    else:
        names = sorted(set(folders))
        place = {name: label for label, name in enumerate(names)}
        labels = Labels(np.array([place[folder] for folder in folders], np.int64), tuple(names))
    return list_as(spec, entries, labels)


def _in_folder(root: Path) -> list[Entry]:
    """Return the files of every class folder; never none of one."""
    return listed(
        (f"{folder.name}/{name}", size, -1) for folder in _class_folders(root) for name, size in _image_files(folder)
    )


def _in_archive(root: str) -> list[Entry]:
    """Return the files of the class folders of a tar or below a URL; folders above them may lead to them."""
    entries = list_entries(root)
    depth = min(len(entry.parts) for entry in entries)
    if depth == 1:
        loose = [entry.name for entry in entries if len(entry.parts) == 1]
        raise ImageSourceError(
            f"{root} itself holds image files ({some(loose)}; {len(loose):,} in all), but no folder per class",
            hint="images without class folders are source: files",
        )
    chosen = [entry for entry in entries if len(entry.parts) == depth]
    above = sorted({"/".join(entry.parts[:-2]) for entry in chosen})
    if len(above) > 1:
        raise ImageSourceError(
            f"{root} holds several folders with class folders in them: {some(above)}",
            hint="set root: to one of them, of a zip file: zip://FOLDER::/path/of/the.zip; or unpack the archive",
        )
    return chosen


def _class_folders(root: Path) -> list[Path]:
    folders, loose = [], []
    for entry in entries_of(root):
        if not is_image(entry.name):
            status_of(entry)  # it may lead to a class, without which the others have other numbers
        if _is_folder(entry):
            folders.append(Path(entry.path))
        elif is_image(entry.name):
            loose.append(readable(entry.name))
    if loose:
        here, suffix = shlex.quote(str(root)), Path(loose[0]).suffix
        raise ImageSourceError(
            f"{root} itself holds image files ({some(loose)}; {len(loose):,} in all); they belong into class folders",
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
    entries = entries_of(folder)
    files = [(entry.name, size_of(entry)) for entry in entries if is_image(entry.name) and not _is_folder(entry)]
    if not files:
        raise _no_images(folder, entries)
    return files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry leads to a folder; a link in a circle leads to none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _no_images(folder: Path, entries: list[os.DirEntry[str]]) -> ImageSourceError:
    names = [readable(entry.name) for entry in entries]
    if names and all(_is_folder(entry) for entry in entries):
        return ImageSourceError(
            f"class folder {folder} holds only folders ({some(names)}); a class folder holds image files",
            hint=f"if these are the classes, set root: {folder}",
        )
    if names:
        return ImageSourceError(
            f"class folder {folder} holds no image files: none of {some(names)} has one of the extensions "
            f"{' '.join(EXTENSIONS)}",
            hint=f"put images into it, or move it out of {folder.parent}",
        )
    return ImageSourceError(
        f"class folder {folder} is empty", hint=f"put images into it, or remove it: rmdir {shlex.quote(str(folder))}"
    )
