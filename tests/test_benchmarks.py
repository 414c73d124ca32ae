"""RESULTS.md keeps the tables of each group."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import keeping, storage
from dneuro.quantities import MiB


def test_keep__replaces_what_has_the_same_title_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "RESULTS", tmp_path / "RESULTS.md")
    keeping.keep("svd", {"small": "a", "large": "b"})
    keeping.keep("full_size", {"50,000 images": "\n".join(["#### peak", keeping.row(["1", "2"])])})
    keeping.keep("svd", {"small": "c"})
    assert (tmp_path / "RESULTS.md").read_text().split("\n\n")[2:] == [
        "## full_size", "### 50,000 images", "#### peak\n| 1 | 2 |",
        "## svd", "### small", "c", "### large", "b\n",
    ]  # fmt: skip


def test_said__names_command_and_machine() -> None:
    said = keeping.said("benchmarks", ["svd", "--only", "a|b"])
    assert said.startswith("`python -m benchmarks svd --only 'a|b'`, Python 3.")


def test_storage__keeps_codecs_shapes_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((32, 8, 16, 16), np.float32)
    monkeypatch.setattr(keeping, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(storage, "activations", lambda *_: iter([("relu", np.maximum(values, 0)), ("conv", values)]))
    monkeypatch.setattr(storage, "REPEATS", 1)
    words = ["--photos", "photos", "--weights=weights", "--keep"]
    monkeypatch.setattr(sys, "argv", ["storage", *words])
    storage.main()
    kept = keeping._below("###", (tmp_path / "RESULTS.md").read_text())
    assert list(kept) == ["codecs and dtypes", "shapes of chunks, float32, `zstd-fast`", "errors of dtypes"]
    for text in kept.values():
        assert text.strip().startswith("`python -m benchmarks.storage --photos DIR --weights DIR --keep`, Python ")
    shapes = kept["shapes of chunks, float32, `zstd-fast`"]
    rows = [line.split(" | ") for line in shapes.splitlines() if line.startswith("|")]
    assert [len(cells) for cells in rows] == [3] * (2 + len(list(storage.shapes("zstd-fast"))))
    assert rows[0][1:] == ["relu", "conv |"]


@pytest.mark.parametrize(("said", "cut"), [
    ("4 MiB of 32, as stored", (128, 43, 13, 13)),
    ("1 MiB of 32", (128, 12, 13, 13)),
    ("16 MiB of 32", (128, 128, 13, 13)),
    ("4 MiB of 8", (32, 128, 13, 13)),
    ("1 MiB of 32, shards", (128, 8, 13, 13)),
])  # fmt: skip
def test_storage__cuts_chunks_of_the_size_that_a_row_names(said: str, cut: tuple[int, ...]) -> None:
    values = np.broadcast_to(np.float32(0), (256, 256, 13, 13))
    way = dict(storage.shapes("none"))[said]
    found, shard = storage.cut(values, way)
    assert found == cut
    assert 4 * np.prod(found) <= max(way.chunk, 4 * MiB)
    assert shard == ((128, 256, 13, 13) if way.shard else None)
