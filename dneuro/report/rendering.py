"""From values to HTML files."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

GENERATOR = '<meta name="generator" content="dneuro report">'
"""What marks a page as one of these; only a folder with it is ever replaced."""


def render(folder: Path, file: str, template: str, **values: Any) -> None:
    """Write a page; links in it are relative to the folder of the report, wherever the page lies below it."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _environment().get_template(template).render(root="../" * file.count("/"), **values)
    # A file name that is no Unicode cannot be written as such; the page shows a replacement sign.
    path.write_text(text, encoding="utf-8", errors="replace")


def copy(folder: Path, file: str) -> None:
    """Write a file of the package, such as the style sheet, as it is."""
    text = files("dneuro.report").joinpath("templates", file).read_text(encoding="utf-8")
    (folder / file).write_text(text, encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("dneuro.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
