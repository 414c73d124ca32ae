"""The list of a job's images: their order, names, labels, and what identifies their content."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError, StoreError
from dneuro.files import write_atomically

_FORMAT = 1

ENTRY_BYTES = 300
"""Memory per image of a list that is read, besides its name twice: of ImageNet's 1,281,167 names a process held
246 MiB, and 408 while it read the list."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """Which images a job runs over, in which order. All arrays have dim (image,) and are read-only.

    Two manifests speak of the same images where their `fingerprint` is the same.

    Parameters
    ----------
    names : sequence of str, kept as an array of objects
        Unique; the path below the root where images are files.
    labels : array of int, kept as int64
        Index into `class_names`; -1 where the class is not known.
    class_names : sequence of str, kept as a tuple
        Names of the classes 0, 1, …; may be empty, and names may repeat (ImageNet has two "crane").
    identity : sequence of str, kept as an array of objects
        What identifies the content of an image: the size in bytes of a file, the CRC-32 of an array.
    indices : array of int, kept as int64
        Index of the image in its source; differs from its position where a sample was drawn.
    source : dict
        What the images were asked for by: an `ImagesSpec` as JSON-able dict.
    wnids : sequence of str, kept as a tuple
        WordNet ids of the classes, as long as `class_names`; empty where they have none.
    offsets : array of int, kept as int64
        Where each image begins in an archive that is read in place, in bytes; empty where there is none.
    paths : sequence of str, kept as an array of objects
        How the storage names each image, where some of these names are not UTF-8; empty otherwise.

    Raises
    ------
    ImageSourceError
        If lengths differ, a name is not unique, or a label has no class.
    """

    names: NDArray[np.object_]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    identity: NDArray[np.object_]
    indices: NDArray[np.int64]
    source: dict[str, Any]
    wnids: tuple[str, ...] = ()
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    paths: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))

    def __post_init__(self) -> None:
        values = {
            "names": _strings(self.names),
            "labels": np.array(self.labels, np.int64),
            "class_names": tuple(self.class_names),
            "identity": _strings(self.identity),
            "indices": np.array(self.indices, np.int64),
            "wnids": tuple(self.wnids),
            "offsets": np.array(self.offsets, np.int64),
            "paths": _strings(self.paths),
        }
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        may_be_empty = [name for name in ("offsets", "paths") if getattr(self, name).size]
        for name in ("labels", "identity", "indices", *may_be_empty):
            if getattr(self, name).shape != self.names.shape:
                raise ImageSourceError(
                    f"a manifest with {len(self)} names has {name} of shape {getattr(self, name).shape}"
                )
        if len(set(self.names)) != len(self):
            twice = next(a for a, b in pairwise(sorted(self.names)) if a == b)
            raise ImageSourceError(f"two images have the same name {twice!r}; names must be unique")
        if self.wnids and len(self.wnids) != len(self.class_names):
            raise ImageSourceError(
                f"a manifest with {len(self.class_names)} class names has {len(self.wnids)} wnids"
            )
        check_labels(self.labels, self.class_names, "the manifest")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def held_bytes(self) -> int:
        """Memory that a process takes to read the list and to keep it."""
        return ENTRY_BYTES * len(self) + 2 * sum(map(len, self.names))

    def fingerprint(self) -> str:
        """Return a SHA-256 (hex) over names, labels, class names, identities and, where there are any, wnids.

        It does not depend on where the images lie, nor on how they were asked for. Cost: some 20 ms for 50,000.
        """
        digest = hashlib.sha256()
        lists: list[Iterable[str]] = [self.names, self.identity, self.class_names]
        for strings in (*lists, self.wnids) if self.wnids else lists:
            # Lengths first, so that no two lists of strings run together into the same bytes.
            encoded = [text.encode("utf-8", "surrogatepass") for text in strings]
            digest.update(np.array([len(encoded), *map(len, encoded)], "<i8").tobytes())
            digest.update(b"".join(encoded))
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest to `path` (``.npz`` without pickle): whole, or not at all."""
        write_atomically(Path(path), lambda file: file.write(self.to_bytes()))

    def to_bytes(self) -> bytes:
        """Return the manifest as the content of a file that `load` reads."""
        text = {
            "format": _FORMAT,
            "names": self.names.tolist(),
            "identity": self.identity.tolist(),
            "class_names": self.class_names,
            "source": self.source,
            "wnids": self.wnids,
            **({"paths": self.paths.tolist()} if self.paths.size else {}),
        }
        content = io.BytesIO()
        np.savez_compressed(
            content,
            text=np.frombuffer(json.dumps(text).encode("ascii"), np.uint8),
            labels=self.labels,
            indices=self.indices,
            offsets=self.offsets,
        )
        return content.getvalue()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        StoreError
            If the file is damaged, or no manifest, or of a format this version does not know.
        """
        return cls.from_bytes(Path(path).read_bytes(), str(path))

    @classmethod
    def from_bytes(cls, content: bytes, path: str) -> Manifest:
        """Read what `to_bytes` gave; `path` says where it lay, for errors."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                text = json.loads(file["text"].tobytes())
                arrays = {name: file[name] for name in ("labels", "indices", "offsets") if name in file}
            found = text.pop("format")
            if found == _FORMAT:
                return cls(**arrays, **text)
        except Exception as error:
            raise StoreError(
                f"{path} is damaged, or not a manifest of images: {error}",
                hint=f"remove {path}; the images are listed anew on the next run",
            ) from error
        raise StoreError(
            f"{path} has format {found!r}; this version of dneuro reads format {_FORMAT}",
            hint="use the version of dneuro that wrote it, or remove it",
        )


def _strings(values: Iterable[str]) -> NDArray[np.object_]:
    texts = [str(value) for value in values]
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def check_labels(labels: NDArray[np.integer[Any]], class_names: Sequence[str], where: str) -> None:
    """Refuse labels below -1, and labels without a class name where there are class names.

    Raises
    ------
    ImageSourceError
        Naming the label, the number of class names and `where`.
    """
    if labels.size == 0:
        return
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < -1:
        raise ImageSourceError(
            f"{where}: label {lowest} of image {int(labels.argmin())}; a label is 0, 1, … or -1 (not known)"
        )
    if class_names and highest >= len(class_names):
        raise ImageSourceError(
            f"{where}: label {highest} of image {int(labels.argmax())} has no class name; "
            f"there are {len(class_names)}, for labels 0…{len(class_names) - 1}",
            hint="labels count from 0; give one class name per label",
        )
