"""Which network a job looks into, and how a picture becomes its input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Tag, model_validator

from dneuro.spec.base import (
    ONE,
    SEVERAL,
    Number,
    OrWritten,
    PathText,
    Positive,
    PositiveNumber,
    Seed,
    Spec,
    _expand,
    by_count,
)
from dneuro.spec.device import NetworkDevice, wrong_tf32
from dneuro.spec.problems import Problem, ProblemsError, refusal, shown

Size = Annotated[
    Annotated[Positive, Tag(ONE)] | Annotated[tuple[Positive, Positive], Tag(SEVERAL)],
    by_count,
]
"""One length in pixels, or (height, width)."""

_one_for_all = BeforeValidator(lambda value: [value] if isinstance(value, int | float | str) else value)
_or_one = OrWritten({"type": "number"})


class Preprocessing(Spec):
    """From a picture to the network's input: resize, crop, colour, scale to [0, 1], standardise.

    ``input = (picture / 255 - mean) / std``, per colour channel.
    """

    resize: Size | None = None
    """Length of the shorter side in pixels, or (height, width); none keeps the size."""
    crop: Size | None = None
    """Cut this much from the centre, in pixels: a square's side, or (height, width)."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """How `resize` interpolates (antialiased, as Pillow does)."""
    color: Literal["rgb", "grey"] = "rgb"
    """Three colour channels or one."""
    mean: Annotated[tuple[Number, ...], _one_for_all, _or_one] = (0.0,)
    """Mean per colour channel, on the scale 0…1; one number serves all."""
    std: Annotated[tuple[PositiveNumber, ...], _one_for_all, _or_one] = (1.0,)
    """Standard deviation per colour channel, on the scale 0…1; one number serves all."""

    @model_validator(mode="after")
    def _check_channels(self) -> Preprocessing:
        needed = "1 or 3" if self.channels == 3 else "1"
        wrong = [
            Problem(f"has {len(getattr(self, name))} numbers, color={self.color} needs {needed}", at=(name,))
            for name in ("mean", "std")
            if len(getattr(self, name)) not in (1, self.channels)
        ]
        if wrong:
            raise ProblemsError(*wrong)
        return self

    @property
    def channels(self) -> int:
        """Number of colour channels of the input."""
        return 3 if self.color == "rgb" else 1


PYTHON = "python:"
"""A factory in Python, ``python:package.module:factory`` or ``python:path/to/file.py:factory``."""
EXPORT = "export:"
"""A file of torch.export, ``export:path/to/network.pt2``."""


def split_factory(name: str) -> tuple[str, str]:
    """Return module (or file) and factory of ``python:<module or file>:<factory>``; either may be empty."""
    module, _, factory = name.removeprefix(PYTHON).rpartition(":")
    return module, factory


def _check_network(name: str) -> str:
    if name.startswith(EXPORT):
        path = name.removeprefix(EXPORT)
        if not path.strip():
            raise refusal(f"{shown(name)} names no file", "export:path/to/network.pt2")
        return EXPORT + _expand(path)
    if name.startswith(PYTHON):
        module, factory = split_factory(name)
        if not module.strip() or not factory.isidentifier():
            raise refusal(f"{shown(name)} names no factory in a module or file",
                          "python:package.module:factory or python:path/to/file.py:factory")  # fmt: skip
        return f"{PYTHON}{_expand(module)}:{factory}"
    return name


NetworkName = Annotated[str, AfterValidator(_check_network)]


class NetworkSpec(Spec):
    """A network and its weights."""

    name: NetworkName
    """``torchvision:<model>``, for example ``torchvision:alexnet``; ``dneuro:convnet``; your own code as
    ``python:<module>:<factory>`` or ``python:<file.py>:<factory>``; or ``export:<file.pt2>`` of torch.export."""
    weights: PathText = "DEFAULT"
    """``DEFAULT`` (torchvision's; those of a ``.pt2`` file; what a factory returns), ``none`` (random, seeded), or
    the path of a ``.safetensors`` or ``.pth`` file with the network's state."""
    seed: Seed = 0
    """Seed of random weights, where `weights` is ``none`` or a factory draws them."""
    classes: Positive | None = None
    """Number of outputs; the default is the network's own (``dneuro:convnet``: 10)."""
    preprocessing: Preprocessing | None = None
    """How a picture becomes the input; the default is the one that belongs to the network."""
    device: NetworkDevice = "cpu"
    """``cpu`` or a torch device such as ``cuda``; never switched silently."""
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    """How convolutions hold their numbers in memory: a matter of speed and of the last digit. ``auto`` is
    ``channels_last`` wherever the network can take it."""
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """What the network computes in; the others are faster where the hardware has them, and less exact
    (docs/networks.md). ``tf32`` is one of NVIDIA's GPUs; in half precision torch's autocast decides per operation."""
    compile: bool = False
    """Let torch.compile make one program of the network and the layers asked for: minutes of preparation per worker at
    most, another last digit, and faster where docs/networks.md says so. On a CPU it takes a C++ compiler."""

    @model_validator(mode="after")
    def _check_precision(self) -> NetworkSpec:
        if self.precision == "tf32" and (wrong := wrong_tf32(self.device)):
            raise ProblemsError(Problem(wrong, "precision: bfloat16, or float32", ("precision",)))
        return self
