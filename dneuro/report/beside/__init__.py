"""What lays the layers side by side, one file per analysis.

An analysis over several layers adds a file with ``build(result, studio) -> Table`` and a line in ``KINDS``.
"""

from __future__ import annotations

from collections.abc import Callable

from dneuro.report.beside import facets, similarity, spectra
from dneuro.report.beside.table import Table
from dneuro.report.blocks import Studio
from dneuro.report.contents import Contents, Result

KINDS: dict[str, Callable[[Result, Studio], Table]] = {"facets": facets.build, "mean_similarity": similarity.build}
"""Analyses whose result has a line for each layer."""


def tables(studio: Studio) -> list[Table]:
    """Return a table for everything that lies side by side: spectra of layers, results over layers in their order."""
    found = [result for result in studio.contents.loose if shows(result)]
    return [*spectra.tables(studio), *(KINDS[result.analysis](result, studio) for result in found)]


def there(contents: Contents) -> bool:
    """Return whether there is anything to lay side by side."""
    return spectra.there(contents) or any(shows(result) for result in contents.loose)


def shows(result: Result) -> bool:
    """Return whether a result that names no layer is shown here."""
    return result.analysis in KINDS and "layer" in result.data.coords
