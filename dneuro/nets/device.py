"""Devices, the room on them, and seeds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dneuro.errors import DeviceError, NetworkError
from dneuro.quantities import format_bytes


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


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes of a device that this process may still take; None where torch does not say."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


def check_room(device: torch.device, needed: int, batch: int) -> None:
    """Refuse to begin what a device has no room for.

    Parameters
    ----------
    device : torch.device
        The device.
    needed : int
        Bytes that will be taken on it at most.
    batch : int
        Images per forward pass, for the message.

    Raises
    ------
    DeviceError
        With the numbers and the way out.
    """
    free = free_bytes(device)
    if free is not None and needed > free:
        raise DeviceError(
            f"device {device} has {format_bytes(free)} free, the network with batches of {batch} needs "
            f"{format_bytes(needed)} of it",
            hint=_smaller(batch),
        )


@contextmanager
def room_on(device: torch.device, batch: int) -> Iterator[None]:
    """Say the way out where a device runs out of memory inside the block.

    No smaller batch is tried in its place: its numbers are others in the last digit, and which images would have them
    would depend on what else is on the device.

    Parameters
    ----------
    device : torch.device
        The device.
    batch : int
        Images per forward pass; 0 where it is not about a batch.

    Raises
    ------
    DeviceError
        With what torch says of it, and the way out.
    """
    try:
        yield
    except RuntimeError as error:
        # Of memory that a card reads from, torch says so in an error of another class.
        if not (isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()):
            raise
        what = f"a batch of {batch} images" if batch else "the network's weights"
        free = free_bytes(device)
        left = "" if free is None else f"; {format_bytes(free)} of it are free"
        raise DeviceError(
            f"device {device} has no room for {what}: {str(error).splitlines()[0]}{left}", hint=_smaller(batch)
        ) from None


def _smaller(batch: int) -> str:
    smaller = f"extract: {{batch: {batch // 2}}}, " if batch > 1 else ""
    return f"{smaller}fewer threads per worker, nothing else on that device; what is done stays done"


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
