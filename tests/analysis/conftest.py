from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device ``cuda`` that is none: torch on the processor, where nothing may touch what lies on the device.

    Its tensors say that they are elsewhere, and have no memory that NumPy could read. An operation between one of them
    and an array of this side is an error, as on a card. `peak` is the most bytes that lay there at a time, `put` those
    that were moved there, `largest` the largest array that came back.
    """
    from contextlib import contextmanager
    from threading import Lock
    from weakref import finalize

    import numpy as np
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map

    away = torch.device("meta")

    class Device:
        peak = live = put_bytes = largest = 0
        lock, held = Lock(), {}

        def come(self, tensor: torch.Tensor) -> None:
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            with self.lock:
                count, size = self.held.get(key, (0, storage.nbytes()))
                self.live += size if not count else 0
                self.held[key] = (count + 1, size)
                self.peak = max(self.peak, self.live)

        def go(self, key: int) -> None:
            with self.lock:
                count, size = self.held.pop(key)
                self.live -= size if count == 1 else 0
                if count > 1:
                    self.held[key] = (count - 1, size)

    device = Device()

    class Elsewhere(torch.Tensor):
        inner: torch.Tensor

        @staticmethod
        def __new__(cls, inner: torch.Tensor) -> Any:
            made = torch.Tensor._make_wrapper_subclass(
                cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                device=away,
            )  # fmt: skip
            made.inner = inner
            device.come(inner)
            finalize(made, device.go, inner.untyped_storage().data_ptr())
            return made

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return run(func, args, kwargs or {})

    def run(func: Any, args: Any, kwargs: Any) -> Any:
        given = [some for some in tree_leaves((args, kwargs)) if isinstance(some, torch.Tensor)]
        there = [some for some in given if isinstance(some, Elsewhere)]
        here = [some for some in given if not isinstance(some, Elsewhere)]
        leaves = func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu")
        assert not (there and any(some.ndim for some in here)), f"{func} of arrays here and elsewhere"
        inner = {**kwargs, **({"device": "cpu"} if kwargs.get("device") is not None else {})}
        plain = tree_map(lambda some: some.inner if isinstance(some, Elsewhere) else some, (args, inner))
        made = func(*plain[0], **plain[1])
        if leaves:
            device.largest = max(device.largest, made.nbytes)
            return made.clone()
        if not there and kwargs.get("device") != away:
            return made
        name = func._schema.name.split("::")[1]
        if name.endswith("_") and not name.endswith("__"):
            return args[0]
        if "out" in kwargs:
            return kwargs["out"]
        return tree_map(lambda some: Elsewhere(some) if isinstance(some, torch.Tensor) else some, made)

    class There(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return run(func, args, kwargs or {})

    class Card:
        @contextmanager
        def computing(self) -> Any:
            with There():
                yield

        def put(self, block: Any) -> Any:
            device.put_bytes += block.nbytes
            return torch.from_numpy(np.array(block)).to(away)

        def fetch(self, state: Any) -> Any:
            return {name: array.cpu().numpy() if isinstance(array, torch.Tensor) else array
                    for name, array in state.items()}  # fmt: skip

    def place_of(asked: Any) -> Any:
        from dneuro.engine.place import Processor

        return Processor() if asked is None else Card()

    monkeypatch.setattr("dneuro.engine.passes.place_of", place_of)
    monkeypatch.setattr("dneuro.engine.visits.place_of", place_of)
    monkeypatch.setattr("dneuro.engine.executors.free_bytes", lambda name: None)
    return device
