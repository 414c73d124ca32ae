"""The class of every image, as an index into a list of classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError
from dneuro.images.table import Row, Table

MAX_CLASSES = 1_000_000
"""Larger indices are rather identifiers than classes."""


@dataclass(frozen=True)
class Labels:
    """Labels of all images of a source.

    Parameters
    ----------
    labels : ndarray of int64
        (image,); index into `class_names`, -1 where the class is not known.
    class_names : tuple of str
        Names of the classes 0, 1, …; may be empty.
    wnids : tuple of str
        WordNet ids of the classes; empty where they have none.
    """

    labels: NDArray[np.int64]
    class_names: tuple[str, ...] = ()
    wnids: tuple[str, ...] = ()


def own_classes(table: Table) -> Labels:
    """Return labels among the classes that a table has: by index where it gives one, else in sorted order.

    Raises
    ------
    ImageSourceError
        If one class has two names, or an index is none.
    """
    labelled = [row for row in table.rows if row.is_labelled]
    if any(row.index for row in labelled):
        numbers = [class_index(table, row, MAX_CLASSES) for row in labelled]
        keys = {number: str(number) for number in range(max(numbers) + 1)}
    else:
        texts = sorted({row.wnid or row.name for row in labelled})
        place = {text: number for number, text in enumerate(texts)}
        numbers = [place[row.wnid or row.name] for row in labelled]
        keys = dict(enumerate(texts))
    names = _said_of_each(table, zip(numbers, labelled, [row.name for row in labelled], strict=True))
    wnids = _said_of_each(table, zip(numbers, labelled, [row.wnid for row in labelled], strict=True))
    labels = np.full(table.images, -1, np.int64)
    labels[[row.image for row in labelled]] = numbers
    return Labels(
        labels,
        tuple(names.get(number) or wnids.get(number) or key for number, key in keys.items()),
        tuple(wnids.values()) if sorted(wnids) == list(keys) else (),
    )


def class_index(table: Table, row: Row, classes: int) -> int:
    """Return the class index of a row.

    Raises
    ------
    ImageSourceError
        If it is no number from 0 to `classes` - 1.
    """
    if row.index.isascii() and row.index.isdigit() and len(row.index) < 18 and int(row.index) < classes:
        return int(row.index)
    raise ImageSourceError(
        f"{table.at(row)}: {row.index!r} is no class index; there are 0…{classes - 1:,}",
        hint="name the columns in a first line: filename,wnid or filename,class_index or filename,class_name",
    )


def _said_of_each(table: Table, said: Iterable[tuple[int, Row, str]]) -> dict[int, str]:
    """Return what a column says of each class, in the order of classes; refuse two sayings about one."""
    found: dict[int, tuple[str, Row]] = {}
    for number, row, text in said:
        first, before = found.setdefault(number, (text, row))
        if text != first:
            raise ImageSourceError(
                f"{table.at(row)}: class {number} is {text!r} here and {first!r} in line {before.line}",
                hint="one class has one name; correct one of the two lines",
            )
    return {number: text for number, (text, _) in sorted(found.items()) if text}
