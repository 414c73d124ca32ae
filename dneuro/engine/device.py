"""Which device the passes of this context run on, and what that takes of a process and of the device.

The choice belongs to who asks: it is looked up where a pass is planned and where it begins, and travels with its tasks.
Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from dneuro.allocation import LIBRARIES_BYTES
from dneuro.errors import UsageError
from dneuro.quantities import MiB
from dneuro.spec.device import CPU, WORDS, is_apart, wrong_device, wrong_tf32

TORCH_BYTES = 920 * MiB
"""Memory of a worker process that has imported torch and all else that an extraction needs: measured with torch 2.14
for CUDA (380 MiB are pages of libraries that workers share); less with torch for CPUs alone."""

CUDA_BYTES = 600 * MiB
"""What a process holds besides once it has a context on a card, in its own memory, and on the card for the context, the
code and the workspaces of cuBLAS and cuSOLVER. An allowance, for it was not measured."""

PINNED = 4
"""Times a block that a process holds of memory that a card reads from: two blocks on their way, each rounded up to a
power of two."""


@dataclass(frozen=True)
class Device:
    """A device of torch.

    Parameters
    ----------
    name : str
        ``cuda``, ``cuda:1``, ``xpu``, or ``torch:cpu``, which is torch on the processor.
    tf32 : bool
        Products of float32 may be rounded to TF32.
    """

    name: str
    tf32: bool = False

    @property
    def is_apart(self) -> bool:
        """Whether it has memory of its own."""
        return is_apart(self.name)


_chosen: ContextVar[Device | None] = ContextVar("dneuro_device", default=None)


@contextlib.contextmanager
def on_device(name: str, *, tf32: bool = False) -> Iterator[None]:
    """Let the analyses that are called inside the block compute on a device of their workers.

    Parameters
    ----------
    name : {"cpu", "cuda", "cuda:N", "xpu", "torch:cpu"}
        ``"cpu"``, the default, is NumPy; ``"torch:cpu"`` is torch on the processor, which shows what a card would be
        given. The name is that of each worker's own device: where every process sees one card, that is ``"cuda"``.
    tf32 : bool
        Let NVIDIA's GPUs round the factors of float32 products to 10 bits (TF32). Sums stay float64, and so do the
        products of all that is computed in float64.

    Raises
    ------
    UsageError
        If there is no such device, it does not have TF32, or `tf32` is neither True nor False.

    Notes
    -----
    The choice holds for this context (thread or task), and goes along with the tasks to whatever runs them: threads, a
    LocalCluster, any dask client. A worker without the device ends the analysis with a `DeviceError` that names it; no
    other device is taken. Blocks are read and decoded on the processor, moved, and reduced on the device; what is
    merged, and all results, are NumPy's.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.eye(3, dtype="f4"), dims=("image", "channel"))
    >>> with dn.on_device("torch:cpu"):
    ...     print(dn.moments(x)["max"].values)
    [1. 1. 1.]
    """
    if wrong := wrong_device(name):
        raise UsageError(wrong, hint=f'dn.on_device("cuda"); choices: {", ".join(WORDS)}')
    if not isinstance(tf32, bool):
        raise UsageError(f"tf32={tf32!r} is neither True nor False", hint=f'dn.on_device("{name}", tf32=True)')
    if tf32 and (wrong := wrong_tf32(name)):
        raise UsageError(wrong, hint=f'dn.on_device("{name}")')
    token = _chosen.set(None if name == CPU else Device(name, tf32))
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen() -> Device | None:
    """Return the device of this context; None for NumPy on the processor."""
    return _chosen.get()


def chosen_name() -> str:
    """Return the name of the device of this context, for a plan; empty for NumPy on the processor."""
    device = chosen()
    return "" if device is None else device.name


def process_bytes(where: Any) -> int:
    """Return the memory of a process of `where` (`Sizes`) before it does anything, with what its device needs."""
    device, own = chosen(), int(where.process_bytes)
    if device is None:
        return own
    return max(own, TORCH_BYTES + LIBRARIES_BYTES) + (CUDA_BYTES if device.is_apart else 0)


def moving_bytes(block: int) -> int:
    """Return what a task holds in its process to move blocks of so many bytes to the device."""
    device = chosen()
    if device is None:
        return 0
    return PINNED * block if device.is_apart else block


def held_on_device(slots: int, task: int) -> int:
    """Return what a process with so many tasks at a time takes on a device with memory of its own; else 0."""
    device = chosen()
    return CUDA_BYTES + slots * task if device is not None and device.is_apart else 0


def device_limit(where: Any) -> int | None:
    """Return the bytes of the device that one process of `where` may take; None if nobody knows.

    Raises
    ------
    DeviceError
        If a worker does not have the device.
    """
    device = chosen()
    if device is None:
        return None
    ask = getattr(where, "device_memory", None)  # a stand-in for workers that are not there yet has no device to ask
    return None if ask is None else ask(device.name)
