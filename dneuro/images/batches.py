"""CIFAR's pickles, read without running what a pickle may hold."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError


def read_pickled(content: bytes, where: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pixels (n, 3072) and labels (n,) of one batch of CIFAR-10's Python version.

    A pickle is a program. Of what this one may call, everything has a stand-in here that keeps bytes and shapes;
    anything else is refused before it is called.

    Parameters
    ----------
    content : bytes
        The pickle: a dictionary with ``data`` (array of uint8) and ``labels`` (list of int).
    where : str
        Names the file in messages.

    Raises
    ------
    ImageSourceError
        If the pickle is damaged, holds something else, or asks for a call that is not needed.
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        return fields["data"].pixels(), np.array(fields["labels"], np.uint8)
    except MemoryError:
        raise
    except KeyError as error:
        raise ImageSourceError(
            f"{where} has no {error}, so it is not CIFAR-10's",
            hint="of CIFAR-100 or other sets, store an .npz file: source: array",
        ) from error
    except Exception as error:  # a damaged pickle raises nearly everything
        raise ImageSourceError(f"{where} is damaged, or not CIFAR-10's: {error}", hint="fetch it again") from error


class _Array:
    """Stands in for a NumPy array: only what it is rebuilt from."""

    def __init__(self, *_: object) -> None:
        self._state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def pixels(self) -> NDArray[np.uint8]:
        _, shape, dtype, fortran, raw = self._state
        if dtype.code not in (b"u1", "u1") or not isinstance(raw, bytes):
            raise ValueError(f"its pixels are {dtype.code!r}, not bytes")
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """Stands in for a NumPy dtype."""

    def __init__(self, code: object = b"", *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass  # byte order and the like, which bytes do not have


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Stand in for ``codecs.encode``, by which Python 3 writes bytes into old pickles."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"asks for the encoding {encoding!r}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused: a pickle could run code")
        return _STAND_INS[module, name]
