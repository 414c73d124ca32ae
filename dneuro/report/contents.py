"""What a store holds, sorted for the pages: images, layers, results by layer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

_MOMENTS = ("count", "mean", "std", "variance", "min", "max", "fraction_active")
_ENDS = ("top", "bottom")
_SMALL = 8 * 2**20
_NOT_YET = 3
"""What `status` says of an image that is not extracted yet: `dneuro.store.units.NOT_YET`."""


@dataclass(frozen=True)
class Field:
    """The receptive field of a layer, in pixels of the network's input."""

    size: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]

    def box(self, y: int, x: int) -> tuple[int, int, int, int]:
        """Return (top, left, bottom, right), ends exclusive, of what position (y, x) sees; may reach outside."""
        top, left = self.start[0] + y * self.stride[0], self.start[1] + x * self.stride[1]
        return top, left, top + self.size[0], left + self.size[1]


@dataclass(frozen=True, eq=False)
class Result:
    """One dataset of the store: what a step found out about a layer."""

    step: str
    layer: str
    analysis: str
    data: xr.Dataset
    recorded: bool = False
    """Whether extraction took it on the way."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The step's settings, and which images it chose."""
        parameters, selection = (self.data.attrs.get(name) for name in ("parameters", "selection"))
        found = dict(parameters) if isinstance(parameters, Mapping) else {}
        return {**found, "select": dict(selection)} if isinstance(selection, Mapping) else found


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with its results, those recorded during extraction first."""

    name: str
    file: str
    data: xr.Dataset
    results: tuple[Result, ...]

    @property
    def kind(self) -> str | None:
        """Class name of the module."""
        return _text(self.data.attrs.get("kind"))

    @property
    def keep(self) -> str | None:
        """What the store keeps of it: full, max, mean or stats."""
        return _text(self.data.attrs.get("keep"))

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the activation of one image."""
        shape = self.data.attrs.get("shape")
        return None if shape is None else tuple(int(length) for length in np.atleast_1d(shape))

    @property
    def knows_field(self) -> bool:
        """Whether the store says what a position sees."""
        return "receptive_field" in self.data.attrs

    @cached_property
    def field(self) -> Field | None:
        """The receptive field; none where a position sees the whole input, or where it is not known."""
        described = self.data.attrs.get("receptive_field")
        if not isinstance(described, Mapping):
            return None
        pairs = {key: tuple(int(n) for n in described[key]) for key in ("size", "stride", "start")}
        return Field(**pairs)  # type: ignore[arg-type]

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width of the network's input in pixels."""
        size = self.data.attrs.get("input_size")
        return None if size is None else (int(size[0]), int(size[1]))

    def first(self, analysis: str, *variables: str) -> Result | None:
        """Return the first result of this kind that has these variables."""
        fitting = (r for r in self.results if r.analysis == analysis and all(v in r.data for v in variables))
        return next(fitting, None)

    def statistic(self, name: str, dims: tuple[str, ...] = ("channel",)) -> NDArray[np.float64] | None:
        """Return one of the moments over `dims`, recorded or computed later; none where nobody took it."""
        for result in self.results:
            if "selection" in result.data.attrs:  # of some images only
                continue
            if result.analysis == "moments" and name in result.data and result.data[name].dims == dims:
                return np.asarray(result.data[name].values, dtype=np.float64)
        return None


@dataclass(frozen=True, eq=False)
class Images:
    """The images of the store, by number."""

    data: xr.Dataset
    causes: Mapping[int, str] = field(default_factory=dict)
    """Why images could not be read, of those of which that is known."""

    @property
    def count(self) -> int:
        """Number of images, masked ones included."""
        return int(self.data.sizes.get("image", 0))

    @cached_property
    def filenames(self) -> NDArray[Any] | None:
        """Name of each image (image,)."""
        return self.data["filename"].values if "filename" in self.data else None

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """Class of each image (image,), −1 where nobody knows."""
        return np.asarray(self.data["label"].values, dtype=np.int64) if "label" in self.data else None

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return [str(name) for name in self.data["class"].values] if "class" in self.data else []

    @cached_property
    def predictions(self) -> NDArray[np.int64] | None:
        """Predicted class of each image (image,)."""
        return np.asarray(self.data["prediction"].values, dtype=np.int64) if "prediction" in self.data else None

    @cached_property
    def _predicted_names(self) -> list[str]:
        """What the network's outputs stand for; of an older store that is known where the images have the same."""
        said = self.data["prediction"].attrs.get("class_names") if "prediction" in self.data else None
        return [str(name) for name in said] if said else self.classes if "correct" in self.data else []

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """Which images were extracted and readable (image,)."""
        if "status" not in self.data:
            return np.ones(self.count, dtype=bool)
        return np.asarray(self.data["status"].values == 0)

    @cached_property
    def _not_yet(self) -> NDArray[np.bool_]:
        if "status" not in self.data:
            return np.zeros(self.count, dtype=bool)
        return np.asarray(self.data["status"].values == _NOT_YET)

    @property
    def not_extracted(self) -> int:
        """Number of the images that are not extracted yet, or were left out with their units."""
        return int(self._not_yet.sum())

    @property
    def masked(self) -> list[int]:
        """Numbers of the images that were looked at and left out."""
        return [int(image) for image in np.flatnonzero(~self.usable & ~self._not_yet)]

    @cached_property
    def correct(self) -> tuple[int, int] | None:
        """How many images the network classified rightly, of how many that count; none without predictions."""
        if "correct" not in self.data:
            return None
        counts = self.usable if self.labels is None else self.usable & (self.labels >= 0)
        right = np.asarray(self.data["correct"].values, dtype=bool) & counts
        return int(right.sum()), int(counts.sum())

    def filename(self, image: int) -> str | None:
        """Return the name of an image, if the store has names."""
        return None if self.filenames is None else str(self.filenames[image])

    def class_name(self, label: int) -> str:
        """Return the name of a class, or its number."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    def predicted_name(self, predicted: int) -> str:
        """Return the name of one of the network's classes, which need not be the images', or its number."""
        names = self._predicted_names
        return names[predicted] if 0 <= predicted < len(names) else f"class {predicted}"

    def label(self, image: int) -> int:
        """Return the class of an image, −1 where it is not known."""
        return -1 if self.labels is None else int(self.labels[image])


@dataclass(frozen=True)
class Contents:
    """Everything that the pages show."""

    images: Images
    layers: list[Layer]
    attrs: dict[str, Any]
    loose: list[Result] = field(default_factory=list)
    """Results that name no layer."""


def read(
    tree: xr.DataTree, job: Mapping[str, Any] | None = None, causes: Mapping[int, str] | None = None
) -> Contents:
    """Sort a store for the pages; no large array is read.

    Layers and steps come in the order of the job; without one, by their attribute ``order``; the rest in the
    order of their names, with numbers taken as numbers.
    """
    described = tree.attrs.get("dneuro")
    attrs = dict(described) if isinstance(described, Mapping) else {}
    datasets = dict(_datasets(tree, "layers"))
    results = list(_results(tree, [_step_id(step) for step in _steps(job)]))
    names = _ordered({*datasets, *(r.layer for r in results if r.layer)}, _layer_order(job, datasets))
    layers = []
    for name, file in zip(names, file_names(names), strict=True):
        data = datasets.get(name, xr.Dataset())
        own = [*_recorded(name, data), *(result for result in results if result.layer == name)]
        layers.append(Layer(name, f"layer-{file}.html", data, tuple(own)))
    return Contents(Images(tree.to_dataset(), causes or {}), layers, attrs, [r for r in results if not r.layer])


def file_names(names: Iterable[str]) -> list[str]:
    """Return a file name for each name: letters, digits, ``_``, ``.``, ``-``; no two alike in any file system."""
    names = list(names)
    slugs = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80] for name in names]
    folded = [slug.casefold() for slug in slugs]
    return [
        slug if slug == name and folded.count(slug.casefold()) == 1 else f"{slug}-{_digest(name)}".lstrip("-")
        for slug, name in zip(slugs, names, strict=True)
    ]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _datasets(tree: xr.DataTree, group: str) -> Iterable[tuple[str, xr.Dataset]]:
    """Yield (name, dataset) below a group; a name with slashes lies several groups deep."""
    if group not in tree.children:
        return
    root = tree.children[group]
    for node in root.subtree:
        if node is not root and (node.data_vars or node.attrs):
            path = node.path.removeprefix(root.path).strip("/")
            yield str(node.attrs.get("layer", path)), _with_small_parts_in_memory(node.to_dataset())


def _with_small_parts_in_memory(dataset: xr.Dataset) -> xr.Dataset:
    """Read what is small once, instead of at every look."""
    for variable in dataset.variables.values():
        if variable.nbytes <= _SMALL:
            variable.load()
    return dataset


def _results(tree: xr.DataTree, order: list[str]) -> Iterable[Result]:
    if "results" not in tree.children:
        return
    steps = tree.children["results"].children
    for step in _ordered(steps, order or _step_order(steps)):
        for node in steps[step].subtree:
            if node.data_vars or "analysis" in node.attrs:
                path = node.path.removeprefix(steps[step].path).strip("/")
                attrs = node.attrs
                yield Result(
                    str(attrs.get("step", step)), str(attrs.get("layer", path)),
                    str(attrs.get("analysis", step)), _with_small_parts_in_memory(node.to_dataset()),
                )  # fmt: skip


def _recorded(layer: str, data: xr.Dataset) -> list[Result]:
    """Return the statistics that lie beside a layer as if a step had taken them."""
    found = []
    pool = {"pool": "mean" if data.attrs.get("keep") == "mean" else "max"}
    parameters = {"per": "channel", **(pool if len(data.attrs.get("shape", ())) == 3 else {})}
    data = data.drop_attrs(deep=False).assign_attrs(parameters=parameters)
    moments = [name for name in _MOMENTS if name in data]
    if moments:
        found.append(Result("extract", layer, "moments", data[moments], recorded=True))
    ends = [f"{end}_{part}" for end in _ENDS for part in ("value", "image", "y", "x")]
    ends = [name for name in ends if name in data]
    if ends:
        found.append(Result("extract", layer, "top_images", data[ends], recorded=True))
    return found


def _steps(job: Mapping[str, Any] | None) -> list[Any]:
    steps = (job or {}).get("steps")
    return list(steps) if isinstance(steps, list | tuple) else []


def _step_id(step: Any) -> str:
    """Return the name of a step as a job file writes it: ``{svd: {rank: 8, name: mine}}``."""
    if not isinstance(step, Mapping):
        return str(step)
    kind, said = next(iter(step.items()), ("", None))
    return str(said.get("name") or kind) if isinstance(said, Mapping) else str(step.get("name") or kind)


def _layer_order(job: Mapping[str, Any] | None, datasets: Mapping[str, xr.Dataset]) -> list[str]:
    for step in _steps(job):
        said = step.get("extract", step) if isinstance(step, Mapping) else None
        layers = said.get("layers") if isinstance(said, Mapping) else None
        if isinstance(layers, Mapping | list | tuple):
            return [str(name) for name in layers]
    placed = {name: int(data.attrs["order"]) for name, data in datasets.items() if "order" in data.attrs}
    return sorted(placed, key=placed.__getitem__)


def _step_order(steps: Mapping[str, xr.DataTree]) -> list[str]:
    placed = {
        name: min(int(found.attrs["order"]) for found in node.subtree if "order" in found.attrs)
        for name, node in steps.items()
        if any("order" in found.attrs for found in node.subtree)
    }
    return sorted(placed, key=placed.__getitem__)


def _ordered(names: Iterable[str], order: list[str]) -> list[str]:
    def key(name: str) -> tuple[Any, ...]:
        parts = re.split(r"(\d+)", name)
        natural = [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
        return (order.index(name) if name in order else len(order), natural)

    return sorted(names, key=key)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
