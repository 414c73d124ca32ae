"""Faults injected into real runs: a few, with a seed, in every run of the tests; all of them by `make faults`."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

ASKED = os.environ.get("DNEURO_FAULTS", "few")
"""``few``, ``all``, or a number: no fault more often than that."""


@pytest.fixture
def times() -> Callable[[int, int], int]:
    """Return ``times(few, all)``: how often a fault is injected, in every run of the tests or by `make faults`."""
    return lambda few, every: few if ASKED == "few" else every if ASKED == "all" else min(every, int(ASKED))
