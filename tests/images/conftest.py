from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture() -> np.ndarray:
    """A colour picture without symmetry: any swap of axes or channels shows."""
    return np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes small PNG files, ``make_folder("cat/a.png", "dog/b.png")``."""

    def make(*names: str, root: str = "photos") -> Path:
        for number, name in enumerate(names):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 5), number, np.uint8)).save(path, format="PNG")
        return tmp_path / root

    return make


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that packs a folder into a tar, ``make_tar(root, name="photos.tar", format=…)``."""

    def make(root: Path, name: str = "photos.tar", kind: int = tarfile.PAX_FORMAT, below: str = "") -> Path:
        with tarfile.open(tmp_path / name, "w", format=kind) as tar:
            for path in sorted(root.rglob("*"), reverse=True):  # not in the order of names
                tar.add(path, f"{below}{path.relative_to(root)}", recursive=False)
        return tmp_path / name

    return make
