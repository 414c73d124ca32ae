from __future__ import annotations

import json
import threading
import time

import pytest

from dneuro import events
from dneuro.events import Event, emit, listening


def test_emit__reaches_every_listener_in_the_block_and_none_after() -> None:
    outer: list[Event] = []
    inner: list[Event] = []
    emit("note", message="nobody hears this")
    with listening(outer.append):
        emit("started", "svd", total=3, what="blocks")
        with listening(inner.append):
            emit("progress", "svd", done=1, total=3, what="blocks")
        emit("finished", "svd")
    emit("note", message="nor this")
    assert [event.kind for event in outer] == ["started", "progress", "finished"]
    assert [(event.kind, event.done, event.total, event.what) for event in inner] == [
        ("progress", 1, 3, "blocks")
    ]


def test_listening__ends_with_an_error_too() -> None:
    seen: list[Event] = []
    with pytest.raises(RuntimeError), listening(seen.append):
        raise RuntimeError
    emit("note")
    assert seen == []


def test_listener__that_fails_is_heard() -> None:
    def fail(event: Event) -> None:
        raise ValueError(event.message)

    with listening(fail), pytest.raises(ValueError, match="disk full"):
        emit("warning", message="disk full")


def test_listening__belongs_to_its_context() -> None:
    seen: list[Event] = []
    with listening(seen.append):
        other = threading.Thread(target=emit, args=("note",))
        other.start()
        other.join()
    assert seen == [], "another thread's run is another run"


def test_emit__without_listeners_makes_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "Event", None)
    emit("progress", done=1)


def test_event__is_a_json_line() -> None:
    before = time.time()
    line = json.loads(json.dumps(Event("note", "svd", "half way", data={"rank": 8}).to_dict()))
    assert before <= line.pop("time") <= time.time()
    assert line == {
        "kind": "note",
        "step": "svd",
        "message": "half way",
        "parent": "",
        "done": 0,
        "total": 0,
        "what": "",
        "data": {"rank": 8},
    }


def test_pace__forgets_a_slow_beginning_and_what_was_done_before() -> None:
    pace = events.Pace()
    assert pace.rate == 0.0
    pace.take(Event("started", "extract", done=1000, time=0.0))
    assert pace.rate == 0.0
    for seconds in range(10, 41):  # ten seconds until the first image, five a second from then on
        pace.take(Event("progress", "extract", done=1000 + 5 * (seconds - 10), time=float(seconds)))
    assert pace.rate == pytest.approx(5.0)
    pace.take(Event("started", "extract", done=0, time=100.0))
    pace.take(Event("progress", "extract", done=8, time=104.0))
    assert pace.rate == pytest.approx(2.0), "of this attempt"
