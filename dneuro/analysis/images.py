"""What an array says of its images: which take part, what number each has, and which class."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.errors import ArrayError
from dneuro.store.units import NOT_YET

SELECTED = "selected"
"""The coordinate (image,) bool that says which images take part; see `dneuro.analysis.selection.select`."""

LABELS = (
    "in a job images that have classes (source: folder, or source: files with labels:); of an array "
    "x.assign_coords(label=('image', labels)): one class index per image, −1 where it is not known"
)
MOST_CLASSES = 1_000_000
LARGEST_NUMBER = 2.0**53
"""Below it float64 tells any two whole numbers apart."""


def taking_part(x: xr.DataArray) -> NDArray[np.bool_] | None:
    """Return which images could be read and, where some were, are selected; None if all."""
    rows = np.ones(x.sizes["image"], bool)
    for name, takes_part, what in (("status", 0, usable(x)), (SELECTED, True, "is selected")):
        if name in x.coords:
            rows &= of_images(x, name) == takes_part
            if not rows.any():
                raise ArrayError(
                    f"none of the {len(rows)} images {what}: there is nothing to analyse",
                    hint="check the selection, and the status of the images",
                )
    return None if rows.all() else rows


def usable(x: xr.DataArray) -> str:
    """Return what an image must be to take part, in words: where some are not extracted yet, that too."""
    unfinished = "status" in x.coords and (of_images(x, "status") == NOT_YET).any()
    return "is extracted yet and could be read" if unfinished else "could be read"


def of_images(x: xr.DataArray | xr.Dataset, name: str) -> NDArray[Any]:
    """Return a coordinate that says something of each image.

    Raises
    ------
    ArrayError
        If it is about something else.
    """
    found = x.coords[name]
    if found.dims != ("image",):
        raise ArrayError(
            f"the coordinate {name!r} is over {tuple(map(str, found.dims))}, it says something of each image, over "
            "('image',)",
            hint=f"x.drop_vars({name!r}), or x.assign_coords({name}=('image', …))",
        )
    return np.asarray(found.values)


def has_numbers(x: xr.DataArray) -> bool:
    """Return whether the coordinate ``image`` gives each image a whole number, if only as 3.0."""
    numbers = x.coords["image"]
    if numbers.dtype.kind != "f":
        return numbers.dtype.kind in "iu"
    return bool((np.abs(numbers.values) < LARGEST_NUMBER).all() and (numbers.values == np.rint(numbers.values)).all())


def image_numbers(x: xr.DataArray) -> NDArray[np.int64]:
    """Return the number of each image: its coordinate ``image``, else its place.

    Names, dates and the like are no numbers: arrays that go by those may have the same places and other images.
    """
    if "image" in x.coords and has_numbers(x):
        return np.asarray(x.coords["image"].values, dtype=np.int64)
    return np.arange(x.sizes["image"])


def label_numbers(x: xr.DataArray | xr.Dataset) -> NDArray[np.int64]:
    """Return the class of each image as the coordinate ``label`` numbers it.

    Raises
    ------
    ArrayError
        If it is no number per image.
    """
    label = x.coords["label"]
    if label.dtype.kind not in "iu" or (label.dims != ("image",) and "image" in x.dims):
        raise ArrayError(
            f"the coordinate 'label' is {label.dtype} over {tuple(map(str, label.dims))}, classes are whole numbers "
            "over ('image',)",
            hint=LABELS,
        )
    return np.asarray(label.values, dtype=np.int64)


def class_labels(x: xr.DataArray | xr.Dataset) -> tuple[NDArray[np.int64], list[str]]:
    """Return the class of each image (−1 unknown) and the names of the classes.

    Raises
    ------
    ArrayError
        If the array carries no ``label`` coordinate.
    """
    if "label" not in x.coords:
        raise ArrayError(
            "this needs the class of every image, and the array has no coordinate 'label'",
            hint=LABELS,
        )
    labels = label_numbers(x)
    given = x.attrs.get("class_names")
    if not (given is None or isinstance(given, list | tuple) or (isinstance(given, np.ndarray) and given.ndim == 1)):
        raise ArrayError(
            f"the attribute class_names is {given!r}, it lists the names of the classes",
            hint="x.assign_attrs(class_names=['cat', 'dog'])",
        )
    names = [] if given is None else [str(name) for name in given]
    top = int(labels.max(initial=-1))
    if top < 0:
        raise ArrayError("this needs the class of every image, and none of these images has one", hint=LABELS)
    if top >= max(len(names), MOST_CLASSES):
        raise ArrayError(f"the coordinate 'label' has a class {top}: classes are counted from 0", hint=LABELS)
    return labels, names if len(names) > top else [str(i) for i in range(top + 1)]
