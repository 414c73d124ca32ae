"""ImageNet's validation set as it comes, a flat tar and a devkit, made of photographs of its classes."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import numpy as np

from dneuro.images.imagenet import imagenet_classes

TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
WNID = re.compile(r"n\d{8}")
COLUMNS = (
    "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images",
)  # fmt: skip


def make_imagenet(photos: Path, folder: Path, images: int) -> None:
    """Write `images` photographs in ImageNet's names and their labels in its numbers; leave them if they are there.

    Parameters
    ----------
    photos : Path
        Photographs in folders or under names that begin with their wnid; taken in a seeded order, many times over.
    folder : Path
        Where `TAR` and `DEVKIT` are written.
    images : int
        Files in the tar.
    """
    if (folder / TAR).exists():
        return
    found = [(path, _wnid(path.relative_to(photos))) for path in sorted(photos.rglob("*")) if path.is_file()]
    known = [(path.read_bytes(), wnid) for path, wnid in found if wnid]
    rng = np.random.default_rng(0)
    classes = imagenet_classes()
    numbers = rng.permutation(len(classes)) + 1  # a devkit has an order of its own
    ids = dict(zip(classes.wnids, numbers.tolist(), strict=True))
    pick = rng.permutation(np.resize(np.arange(len(known)), images))
    with tarfile.open(folder / DEVKIT, "w:gz") as file:
        inside = DEVKIT.removesuffix(".tar.gz")
        truth = "".join(f"{ids[known[chosen][1]]}\n" for chosen in pick)
        _add(file, f"{inside}/data/meta.mat", _meta(ids, dict(zip(classes.wnids, classes.names, strict=True))))
        _add(file, f"{inside}/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    partial = folder / f"{TAR}.partial"
    with tarfile.open(partial, "w") as file:
        for number, chosen in enumerate(pick, 1):
            _add(file, f"ILSVRC2012_val_{number:08d}.JPEG", known[chosen][0])
    partial.rename(folder / TAR)


def _wnid(path: Path) -> str:
    found = WNID.search(str(path))
    return found[0] if found else ""


def _add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))


def _meta(ids: dict[str, int], names: dict[str, str]) -> bytes:
    """Return the devkit's table of classes, as MATLAB writes it."""
    from scipy.io import savemat

    rows = np.empty((len(ids), 1), dtype=[(name, "O") for name in COLUMNS])
    for wnid, number in ids.items():
        rows[number - 1, 0] = (float(number), wnid, names[wnid], "", 0.0, np.zeros((0, 0)), 0.0, 1300.0)
    written = io.BytesIO()
    savemat(written, {"synsets": rows})
    return written.getvalue()
