from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Collection
from typing import Any

import pytest

from dneuro.engine.window import Window, each


class Pending:
    """A future that ends when the executor says so."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.cancelled = False

    def result(self) -> Any:
        return self.call()

    def cancel(self) -> None:
        self.cancelled = True


class Controlled:
    """An executor that ends one task at a time, any of them."""

    slots_per_process = memory = driver_memory = process_bytes = 1

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.started: list[Any] = []
        self.most = 0
        self.random = random.Random(0)

    def submit(self, function: Callable[..., Any], *args: Any) -> Pending:
        self.started.append(args)
        return Pending(lambda: function(*args))

    def wait(self, futures: Collection[Pending]) -> set[Pending]:
        self.most = max(self.most, len(futures))
        return {self.random.choice(list(futures))}

    def stop(self, token: str, futures: Collection[Pending]) -> None:
        for future in futures:
            future.cancel()

    def share(self, thing: Any) -> Any:
        return thing


def test_window__never_more_than_two_tasks_per_slot() -> None:
    executor = Controlled(slots=3)
    ended = {key: future.result() for key, future in each(executor, ((i, pow, (i, 2)) for i in range(50)))}
    assert ended == {i: i * i for i in range(50)}
    assert executor.most == 6


def test_window__asks_for_a_task_only_when_there_is_room() -> None:
    executor, asked = Controlled(slots=2), []

    def calls() -> Any:
        for i in range(20):
            asked.append(i)
            yield i, abs, (i,)

    for count, _ in enumerate(each(executor, calls())):
        assert len(asked) <= min(20, count + 4)
    assert len(asked) == 20


def test_window__what_is_added_goes_ahead_of_what_is_to_come() -> None:
    executor = Controlled(slots=1)
    window: Window[int] = Window(executor, ((i, abs, (i,)) for i in range(5)))
    for key, _ in window:
        if key < 5:
            window.add(key + 100, abs, key + 100)
    assert sorted(args[0] for args in executor.started) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
    order = [args[0] for args in executor.started]
    assert order.index(100) < order.index(4)


def test_window__follows_a_cluster_that_grows() -> None:
    executor = Controlled(slots=1)
    for count, _ in enumerate(each(executor, ((i, abs, (i,)) for i in range(30)))):
        executor.slots = 1 if count < 10 else 4
    assert executor.most == 8


def test_window__closing_cancels_what_is_in_flight() -> None:
    executor = Controlled(slots=2)
    window: Window[int] = Window(executor, ((i, abs, (i,)) for i in range(50)))
    flying: list[Pending] = []
    submit = executor.submit
    executor.submit = lambda *call: flying.append(submit(*call)) or flying[-1]  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(RuntimeError), contextlib.closing(iter(window)) as ended:
        for _, future in ended:
            flying.remove(future)
            raise RuntimeError
    assert len(flying) == 3
    assert all(future.cancelled for future in flying)


def test_window__an_error_while_tasks_are_made_cancels_the_others() -> None:
    executor = Controlled(slots=2)
    futures: list[Pending] = []
    submit = executor.submit
    executor.submit = lambda *call: futures.append(submit(*call)) or futures[-1]  # type: ignore[method-assign,func-returns-value]

    def calls() -> Any:
        yield 0, abs, (0,)
        raise OSError("the array is gone")

    with pytest.raises(OSError, match="the array is gone"):
        list(Window(executor, calls()))
    assert [future.cancelled for future in futures] == [True]
