"""A driver that is a process of this machine is known again, and taken for no other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dneuro.cluster import DriverRef, births, processes
from dneuro.cluster.births import birth_of, is_alive


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[DriverRef]:
    found = processes.start("local", tmp_path, [sys.executable, "-c", "import time; time.sleep(600)"])
    yield found
    processes.stop(found, 10)


def test_driver__lives_though_the_clock_was_set(driver: DriverRef, monkeypatch: pytest.MonkeyPatch) -> None:
    process = psutil.Process(int(driver.id))
    began, boot = psutil.Process.create_time, psutil.boot_time()
    with monkeypatch.context() as later:
        later.setattr(psutil.Process, "create_time", lambda self: began(self) - 7)
        later.setattr(psutil, "boot_time", lambda: boot - 7)
        assert processes.state(driver) == "running"
        processes.stop(driver, 10)
        assert processes.state(driver) == "gone"
    assert not process.is_running()


@pytest.mark.parametrize("other", [{"ticks": 1}, {"boot_id": "another start of the machine"}])
def test_process__of_the_same_number_is_another_one(driver: DriverRef, other: dict[str, Any]) -> None:
    birth = birth_of(int(driver.id))
    assert is_alive(int(driver.id), birth)
    assert not is_alive(int(driver.id), {**birth, **other})


@pytest.mark.parametrize("shift", [{"started": 7.0}, {"boot": 7.0}, {}])
def test_process__is_known_by_the_clock_where_there_is_nothing_else(
    driver: DriverRef, shift: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(births, "_PROC", tmp_path)
    birth = birth_of(int(driver.id))
    assert (birth["ticks"], birth["boot_id"]) == (None, None)
    moved = {key: birth[key] + shift.get(key, 0) for key in ("started", "boot")}
    assert is_alive(int(driver.id), {**birth, **moved}) == (not shift)


def test_process__that_has_ended_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    birth = birth_of(child.pid)
    child.communicate(b"\n")
    assert not is_alive(child.pid, birth)
    assert birth_of(child.pid)["started"] == 0
