from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dneuro.quantities import GiB, KiB, MiB, format_bytes, format_duration, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GiB", 8 * GiB),
        ("500 MB", 500_000_000),
        ("1.5g", 1_500_000_000),
        (" 64 kib ", 64 * KiB),
        ("2Ti", 2048 * GiB),
        (".5MiB", MiB // 2),
        ("1e3", 1000),
        ("7", 7),
        ("0", 0),
        (12, 12),
        (1.6, 2),
    ],
)
def test_parse_bytes__units_of_ten_and_of_two(text: str | float, count: int) -> None:
    found = parse_bytes(text)
    assert found == count
    assert type(found) is int


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4h", 14400),
        ("15m", 900),
        ("15 min", 900),
        ("90 s", 90),
        ("250ms", 0.25),
        ("1h30m", 5400),
        ("1 h 30 min 5s", 5405),
        ("2d", 172800),
        ("0.5", 0.5),
        (3, 3.0),
    ],
)
def test_parse_duration__units_and_sums(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1 parsec", "1,5GB", "1h-5m", "nan", -1, True, math.nan, math.inf]
)
def test_parse__refuses_and_says_what_it_wants(text: str | float) -> None:
    with pytest.raises(ValueError, match="is not an amount of memory such as '8GiB'"):
        parse_bytes(text)
    with pytest.raises(ValueError, match="is not a duration such as '4h'"):
        parse_duration(text)


@settings(deadline=None)
@given(st.integers(0, 2**50))
def test_format_bytes__reads_back_within_its_digits(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.005, abs=0.5)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1.5 * GiB, "1.5 GiB"), (9000 * GiB, "8.79 TiB")],
)
def test_format_bytes__three_digits(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (12.4, "12 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_format_duration__as_people_say_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
