"""A claim is one process's, until that takes it away or is dead."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dneuro.cluster.births import birth_of
from dneuro.cluster.claims import FRESH, claimed
from dneuro.errors import BusyError


@pytest.fixture
def dead() -> dict[str, Any]:
    """What a process has written that has ended since."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    who = {"host": socket.gethostname(), "pid": process.pid, **birth_of(process.pid)}
    process.communicate()
    return who


def leave(place: Path, who: dict[str, Any] | None, age: float = 0.0) -> Path:
    path = place.with_name(f".{place.name}.claim-1")
    path.write_text("" if who is None else json.dumps(who))
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    return path


def test_claim__is_held_while_the_block_lasts_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    for _ in range(2):
        with claimed(place, "mine is being made"):
            with (
                pytest.raises(BusyError, match=f"mine is being made by process {os.getpid()}"),
                claimed(place, "mine is being made"),
            ):
                raise AssertionError("it is claimed")
            with claimed(tmp_path / "mine.2", "another is being made"):
                pass
        assert list(tmp_path.iterdir()) == []


def test_claim__of_a_dead_process_is_taken_over(tmp_path: Path, dead: dict[str, Any]) -> None:
    left = leave(tmp_path / "mine", dead)
    with claimed(tmp_path / "mine", "mine is being made"):
        assert not left.exists()
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_claim__of_another_machine_is_left_to_whoever_can_tell(tmp_path: Path, dead: dict[str, Any]) -> None:
    left = leave(tmp_path / "mine", {**dead, "host": "elsewhere"}, age=1e6)
    with (
        pytest.raises(BusyError, match=rf"by process {dead['pid']} on elsewhere, and from here nobody") as caught,
        claimed(tmp_path / "mine", "mine is being made"),
    ):
        raise AssertionError("it may be claimed")
    assert f"rm {left}" in str(caught.value.hint)
    left.unlink()
    with claimed(tmp_path / "mine", "mine is being made"):
        pass


def test_claim__that_says_nothing_counts_while_it_is_new(tmp_path: Path) -> None:
    leave(tmp_path / "mine", None)
    with pytest.raises(BusyError, match="by another process"), claimed(tmp_path / "mine", "mine is being made"):
        raise AssertionError("it may be claimed")
    leave(tmp_path / "mine", None, age=2 * FRESH)
    with claimed(tmp_path / "mine", "mine is being made"):
        pass


@pytest.mark.parametrize("after_a_dead_one", [False, True])
def test_claim__of_several_at_once_is_given_to_one(
    tmp_path: Path, dead: dict[str, Any], after_a_dead_one: bool
) -> None:
    if after_a_dead_one:
        leave(tmp_path / "mine", dead)
    count, results, lock = 8, [], threading.Lock()
    begin, all_tried = threading.Barrier(count), threading.Event()

    def attempt() -> None:
        begin.wait()
        try:
            with claimed(tmp_path / "mine", "mine is being made"):
                note("held")
                all_tried.wait(60)
        except BusyError:
            note("refused")

    def note(result: str) -> None:
        with lock:
            results.append(result)
            if len(results) == count:
                all_tried.set()

    threads = [threading.Thread(target=attempt) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", *["refused"] * (count - 1)]
    assert list(tmp_path.iterdir()) == []
