"""Pages of single- and multi-faceted neurons, and of layers side by side over depth."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from scipy import stats

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.report import comparisons, depths, ridges
from dneuro.report.beside.table import goes
from dneuro.report.depths import Curve
from dneuro.report.ridges import Fit
from dneuro.report.write import write_report

COUNT, CLASSES = 24, ["zero", "one", "two", "three"]
LAYERS = {"one": 9, "two": 12}
ReadPages = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def parts(images: xr.Dataset) -> dict[str, xr.Dataset]:
    """Two layers with what the functions find out about them; the second tells classes apart."""
    rng, root, threads = np.random.default_rng(2), images, ThreadExecutor(2)
    labels = root["label"].values
    found: dict[str, xr.Dataset] = {"/": root}
    selectivity, similar = {}, {}
    for order, (name, channels) in enumerate(LAYERS.items()):
        values = np.abs(rng.normal(size=(COUNT, channels, 3, 3)))
        values *= 1 + 0.5 * order * (labels[:, None, None, None] == np.arange(channels)[None, :, None, None] % 4)
        values[:, 0] = 0
        x = xr.DataArray(values.astype("f4"), dims=("image", "channel", "y", "x"),
                         coords={"label": ("image", labels), "status": root["status"]},
                         attrs={"layer": name, "class_names": CLASSES})  # fmt: skip
        counts = dn.cooccurrence(x, k=6, client=threads)
        selectivity[name] = dn.selectivity(counts["count"].assign_attrs(layer=name), chance=20)
        selectivity[name].attrs["parameters"] |= {"of": "cof"}
        similar[name] = dn.similarity(counts["count"].assign_attrs(layer=name), client=threads)
        similar[name].attrs["parameters"] |= {"of": "cof"}
        results = {
            "top_images": dn.top_images(x, k=6, client=threads), "cof": counts, "selectivity": selectivity[name],
            "similarity": similar[name],
        }  # fmt: skip
        shape = {"layer": name, "order": order, "shape": [channels, 3, 3], "input_size": [14, 14]}
        field = {"size": [5, 5], "stride": [2, 2], "start": [0, 0]}
        found[f"/layers/{name}"] = xr.Dataset(attrs={**shape, "receptive_field": field})
        found |= {f"/results/{step}/{name}": data.assign_attrs(step=step) for step, data in results.items()}
    tree = dn.facets(selectivity, k=4)
    whole = {"facets": tree.to_dataset(), "mean": dn.mean_similarity(similar, client=threads)}
    for name in LAYERS:
        found[f"/results/facets/{name}"] = tree[name].to_dataset(inherit=False)
    found |= {f"/results/{step}/layers": data for step, data in whole.items()}
    for path, of in (("facets", "selectivity"), ("mean", "similarity")):
        for place in [place for place in found if place.startswith(f"/results/{path}/")]:
            known = found[place].attrs
            found[place] = found[place].assign_attrs(step=path, parameters={"of": of, **known["parameters"]})
    return found


def written(parts: dict[str, xr.Dataset], out: Path, pictures: Any, read_pages: ReadPages) -> dict[str, Any]:
    tree = xr.DataTree.from_dict(parts)
    return read_pages(write_report(tree, out, pictures=pictures, neurons=6, images=2, index=False))


@pytest.fixture(scope="module")
def pages(
    parts: dict[str, xr.Dataset], tmp_path_factory: pytest.TempPathFactory, pictures: Any, read_pages: ReadPages
) -> dict[str, Any]:
    """Their report."""
    return written(parts, tmp_path_factory.mktemp("facets"), pictures, read_pages)


def test_page__comes_in_the_order_of_the_paper(pages: dict[str, Any]) -> None:
    page = pages["layer-two.html"]
    places = [page.source.index(f'<section id="{name}">') for name in ("cooccurrence", "selectivity", "facets",
                                                                        "similarity")]  # fmt: skip
    assert places == sorted(places)
    names = {image["src"] for image in page.images}
    assert {f"figures/two-{name}.png" for name in (
        "cof-classes", "selectivity-gini", "selectivity-flatness", "facets-mf", "similarity-pearson",
        "similarity-euclidean",
    )} <= names  # fmt: skip
    assert "figures/two-selectivity-facets.png" not in names, "what a step of facets says is said once"


@pytest.mark.parametrize("name", ["layer-two.html", "layers.html"])
def test_captions__say_of_how_many_images_and_how_many_are_counted(pages: dict[str, Any], name: str) -> None:
    plates = r'<figure class="plate">.*?<figcaption>(.*?)</figcaption>'
    captions = re.findall(plates, pages[name].source, re.DOTALL)
    counted = [caption for caption in captions if "of which each channel&#39;s top 6 are counted." in caption]
    assert all(re.search(r"n = \d+ images", caption) for caption in captions), captions
    assert len(counted) == {"layer-two.html": 6, "layers.html": 8}[name], captions


def test_facets__section_has_a_gallery_of_either_side(parts: dict[str, xr.Dataset], pages: dict[str, Any]) -> None:
    page = pages["layer-two.html"]
    own, whole = parts["/results/facets/two"], parts["/results/facets/layers"]
    text = page.text[page.text.index("Step facets") :]
    scale = whole.attrs["largest"]
    assert f"divided by {scale:.3g}, the largest of all layers (in {whole.attrs['layer_of_largest']})" in text
    assert f"The threshold, {float(whole['threshold'][0]):.3g}, is the mean of all layers." in text
    assert "Without MF, for nothing was counted: 1 channel." in text
    assert "Labels by chance give" in text
    first = int(own["lowest"][0])
    single = text[text.index("Single-faceted neurons") :]
    p = float(own["p"][first])
    assert f"Channel {first} MF {float(own['mf'][first]):.3g}, p = {p:.3g}" in single
    row = parts["/results/cof/two"]["count"].values[first]
    assert f"{CLASSES[int(row.argmax())]} {row.max()}" in single
    assert 'class="shot"' in page.source, "the winning patch is framed"
    assert "Framed: what the winning position sees (5 × 5 pixels)" in single
    low, high = (int((own["facet"] == side).sum()) for side in (0, 1))
    assert f"among {low:,} single-faceted ones" in single
    assert (f"among {high:,} multi-faceted ones" in single) == (high > 0)


def test_layers__lie_side_by_side_over_depth(parts: dict[str, xr.Dataset], pages: dict[str, Any]) -> None:
    page, facets, mean = pages["layers.html"], parts["/results/facets/layers"], parts["/results/mean/layers"]
    assert "layers.html" in pages["index.html"].links
    assert "Results of no layer" not in pages["index.html"].text
    assert page.headings == [1, 2, 2]
    assert [image["src"] for image in page.images] == [
        f"figures/{name}.png" for name in (
            "facets-mf", "facets-shape", "facets-fractions", "facets-mf-densities", "facets-gini-densities",
            "facets-flatness-densities", "mean-pearson", "mean-euclidean",
        )
    ]  # fmt: skip
    assert not any("loading" in image for image in page.images), "figures are there when the page is printed"
    for place, name in enumerate(LAYERS):
        assert f"layer-{name}.html" in page.links
        assert f"{float(facets['mf_mean'][place]):.3g} ± {float(facets['mf_std'][place]):.3g}" in page.text
        assert f"{100 * float(facets['multi_share'][place]):.3g} %" in page.text
        assert f"{float(mean['euclidean'][place]):.3g} ± {float(mean['euclidean_std'][place]):.3g}" in page.text
    first, last = (f"{value:.3g}" for value in facets["mf_mean"].values)
    assert f"It falls from {first} in the first layer to {last} in the last" in page.text
    assert "Compared: rows of step cof." in page.text


def test_selectivity__draws_facets_itself_where_no_step_is_about_them(
    parts: dict[str, xr.Dataset], tmp_path: Path, pictures: Any, read_pages: ReadPages
) -> None:
    fewer = {path: data for path, data in parts.items() if "facets" not in path}
    page = written(fewer, tmp_path / "out", pictures, read_pages)["layer-one.html"]
    names = {image["src"] for image in page.images}
    assert {"figures/one-selectivity-facets.png", "figures/one-selectivity-depth.png"} <= names
    assert "The neurons of smallest and of largest MF, with their preferred class." in page.text
    smallest = int(parts["/results/facets/one"]["lowest"][0])
    assert f"Channel {smallest} MF" in page.text


@pytest.mark.parametrize(
    ("mean", "said"),
    [
        ([0.8, 0.7, 0.4], "falls from 0.8 in the first layer to 0.4 in the last"),
        ([132, 677, 190], "rises from 132 in the first layer to 190 in the last; largest in b, 677"),
        ([3, 1, 3], "is 3 in the first layer and in the last; smallest in b, 1"),
        ([np.nan, 2, 1], "falls from 2 in the first layer to 1 in the last"),
        ([np.nan, 2, np.nan], "is known of fewer than two layers"),
    ],
)
def test_goes__says_where_it_turns(mean: list[float], said: str) -> None:
    assert goes(np.array(mean, dtype=float), ["a", "b", "c"]) == said


def lines(figure: Figure) -> dict[str, Any]:
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_curves__show_averages_chance_and_limits() -> None:
    mean, spread = np.array([0.8, np.nan, 0.4]), np.array([0.1, np.nan, 0.1])
    figure = depths.curves(["a", "b", "c"], {"MF": Curve(mean, spread)}, "MF", chance=Curve(mean / 2, spread),
                           lines={"threshold": np.full(3, 0.5)})  # fmt: skip
    found = lines(figure)
    np.testing.assert_array_equal(found["MF"].get_ydata(), mean)
    np.testing.assert_array_equal(found["by chance, ± 1 σ"].get_ydata(), mean / 2)
    assert found["threshold"].get_ydata().tolist() == [0.5] * 3
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["a", "b", "c"]


def test_curves__leave_out_chance_that_is_off_the_scale() -> None:
    mean = np.array([0.3, 0.2])
    far = depths.curves(["a", "b"], {"MF": Curve(mean)}, "MF", chance=Curve(mean + 9, mean))
    assert "by chance, ± 1 σ" not in lines(far)
    assert far.axes[0].get_ylim()[1] < 0.5


def test_fractions__fill_the_whole_from_both_sides() -> None:
    multi, single = np.array([0.75, 0.2]), np.array([0.25, 0.8])
    parts = [("multi", multi, multi / 4), ("single", single, single / 2)]
    figure = depths.fractions(["a", "b"], parts, "share", "sure")
    bars = [[bar.get_y(), bar.get_height()] for bar in figure.axes[0].patches]
    np.testing.assert_allclose(bars, [
        [0, 0.75], [0, 0.2], [0, 0.1875], [0, 0.05], [0.75, 0.25], [0.2, 0.8], [0.875, 0.125], [0.6, 0.4],
    ])  # fmt: skip


@pytest.mark.parametrize("count", [5, 300, 20_000])
def test_kernel_density__as_scipy_has_it(count: int) -> None:
    values = np.random.default_rng(count).gamma(3.0, size=count)
    along, density = ridges.kernel_density(values)
    wanted = stats.gaussian_kde(values)(along)
    np.testing.assert_allclose(density, wanted, atol=0.02 * wanted.max())
    assert np.trapezoid(density, along) == pytest.approx(1, abs=0.01)


def test_ridges__draw_density_and_normal_of_each_layer() -> None:
    rng = np.random.default_rng(0)
    first, none = rng.normal(0.7, 0.05, 200), np.full(3, np.nan)
    samples = {"first": first, "same": np.full(9, 0.4), "none": none, "one": np.ones(1)}
    fits = {"first": Fit(0.7, 0.05), "same": Fit(0.4, 0.0), "none": Fit(np.nan, np.nan), "one": Fit(1.0, 0.0)}
    figure = ridges.ridges(samples, fits, "MF", chance=Fit(0.6, 0.01), line=(0.5, "threshold"))
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(samples)
    normal = lines(figure)["fitted normal"]
    at = normal.get_xdata()[normal.get_ydata().argmax()]
    assert at == pytest.approx(0.7, abs=0.01)
    assert lines(figure)["threshold"].get_xdata() == [0.5, 0.5]


def test_density__tells_both_sides_of_a_line_apart() -> None:
    values = np.linspace(0, 1, 50)
    figure = comparisons.density(values, "MF", "channels", line=(0.3, "threshold"), sides=("single", "multi"))
    ax = figure.axes[0]
    assert {"single", "multi", "threshold"} <= {text.get_text() for text in ax.get_legend().get_texts()}
    bars = [bar for bar in ax.patches if bar.get_height() > 0]
    colours = {bar.get_facecolor() for bar in bars if bar.get_x() >= 0.3}, {
        bar.get_facecolor() for bar in bars if bar.get_x() < 0.299
    }
    assert [len(some) for some in colours] == [1, 1]
    assert colours[0] != colours[1]
    below = sum(bar.get_width() * bar.get_height() for bar in bars if bar.get_x() < 0.299)
    assert below == pytest.approx((values < 0.3).mean(), abs=1e-9), "a bar ends at the line"
