"""Write a page for every few neurons, and the page that finds them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dneuro.report.blocks import Studio
from dneuro.report.contents import Contents, Layer
from dneuro.report.framing import words as frame_words
from dneuro.report.grids import SMALL
from dneuro.report.neurons import index
from dneuro.report.neurons.paging import Paging, page_size
from dneuro.report.neurons.portraits import Portraitist
from dneuro.report.neurons.roster import Block, Roster, roster
from dneuro.report.rendering import copy, render
from dneuro.report.words import counted, cut, quoted


def rosters(contents: Contents) -> dict[str, Roster]:
    """Return what is known of each neuron, by layer; layers of which nothing is known are left out."""
    found = ((layer.name, roster(layer, contents.images)) for layer in contents.layers)
    return {name: known for name, known in found if known is not None}


def stem(layer: Layer) -> str:
    """Return the name of a layer as its files carry it."""
    return layer.file.removeprefix("layer-").removesuffix(".html")


def paging(known: Roster, shown: int) -> Paging:
    """Return how the neurons of a layer are spread over pages that show `shown` images at either end."""
    return Paging(f"neurons/{stem(known.layer)}", known.count, page_size(shown))


def write_pictures(studio: Studio, known: dict[str, Roster]) -> None:
    """Write every picture that the pages of neurons show, in the order of the store, each once."""
    wanted = np.zeros(studio.images.count, dtype=bool)
    for one in known.values():
        wanted |= one.images_shown(studio.shown)
    studio.gallery.write(int(image) for image in np.flatnonzero(wanted))


def write(studio: Studio, known: dict[str, Roster], common: dict[str, Any]) -> None:
    """Write the pages of all neurons, the index and its data."""
    for one in known.values():
        painter = Portraitist(one, studio)
        for block in one.blocks(studio.shown):
            index.write_block(studio.folder, stem(one.layer), one, block, studio.gallery)
            _write_block(studio, one, block, painter, common)
    first = next((image for image in range(studio.images.count) if studio.gallery.holds(image)), None)
    picture = studio.gallery.get(first, longest=SMALL) if first is not None else None
    thumbnail = (picture.width, picture.height, picture.enlarged) if picture is not None else (SMALL, SMALL, False)
    layers = [(one, studio.paging[name], stem(one.layer)) for name, one in known.items()]
    index.write_layers(studio.folder, layers, studio.gallery, thumbnail)
    copy(studio.folder, "neurons.js")
    lines = [(one.layer, studio.paging[name]) for name, one in known.items()]
    render(studio.folder, "neurons.html", "neurons.html.j2", **common, lines=lines, example=_example(studio))


def _example(studio: Studio) -> str | None:
    """Return a word of a class name that can be searched for."""
    words = studio.images.class_name(0).split() if studio.images.labels is not None else []
    return cut(words[0], 40) if words else None


def _write_block(
    studio: Studio, known: Roster, block: Block, painter: Portraitist, common: dict[str, Any]
) -> None:  # fmt: skip
    pages = studio.paging[known.layer.name]
    for first in range(block.first, block.first + block.count, pages.size):
        here = pages.range(first)
        portraits = [painter.portrait(block, n - block.first) for n in range(here.first, here.last + 1)]
        before, after = first - 1, here.last + 1
        render(
            studio.folder, here.href, "portraits.html.j2", **common, layer=known.layer, here=here, count=known.count,
            portraits=portraits, caption=_caption(studio, known),
            before=pages.range(before) if before >= 0 else None,
            after=pages.range(after) if after < known.count else None,
        )  # fmt: skip


def _caption(studio: Studio, known: Roster) -> str:
    """Say what the pictures of a page are."""
    if known.tops is None:
        return "The store holds no top images of this layer."
    sample = f"n = {counted(int(studio.images.usable.sum()), 'image')}. "
    placed = "top_y" in known.tops.data and "top_x" in known.tops.data
    return (
        "Highest: the images that excite the channel most, with class and activation; lowest, smaller: those that "
        f"excite it least. {sample}{frame_words(known.layer, placed=placed)}{quoted(known.tops.parameters)}"
    )
