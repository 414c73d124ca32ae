"""The step about the top patches of each channel: their images are found, read again, cut, and taken apart."""

from __future__ import annotations

from typing import Any

import xarray as xr

from dneuro.analysis import ANALYSES, PLANS
from dneuro.engine.executors import Executor, Sizes
from dneuro.engine.plan import Plan
from dneuro.extract.patches import checksums_of, patches_of, stand_in_patches
from dneuro.extract.views import Views, forget
from dneuro.extract.work import ExtractWork
from dneuro.images.memory import MARGIN
from dneuro.jobs.study import Study
from dneuro.spec.steps import PLACED, PatchComponentsStep
from dneuro.store.opening import Store

LIST_BYTES = 128
"""Bytes of one entry of the lists of top images, as they are found and as they are cut by."""


def plan_patches(
    study: Study, step: PatchComponentsStep, layer: str, top: Plan, images: int, executor: Sizes, **placed: Any
) -> Plan:
    """Return the plan of a step.

    Parameters
    ----------
    study : Study
        The job.
    step : PatchComponentsStep
        The step.
    layer : str
        The layer it is asked of.
    top : Plan
        How its top images are found.
    images : int
        Images that take part.
    executor : Sizes
        Where.
    **placed
        Where the pictures are written.
    """
    patches = _stand_in(study, layer, min(step.k, images))
    found = PLANS[step.kind](patches, client=executor, **parameters_of(step), **placed)
    channels, samples = patches.shape[:2]
    reads = sum(min(images, length * samples) for length in patches.chunksizes["channel"])
    return Plan(
        operation=found.operation,
        passes=top.passes,
        read_bytes=top.read_bytes,
        tasks=found.tasks,
        worker_bytes=max(top.worker_bytes, found.worker_bytes + _reading_bytes(study)),
        driver_bytes=max(top.driver_bytes, found.driver_bytes) + LIST_BYTES * channels * samples,
        result_bytes=found.result_bytes,
        method=f"{found.method}; at most {reads:,} pictures read again",
        device=found.device,
        device_bytes=max(top.device_bytes, found.device_bytes),
    )


def answer_patches(
    study: Study, store: Store, step: PatchComponentsStep, x: xr.DataArray, executor: Executor, work: ExtractWork,
    **settings: Any,
) -> xr.Dataset:  # fmt: skip
    """Find the top images of a layer, cut their patches and take these apart.

    Parameters
    ----------
    study : Study
        The job.
    store : Store
        Its store.
    step : PatchComponentsStep
        The step.
    x : DataArray
        The layer, with the images that take part.
    executor : Executor
        Where.
    work : ExtractWork
        The extraction: its list of images is there for the workers.
    **settings
        Where the pictures are written.
    """
    layer = str(x.attrs["layer"])
    top = ANALYSES["top_images"](x, k=step.k, client=executor)
    beside = {"out": settings["out"]} if "out" in settings else {}
    stand_in = _stand_in(study, layer, top.sizes["rank"])
    needed = PLANS[step.kind](stand_in, client=executor, **parameters_of(step), **beside)
    left = int(MARGIN * executor.memory) - needed.worker_bytes - _reading_bytes(study)
    views = Views(
        str(study.store), study.job.images, work.manifest, study.source.manifest.fingerprint(), study.preprocessing,
        memory=study.plan.least_picture_bytes + max(0, left),
    )  # fmt: skip
    patches = patches_of(layer, store.statistics(layer).attrs, top, views, checksums_of(store), step.k)
    try:
        return ANALYSES[step.kind](patches, client=executor, **parameters_of(step), **settings)
    finally:
        forget()  # where tasks were threads of this process


def _stand_in(study: Study, layer: str, samples: int) -> xr.DataArray:
    channels = next(plan.shape[0] for plan in study.plan.layers if plan.name == layer)
    return stand_in_patches(layer, channels, samples, study.layers[layer].field, study.input_shape)


def _reading_bytes(study: Study) -> int:
    """Return what a process takes to read pictures, in any case."""
    return study.plan.least_picture_bytes + study.source.held_bytes + study.source.manifest.held_bytes


def parameters_of(step: PatchComponentsStep) -> dict[str, Any]:
    """Return the keyword arguments of the function."""
    return step.model_dump(exclude={"name", "layer", "select"} | PLACED)
