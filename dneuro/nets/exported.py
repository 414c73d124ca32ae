"""Networks in files of torch.export: ``export:path/to/network.pt2``.

The module that runs such a graph has the modules of the original network as *places*: they hold its parameters, and
what a leaf module yielded passes through its place. So layers have their old names, and hooks see them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dneuro.errors import NetworkError
from dneuro.nets.aliases import views_to_copy
from dneuro.nets.architecture import Architecture, Shape, check_channels, shape_made_by
from dneuro.nets.archive import Archive, UnfitError, unreadable
from dneuro.nets.calls import Place
from dneuro.nets.program import Limits, Program, SameDevice, Value, read_program
from dneuro.nets.traced import layers_of
from dneuro.spec.network import EXPORT, NetworkSpec

DYNAMIC = "torch.export.export(model.eval(), (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))"
"""How to export a network for any number of images."""


def find(spec: NetworkSpec) -> Architecture:
    """Return the network of a ``.pt2`` file, with its weights.

    Raises
    ------
    NetworkError
        If the file cannot be used, was exported for one number of images, or the preprocessing makes images of
        another size.
    """
    path = Path(spec.name.removeprefix(EXPORT))
    program, module, identity = _read(path)
    _check_batch(spec.name, program.sizes)
    _, (_, channels, _), *sides = program.sizes
    height, width = (usual for _, usual, _ in sides)
    shape = (channels, height, width)
    if spec.preprocessing is not None:
        check_channels(spec.name, channels, spec.preprocessing)
        shape = shape_made_by(spec.preprocessing, (height, width))
        _check_sides(spec.name, shape, sides)
    return Architecture(
        name=spec.name,
        identity=identity,
        build=lambda: _refuse_to_build(spec.name),
        preprocessing=spec.preprocessing,
        input_shape=shape,
        module=module,
    )


def _read(path: Path) -> tuple[Program, ExportedNetwork, str]:
    """Return the graph, the module that runs it, and a hash of graph and constants."""
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise NetworkError(f"exported network {path} {what}", hint="export:/path/to/network.pt2")
    try:
        with Archive(path) as archive:
            name, graph = archive.model()
            program = read_program(graph)
            constants = archive.tensors(name, "constants")
            module = ExportedNetwork(program, {**constants, **archive.tensors(name, "weights")}).eval()
    except UnfitError as error:
        raise unreadable(path, *error.args) from error
    except Exception as error:  # a damaged or hostile file may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise unreadable(path, f"it is damaged, or no file of torch.export ({reason})") from error
    digest = hashlib.sha256(graph)
    for key in sorted(constants):
        digest.update(f"{key} {constants[key].dtype}".encode())
        digest.update(constants[key].reshape(-1).view(torch.uint8).numpy().data)
    return program, module, f"{EXPORT} sha256:{digest.hexdigest()}"


def _check_batch(name: str, sizes: list[Limits]) -> None:
    if len(sizes) != 4:
        raise NetworkError(
            f"{name} takes an input of {len(sizes)} dimensions, not images (batch, channel, y, x)",
            hint="export a network that takes pictures",
        )
    low, _, high = sizes[0]
    if low == high:
        images = "1 image" if low == 1 else f"{low} images"
        raise NetworkError(
            f"{name} was exported for batches of exactly {images}",
            hint=f"export it for any number, with an example of 2 or more: {DYNAMIC}",
        )


def _check_sides(name: str, shape: Shape, sides: list[Limits]) -> None:
    for made, (low, usual, high) in zip(shape[1:], sides, strict=True):
        if made < low or (high is not None and made > high):
            wanted = "×".join(str(size) for _, size, _ in sides)
            given = "×".join(map(str, shape[1:]))
            raise NetworkError(
                f"{name} was exported for images of {wanted}, preprocessing makes {given}",
                hint=f"preprocessing: {{crop: {usual}}}, or export it with dynamic height and width",
            )


def _refuse_to_build(name: str) -> nn.Module:
    raise NetworkError(
        f"{name} comes with its weights and cannot be given random ones, nor be trained",
        hint="leave `weights:` and the train step out",
    )


class ExportedNetwork(nn.Module):
    """Runs the graph of an exported network.

    Parameters
    ----------
    program : Program
        The graph.
    state : dict of Tensor
        Its parameters, buffers and constants by name.
    """

    def __init__(self, program: Program, state: dict[str, Tensor]) -> None:
        super().__init__()
        for step in views_to_copy(program):
            step.function = torch.ops.aten.reshape.default
            step.arguments = {"self": step.arguments["self"], "shape": step.arguments["size"]}
        self._program = program  # underscores: the network's own modules may have any other name
        self._held = {value: self._hold(key, state[key], program.buffers.get(value)) for value, key in
                      program.held.items()}  # fmt: skip
        self._seen: dict[int, list[tuple[Place, str]]] = {}
        found = list(layers_of(program))
        for layer in sorted(found, key=lambda layer: layer.path == ""):  # modules first: they keep their names
            place = self._place(layer.path or self._free_name(layer.name))
            place._kind = layer.kind
            self._seen.setdefault(layer.step, []).append((place, layer.value))

    def forward(self, images: Tensor) -> Any:
        """Return what the network yields for images (batch, channel, y, x)."""
        _check_images(images, self._program.sizes)
        values: dict[str, Any] = {**self._program.constants, self._program.image: images}
        values.update({value: getattr(owner, name) for value, (owner, name) in self._held.items()})
        for number, step in enumerate(self._program.steps):
            arguments = {key: _filled(entry, values, images) for key, entry in step.arguments.items()}
            _bind(step.outputs, step.run(arguments), values)
            for place, value in self._seen.get(number, ()):
                place(values[value])  # for hooks to see
            for value in step.last_used:
                values.pop(value, None)
        found = [_filled(entry, values, images) for entry in self._program.result]
        return found[0] if len(found) == 1 else tuple(found)

    def _hold(self, key: str, tensor: Tensor, persistent: bool | None) -> tuple[nn.Module, str]:
        path, _, name = key.rpartition(".")
        owner = self._place(path) if path else self
        if persistent is None:
            owner.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        else:
            owner.register_buffer(name, tensor, persistent)
        return owner, name

    def _place(self, path: str) -> Place:
        module: nn.Module = self
        for name in path.split("."):
            if name not in module._modules:
                module.add_module(name, Place())
            module = module.get_submodule(name)
        assert isinstance(module, Place)
        return module

    def _free_name(self, name: str) -> str:
        while hasattr(self, name):
            name += "_op"
        return name


def _filled(entry: Any, values: dict[str, Any], images: Tensor) -> Any:
    """Put values into the arguments of an operation."""
    if isinstance(entry, list):
        return [_filled(part, values, images) for part in entry]
    if isinstance(entry, Value):
        return values[entry.name]
    return images.device if isinstance(entry, SameDevice) else entry


def _bind(names: list[Any], results: Any, values: dict[str, Any]) -> None:
    """Give the results of an operation their names."""
    for name, result in zip(names, [results] if len(names) == 1 else results or (), strict=True):
        inner = zip(name, result, strict=True) if isinstance(name, list) else [(name, result)]
        values.update({key: value for key, value in inner if key is not None})


def _check_images(images: Tensor, sizes: list[Limits]) -> None:
    for axis, size, (low, _, high) in zip(("batch", "channels", "height", "width"), images.shape, sizes, strict=True):
        if size < low or (high is not None and size > high):
            limit = f"{low}" if low == high else f"{low} to {high or 'any'}"
            raise NetworkError(
                f"the network was exported for {axis} {limit}, not {size}",
                hint=f"extract: {{batch: {high or low}}}" if axis == "batch" else None,
            )
