"""The section of patches and components: sheets of pictures, read back pixel by pixel, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from dneuro.report.sprites import as_bytes, sheet
from dneuro.report.write import write_figures, write_report

RNG = np.random.default_rng(0)
CHANNELS, RANK, SIDE, KEPT = 4, 3, 5, 4


def result(color: int = 3) -> xr.Dataset:
    rgb = RNG.standard_normal((CHANNELS, RANK, SIDE, SIDE, 3)).astype("f2")
    rgb[0, 2] = np.nan
    share = np.full((CHANNELS, RANK), 0.2)
    share[0, 2] = np.nan
    patch = RNG.integers(0, 256, (CHANNELS, KEPT, SIDE, SIDE, color), np.uint8)
    picture = ("channel", "component", "row", "column")
    data: dict[str, Any] = {
        "grey": (picture, rgb.mean(-1)), "grey_rank": ("channel", [2, 3, 3, 0]), "grey_share": (picture[:2], share),
        "grey_converged": ("channel", [True, False, True, False]), "count": ("channel", [3, 40, 40, 0]),
        "patch": (("channel", "sample", "row", "column", "color"), patch),
        "top_value": (("channel", "sample"), [[9.0, 8, 7, np.nan], [4, 3, 2, 1], [4, 3, 2, 1], [np.nan] * 4]),
    }  # fmt: skip
    if color == 3:
        r = np.full((CHANNELS, RANK, 3), 0.5)
        r[..., 1] = 1
        data |= {
            "rgb": ((*picture, "color"), rgb), "rgb_share": (picture[:2], share),
            "rgb_rank": (("channel", "color"), np.full((CHANNELS, 3), 3)),
            "rgb_correlation": ((*picture[:2], "color"), r),
            "rgb_converged": (("channel", "color"), np.ones((CHANNELS, 3), bool)),
            "rgb8": ((*picture, "color"), RNG.integers(0, 256, rgb.shape, np.uint8)),
        }  # fmt: skip
    about = {"analysis": "patch_components", "step": "patches", "layer": "conv.9"}
    return xr.Dataset(data, attrs={**about, "parameters": {"k": 40, "rank": RANK, "match": True}})


@pytest.fixture
def bare(parts: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """The images and one layer, of which nothing else is known."""
    return {path: parts[path] for path in ("/", "/layers/conv.9")}


@pytest.fixture
def page(bare: dict[str, xr.Dataset], pictures: Any, tmp_path: Path, read_pages: Any) -> Callable[..., Any]:
    def write(found: xr.Dataset) -> Any:
        tree = xr.DataTree.from_dict({**bare, "/results/patches/conv.9": found})
        index = write_report(tree, tmp_path / "report", pictures=pictures, neurons=4, images=4)
        return read_pages(index)["layer-conv.9.html"]

    return write


def test_section__shows_patches_beside_components(page: Callable[..., Any], tmp_path: Path) -> None:
    data = result()
    found = page(data)
    assert "Patches and their components" in found.text
    sheets = [image for image in found.images if "sheets/" in image["src"]]
    assert len(sheets) == 6, "two of each channel that has patches"
    assert all((tmp_path / "report" / image["src"]).is_file() for image in sheets)
    of_2 = {image["src"].rpartition("-")[2]: image for image in sheets if "/2-" in image["src"]}
    patches = np.asarray(Image.open(tmp_path / "report" / of_2["patches.png"]["src"]))
    np.testing.assert_array_equal(patches[:SIDE, SIDE:], data["patch"][2, 1])
    np.testing.assert_array_equal(patches[SIDE:, :SIDE], data["patch"][2, 2])
    components = np.asarray(Image.open(tmp_path / "report" / of_2["components.png"]["src"]))
    assert components.shape == (3 * SIDE, RANK * SIDE, 3)
    np.testing.assert_array_equal(components[2 * SIDE :, :SIDE], data["rgb8"][2, 0])
    grey = data["grey"][2, 1].values.astype("f8")
    expected = np.rint(128 + 127 * grey / np.abs(grey).max())
    np.testing.assert_array_equal(components[:SIDE, SIDE : 2 * SIDE, 0], expected)
    assert of_2["components.png"]["width"] == str(RANK * 90)
    assert "squares" in of_2["components.png"]["class"]


def test_section__says_what_is_seen(page: Callable[..., Any]) -> None:
    found = page(result())
    for said in (
        "Left: the 4 patches with the highest activation, one per image, of up to 40: what the winning position sees "
        "(5 × 5 pixels, the input's mean colour beyond its borders).",
        "Row “grey”: of the patches in grey. Row “R, G, B”: of red, green and blue each alone, then combined",
        "Components of red and blue are brought into the order and sign of the green ones: median |r| with green 0.5.",
        "Without any activation above 0, and so without patches: 1 channel.",
        "Not converged (grey): 1 of 4.",
        "3 patches, those shown with activations of 9 to 7; of their variance 40 % in 2 grey components, 40 % in 2 of "
        "R, G, B",
        "n = 23 images.",
    ):
        assert said in found.text, said


def test_section__what_is_missing_stays_empty(page: Callable[..., Any], tmp_path: Path) -> None:
    found = page(result())
    of_0 = {image["src"].rpartition("-")[2]: image["src"] for image in found.images if "/0-" in image["src"]
            and "sheets" in image["src"]}  # fmt: skip
    patches = np.asarray(Image.open(tmp_path / "report" / of_0["patches.png"]))
    assert (patches[SIDE:, SIDE:, 3] == 0).all(), "the fourth of three patches"
    assert (patches[:SIDE, :, 3] == 255).all()
    components = np.asarray(Image.open(tmp_path / "report" / of_0["components.png"]))
    assert (components[:, 2 * SIDE :, 3] == 0).all(), "the third of two components"


def test_section__of_grey_patches(page: Callable[..., Any]) -> None:
    found = page(result(1))
    assert "Row “grey”: of the patches in grey. Without any" in found.text
    assert "green" not in found.text


def test_figures__of_an_export_leave_sheets_out(bare: dict[str, xr.Dataset], tmp_path: Path) -> None:
    write_figures(xr.DataTree.from_dict({**bare, "/results/patches/conv.9": result()}), tmp_path)
    assert not (tmp_path / "sheets").exists()


def test_sheet__large_pictures_are_reduced_to_whole_blocks(tmp_path: Path) -> None:
    rows = [[RNG.integers(0, 256, (200, 150, 3), np.uint8) for _ in range(2)] for _ in range(3)]
    found = sheet(tmp_path, "a/b", rows, title="t", alt="a", names=("x", "y", "z"))
    assert found.src == "a/b.jpg"
    with Image.open(tmp_path / found.src) as drawn:
        assert drawn.size == (2 * 72, 3 * 96)
    assert (found.width, found.height, found.across, found.down, found.squares) == (138, 276, 2, 3, False)


def test_as_bytes__keeps_zero_and_scales_each_colour_by_itself() -> None:
    picture = np.zeros((1, 2, 3))
    picture[0] = [[4, -1, 0], [-2, 0, 0]]
    assert as_bytes(picture)[0].tolist() == [[255, 1, 128], [64, 128, 128]]  # type: ignore[index]
    assert as_bytes(np.full((2, 2, 1), np.nan)) is None
