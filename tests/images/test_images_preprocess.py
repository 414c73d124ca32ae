from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, transforms
from torchvision.transforms._presets import ImageClassification

from dneuro.errors import ArrayError, UnreadableImageError
from dneuro.images.decode import MAX_PIXELS, as_array, decode, load
from dneuro.images.preprocess import to_input, view
from dneuro.spec.network import Preprocessing

MODES = {"rgb": "RGB", "grey": "L"}


def noise(height: int, width: int, *colours: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *colours), np.uint8)


def torchvision_view(picture: np.ndarray, p: Preprocessing) -> np.ndarray:
    image = Image.fromarray(picture).convert(MODES[p.color])
    if p.resize is not None:
        mode = InterpolationMode(p.interpolation)
        image = transforms.Resize(p.resize, interpolation=mode, antialias=True)(image)
    if p.crop is not None:
        image = transforms.CenterCrop(p.crop)(image)
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


sides = st.integers(1, 60)
sizes = st.none() | sides | st.tuples(sides, sides)


@given(
    height=sides,
    width=sides,
    colours=st.sampled_from([(), (3,)]),
    resize=sizes,
    crop=sizes,
    color=st.sampled_from(["rgb", "grey"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
@settings(max_examples=300, deadline=None)
def test_view__equals_torchvision(height: int, width: int, colours: tuple[int, ...], **how: Any):
    preprocessing = Preprocessing(**how)
    picture = noise(height, width, *colours)
    seen = view(picture, preprocessing)
    np.testing.assert_array_equal(seen, torchvision_view(picture, preprocessing), strict=True)
    assert seen.flags.c_contiguous


@given(
    height=sides,
    width=sides,
    kind=st.sampled_from([("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("BMP", "L"), ("PPM", "RGB"), ("GIF", "P")]),
    resize=sizes,
    crop=sizes,
    color=st.sampled_from(["rgb", "grey"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
@settings(max_examples=200, deadline=None)
def test_view__of_what_pillow_holds_is_that_of_its_pixels(height: int, width: int, kind: tuple[str, str], **how: Any):
    preprocessing, file = Preprocessing(**how), io.BytesIO()
    Image.fromarray(noise(height, width, 3)).convert(kind[1]).save(file, kind[0])
    loaded, pixels = load(file.getvalue(), "x"), decode(file.getvalue(), "x")
    assert isinstance(loaded, Image.Image) == (kind[1] in ("RGB", "L"))
    seen = view(loaded, preprocessing)
    np.testing.assert_array_equal(seen, torchvision_view(pixels, preprocessing), strict=True)
    assert seen.flags.c_contiguous
    seen[:] = 0  # whoever gets it may write to it
    np.testing.assert_array_equal(as_array(loaded), pixels, strict=True)


@pytest.mark.parametrize("shape", [(375, 500, 3), (500, 333, 3), (240, 240), (1, 300, 3), (281, 1000)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (342, 299)])
def test_view__equals_torchvision_at_the_sizes_of_imagenet(shape: tuple[int, ...], resize: int, crop: int):
    preprocessing = Preprocessing(resize=resize, crop=crop)
    picture = noise(*shape)
    np.testing.assert_array_equal(
        view(picture, preprocessing), torchvision_view(picture, preprocessing), strict=True
    )


@given(height=sides, width=sides, colours=st.sampled_from([(), (3,)]), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_to_input__equals_torchvisions_preset(height: int, width: int, colours: tuple[int, ...], seed: int):
    how = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    preprocessing = Preprocessing(resize=32, crop=28, **how)
    picture = noise(height, width, *colours, seed=seed)
    made = to_input(view(picture, preprocessing), preprocessing)
    preset = ImageClassification(crop_size=28, resize_size=32, **how)
    np.testing.assert_array_equal(made, preset(Image.fromarray(picture).convert("RGB")).numpy(), strict=True)
    assert made.flags.c_contiguous


def test_to_input__grey_with_one_mean_and_std():
    preprocessing = Preprocessing(color="grey", mean=(0.5,), std=(0.25,))
    made = to_input(view(np.array([[0, 51, 255]], np.uint8), preprocessing), preprocessing)
    np.testing.assert_allclose(made, [[[-2.0, -1.2, 2.0]]], rtol=1e-6)


def test_to_input__one_number_serves_all_colours():
    preprocessing = Preprocessing(mean=(0.5,), std=(0.5,))
    made = to_input(np.full((2, 3, 3), 255, np.uint8), preprocessing)
    assert made.shape == (3, 2, 3)
    np.testing.assert_array_equal(made, 1)


def test_view__without_steps_is_the_picture():
    picture = noise(5, 7, 3)
    seen = view(picture, Preprocessing())
    np.testing.assert_array_equal(seen, picture)
    seen[:] = 0  # a copy: the picture stays
    assert picture.any()


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 1), np.uint8), np.zeros(4, np.uint8), np.zeros((4, 4))],
)
def test_view__refuses_what_is_no_picture(picture: np.ndarray):
    with pytest.raises(ArrayError, match=r"uint8 of shape .* not (uint8|float64) of shape \(4"):
        view(picture, Preprocessing())


def test_view__a_line_of_pixels_cannot_exhaust_the_memory():
    line = np.zeros((1, 60_000, 3), np.uint8)
    with pytest.raises(UnreadableImageError, match=f"60000 × 1 pixels would .* the limit is {MAX_PIXELS:,}"):
        view(line, Preprocessing(resize=256, crop=224))
