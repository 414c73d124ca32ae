"""The archive that ``torch.export.save`` writes: its records and tensors, read as data.

``torch.export.load`` is not safe with a file from elsewhere: it unpickles constants and some tensors with
``weights_only=False``, runs the file's ``guards_code``, calls whatever function the graph names, and compiles Python
that contains the file's own names. Here nothing of a file is executed: tensors are read as numbers, what is pickled
is refused, and `dneuro.nets.program` reads the graph.
"""

from __future__ import annotations

import json
import math
import sys
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from dneuro.errors import NetworkError

DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128,
    12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
"""``ScalarType`` of the schema, as far as networks have it."""

AGAIN = "export it again: torch.export.save(torch.export.export(model.eval(), ...), 'network.pt2')"


class UnfitError(Exception):
    """The file cannot be used; the arguments are the reason, and perhaps a way out."""


class Archive:
    """An open file of ``torch.export.save``; use it in a ``with`` block.

    Parameters
    ----------
    path : Path
        A ``.pt2`` file of torch 2.8 or later.

    Raises
    ------
    UnfitError
        If it is something else.
    """

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        names = self._zip.namelist()
        if "serialized_exported_program.json" in names:
            raise UnfitError("it was written by torch 2.7 or older", AGAIN + " with torch 2.8 or later")
        self._root = next((name.partition("/")[0] for name in names if name.endswith("/archive_format")), "")
        if not self._root or self.read("archive_format") != b"pt2":
            raise UnfitError("it was not written by torch.export.save", AGAIN)
        if any(name.startswith(f"{self._root}/data/aotinductor/") for name in names):
            raise UnfitError("it holds compiled code, of which no layer can be seen", AGAIN)
        if self.read("byteorder") != sys.byteorder.encode():
            raise UnfitError("its numbers are in the byte order of another machine")

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def has(self, record: str) -> bool:
        """Tell whether there is such a record."""
        return f"{self._root}/{record}" in self._zip.namelist()

    def read(self, record: str) -> bytes:
        """Return the bytes of a record, which is stored as it is: a small file cannot become a large one."""
        info = self._zip.getinfo(f"{self._root}/{record}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise UnfitError(f"its record {record} is compressed, which torch.export.save does not do")
        return self._zip.read(info)

    def json(self, record: str) -> dict[str, Any]:
        """Return a record that holds a JSON object."""
        content: dict[str, Any] = json.loads(self.read(record))
        return content

    def model(self) -> tuple[str, bytes]:
        """Return the name of the one network in the archive, and its graph as JSON."""
        start, end = f"{self._root}/models/", ".json"
        names = [name for name in self._zip.namelist() if name.startswith(start) and name.endswith(end)]
        if len(names) != 1:
            raise UnfitError(f"it holds {len(names)} networks, not one")
        return names[0][len(start) : -len(end)], self.read(names[0].removeprefix(f"{self._root}/"))

    def tensors(self, model: str, folder: str) -> dict[str, Tensor]:
        """Return the tensors of the records in ``data/weights`` or ``data/constants`` by name, on the CPU."""
        config = self.json(f"data/{folder}/{model}_{folder}_config.json")["config"]
        pickled = [name for name, payload in config.items() if payload["use_pickle"]]
        if pickled:
            raise UnfitError(
                f"{pickled[0]} is pickled, and unpickling may run any code",
                "export a network of plain tensors, without custom objects and tensor subclasses",
            )
        flat: dict[str, Tensor] = {}
        found = {}
        for name, payload in config.items():
            record, meta = payload["path_name"], payload["tensor_meta"]
            if record not in flat:
                content = bytearray(self.read(f"data/{folder}/{record}"))
                flat[record] = _flat(content, DTYPES[meta["dtype"]])
            sizes, strides = ([size["as_int"] for size in meta[key]] for key in ("sizes", "strides"))
            if not math.prod(sizes):
                found[name] = torch.zeros(sizes, dtype=DTYPES[meta["dtype"]])
            else:  # as_strided refuses what lies outside
                found[name] = flat[record].as_strided(sizes, strides, meta["storage_offset"]["as_int"]).contiguous()
        return found


def _flat(content: bytearray, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def unreadable(path: Path, reason: str, hint: str | None = None) -> NetworkError:
    """Return the error of a file that cannot be used."""
    return NetworkError(f"cannot use {path}: {reason}", hint=hint or AGAIN)
