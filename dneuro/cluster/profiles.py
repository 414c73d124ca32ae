"""Where profiles and jobs that come with dneuro lie."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path


def shipped(kind: str) -> list[Path]:
    """Return the folders in which ``cluster`` or ``jobs`` files are looked for, in order.

    The folder of that name here, then the one that was installed, then the one of a source tree.
    """
    return list(dict.fromkeys([Path(kind), *_installed(kind), Path(__file__).parents[2] / kind]))


def _installed(kind: str) -> Iterator[Path]:
    """Yield where an installer has put the files: which folder that is, is its own to say."""
    from importlib import metadata

    try:
        files = metadata.files("dneuro") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.parts[-4:-1] == ("share", "dneuro", kind):
            yield Path(os.path.normpath(os.fspath(file.locate()))).parent
    # pip install --target moves them, and does not say so; a system's packages may have no list at all.
    for place in (Path(__file__).parents[2], Path(sys.prefix)):
        yield place / "share" / "dneuro" / kind


def profile_folders() -> list[Path]:
    """Return the folders in which a profile is looked for by its name."""
    own = os.environ.get("DNEURO_PROFILE_DIR")
    return [*([Path(own)] if own else []), *shipped("cluster")]
