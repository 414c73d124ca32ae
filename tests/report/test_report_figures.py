from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dneuro.report import figures, heatmaps
from dneuro.report.canvas import save


def drawn(figure: Figure) -> np.ndarray:
    """What the heat map of a figure shows, NaN where it is grey."""
    return figure.axes[0].images[0].get_array().filled(np.nan)


def test_save__writes_twice_the_layout_size(tmp_path):
    width, height = save(figures.ranked(np.arange(5.0), "x", "y"), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (2 * width, 2 * height)
    assert (tmp_path / "a.png").stat().st_size < 60_000


def test_save__keeps_the_colours_of_a_heat_map(tmp_path):
    values = np.array([[1, -1], [np.nan, 1]], dtype=np.float32)
    save(heatmaps.similarity(values, ["0", "1"], "pearson", "channel"), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(255, 255, 255), (103, 0, 31), (5, 48, 97), (154, 154, 154)} <= colours


@pytest.mark.parametrize("values", [[], [np.nan], [0.0], [3.0], [1.0, np.nan, 2.0], [0.0] * 9])
def test_curves__draw_any_values(values, tmp_path):
    array = np.array(values, dtype=np.float64)
    save(figures.histogram(array, "x", "y"), tmp_path / "a.png")
    save(figures.ranked(array, "x", "y"), tmp_path / "b.png")
    save(figures.spectrum(array, array), tmp_path / "c.png")


def test_histogram__counts_every_value_once():
    values = np.random.default_rng(0).normal(size=500)
    assert sum(bar.get_height() for bar in figures.histogram(values, "x", "y").axes[0].patches) == 500


def test_histogram__is_logarithmic_where_values_spread_widely():
    values = np.concatenate([np.zeros(3), np.geomspace(1e-3, 1e3, 50)])
    axes = figures.histogram(values, "x", "y").axes[0]
    assert axes.get_xscale() == "log"
    assert sum(bar.get_height() for bar in axes.patches) == 50


def test_ranked__thins_a_long_curve_and_keeps_both_ends():
    values = np.random.default_rng(0).permutation(100_000).astype(np.float64)
    line = figures.ranked(values, "x", "y").axes[0].lines[0]
    assert len(line.get_xdata()) <= 2000
    assert (line.get_ydata()[0], line.get_ydata()[-1]) == (99_999, 0)


def test_spectrum__second_axis_is_cumulative():
    figure = figures.spectrum(np.array([3.0, 2.0, 1.0]), np.array([0.5, 0.3, 0.1]))
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [0.5, 0.8, 0.9])
    assert len(figures.spectrum(np.array([3.0]), None).axes) == 1


def test_similarity__pearson_is_centred_at_zero_and_nan_is_missing():
    values = np.array([[1, 0.5, np.nan], [0.5, 1, np.nan], [np.nan] * 3], dtype=np.float32)
    figure = heatmaps.similarity(values, ["0", "1", "2"], "pearson", "channel")
    assert figure.axes[0].images[0].get_clim() == (-1, 1)
    np.testing.assert_array_equal(drawn(figure), values)


def test_similarity__euclidean_starts_at_zero():
    values = np.array([[0, 4], [4, 0]], dtype=np.float32)
    assert heatmaps.similarity(values, ["0", "1"], "euclidean", "channel").axes[0].images[0].get_clim() == (0, 4)


@pytest.mark.parametrize("size", [0, 1])
def test_similarity__of_none_or_one_is_drawn(size, tmp_path):
    values = np.full((size, size), np.nan, dtype=np.float32)
    for metric in ("pearson", "euclidean"):
        save(heatmaps.similarity(values, ["0"] * size, metric, "channel"), tmp_path / "a.png")


def test_heat_map__larger_than_the_eye_can_see_shows_block_means():
    values = np.random.default_rng(0).random((3000, 3)).astype(np.float32)
    values[:3] = np.nan
    values[3, 0] = np.nan
    shown = drawn(heatmaps.cooccurrence(values, None, ["a", "b", "c"], "channel"))
    assert shown.shape == (1000, 3)
    assert np.isnan(shown[0]).all()
    assert heatmaps.block(3000) == 3
    np.testing.assert_allclose(shown[1:], np.nanmean(values.reshape(1000, 3, 3)[1:], axis=1), rtol=1e-5)


def test_heat_map__names_that_no_font_draws_or_that_look_like_mathematics(tmp_path):
    names = ["$x_", "鳥", "a\nb", "long " * 20, "\\frac", "<b>"]
    values = np.eye(6, dtype=np.float32)
    save(heatmaps.cooccurrence(values, names, names, "channel"), tmp_path / "a.png")  # warnings are errors
