"""Extraction of photographs in one process, against plain loops on the same machine and cores.

The best plain loop decodes and runs the network and stores nothing, also with the allocator set as dneuro sets it: the
bound of the machine; and with pictures decoded and scaled as dneuro does it, to the pixels of PIL and the usual
transform: the bound for those. The usual loop keeps everything in memory and stores it at the end.
``$DNEURO_TEST_DATA`` names a folder with ``photos/`` and ``weights/``; without it JPEGs are made here.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Clock, free_cores
from benchmarks.question import Candidate, Question
from benchmarks.setting import Setting

NETWORK = "squeezenet1_1"
LAYERS = {
    "features.3.expand3x3_activation": "max",
    "features.6.expand3x3_activation": "max",
    "features.9.expand3x3_activation": "max",
    "features.12.expand3x3_activation": "full",
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COUNT = int(os.environ.get("DNEURO_BENCHMARK_PHOTOS", "4000"))
"""Photographs taken, evenly from all there are, or all of them many times over."""
UNIT = 256
"""Images per unit: half of what 50,000 images have, so that so few make enough units for all cores."""


def photographs(setting: Setting) -> list[Path]:
    """Return the files: real ones, or JPEGs of 375 × 500 pixels with about the bytes of photographs."""
    data = os.environ.get("DNEURO_TEST_DATA")
    folder = Path(data) / "photos" if data else setting.path.parent / "made-photos"
    if not data and not folder.exists():
        _make(folder)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return [found[i * len(found) // COUNT] for i in range(COUNT)]


def _make(folder: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(min(COUNT, 512)):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = coarse.resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth, np.int16) + rng.normal(0, 12, (375, 500, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)


def weights() -> str:
    """Return SqueezeNet's weights; random ones where there are none: the arithmetic is the same."""
    data = os.environ.get("DNEURO_TEST_DATA")
    return str(Path(data) / "weights" / f"{NETWORK}.safetensors") if data else "none"


def network(memory_format: str, device: str = "cpu") -> Any:
    """Return the network, as dneuro loads it."""
    from dneuro.nets.load import load
    from dneuro.spec import NetworkSpec

    named = {"name": f"torchvision:{NETWORK}", "weights": weights()}
    return load(NetworkSpec.model_validate({**named, "memory_format": memory_format, "device": device})).module


def scaling() -> tuple[Any, Any]:
    """Return mean and standard deviation on the scale of pixels."""
    import torch

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return mean, std


def ours(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Extract with dneuro: one unit per core at a time, one thread each."""
    import torch

    torch.set_num_threads(1)
    return extraction(setting, device="cpu", batch=16, unit=UNIT, slots=free_cores(), threads=1)


def extraction(
    setting: Setting, *, device: str, batch: int, unit: int, slots: int, threads: int
) -> Callable[[], Any]:
    """Return the run of a job, planned: extraction, statistics, thumbnails, read-back."""
    from dneuro.engine import ThreadExecutor
    from dneuro.jobs.driver import run_job
    from dneuro.jobs.planning import plan_job
    from dneuro.spec import JobSpec

    folder = Path(tempfile.mkdtemp(dir=setting.path.parent))
    (folder / "photos").mkdir()
    for number, path in enumerate(photographs(setting)):
        (folder / "photos" / f"{number:06d}.jpg").symlink_to(path)
    job = JobSpec.model_validate({
        "name": "benchmark", "images": {"source": "files", "root": str(folder / "photos")},
        "network": {"name": f"torchvision:{NETWORK}", "weights": weights(), "device": device},
        "store": str(folder / "store.zarr"),
        "steps": [{"extract": {
            "layers": {name: {"keep": keep} for name, keep in LAYERS.items()},
            "batch": batch, "images_per_unit": unit,
        }}],
    })  # fmt: skip
    executor = ThreadExecutor(slots)
    plan = plan_job(job, executor)
    return lambda: run_job(plan, executor, threads=threads).outcome.images


def decoded(path: Path) -> Any:
    """Return (colours, height, width), uint8, the fastest way at hand: torchvision's decoder and resizing."""
    from torchvision.io import ImageReadMode, decode_image, read_file
    from torchvision.transforms.v2 import functional as F  # noqa: N812

    picture = decode_image(read_file(str(path)), mode=ImageReadMode.RGB)
    return F.center_crop(F.resize(picture, [256], antialias=True), [224, 224])


def decoded_alike(path: Path) -> Any:
    """Return (colours, height, width), uint8, as dneuro makes it: the pixels of PIL and the usual transform."""
    import torch

    from dneuro.images.decode import load
    from dneuro.images.preprocess import view
    from dneuro.spec.network import Preprocessing

    seen = view(load(path.read_bytes(), str(path)), Preprocessing(resize=256, crop=224))
    return torch.from_numpy(seen).permute(2, 0, 1)


def plain_loop(
    how: str, batch: int, setting: Setting, clock: Clock, *, kept: bool = False, alike: bool = False
) -> Callable[[], Any]:
    """Decode and run the network channels last, in float32; store nothing.

    Each core runs batches of its own (`lanes`), or all cores share a batch while others are decoded (`threads`). Where
    `kept`, freed memory stays with the process, as dneuro has it: layer after layer finds its pages there. Where
    `alike`, pictures have the pixels that dneuro's have.
    """
    import torch

    from dneuro.allocation import keep_memory

    if kept:
        keep_memory()  # before there are threads
    module, paths = network("channels_last"), photographs(setting)
    mean, std = scaling()
    see = decoded_alike if alike else decoded
    pieces = [paths[i : i + batch] for i in range(0, len(paths), batch)]

    def forward(pictures: Sequence[Any]) -> None:
        with torch.inference_mode():
            module((torch.stack(list(pictures)).contiguous(memory_format=torch.channels_last).float() - mean) / std)

    torch.set_num_threads(1 if how == "lanes" else free_cores())
    forward([see(path) for path in pieces[0]])

    def lane(number: int) -> None:
        torch.set_num_threads(1)
        for piece in pieces[number :: free_cores()]:
            forward([see(path) for path in piece])

    def lanes() -> int:
        with ThreadPoolExecutor(free_cores()) as pool:
            list(pool.map(lane, range(free_cores())))
        return len(paths)

    def threads() -> int:
        with ThreadPoolExecutor(free_cores()) as pool:
            for pictures in _ahead(pool, pieces, see):
                forward(pictures)
        return len(paths)

    return lanes if how == "lanes" else threads


def _ahead(
    pool: ThreadPoolExecutor, pieces: list[list[Path]], see: Callable[[Path], Any]
) -> Iterator[list[Any]]:
    waiting: deque[list[Any]] = deque()
    for piece in pieces:
        waiting.append([pool.submit(see, path) for path in piece])
        if len(waiting) > 2:
            yield [future.result() for future in waiting.popleft()]
    while waiting:
        yield [future.result() for future in waiting.popleft()]


def usual_loop(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """PIL and torchvision's transform, the default layout, batches of 32, hooks, ``numpy.save`` at the end."""
    import torch
    from PIL import Image
    from torchvision import transforms

    module, paths = network("contiguous"), photographs(setting)
    folder = Path(tempfile.mkdtemp(dir=setting.path.parent))
    transform = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    kept: dict[str, list[Any]] = {name: [] for name in LAYERS}
    for name, keep in LAYERS.items():

        def hook(_module: Any, _inputs: Any, output: Any, name: str = name, keep: str = keep) -> None:
            kept[name].append((output if keep == "full" else output.amax((2, 3))).numpy().copy())

        module.get_submodule(name).register_forward_hook(hook)
    torch.set_num_threads(free_cores())

    def call() -> int:
        with torch.inference_mode():
            for start in range(0, len(paths), 32):
                pictures = [Image.open(path).convert("RGB") for path in paths[start : start + 32]]
                module(torch.stack([transform(picture) for picture in pictures]))
        for name, parts in kept.items():
            np.save(folder / f"{name}.npy", np.concatenate(parts))
        return len(paths)

    return call


VARIANTS = (("lanes", 8), ("lanes", 16), ("lanes", 32), ("threads", 8), ("threads", 32))
KEPT = (("lanes", 8), ("lanes", 16), ("lanes", 32))
ALIKE = (("lanes", 16), ("lanes", 32))

QUESTIONS = (
    Question(
        f"SqueezeNet over {COUNT:,} photographs in one process, four layers: the best plain loop is the fastest of its "
        "variants (each core batches of its own, or all cores one batch; images per batch; freed memory kept or not; "
        "pictures decoded by torchvision, or as dneuro does it)",
        (
            Candidate("dneuro extract, stored", ours, "threads"),
            *(
                Candidate(f"plain loop, {how} of {batch}, nothing stored",
                          functools.partial(plain_loop, how, batch), "threads")
                for how, batch in VARIANTS
            ),
            *(
                Candidate(f"plain loop, {how} of {batch}, memory kept, nothing stored",
                          functools.partial(plain_loop, how, batch, kept=True), "threads")
                for how, batch in KEPT
            ),
            *(
                Candidate(f"plain loop, {how} of {batch}, memory kept, pictures as dneuro decodes them, nothing stored",
                          functools.partial(plain_loop, how, batch, kept=True, alike=True), "threads")
                for how, batch in ALIKE
            ),
            Candidate("usual loop, numpy.save", usual_loop, "memory"),
        ),
    ),
)  # fmt: skip
