"""Whether the weights that a job trained are those that its markers speak of."""

from __future__ import annotations

from collections.abc import Iterator

from dneuro.store.catalogue import Catalogue
from dneuro.store.files import Location, local_copy, sizes
from dneuro.store.units import Unit, units_folder
from dneuro.store.verify import Finding

TRAIN = "train"
"""The folder of trained weights and their markers, and the part of a finding about them."""


def trained(path: Location, found: Catalogue) -> Iterator[Finding]:
    """Yield what is wrong with trained weights: those of the store, and all that lie beside them.

    Notes
    -----
    **Cost**: reads every file of weights once; memory of the largest.
    """
    folder = units_folder(path) / TRAIN
    marked: set[str] = set()
    for name in sorted(name.removesuffix(".done") for name in sizes(folder) if name.endswith(".done")):
        marker = Unit(folder, name).read()
        if marker is None:
            continue  # as good as none: the weights are trained again
        sha256 = str(marker.get("sha256"))
        marked.add(sha256)
        weights = folder / f"{name}.safetensors"
        if what := _differs(weights, sha256):
            yield Finding("damaged", f"{TRAIN}/{weights.name}", what, part=f"{TRAIN}/{name}")
    origin = found.attrs("")["dneuro"]
    if origin.get("trained") and origin.get("weights_sha256") not in marked:
        yield Finding("missing", TRAIN, "the weights that the job trained are not marked as done", part=TRAIN)


def _differs(weights: Location, sha256: str) -> str:
    """Return how a file of weights differs from what was trained; empty if not at all."""
    from dneuro.nets.weights import file_sha256

    if not weights.is_file():
        return "is marked as done and not there"
    try:
        with local_copy(str(weights)) as copy:
            same = file_sha256(str(copy)) == sha256
    except Exception as error:  # a damaged file may raise anything
        return f"cannot be read: {str(error) or type(error).__name__}"
    return "" if same else "what is stored is not what was trained (fingerprints differ)"
