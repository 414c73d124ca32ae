"""Where profiles and jobs that come with dneuro lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def shipped(kind: str) -> list[Path]:
    """Return the folders in which ``cluster`` or ``jobs`` files are looked for, in order.

    The folder of that name here, then the one that was installed, then the one of a source tree.
    """
    return [Path(kind), Path(sys.prefix) / "share" / "dneuro" / kind, Path(__file__).parents[2] / kind]


def profile_folders() -> list[Path]:
    """Return the folders in which a profile is looked for by its name."""
    own = os.environ.get("DNEURO_PROFILE_DIR")
    return [*([Path(own)] if own else []), *shipped("cluster")]
