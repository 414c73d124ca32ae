"""What a page is made of: tiles in rows, figures, facts, each block under one heading with one caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from dneuro.report.canvas import save, save_vector
from dneuro.report.contents import Contents, Images, Layer, Result, file_names
from dneuro.report.grids import TILE, Box, Gallery, Picture
from dneuro.report.neurons.paging import Paging
from dneuro.report.sprites import Sheet
from dneuro.report.words import NOTHING, counted, cut, number, setting

_MOST_LETTERS = 60  # of a class or a file name beside a picture: a page has hundreds of them


@dataclass(frozen=True)
class Fact:
    """A term and what is to be said of it; `title` holds the long form."""

    term: str
    value: str
    title: str | None = None


@dataclass(frozen=True)
class Tile:
    """A picture of a grid with the words below it."""

    alt: str
    label: str
    value: str | None
    picture: Picture | None
    wrong: bool = False
    """Whether the network took the image for another class."""


@dataclass(frozen=True)
class Row:
    """A neuron or a component with its pictures at either end."""

    heading: str
    note: str
    top: list[Tile]
    bottom: list[Tile]
    href: str | None = None
    """The page of its own, if it has one."""
    end: str = "Highest"
    """What the first pictures are."""
    sheets: list[Sheet] = field(default_factory=list)
    """Pictures of its own, in files of their own."""


@dataclass(frozen=True)
class Plate:
    """A figure with its caption."""

    src: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class Block:
    """What one result says, under a heading of its own."""

    title: str
    plates: list[Plate] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    paired: bool = False
    """Whether both ends of a row count alike (components), or the lowest are an aside (neurons)."""
    caption: str | None = None
    """Caption of the rows."""
    variables: list[Fact] = field(default_factory=list)
    """Contents of a result that has no figure of its own."""
    facts: list[Fact] = field(default_factory=list)
    """How it was computed."""


@dataclass(frozen=True)
class Studio:
    """What the sections need to make pictures and figures of a report."""

    folder: Path
    contents: Contents
    gallery: Gallery
    neurons: int
    shown: int
    paging: Mapping[str, Paging] = field(default_factory=dict)
    """Where the pages of single neurons are, by layer; nothing for a report without them."""
    vector: bool = False
    """Whether each figure is written as SVG too."""
    _names: set[str] = field(default_factory=set)

    @property
    def images(self) -> Images:
        """The images of the store."""
        return self.contents.images

    def taking_part(self, result: Result) -> int:
        """Return how many images a result is about."""
        selection = result.data.attrs.get("selection", {})
        return int(selection.get("images", self.images.usable.sum()))

    def basis(self, result: Result) -> str:
        """Return of how many images a result is, and how many of them count where it is made of counts."""
        root = result
        while (found := self._made_of(root)) is not None:
            root = found
        words = f"n = {counted(self.taking_part(root), 'image')}"
        if root is not result and root.analysis == "cooccurrence":
            top, beyond = (root.parameters.get(name) for name in ("k", "quantile"))
            words += f", of which each {root.parameters.get('per', 'channel')}'s "
            words += f"top {top} are counted" if beyond is None else f"above its quantile {number(beyond)} are counted"
        return words

    def _made_of(self, result: Result) -> Result | None:
        """Return a result of the step that a result was made of, of its own layer if there is one."""
        step = result.parameters.get("of")
        found = [
            other for layer in self.contents.layers for other in layer.results if other.step == step != result.step
        ]
        return next((other for other in found if other.layer == result.layer), next(iter(found), None))

    def plate(self, figure: Figure, result: Result, kind: str, alt: str, caption: str) -> Plate:
        """Write a figure beside the pages; its caption says of how many images it is, if it does not yet."""
        if "n = " not in caption and result.analysis != "connections":  # these are of weights
            said, parameters, settings = caption.partition(" Parameters: ")
            caption = f"{said} {self.basis(result)}.{parameters}{settings}"
        stem = "-".join(file_names([part for part in (result.layer, result.step, kind) if part]))
        name, again = f"figures/{stem}.png", 1
        while name in self._names:
            again += 1
            name = f"figures/{stem}-{again}.png"
        self._names.add(name)
        (self.folder / "figures").mkdir(exist_ok=True)
        width, height = save(figure, self.folder / name)
        if self.vector:
            save_vector(figure, (self.folder / name).with_suffix(".svg"))
        return Plate(name, width, height, alt, caption)

    def tile(
        self, image: int, value: float | None, *, layer: Layer | None = None, box: Box | None = None,
        longest: int = TILE, patch: bool = False,
    ) -> Tile:  # fmt: skip
        """Return an image of a grid, with `box` framed and, with `patch`, shown by itself too; −1 is no image."""
        if not 0 <= image < self.images.count:
            return Tile("no image", "no image", None, None)
        known, filename = self.images.label(image), self.images.filename(image)
        label = self.images.class_name(known) if known >= 0 else (filename or f"image {image}").split("/")[-1]
        label = cut(label, _MOST_LETTERS)
        words = [f"image {image}"]
        words += [f"class {label}"] if known >= 0 else []
        words += [cut(filename, _MOST_LETTERS, end=True)] if filename else []
        if value is not None:
            words.append(f"value {number(value)}")
        picture = self.gallery.get(
            image, box, longest=longest, input_size=layer.input_size if layer is not None else None, patch=patch
        )
        return Tile(", ".join(words), label, None if value is None else number(value, pad=True), picture)

    def neuron_link(self, layer: Layer, number: int) -> str | None:
        """Return the address of a channel's own page, from the folder of the report; none where it has none."""
        paging = self.paging.get(layer.name)
        return paging.link(number) if paging is not None and 0 <= number < paging.count else None


def heading(result: Result) -> str:
    """Return the title of a result's block: the step, or that extraction recorded it."""
    return "Recorded during extraction" if result.recorded else f"Step {result.step}"


def facts(result: Result) -> list[Fact]:
    """Return how a result was computed: its parameters, time, plan and fingerprint."""
    attrs = result.data.attrs
    found = [Fact("Step", result.step), Fact("Analysis", result.analysis)]
    found += [Fact(f"Parameter {key}", setting(value)) for key, value in result.parameters.items()]
    known = ("step", "layer", "analysis", "parameters", "selection")
    for key, value in attrs.items():
        if key not in known:
            text = setting(value)
            found.append(Fact(str(key).replace("_", " ").capitalize(), text if text else NOTHING))
    return found


def variables(data: xr.Dataset) -> list[Fact]:
    """Return name, dims, lengths and dtype of each variable."""
    found = []
    for name, array in data.variables.items():
        dims = ", ".join(f"{dim} {length:,}" for dim, length in array.sizes.items())
        found.append(Fact(str(name), f"({dims}) {array.dtype}"))
    return found


def features(dims: Sequence[str], sizes: Sequence[int]) -> tuple[str, str]:
    """Return what the features are, ``channel`` or ``neuron``, and how many, in words."""
    what = "channel" if tuple(dims) == ("channel",) else "neuron"
    count = 1
    for size in sizes:
        count *= int(size)
    return what, counted(count, what)
