"""Which images a job runs over."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dneuro.spec.base import PathText, Spec


class _Images(Spec):
    sample: Annotated[int, Field(gt=0)] | None = None
    """Take only this many images, drawn at random (`seed`) and kept in their order."""
    seed: int = 0
    """Seed of the random draw."""


class DigitsImages(_Images):
    """The 1,797 handwritten digits that scikit-learn ships, scaled from 8×8 to 28×28 pixels, grey."""

    source: Literal["digits"]


class FolderImages(_Images):
    """A folder per class: ``root/<class>/<image file>``, classes and files in sorted order."""

    source: Literal["folder"]
    root: PathText
    """The folder that holds one folder per class."""


class ArrayImages(_Images):
    """Images in one array, in a ``.npz`` file or a Zarr group."""

    source: Literal["array"]
    root: PathText
    """The ``.npz`` file or the Zarr group."""
    images: str = "images"
    """Name of the array (n, height, width) or (n, height, width, 3), uint8."""
    labels: str | None = None
    """Name of the array (n,) of class indices; the default is ``labels`` if the file has it."""
    class_names: list[str] | None = None
    """Names of the classes 0, 1, …; the default is ``class_names`` if the file has it, else the numbers."""


ImagesSpec = Annotated[DigitsImages | FolderImages | ArrayImages, Field(discriminator="source")]
