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
    """The folder that holds one folder per class."""


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


SOURCES = ("digits", "folder", "array")
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
    | Annotated[ArrayImages, Tag("<array>")],
    Discriminator(_tag),
    BeforeValidator(_check_source),
]
"""One of the image sources, told apart by ``source``."""
