"""Which images a job runs over."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Tag

from dneuro.errors import suggest
from dneuro.spec.base import PathText, Positive, Seed, Spec
from dneuro.spec.problems import refusal, shown


class _Images(Spec):
    sample: Positive | None = None
    """Take only this many images, drawn at random (`seed`) and kept in their order."""
    seed: Seed = 0
    """Seed of the random draw."""


class DigitsImages(_Images):
    """The 1,797 handwritten digits that scikit-learn ships, scaled from 8×8 to 28×28 pixels, grey."""

    source: Literal["digits"]
    """Kind of source."""


class FolderImages(_Images):
    """A folder per class: ``root/<class>/<image file>``, classes and files in sorted order."""

    source: Literal["folder"]
    """Kind of source."""
    root: PathText
    """The folder that holds one folder per class, a plain tar of it, or a URL such as ``s3://bucket/photos`` or
    ``zip::/data/photos.zip``."""
    classes: Literal["imagenet"] | None = None
    """``imagenet``: labels are indices among ImageNet's 1,000 classes, and folders are named by wnid; the default
    numbers the folders there are."""


class FilesImages(_Images):
    """Image files in one folder and the folders below it, labelled by a table or not at all."""

    source: Literal["files"]
    """Kind of source."""
    root: PathText
    """The folder, a plain tar of it, or a URL such as ``s3://bucket/photos`` or ``zip::/data/photos.zip``."""
    labels: PathText | None = None
    """A CSV file with one line per image: filename below ``root``, and its class as wnid, name or index; without
    it no class is known."""
    classes: Literal["imagenet"] | None = None
    """``imagenet``: labels are indices among ImageNet's 1,000 classes; the default takes the classes that ``labels``
    has."""


class ImagenetValImages(_Images):
    """ImageNet's validation set as it comes: the tar (read in place), its flat folder, or a folder per wnid."""

    source: Literal["imagenet-val"]
    """Kind of source."""
    root: PathText
    """``ILSVRC2012_img_val.tar``, the folder that it unpacks to, or one with a folder per wnid; or a URL of such a
    folder."""
    labels: PathText | None = None
    """``ILSVRC2012_devkit_t12.tar.gz``, the folder that it unpacks to, or a CSV file (filename, then wnid, class name
    or index); a folder per wnid needs none."""


class ArrayImages(_Images):
    """Images in one array, in a ``.npz`` file or a Zarr group."""

    source: Literal["array"]
    """Kind of source."""
    root: PathText
    """The ``.npz`` file or the Zarr group."""
    images: str = "images"
    """Name of the array (n, height, width) or (n, height, width, 3), uint8."""
    labels: str | None = None
    """Name of the array (n,) of class indices; the default is ``labels`` if the file has it."""
    class_names: list[str] | None = None
    """Names of the classes 0, 1, …; the default is ``class_names`` if the file has it, else the numbers."""


class MnistImages(_Images):
    """MNIST's own four files, zipped or not: 60,000 + 10,000 digits of 28×28 pixels, grey."""

    source: Literal["mnist"]
    """Kind of source."""
    root: PathText
    """The folder that holds the four files, or torchvision's above it (``root/MNIST/raw``)."""
    split: Literal["train", "test"]
    """Which part."""


class Cifar10Images(_Images):
    """CIFAR-10's own files, Python or binary version: 50,000 + 10,000 pictures of 32×32 pixels, colour."""

    source: Literal["cifar10"]
    """Kind of source."""
    root: PathText
    """The archive (``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz``), or the folder that it unpacks to or
    lies in."""
    split: Literal["train", "test"]
    """Which part."""


SOURCES = ("digits", "folder", "files", "array", "imagenet-val", "mnist", "cifar10")
"""Every kind of image source, by the name it has in a job file."""


def _check_source(images: Any) -> Any:
    if isinstance(images, _Images):
        return images
    choices = f"choices: {', '.join(SOURCES)}"
    if not isinstance(images, dict):
        raise refusal(f"must be a mapping, not {shown(images)}", f"write `source: …`; {choices}")
    if "source" not in images:
        raise refusal("missing: where the images come from", f"add `source: …`; {choices}", ("source",))
    source = images["source"]
    if source not in SOURCES:
        raise refusal(f"unknown source {shown(source)}", suggest(str(source), SOURCES), ("source",))
    return images


def _tag(images: Any) -> str:
    return f"<{images['source'] if isinstance(images, dict) else images.source}>"


ImagesSpec = Annotated[
    Annotated[DigitsImages, Tag("<digits>")]
    | Annotated[FolderImages, Tag("<folder>")]
    | Annotated[FilesImages, Tag("<files>")]
    | Annotated[ArrayImages, Tag("<array>")]
    | Annotated[ImagenetValImages, Tag("<imagenet-val>")]
    | Annotated[MnistImages, Tag("<mnist>")]
    | Annotated[Cifar10Images, Tag("<cifar10>")],
    Discriminator(_tag),
    BeforeValidator(_check_source),
]
"""One of the image sources, told apart by ``source``."""
