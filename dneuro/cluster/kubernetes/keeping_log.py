"""Run a command, and add what it prints to a file, too: a pod's own log goes with the pod."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run(log: Path, command: Sequence[str]) -> int:
    """Return the command's exit code as a shell would; signals to end are passed on to it.

    Should the file not be writable, the command runs all the same and its output goes to the pod's log only.
    """
    process = subprocess.Popen(list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def pass_on(number: int, frame: Any) -> None:
        process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    assert process.stdout is not None
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file: Any = log.open("ab", buffering=0)
    except OSError as error:
        sys.stderr.write(f"note: {log} cannot be written: {error.strerror}\n")
        file = None
    with process.stdout:
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            file = _add(file, line)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _add(file: Any, line: bytes) -> Any:
    try:
        if file is not None:
            file.write(line)
    except OSError:  # a full disk does not end the driver, which says so itself
        return None
    return file


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
