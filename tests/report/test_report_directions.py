"""Sections for random projections, selectivity and clusters: figures, rows, captions."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist, squareform

from dneuro.report import comparisons, depths, ridges, trees
from dneuro.report.canvas import save
from dneuro.report.write import write_report

RNG = np.random.default_rng(0)
COUNT, CHANNELS = 24, 4
CLASSES = ["zero", "one", "two", "three"]


def attrs(analysis: str, **parameters: object) -> dict[str, object]:
    return {"analysis": analysis, "step": analysis, "layer": "fc", "parameters": parameters, "images": COUNT}


def results() -> dict[str, xr.Dataset]:
    variance = np.array([0.5, 2.0, 1.0])
    rank = ("direction", "rank")
    tree = linkage(RNG.random((3, 2)), "average")
    pearson = np.corrcoef(RNG.random((CHANNELS, 9)))
    pearson[3] = pearson[:, 3] = np.nan
    facets = np.array([0.2, np.nan, 0.9, 0.5])
    return {
        "/results/random_projections/fc": xr.Dataset(
            {
                "score": (("image", "direction"), RNG.random((COUNT, 3))), "variance": ("direction", variance),
                "kept": ("direction", variance >= 1), "neuron_variance": ("channel", RNG.random(CHANNELS)),
                "top_value": (rank, RNG.random((3, 5))), "top_image": (rank, RNG.integers(0, COUNT, (3, 5))),
                "bottom_value": (rank, RNG.random((3, 5))), "bottom_image": (rank, RNG.integers(0, COUNT, (3, 5))),
            },
            attrs={**attrs("random_projections", directions=3), "cutoff": 1.0, "standardize": "image"},
        ),
        "/results/selectivity/fc": xr.Dataset(
            {
                "mf": ("channel", facets), "gini": ("channel", 1 - facets), "class_selectivity": ("channel", facets),
                "p_low": ("channel", [0.01, np.nan, 0.9, 0.5]), "p_high": ("channel", [0.99, np.nan, 0.1, 0.5]),
                "preferred_class": ("channel", [2, -1, 0, 1]), "mf_chance": ("channel", [0.8, np.nan, 0.8, 0.8]),
                "mf_chance_std": ("channel", [0.05, np.nan, 0.05, 0.05]),
            },
            attrs=attrs("selectivity", of="cof"),
        ),
        "/results/clusters/fc": xr.Dataset(
            {
                "pearson": (("channel", "other_channel"), pearson), "cluster": ("channel", [0, 0, 1, -1]),
                "order": ("channel", [1, 0, 2, 3]), "size": ("group", [2, 1]), "spread": ("group", [0.2, np.nan]),
                "member": (("group", "rank"), [[1, 0], [2, -1]]), "linkage": (("merge", "column"), tree),
                "leaf_neuron": ("leaf", [0, 1, 2]),
            },
            attrs=attrs("clusters", count=2),
        ),
        "/results/alike/fc": _images_alike(),
        "/results/kmeans/fc": xr.Dataset(
            {
                "cluster": ("image", np.arange(COUNT) % 2), "distance": ("image", RNG.random(COUNT)),
                "size": ("group", [12, 12]), "member": (("group", "rank"), [[4, 2, -1], [1, 3, 7]]),
                "class_count": (("group", "class"), [[6, 0, 6, 0], [0, 6, 0, 6]]),
            },
            coords={"image": np.arange(COUNT), "class": CLASSES},
            attrs={**attrs("kmeans", count=2), "inertia": 12.5, "iterations": 7, "converged": True},
        ),
    }  # fmt: skip


def _images_alike() -> xr.Dataset:
    """Images 0, 1, 2 … in two clusters of 12, but for image 23, which took no part."""
    values = np.random.default_rng(1).random((COUNT - 1, 5)) + 9 * (np.arange(COUNT - 1) % 2)[:, None]
    tree = linkage(values, "average")
    order = np.append(np.argsort(leaves_list(tree)), COUNT - 1)
    apart = np.full((COUNT, COUNT), np.nan)
    apart[: COUNT - 1, : COUNT - 1] = squareform(pdist(values))
    return xr.Dataset(
        {
            "euclidean": (("image", "other_image"), apart), "cluster": ("image", [*(np.arange(COUNT - 1) % 2), -1]),
            "order": ("image", order), "size": ("group", [12, 11]), "spread": ("group", [0.9, 0.8]),
            "member": (("group", "rank"), [[4, 2, 0], [1, 3, 7]]), "linkage": (("merge", "column"), tree),
            "leaf_image": ("leaf", np.arange(COUNT - 1)),
            "class_count": (("group", "class"), [[6, 0, 6, 0], [0, 6, 0, 5]]),
        },
        coords={"image": np.arange(COUNT), "other_image": np.arange(COUNT), "class": CLASSES},
        attrs={**attrs("clusters", count=2, per="image"), "step": "alike"},
    )  # fmt: skip


@pytest.fixture
def source(small, pictures, tmp_path, read_pages) -> str:
    kept = {path: dataset for path, dataset in small.items() if not path.startswith("/results/similarity")}
    kept["/layers/fc"] = kept["/layers/fc"].isel(channel=np.arange(CHANNELS) % kept["/layers/fc"].sizes["channel"])
    tree = xr.DataTree.from_dict({**{path: kept[path] for path in ("/", "/layers/fc")}, **results()})
    written = write_report(tree, tmp_path / "report", pictures=pictures, neurons=3, images=4)
    return read_pages(written)["layer-fc.html"].source


def section(source: str, anchor: str) -> str:
    return source.split(f'id="{anchor}"')[1].split('<section id="')[0].split('aria-labelledby')[0]


def test_random_projections__are_shown_beside_neurons(source: str) -> None:
    found = section(source, "random_projections")
    assert "fc-random_projections-variances.png" in found
    assert "Kept: 2 directions with a variance of at least 1." in found
    assert "4 single neurons" in found
    rows = re.findall(r"<h4>Direction (\d) <span class=\"note\">variance [\d.]+, ([a-z ]+)", found)
    assert rows == [("1", "kept"), ("2", "kept"), ("0", "as drawn")], "those kept, largest variance first; a baseline"
    assert "variance 2" in found
    assert "Lowest" in found


def test_selectivity__is_shown_beside_chance(source: str) -> None:
    found = section(source, "selectivity")
    assert "from the counts of step cof" in found
    assert "Labels by chance give 0.8 ± 0.05." in found
    assert "Single-faceted with p &lt; 0.05 within the layer: 33.3 %" in found
    assert "Left out, for they have no finite MF: 1 channel" in found
    assert "prefers two" in found
    assert "Top images" in found


def test_clusters__are_shown_with_their_members(source: str) -> None:
    found = section(source, "clusters")
    assert "4 channels of fc in 2 clusters" in found
    assert "Grey: 1 channel in no cluster, for it does not vary." in found
    assert "2 members, mean distance 0.2: 1, 0" in found
    assert "Cluster 1" not in found, "one neuron is no cluster to show"


def test_clusters__of_images_are_shown_with_their_pictures(source: str) -> None:
    found = section(source, "clusters-of-images")
    assert "24 images of fc in 2 clusters, framed; above, the tree" in found
    assert "Grey: 1 image in no cluster, for it does not vary, or took no part." in found
    assert "12 images, mean distance 0.9, 50 % zero" in found
    first = found.split("<h4>Cluster 0")[1].split("<h4>")[0]
    assert re.findall(r'<img [^>]*alt="image (\d+),', first) == ["4", "2", "0"]
    assert "fc-alike-classes.png" in found
    assert "4 channels" not in found


def test_kmeans__are_shown_with_their_images(source: str) -> None:
    found = section(source, "kmeans")
    assert "Inertia (sum of the squared distances) 12.5 after 7 iterations." in found
    assert "Purity (images in their cluster&#39;s largest class): 50 %" in found
    assert re.findall(r'<img [^>]*alt="image (\d+),', found.split("<h4>Cluster 0")[1].split("<h4>")[0]) == ["4", "2"]


def test_depth__is_drawn_once_for_several_layers(small, tmp_path, read_pages) -> None:
    one = results()["/results/selectivity/fc"]
    other = one.assign_attrs(layer="conv.9")
    tree = xr.DataTree.from_dict({**small, "/results/selectivity/fc": one, "/results/selectivity/conv.9": other})
    pages = read_pages(write_report(tree, tmp_path / "report", pictures=None))
    drawn = {name for name, page in pages.items() if "selectivity-depth.png" in page.source}
    assert len(drawn) == 1
    assert "Below the mean of all layers" in pages["layer-fc.html"].source


@pytest.mark.parametrize("values", [[], [np.nan], [0.0], [1.0] * 5, [0.1, 900.0, 0.2, 0.3, 0.4]])
def test_figures__draw_any_values(values: list[float], tmp_path: Path) -> None:
    array = np.array(values, dtype=np.float64)
    save(comparisons.shares({"a": array, "b": array[:1]}, "x", 0.5, "cut-off"), tmp_path / "a.png")
    save(comparisons.density(array, "x", "channels", chance=(np.nan, 1.0)), tmp_path / "b.png")
    save(depths.curves(["a", "b$"], {"MF": depths.Curve(np.array([np.nan, 1.0]))}, "MF"), tmp_path / "c.png")
    save(ridges.ridges({"a": array, "b$": array[:1]}, dict.fromkeys(["a", "b$"], ridges.Fit(0.5, 0.1)), "x"),
         tmp_path / "d.png")  # fmt: skip


def test_shares__are_of_each_sample() -> None:
    figure = comparisons.shares({"a": RNG.random(300), "b": RNG.random(7)}, "x")
    for container in figure.axes[0].containers:
        assert sum(bar.get_height() for bar in container) == pytest.approx(1)


@pytest.mark.parametrize("count", [0, 1, 2, 30])
@pytest.mark.parametrize("metric", ["pearson", "euclidean"])
def test_clustered__draws_any_number(count: int, metric: str, tmp_path: Path) -> None:
    tree = linkage(RNG.random((count, 2)), "average") if count > 1 else np.empty((0, 4))
    sizes = [] if not count else [1] if count == 1 else [count - 1, 1]
    values = RNG.random((count, count)).astype("f4")
    figure = trees.clustered(values, tree, sizes, [str(i) for i in range(count)], metric, "channel")
    save(figure, tmp_path / "a.png")
    assert len(figure.axes[1].collections[0].get_segments()) == max(0, count - 1)
