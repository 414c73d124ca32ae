"""Devices and seeds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dneuro.errors import NetworkError


def parse_device(name: str) -> torch.device:
    """Return the torch device of that name.

    Raises
    ------
    NetworkError
        If there is none, or this machine does not have it. dneuro never takes another one instead.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError, by kind of device
        reason = str(error).splitlines()[0]
        raise NetworkError(f"device {name!r} cannot be used here: {reason}", hint="device: cpu") from error
    if device.type == "meta":
        raise NetworkError("device 'meta' computes nothing", hint="device: cpu")
    return device


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Draw torch's random numbers from `seed` inside the block, and go on as before after it.

    Parameters
    ----------
    seed : int
        Seed of the CPU's generator and, on a CUDA device, of that device's.
    device : torch.device, optional
        Where random numbers are drawn, beside the CPU.
    """
    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
