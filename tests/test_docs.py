"""What the documents show is run, and prints what they say it prints."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [path for path in sorted(ROOT.rglob("*.md")) if "/." not in f"/{path.relative_to(ROOT)}"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_readme__program_prints_what_is_shown(tmp_path: Path) -> None:
    blocks = BLOCK.findall(README)
    at = next(i for i, (language, _) in enumerate(blocks) if language == "python")
    program, (kind, shown) = blocks[at][1], blocks[at + 1]
    assert kind == "text", "the output follows the program"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:dneuro", "-c", program],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown


def test_readme__complete_program_stands_on_the_first_screen() -> None:
    assert README[: README.index("```python")].count("\n") < 40


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents__links_and_pictures_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_documents__job_examples_are_jobs() -> None:
    from dneuro.spec import parse_study

    for path in ("README.md", "jobs/README.md"):
        for language, text in BLOCK.findall((ROOT / path).read_text()):
            if language == "yaml" and "steps" in yaml.safe_load(text):
                assert parse_study(text, path).steps


def test_makefile__commands_of_the_readme_are_there() -> None:
    rules = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake (\w+)", README))
    assert {"demo", "test"} <= named <= rules


def test_analyses__examples_run_and_name_every_analysis(tmp_path: Path) -> None:
    import dneuro
    from dneuro.analysis import ACROSS, ANALYSES, COUPLED

    text = (ROOT / "docs" / "analyses.md").read_text()
    program = "".join(code for language, code in BLOCK.findall(text) if language == "python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    analyses = {*ANALYSES, *COUPLED, *ACROSS}
    for name in {*analyses, "ica", "gini", "spectral_flatness", "class_selectivity", "plan", "select"}:
        assert name in dneuro.__all__
        assert f"dn.{name}(" in program or f"dn.{name}(" in text, name
        assert re.search(rf"^\|[^|]*`{name}`", text, re.MULTILINE) or name in ("plan", "select"), name


SHOWING = [path for path in sorted((ROOT / "dneuro").rglob("*.py")) if ">>>" in path.read_text()]


@pytest.mark.parametrize("path", SHOWING, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings__examples_give_what_they_show(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name), verbose=False)
    assert found.attempted > 0
    assert found.failed == 0


def test_jobs__keys_of_every_step_are_listed() -> None:
    from dneuro.spec.steps import STEPS

    text = (ROOT / "jobs" / "README.md").read_text()
    factorisation = set(STEPS["nmf"].model_fields)
    for kind, step in STEPS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{kind}` |"))
        listed = set(re.findall(r"`(\w+)`", row)) | (factorisation if "those of `nmf`" in row else set())
        assert set(step.model_fields) - {"name", "workers", "device", "tf32", "select"} <= listed, kind
