from __future__ import annotations

import datetime
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dneuro.errors import SpecError
from dneuro.spec import parse_job
from dneuro.spec.document import NotYamlError, Place, read

TRAPS = [
    ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("y", "y"), ("true", True), ("False", False),
    ("none", "none"), ("None", "None"), ("null", None), ("~", None), ("", None),
    ("010", 10), ("0o17", 15), ("0x1F", 31), ("-3", -3), ("+3", 3), ("1_000", "1_000"),
    ("1e-3", 0.001), ("1.", 1.0), (".5", 0.5), ("-2.5E+3", -2500.0), ("-.inf", float("-inf")), ("1e", "1e"),
    ("12:30", "12:30"), ("2024-01-31", "2024-01-31"), ("1.2.3", "1.2.3"), ("'5'", "5"), ("!!str 5", "5"),
    ("!!int x", "x"), ("9" * 5000, "9" * 5000),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), TRAPS, ids=[text[:12] or "blank" for text, _ in TRAPS])
def test_scalar__read_as_yaml_1_2(text: str, value: object) -> None:
    found = read(f"key: {text}").data["key"]
    assert found == value
    assert type(found) is type(value)


def test_scalars__plain_yaml_1_1_would_have_been_trapped() -> None:
    assert yaml.safe_load("[no, 12:30, 2024-01-31, 1e-3]") == [False, 750, datetime.date(2024, 1, 31), "1e-3"]


def test_keys__are_text_as_written() -> None:
    assert read("{1.10: a, 0: b, no: c, null: d, 'x y': e}").data == {
        "1.10": "a",
        "0": "b",
        "no": "c",
        "null": "d",
        "x y": "e",
    }


def test_places__key_of_a_setting_and_begin_of_an_item() -> None:
    document = read("# first\na:\n  b: [x,\n      1.10]\n")
    assert document.places[()] == Place(2, 1)
    assert document.places["a",] == Place(2, 1)
    assert document.places["a", "b"] == Place(3, 3)
    assert document.places["a", "b", 1] == Place(4, 7, "1.10")
    assert document.place(("a", "b", 7, "deeper")) == document.places["a", "b"]


def test_aliases_and_merges__read_as_written_out() -> None:
    text = "base: &b {rank: 8, seed: 1}\nsame: *b\nother: {<<: *b, seed: 2}\nboth: {<<: [{seed: 3}, *b]}\n"
    document = read(text)
    assert document.data == yaml.safe_load(text)
    assert document.places["other", "rank"].line == 1, "a merged key stands where it is written"
    assert not document.problems


def test_alias__its_two_uses_are_separate_data() -> None:
    data = read("a: &a {x: 1}\nb: *a\n").data
    data["a"]["x"] = 2
    assert data["b"] == {"x": 1}


def test_key_given_twice__both_lines_named_and_the_first_kept() -> None:
    document = read("a: 1\nb: &b {c: 1, c: 2}\na: 3\nd: *b\n")
    assert document.data == {"a": 1, "b": {"c": 1}, "d": {"c": 1}}
    assert {(place.line, place.column) for place, _ in document.problems} == {(3, 1), (2, 14)}
    assert {problem.message for _, problem in document.problems} == {
        "key 'a' is given twice, first in line 1",
        "key 'c' is given twice, first in line 2",
    }


readable = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), max_size=8)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | readable,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(readable, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(plain)
def test_json__reads_back(data: object) -> None:
    assert read(json.dumps(data, ensure_ascii=False)).data == data


@settings(deadline=None)
@given(st.text(alphabet="ab:-[]{},&*!|>'\"#%@?<\n\t 01.~x", max_size=40))
def test_any_text__is_read_or_refused_with_a_place(text: str) -> None:
    try:
        document = read(text)
    except NotYamlError as error:
        assert 1 <= error.place.line <= text.count("\n") + 2
    else:
        assert all(1 <= place.line <= text.count("\n") + 1 for place in document.places.values())
    with pytest.raises(SpecError, match="<job>"):
        parse_job(text)
