"""Which images take part: a view of a layer, not a second extraction."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ParamSpec

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import check_labelled
from dneuro.analysis.checks import check_count, check_seed
from dneuro.analysis.images import SELECTED, class_labels, label_numbers, of_images, taking_part, usable
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError, suggest

P = ParamSpec("P")


def select(
    x: xr.DataArray,
    *,
    correct: bool | None = None,
    classes: Sequence[str | int] | None = None,
    images: Sequence[str | int] | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> xr.DataArray:
    """Choose the images that analyses of a layer take part in.

    Parameters
    ----------
    x : DataArray, dims (image N, features…)
        A layer of a store, or any labelled array.
    correct : bool, optional
        True: only images that the network classified correctly; False: only those that it did not.
    classes : sequence of str or int, optional
        Only images of these classes, by name or index.
    images : sequence of str or int, optional
        Only these images, by filename or number.
    sample : int, optional
        So many of the images that are left, drawn at random; a larger sample with the same seed holds the smaller.
    seed : int
        Of the draw.

    Returns
    -------
    DataArray
        `x` with a coordinate ``selected`` (image,) bool, which every analysis of dneuro obeys, and
        ``attrs["selection"]``, which its results repeat. Nothing is copied: ``x.isel(image=x.selected)`` is the
        part itself, for other uses.

    Raises
    ------
    ArrayError
        If nothing is left, a class or image is unknown, fewer images are left than the sample asks for, or the array
        does not say which images were classified correctly.

    Notes
    -----
    **Cost**: none; an analysis reads only chunks of which some image takes part. Selecting again narrows the
    selection. Images that could not be read, or are not extracted yet, never take part.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.array([[1.0], [4.0], [2.0]], "f4"), dims=("image", "channel"),
    ...                  coords={"label": ("image", [0, 1, 1])})
    >>> dn.moments(dn.select(x, classes=[1]))["mean"].values.tolist()
    [3.0]
    """
    check_labelled(x)
    if "image" not in x.dims:
        dims = tuple(map(str, x.dims))
        raise ArrayError(f"the array has dims {dims}, none is named 'image'", hint="x.rename(…)")
    if correct is not None and not isinstance(correct, bool | np.bool_):
        raise ArrayError(f"correct={correct!r}", hint="correct=True, or False")
    classes, images = _listed("classes", classes, "['cat', 'dog']"), _listed("images", images, "[0, 12]")
    rows = np.ones(x.sizes["image"], bool)
    for name, takes_part in (("status", 0), (SELECTED, True)):
        if name in x.coords:
            rows &= of_images(x, name) == takes_part
    available, said = int(rows.sum()), []
    for what, condition in (
        (f"correct={correct}", None if correct is None else _correct(x, correct)),
        (f"classes={classes}", None if classes is None else _of_classes(x, classes)),
        (f"{len(images or ())} images named", None if images is None else _named(x, images)),
    ):
        if condition is not None:
            rows &= condition
            said.append(f"{what} leaves {int(rows.sum())}")
    if not rows.any():
        raise ArrayError(
            f"the selection is empty: of {available} images {', '.join(said) or f'none {usable(x)}'}",
            hint="leave out one of the conditions",
        )
    if sample is not None:
        rows = _sample(rows, sample, seed, said)
    asked = {"correct": correct, "classes": None if classes is None else list(classes),
             "images_named": None if images is None else len(images), "sample": sample}  # fmt: skip
    described = {key: value for key, value in asked.items() if value is not None}
    described |= {"seed": seed} if sample is not None else {}
    if before := x.attrs.get("selection"):
        described["within"] = before
    described |= {"images": int(rows.sum()), "of": len(rows)}
    return x.assign_coords({SELECTED: ("image", rows)}).assign_attrs(selection=described)


def says_selection(analysis: Callable[P, xr.Dataset]) -> Callable[P, xr.Dataset]:
    """Let an analysis say in its result's attributes which images took part, if they were selected."""

    @functools.wraps(analysis)
    def run(*args: P.args, **kwargs: P.kwargs) -> xr.Dataset:
        result = analysis(*args, **kwargs)
        arrays = (value for value in (*args, *kwargs.values()) if isinstance(value, xr.DataArray))
        selections = [array.attrs["selection"] for array in arrays if "selection" in array.attrs]
        return result.assign_attrs(selection=selections[0]) if selections else result

    return run


def counts_selection(plan: Callable[P, Plan]) -> Callable[P, Plan]:
    """Let the plan of an analysis count only what it reads of the images that were selected."""

    @functools.wraps(plan)
    def run(*args: P.args, **kwargs: P.kwargs) -> Plan:
        found = plan(*args, **kwargs)
        arrays = [value for value in args if isinstance(value, xr.DataArray) and SELECTED in value.coords]
        return replace(found, read_bytes=round(_share_read(arrays[0]) * found.read_bytes)) if arrays else found

    return run


def _share_read(x: xr.DataArray) -> float:
    """Return the share of the images whose chunks hold some image that takes part."""
    rows = taking_part(x)
    if rows is None:
        return 1.0
    lengths = np.asarray(x.chunksizes.get("image", (len(rows),)))
    starts = np.cumsum(lengths) - lengths
    some = np.add.reduceat(rows, starts[lengths > 0], dtype=np.int64) > 0
    return float(lengths[lengths > 0][some].sum() / len(rows))


def _listed(name: str, given: Any, example: str) -> list[str | int] | None:
    """Return what a selection names as a list of texts and numbers; None if it names nothing.

    Raises
    ------
    ArrayError
        If it is no such list.
    """
    if given is None:
        return None
    found = given.tolist() if isinstance(given, np.ndarray) else given
    if not isinstance(found, Sequence) or isinstance(found, str | bytes):
        raise ArrayError(f"{name}={given!r}: a list of names or numbers", hint=f"{name}={example}")
    for one in found:
        if not isinstance(one, str | int | np.integer) or isinstance(one, bool):
            raise ArrayError(f"{name}: {one!r} is neither a name nor a number", hint=f"{name}={example}")
    return list(found)


def _correct(x: xr.DataArray, wanted: bool) -> NDArray[np.bool_]:
    if "correct" not in x.coords:
        raise ArrayError(
            "the array does not say which images were classified correctly",
            hint="extract with predictions: true, images with labels, and a network that tells the same classes apart; "
            "or x.assign_coords(correct=('image', …))",
        )
    right = of_images(x, "correct").astype(bool)
    if wanted:
        return right
    known = label_numbers(x) >= 0 if "label" in x.coords else np.ones_like(right)
    return np.asarray(~right & known)


def _of_classes(x: xr.DataArray, classes: Sequence[str | int]) -> NDArray[np.bool_]:
    if not classes:
        raise ArrayError("classes=[]: a list of names or indices", hint="classes=['cat', 'dog']")
    labels, names = class_labels(x)
    wanted: set[int] = set()
    for given in classes:
        if not isinstance(given, str):
            if not 0 <= given < len(names):
                raise ArrayError(f"class {given} is unknown", hint=f"0 to {len(names) - 1}")
            wanted.add(int(given))
            continue
        found = [index for index, name in enumerate(names) if name == given]  # ImageNet has two cranes
        if not found:
            raise ArrayError(f"class {given!r} is unknown", hint=suggest(str(given), names))
        wanted.update(found)
    return np.isin(labels, sorted(wanted))


def _named(x: xr.DataArray, images: Sequence[str | int]) -> NDArray[np.bool_]:
    numbers = x.coords["image"].values.tolist() if "image" in x.coords else range(x.sizes["image"])
    places: dict[Any, int] = {number: place for place, number in enumerate(numbers)}
    if "filename" in x.coords:
        places |= {str(name): place for place, name in enumerate(of_images(x, "filename"))}
    rows = np.zeros(x.sizes["image"], bool)
    for image in images:
        if image not in places:
            texts = [name for name in places if isinstance(name, str)]
            hint = suggest(image, texts) if isinstance(image, str) else f"{min(numbers)} to {max(numbers)}"
            raise ArrayError(f"image {image!r} is unknown", hint=hint)
        rows[places[image]] = True
    return rows


def _sample(rows: NDArray[np.bool_], sample: int, seed: int, said: list[str]) -> NDArray[np.bool_]:
    """Return as many of the rows: those with the smallest of random keys that every image of the array has."""
    check_count("sample", sample, hint="sample=500")
    check_seed(seed)
    there = np.flatnonzero(rows)
    if sample > len(there):
        why = f" ({', '.join(said)})" if said else ""
        raise ArrayError(f"sample={sample} of {len(there)} images{why}", hint=f"sample={len(there)}, or leave it out")
    keys = np.random.PCG64(seed).random_raw(len(rows))
    chosen = np.zeros_like(rows)
    chosen[there[np.argsort(keys[there], kind="stable")[:sample]]] = True
    return chosen
