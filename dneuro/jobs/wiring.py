"""Steps about two layers, and the weights between layers as a labelled array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr

from dneuro import events
from dneuro.errors import NetworkError, UsageError, suggest
from dneuro.spec.network import NetworkSpec
from dneuro.spec.steps import ConnectionsStep, SourceStep
from dneuro.store.layout import LayerPlan

if TYPE_CHECKING:
    from dneuro.jobs.study import Study

DIMS = ("channel", "source_channel", "y", "x")


def weights_between(
    network: str | NetworkSpec | dict[str, Any], *, source: str, target: str, weights: str = "DEFAULT", **settings: Any
) -> xr.DataArray:
    """The weights that lead from the channels of one layer to those of a later one.

    Parameters
    ----------
    network : str, dict or NetworkSpec
        As in a job: ``"torchvision:alexnet"``.
    source, target : str
        Names of the earlier and the later layer; one convolution or linear layer lies between them (or is the later
        one), with nothing else than what works by channel: pooling, ReLU, dropout, batch norm.
    weights : str
        As in a job: ``DEFAULT``, ``none`` (random), or a file; weights behind the target may be missing.
    **settings
        More settings of the network.

    Returns
    -------
    DataArray, dims (channel, source_channel, y, x)
        float64; of a linear layer behind positions, y and x are these. Grouped convolutions are written out, 0 between
        groups; a batch norm is multiplied in. ``attrs``: layer, source, module, groups.

    Raises
    ------
    NetworkError
        If the layers do not follow each other like that; a forward pass of one random image proves that they do.

    Examples
    --------
    >>> import dneuro as dn
    >>> dict(dn.weights_between("dneuro:convnet", source="relu1", target="relu2", weights="none").sizes)
    {'channel': 20, 'source_channel': 10, 'y': 5, 'x': 5}
    """
    if isinstance(network, NetworkSpec):
        spec = network
    else:
        said = {"name": network} if isinstance(network, str) else dict(network)
        spec = NetworkSpec.model_validate({"weights": weights, **said, **settings})
    return _read(spec, source, target)


def _read(
    spec: NetworkSpec, source: str, target: str, weights: str | None = None, shape: Any = None
) -> xr.DataArray:
    from dneuro.nets.describe import check_layers, layers
    from dneuro.nets.load import load
    from dneuro.nets.wiring import weights_of, wiring

    spec = spec.model_copy(update={"device": "cpu", "precision": "float32"})
    known = layers(spec, shape)
    check_layers(known, [source, target], spec.name)
    found = wiring(known, source, target, spec.name)
    network = load(spec, weights=weights, partial_for=[source, target], input_shape=shape)
    part = network.module.get_submodule(found.module)
    attrs = {"layer": target, "source": source, "module": found.module, "groups": int(getattr(part, "groups", 1))}
    return xr.DataArray(weights_of(network, found, source, target), dims=DIMS, attrs=attrs)


def read_weights(study: Study, source: str, target: str) -> xr.DataArray:
    """Return the weights between two layers of a job's network, as they were when it was extracted."""
    return _read(study.job.network, source, target, study.weights, study.input_shape)


def stand_in_weights(study: Study, source: LayerPlan, target: str) -> xr.DataArray:
    """Return an array shaped as the weights between two layers, without numbers."""
    from dneuro.nets.catalogue import find
    from dneuro.nets.wiring import weight_shape, wiring

    found = wiring(study.layers, source.name, target, study.job.network.name)
    module = find(study.job.network).build_shapes()
    shape = weight_shape(module, found, source.shape[0])
    return xr.DataArray(da.zeros(shape, dtype=np.float64), dims=DIMS)


def source_of(study: Study, step: SourceStep, plan: LayerPlan) -> LayerPlan | None:
    """Return the earlier layer that a step asks about; None, with a note, where the layer has none.

    Raises
    ------
    UsageError
        If the layer or its source is named, and the two do not go together.
    """
    plans = list(study.plan.layers)
    place = [one.name for one in plans].index(plan.name)
    if step.source is None and place == 0:
        if step.layers:
            raise UsageError(f"step {step.id}: no layer is extracted before {plan.name}", hint="`source:`")
        return None
    name = plans[place - 1].name if step.source is None else step.source
    source = next((one for one in plans if one.name == name), None)
    if source is None:
        raise UsageError(f"step {step.id}: source {name!r} is not extracted",
                         hint=suggest(name, [one.name for one in plans]))  # fmt: skip
    if source.name == plan.name:
        if step.layers:
            raise UsageError(f"step {step.id}: {name} is its own source", hint="`source:` names an earlier layer")
        return None
    if isinstance(step, ConnectionsStep):
        from dneuro.nets.wiring import wiring

        try:
            wiring(study.layers, source.name, plan.name, study.job.network.name)
        except NetworkError as error:
            if step.layers:
                raise UsageError(f"step {step.id}: {error.message}", hint=error.hint) from None
            events.emit("note", step.id, f"leaves out layer {plan.name}: {error.message}")
            return None
    return source
