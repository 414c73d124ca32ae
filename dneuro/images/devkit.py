"""ImageNet's devkit: which number it gives each class, and the class of each image of the validation set."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dneuro.errors import ImageSourceError
from dneuro.images.imagenet import KnownClasses
from dneuro.images.paths import content_of

META = "meta.mat"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_HINT = "ILSVRC2012_devkit_t12.tar.gz has both files, in its folder data"


class Devkit:
    """``ILSVRC2012_devkit_t12``, packed or unpacked.

    The devkit numbers classes from 1, in an order of its own (``ILSVRC2012_ID``); networks number them from 0, in
    the sorted order of the wnids. ``meta.mat`` leads from the one to the other: among its synsets those without
    children are the classes.

    Parameters
    ----------
    meta, truth : bytes
        Content of ``data/meta.mat`` and of ``data/ILSVRC2012_validation_ground_truth.txt``.
    where : str
        Where they come from, for messages.

    Raises
    ------
    ImageSourceError
        If one of the files is damaged or something else.
    """

    def __init__(self, meta: bytes, truth: bytes, where: str) -> None:
        wnids, names = _read_meta(meta, f"{where}: {META}")
        self.classes = KnownClasses({wnid: names[number] for number, wnid in wnids.items()})
        self._where = where
        self._labels = _read_truth(truth, wnids, self.classes, f"{where}: {TRUTH}")

    def label_of(self, number: int, name: str) -> int:
        """Return the label of image `number` (from 1) of the validation set.

        Raises
        ------
        ImageSourceError
            If it has no such image.
        """
        if not 1 <= number <= len(self._labels):
            raise ImageSourceError(
                f"{name} is image {number:,}; {self._where} labels the images 1…{len(self._labels):,}",
                hint="labels of other images: a CSV file, filename,wnid",
            )
        return self._labels[number - 1]


def open_devkit_folder(folder: Path) -> Devkit:
    """Open the devkit in the folder it unpacks to, or in that folder's ``data``.

    Raises
    ------
    ImageSourceError
        If a file is missing or damaged.
    """
    for data in (folder / "data", folder):
        if (data / META).exists() and (data / TRUTH).exists():
            return Devkit(content_of(str(data / META)), content_of(str(data / TRUTH)), str(data))
    raise ImageSourceError(f"{folder} is no devkit: data/{META} or data/{TRUTH} is missing", hint=_HINT)


def open_devkit_archive(content: bytes, path: str) -> Devkit:
    """Open the devkit in its archive; two of its files are read, none is unpacked to disk.

    Parameters
    ----------
    content : bytes
        The archive.
    path : str
        Its path, for messages.

    Raises
    ------
    ImageSourceError
        If a file is missing or damaged.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                file = archive.extractfile(member) if name in (META, TRUTH) and member.isreg() else None
                if file is not None:
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ImageSourceError(f"{path} is damaged: {error}", hint="fetch it again") from error
    absent = [name for name in (META, TRUTH) if name not in found]
    if absent:
        raise ImageSourceError(f"{path} is no devkit: there is no {' and no '.join(absent)} in it", hint=_HINT)
    return Devkit(found[META], found[TRUTH], path)


def _read_meta(content: bytes, where: str) -> tuple[dict[int, str], dict[int, str]]:
    """Return wnid and name of each class by the devkit's number."""
    from scipy.io import loadmat  # half a second that others need not wait

    try:
        synsets: Any = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)["synsets"])
        leaves = synsets[synsets["num_children"].astype(int) == 0]
        numbers = [int(number) for number in leaves["ILSVRC2012_ID"]]
        wnids = dict(zip(numbers, map(str, leaves["WNID"]), strict=True))
        names = dict(zip(numbers, (str(words).split(", ")[0] for words in leaves["words"]), strict=True))
    except MemoryError:
        raise
    except Exception as error:  # loadmat raises nearly everything on damaged files
        raise ImageSourceError(f"{where} is damaged, or not ImageNet's: {error}", hint=_HINT) from error
    if len(set(wnids.values())) != len(leaves) or not wnids:
        raise ImageSourceError(f"{where} is not ImageNet's: its classes have no numbers of their own", hint=_HINT)
    return wnids, names


def _read_truth(content: bytes, wnids: dict[int, str], classes: KnownClasses, where: str) -> list[int]:
    """Return the label of every image, in order."""
    labels: list[int] = []
    for line, text in enumerate(content.split(), 1):
        number = int(text) if text.isdigit() and len(text) < 10 else -1
        if number not in wnids:
            raise ImageSourceError(
                f"{where}:{line}: {text.decode('utf-8', 'replace')!r} is not the number of one of the "
                f"{len(classes):,} classes",
                hint=_HINT,
            )
        labels.append(classes.find(wnids[number], where))
    return labels
