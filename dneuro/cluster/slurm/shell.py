"""Lines of shell from a profile, which must be whole: what is open in them would go on in the rest of the script."""

from __future__ import annotations

import functools
import os
import re
import subprocess

from dneuro.errors import UsageError


@functools.cache
def whole(lines: tuple[str, ...], key: str) -> tuple[str, ...]:
    """Return lines of shell that a batch script can hold.

    Parameters
    ----------
    lines : tuple of str
        The lines; none of them is run.
    key : str
        What the profile calls them, such as ``"slurm.setup"``.

    Raises
    ------
    UsageError
        If a quote, a bracket or another part of the shell is open in the end: names the line, as bash does. Where there
        is no bash nobody can tell.
    """
    number, why = _wrong(lines)
    if why:
        raise UsageError(
            f"{key}: line {number}, {lines[number - 1]!r}, is no whole piece of shell: {why}",
            hint=f"what begins in {key} must end there; `bash -n` says the same",
        )
    return lines


def _wrong(lines: tuple[str, ...]) -> tuple[int, str]:
    """Return the number of the line that is wrong, and why; nothing if all are well."""
    known = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    text = "".join(f"{line}\n" for line in lines)
    try:
        done = subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, env=known, check=False)
    except FileNotFoundError:
        return 0, ""
    # A document that does not end is a warning alone.
    if said := re.search(r"line (\d+): (.*)", done.stderr.decode(errors="replace")):
        return min(int(said[1]), len(lines)), said[2]
    last = lines[-1] if lines else ""
    if (len(last) - len(last.rstrip("\\"))) % 2:
        return len(lines), "the backslash in the end has it go on in the next line"
    return 0, ""
