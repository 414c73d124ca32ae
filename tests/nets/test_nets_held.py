"""What a forward pass holds, foretold over shapes, against sums by hand."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from dneuro.nets.catalogue import find
from dneuro.nets.held import _extent, held_per_image
from dneuro.spec.network import NetworkSpec


def size(*shape: int) -> int:
    return 4 * math.prod(shape)


def spec(name: str) -> NetworkSpec:
    return NetworkSpec(name=f"torchvision:{name}", weights="none")


def test_held__is_the_sum_of_what_lives_at_the_same_time() -> None:
    image, first = size(3, 224, 224), size(64, 224, 224)
    held = held_per_image(spec("vgg16"), ["features.1"], to_end=False, input_shape=(3, 224, 224))
    assert held == (image + first, first, image + first), "ReLU works in place"
    held = held_per_image(spec("vgg16"), ["features.3"], to_end=False, input_shape=(3, 224, 224))
    assert held == (image + 2 * first, first, image + 2 * first), "what a convolution reads and what it yields"


def test_held__goes_no_further_than_the_last_layer() -> None:
    half = held_per_image(spec("alexnet"), ["features.0"], to_end=False, input_shape=(3, 224, 224))
    whole = held_per_image(spec("alexnet"), ["features.0"], to_end=True, input_shape=(3, 224, 224))
    assert half.most == size(3, 224, 224) + size(64, 55, 55) < whole.most
    assert not held_per_image(spec("alexnet"), [], to_end=True, input_shape=(3, 224, 224)).most > whole.most


def test_held__of_a_residual_block_counts_its_input_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "residual.py").write_text(
        "from torch import nn\n"
        "class Residual(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.wide, self.narrow = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)\n"
        "    def forward(self, x):\n"
        "        y = self.wide(x)\n"
        "        return self.narrow(self.wide(y) + y)\n"
    )
    own = NetworkSpec.model_validate({
        "name": f"python:{tmp_path / 'residual.py'}:Residual", "preprocessing": {"crop": 16},
    })  # fmt: skip
    held = held_per_image(own, [], to_end=True, input_shape=(3, 16, 16))
    image = size(3, 16, 16)
    assert held == (4 * image, image, 4 * image), "the image, y, what becomes of it, the sum"
    held = held_per_image(spec("resnet18"), [], to_end=True, input_shape=(3, 224, 224))
    first = size(64, 112, 112)
    assert held[:2] == (size(3, 224, 224) + 2 * first, first), "what the normalisation reads and what it yields"
    assert held.extent == held.most, "what comes later fits into what they leave"


def test_held__reaches_beyond_gaps_that_are_too_small(tmp_path: Path) -> None:
    (tmp_path / "growing.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(*(nn.Conv2d(n, n + 1, 1) for n in (3, 4, 5, 6)))\n"
    )
    own = NetworkSpec.model_validate({
        "name": f"python:{tmp_path / 'growing.py'}:make", "preprocessing": {"crop": 16},
    })  # fmt: skip
    held = held_per_image(own, ["3"], to_end=False, input_shape=(3, 16, 16))
    one = size(1, 16, 16)
    assert held.most == (3 + 6 + 7) * one, "the image, what the last one reads and what it yields"
    assert held.extent == (3 + 4 + 5 + 6) * one, "6 does not fit into the gap of 4, 7 fits into that of 4 and 5"


def test_extent__is_that_of_as_many_passes_as_it_grows() -> None:
    sizes, ends = (6, 4, 1, 11), (1, 2, 4, 4)
    events = []
    for now, size in enumerate(sizes):
        events.append((now, size))
        events += [(key, -1) for key, end in enumerate(ends) if end == now]
    assert _extent(events) == 22, "what the first pass leaves after 12 is smaller than before them, and taken first"
    assert _extent(events[:2]) == 10


def test_held__of_a_network_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(512, 4))\n"
    )
    own = NetworkSpec.model_validate({
        "name": f"python:{tmp_path / 'own.py'}:make", "preprocessing": {"resize": [8, 8], "mean": 0, "std": 1},
    })  # fmt: skip
    held = held_per_image(own, ["0"], to_end=True, input_shape=(3, 8, 8))
    whole = size(3, 8, 8) + size(8, 8, 8) + size(4)
    assert held == (whole, size(8, 8, 8), whole), "no weights, and no view of anything"
    assert isinstance(find(own).module, nn.Module)
