"""The memory for pictures: shared by threads, never exceeded, never waited for in vain."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from dneuro.errors import UnreadableImageError
from dneuro.images.decode import decode, decoding_bytes
from dneuro.images.files import FileSource
from dneuro.images.memory import CrowdedError, PictureMemory
from dneuro.images.preprocess import view, view_bytes
from dneuro.images.sources import open_source
from dneuro.quantities import MiB
from dneuro.spec.images import FilesImages
from dneuro.spec.network import Preprocessing

SIDE = 2400
HOW = Preprocessing(resize=256, crop=224)

PEAK = """
import sys
from pathlib import Path
from dneuro.images.decode import READ
from dneuro.images.preprocess import view
from dneuro.spec.network import Preprocessing

how = Preprocessing(resize=256, crop=224)

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

small, large = (Path(path).read_bytes() for path in sys.argv[1:])
view(READ(small, "x"), how)  # whatever is loaded once
before = peak()
view(READ(large, "x"), how)
print(peak() - before)
"""

KINDS = {
    "jpeg": ("JPEG", "RGB", {}), "progressive": ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    "cmyk": ("JPEG", "CMYK", {"progressive": True}), "grey": ("JPEG", "L", {}), "png": ("PNG", "RGBA", {}),
    "palette": ("PNG", "P", {"transparency": 0}), "16 bit": ("PNG", "I;16", {}), "gif": ("GIF", "P", {}),
    "webp": ("WEBP", "RGB", {"lossless": True, "method": 0, "quality": 0}), "bmp": ("BMP", "RGB", {}),
    "one strip": ("TIFF", "RGB", {"compression": "tiff_lzw", "tiffinfo": {274: 6}}),
}  # fmt: skip


def encode(kind: str, side: int) -> bytes:
    form, mode, options = KINDS[kind]
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (side // 20, side // 20, 3), np.uint8)).resize((side, side))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256)
    file = io.BytesIO()
    image.convert(mode).save(file, form, **options)
    return file.getvalue()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells the peak memory, on Linux only")
@pytest.mark.parametrize("kind", ["progressive", "cmyk", "grey", "palette", "16 bit", "webp", "one strip"])
def test_decoding__takes_what_it_says(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 10**9)
    for side in (100, SIDE):
        (tmp_path / str(side)).write_bytes(encode(kind, side))
    told: list[int] = []
    decode((tmp_path / str(SIDE)).read_bytes(), "x", lambda width, height, count: told.append(count))
    said = max(told[0], view_bytes(SIDE, SIDE, HOW))
    peaks = []
    for read in ("load", "decode"):
        command = [sys.executable, "-c", PEAK.replace("READ", read), tmp_path / "100", tmp_path / str(SIDE)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert max(peaks) <= said <= 2.1 * max(peaks)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding__by_strips_is_what_pillow_gives(kind: str, monkeypatch: pytest.MonkeyPatch):
    content = encode(kind, 220)
    whole = decode(content, "x")
    monkeypatch.setattr("dneuro.images.decode.STRIP", 7 * 220)
    strips = decode(content, "x")
    np.testing.assert_array_equal(strips, whole)
    if kind not in ("16 bit",):
        wanted = Image.open(io.BytesIO(content))
        mode = "L" if wanted.mode == "L" else "RGB"
        transparent = wanted.convert("RGBA") if "transparency" in wanted.info else wanted
        np.testing.assert_array_equal(strips, np.asarray(transparent.convert(mode)))
    for how in (HOW, Preprocessing(color="grey"), Preprocessing(resize=(300, 20), color="rgb")):
        parts = view(strips, how)
        with monkeypatch.context() as patch:
            patch.setattr("dneuro.images.decode.STRIP", 1 << 20)
            np.testing.assert_array_equal(parts, view(whole, how))


def test_memory__one_picture_at_a_time_where_only_one_fits(make_folder: Callable[..., Path]):
    """Eight threads; each picture needs more than half of what there is, so each waits, and none for ever."""
    names = [f"{number}.png" for number in range(24)]
    root = make_folder(*names)
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8)).save(root / name)
    source = open_source(FilesImages(source="files", root=str(root)))
    content = (root / names[0]).read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        one = 2 * len(content) + decoding_bytes(image)
    memory = PictureMemory(int(1.9 * one))
    inside, most, read = [0], [0], []
    lock = threading.Lock()

    def work(numbers: list[int]) -> None:
        for number in numbers:
            with memory.share(HOW) as share:
                source.read(number, share)
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                with lock:
                    inside[0] -= 1
                    read.append(number)

    threads = [threading.Thread(target=work, args=(list(range(first, 24, 8)),), daemon=True) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(read) == list(range(24))
    assert most[0] == 1
    assert memory.take_now(int(1.9 * one)), "all is given back"


def test_memory__crowded_out_lets_go_of_the_file_and_reads_it_again(make_folder: Callable[..., Path]):
    root = make_folder("a.png")
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(root / "a.png")
    source = open_source(FilesImages(source="files", root=str(root)))
    memory = PictureMemory(20 * MiB)
    other = memory.share(HOW)
    other.file(10 * MiB - (1 << 16), "b.png")  # and 128 KiB are free
    reads: list[str] = []
    assert isinstance(source, FileSource)
    honest = source._storage.read

    def read(entry: object) -> bytes:
        reads.append("read")
        if len(reads) == 1:  # the second picture is crowded out by the first
            threading.Timer(0.1, other.__exit__, (None, None, None)).start()
        return honest(entry)  # type: ignore[arg-type]

    source._storage.read = read  # type: ignore[method-assign, assignment]
    with memory.share(HOW) as share:
        picture, _ = source.read(0, share)
    assert picture.shape == (100, 100, 3)
    assert reads == ["read", "read"]
    assert memory.take_now(20 * MiB)


def test_memory__what_can_never_fit_is_refused_with_its_size(make_folder: Callable[..., Path]):
    root = make_folder("a.png")
    Image.fromarray(np.zeros((3000, 2000, 3), np.uint8)).save(root / "a.png")
    source = open_source(FilesImages(source="files", root=str(root)))
    memory = PictureMemory(32 * MiB, besides=1000 * MiB)
    with memory.share(HOW) as share, pytest.raises(UnreadableImageError) as error:
        source.read(0, share)
    assert f"{root / 'a.png'}: a picture of 2000 × 3000 = 6,000,000 pixels takes " in error.value.message
    assert "a worker has 32 MiB for pictures" in error.value.message
    wanted = re.search(r"workers with ([\d.]+) GiB each", error.value.message)
    assert wanted is not None
    assert 1.15 < float(wanted[1]) < 1.4
    with memory.share() as share, pytest.raises(UnreadableImageError, match="a file of 99,999,999 bytes takes"):
        share.file(99_999_999, "b.png")
    assert memory.take_now(32 * MiB)


def test_memory__counts_a_picture_that_grows_when_it_is_resized():
    memory = PictureMemory(32 * MiB)
    with memory.share(HOW) as share:
        with pytest.raises(UnreadableImageError, match="10 × 10000 = 100,000 pixels takes 4"):
            share.picture(10, 10_000, 1000, "a.png")
        share.picture(1000, 100, 1000, "a.png")
    taken = memory.share(HOW)
    taken.file(10 * MiB, "b.png")
    with memory.share(HOW) as share, pytest.raises(CrowdedError):
        share.file(1, "a.png")
        share.picture(1000, 100, 25 * MiB, "a.png")
