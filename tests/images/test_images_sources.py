from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dneuro.errors import ImageSourceError
from dneuro.images.manifest import Manifest
from dneuro.images.sources import open_source
from dneuro.spec.images import ArrayImages, DigitsImages


def test_open_source__manifest_of_another_kind_is_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 2, 2), np.uint8))
    manifest = open_source(ArrayImages(source="array", root=str(tmp_path / "a.npz"))).manifest
    with pytest.raises(ImageSourceError, match="lists images of source 'array', not 'digits'"):
        open_source(DigitsImages(source="digits"), manifest)


def test_open_source__a_worker_reads_what_the_driver_listed(tmp_path: Path):
    spec = DigitsImages(source="digits", sample=20, seed=9)
    source = open_source(spec)
    source.manifest.save(tmp_path / "manifest.npz")
    worker = open_source(pickle.loads(pickle.dumps(spec)), Manifest.load(tmp_path / "manifest.npz"))
    for index in range(20):
        picture, crc = source.read(index)
        again, crc_again = worker.read(index)
        np.testing.assert_array_equal(again, picture)
        assert crc_again == crc


def test_images__import_neither_torch_nor_what_only_one_source_needs():
    code = (
        "import sys, dneuro.images.sources, dneuro.images.preprocess; "
        "print([m for m in ('torch', 'sklearn', 'zarr', 'fsspec', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
