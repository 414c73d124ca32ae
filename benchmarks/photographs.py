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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Clock, free_cores
from benchmarks.question import Candidate, Question
from benchmarks.setting import Setting

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COUNT = int(os.environ.get("DNEURO_BENCHMARK_PHOTOS", "6000"))
"""Photographs taken, evenly from all there are, or all of them many times over."""

ONE_POOL = {"MALLOC_ARENA_MAX": "1"}
"""As a worker of dneuro has it: all threads share one pool of freed memory."""

Variant = tuple[str, int]
"""Whether each core runs batches of its own (`lanes`) or all share one (`threads`), and images per batch."""


@dataclass(frozen=True)
class Case:
    """A network over photographs.

    Parameters
    ----------
    name : str
        As torchvision has it.
    weights : str
        Its file below ``weights/``, without the suffix.
    layers : mapping of str to str
        What is kept of each.
    count : int
        Photographs.
    unit : int
        Images per unit: so few that there are enough units for all cores.
    plain, kept, alike : tuple of Variant
        Plain loops; those with freed memory kept; those of them with dneuro's pixels.
    headless : bool
        Only its convolutions.
    """

    name: str
    weights: str
    layers: Mapping[str, str]
    count: int
    unit: int
    plain: tuple[Variant, ...]
    kept: tuple[Variant, ...]
    alike: tuple[Variant, ...]
    headless: bool = False


SQUEEZENET = Case(
    "squeezenet1_1", "squeezenet1_1",
    {
        "features.3.expand3x3_activation": "max",
        "features.6.expand3x3_activation": "max",
        "features.9.expand3x3_activation": "max",
        "features.12.expand3x3_activation": "full",
    },
    COUNT, unit=512,
    plain=(("lanes", 8), ("lanes", 16), ("lanes", 32), ("threads", 8)),
    kept=(("lanes", 8), ("lanes", 16), ("lanes", 32)),
    alike=(("lanes", 16), ("lanes", 32)),
)  # fmt: skip
CONVOLUTIONS = (1, 3, 6, 8, 11, 13, 15, 18, 20, 22, 25, 27, 29)
"""The ReLUs behind those of VGG16."""
VGG16 = Case(
    "vgg16", "vgg16_features", {f"features.{number}": "stats" for number in CONVOLUTIONS}, COUNT // 24, unit=32,
    plain=(("lanes", 8),), kept=(("lanes", 8), ("lanes", 16)), alike=(("lanes", 8), ("lanes", 16)), headless=True,
)  # fmt: skip


def photographs(setting: Setting, count: int = COUNT) -> list[Path]:
    """Return the files: real ones, or JPEGs of 375 × 500 pixels with about the bytes of photographs."""
    data = os.environ.get("DNEURO_TEST_DATA")
    folder = Path(data) / "photos" if data else setting.path.parent / "made-photos"
    if not data and not folder.exists():
        _make(folder)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return [found[i * len(found) // count] for i in range(count)]


def _make(folder: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(min(COUNT, 512)):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = coarse.resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth, np.int16) + rng.normal(0, 12, (375, 500, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)


def weights(case: Case) -> str:
    """Return a network's weights; random ones where there are none: the arithmetic is the same."""
    data = os.environ.get("DNEURO_TEST_DATA")
    return str(Path(data) / "weights" / f"{case.weights}.safetensors") if data else "none"


def network(case: Case, memory_format: str, device: str = "cpu") -> Any:
    """Return the network, as dneuro loads it."""
    from dneuro.nets.load import load
    from dneuro.spec import NetworkSpec

    named = {"name": f"torchvision:{case.name}", "weights": weights(case)}
    spec = NetworkSpec.model_validate({**named, "memory_format": memory_format, "device": device})
    module = load(spec, partial_for=list(case.layers) if case.headless else None).module
    return module.features if case.headless else module


def scaling() -> tuple[Any, Any]:
    """Return mean and standard deviation on the scale of pixels."""
    import torch

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return mean, std


def ours(case: Case, setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Extract with dneuro: one unit per core at a time, one thread each."""
    import torch

    torch.set_num_threads(1)
    return extraction(case, setting, device="cpu", batch=16, unit=case.unit, slots=free_cores(), threads=1)


def extraction(
    case: Case, setting: Setting, *, device: str, batch: int, unit: int, slots: int, threads: int
) -> Callable[[], Any]:
    """Return the run of a job, planned: extraction, statistics, thumbnails, read-back."""
    from dneuro.engine import ThreadExecutor
    from dneuro.jobs.driver import run_job
    from dneuro.jobs.planning import plan_job
    from dneuro.spec import JobSpec

    folder = Path(tempfile.mkdtemp(dir=setting.path.parent))
    (folder / "photos").mkdir()
    for number, path in enumerate(photographs(setting, case.count)):
        (folder / "photos" / f"{number:06d}.jpg").symlink_to(path)
    job = JobSpec.model_validate({
        "name": "benchmark", "images": {"source": "files", "root": str(folder / "photos")},
        "network": {"name": f"torchvision:{case.name}", "weights": weights(case), "device": device},
        "store": str(folder / "store.zarr"),
        "steps": [{"extract": {
            "layers": {name: {"keep": keep} for name, keep in case.layers.items()},
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
    case: Case, how: str, batch: int, setting: Setting, clock: Clock, *, kept: bool = False, alike: bool = False
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
    module, paths = network(case, "channels_last"), photographs(setting, case.count)
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


def _ahead(pool: ThreadPoolExecutor, pieces: list[list[Path]], see: Callable[[Path], Any]) -> Iterator[list[Any]]:
    waiting: deque[list[Any]] = deque()
    for piece in pieces:
        waiting.append([pool.submit(see, path) for path in piece])
        if len(waiting) > 2:
            yield [future.result() for future in waiting.popleft()]
    while waiting:
        yield [future.result() for future in waiting.popleft()]


def usual_loop(case: Case, setting: Setting, clock: Clock) -> Callable[[], Any]:
    """PIL and torchvision's transform, the default layout, batches of 32, hooks, ``numpy.save`` at the end."""
    import torch
    from PIL import Image
    from torchvision import transforms

    module, paths = network(case, "contiguous"), photographs(setting, case.count)
    folder = Path(tempfile.mkdtemp(dir=setting.path.parent))
    transform = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    kept: dict[str, list[Any]] = {name: [] for name in case.layers}
    for name, keep in case.layers.items():

        def hook(_module: Any, _inputs: Any, output: Any, name: str = name, keep: str = keep) -> None:
            kept[name].append((output if keep == "full" else output.amax((2, 3))).numpy().copy())

        module.get_submodule(name.removeprefix("features.") if case.headless else name).register_forward_hook(hook)
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


def _candidates(case: Case) -> tuple[Candidate, ...]:
    """Return dneuro, the variants of the best plain loop, and the usual loop."""

    def loops(variants: Sequence[Variant], how: str, **settings: Any) -> Iterator[Candidate]:
        for name, batch in variants:
            made = functools.partial(plain_loop, case, name, batch, **settings)
            variables = ONE_POOL if settings.get("kept") else {}
            yield Candidate(f"plain loop, {name} of {batch}{how}, nothing stored", made, "threads", variables=variables)

    return (
        Candidate("dneuro extract, stored", functools.partial(ours, case), "threads", variables=ONE_POOL),
        *loops(case.plain, ""),
        *loops(case.kept, ", memory kept", kept=True),
        *loops(case.alike, ", memory kept, pictures as dneuro decodes them", kept=True, alike=True),
        Candidate("usual loop, numpy.save", functools.partial(usual_loop, case), "memory"),
    )


QUESTIONS = (
    Question(
        f"SqueezeNet over {SQUEEZENET.count:,} photographs in one process, four layers, one of them in full: the best "
        "plain loop is the fastest of its variants (each core batches of its own, or all cores one batch; images per "
        "batch; freed memory kept or not; pictures decoded by torchvision, or as dneuro does it)",
        _candidates(SQUEEZENET),
    ),
    Question(
        f"VGG16 over {VGG16.count:,} photographs in one process, statistics of its thirteen convolutions",
        _candidates(VGG16),
    ),
)
