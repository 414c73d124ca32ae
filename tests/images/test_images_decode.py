from __future__ import annotations

import io
import struct
import subprocess
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.images.decode import FORMATS, MAX_PIXELS, decode

LOSSLESS = ("PNG", "BMP", "PPM", "TIFF", "WEBP")


def encode(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if kind == "WEBP":
        options = {"lossless": True, **options}
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], bits: int = 8, colour: int = 0) -> bytes:
    """Return a PNG made by hand: what Pillow would refuse to write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        parts += [struct.pack(">I", len(body)), name, body, struct.pack(">I", zlib.crc32(name + body))]
    return b"".join(parts)


def tiff(width: int, height: int, bits: int, pixels: bytes, *tags: tuple[int, int, int, int]) -> bytes:
    """Return a grey TIFF made by hand; tags are (number, type, count, value)."""
    found = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, height), (279, 4, 1, len(pixels)), *tags,
    ]  # fmt: skip
    entries = sorted({entry[0]: entry for entry in found}.values())
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels
        + struct.pack("<H", len(entries)) + directory + bytes(4)
    )  # fmt: skip


@pytest.mark.parametrize("kind", LOSSLESS)
def test_decode__colour(picture: np.ndarray, kind: str):
    decoded = decode(encode(picture, kind), "x")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, picture)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_decode__grey_stays_grey(picture: np.ndarray, kind: str):
    np.testing.assert_array_equal(decode(encode(picture[:, :, 0], kind), "x"), picture[:, :, 0])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "subsampling": 2}])
def test_decode__jpeg(picture: np.ndarray, options: dict[str, object]):
    data = encode(picture, "JPEG", **options)
    np.testing.assert_array_equal(decode(data, "x"), np.asarray(Image.open(io.BytesIO(data))))
    assert decode(encode(picture[:, :, 0], "JPEG", **options), "x").shape == (13, 17)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_decode__cmyk(picture: np.ndarray, kind: str):
    data = encode(Image.fromarray(picture).convert("CMYK"), kind)
    np.testing.assert_array_equal(decode(data, "x"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_decode__transparency_is_dropped(picture: np.ndarray, kind: str):
    alpha = np.full((13, 17, 1), 100, np.uint8)
    data = encode(np.concatenate([picture, alpha], axis=2), kind)
    np.testing.assert_array_equal(decode(data, "x"), picture)


def test_decode__grey_with_transparency(picture: np.ndarray):
    grey, alpha = Image.fromarray(picture[:, :, 0]), Image.fromarray(picture[:, :, 1])
    data = encode(Image.merge("LA", [grey, alpha]), "PNG")
    np.testing.assert_array_equal(decode(data, "x"), picture[:, :, 0])


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(16))])
def test_decode__palette(picture: np.ndarray, transparency: object):
    palette = Image.fromarray(picture).quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode(encode(palette, "PNG", **options), "x"), expected)


def test_decode__black_and_white(picture: np.ndarray):
    bits = picture[:, :, 0] > 127
    data = encode(Image.fromarray(bits), "PNG")
    np.testing.assert_array_equal(decode(data, "x"), np.where(bits, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
def test_decode__16_bit_grey_is_scaled_not_clipped(kind: str):
    values = np.array([[0, 255, 256, 257], [4096, 32768, 65279, 65535]], np.uint16)
    np.testing.assert_array_equal(decode(encode(values, kind), "x"), [[0, 0, 1, 1], [16, 128, 254, 255]])


def test_decode__16_bit_grey_big_endian_tiff():
    values = np.array([[0, 256, 65535]], ">u2")
    data = encode(Image.frombytes("I;16B", (3, 1), values.tobytes()), "TIFF")
    np.testing.assert_array_equal(decode(data, "x"), [[0, 1, 255]])


def test_decode__16_bit_colour():
    rows = b"\x00" + np.array([0, 256, 65535], ">u2").tobytes()
    data = png(1, 1, (b"IDAT", zlib.compress(rows)), bits=16, colour=2)
    np.testing.assert_array_equal(decode(data, "x"), [[[0, 1, 255]]])


def test_decode__12_bit_tiff_uses_the_whole_range():
    np.testing.assert_array_equal(decode(tiff(2, 1, 12, b"\xff\xf0\x00"), "x"), [[255, 0]])


@pytest.mark.parametrize(("bits", "pixels"), [(8, b"\x00\x37\xff"), (16, b"\x05\x00\x09\x37\xff\xff")])
def test_decode__tiff_whose_smallest_value_is_white(bits: int, pixels: bytes):
    np.testing.assert_array_equal(decode(tiff(3, 1, bits, pixels, (262, 3, 1, 0)), "x"), [[255, 200, 0]])


@pytest.mark.parametrize(("bits", "pixels"), [(8, b"\x80\x7f"), (16, b"\x00\x80\xff\x7f")])
def test_decode__tiff_with_a_sign_has_no_known_range(bits: int, pixels: bytes):
    with pytest.raises(UnreadableImageError, match=r"x\.tif.*have no known range; save the picture with 8 bits"):
        decode(tiff(2, 1, bits, pixels, (339, 3, 1, 2)), "x.tif")


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_decode__no_known_range(dtype: type):
    with pytest.raises(UnreadableImageError, match=r"x\.tif.*have no known range; save the picture with 8 bits"):
        decode(encode(np.ones((2, 2), dtype), "TIFF"), "x.tif")


def test_decode__exif_orientation_is_not_applied(picture: np.ndarray):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° to show
    assert decode(encode(picture, "JPEG", exif=exif), "x").shape == (13, 17, 3)
    np.testing.assert_array_equal(decode(encode(picture, "PNG", exif=exif), "x"), picture)


def test_decode__tiff_orientation_is_applied(picture: np.ndarray):
    data = encode(picture, "TIFF", tiffinfo={274: 6})
    np.testing.assert_array_equal(decode(data, "x"), np.rot90(picture, -1))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_decode__first_frame(kind: str):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 255)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decode(data, "x").max() == 0


def test_decode__one_pixel():
    assert decode(encode(np.full((1, 1), 7, np.uint8), "PNG"), "x").tolist() == [[7]]


def test_decode__result_is_the_callers_own(picture: np.ndarray):
    decoded = decode(encode(picture, "PNG"), "x")
    decoded[:] = 0


def test_decode__empty_file():
    with pytest.raises(UnreadableImageError, match=r"n/a\.jpg: the file is empty \(0 bytes\)"):
        decode(b"", "n/a.jpg")


@pytest.mark.parametrize("data", [b"hello, I am a text", b"\x00" * 4096, b"<svg/>", b"PK\x03\x04" + b"x" * 99])
def test_decode__not_a_picture(data: bytes):
    with pytest.raises(UnreadableImageError, match=r"a\.jpg: not a picture in a format known here \(JPEG"):
        decode(data, "a.jpg")


def test_decode__postscript_starts_no_program(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **_: object) -> None:
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(subprocess, "check_call", refuse)
    data = encode(np.zeros((4, 4, 3), np.uint8), "EPS")
    assert Image.open(io.BytesIO(data)).format == "EPS"
    with pytest.raises(UnreadableImageError, match="not a picture in a format known here"):
        decode(data, "a.jpg")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_decode__truncated(kind: str, share: float):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(noise, kind)
    with pytest.raises(UnreadableImageError, match="cut: "):
        decode(data[: int(len(data) * share)], "cut")


@pytest.mark.parametrize(
    ("width", "height"), [(MAX_PIXELS + 1, 1), (10_000, 9_000), (14_000, 14_000), (2**31 - 1, 2**31 - 1)]
)
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_decode__bomb(width: int, height: int, action: str):
    data = png(width, height, (b"IDAT", zlib.compress(bytes(1000))))
    with warnings.catch_warnings():
        warnings.simplefilter(action)  # type: ignore[arg-type]
        with pytest.raises(UnreadableImageError, match=f"bomb.png.*{width * height}|{width * height:,} pixels"):
            decode(data, "bomb.png")


def test_decode__largest_allowed_size_is_not_refused_for_its_size():
    data = png(MAX_PIXELS, 1, (b"IDAT", zlib.compress(bytes(1000))))
    with pytest.raises(UnreadableImageError, match="truncated"):
        decode(data, "x")


def test_decode__text_bomb_in_png():
    text = b"comment\x00\x00" + zlib.compress(bytes(10 * 2**20))
    data = png(1, 1, (b"zTXt", text), (b"IDAT", zlib.compress(b"\x00\x07")))
    with pytest.raises(UnreadableImageError, match="x: cannot be decoded: Decompressed data too large"):
        decode(data, "x")


def test_decode__truncated_images_switched_on_elsewhere(monkeypatch: pytest.MonkeyPatch, picture: np.ndarray):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageSourceError, match="LOAD_TRUNCATED_IMAGES is on"):
        decode(encode(picture, "PNG"), "x")


def test_decode__out_of_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch, picture: np.ndarray):
    def exhaust(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", exhaust)
    with pytest.raises(MemoryError):
        decode(encode(picture, "PNG"), "x")


ODD_METADATA = tiff(2, 1, 8, b"\x05\x06", (34665, 4, 1, 10**6), (305, 2, 10**6, 8))


def test_decode__odd_metadata_neither_warns_nor_hinders():
    with pytest.warns(UserWarning):
        Image.open(io.BytesIO(ODD_METADATA)).load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(ODD_METADATA, "x").tolist() == [[5, 6]]


def test_decode__in_threads_leaves_warnings_and_pillow_alone(picture: np.ndarray):
    before = (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    files = [ODD_METADATA, encode(picture, "PNG"), encode(picture, "JPEG")] * 100
    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(lambda data: decode(data, "x"), files))
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before
    for again in range(0, 300, 3):
        assert decoded[again].tolist() == [[5, 6]]
        np.testing.assert_array_equal(decoded[again + 1], picture)


SEEDS = {
    kind: encode(np.random.default_rng(2).integers(0, 256, (9, 9, 3), np.uint8), kind) for kind in FORMATS
}


@given(st.sampled_from(FORMATS), st.data())
@settings(max_examples=400, deadline=None)
def test_decode__damaged_bytes_give_a_picture_or_the_one_error(kind: str, data: st.DataObject):
    content = bytearray(SEEDS[kind])
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        content[place] = value
    try:
        decoded = decode(bytes(content[: data.draw(places) + 1]), "fuzz")
    except UnreadableImageError as error:
        assert str(error).startswith("fuzz: ")
    else:
        assert decoded.dtype == np.uint8
        assert decoded.ndim == 2 or decoded.shape[2] == 3
