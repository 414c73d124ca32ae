"""A network with its weights, ready to look into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dneuro.errors import NetworkError
from dneuro.nets.architecture import Architecture, Shape
from dneuro.nets.catalogue import CONVNET, find, kind_of_weights
from dneuro.nets.describe import Trace, check_layers, trace
from dneuro.nets.device import parse_device, room_on, seeded
from dneuro.nets.fit import attach, fit, leave_file
from dneuro.nets.layout import Format, arrange
from dneuro.nets.precision import Precision, check_precision
from dneuro.nets.weights import State, fetch, read_state, state_sha256
from dneuro.spec.network import EXPORT, NetworkSpec, Preprocessing


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
    identity : str
        What the network is, whatever its weights: its name, or a hash of the user's code or file. With
        `weights_sha256` and `preprocessing` it tells what activations depend on.
    dims : dict
        What the axes of each layer's output are, as in `dneuro.nets.describe.Layer`.
    memory_format : str
        ``channels_last`` or ``contiguous``: how its convolutions hold their numbers.
    device : torch.device
        Where it runs.
    precision : str
        What it computes in.
    compile : bool
        Whether it is to run as compiled programs.
    programs : dict
        Those made so far (`dneuro.nets.compiled`).
    """

    module: nn.Module
    name: str
    weights_sha256: str
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int]
    classes: int | None
    class_names: list[str] | None
    notes: list[str] = field(default_factory=list)
    identity: str = ""
    dims: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    memory_format: Format = "contiguous"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "float32"
    compile: bool = False
    programs: dict[Any, nn.Module] = field(default_factory=dict)


def load(
    spec: NetworkSpec,
    *,
    weights: str | None = None,
    partial_for: Sequence[str] | None = None,
    input_shape: Shape | None = None,
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
    input_shape : (int, int, int), optional
        Channels, height and width of the images, where the preprocessing leaves them to the pictures and the
        network was made for none in particular.

    Returns
    -------
    Network
        The caller's own; torch's random state is as before.

    Raises
    ------
    NetworkError
        If the network, a layer of `partial_for` or the device is unknown, the preprocessing is not known or does
        not fit the network, or the weights cannot be had or do not fit.
    DeviceError
        If the device has no room for them.

    Notes
    -----
    Cost: one copy of the weights in memory, and one pass of SHA-256 over them. A network made by the user's
    Python runs over six images of zeros.
    """
    device = parse_device(spec.device)
    check_precision(spec.precision, device)
    weights = spec.weights if weights is None else weights
    architecture = find(spec, weights)
    preprocessing, shape = architecture.needed_preprocessing, input_shape or architecture.needed_shape
    module = architecture.build_shapes()
    steps = trace(module, shape, spec.name, shapes=architecture.shapes)
    if partial_for is not None:
        check_layers(steps.layers, partial_for, spec.name)
    _check_classes(spec, steps)
    module, state, skipped, notes = _with_weights(spec, weights, architecture, module, steps, partial_for)
    digest = state_sha256(state)
    with room_on(device, batch=0):
        if architecture.module is not None and kind_of_weights(weights) != "file":
            module.to(device)
        else:
            attach(module, state, device)
    module.requires_grad_(False)
    known = architecture.module is None
    memory_format = arrange(module, spec.memory_format, shape, known=known, network=spec.name)
    if device.type == "cpu":
        leave_file(module, state)
    classes = None if skipped else steps.classes
    return Network(
        module=module,
        name=spec.name,
        weights_sha256=digest,
        preprocessing=preprocessing,
        input_shape=shape,
        classes=classes,
        class_names=None if kind_of_weights(weights) == "none" else _class_names(architecture, classes),
        notes=[*architecture.notes, *notes],
        identity=architecture.identity,
        dims={name: layer.dims for name, layer in steps.layers.items()},
        memory_format=memory_format,
        device=device,
        precision=spec.precision,
        compile=spec.compile,
    )


def _with_weights(
    spec: NetworkSpec,
    weights: str,
    architecture: Architecture,
    module: nn.Module,
    steps: Trace,
    partial_for: Sequence[str] | None,
) -> tuple[nn.Module, State, list[str], list[str]]:
    """Return the network, the state to attach to it, the keys that are missing and not needed, and notes."""
    kind = kind_of_weights(weights)
    if kind == "none":
        if architecture.module is None:
            with seeded(spec.seed):
                module = architecture.build().eval()
        elif spec.name.startswith(EXPORT):
            architecture.build()  # says why it cannot be
        return module, _state(spec, module), [], [f"the weights are random (seed {spec.seed})"]
    if kind == "DEFAULT" and architecture.module is not None:
        made = not spec.name.startswith(EXPORT)
        notes = [f"the weights are those that {spec.name} returns (seed {spec.seed})"] if made else []
        return module, _state(spec, module), [], notes
    path = weights if kind == "file" else _fetch_default(spec, architecture)
    given = read_state(path)
    _state(spec, module)
    needed = users = None
    if partial_for:
        needed, users = steps.needs(partial_for), partial(_split, steps, partial_for)
    state, skipped = fit(module, given, f"{path} does not fit {spec.name}", needed, users)
    for key in skipped:  # what a factory put there is not what the file is about
        state[key] = state[key].to("meta")
    return module, state, skipped, _notes(given, state, skipped)


def _split(steps: Trace, wanted: Sequence[str], keys: list[str]) -> tuple[list[str], list[str]]:
    """Return which of the layers need one of the keys, and which do not."""
    users = steps.users(keys, wanted)
    return users, [name for name in wanted if name not in users]


def _state(spec: NetworkSpec, module: nn.Module) -> State:
    """Return a network's own state; refuse one that holds something else than tensors."""
    state: dict[str, object] = module.state_dict()
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise NetworkError(
            f"the state of {spec.name} holds {odd[0]}, which is no tensor",
            hint="a network whose state_dict() has tensors only, such as one that is not quantized",
        )
    return state  # type: ignore[return-value]


def _check_classes(spec: NetworkSpec, steps: Trace) -> None:
    if spec.classes is not None and steps.classes is not None and steps.classes != spec.classes:
        raise NetworkError(
            f"{spec.name} has {steps.classes} outputs, the job says classes: {spec.classes}",
            hint=f"network: {{classes: {steps.classes}}}, or leave it out",
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
