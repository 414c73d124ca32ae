"""How many components a user wants: so many, all, those above a singular value, or enough of the variance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dneuro.analysis.arrays import is_count
from dneuro.analysis.checks import check_number
from dneuro.errors import ArrayError

Rank = int | Literal["all"] | None

FIRST_LOOK = 16
"""Components that are found before it is known how many are wanted."""
MOST_SOUGHT = 256
"""Most that the Krylov method looks for on its own."""


@dataclass(frozen=True)
class Wanted:
    """Exactly one of the three is given.

    Parameters
    ----------
    rank : int, "all" or None
        So many, or the whole spectrum.
    threshold : float or None
        Those with a singular value of at least this.
    explained_variance : float or None
        As few as explain this share of ‖Z‖²_F.
    threshold_images : int or None
        Number of images that `threshold` was given for, where it is another than there are.
    """

    rank: Rank = None
    threshold: float | None = None
    explained_variance: float | None = None
    threshold_images: int | None = None

    def scaled(self, images: int) -> Wanted:
        """Return the same with the threshold as it stands for so many images: σ grows with √n."""
        if self.threshold is None or not self.threshold_images:
            return self
        return replace(self, threshold=self.threshold * math.sqrt(images / self.threshold_images))

    def check(self, images: int, neurons: int) -> None:
        """Refuse what cannot be had of so many images × neurons.

        Raises
        ------
        ArrayError
            If not exactly one is given, or it is out of range.
        """
        given = [n for n in ("rank", "threshold", "explained_variance") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ArrayError(
                f"svd takes one of rank, threshold and explained_variance, got {' and '.join(given) or 'none'}",
                hint="rank=16",
            )
        smallest = min(images, neurons)
        whole = isinstance(self.rank, int | np.integer) and not isinstance(self.rank, bool)
        every = isinstance(self.rank, str) and self.rank == "all"
        if self.rank is not None and not every and not (whole and 1 <= int(self.rank) <= smallest):
            raise ArrayError(
                f"rank={self.rank!r} of {images} images × {neurons} neurons",
                hint=f'a whole number from 1 to {smallest}, or "all"',
            )
        if self.threshold is not None:
            check_number("threshold", self.threshold, above=0, hint="threshold=200.0, a singular value")
        if self.explained_variance is not None:
            check_number("explained_variance", self.explained_variance, above=0, most=1, hint="explained_variance=0.5")
        at = self.threshold_images
        if at is not None and (self.threshold is None or not is_count(at)):
            what = "without a threshold" if self.threshold is None else "is no number of images"
            raise ArrayError(f"threshold_images={at!r} {what}", hint="threshold=200.0, threshold_images=6000")

    def first(self, smallest: int) -> int:
        """Return how many to look for first."""
        if self.rank is not None:
            return smallest if self.rank == "all" else int(self.rank)
        return min(FIRST_LOOK, smallest)

    def most(self, smallest: int) -> int:
        """Return how many there may be in the end, where they are sought step by step."""
        return self.first(smallest) if self.rank is not None else min(MOST_SOUGHT, smallest)

    def enough(self, values: NDArray[np.float64], total: float, smallest: int) -> int | None:
        """Return how many of the leading singular values are wanted; None if these do not tell.

        Raises
        ------
        ArrayError
            If none is.
        """
        if self.rank is not None:
            return self.first(smallest)
        ended = len(values) == smallest
        if self.threshold is not None:
            count = int(np.count_nonzero(values >= self.threshold))
            if count == 0:
                raise ArrayError(
                    f"no singular value reaches threshold={self.threshold:g}, the largest is {values[0]:.6g}",
                    hint=f"threshold={values[0] / 2:.3g}, or rank=1",
                )
            return count if count < len(values) or ended else None
        assert self.explained_variance is not None
        shares = np.cumsum(values**2) / total if total else np.ones(len(values))
        reached = np.flatnonzero(shares >= self.explained_variance * (1 - 1e-12))
        return int(reached[0]) + 1 if len(reached) else (smallest if ended else None)
