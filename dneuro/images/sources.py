"""One door to all sources of images."""

from __future__ import annotations

from typing import Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ImageSourceError
from dneuro.images.arrays import ArraySource
from dneuro.images.cifar10 import Cifar10Source
from dneuro.images.decode import Picture
from dneuro.images.digits import DigitsSource
from dneuro.images.files import FileSource, list_files
from dneuro.images.folder import list_folder
from dneuro.images.imagenet_val import list_imagenet_val
from dneuro.images.manifest import Manifest
from dneuro.images.memory import NO_LIMIT, Share
from dneuro.images.mnist import MnistSource
from dneuro.spec.images import (
    ArrayImages,
    Cifar10Images,
    DigitsImages,
    FilesImages,
    FolderImages,
    ImagenetValImages,
    ImagesSpec,
    MnistImages,
)


class ImageSource(Protocol):
    """Images that can be listed and read one by one. May be read by several threads at once.

    Parameters
    ----------
    held_bytes : int
        What a process keeps in memory for as long as it reads them: of the images, and libraries for them alone.
    is_near : bool
        Whether they lie on a disk or in memory; False where a connection has to be waited for.
    """

    held_bytes: int

    @property
    def is_near(self) -> bool:
        """Whether nobody need wait for a connection."""

    def fetch(self, index: int) -> None:
        """Have the storage bring an image that is read soon, as far as it can; returns at once, and never fails."""

    @property
    def manifest(self) -> Manifest:
        """Which images, in which order."""

    def read(self, index: int, share: Share = NO_LIMIT) -> tuple[NDArray[np.uint8], int]:
        """Return one picture, and what tells its stored content from any other.

        Parameters
        ----------
        index : int
            Position in the manifest.
        share : Share, optional
            Of the memory that the process has for pictures; none sets no limit.

        Returns
        -------
        picture : ndarray of uint8
            (height, width, 3), or (height, width) where it is grey. The caller's own.
        crc : int
            CRC-32 of the bytes as they are stored: of the file, or of the row of the array.

        Raises
        ------
        UnreadableImageError
            If this image is missing, damaged, not what the manifest lists, or larger than the share can be. Names
            it and the cause.
        OSError
            If the storage fails (I/O error, too many open files): that says nothing about the image,
            and another try may succeed.
        """

    def load(self, index: int, share: Share = NO_LIMIT) -> tuple[Picture, int]:
        """Return what `read` does, the picture as `decode.load` leaves it: for `view`, which takes both."""


def open_source(spec: ImagesSpec, manifest: Manifest | None = None) -> ImageSource:
    """Open the images that `spec` asks for; list and check them, without decoding any.

    Parameters
    ----------
    spec : ImagesSpec
        Which images.
    manifest : Manifest, optional
        The list made earlier from the same images (a worker's case): they are not listed again. Whether an
        image still is what it lists is checked when the image is read.

    Raises
    ------
    ImageSourceError
        If the images are missing, empty, wrongly labelled or fewer than the sample asked for; or if the
        manifest lists another kind of source.

    Notes
    -----
    Cost without a manifest: a folder is listed with one ``stat`` per image, a tar by reading its headers; an array,
    MNIST and CIFAR-10 are read once. With one: none, but that an ``.npz`` file, MNIST and CIFAR-10 are loaded once
    per process.
    """
    if manifest is not None and manifest.source.get("source") != spec.source:
        raise ImageSourceError(
            f"the manifest lists images of source {manifest.source.get('source')!r}, not {spec.source!r}"
        )
    match spec:
        case DigitsImages():
            return DigitsSource(spec, manifest)
        case FolderImages():
            return FileSource(spec.root, list_folder(spec) if manifest is None else manifest)
        case FilesImages():
            return FileSource(spec.root, list_files(spec) if manifest is None else manifest)
        case ImagenetValImages():
            return FileSource(spec.root, list_imagenet_val(spec) if manifest is None else manifest)
        case ArrayImages():
            return ArraySource(spec, manifest)
        case MnistImages():
            return MnistSource(spec, manifest)
        case Cifar10Images():
            return Cifar10Source(spec, manifest)
        case _:
            assert_never(spec)
