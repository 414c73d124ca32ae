"""The number format that a network computes in, and nothing else than what was asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

from dneuro.errors import NetworkError
from dneuro.products import PRODUCTS

Precision = Literal["float32", "tf32", "bfloat16", "float16"]

AMPERE = 8
"""Generation of NVIDIA's cards (compute capability) from which on they have TF32 and bfloat16."""

_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse a precision that a device does not have.

    Raises
    ------
    NetworkError
        Saying which it has.
    """
    if precision == "tf32" and device.type != "cuda":
        raise NetworkError(f"precision tf32 is one of NVIDIA's GPUs, device {device} does not have it",
                           hint="network: {precision: bfloat16}, or float32")  # fmt: skip
    if device.type == "cuda" and precision in ("tf32", "bfloat16") and _generation(device) < AMPERE:
        raise NetworkError(f"device {device} does not compute in {precision}", hint="network: {precision: float16}")


def _generation(device: torch.device) -> int:
    """Return the major number of a card's compute capability; torch itself counts what is emulated as supported."""
    major: int = torch.cuda.get_device_capability(device)[0]
    return major


@contextlib.contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in `precision` inside the block.

    In half precision torch's autocast decides per operation: convolutions and products of matrices are computed in
    it, sums and normalisations in float32. In float32 a GPU computes in float32: torch alone would let cuDNN round the
    factors of convolutions to 10 bits (TF32). Afterwards it is as it was.
    """
    half = _HALF.get(precision)
    products = PRODUCTS.rounded(precision == "tf32") if device.type == "cuda" else contextlib.nullcontext()
    with products, torch.autocast(device.type, dtype=half, enabled=half is not None):
        yield
