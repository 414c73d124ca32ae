"""Who has started machines ends them also when it is told to end, or its terminal is closed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import dneuro as dn
from dneuro.cluster.local import LocalBackend
from dneuro.cluster.signals import ENDS, ended_by_signals


@pytest.fixture(autouse=True)
def default() -> Iterator[None]:
    """Nobody has a handler."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal__ends_the_block_as_ctrl_c_does(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGHUP, signal.SIGHUP), (signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM, signal.SIGHUP)],
)
def test_end__may_be_said_twice(first: signal.Signals, second: signal.Signals) -> None:
    """By the terminal and by the shell, or by what ends a session."""
    ended = []
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        try:
            signal.raise_signal(first)
        finally:
            signal.raise_signal(second)  # in the midst of ending machines
            ended.append("machines")
    assert ended == ["machines"]
    assert [signal.getsignal(number) for number in ENDS] == [signal.SIG_DFL] * 2


def test_second_polite_kill__interrupts_as_a_second_ctrl_c_does() -> None:
    ended = []
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            ended.append("machines")
    assert ended == []


def test_hangup__that_is_ignored_ends_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
    with ended_by_signals():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_handlers__of_the_program_are_its_own() -> None:
    seen: list[int] = []
    for number in ENDS:
        signal.signal(number, lambda number, frame: seen.append(number))
    with ended_by_signals():
        for number in ENDS:
            signal.raise_signal(number)
    assert seen == list(ENDS)


def test_block__in_another_thread_has_no_signals() -> None:
    done: list[str] = []

    def work() -> None:
        with ended_by_signals():
            done.append("work")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert done == ["work"]


def test_open_cluster__ends_its_machines_when_the_terminal_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []

    @contextlib.contextmanager
    def open_noted(self: LocalBackend, **settings: Any) -> Iterator[SimpleNamespace]:
        try:
            yield SimpleNamespace(client="client")
        finally:
            ended.append(signal.getsignal(signal.SIGHUP))

    monkeypatch.setattr(LocalBackend, "open", open_noted)
    with pytest.raises(KeyboardInterrupt), dn.open_cluster("local") as client:
        assert client == "client"
        signal.raise_signal(signal.SIGHUP)
    assert ended == [signal.SIG_IGN], "and the next one does not interrupt that"
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
