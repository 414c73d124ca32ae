"""On which page a neuron stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_MOST_TILES = 300  # on one page, so that it stays below 300 kB of HTML at up to 600 bytes each
_SIZES = (10, 5, 2, 1)
_MOST_LINKS = 400


@dataclass(frozen=True)
class Range:
    """A page by the neurons on it; `last` is the last of them."""

    first: int
    last: int
    href: str

    @property
    def name(self) -> str:
        """``120–129``."""
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"


@dataclass(frozen=True)
class Paging:
    """How the neurons of a layer are spread over pages.

    Parameters
    ----------
    folder : str
        Folder of the pages below that of the report.
    count : int
        Neurons of the layer.
    size : int
        Neurons per page.
    """

    folder: str
    count: int
    size: int

    def page(self, number: int) -> str:
        """Return the file of the page that a neuron stands on, from the folder of the report."""
        return f"{self.folder}/{number - number % self.size}.html"

    def link(self, number: int) -> str:
        """Return the address of a neuron, from the folder of the report."""
        return f"{self.page(number)}#n{number}"

    def range(self, number: int) -> Range:
        """Return the page that a neuron stands on."""
        first = number - number % self.size
        return Range(first, min(first + self.size, self.count) - 1, self.page(first))

    def ranges(self) -> Iterable[Range]:
        """Yield the pages; of very many only every m-th, from which the others are reached."""
        pages = -(-self.count // self.size)
        step = -(-pages // _MOST_LINKS)
        return (self.range(page * self.size) for page in range(0, pages, step))


def page_size(images: int) -> int:
    """Return how many neurons a page holds that shows `images` images at either end of each."""
    return next((size for size in _SIZES if 2 * size * images <= _MOST_TILES), 1)
