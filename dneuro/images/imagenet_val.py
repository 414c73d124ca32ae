"""ImageNet's validation set as it comes: a tar, the flat folder, or a folder per wnid."""

from __future__ import annotations

import re
from pathlib import Path

from dneuro.errors import ImageSourceError
from dneuro.images.devkit import Devkit, open_devkit_archive, open_devkit_folder
from dneuro.images.files import list_as, list_entries
from dneuro.images.imagenet import imagenet_classes, is_wnid
from dneuro.images.labels import Labels
from dneuro.images.manifest import Manifest
from dneuro.images.paths import content_of
from dneuro.images.storage import Entry, is_url, some
from dneuro.images.table import read_table
from dneuro.spec.images import ImagenetValImages

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.[^./]+$")


def list_imagenet_val(spec: ImagenetValImages) -> Manifest:
    """List the images and their labels, which are indices among the sorted wnids, as in torchvision.

    Raises
    ------
    ImageSourceError
        If the images are missing or of several sets, or `labels` does not fit them.
    """
    entries = list_entries(spec.root)
    by_wnid = _is_by_wnid(entries, spec.root)
    if spec.labels is not None:
        labels = _labels(spec.labels, [entry.name for entry in entries], spec.root)
    elif by_wnid:
        labels = imagenet_classes().of_wnids((entry.parts[-2] for entry in entries), spec.root)
    else:
        labels = imagenet_classes().label([-1] * len(entries))
    return list_as(spec, entries, labels)


def _is_by_wnid(entries: list[Entry], root: str) -> bool:
    """Return whether every image lies in a folder that is named by a wnid; refuse more than one set."""
    by_wnid = {len(entry.parts) > 1 and is_wnid(entry.parts[-2]) for entry in entries}
    above = {"/".join(entry.parts[: -2 if by_wnid == {True} else -1]) for entry in entries}
    if len(by_wnid) > 1 or len(above) > 1:
        raise ImageSourceError(
            f"{root} holds images in several places ({some(sorted(place or '.' for place in above))}); "
            "source: imagenet-val needs all in one folder, or all in folders named by wnid",
            hint="set root: to the validation set alone; other layouts are source: folder or source: files",
        )
    return by_wnid == {True}


def _labels(path: str, names: list[str], root: str) -> Labels:
    if not is_url(path) and Path(path).is_dir():
        return _by_number(open_devkit_folder(Path(path)), names)
    content = content_of(path)
    if content[:2] == b"\x1f\x8b" or content[257:262] == b"ustar":
        return _by_number(open_devkit_archive(content, path), names)
    return imagenet_classes().of_table(read_table(path, names, root, content))


def _by_number(devkit: Devkit, names: list[str]) -> Labels:
    labels = []
    for name in names:
        number = _NUMBER.search(name)
        if number is None:
            raise ImageSourceError(
                f"{name} is not named as an image of the validation set: ILSVRC2012_val_00000001.JPEG",
                hint="images of other names need a CSV file as labels: filename,wnid",
            )
        labels.append(devkit.label_of(int(number[1]), name))
    return devkit.classes.label(labels)
