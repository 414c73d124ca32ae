"""One page over the stores of several networks or checkpoints: links to their reports, numbers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from dneuro.report import contents, overview
from dneuro.report.contents import Contents, Layer, Result
from dneuro.report.rendering import GENERATOR, copy, render
from dneuro.report.words import NOTHING, number, percent
from dneuro.report.write import check_replaceable, swapped_in

_EXPLAINED = "explained_variance_ratio"
_SELECTIVITY = {"class_selectivity": "class selectivity", "gini": "Gini index", "flatness": "flatness",
                "mf": "multi-facetedness"}  # fmt: skip
_PAIRS = ("pearson", "cosine")


@dataclass(frozen=True)
class Row:
    """One number of each member; `title` says how it was made."""

    name: str
    title: str
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """The numbers of one layer, a column for each member."""

    layer: str
    rows: list[Row]


@dataclass(frozen=True)
class Column:
    """One member."""

    name: str
    link: str | None


def write_series(name: str, members: Mapping[str, xr.DataTree], links: Mapping[str, str], out: Path) -> Path:
    """Write the page that compares the members of a job.

    Parameters
    ----------
    name : str
        Of the job.
    members : mapping of str to DataTree
        Their stores.
    links : mapping of str to str
        Their reports, relative to `out` or as URLs, of those that have one.
    out : Path
        The folder; an older report there is replaced at the end.

    Returns
    -------
    Path
        Of ``index.html``.
    """
    check_replaceable(out)
    found = {member: contents.read(tree) for member, tree in members.items()}
    columns = [Column(member, links.get(member)) for member in found]
    with swapped_in(out) as folder:
        render(
            folder, "index.html", "series.html.j2", title=name, generator=GENERATOR, searchable=False,
            columns=columns, whole=list(_whole(list(found.values()))), tables=list(_tables(list(found.values()))),
        )  # fmt: skip
        copy(folder, "style.css")
    return out / "index.html"


def _whole(members: Sequence[Contents]) -> Iterator[Row]:
    """Yield what concerns a member as a whole."""
    yield Row("Network", "as in the job", [str(one.attrs.get("network") or NOTHING) for one in members])
    yield Row("Images", "those that could be read", [f"{int(one.images.usable.sum()):,}" for one in members])
    right = [one.images.correct for one in members]
    if any(right):
        shares = [None if found is None or not found[1] else found[0] / found[1] for found in right]
        yield Row("Accuracy", "images that the network classified correctly", [percent(share) for share in shares])
    yield Row("Weights", "SHA-256", [str(one.attrs.get("weights_sha256") or NOTHING)[:12] for one in members])


def _tables(members: Sequence[Contents]) -> Iterator[Table]:
    """Yield the layers that some member has, in the order of the first that has them."""
    names = list(dict.fromkeys(layer.name for one in members for layer in one.layers))
    for name in names:
        layers = [next((layer for layer in one.layers if layer.name == name), None) for one in members]
        lines = [None if layer is None else overview.layer_line(layer) for layer in layers]
        rows = [
            Row(what, title, [NOTHING if line is None else str(getattr(line, key)) for line in lines])
            for what, title, key in (
                ("Shape", "channels × height × width of one image", "shape"),
                ("Mean activation", "average over channels", "mean"),
                ("Active", "share of values above zero, average over channels", "active"),
                ("Dead channels", "never above zero", "dead"),
            )
        ]
        found = [{} if layer is None else _numbers(layer) for layer in layers]
        for key in dict.fromkeys(key for one in found for key in one):
            rows.append(Row(*key, [number(one.get(key)) for one in found]))
        yield Table(name, rows)


def _numbers(layer: Layer) -> dict[tuple[str, str], float]:
    """Return one number per result that has one to compare, by its name and how it was made."""
    return {
        (f"{result.step}: {what}", how): value
        for result in layer.results
        if not result.recorded and result.analysis != "moments"
        for what, how, value in _compared(result)
    }


def _compared(result: Result) -> Iterator[tuple[str, str, float]]:
    data = result.data
    if _EXPLAINED in data:
        total = float(data[_EXPLAINED].sum())
        yield "variance explained", f"by the {data.sizes['component']} components together", total
    for metric in _PAIRS:
        if metric in data and data[metric].ndim == 2 and data[metric].shape[0] == data[metric].shape[1]:
            values = np.abs(np.asarray(data[metric].values, dtype=np.float64))
            np.fill_diagonal(values, np.nan)
            yield f"|{metric}|", "average over all pairs", _mean(values)
    if result.analysis == "selectivity":
        for name, words in _SELECTIVITY.items():
            if name in data:
                yield words, "average over channels", _mean(np.asarray(data[name].values, dtype=np.float64))


def _mean(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")
