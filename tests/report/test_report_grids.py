from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dneuro.errors import ArrayError, UnreadableImageError
from dneuro.report.grids import SMALL, TILE, Frame, Gallery, Picture, shown_size


def picture(height: int, width: int, channels: int = 1, value: int = 200) -> np.ndarray:
    return np.full((height, width, channels), value, dtype=np.uint8)


def made(gallery: Gallery, image: int, *args: object, **more: object) -> Picture:
    found = gallery.get(image, *args, **more)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((28, 28), (84, 84, True)), ((1, 1), (96, 96, True)), ((60, 60), (60, 60, False)),
        ((112, 112), (96, 96, False)), ((56, 112), (48, 96, False)), ((112, 1), (96, 1, False)),
    ],
)  # fmt: skip
def test_shown_size__small_pictures_grow_by_a_whole_factor_and_large_ones_keep_their_aspect(size, shown):
    assert shown_size(*size, TILE) == shown


def test_gallery__keeps_every_pixel_of_a_small_picture(tmp_path: Path):
    source = np.random.default_rng(0).integers(0, 256, (28, 28, 1), dtype=np.uint8)
    file = made(Gallery(tmp_path, lambda i: source), 7)
    assert (file.src, file.width, file.height, file.enlarged) == ("pictures/0/7.png", 84, 84, True)
    with Image.open(tmp_path / file.src) as written:
        np.testing.assert_array_equal(np.asarray(written), source[:, :, 0])


def test_gallery__reduces_a_large_picture_and_keeps_what_is_on_it(tmp_path: Path):
    source = np.zeros((300, 150, 3), dtype=np.uint8)
    source[:150] = (250, 120, 10)
    file = made(Gallery(tmp_path, lambda i: source), 12_345)
    assert (file.src, file.width, file.height, file.enlarged) == ("pictures/12/12345.jpg", 48, 96, False)
    with Image.open(tmp_path / file.src) as written:
        assert written.size == (56, 112)
        drawn = np.asarray(written).astype(int)
    assert np.abs(drawn[:50] - (250, 120, 10)).max() < 12
    assert drawn[62:].max() < 12


def test_gallery__frames_a_box_in_per_cent_of_the_picture(tmp_path: Path):
    gallery = Gallery(tmp_path, lambda i: picture(48, 48, 3))
    assert made(gallery, 0).frame is None
    assert made(gallery, 0, (48, 24, 96, 72), input_size=(96, 96)).frame == Frame(50, 25, 0, 25)
    assert made(gallery, 0, (12, 6, 24, 18)).frame == Frame(25, 62.5, 50, 12.5)


def test_gallery__clips_a_frame_that_reaches_outside(tmp_path: Path):
    gallery = Gallery(tmp_path, lambda i: picture(28, 28))
    assert made(gallery, 0, (-6, 20, 7, 34), input_size=(40, 40)).frame == Frame(0, 15, 82.5, 50)
    assert made(gallery, 0, (-9, 50, -5, 60), input_size=(40, 40)).frame == Frame(0, 0, 100, 100)


def test_gallery__shows_the_patch_in_the_box_at_the_size_of_a_tile(tmp_path: Path):
    """What lies in the window is the box, and the picture behind it has its own aspect."""
    patch = made(Gallery(tmp_path, lambda i: picture(50, 100, 3)), 0, (10, 40, 30, 60), patch=True).patch
    assert patch is not None
    assert (patch.width, patch.height) == (TILE, TILE)
    factor = TILE / 20
    assert patch.whole == (100 * factor, 50 * factor)
    assert (patch.left, patch.top) == (-40 * factor, -10 * factor)
    assert patch.window == "width:96px;height:96px"
    assert patch.style == "width:480px;height:240px;left:-192px;top:-48px"


@pytest.mark.parametrize("box", [(0, 0, 80, 80), (-50, -50, 150, 150)])
def test_gallery__shows_no_patch_that_is_most_of_the_picture(tmp_path: Path, box):
    file = made(Gallery(tmp_path, lambda i: picture(100, 100, 3)), 0, box, patch=True)
    assert file.patch is None
    assert file.frame is not None


def test_gallery__does_not_blow_up_a_patch_of_one_pixel(tmp_path: Path):
    patch = made(Gallery(tmp_path, lambda i: picture(224, 224, 3)), 0, (5, 5, 6, 6), patch=True).patch
    assert patch is not None
    assert max(patch.whole) <= 16 * TILE
    assert patch.width >= 1


def test_gallery__reads_and_writes_an_image_once_whatever_is_framed(tmp_path: Path):
    asked = []

    def pictures(image: int) -> np.ndarray:
        asked.append(image)
        return picture(28, 28)

    gallery = Gallery(tmp_path, pictures)
    gallery.write([3, 2003])
    for box in (None, (0, 0, 5, 5), (3, 3, 9, 9)):
        for longest in (TILE, SMALL):
            assert made(gallery, 3, box, longest=longest).src == "pictures/0/3.png"
    assert asked == [3, 2003]
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["2003.png", "3.png"]


def test_gallery__all_files_have_the_suffix_of_the_first(tmp_path: Path):
    gallery = Gallery(tmp_path, lambda i: picture(28 + i, 28 + i, 3))
    assert gallery.suffix is None
    assert made(gallery, 100).src.endswith(".jpg")
    assert made(gallery, 0).src.endswith(".jpg")
    assert gallery.suffix == "jpg"


def test_gallery__without_pictures_has_none(tmp_path: Path):
    gallery = Gallery(tmp_path, None)
    gallery.write([0])
    assert gallery.empty
    assert gallery.get(0) is None
    assert not gallery.holds(0)
    assert not (tmp_path / "pictures").exists()


def test_gallery__goes_on_where_one_picture_cannot_be_had(tmp_path: Path):
    def pictures(image: int) -> np.ndarray:
        if image == 1:
            raise UnreadableImageError("image 1 is cut off")
        return picture(8, 8)

    gallery = Gallery(tmp_path, pictures)
    gallery.write([0, 1])
    assert gallery.get(1) is None
    assert not gallery.holds(1)
    assert gallery.holds(0)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((8, 8), "u1"), np.zeros((8, 8, 4), "u1"), np.zeros((8, 8, 3)), np.zeros((0, 8, 1), "u1")],
)
def test_gallery__refuses_what_is_no_picture(tmp_path: Path, wrong: np.ndarray):
    with pytest.raises(ArrayError, match="image 7"):
        Gallery(tmp_path, lambda i: wrong).get(7)
