"""The table of docs/reliability.md says what was measured, and where that is slower than what is promised."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.reliability import PROMISES, Found, Promise, _row

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("measured", "broken", "words"),
    [
        ("4.9", (), "| kept (3 tests"),
        ("44.0", (), "| kept, but **slower than promised**: seconds to leave 44.0, not 5 (3 tests"),
        ("44.0", ("test_x",), "| **broken**: test_x (3 tests"),
    ],
)
def test_table__compares_what_was_measured_with_what_is_promised(
    measured: str, broken: tuple[str, ...], words: str
) -> None:
    promise = Promise("a second driver", "leaves within 5 s", ("x",), seconds=(("seconds_to_leave", 5),))
    row = _row(promise, Found(3, broken, 0, {"seconds_to_leave": measured}, 12.0))
    assert words in row
    assert f"seconds to leave: {measured} |" in row


def test_table__says_of_what_was_skipped_that_it_was_not_tried() -> None:
    promise = Promise("in Slurm: walltime", "the job finishes", ("x",))
    assert "| not tried on this machine (0 tests, 0 s, 6 skipped) |" in _row(promise, Found(0, (), 6, {}, 0.0))


def test_promises__name_tests_that_are_there_and_what_they_measure() -> None:
    for promise in PROMISES:
        texts = ""
        for test in promise.tests:
            file, _, name = test.partition("::")
            texts += (text := (ROOT / file).read_text())
            assert not name or f"def {name}(" in text, test
        for name, _ in promise.seconds:
            assert re.search(rf"\b{name}=round\(", texts), name
