from __future__ import annotations

import math

import pytest

from dneuro.report import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.125, "0.125"), (1234.5, "1,234"), (99.96, "100"), (-0.5, "−0.5"), (12, "12"), (999999, "999,999"),
        (1.234e7, "1.23e7"), (-4.5e-7, "−4.5e-7"), (math.nan, "NaN"), (-math.inf, "−∞"), (None, "–"),
    ],
)  # fmt: skip
def test_number__has_three_significant_digits(value, text):
    assert words.number(value) == text


def test_number__keeps_zeros_where_numbers_stand_in_a_row():
    assert [words.number(value, pad=True) for value in (6.3, 7, 0.5)] == ["6.30", "7.00", "0.500"]


def test_counted__agrees_with_its_noun():
    assert words.counted(1, "image") == "1 image"
    assert words.counted(1797, "class", "classes") == "1,797 classes"


def test_settings__are_one_line_with_nested_ones_in_brackets():
    values = {"k": 100, "standardize": None, "correct": True, "select": {"classes": [1, 2]}}
    assert words.settings(values) == "k = 100, standardize = none, correct = yes, select = (classes = [1, 2])"


def test_listed__is_cut_at_its_limit():
    assert words.listed(list("abcd"), limit=2) == "a, b, … (4 in all)"
    assert words.listed(["a"]) == "a"
