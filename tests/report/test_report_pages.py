from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from dneuro.errors import ArrayError, UnreadableImageError, UsageError
from dneuro.report import words
from dneuro.report.write import write_report
from dneuro.store.units import NOT_YET

COUNT = 24


@pytest.fixture(scope="session")
def written(written_in, read_pages):
    """Pages of the whole store, by file name."""
    return read_pages(written_in / "index.html")


def figures_of(page) -> list[str]:
    return [image["src"] for image in page.images if image["src"].startswith("figures/")]


def test_report__every_link_and_picture_is_there(written, written_in):
    assert set(written) == {
        "index.html", "layer-conv.9.html", "layer-conv.10.html", "layer-fc.html", "layers.html", "neurons.html",
        *(f"neurons/{layer}/0.html" for layer in ("conv.9", "conv.10", "fc")),
    }  # fmt: skip
    for page in written.values():
        for link in page.links:
            file, _, anchor = unquote(link).partition("#")
            if link != "data:,":
                target = (page.path.parent / file).resolve() if file else page.path
                assert target.is_file()
                if anchor and target.name != "neurons.html":  # what is searched for stands there
                    assert anchor in written[target.relative_to(written_in).as_posix()].ids


def test_report__needs_nothing_from_the_network(written, written_in):
    style = (written_in / "style.css").read_text()
    for source in (style, *(page.source for page in written.values())):
        assert not re.search(r"https?:|//[a-z]|@import|url\(", source)
    for path in written_in.rglob("*.js"):
        assert not re.search(r"https?:|fetch|XMLHttp|import |innerHTML|eval", path.read_text())


def test_report__only_the_search_needs_scripts(written):
    assert {name for name, page in written.items() if page.scripts} == {"neurons.html"}
    assert written["neurons.html"].scripts == ["data/layers.js", "neurons.js"]


def test_report__pictures_decode_at_the_size_the_page_says_and_have_words(written, written_in):
    for page in written.values():
        for image in page.images:
            with Image.open(page.path.parent / image["src"]) as file:
                file.load()
                if "width" in image:  # a patch has its sizes in its style
                    assert file.width * int(image["height"]) == file.height * int(image["width"])
            assert image["alt"]
            lazy = image.get("loading"), image.get("decoding")
            figure = image["src"].startswith("figures/")  # few: they are there when the page is printed
            assert lazy == ((None, None) if figure else ("lazy", "async"))


def test_report__leaves_no_file_that_no_page_shows(written, written_in):
    shown = {(page.path.parent / image["src"]).resolve() for page in written.values() for image in page.images}
    assert {path.resolve() for path in written_in.rglob("*.png")} == shown


def test_report__headings_are_in_order(written):
    for page in written.values():
        assert page.headings[0] == 1
        assert page.headings.count(1) == 1
        assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))


def test_index__says_where_everything_comes_from(written):
    page = written["index.html"]
    for said in (
        "study", "dneuro:convnet", "weights.safetensors", "resize = 14, mean = [0.5]", "source = folder",
        "dneuro = 0.1.0", "/scratch/a.zarr", "2026-01-02", "4: zero, one, two, three",
    ):  # fmt: skip
        assert said in page.text
    assert f'title="{"3f" * 32}">3f3f3f3f3f3f<' in page.source
    assert f'title="{"ab" * 32}">abababababab<' in page.source


def test_index__accuracy_counts_readable_images(written):
    assert "95.7 %" in written["index.html"].text
    assert "22 of 23 images" in written["index.html"].source


def test_index__lists_masked_images_by_name(written):
    assert re.search(r"<td class=\"number\">5</td><td>set/005\.png</td><td>–</td>", written["index.html"].source)
    assert "masked" in written["index.html"].ids


def test_index__marks_what_the_network_took_for_something_else(written):
    source = written["index.html"].source
    assert source.count('class="tile wrong"') == 1
    wrong = source[source.index('class="tile wrong"') :]
    assert "image 2, class two, set/002.png, predicted three" in wrong[: wrong.index("</figure>")]


def test_index__table_of_layers(written, parts):
    source = written["index.html"].source
    row = source[source.index('<a href="layer-conv.9.html">') :].split("</tr>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    active = parts["/layers/conv.9"]["fraction_active"].values
    assert cells[:6] == ["ReLU", "4 × 7 × 7", "max", "196", "5 × 5", cells[5]]
    assert cells[6] == f"{100 * active.mean():.3g} %"
    assert cells[7] == "1"
    assert cells[8] == "cof, similarity, svd"
    assert "whole input" in source[source.index('<a href="layer-fc.html">') :].split("</tr>")[0]


def test_layer__sections_come_in_order_and_are_linked(written):
    page = written["layer-conv.9.html"]
    anchors = [link[1:] for link in page.links if link.startswith("#") and link != "#main"]
    assert anchors == ["summary", "neurons", "moments", "top_images", "svd", "cooccurrence", "similarity"]
    assert "layer-conv.10.html" in page.links
    assert "layer-fc.html" in page.links


def test_layer__figures_of_every_analysis(written):
    kinds = {Path(src).stem.removeprefix("conv.9-") for src in figures_of(written["layer-conv.9.html"])}
    assert kinds == {
        "extract-variances", "extract-ranks", "svd-spectrum", "svd-span", "cof-classes", "similarity-pearson",
        "similarity-euclidean",
    }  # fmt: skip


def test_layer__captions_carry_n_and_parameters(written):
    source = written["layer-conv.9.html"].source
    captions = re.findall(r"<figcaption>([^<]+)</figcaption>", source) + re.findall(r'class="caption">([^<]+)<', source)
    assert len(captions) == 9
    for caption in captions:
        assert re.search(r"n = \d+|k = \d+", caption)
    told = " ".join(captions)
    for said in (
        "n = 23 images", "n = 24 values each", "rank = 4, standardize = center, seed = 0", "k = 6, per = channel",
        "of = activation, metric = [pearson, euclidean]", "at most 2.5e-9", "Method gram, 2 passes", "5 × 5 pixels",
        "Constant (variance 0): 1 channel", "Grey: 1 channel",
    ):  # fmt: skip
        assert said in told


def test_layer__shows_the_channels_of_largest_variance(written, parts):
    source = written["layer-conv.10.html"].source
    variance = parts["/layers/conv.10"]["variance"].values
    shown = [int(number) for number in re.findall(r">Channel (\d+)<", source)]
    assert shown == [*np.argsort(-variance)[:3]]


def test_layer__top_images_with_class_and_value_in_order(written, parts):
    layer = parts["/layers/conv.9"]
    channel = int(layer["variance"].values.argmax())
    row = written["layer-conv.9.html"].source.split(f">Channel {channel}<")[1].split("</section>")[0]
    high, low = row.split('class="end lowest"')
    assert re.findall(r"image (\d+), class", high)[::2] == [str(i) for i in layer["top_image"].values[channel, :4]]
    assert re.findall(r"image (\d+), class", low)[::2] == [str(i) for i in layer["bottom_image"].values[channel, :4]]
    best = int(layer["top_image"].values[channel, 0])
    assert re.findall(r'class="label">(\w+)<', high)[0] == ["zero", "one", "two", "three"][best % 4]
    value = words.number(float(layer["top_value"].values[channel, 0]), pad=True)
    assert re.findall(r'class="value">([^<]+)<', high)[0] == value


def test_layer__frames_what_the_winning_position_sees(written, parts):
    layer = parts["/layers/conv.9"]
    channel = int(layer["variance"].values.argmax())
    row = written["layer-conv.9.html"].source.split(f">Channel {channel}<")[1]
    for rank, frame in enumerate(re.findall(r'<i style="([^"]+)"', row)[:4]):
        edges = {name: float(value) for name, value in re.findall(r"(\w+):([\d.]+)%", frame)}
        for start, end, dim in (("t", "b", "y"), ("l", "r", "x")):
            place = int(layer[f"top_{dim}"].values[channel, rank])
            first, last = max(0, -2 + 2 * place), min(14, 3 + 2 * place)
            assert edges[start] == pytest.approx(100 * first / 14, abs=0.01)
            assert edges[end] == pytest.approx(100 * (14 - last) / 14, abs=0.01)


def test_layer__without_positions_frames_nothing(written):
    page = written["layer-fc.html"]
    assert "<i style" not in page.source
    assert "No frame: every position sees the whole picture." in page.text


def test_layer__svd_rows_are_the_images_of_extreme_score_without_masked_ones(written, parts):
    score = parts["/results/svd/fc"]["score"].values[:, 0].copy()
    score[5] = np.nan
    order = np.argsort(-score, kind="stable")[: COUNT - 1]
    row = written["layer-fc.html"].source.split("<h4>Component 1 ")[1].split("</section>")[0]
    high, low = row.split('class="end lowest"')
    assert re.findall(r"image (\d+), class", high)[::2] == [str(i) for i in order[:4]]
    assert re.findall(r"image (\d+), class", low)[::2] == [str(i) for i in order[::-1][:4]]
    spanned = len({i % 4 for i in order[:4]})
    assert f"highest 4 span {spanned} class" in row


def test_layer__says_where_lowest_images_tie(written):
    assert "The lowest values of 3 of 3 rows all tie" in written["layer-conv.9.html"].text


def test_report__without_pictures_says_so_and_names_images(small, tmp_path, read_pages):
    pages = read_pages(write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None))
    assert "written without pictures" in pages["index.html"].text
    assert "written without pictures" in pages["layer-fc.html"].text
    assert not (tmp_path / "out" / "pictures").exists()
    assert 'class="label">three<' in pages["layer-fc.html"].source


def test_report__goes_on_without_a_picture_that_cannot_be_had(small, pictures, tmp_path, read_pages):
    def some(image: int) -> np.ndarray:
        if image % 2:
            raise UnreadableImageError(f"image {image} is cut off")
        return pictures(image)

    page = read_pages(write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=some))["layer-fc.html"]
    assert "no picture" in page.text
    assert any(image["src"].startswith("pictures/") for image in page.images)


HOSTILE = '<script>alert("x")</script>&"\'{{ 7 * 7 }}$'


def test_report__hostile_names_are_text(small, pictures, tmp_path, read_pages):
    root = small["/"]
    about = {**root.attrs["dneuro"], "network": HOSTILE, "preprocessing": {HOSTILE: HOSTILE}}
    small["/"] = root.assign_coords(
        filename=("image", [f"{HOSTILE}/{HOSTILE}{i}" for i in range(COUNT)]),
        **{"class": [HOSTILE + name for name in ("a", "b", "c", "d")]},
    ).assign_attrs(dneuro=about)
    bad = "".join(letter for letter in HOSTILE if letter != "/")
    for group in [path for path in small if path.endswith("/fc")]:
        moved = small.pop(group).assign_attrs(layer=HOSTILE)
        small[group.replace("/fc", f"/{bad}")] = moved
    odd = {"analysis": HOSTILE, "layer": HOSTILE, HOSTILE: HOSTILE}
    small[f"/results/odd/{bad}"] = xr.Dataset({bad: ("x", [1])}, attrs=odd)
    for path in [path for path in small if "/cof/" in path]:
        small[path] = small[path].assign_coords({"class": small["/"]["class"].values})
    job = {"name": HOSTILE, "steps": [{HOSTILE: {}}]}
    tree = xr.DataTree.from_dict(small)
    pages = read_pages(write_report(tree, tmp_path / "out", pictures=pictures, job=job, neurons=2))
    for page in pages.values():
        assert page.scripts == (["data/layers.js", "neurons.js"] if page.path.name == "neurons.html" else [])
        assert page.tags.isdisjoint({"iframe", "svg", "object"})
        assert "49" not in page.text.split()
    assert f"{HOSTILE}/{HOSTILE}5" in pages["index.html"].text
    assert any(HOSTILE in page.text for name, page in pages.items() if name != "index.html")
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-/") for name in pages)


def test_report__layers_that_differ_in_case_or_slashes_have_pages_of_their_own(small, tmp_path, read_pages):
    for number, name in enumerate(("block/conv", "block-conv", "Block-Conv")):
        small[f"/layers/n{number}"] = small["/layers/fc"].assign_attrs(layer=name)
    pages = read_pages(write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None))
    assert len({name.casefold() for name in pages if "/" not in name}) == 6
    assert len({name.casefold() for name in pages if "/" in name}) == 4
    assert [link for link in pages["index.html"].links if "lock" in link and "-conv" in link.lower()]


def test_report__shows_the_job_as_text_that_yaml_reads(small, tmp_path, read_pages):
    yaml = pytest.importorskip("yaml")
    job = {"name": "other", "steps": [{"extract": {"layers": {"fc": None}}}]}
    index = write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None, job=job)
    page = read_pages(index)["index.html"]
    text = html.unescape(page.source.split("<pre><code>")[1].split("</code>")[0])
    assert yaml.safe_load(text) == job
    assert "<title>other</title>" in page.source


def test_report__has_what_a_job_calls_a_layer_beside_its_name(small, tmp_path, read_pages):
    layers = {"fc": {"keep": "full", "called": "pool<5>"}, "conv": None}
    for number, asked in enumerate((layers, list(layers), None)):
        job = {"name": "other", "steps": [{"moments": None}, {"extract": {"layers": asked}}]}
        index = write_report(xr.DataTree.from_dict(small), tmp_path / str(number), pictures=None, job=job)
        pages = read_pages(index)
        shown = ["pool&lt;5&gt;</span>" in pages[name].source for name in pages if "/" not in name]
        assert sum(shown) == (2 if asked is layers else 0), "on the first page, and on its own"


def test_report__is_called_what_the_job_of_the_store_was_called(small, tmp_path, read_pages):
    about = {key: value for key, value in small["/"].attrs["dneuro"].items() if key != "name"}
    small["/"] = small["/"].assign_attrs(dneuro={**about, "job": "flowers"})
    page = read_pages(write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None))["index.html"]
    assert "<title>flowers</title>" in page.source


@pytest.mark.parametrize("kept", ["/", "/layers/", "/results/svd", "/results/cof", "/results/similarity"])
def test_report__any_part_of_a_store_will_do(parts, pictures, tmp_path, read_pages, kept: str):
    part = {path: data for path, data in parts.items() if path == "/" or (kept != "/" and path.startswith(kept))}
    pages = read_pages(write_report(xr.DataTree.from_dict(part), tmp_path / "out", pictures=pictures))
    assert len([name for name in pages if "neurons" not in name]) == (
        {"/": 1, "/results/svd": 5}.get(kept, 4)  # with spectra to lay side by side one page more
    )
    assert ("neurons.html" in pages) == (kept == "/layers/")
    if kept == "/":
        assert "holds no layers" in pages["index.html"].text
    if kept == "/results/svd":
        assert "describes no such layer" in pages["layer-fc.html"].text
        assert {"moments", "top_images"}.isdisjoint(pages["layer-fc.html"].ids)


def test_report__of_an_empty_tree(tmp_path, read_pages):
    pages = read_pages(write_report(xr.DataTree(), tmp_path / "out", pictures=None))
    assert list(pages) == ["index.html"]
    assert "images" not in pages["index.html"].ids


def test_report__layer_without_results(tmp_path, read_pages):
    tree = xr.DataTree.from_dict({"/layers/a": xr.Dataset(attrs={"layer": "a", "kind": "ReLU", "shape": [3]})})
    page = read_pages(write_report(tree, tmp_path / "out", pictures=None))["layer-a.html"]
    assert "no results of this layer" in page.text


def one(shape_of: Callable[[str], float], image: int) -> dict[str, xr.Dataset]:
    """A store of one image and one channel."""
    value = shape_of("x")
    names = ("mean", "variance", "fraction_active", "top_value", "bottom_value")
    data: dict[str, object] = {name: ("channel", [value]) for name in names[:3]}
    data |= {name: (("channel", "rank"), [[value]]) for name in names[3:]}
    data |= {name: (("channel", "rank"), [[image]]) for name in ("top_image", "bottom_image")}
    data |= {name: (("channel", "rank"), [[image]]) for name in ("top_y", "top_x")}
    field = {"size": [3, 3], "stride": [1, 1], "start": [-1, -1]}
    attrs = {"layer": "a", "shape": [1, 1, 1], "receptive_field": field, "input_size": [4, 4]}
    made = {
        "svd": {
            "singular_value": ("component", [value]), "score": (("image", "component"), [[value]]),
            "explained_variance_ratio": ("component", [value]), "residual": ("component", [value]),
        },
        "similarity": {name: (("channel", "other_channel"), [[value]]) for name in ("pearson", "euclidean")},
        "cooccurrence": {"count": (("channel", "class"), np.zeros((1, 1), dtype=np.int64))},
    }  # fmt: skip
    store = {"/": xr.Dataset(coords={"image": [0]}), "/layers/a": xr.Dataset(data, attrs=attrs)}
    return store | {f"/results/{k}/a": xr.Dataset(v, attrs={"analysis": k, "layer": "a"}) for k, v in made.items()}


@pytest.mark.parametrize("value", [0.0, 2.0, np.nan])
@pytest.mark.parametrize("image", [0, -1])
def test_report__of_one_image_and_one_channel(tmp_path, read_pages, value: float, image: int):
    tree = xr.DataTree.from_dict(one(lambda name: value, image))
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    page = read_pages(write_report(tree, tmp_path / "out", pictures=lambda i: picture))["layer-a.html"]
    assert len(figures_of(page)) == 6
    tops = page.source.split('id="top_images"')[1].split('id="svd"')[0]
    assert ("pictures/0/0.png" in tops) == (image == 0)


def test_report__several_results_of_one_kind_are_all_shown(small, tmp_path, read_pages):
    small["/results/svd-again/fc"] = small["/results/svd/fc"].assign_attrs(step="svd-again", parameters={"rank": 2})
    page = read_pages(write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None))["layer-fc.html"]
    assert "Step svd-again" in page.text
    assert len([src for src in figures_of(page) if "spectrum" in src]) == 2


def test_report__a_step_that_repeats_what_was_recorded_is_shown_once(small, tmp_path, read_pages):
    layer = small["/layers/fc"]
    names = [name for name in layer if str(name).startswith(("top", "bottom"))]
    about = {"analysis": "top_images", "step": "top_images", "layer": "fc", "parameters": {"k": 8}}
    for count, expected in ((8, 1), (5, 2)):
        small["/results/top_images/fc"] = layer[names].isel(rank=slice(count)).assign_attrs(about)
        page = read_pages(write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None))["layer-fc.html"]
        section = page.source.split('id="top_images"')[1].split('id="svd"')[0]
        assert section.count("<h3>") == expected
        assert "Step top_images" in section


def test_report__unknown_analyses_are_listed_with_their_variables(small, tmp_path, read_pages):
    about = {"analysis": "faces", "step": "faces", "layer": "fc", "parameters": {"tries": 3}}
    small["/results/faces/fc"] = xr.Dataset({"facet": (("channel", "part"), np.zeros((6, 2)))}, attrs=about)
    small["/results/svd/fc"] = small["/results/svd/fc"].drop_vars("singular_value")  # nothing to draw
    small["/results/whole"] = xr.Dataset({"loss": ("epoch", [1.0])}, attrs={"analysis": "loss"})
    pages = read_pages(write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None))
    other = pages["layer-fc.html"].source.split('id="other"')[1]
    assert "Step faces (faces)" in other
    assert "(channel 6, part 2) float64" in other
    assert "Parameter tries" in other
    assert "Step svd (svd)" in other
    assert "svd" not in pages["layer-fc.html"].ids
    assert "(epoch 1) float64" in pages["index.html"].text


def test_report__per_neuron_results_name_the_position_and_frame_it(parts, pictures, tmp_path, read_pages):
    rng = np.random.default_rng(2)
    dims = ("channel", "y", "x")
    about = {"step": "deep", "layer": "conv.9", "parameters": {"per": "neuron"}}
    variance = rng.random((4, 7, 7))
    parts["/results/m/conv.9"] = xr.Dataset({"variance": (dims, variance)}, attrs={**about, "analysis": "moments"})
    tops = {
        "top_value": ((*dims, "rank"), rng.random((4, 7, 7, 3))),
        "top_image": ((*dims, "rank"), rng.integers(0, COUNT, (4, 7, 7, 3))),
    }
    parts["/results/t/conv.9"] = xr.Dataset(tops, attrs={**about, "analysis": "top_images"})
    counts = {"count": ((*dims, "class"), rng.integers(0, 9, (4, 7, 7, 4)))}
    parts["/results/c/conv.9"] = xr.Dataset(counts, attrs={**about, "analysis": "cooccurrence"})
    kept = {path: data for path, data in parts.items() if path == "/" or path.endswith("/conv.9")}
    index = write_report(xr.DataTree.from_dict(kept), tmp_path / "out", pictures=pictures)
    page = read_pages(index)["layer-conv.9.html"]
    best = np.unravel_index(variance.argmax(), variance.shape)
    assert "Neuron ({}, {}, {})".format(*best) in page.text
    assert "196 neurons of conv.9" in page.text
    top, left = (100 * max(0, -2 + 2 * int(place)) / 14 for place in best[1:])
    row = page.source.split("<h4>Neuron ({}, {}, {})".format(*best))[1]
    assert re.search(f'<i style="--t:{top:.4g}%;[^"]*--l:{left:.4g}%"', row.split("</section>")[0])


def test_report__per_image_moments(small, tmp_path, read_pages):
    data = {"mean": ("image", np.arange(COUNT) / 7), "variance": ("image", np.arange(COUNT) / 3)}
    about = {"analysis": "moments", "step": "images", "layer": "fc", "parameters": {"per": "image"}}
    small["/results/images/fc"] = xr.Dataset(data, attrs=about)
    page = read_pages(write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None))["layer-fc.html"]
    assert "The standard deviation of each image over its neurons of fc, n = 24 images." in page.text
    assert "Parameters: per = image." in page.text


def test_report__of_thousands_of_channels_stays_small(tmp_path, read_pages):
    rng = np.random.default_rng(0)
    about = {"layer": "fc", "step": "s"}
    tree = xr.DataTree.from_dict({
        "/": xr.Dataset(coords={"image": np.arange(9)}),
        "/layers/fc": xr.Dataset({
            "variance": ("channel", rng.random(3000)),
            "top_image": (("channel", "rank"), rng.integers(0, 9, (3000, 20))),
        }, attrs={"layer": "fc", "shape": [3000], "receptive_field": None}),
        "/results/s/fc": xr.Dataset(
            {"pearson": (("channel", "other_channel"), np.eye(3000, dtype=np.float32))},
            attrs={**about, "analysis": "similarity"},
        ),
    })  # fmt: skip
    index = write_report(tree, tmp_path / "out", pictures=lambda i: np.zeros((8, 8, 1), np.uint8), neurons=5, images=2)
    page = read_pages(index)["layer-fc.html"]
    assert page.source.count("<h4>") == 5
    assert len(page.source) < 100_000
    assert "A cell of the map is the mean of 3 × 3" in page.text
    kept = [path for path in index.parent.rglob("*.*") if "neurons" not in path.parts]
    assert sum(path.stat().st_size for path in kept) < 1_500_000


@pytest.mark.filterwarnings("ignore:The data type:zarr.errors.UnstableSpecificationWarning")
def test_report__reads_a_store_from_disk(small, pictures, tmp_path, read_pages):
    xr.DataTree.from_dict(small).to_zarr(tmp_path / "store.zarr", zarr_format=3, consolidated=False)
    with xr.open_datatree(tmp_path / "store.zarr", engine="zarr", consolidated=False, chunks=None) as opened:
        from_disk = read_pages(write_report(opened, tmp_path / "a", pictures=pictures, images=3))
    in_memory = read_pages(write_report(xr.DataTree.from_dict(small), tmp_path / "b", pictures=pictures, images=3))
    assert {name: page.text for name, page in from_disk.items()} == {n: page.text for n, page in in_memory.items()}


def test_report__replaces_an_older_one(small, tmp_path):
    out = tmp_path / "out"
    write_report(xr.DataTree.from_dict(small), out, pictures=None)
    (out / "layer-gone.html").write_text("old")
    assert write_report(xr.DataTree.from_dict(small), out, pictures=None) == out / "index.html"
    assert not (out / "layer-gone.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_report__an_older_one_survives_a_failure(small, pictures, tmp_path):
    out = tmp_path / "out"
    before = write_report(xr.DataTree.from_dict(small), out, pictures=pictures).read_text()
    with pytest.raises(ArrayError):
        write_report(xr.DataTree.from_dict(small), out, pictures=lambda i: np.zeros((4, 4)))  # type: ignore[arg-type,return-value]
    assert (out / "index.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_report__never_replaces_a_folder_that_is_no_report(small, tmp_path):
    (tmp_path / "index.html").write_text("<html>my home page</html>")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not a report"):
        write_report(xr.DataTree.from_dict(small), tmp_path, pictures=None)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("wrong", [{"neurons": 0}, {"images": 0}])
def test_report__refuses_to_show_nothing(small, tmp_path, wrong):
    with pytest.raises(UsageError, match="shows nothing"):
        write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None, **wrong)


def test_report__calls_no_prediction_wrong_where_the_network_has_other_classes(
    root, pictures, read_pages, tmp_path
):
    other = root.drop_vars("correct")
    other["prediction"].attrs["class_names"] = ["tench", "goldfish", "shark", "hen"]
    source = read_pages(write_report(xr.DataTree(other), tmp_path / "out", pictures=pictures))["index.html"].source
    assert "predicted goldfish" in source
    assert "predicted one" not in source
    assert "tile wrong" not in source


def test_index__says_why_images_are_masked(small, read_pages, tmp_path):
    causes = {5: "/data/set/005.png: the file is <empty> (0 bytes)"}
    tree = xr.DataTree.from_dict(small)
    source = read_pages(write_report(tree, tmp_path / "out", pictures=None, causes=causes))["index.html"].source
    assert "<td>set/005.png</td><td>the file is &lt;empty&gt; (0 bytes)</td>" in source


def test_index__counts_images_that_are_not_extracted_yet_apart_from_masked_ones(small, read_pages, tmp_path):
    small["/"]["status"].values[20:] = NOT_YET
    page = read_pages(write_report(xr.DataTree.from_dict(small), tmp_path / "out", pictures=None))["index.html"]
    assert "<dt>Masked images</dt><dd>1</dd>" in page.source
    assert "<dt>Images not extracted yet</dt><dd>4</dd>" in page.source
    assert "set/005.png" in page.source
    assert "<td>set/020.png</td>" not in page.source
    assert "of 19 images" in page.source, "the others have no prediction"
