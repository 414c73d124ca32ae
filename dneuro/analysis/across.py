"""What questions about several layers have in common: results of another analysis in, a line for each layer out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from dneuro.errors import ArrayError


def cannot_name_a_part(name: str, own: Iterable[str] = ()) -> str:
    """Return why a part of a tree cannot have this name, `own` being what lies beside the parts; empty if it can."""
    if "/" in name:
        return f"{name!r} cannot name a part of the result: it has a /"
    if name in ("", ".", ".."):
        return f"{name!r} cannot name a part of the result"
    return f"{name!r} cannot name a part of the result, which has one of its own" if name in own else ""


def check_results(results: object, needed: Iterable[str], *, hint: str, own: Iterable[str] = ()) -> None:
    """Refuse what is no mapping of layers to results with these variables, or a layer called as something in `own`.

    Raises
    ------
    ArrayError
        Names the layer.
    """
    if not isinstance(results, Mapping) or isinstance(results, xr.Dataset) or not results:
        what = "an empty mapping" if results == {} else type(results).__name__
        raise ArrayError(f"expected a mapping of layers to results, got {what}", hint=f"{{'features.1': {hint}}}")
    for name, result in results.items():
        if not isinstance(name, str) or cannot_name_a_part(name):
            raise ArrayError(f"{name!r} is no name of a layer", hint="text without slashes")
        if wrong := cannot_name_a_part(name, own):
            raise ArrayError(wrong, hint=f"another name: {{'{name}_': …}}")
        if not isinstance(result, xr.Dataset):
            raise ArrayError(f"layer {name}: expected a dataset, got {type(result).__name__}", hint=hint)
        if lacking := [variable for variable in needed if variable not in result]:
            raise ArrayError(f"layer {name}: the dataset has no {', '.join(lacking)}", hint=hint)


def over_layers(names: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> xr.Dataset:
    """Return a dataset over layer, of one row of numbers for each; NaN where a layer lacks one."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    found = {name: ("layer", np.array([row.get(name, np.nan) for row in rows])) for name in columns}
    return xr.Dataset(found, coords={"layer": np.array(list(names), dtype=object)})
