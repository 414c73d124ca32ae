"""What numbers among the arguments of an analysis must be."""

from __future__ import annotations

import math

import numpy as np

from dneuro.errors import ArrayError

LARGEST_SEED = 2**32 - 1
"""What every random generator in use takes."""

LONGEST_LIST = 2**31
"""No list of anything is longer: its numbers would not fit into an array."""


def is_number(value: object) -> bool:
    """Return whether `value` is a finite real number."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and math.isfinite(value)  # type: ignore[arg-type]


def check_number(name: str, value: object, *, hint: str, above: float = -math.inf, below: float = math.inf,
                 least: float = -math.inf, most: float = math.inf) -> None:  # fmt: skip
    """Refuse what is no finite number in a range.

    Parameters
    ----------
    name, value : str, object
        The argument.
    hint : str
        One that can be.
    above, below, least, most : float
        The range, without and with its ends.

    Raises
    ------
    ArrayError
        With the range.
    """
    if is_number(value) and above < value < below and least <= value <= most:  # type: ignore[operator]
        return
    limits = [f"{word} {limit:g}" for word, limit in (("above", above), ("at least", least), ("below", below),
                                                      ("at most", most)) if math.isfinite(limit)]  # fmt: skip
    raise ArrayError(f"{name}={value!r} is not a number{' ' if limits else ''}{' and '.join(limits)}", hint=hint)


def check_count(name: str, value: object, *, hint: str, least: int = 1) -> None:
    """Refuse what is no whole number, or one that is too small, or beyond all lists.

    Raises
    ------
    ArrayError
        With the range.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not least <= int(value) < LONGEST_LIST:  # type: ignore[call-overload]
        raise ArrayError(f"{name}={value!r} is not a whole number, at least {least}", hint=hint)


def check_seed(seed: object) -> None:
    """Refuse what no random generator takes.

    Raises
    ------
    ArrayError
        With the range.
    """
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not whole or not 0 <= int(seed) <= LARGEST_SEED:  # type: ignore[call-overload]
        raise ArrayError(f"seed={seed!r} is not a whole number from 0 to {LARGEST_SEED}", hint="seed=0")
