"""The words for what computes an analysis: the processor, or a device of torch."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from dneuro.spec.problems import refusal, shown

CPU = "cpu"
"""NumPy on the processor."""

TORCH_CPU = "torch:cpu"
"""torch on the processor: what a GPU would be given."""

WORDS = (CPU, "cuda", "cuda:1", "xpu", TORCH_CPU)
"""Examples of all kinds."""

_KNOWN = re.compile(r"cpu|torch:cpu|(cuda|xpu)(:\d+)?")


def wrong_device(name: object) -> str:
    """Return what is wrong with the name of a device; empty if nothing."""
    if not isinstance(name, str) or not _KNOWN.fullmatch(name):
        lacking = " (mps has no float64, in which sums are kept)" if str(name).startswith("mps") else ""
        return f"{shown(name)} is no device that analyses run on{lacking}"
    return ""


def wrong_tf32(name: str) -> str:
    """Return what is wrong with asking a device for TF32; empty if nothing."""
    return "" if name.startswith("cuda") else f"tf32 is one of NVIDIA's GPUs, device {name!r} does not have it"


def is_apart(name: str) -> bool:
    """Return whether a device has memory of its own: whether it is a card."""
    return name not in (CPU, TORCH_CPU)


def _check(name: str) -> str:
    if wrong := wrong_device(name):
        raise refusal(wrong, f"one of {', '.join(WORDS)}")
    return name


_OF_NETWORKS = re.compile(r"cpu|(cuda|xpu|mps)(:\d+)?")


def _check_network(name: str) -> str:
    if not _OF_NETWORKS.fullmatch(name):
        raise refusal(f"{shown(name)} is no device that networks run on", "one of cpu, cuda, cuda:1, xpu, mps")
    return name


NetworkDevice = Annotated[str, AfterValidator(_check_network)]
"""``cpu``, ``cuda``, ``cuda:1``, ``xpu``, ``mps``, …; float32 is enough."""

DeviceName = Annotated[str, AfterValidator(_check)]
"""``cpu``, ``cuda``, ``cuda:1``, …"""
