"""The sections of non-negative factorisations: components with their images, channels, latent images, the loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from dneuro.report.write import write_report

COUNT, PARTS = 24, 3


def factorised(layer: str, features: tuple[str, ...], shape: tuple[int, ...], **attrs: Any) -> xr.Dataset:
    """A result in which image i has most of component i mod 3, and image 5 is masked."""
    loads = np.full((COUNT, PARTS), 0.05)
    loads[np.arange(COUNT), np.arange(COUNT) % PARTS] = 0.5 + np.arange(COUNT) / 100
    loads[5] = np.nan
    weights = np.zeros((PARTS, *shape))
    weights[np.arange(PARTS), np.arange(PARTS)] = 1.0
    return xr.Dataset(
        {
            "image_weight": (("image", "component"), loads), "neuron_weight": (("component", *features), weights),
            "size": ("component", np.array([3.0, 2.0, 1.0])), "loss": ("iteration", np.array([50.0, 25.0, 9.0])),
        },
        attrs={
            "step": "parts", "layer": layer, "parameters": {"rank": PARTS}, "total_squares": 100.0, "rmse": 0.25,
            "converged": True, "passes": 6, **attrs,
        },
    )  # fmt: skip


def tree() -> xr.DataTree:
    images = xr.Dataset(
        {
            "label": ("image", np.arange(COUNT) % 2),
            "status": ("image", (np.arange(COUNT) == 5).astype("u1")),
        },
        coords={"image": np.arange(COUNT), "class": ["cat", "dog"]},
    )
    layer = xr.Dataset(attrs={"layer": "conv", "keep": "full", "shape": [5, 2, 2]})
    both = {"analysis": "coupled_nmf", "layers": ["pictures", "conv"]}
    dims = ("row", "column", "color")
    return xr.DataTree.from_dict(
        {
            "/": images.assign_attrs(dneuro={}),
            "/layers/conv": layer,
            "/results/parts/conv": factorised("conv", ("channel", "y", "x"), (5, 2, 2), analysis="nmf"),
            "/results/both/conv": factorised("conv", ("channel", "y", "x"), (5, 2, 2), **both).assign(
                layer_loss=("iteration", np.array([81.0, 64.0, 49.0]))
            ),
            "/results/both/pictures": factorised("pictures", dims, (6, 6, 1), **both),
        }
    )


def test_nmf_section__shows_the_images_that_have_most_and_what_is_said_of_the_loss(
    tmp_path: Path, read_pages: Callable[..., Any], pictures: Callable[[int], np.ndarray]
) -> None:
    pages = read_pages(write_report(tree(), tmp_path / "report", pictures=pictures, images=3))
    page = pages["layer-conv.html"]
    assert "Non-negative factorisation" in page.text
    assert "Coupled non-negative factorisation" in page.text
    assert "down to 30 % of ‖X‖ (0.25 per entry). The tolerance was reached. 6 passes" in page.text
    assert "down to 70 % of ‖X‖" in page.text, "of this layer alone"
    assert "The same images and weights belong to pictures." in page.text
    assert "Half of a component lies in 1 of them. 2 channels without weight in any." in page.text
    # of component 1, images 21, 18 and 15 have most; 23 images take part
    names = [image["alt"] for image in page.images if "value 0.7" in image["alt"] or "value 0.6" in image["alt"]]
    assert names[0].startswith("image 21, class dog, value 0.71")
    assert names[1].startswith("image 18, class cat, value 0.68")
    assert "n = 23 images" in page.text
    assert "in 100 % of the images, most in" in page.text
    assert not any("image 5," in image["alt"] and "value" in image["alt"] for image in page.images)


def test_nmf_section__draws_the_pictures_part_as_pictures(
    tmp_path: Path, read_pages: Callable[..., Any], pictures: Callable[[int], np.ndarray]
) -> None:
    index = write_report(tree(), tmp_path / "report", pictures=pictures)
    page = read_pages(index)["layer-pictures.html"]
    assert "Latent images: the pictures' part of the first 3 of 3 components" in page.text
    assert any("latent" in image["src"] for image in page.images)
    assert (index.parent / "figures" / "pictures-parts-latent.png").is_file()
    assert (index.parent / "figures" / "conv-parts-channels.png").is_file()
    assert (index.parent / "figures" / "conv-parts-loss.png").is_file()
