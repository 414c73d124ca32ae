from __future__ import annotations

import json
import re
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from dneuro.report import words
from dneuro.report.contents import Images, Layer, Result, read
from dneuro.report.neurons.composition import compose
from dneuro.report.neurons.paging import Paging, page_size
from dneuro.report.neurons.roster import BLOCK, roster
from dneuro.report.write import write_report

LIMIT = 300_000
"""Bytes that no page and no file of the index exceeds, whatever number of neurons and images."""


def calls(path: Path) -> Any:
    """What a file of the index hands over: the JSON of ``dneuro.add(stem, first, …);`` or ``window.dneuro=…;``."""
    return json.loads(re.fullmatch(r"(?:dneuro\.add\([^{]*|window\.dneuro=)(\{.*\})\)?;\n", path.read_text())[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def written(written_in, read_pages):
    """Pages of the whole store, by file name."""
    return read_pages(written_in / "index.html")


def portrait(page: Any, number: int) -> str:
    """HTML of one neuron."""
    return page.source.split(f'id="n{number}"')[1].split("</article>")[0]


def test_paging__every_neuron_is_on_one_page():
    paging = Paging("neurons/a", 23, 10)
    assert [found.name for found in paging.ranges()] == ["0–9", "10–19", "20–22"]
    assert paging.link(17) == "neurons/a/10.html#n17"
    for n in range(23):
        found = paging.range(n)
        assert found.first <= n <= found.last
        assert found.href == paging.page(n)


def test_paging__lists_at_most_some_hundreds_of_pages():
    assert len(list(Paging("a", 10**6, 10).ranges())) <= 400


@pytest.mark.parametrize(("images", "size"), [(1, 10), (9, 10), (15, 10), (16, 5), (50, 2), (150, 1), (1000, 1)])
def test_page_size__pages_hold_fewer_neurons_of_more_images(images: int, size: int):
    assert page_size(images) == size
    assert BLOCK % size == 0  # a page never needs two blocks


def test_compose__counts_classes_as_a_counter_does():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 7, 50)
    images = rng.integers(-1, 50, (30, 12))
    images[4] = -1
    made = compose(images, labels)
    for n, row in enumerate(images):
        counts = Counter(int(labels[i]) for i in row if i >= 0 and labels[i] >= 0)
        assert dict(made.of(n)) == counts
        assert [count for _, count in made.of(n)] == sorted(counts.values(), reverse=True)
        share = np.array([*counts.values()]) / max(1, counts.total())
        entropy = -(share * np.log2(share)).sum() if counts else np.nan
        np.testing.assert_allclose(made.entropy[n], entropy, atol=1e-12)
        np.testing.assert_allclose(made.purity[n], share.max() if counts else np.nan)


@pytest.mark.parametrize("labels", [np.full(5, -1), np.zeros(0, dtype=np.int64)])
def test_compose__of_images_without_classes(labels):
    made = compose(np.array([[0, 1], [2, -1]]), labels)
    assert made.of(0) == []
    assert np.isnan(made.entropy).all()
    assert np.isnan(made.purity).all()


def layer_of(*results: Result, **attrs: Any) -> Layer:
    return Layer("a", "layer-a.html", xr.Dataset(attrs=attrs), results)


def result(analysis: str, data: dict[str, Any], step: str = "s", **coords: Any) -> Result:
    return Result(step, "a", analysis, xr.Dataset(data, coords=coords, attrs={"parameters": {}}))


def test_roster__takes_every_number_per_channel_that_a_step_found():
    known = roster(
        layer_of(
            result("moments", {"mean": ("channel", [1.0, 2, 3]), "variance": ("channel", [0.5, 1, 2])}),
            result("kurtosis", {"excess_kurtosis": ("channel", [3, 4, 5]), "text": ("channel", ["a", "b", "c"])}, "k"),
            result("clusters", {"label": ("channel", [0, 1, 0]), "centre": (("cluster", "channel"), np.ones((2, 3)))}),
            shape=[3, 2, 2],
        ),
        Images(xr.Dataset()),
    )
    assert known is not None
    assert {column.key: column.values.tolist() for column in known.columns} == {
        "variance": [0.5, 1, 2], "mean": [1, 2, 3], "k.excess_kurtosis": [3, 4, 5], "s.label": [0, 1, 0],
    }  # fmt: skip
    assert known.columns[2].title == "k: excess kurtosis"


def test_roster__leaves_out_what_is_of_some_channels_only():
    some = result("moments", {"variance": ("channel", [5.0, 6, 7])}, channel=[2, 0, 1])
    few = result("top_images", {"top_image": (("channel", "rank"), [[1], [2]])})
    assert roster(layer_of(some, few, shape=[3]), Images(xr.Dataset())) is None


def test_roster__a_layer_of_which_nothing_is_known_has_none():
    assert roster(layer_of(shape=[3]), Images(xr.Dataset())) is None


def test_roster__nearest_are_the_most_correlated_others():
    rng = np.random.default_rng(3)
    pearson = np.corrcoef(rng.random((9, 20)))
    pearson[4] = pearson[:, 4] = np.nan
    known = roster(
        layer_of(
            result("moments", {"variance": ("channel", np.ones(9))}),
            result("similarity", {"pearson": (("channel", "other_channel"), pearson)}),
        ),
        Images(xr.Dataset()),
    )
    assert known is not None
    (block,) = known.blocks(3)
    assert block.near is not None
    others, values = block.near
    for n in (0, 8):
        wanted = sorted((other for other in range(9) if other not in (n, 4)), key=lambda m: -pearson[n, m])[:5]
        assert others[n].tolist() == wanted
        np.testing.assert_allclose(values[n], pearson[n, wanted])
    assert not np.isfinite(values[4]).any()


def test_neuron__says_its_numbers_and_its_place(written, parts):
    layer = parts["/layers/conv.10"]
    variance = layer["variance"].values
    for n in range(5):
        text = re.sub(r"<[^>]+>", " ", portrait(written["neurons/conv.10/0.html"], n))
        text = " ".join(text.split())
        assert f"variance {words.number(float(variance[n]))}" in text
        assert f"mean {words.number(float(layer['mean'].values[n]))}" in text
        assert f"rank by variance {1 + int((variance > variance[n]).sum())} of 5" in text


def test_neuron__shows_its_images_at_either_end_in_order(written, parts):
    layer = parts["/layers/conv.9"]
    for n in range(4):
        high, low = portrait(written["neurons/conv.9/0.html"], n).split('class="end lowest"')
        for html, end in ((high, "top"), (low, "bottom")):
            shown = [int(number) for number in re.findall(r'title="image (\d+),', html)]
            assert shown == layer[f"{end}_image"].values[n, :4].tolist()
        values = re.findall(r'class="value">([^<]+)<', high)
        assert values == [words.number(float(value), pad=True) for value in layer["top_value"].values[n, :4]]


def test_neuron__shows_what_the_winning_position_saw(written, parts):
    layer = parts["/layers/conv.9"]
    html = portrait(written["neurons/conv.9/0.html"], 2)
    patches = re.findall(r'class="patch" style="([^"]+)"><img src="([^"]+)".*?style="([^"]+)"', html)
    assert len(patches) == 4
    for rank, (window, src, style) in enumerate(patches):
        y, x = (int(layer[f"top_{dim}"].values[2, rank]) for dim in "yx")
        factor = 96 / 5  # the receptive field of 5 × 5 pixels fills a tile
        assert window == "width:96px;height:96px"
        assert src.endswith(f"/{int(layer['top_image'].values[2, rank])}.png")
        assert f"left:{-(-2 + 2 * x) * factor:.4g}px;top:{-(-2 + 2 * y) * factor:.4g}px" in style


def test_neuron__says_which_classes_its_top_images_show(written, parts):
    labels = parts["/"]["label"].values
    names = ["zero", "one", "two", "three"]
    layer = parts["/layers/fc"]
    assert (layer["top_value"].values[1] == 0).all(), "one that never fires"
    for n in range(6):
        html = portrait(written["neurons/fc/0.html"], n)
        assert ("The highest all tie at 0" in html) == (n == 1)
        if n == 1:
            assert "among its top" not in html
            continue
        counts = Counter(names[labels[image]] for image in layer["top_image"].values[n])
        found = re.findall(r'class="name">(\w+)<.*?width:([\d.]+)%.*?class="digits">(\d+)<', html)
        assert {name: int(count) for name, _, count in found} == counts
        assert all(float(percent) == 100 * int(count) / 8 for _, percent, count in found)
        assert "among its top 8 images" in html


def test_neuron__says_where_its_lowest_images_tie(written, parts):
    lowest = parts["/layers/conv.10"]["bottom_value"].values
    for n in range(5):
        said = "The lowest all tie at 0" in portrait(written["neurons/conv.10/0.html"], n)
        assert said == bool(np.ptp(lowest[n, :4]) == 0)


def test_neuron__names_the_most_correlated_others(written, parts):
    pearson = parts["/results/similarity/fc"]["pearson"].values
    html = portrait(written["neurons/fc/0.html"], 0).split('class="near"')[1]
    wanted = sorted((m for m in range(6) if m not in (0, 1)), key=lambda m: -pearson[0, m])  # 1 is constant
    assert [int(n) for n in re.findall(r'0\.html#n(\d+)"', html)] == wanted
    assert f"r = {words.number(pearson[0, wanted[0]])}" in html


def test_neuron__is_reached_from_the_list_of_most_varied(written):
    page = written["layer-conv.9.html"]
    for number in re.findall(r">Channel (\d+)</a>", page.source):
        assert f"neurons/conv.9/0.html#n{number}" in page.links
    assert len(re.findall(r">Channel \d+</a>", page.source)) == 3


def test_index__has_every_neuron_with_its_numbers(written_in, parts):
    found = calls(written_in / "data" / "fc-0.js")
    layer = parts["/layers/fc"]
    for name, key in (("variance", "variance"), ("mean", "mean"), ("fraction_active", "active")):
        np.testing.assert_allclose(found["columns"][key], layer[name].values, rtol=1e-5)
    labels = parts["/"]["label"].values[layer["top_image"].values]
    counts = np.stack([np.bincount(row, minlength=4) for row in labels])
    fires = [0, 2, 3, 4, 5]
    np.testing.assert_allclose([found["columns"]["purity"][n] for n in fires], counts.max(axis=1)[fires] / 8)
    names = [["zero", "one", "two", "three"][row.argmax()] for row in counts]
    assert found["classes"] == [name if n in fires else "" for n, name in enumerate(names)]
    assert found["columns"]["purity"][1] is found["columns"]["entropy"][1] is None, "not the purest: it never fires"
    assert found["images"] == layer["top_image"].values[:, :4].tolist()


def test_composition__counts_no_image_that_stands_there_by_its_order_alone(small, tmp_path):
    layer = small["/layers/fc"]
    layer["top_value"].values[0] = [3, 2, 2, 1, 1, 0, 0, 0]  # many more may have 0
    layer["top_value"].values[2] = [5, 5, 5, 5, 5, 5, 5, 4]
    index = write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None)
    found = calls(index.parent / "data" / "fc-0.js")["columns"]["purity"]
    labels = small["/"]["label"].values[layer["top_image"].values]
    assert found[0] == pytest.approx(np.bincount(labels[0, :5]).max() / 5)
    assert found[2] == pytest.approx(np.bincount(labels[2]).max() / 8)


def test_index__says_where_pages_and_pictures_are(written_in):
    found = calls(written_in / "data" / "layers.js")
    assert [layer["name"] for layer in found["layers"]] == ["conv.10", "conv.9", "fc"]
    for layer in found["layers"]:
        assert (written_in / layer["page"]).is_file()
        assert (written_in / layer["folder"] / "0.html").is_file()
        assert (written_in / "data" / f"{layer['stem']}-0.js").is_file()
        data = calls(written_in / "data" / f"{layer['stem']}-0.js")
        assert [column["key"] for column in layer["columns"]] == list(data["columns"])
        assert all(len(column) == layer["count"] for column in data["columns"].values())
        image = data["images"][0][0]
        assert (written_in / f"pictures/{image // 1000}/{image}.{found['pictures']['suffix']}").is_file()
    assert (found["pictures"]["width"], found["pictures"]["squares"]) == (56, True)


def test_index__numbers_that_are_none_are_null(small, tmp_path):
    small["/layers/fc"]["variance"].values[2] = np.nan
    small["/layers/fc"]["mean"].values[3] = np.inf
    index = write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None)
    columns = calls(index.parent / "data" / "fc-0.js")["columns"]
    assert [n for n, value in enumerate(columns["variance"]) if value is None] == [2]
    assert [n for n, value in enumerate(columns["mean"]) if value is None] == [3]


def test_report__without_index_has_none(small, pictures, tmp_path, read_pages):
    index = write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=pictures, index=False)
    assert set(read_pages(index)) == {"index.html", "layer-fc.html"}
    assert not list(index.parent.rglob("*.js"))
    assert not any("neurons" in link for page in read_pages(index).values() for link in page.links)


def test_report__a_layer_without_top_images_still_has_its_numbers(small, tmp_path, read_pages):
    layer = small["/layers/fc"]
    small["/layers/fc"] = layer.drop_vars([name for name in layer if "top" in str(name) or "bottom" in str(name)])
    pages = read_pages(write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None))
    assert "holds no top images" in pages["neurons/fc/0.html"].text
    assert "rank by variance" in portrait(pages["neurons/fc/0.html"], 3)
    assert "images" not in calls(tmp_path / "out" / "data" / "fc-0.js")


def large(channels: int, images: int, ranks: int = 12) -> xr.DataTree:
    """A layer of many channels over many images with the longest names there are."""
    rng = np.random.default_rng(0)
    lists = {}
    for end in ("top", "bottom"):
        drawn = {"image": rng.integers(0, images, (channels, ranks)), "value": rng.random((channels, ranks)) * 1e-5}
        drawn |= {dim: rng.integers(0, 13, (channels, ranks)) for dim in "yx"}
        lists |= {f"{end}_{part}": (("channel", "rank"), values) for part, values in drawn.items()}
    names = ("mean", "variance", "min", "max", "fraction_active")
    moments = {name: ("channel", rng.random(channels) * 1e-5) for name in names}
    more = {f"a number with a long name {i}": ("channel", rng.random(channels) / 3) for i in range(20)}
    field = {"size": [51, 51], "stride": [16, 16], "start": [-9, -9]}
    pearson = np.broadcast_to(np.linspace(-1, 1, channels, dtype=np.float32), (channels, channels))
    about = {"layer": "features", "step": "a step of a long name"}
    return xr.DataTree.from_dict({
        "/": xr.Dataset(coords={
            "image": np.arange(images), "label": ("image", rng.integers(0, 1000, images)),
            "filename": ("image", [f"{'folder/' * 30}{i}.JPEG" for i in range(images)]),
            "class": [f"{i}, {'great white shark, ' * 10}" for i in range(1000)],
        }),
        "/layers/features": xr.Dataset({**moments, **lists}, attrs={
            "layer": "features", "shape": [channels, 13, 13], "input_size": [224, 224], "receptive_field": field,
        }),
        "/results/s/features": xr.Dataset(
            {"pearson": (("channel", "other_channel"), pearson)}, attrs={**about, "analysis": "similarity"}
        ),
        "/results/more/features": xr.Dataset(more, attrs={**about, "analysis": "numbers"}),
    })  # fmt: skip


def bright(image: int) -> np.ndarray:
    return np.full((100, 100, 3), image % 256, dtype=np.uint8)


def test_report__no_page_grows_with_the_number_of_channels_and_images(tmp_path):
    """4,096 channels × 50,000 images with the longest names: many pages, and each of them light."""
    channels = 4096
    index = write_report(large(channels, 50_000), tmp_path / "out", pictures=None)
    pages = [path for suffix in ("*.html", "*.js") for path in index.parent.rglob(suffix)]
    assert len(pages) > channels / 10
    assert max(path.stat().st_size for path in pages) < LIMIT
    ids = [n for path in pages for n in re.findall(r'id="n(\d+)"', path.read_text())]
    assert sorted(map(int, ids)) == [*range(channels)]
    data = [calls(path) for path in index.parent.glob("data/features-*.js")]
    assert sum(len(block["columns"]["mean"]) for block in data) == channels


def test_report__pages_with_pictures_are_light_too(tmp_path):
    index = write_report(large(40, 2000), tmp_path / "out", pictures=bright)
    page = (index.parent / "neurons" / "features" / "20.html").read_text()
    assert page.count("<img") == 10 * (2 * 9 + 9)
    assert len(page) < LIMIT


def test_report__writes_a_picture_once_whatever_number_of_neurons_show_it(tmp_path):
    asked: list[int] = []

    def pictures(image: int) -> np.ndarray:
        asked.append(image)
        return bright(image)

    tree = large(300, 50)
    index = write_report(tree, tmp_path / "out", pictures=pictures)
    assert len(asked) == len(set(asked)) == 50
    assert len([*index.parent.glob("pictures/*/*")]) == 50
    assert asked == sorted(asked)  # so that a block of the store is read once


def test_report__memory_does_not_grow_with_the_pictures(tmp_path):
    """Each is let go of when it is written."""

    def peak(images: int) -> int:
        tree = large(60, images, ranks=20).drop_nodes("results")
        tracemalloc.start()
        write_report(tree, tmp_path / str(images), pictures=bright, images=20)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(50)  # what is loaded once
    few, many = peak(100), peak(900)
    assert len([*(tmp_path / "900").glob("pictures/*/*")]) > 800
    assert many - few < 800 * bright(0).nbytes / 10


def test_report__reads_lists_block_by_block(tmp_path):
    """Of lists that are not in memory never more than a block of neurons is."""
    dask = pytest.importorskip("dask.array")
    tree = large(2 * BLOCK + 7, 30)
    data = tree["layers/features"].to_dataset()
    read_sizes: list[int] = []

    def slow(values: np.ndarray) -> np.ndarray:
        read_sizes.append(len(values))
        return values

    lazy = dask.from_array(data["top_image"].values, chunks=(500, 12)).map_blocks(slow, dtype=np.int64)
    known = roster(
        layer_of(result("top_images", {"top_image": (("channel", "rank"), lazy)}), shape=[2 * BLOCK + 7]),
        read(tree).images,
    )
    assert known is not None
    read_sizes.clear()
    for block in known.blocks(9):
        assert sum(read_sizes) <= 2 * BLOCK + 1000  # the list is read for the classes, and for what is shown
        assert block.lists["top_image"].shape == (block.count, 9)
        read_sizes.clear()
