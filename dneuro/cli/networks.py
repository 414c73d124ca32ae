"""The command that looks into a network: layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dneuro.cli.arguments import AsJson, Set, find_job, print_json
from dneuro.errors import UsageError

if TYPE_CHECKING:
    from dneuro.spec import NetworkSpec


def layers(
    network: Annotated[str, typer.Argument(help="torchvision:alexnet, python:file.py:factory, …, or a job file.")],
    images: Annotated[int, typer.Option(min=1, help="Number of images that sizes are given for.")] = 50_000,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the input in pixels, if not the usual.")] = None,
    settings: Set = None,
    json: AsJson = False,
) -> None:
    """List what can be tapped of a network: name, kind, shape, receptive field, bytes as float32."""
    from dneuro.nets.catalogue import find
    from dneuro.nets.describe import layers as describe
    from dneuro.nets.describe import table
    from dneuro.tables import show_layers

    spec = _network(network, settings)
    usual = find(spec).input_shape
    if size is None and usual is None:
        hint = "--size 224, or in place of the network a job file that has its preprocessing"
        raise UsageError(f"the size of the input of {network} is not known", hint=hint)
    square = None if size is None else ((usual or (3,))[0], size, size)
    rows = table(describe(spec, square), images)
    if json:
        print_json(rows)
    else:
        show_layers(rows, images)


def _network(network: str, settings: list[str] | None) -> NetworkSpec:
    """Return the network of that name, or that of a job file."""
    from dneuro.spec import NetworkSpec, SeriesSpec, read_study

    if network.endswith((".yaml", ".yml")):
        spec = read_study(find_job(network), settings or ())
        if not isinstance(spec, SeriesSpec):
            return spec.network
        names = [job.network.name for job in spec.members.values()]
        if len(set(names)) > 1:
            raise UsageError(f"{network} is about several networks", hint=f"dneuro layers {names[0]}")
        return next(iter(spec.members.values())).network
    return NetworkSpec(name=network, weights="none")
