from __future__ import annotations

import zlib

import numpy as np
import pytest
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

from dneuro.errors import ImageSourceError
from dneuro.images.sources import ImageSource, open_source
from dneuro.spec.images import DigitsImages


def digits(**options: int) -> ImageSource:
    return open_source(DigitsImages(source="digits", **options))


def test_digits__manifest():
    manifest = digits().manifest
    assert len(manifest) == 1797
    assert manifest.names[[0, 1796]].tolist() == ["digit-0000", "digit-1796"]
    assert manifest.labels.tolist() == load_digits().target.tolist()
    assert manifest.class_names == tuple("0123456789")
    assert manifest.source == {"source": "digits", "sample": None, "seed": 0}


def test_digits__fingerprint_stays():
    assert digits().manifest.fingerprint() == (
        "754682fec31f8a71f32e3f3f58a0d65f487d92ae7986179e7d2eb2dc9e98098e"
    )


def test_digits__pictures_are_the_digits():
    source, originals = digits(), load_digits().images
    for index in (0, 700, 1796):
        picture, crc = source.read(index)
        assert picture.dtype == np.uint8
        assert picture.shape == (28, 28)
        assert crc == zlib.crc32(originals[index].astype(np.uint8).tobytes())
        expected = zoom(np.rint(originals[index] * 255 / 16), 3.5, order=1, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(picture, expected, atol=1)


def test_digits__use_the_whole_range():
    source = digits()
    pictures = [source.read(index)[0] for index in range(100)]
    assert (np.min(pictures), np.max(pictures)) == (0, 255)


def test_digits__sample():
    whole, part = digits(), digits(sample=50, seed=4)
    rows = part.manifest.indices
    assert part.manifest.names.tolist() == whole.manifest.names[rows].tolist()
    np.testing.assert_array_equal(part.read(49)[0], whole.read(int(rows[49]))[0])
    with pytest.raises(ImageSourceError, match="1,797 images; a sample of 1,798"):
        digits(sample=1798)
