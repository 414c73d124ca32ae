"""The plain style of all figures, and how they become files.

Colours are those of Okabe and Ito, and colour maps whose lightness runs one way (or symmetrically about the
middle), so that figures can be read by colour-blind people and in grey print. Figures are laid out at 100
pixels per inch and saved at 200. No state of pyplot is used, so several reports may be written at once.

References
----------
Okabe, Ito, "Color universal design" (2008), https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from dneuro.report.words import number

BLUE, ORANGE, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
INK, FAINT, MISSING = "#30343a", "#d9dce0", "#9a9a9a"
_LAYOUT_DPI, _FILE_DPI = 100, 200


def save(figure: Figure, path: Path) -> tuple[int, int]:
    """Write a figure as PNG at twice its layout size and return that layout size, (width, height) in pixels."""
    canvas = FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    canvas.print_figure(buffer, format="png", dpi=_FILE_DPI, pil_kwargs={"compress_level": 1})
    with Image.open(buffer) as drawn:
        # 256 colours do: files of a half to a third of the size.
        maps = [shown.get_cmap() for ax in figure.axes for shown in ax.images]
        full = drawn.convert("RGB")
        few = _in_colours_of(maps[0], full) if maps else full.quantize(256, dither=Image.Dither.NONE)
        few.save(path, optimize=True)
        ratio = _FILE_DPI // _LAYOUT_DPI
        return drawn.width // ratio, drawn.height // ratio


def save_vector(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, letters as paths; the same figure gives the same file."""
    with rc_context({"svg.hashsalt": "dneuro"}):
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})  # type: ignore[no-untyped-call]


def plain_log(axis: Axis, low: float, high: float) -> None:
    """Name 1, 2, 5, 10, … along a logarithmic axis of less than two decades, where powers of ten alone say little."""
    if low > 0 and high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axis.set_minor_formatter(NullFormatter())


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of so many inches (100 pixels each on the page) with empty axes in it."""
    figure = Figure(figsize=(width, height), dpi=_FILE_DPI, layout="constrained", facecolor="white")
    ax = figure.add_subplot()
    plain(ax)
    return figure, ax


def plain(ax: Axes) -> None:
    """Leave of the axes what is needed to read them."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(INK)
    ax.tick_params(colors=INK, labelsize=8.5, length=3)
    ax.grid(visible=True, axis="y", color=FAINT, lw=0.7)
    ax.set_axisbelow(True)


def label(ax: Axes, x: str, y: str) -> None:
    """Name both axes."""
    ax.set_xlabel(x, color=INK, fontsize=9.5)
    ax.set_ylabel(y, color=INK, fontsize=9.5)


def legend(ax: Axes, *, columns: int = 4) -> None:
    """Say above the axes what is drawn in them."""
    handles, _ = ax.get_legend_handles_labels()
    if handles:
        rows = -(-len(handles) // columns)
        ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns,
                  columnspacing=1.2, borderaxespad=0.3 * rows)  # fmt: skip


def short(name: str) -> str:
    """Return the name of a layer as an axis has room for it; a dollar sign would start mathematics."""
    return (name if len(name) <= 22 else "…" + name[-21:]).replace("$", r"\$")


def count_along(ax: Axes, count: int) -> None:
    """Let the x axis count 1, 2, … with whole numbers."""
    margin = max(0.5, 0.03 * count)
    ax.set_xlim(1 - margin, max(1, count) + margin)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, steps=[1, 2, 5, 10]))


def _in_colours_of(colour_map: Colormap, drawn: Image.Image) -> Image.Image:
    """Return a heat map in the colours of its scale, grey for its lettering; every pixel takes the nearest.

    (A palette chosen by frequency makes steps in a colour bar whose colours are rare in the map.)
    """
    grey = np.linspace(int(INK[1:3], 16), 255, 55).astype(np.uint8)
    palette = np.concatenate([
        colour_map(np.linspace(0, 1, 200), bytes=True)[:, :3],
        np.array([[int(MISSING[i : i + 2], 16) for i in (1, 3, 5)]], dtype=np.uint8),
        np.stack([grey, grey, grey], axis=1),
    ])  # fmt: skip
    red, green, blue = np.moveaxis(np.asarray(drawn).astype(np.int32), 2, 0)
    packed = red << 16 | green << 8 | blue
    taken = np.zeros(1 << 24, dtype=np.uint8)  # of every colour there can be: first whether it occurs
    taken[packed] = 1
    occurring = np.flatnonzero(taken)
    colours = np.stack([occurring >> 16, occurring >> 8 & 255, occurring & 255], axis=1).astype(np.int32)
    nearest = np.concatenate([
        np.square(part[:, None, :] - palette.astype(np.int32)).sum(axis=2).argmin(axis=1)
        for part in np.array_split(colours, 1 + len(colours) // 4096)
    ])  # fmt: skip
    taken[occurring] = nearest  # then its nearest in the palette
    few = Image.fromarray(taken[packed])
    few.putpalette(palette.tobytes())
    return few
