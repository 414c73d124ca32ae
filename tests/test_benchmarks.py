"""RESULTS.md keeps the tables of each group."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import keeping


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
