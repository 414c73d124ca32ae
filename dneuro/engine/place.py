"""Where a task computes: NumPy as it is, or torch tensors on the device that came with the task."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dneuro.engine.device import Device
from dneuro.errors import ArrayError, DeviceError
from dneuro.products import PRODUCTS


class Place(Protocol):
    """What a task needs of it."""

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which blocks are moved and kernels run; what is left there is on the device."""
        ...

    def put(self, block: NDArray[Any]) -> Any:
        """Return a block where kernels compute."""
        ...

    def fetch(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state as NumPy arrays: states travel between processes, are merged there, and kept."""
        ...


class Processor:
    """NumPy: nothing is moved."""

    def computing(self) -> contextlib.AbstractContextManager[Any]:  # noqa: D102
        return contextlib.nullcontext()

    def put(self, block: NDArray[Any]) -> Any:  # noqa: D102
        return block

    def fetch(self, state: dict[str, Any]) -> dict[str, Any]:  # noqa: D102
        return state


class Card:
    """A device of torch, for one task.

    On CUDA every thread has a stream of its own, so that tasks of one process do not wait for each other; a block goes
    there from pinned memory while the next one is read.

    Parameters
    ----------
    device : Device
        What was asked for.

    Raises
    ------
    DeviceError
        If this process does not have it.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._where = opened(device.name)
        self._copied: Any = None

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Return the context in which kernels run; products of float32 are exact in it, unless TF32 was asked for."""
        import torch

        with contextlib.ExitStack() as stack:
            stack.enter_context(PRODUCTS.rounded(self._device.tf32))
            if self._where.type == "cuda":
                stack.enter_context(torch.cuda.device(self._where))
                stack.enter_context(torch.cuda.stream(_own_stream(self._where)))
            try:
                yield
            except torch.cuda.OutOfMemoryError as error:
                raise DeviceError(
                    f"device {self._device.name!r} of {here()} has no room for a task: {str(error).splitlines()[0]}",
                    hint="smaller chunks, fewer threads per worker, nothing else on that device, or "
                    "dn.on_device('cpu')",
                ) from None

    def put(self, block: NDArray[Any]) -> Any:
        """Return a copy of a block on the device."""
        import torch

        values = np.asarray(block)
        kind = _kind_of(values.dtype)
        if self._where.type == "cpu":
            copy = torch.empty(values.shape, dtype=kind)
            np.copyto(copy.numpy(), values)
            return copy
        if self._where.type != "cuda":
            return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="))).to(self._where)
        if self._copied is not None:  # so that no more than two blocks are ever on their way
            self._copied.synchronize()
        pinned = torch.empty(values.shape, dtype=kind, pin_memory=True)
        np.copyto(pinned.numpy(), values)
        copy = pinned.to(self._where, non_blocking=True)
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record()
        return copy

    def fetch(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a state as NumPy arrays."""
        import torch

        return {
            name: array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array
            for name, array in state.items()
        }


def place_of(device: Device | None) -> Place:
    """Return where a task computes that was asked to run on a device."""
    return Processor() if device is None else Card(device)


_OPENING = threading.Lock()


@cache
def opened(name: str, who: str = "") -> Any:
    """Return the torch device of that name; an error says that `who`, or else this process, does not have it.

    Raises
    ------
    DeviceError
        If this process does not have it, or it does not compute in float64.
    """
    try:
        import torch

        where = torch.device(name.removeprefix("torch:"))
        with _OPENING:
            # Torch loads its linear algebra for CUDA when it is first asked for, and fails if two threads ask at once.
            torch.linalg.qr(torch.zeros((1, 1), dtype=torch.float64, device=where))
    except Exception as error:  # ImportError, RuntimeError, AssertionError, NotImplementedError, by what is missing
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DeviceError(
            f"{who or here()} does not have device {name!r}: {reason}",
            hint="workers with a GPU (a pool with gpus: 1) and torch for it, or dn.on_device('cpu'), device: cpu",
        ) from error
    return where


def free_bytes(name: str, who: str = "") -> int | None:
    """Return the bytes of a device that this process may still take; None where torch does not say.

    Raises
    ------
    DeviceError
        If this process does not have it.
    """
    where = opened(name, who)
    if where.type != "cuda":
        return None
    import torch

    unused = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
    return int(torch.cuda.mem_get_info(where)[0] + unused)


async def free_on_worker(name: str, dask_worker: Any) -> int | DeviceError | None:
    """Return what `free_bytes` says on a worker of dask, or its error; the worker's loop goes on meanwhile."""
    from distributed.utils import offload  # not at the top: threads do without

    try:
        found: int | None = await offload(free_bytes, name, f"worker {dask_worker.name} ({dask_worker.address})")
    except DeviceError as error:
        return error
    return found


def here() -> str:
    """Return the name of this process, as an error names it."""
    if (distributed := sys.modules.get("distributed")) is not None:
        with contextlib.suppress(ValueError):  # not on a worker
            worker = distributed.get_worker()
            return f"worker {worker.name} ({worker.address})"
    return "this process"


def _kind_of(dtype: np.dtype[Any]) -> Any:
    """Return torch's word for a dtype.

    Raises
    ------
    ArrayError
        If it has none.
    """
    import torch

    try:
        return torch.from_numpy(np.empty(0, dtype=dtype.newbyteorder("="))).dtype
    except TypeError:
        raise ArrayError(f"torch has no {dtype}, a device computes with torch", hint="x.astype('float64')") from None


_streams = threading.local()


def _own_stream(where: Any) -> Any:
    """Return this thread's stream on a card: memory is kept for the next task stream by stream."""
    import torch

    streams: dict[Any, Any] = _streams.__dict__
    if str(where) not in streams:
        streams[str(where)] = torch.cuda.Stream(where)  # type: ignore[no-untyped-call]
    return streams[str(where)]
