"""What docs/images.md says is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from dneuro.images.decode import MAX_PIXELS
from dneuro.images.imagenet import imagenet_classes
from dneuro.images.table import COLUMNS, read_table
from dneuro.spec.images import SOURCES, ImagesSpec

PAGE = (Path(__file__).parents[2] / "docs/images.md").read_text(encoding="utf-8")
JOBS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", JOBS)
def test_page__its_jobs_can_be_read(text: str):
    TypeAdapter(ImagesSpec).validate_python(yaml.safe_load(text)["images"])


def test_page__names_every_source_and_shows_most():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(SOURCES)
    shown = {yaml.safe_load(text)["images"]["source"] for text in JOBS}
    assert shown == set(SOURCES) - {"digits"}


def test_page__its_table_can_be_read():
    (table,) = re.findall(r"```csv\n(.*?)```", PAGE, re.DOTALL)
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2)]
    labels = imagenet_classes().of_table(read_table("labels.csv", names, "/data", table.encode())).labels
    assert labels.tolist() == [imagenet_classes().wnids.index(wnid) for wnid in ("n01751748", "n09193705")]
    assert all(f"`{names[0]}`" in PAGE for kind, names in COLUMNS.items() if kind != "file")


def test_page__its_numbers_are_the_codes():
    assert imagenet_classes().wnids[701] == "n03888257"
    assert imagenet_classes().names[701] == "parachute"
    assert f"{MAX_PIXELS:,} pixels" in PAGE
