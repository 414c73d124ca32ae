"""Extraction of photographs on one GPU against the bare forward pass on the same card, decoding in and out of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.measure import Clock, free_cores
from benchmarks.photographs import COUNT, SQUEEZENET, decoded, extraction, network, photographs, scaling
from benchmarks.question import Candidate, Question
from benchmarks.setting import Setting

BATCH = 128
UNIT = 1024
"""Images per unit: enough batches that filling the pipeline and emptying it does not count."""
DEVICE = "cuda"


def ours(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Extract with dneuro, two units at a time, decoding on all cores."""
    return extraction(SQUEEZENET, setting, device=DEVICE, batch=BATCH, unit=UNIT, slots=2, threads=free_cores())


def bare(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Run the network over one batch that lies on the card, as often as the photographs need."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    module, count = network(SQUEEZENET, "channels_last", DEVICE), len(photographs(setting))
    batch = torch.randn(BATCH, 3, 224, 224, device=DEVICE).contiguous(memory_format=torch.channels_last)

    def call() -> int:
        with torch.inference_mode():
            for _ in range(max(1, count // BATCH)):
                output = module(batch)
        output.cpu()  # waits for the card
        return count // BATCH * BATCH

    call()
    return call


def with_decoding(setting: Setting, clock: Clock) -> Callable[[], Any]:
    """Decode on all cores while the card runs the network; store nothing."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    module, paths = network(SQUEEZENET, "channels_last", DEVICE), photographs(setting)
    mean, std = (values.to(DEVICE) for values in scaling())
    pieces = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]

    def forward(pictures: list[Any]) -> Any:
        pixels = torch.stack(pictures).contiguous(memory_format=torch.channels_last)
        pixels = pixels.pin_memory() if DEVICE == "cuda" else pixels
        with torch.inference_mode():
            return module((pixels.to(DEVICE, non_blocking=True).float() - mean) / std)

    forward([decoded(path) for path in pieces[0]])

    def call() -> int:
        waiting: deque[list[Any]] = deque()
        with ThreadPoolExecutor(free_cores()) as pool:
            for piece in [*pieces, None, None]:
                if piece is not None:
                    waiting.append([pool.submit(decoded, path) for path in piece])
                if waiting and (piece is None or len(waiting) > 2):
                    output = forward([future.result() for future in waiting.popleft()])
        output.cpu()  # waits for the card
        return len(paths)

    return call


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


QUESTIONS = (
    (
        Question(
            f"SqueezeNet over {COUNT:,} photographs on a GPU, four layers, float32",
            (
                Candidate("dneuro extract, stored", ours, "threads"),
                Candidate("bare forward pass, nothing decoded", bare, "memory"),
                Candidate("decoding and forward pass, nothing stored", with_decoding, "threads"),
            ),
        ),
    )
    if _has_gpu()
    else ()
)
