"""Which features of the layer before feed those of a layer: by regression, and by the weights."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.report import figures, heatmaps
from dneuro.report.blocks import Block, Fact, Plate, Row, Studio, Tile, facts, heading
from dneuro.report.contents import Layer, Result
from dneuro.report.words import counted, number, percent, quoted


def build_regression(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``regression`` result."""
    held_out = np.asarray(result.data["r2_held_out"].values, dtype=np.float64)
    fitted = np.asarray(result.data["r2"].values, dtype=np.float64)
    judged = held_out if np.isfinite(held_out).any() else fitted
    order = np.argsort(-np.nan_to_num(judged, nan=-np.inf), kind="stable")
    coefficient = np.asarray(result.data["coefficient"].values, dtype=np.float64)
    rows = [
        _row(int(target), coefficient[target], f"R² {number(float(judged[target]))}", result, studio, "coefficient")
        for target in order[: studio.neurons] if np.isfinite(judged[target])
    ]  # fmt: skip
    caption = (
        f"The {counted(len(rows), _what(result))} of {layer.name} that {_source(result)} predicts best, and the "
        "sources of largest coefficient (standard deviations per standard deviation); the picture is the top image of "
        f"the source.{quoted(result.parameters)}"
    )
    plates = [
        _explained(judged, fitted, held_out, result, layer, studio),
        _map(coefficient, "coefficient", "the coefficients of the regression", result, layer, studio),
    ]
    return Block(heading(result), plates=plates, rows=rows, caption=caption, facts=_about(result))


def build_connections(result: Result, layer: Layer, studio: Studio) -> Block:
    """Return the block of one ``connections`` result."""
    signed = np.asarray(result.data["signed"].values, dtype=np.float64)
    strength = np.asarray(result.data["strength"].values, dtype=np.float64)
    order = np.arange(len(strength)) if _dim(result) == "component" else _varied(layer, len(strength))
    share = np.asarray(result.data["share"].values, dtype=np.float64)
    k = result.data.sizes["rank"]
    rows = [
        _row(int(target), signed[target],
             f"its {k} sources hold {percent(float(share[target]))} of the squared weights", result, studio,
             "sum of weights")
        for target in order[: studio.neurons]
    ]  # fmt: skip
    caption = (
        f"The sources in {_source(result)} that feed {counted(len(rows), _what(result))} of {layer.name} most strongly "
        f"(Euclidean norm of the weights over the kernel, module {result.data.attrs.get('module', '')}); below each "
        f"its sum of weights: positive excites. The picture is the top image of the source.{quoted(result.parameters)}"
    )
    plates = [_map(np.sign(signed) * strength, "strength", "the strength of the weights, with the sign of their sum,",
                   result, layer, studio)]  # fmt: skip
    return Block(heading(result), plates=plates, rows=rows, caption=caption, facts=_about(result))


def _dim(result: Result) -> str:
    return str(result.data["strongest"].dims[0])


def _what(result: Result) -> str:
    return "component" if _dim(result) == "component" else "channel"


def _source(result: Result) -> str:
    return str(result.data.attrs.get("source") or "the source")


def _about(result: Result) -> list[Fact]:
    return facts(result)


def _varied(layer: Layer, count: int) -> NDArray[np.int64]:
    variance = layer.statistic("variance")
    known = variance is not None and len(variance) == count
    return np.argsort(-np.nan_to_num(variance), kind="stable") if known and variance is not None else np.arange(count)


def _row(target: int, values: NDArray[np.float64], note: str, result: Result, studio: Studio, what: str) -> Row:
    sources = [int(source) for source in result.data["strongest"].values[target]]
    tops = _tops(_source(result), studio)
    tiles = []
    for source in sources[: studio.shown]:
        name, value = f"channel {source}", number(float(values[source]), pad=True)
        image = None if tops is None or source >= len(tops) else int(tops[source])
        shown = studio.tile(-1 if image is None else image, None)
        tiles.append(Tile(f"{name}, {what} {value}; its top image: {shown.alt}", name, value, shown.picture))
    shown_as = f"Component {target + 1}" if _dim(result) == "component" else f"Channel {target}"
    return Row(shown_as, note, tiles, [], end="Fed by")


def _tops(name: str, studio: Studio) -> NDArray[np.int64] | None:
    """Return the top image of each channel of a layer, if some result has them."""
    layer = next((layer for layer in studio.contents.layers if layer.name == name), None)
    top = None if layer is None else layer.first("top_images", "top_image")
    images: xr.DataArray | None = None if top is None else top.data["top_image"]
    return np.asarray(images.values[:, 0]) if images is not None and images.dims == ("channel", "rank") else None


def _explained(
    judged: NDArray[np.float64], fitted: NDArray[np.float64], held_out: NDArray[np.float64], result: Result,
    layer: Layer, studio: Studio,
) -> Plate:  # fmt: skip
    known = judged[np.isfinite(judged)]
    images = counted(int(result.data.attrs["images"]), "image")
    sources = counted(result.data["coefficient"].shape[1], "feature")
    caption = (
        f"Share of the variance of {counted(known.size, _what(result))} of {layer.name} that {sources} of "
        f"{_source(result)} explain together (R²), n = {images}"
    )
    if np.isfinite(held_out).any():
        caption += (
            f", on images that were not fitted: mean {number(float(np.nanmean(held_out)))}, median "
            f"{number(float(np.nanmedian(held_out)))}; on those fitted: mean {number(float(np.nanmean(fitted)))}"
        )
    else:
        caption += f", on the images fitted: mean {number(float(np.nanmean(fitted)))}"
    alt = f"Histogram of R² of {counted(known.size, _what(result))}"
    shown = "R² on images held out" if np.isfinite(held_out).any() else "R² on the images fitted"
    figure = figures.histogram(known, shown, f"{_what(result)}s")
    return studio.plate(figure, result, "explained", alt, f"{caption}.{quoted(result.parameters)}")


def _map(
    values: NDArray[np.float64], name: str, words: str, result: Result, layer: Layer, studio: Studio
) -> Plate:
    shown = values.astype(np.float32)
    figure = heatmaps.signed(shown, name, f"channel of {_source(result)}", f"{_what(result)} of {layer.name}")
    rows, columns = (heatmaps.block(length) for length in values.shape)
    caption = f"Heat map: {words} from every channel of {_source(result)} to every {_what(result)} of {layer.name}."
    if rows * columns > 1:
        caption += f" A cell is the mean of {rows} × {columns}."
    groups = int(result.data.attrs.get("groups", 1))
    if groups > 1:
        caption += f" The convolution has {groups} groups: between them there are no weights."
    alt = f"Heat map of {values.shape[1]:,} sources by {values.shape[0]:,} targets"
    return studio.plate(figure, result, name.replace(" ", "-"), alt, caption + quoted(result.parameters))
