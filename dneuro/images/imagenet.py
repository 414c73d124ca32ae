"""ImageNet's 1,000 classes, as every network trained on them numbers its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources

import numpy as np

from dneuro.errors import ImageSourceError, suggest
from dneuro.images.labels import Labels, class_index
from dneuro.images.table import WNID, Row, Table


class KnownClasses:
    """Classes that are known before any image is seen, in the sorted order of their wnids.

    Parameters
    ----------
    names_of : dict
        Name by wnid.
    """

    def __init__(self, names_of: dict[str, str]) -> None:
        self.wnids = tuple(sorted(names_of))
        self.names = tuple(names_of[wnid] for wnid in self.wnids)
        self._index = {wnid: index for index, wnid in enumerate(self.wnids)}

    def __len__(self) -> int:
        return len(self.wnids)

    def label(self, indices: Sequence[int]) -> Labels:
        """Return labels from class indices, one per image; -1 where the class is not known."""
        return Labels(np.array(indices, np.int64), self.names, self.wnids)

    def of_table(self, table: Table) -> Labels:
        """Return the labels that a table gives, by wnid, index or name.

        Raises
        ------
        ImageSourceError
            With the line, if a class is unknown, or a line contradicts itself.
        """
        return self.label([self._of_row(table, row) if row.is_labelled else -1 for row in table.rows])

    def of_wnids(self, wnids: Iterable[str], where: str) -> Labels:
        """Return the labels of images of which the wnid is known.

        Raises
        ------
        ImageSourceError
            If one is none of these classes.
        """
        return self.label([self.find(wnid, where) for wnid in wnids])

    def find(self, wnid: str, where: str) -> int:
        """Return the index of a wnid.

        Raises
        ------
        ImageSourceError
            If it is none of these classes.
        """
        if wnid not in self._index:
            raise ImageSourceError(
                f"{where}: {wnid!r} is not the wnid of one of the {len(self):,} classes",
                hint=suggest(wnid, self.wnids, limit=3),
            )
        return self._index[wnid]

    def _of_row(self, table: Table, row: Row) -> int:
        by_wnid = self.find(row.wnid, table.at(row)) if row.wnid else None
        by_index = class_index(table, row, len(self)) if row.index else None
        if by_wnid is None:
            return self._named(row.name, table.at(row)) if by_index is None else by_index
        if by_index not in (None, by_wnid):
            raise ImageSourceError(
                f"{table.at(row)}: {row.wnid} is class {by_wnid}, the line says {by_index}",
                hint="classes are numbered from 0 in the sorted order of the wnids, not as in ImageNet's devkit; "
                "without a column of indices the wnid decides",
            )
        return by_wnid

    def _named(self, name: str, where: str) -> int:
        wanted = name.replace("_", " ")
        found = [index for index, known in enumerate(self.names) if known == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise ImageSourceError(
                f"{where}: {len(found)} classes are called {wanted!r}",
                hint=f"give the wnid instead: {' or '.join(self.wnids[index] for index in found)}",
            )
        raise ImageSourceError(
            f"{where}: {name!r} is not the name of one of the {len(self):,} classes",
            hint=suggest(wanted, self.names, limit=3),
        )


@lru_cache(maxsize=1)
def imagenet_classes() -> KnownClasses:
    """Return the 1,000 classes of ILSVRC2012, named by the first word that WordNet has for each."""
    text = resources.files("dneuro.images").joinpath("imagenet-classes.tsv").read_text(encoding="utf-8")
    return KnownClasses(dict(line.split("\t") for line in text.splitlines()))


def is_wnid(name: str) -> bool:
    """Return whether a name looks like a WordNet id, such as n01440764."""
    return WNID.fullmatch(name) is not None
