"""What an index is compared with: labels by chance, what the classes' sizes allow, a normal fitted to the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dneuro.kernels.indices import flatness, gini, multifacetedness

Numbers = NDArray[np.float64]

SAME = 1e-12
"""A spread below this share of the values is rounding."""


@dataclass(frozen=True)
class Chance:
    """The multi-facetedness of neurons whose counted images have classes by chance.

    Parameters
    ----------
    mean, std : array (neurons,)
        Over the draws that are finite.
    p : array (neurons,)
        (1 + draws that are not above the neuron's own value) / (1 + draws): small where a neuron is more
        single-faceted than chance makes it.
    """

    mean: Numbers
    std: Numbers
    p: Numbers


def facets_by_chance(
    values: Numbers, counted: NDArray[np.int64], sizes: NDArray[np.int64], *, draws: int, seed: int
) -> Chance:
    """Draw labels for the counted images of each neuron, without replacement, and compare.

    Parameters
    ----------
    values : array (neurons,)
        Multi-facetedness of each.
    counted : array (neurons,) of int64
        Counted images of each.
    sizes : array (classes,) of int64
        Images of each class, to draw from.
    draws, seed : int
        How often, and from where on.

    Notes
    -----
    Neurons with as many counted images share their draws, and each draw grows by the images that a neuron has more:
    the work goes with the number of different counts, not with the number of neurons.
    """
    found = Chance(*(np.full(len(values), np.nan) for _ in range(3)))
    wanted = np.unique(counted[counted > 0])
    if not len(wanted):
        return found
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.choice(labels, wanted[-1], replace=False) for _ in range(draws)])
    counts = np.zeros((draws, len(sizes)))
    which = np.arange(draws)[:, None]
    before = 0
    for count in wanted.tolist():
        np.add.at(counts, (which, drawn[:, before:count]), 1)
        before = count
        chance = np.sort(multifacetedness(flatness(counts), gini(counts)))
        finite = chance[np.isfinite(chance)]
        mine = counted == count
        if len(finite):
            found.mean[mine], found.std[mine] = finite.mean(), finite.std()
        found.p[mine] = (1 + np.searchsorted(chance, values[mine], side="right")) / (1 + draws)
    found.p[np.isnan(values)] = np.nan
    return found


def least_flatness(counted: NDArray[np.int64], sizes: NDArray[np.int64]) -> Numbers:
    """Return the flatness below which no row of so many counted images can lie.

    It is that of a row which fills the largest classes first: 0, to 1e-5, where one class has images enough; 0.072 for
    100 images of 1,000 classes with 50 each.

    Parameters
    ----------
    counted : array (neurons,) of int64
        Counted images of each.
    sizes : array (classes,) of int64
        Images of each class.

    Returns
    -------
    array (neurons,)
        −1 where nothing was counted, as for the row itself.
    """
    wanted, which = np.unique(counted, return_inverse=True)
    largest = np.sort(sizes)[::-1]
    before = np.cumsum(largest) - largest
    rows = np.clip(wanted[:, None] - before, 0, largest)
    return np.asarray(flatness(rows)[which])


def p_values(values: Numbers) -> tuple[Numbers, Numbers]:
    """Return how likely values as low, and as high, are under a normal fitted to the other values.

    Parameters
    ----------
    values : array (neurons,)
        Those that are not finite are left out, and get NaN.

    Returns
    -------
    low, high : array (neurons,)
        One-sided. NaN where there are fewer than two others, or all others are the same.
    """
    from scipy.special import ndtr  # not at the top: workers load this file too, and SciPy is large

    low, high = np.full(len(values), np.nan), np.full(len(values), np.nan)
    finite = np.isfinite(values)
    known = values[finite]
    others = len(known) - 1
    if others >= 2:
        apart = known - known.mean()
        mean = -apart / others
        variance = np.maximum((np.sum(apart**2) - apart**2) / others - mean**2, 0.0)
        varies = variance > (SAME * np.abs(known).max()) ** 2
        score = np.divide(apart - mean, np.sqrt(variance), out=np.full(len(known), np.nan), where=varies)
        low[finite], high[finite] = ndtr(score), ndtr(-score)
    return low, high
