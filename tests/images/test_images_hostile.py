"""Many hostile photographs among many good ones, read through the source: each is named, none takes the rest along."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dneuro.errors import UnreadableImageError
from dneuro.images.decode import decode
from dneuro.images.sources import open_source
from dneuro.spec.images import FolderImages

GOOD, COPIES = 1000, 40


def encode(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format=kind, **options)
    return file.getvalue()


def vast_png(side: int) -> bytes:
    """Return a valid PNG of side × side black pixels: 112 MB of bits for 30,000, and 0.9 GB once decoded."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))]
    packer, body = zlib.compressobj(1), b""
    row = bytes(1 + (side + 7) // 8)
    body = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    chunks += [(b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
JPEG, PNG = encode(NOISE, "JPEG"), encode(NOISE, "PNG")

UNREADABLE: dict[str, bytes] = {
    "empty.JPEG": b"",
    "one byte.jpg": b"\xff",
    "text.png": b"I am no picture",
    "page.jpg": b"<html><body>404 Not Found</body></html>",
    "zeros.jpg": bytes(5000),
    "half.jpg": JPEG[: len(JPEG) // 2],
    "half.png": PNG[: len(PNG) // 2],
    "header only.jpg": JPEG[:20],
    "wrong pixels.png": PNG.replace(PNG[60:80], bytes(20)),
    "postscript.jpg": encode(NOISE, "EPS"),
    "floats.tif": encode(np.ones((4, 4), np.float32), "TIFF"),
    "vast.png": vast_png(30_000),
    "vast header.png": PNG[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + PNG[24:],
    "sound.gif": b"RIFF\x24\0\0\0WAVEfmt ",
}

ODD: dict[str, bytes] = {
    "gif.JPEG": encode(NOISE, "GIF"),
    "png.JPEG": PNG,
    "cmyk.jpg": encode(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
    "palette.png": encode(Image.fromarray(NOISE).quantize(8), "PNG", transparency=0),
    "one pixel.jpg": encode(NOISE[:1, :1], "JPEG"),
    "16 bit.png": encode(NOISE[:, :, 0].astype(np.uint16) * 256, "PNG"),
}
"""Names are odd, or contents do not go with them; all can be read."""


def _forbid(path: Path) -> None:
    path.write_bytes(JPEG)
    path.chmod(0)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "loop.jpg": lambda path: path.symlink_to(path),
    "dangling.png": lambda path: path.symlink_to(path.with_name("nowhere.png")),
    "through a file.png": lambda path: path.symlink_to(path.parent.parent / "good/0.JPEG/x.png"),
    "pipe.jpg": os.mkfifo,
    "forbidden.JPEG": _forbid,
}
"""What has an image's name and is no file, or may not be read."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 good files and 1,000 others, in odd folders."""
    root = tmp_path_factory.mktemp("hostile")
    for name in ("good", "'; rm -rf $HOME #", "日本 \n%s"):
        (root / name).mkdir()
    for number in range(GOOD):
        (root / "good" / f"{number}.JPEG").write_bytes(JPEG)
    kinds: list[tuple[str, bytes | Callable[[Path], None]]] = [*(UNREADABLE | ODD | NO_FILES).items()]
    for number in range(len(kinds) * COPIES):
        name, content = kinds[number % len(kinds)]
        path = root / ("'; rm -rf $HOME #" if number % 2 else "日本 \n%s") / f"{number:04d} {name}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
    try:
        (root / os.fsdecode(b"caf\xe9")).mkdir()
        (root / os.fsdecode(b"caf\xe9/\xff png.JPEG")).write_bytes(PNG)
    except OSError:  # a file system that takes no such names
        (root / r"caf\xe9").mkdir()
        (root / r"caf\xe9/\xff png.JPEG").write_bytes(PNG)
    return root


READ_ALL = """
import sys, warnings
from pathlib import Path
from dneuro.errors import UnreadableImageError
from dneuro.images.sources import open_source
from dneuro.spec.images import FolderImages

warnings.simplefilter("error")

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

source = open_source(FolderImages(source="folder", root=sys.argv[1]))
source.read(source.manifest.names.tolist().index("good/0.JPEG"))
before, readable = peak(), []
for index, name in enumerate(source.manifest.names):
    try:
        source.read(index)
        readable.append(index)
    except UnreadableImageError as error:
        assert repr(name)[1:-1] in repr(error.message), (name, error.message)
print(len(source.manifest), (peak() - before) // 1024, *readable)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc, which Linux has")
def test_hostile__a_thousand_among_a_thousand_good_ones(photographs: Path):
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(photographs)], capture_output=True, text=True, check=True
    )
    count, grown, *readable = map(int, done.stdout.split())
    manifest = open_source(FolderImages(source="folder", root=str(photographs))).manifest
    assert count == len(manifest) == GOOD + len(UNREADABLE | ODD | NO_FILES) * COPIES + 1 == 2001
    can_be_read = {"", *ODD, *(["forbidden.JPEG"] if os.geteuid() == 0 else [])}  # root may read every file
    of_file = [name.rpartition("/")[2].partition(" ")[2] for name in manifest.names]  # "" of the good ones
    assert readable == [index for index, name in enumerate(of_file) if name in can_be_read]
    assert grown < 64, f"{grown} MiB for pictures of 6 KB: a vast one was decoded, or something is kept"


def test_hostile__kinds_are_what_they_are_said_to_be():
    assert struct.unpack(">II", UNREADABLE["vast.png"][16:24]) == (30_000, 30_000)
    assert decode(vast_png(200), "x").shape == (200, 200)
    assert Image.open(io.BytesIO(ODD["gif.JPEG"])).format == "GIF"
    for name, content in UNREADABLE.items():
        with pytest.raises(UnreadableImageError):
            decode(content, name)
    for name, content in ODD.items():
        assert decode(content, name).dtype == np.uint8


def test_decode__cmyk_as_adobe_writes_it():
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[..., 0] = 255  # cyan and nothing else; in the file 0 stands for full ink
    inverted = encode(Image.fromarray(ink, "CMYK"), "JPEG", quality=100)  # and Adobe's marker
    assert b"Adobe" in inverted
    assert np.abs(decode(inverted, "x").astype(int) - [0, 255, 255]).max() <= 2
    marker = inverted.index(b"\xff\xee")
    length = int.from_bytes(inverted[marker + 2 : marker + 4], "big")
    plain = inverted[:marker] + inverted[marker + 2 + length :]
    np.testing.assert_array_equal(decode(plain, "x"), decode(inverted, "x"))  # taken for inverted without it, too


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_folder__a_file_that_may_not_be_read(make_folder: Callable[..., Path]):
    root = make_folder("cat/a.png")
    source = open_source(FolderImages(source="folder", root=str(root)))
    (root / "cat/a.png").chmod(0)
    with pytest.raises(UnreadableImageError, match="Permission denied"):
        source.read(0)
