"""Results of analyses: written whole, marked, and redone only when what they were computed from has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from dneuro.store.creating import add_group
from dneuro.store.units import Unit, units_folder


def unit(store: Path, step: str, layer: str) -> Unit:
    """Return the unit that one step's result for one layer is."""
    return Unit(units_folder(store) / "results" / step, layer)


def write(store: Path, step: str, layer: str, result: xr.Dataset, fingerprint: str, attrs: dict[str, Any]) -> None:
    """Write a result into ``/results/<step>/<layer>`` and mark it done.

    Parameters
    ----------
    store : Path
        The store.
    step, layer : str
        Where it goes.
    result : Dataset
        A result; if its images are fewer than the store's, give it all of them first.
    fingerprint : str
        Of what it was computed from.
    attrs : dict
        More attributes, JSON-able.
    """
    its = unit(store, step, layer)
    its.begin(0)
    add_group(store, f"results/{step}/{layer}", result.assign_attrs({**attrs, "fingerprint": fingerprint}), [])
    its.publish({"fingerprint": fingerprint})
