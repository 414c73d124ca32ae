from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dneuro.errors import ArrayError, UnreadableImageError
from dneuro.report.grids import FRAME, SMALL, TILE, Gallery, draw_frame, scale


def framed(image: Image.Image) -> np.ndarray:
    return (np.asarray(image) == FRAME).all(axis=2)


def picture(height: int, width: int, channels: int = 1, value: int = 200) -> np.ndarray:
    return np.full((height, width, channels), value, dtype=np.uint8)


def test_scale__small_pictures_grow_by_a_whole_factor_pixel_by_pixel():
    source = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    drawn = np.asarray(scale(source, TILE))
    assert drawn.shape == (84, 84)
    np.testing.assert_array_equal(drawn, np.kron(source[:, :, 0], np.ones((3, 3), dtype=np.uint8)))


@pytest.mark.parametrize(
    ("shape", "size"), [((224, 224), (96, 96)), ((300, 150), (48, 96)), ((1, 2000), (96, 1)), ((1, 1), (96, 96))]
)
def test_scale__large_pictures_shrink_and_keep_their_aspect(shape, size):
    assert scale(picture(*shape, 3), TILE).size == size


def test_frame__surrounds_the_box_and_leaves_the_patch_visible():
    image = scale(picture(28, 28), TILE)
    drawn = draw_frame(image, (10, 4, 15, 12), (28, 28))  # rows 30…44, columns 12…35 after scaling by 3
    orange = framed(drawn)
    expected = np.zeros((84, 84), dtype=bool)
    expected[28:47, 10:38] = True
    expected[30:45, 12:36] = False
    np.testing.assert_array_equal(orange, expected)
    assert (np.asarray(drawn)[30:45, 12:36] == 200).all()


def test_frame__has_a_dark_contour_on_bright_pictures():
    drawn = np.asarray(draw_frame(scale(picture(28, 28, value=255), TILE), (10, 4, 15, 12), (28, 28)))
    assert drawn[27, 10:38].max() < 40
    assert drawn[28:47, 9].max() < 40


def test_frame__stays_within_the_picture_at_its_edges():
    orange = framed(draw_frame(scale(picture(28, 28), TILE), (0, 0, 28, 28), (28, 28)))
    assert orange[:2].all()
    assert orange[-2:].all()
    assert orange[:, :2].all()
    assert orange[:, -2:].all()
    assert not orange[2:-2, 2:-2].any()


def test_frame__of_a_tiny_patch_of_a_large_picture_is_still_a_frame():
    orange = framed(draw_frame(scale(picture(224, 224, 3), TILE), (100, 100, 103, 103), (224, 224)))
    rows, columns = np.nonzero(orange)
    assert np.ptp(rows) >= 6
    assert not orange[rows.min() + 2 : rows.max() - 1, columns.min() + 2 : columns.max() - 1].any()


def test_gallery__clips_a_receptive_field_that_reaches_outside(tmp_path: Path):
    made = Gallery(tmp_path, lambda i: picture(28, 28)).get(0, (-6, 20, 8, 34), input_size=(28, 28))
    assert made is not None
    rows, columns = np.nonzero(framed(Image.open(tmp_path / made.src)))
    assert (rows.min(), rows.max()) == (0, 25)  # 8 · 3, and the line below it
    assert (columns.min(), columns.max()) == (58, 83)


def test_gallery__takes_boxes_in_pixels_of_the_input_also_where_pictures_are_smaller(tmp_path: Path):
    made = Gallery(tmp_path, lambda i: picture(48, 48, 3)).get(0, (48, 48, 96, 96), input_size=(96, 96))
    assert made is not None
    orange = framed(Image.open(tmp_path / made.src))
    assert not orange[50:94, 50:94].any()
    assert orange[46:48, 46:].all()


def test_gallery__writes_the_same_picture_once(tmp_path: Path):
    gallery = Gallery(tmp_path, lambda i: picture(28, 28))
    assert gallery.get(3, (0, 0, 5, 5)) == gallery.get(3, (-4, -4, 5, 5))
    gallery.get(3)
    gallery.get(3, longest=SMALL)
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_gallery__says_size_and_whether_pixels_are_enlarged(tmp_path: Path):
    small, large = Gallery(tmp_path, lambda i: picture((28, 200)[i], (28, 100)[i])).get, None
    made, large = small(0), small(1)
    assert made is not None
    assert large is not None
    assert (made.width, made.height, made.enlarged) == (84, 84, True)
    assert (large.width, large.height, large.enlarged) == (48, 96, False)
    with Image.open(tmp_path / large.src) as file:
        assert file.size == (48, 96)


def test_gallery__without_pictures_has_none(tmp_path: Path):
    gallery = Gallery(tmp_path, None)
    assert gallery.empty
    assert gallery.get(0) is None
    assert not (tmp_path / "pictures").exists()


def test_gallery__goes_on_where_one_picture_cannot_be_had(tmp_path: Path):
    def pictures(image: int) -> np.ndarray:
        if image == 1:
            raise UnreadableImageError("image 1 is cut off")
        return picture(8, 8)

    gallery = Gallery(tmp_path, pictures)
    assert gallery.get(1) is None
    assert gallery.get(0) is not None


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((8, 8), "u1"), np.zeros((8, 8, 4), "u1"), np.zeros((8, 8, 3)), np.zeros((0, 8, 1), "u1")],
)
def test_gallery__refuses_what_is_no_picture(tmp_path: Path, wrong: np.ndarray):
    with pytest.raises(ArrayError, match="image 7"):
        Gallery(tmp_path, lambda i: wrong).get(7)
