"""A network with its weights, ready to look into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from dneuro.errors import NetworkError
from dneuro.nets.catalogue import CONVNET, Architecture, find, kind_of_weights
from dneuro.nets.describe import check_layers, trace
from dneuro.nets.device import parse_device, seeded
from dneuro.nets.fit import attach, fit
from dneuro.nets.weights import State, fetch, read_state, state_sha256
from dneuro.spec.network import NetworkSpec, Preprocessing


@dataclass
class Network:
    """A network with its weights.

    Parameters
    ----------
    module : torch.nn.Module
        In eval mode, on the device that the job names, parameters without gradients.
    name : str
        As in the job: ``torchvision:alexnet``.
    weights_sha256 : str
        Fingerprint of the weights: the same for the same weights, whatever file they came in.
    preprocessing : Preprocessing
        How a picture becomes its input.
    input_shape : (int, int, int)
        Channels, height and width of its input; where the preprocessing leaves the size to the pictures, the
        size that the network was made for.
    classes : int or None
        Length of its output if that is (batch, classes) and all weights are there.
    class_names : list of str or None
        What the outputs stand for, where torchvision says so.
    notes : list of str
        What the user should know about the weights.
    """

    module: nn.Module
    name: str
    weights_sha256: str
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int]
    classes: int | None
    class_names: list[str] | None
    notes: list[str] = field(default_factory=list)


def load(
    spec: NetworkSpec, *, weights: str | None = None, partial_for: Sequence[str] | None = None
) -> Network:
    """Build a network and give it its weights.

    Parameters
    ----------
    spec : NetworkSpec
        Name, weights, device and the rest.
    weights : str, optional
        Stands in for ``spec.weights``, for weights that were trained in the job.
    partial_for : sequence of str, optional
        Layers: weights that are used only after the last of them may be missing. What is missing takes no
        memory, and the network then has no `classes`.

    Returns
    -------
    Network
        The caller's own; torch's random state is as before.

    Raises
    ------
    NetworkError
        If the network, a layer of `partial_for` or the device is unknown, the preprocessing does not fit the
        network, or the weights cannot be had or do not fit.

    Notes
    -----
    Cost: one copy of the weights in memory, and one pass of SHA-256 over them.
    """
    device = parse_device(spec.device)
    weights = spec.weights if weights is None else weights
    kind = kind_of_weights(weights)
    architecture = find(spec, weights)
    module = architecture.build_shapes()
    steps = trace(module, architecture.input_shape, spec.name)
    if partial_for is not None:
        check_layers(steps.layers, partial_for, spec.name)
    skipped: list[str] = []
    if kind == "none":
        with seeded(spec.seed):
            module = architecture.build().eval()
        state = module.state_dict()
        notes = [f"the weights are random (seed {spec.seed})"]
    else:
        path = weights if kind == "file" else _fetch_default(spec, architecture)
        given = read_state(path)
        needed = steps.needs(partial_for) if partial_for else None
        state, skipped = fit(module, given, f"{path} does not fit {spec.name}", needed)
        notes = _notes(given, state, skipped)
    digest = state_sha256(state)
    attach(module, state, device)
    classes = None if skipped else steps.classes
    return Network(
        module=module.requires_grad_(False),
        name=spec.name,
        weights_sha256=digest,
        preprocessing=architecture.preprocessing,
        input_shape=architecture.input_shape,
        classes=classes,
        class_names=None if kind == "none" else _class_names(architecture, classes),
        notes=notes,
    )


def _fetch_default(spec: NetworkSpec, architecture: Architecture) -> str:
    if architecture.standard is None:
        raise NetworkError(
            f"{CONVNET} comes without weights",
            hint="train it: `- train: {epochs: 2}` as the first step; or take random ones: weights: none",
        )
    published = len(architecture.standard.meta["categories"])
    if spec.classes not in (None, published):
        raise NetworkError(
            f"the weights that torchvision has for {spec.name} are for {published} classes, "
            f"the job says classes: {spec.classes}",
            hint="leave `classes:` out, or give weights of your own: weights: /path/to/weights.safetensors",
        )
    return str(fetch(architecture.standard))


def _notes(given: State, state: State, skipped: list[str]) -> list[str]:
    notes = []
    stored = {str(given[key].dtype) for key in given if key in state and given[key].dtype != state[key].dtype}
    if stored:
        notes.append(f"weights stored as {', '.join(sorted(stored))} are used as float32")
    if skipped:
        parts = sorted({key.rpartition(".")[0] for key in skipped})
        shown = ", ".join(parts[:4]) + (f", … ({len(parts)} in all)" if len(parts) > 4 else "")
        notes.append(f"no weights for {shown}: not needed for these layers, but there are no predictions")
    return notes


def _class_names(architecture: Architecture, classes: int | None) -> list[str] | None:
    names = architecture.standard.meta["categories"] if architecture.standard is not None else []
    return list(names) if classes is not None and len(names) == classes else None
