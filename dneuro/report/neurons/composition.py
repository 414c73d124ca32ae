"""Which classes the top images of each neuron belong to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Composition:
    """Classes of the top images of N neurons: the runs of one flat list, most frequent class first.

    Parameters
    ----------
    starts : ndarray (N + 1,), int
        Neuron n has the entries ``starts[n]`` up to ``starts[n + 1]``.
    classes, counts : ndarray (entries,), int
        Class, and how many of the top images show it.
    """

    starts: NDArray[np.int64]
    classes: NDArray[np.int64]
    counts: NDArray[np.int64]

    def of(self, neuron: int) -> list[tuple[int, int]]:
        """Return (class, count) of one neuron, most frequent first."""
        here = slice(self.starts[neuron], self.starts[neuron + 1])
        return list(zip(self.classes[here].tolist(), self.counts[here].tolist(), strict=True))

    @property
    def entropy(self) -> NDArray[np.float64]:
        """Entropy in bits of each neuron's classes (N,); 0 = one class, NaN where no class is known."""
        owner, totals = self._totals()
        share = self.counts / totals[owner]
        found = np.bincount(owner, weights=-share * np.log2(share), minlength=totals.size)
        return np.where(totals > 0, np.abs(found), np.nan)

    @property
    def purity(self) -> NDArray[np.float64]:
        """Share of each neuron's most frequent class in its top images (N,), NaN where no class is known."""
        _, totals = self._totals()
        found = np.full(totals.size, np.nan)
        known = totals > 0
        found[known] = self.counts[self.starts[:-1][known]] / totals[known]
        return found

    def _totals(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        owner = np.repeat(np.arange(self.starts.size - 1, dtype=np.int64), np.diff(self.starts))
        return owner, np.bincount(owner, weights=self.counts, minlength=self.starts.size - 1).astype(np.float64)


def compose(images: NDArray[np.int64], labels: NDArray[np.int64]) -> Composition:
    """Count the classes of lists of images.

    Parameters
    ----------
    images : ndarray (neurons, ranks), int
        Images, −1 where there is none.
    labels : ndarray (all images,), int
        Class of each image, −1 where it is not known; such images are not counted.

    Notes
    -----
    **Cost**: one sort of the list's entries.
    """
    inside = (images >= 0) & (images < labels.size)
    classes = np.where(inside, labels[np.where(inside, images, 0)] if labels.size else -1, -1)
    owner, rank = np.nonzero(classes >= 0)
    codes = np.stack([owner, classes[owner, rank]])
    pairs, counts = np.unique(codes, axis=1, return_counts=True) if owner.size else (codes, np.zeros(0, np.int64))
    order = np.lexsort((pairs[1], -counts, pairs[0]))
    starts = np.searchsorted(pairs[0][order], np.arange(len(images) + 1))
    return Composition(starts.astype(np.int64), pairs[1][order].astype(np.int64), counts[order].astype(np.int64))
