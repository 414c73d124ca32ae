from __future__ import annotations

import pickle
import re

import pytest

from dneuro import errors
from dneuro.errors import DneuroError, nearest, suggest

CODES = {
    "DneuroError": 4,
    "UsageError": 2,
    "SpecError": 2,
    "ImageSourceError": 2,
    "NetworkError": 2,
    "ArrayError": 2,
    "MemoryLimitError": 2,
    "DeviceError": 2,
    "UnreadableImageError": 4,
    "NonFiniteError": 4,
    "StoreError": 4,
    "NotAStoreError": 2,
    "DiskFullError": 4,
    "FingerprintError": 64,
    "BusyError": 4,
    "SchedulerLostError": 4,
    "PartialError": 3,
    "CancelledError": 5,
}
DRAWN = re.compile(r"[ │├└─]+(?P<name>\w+Error)\b")
CLASSES = {
    name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, DneuroError)
}


def test_exit_codes__as_documented() -> None:
    assert {name: cls.exit_code for name, cls in CLASSES.items()} == CODES


def test_tree_in_the_docstring__is_the_tree() -> None:
    drawn = [match for match in map(DRAWN.match, (errors.__doc__ or "").splitlines()) if match]
    assert {match["name"] for match in drawn} == CLASSES.keys()
    for index, match in enumerate(drawn):
        above = [other["name"] for other in drawn[:index] if other.start("name") < match.start("name")]
        assert CLASSES[match["name"]].__bases__ == (CLASSES[above[-1]] if above else Exception,)


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_error__survives_a_process_border(cls: type[DneuroError]) -> None:
    error = cls("layer relu1: NaN", hint="use float32")
    error.layer = "relu1"  # type: ignore[attr-defined]
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert str(back) == "layer relu1: NaN\nhint: use float32"
    assert (back.message, back.hint, back.layer) == ("layer relu1: NaN", "use float32", "relu1")


def test_error__of_another_signature_survives_too() -> None:
    back = pickle.loads(pickle.dumps(_UnitError(7)))
    assert (str(back), back.unit) == ("unit 7 failed", 7)


class _UnitError(DneuroError):
    def __init__(self, unit: int) -> None:
        super().__init__(f"unit {unit} failed")
        self.unit = unit


def test_error__without_hint_is_one_line() -> None:
    assert str(DneuroError("what")) == "what"


def test_suggest__nearest_first_then_all_choices() -> None:
    assert nearest("rnak", ["name", "rank", "seed"])[0] == "rank"
    assert suggest("ful", ["full", "max"]) == "did you mean 'full'? choices: full, max"
    assert suggest("xyz", ["full", "max"]) == "choices: full, max"
    assert suggest("x", []) == "there are none to choose from"


def test_suggest__lists_no_more_than_its_limit() -> None:
    assert (
        suggest("zzz", (f"layer{i}" for i in range(20)), limit=2) == "choices: layer0, layer1, … (20 in all)"
    )
