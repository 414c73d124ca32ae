"""What the answer to a question will cost: planned for arrays without data, before the store exists."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from dneuro.analysis import PLANS
from dneuro.analysis.images import taking_part
from dneuro.analysis.svd import as_call, in_panels
from dneuro.analysis.taken import TAKEN
from dneuro.engine.device import on_device
from dneuro.engine.executors import Sizes
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError, UsageError
from dneuro.jobs.across import plan_across
from dneuro.jobs.coupled import layers_of, plan_coupled
from dneuro.jobs.patching import plan_patches
from dneuro.jobs.questions import Question, on_its_device, placed, taken
from dneuro.jobs.stand_ins import stand_in, stand_in_result, stand_in_rows
from dneuro.jobs.study import Study
from dneuro.jobs.wiring import stand_in_weights
from dneuro.spec.steps import AcrossStep, ConnectionsStep, CoupledNmfStep, PatchComponentsStep, SvdStep


@on_its_device
def plan_question(study: Study, question: Question, executor: Sizes) -> Plan:
    """Return the plan of one question before the store exists, and refuse what does not fit.

    Raises
    ------
    MemoryLimitError
        With the numbers and what to change.
    """
    step = question.step
    if isinstance(step, CoupledNmfStep):
        stand_ins = [stand_in(study, plan) for plan in layers_of(study, step)]
        plan = plan_coupled(study, step, stand_ins, executor)
        hint = "a lower rank, fewer layers, or a profile with more memory per worker"
        driver_hint = "a lower rank, fewer layers, or driver: {memory: …} in the profile"
    elif isinstance(step, AcrossStep):
        found = {one.layer: stand_in_result(one.step, _asked_of(study, one)) for one in question.over}
        plan = plan_across(step, found, executor)
        hint = "a profile with more memory per worker (--cluster)"
        driver_hint = "per: channel, or more memory for the process that drives the job (driver: {memory: …})"
    else:
        plan = _plan_of_layer(study, question, executor)
        krylov = "" if plan.method.startswith("krylov") else "method: krylov, "
        hint = f"a lower rank, {krylov}per: channel, fewer folds, or a profile with more memory per worker (--cluster)"
        driver_hint = (
            "a lower rank, a smaller k, per: channel, neighbours: 20 of a similarity, fewer folds; or a "
            "machine with more memory for the process that drives the job (--cluster; in Slurm driver: {memory: …})"
        )
    if isinstance(step, SvdStep) and not plan.fits(executor):
        by_hand = _by_hand(study, question, executor)
        hint, driver_hint = f"{hint}{by_hand}", f"{driver_hint}{by_hand}"
    plan = replace(plan, operation=f"{step.id} of {question.layer}")
    plan.check(executor, hint=hint, driver_hint=driver_hint)
    return plan


def _by_hand(study: Study, question: Question, executor: Sizes) -> str:
    """Return how an svd step that does not fit could be asked of the store in other chunks; empty if it could not.

    A job takes a layer in the chunks of its store.
    """
    x = _at_best(question, _asked_of(study, question))
    if TAKEN in x.attrs or not (chunks := in_panels(x, client=executor, **question.parameters)):
        return ""
    cut = f"dn.open({study.job.store!r})[{question.layer!r}]{as_call(chunks)}"
    return f"; or, once the job is done without this step, dn.svd({cut}, …)"


def _plan_of_layer(study: Study, question: Question, executor: Sizes) -> Plan:
    """Return the plan of a question about one layer, or about one and an earlier one."""
    x = _asked_of(study, question)
    beside = placed(study, question, x)
    if isinstance(question.step, ConnectionsStep) and question.source is not None:
        x = stand_in_weights(study, question.source, question.layer)
    elif question.source is not None:
        beside["source"] = question.selected(stand_in(study, question.source))
    if isinstance(question.step, PatchComponentsStep):
        top, chosen = plan_step(question, x, executor), taking_part(_at_best(question, x))
        count = x.sizes["image"] if chosen is None else int(chosen.sum())
        with _named(question):
            plan = plan_patches(study, question.step, question.layer, top, count, executor, **beside)
    else:
        plan = plan_step(question, x, executor, **beside)
    plan = replace(plan, method="; ".join(filter(None, (plan.method, question.why))))
    if question.rows is not None:  # a table in the memory of the driver is no reading
        plan = replace(plan, passes=0, read_bytes=0, method="in the driver")
    return plan


def _asked_of(study: Study, question: Question) -> xr.DataArray:
    """Return an array shaped as what a question is asked of will be, without data."""
    layer = next(plan for plan in study.plan.layers if plan.name == question.layer)
    x = stand_in(study, layer, taken(question, study.plan.unit))
    return x if question.rows is None else stand_in_rows(x, question.rows, len(study.class_names))


def plan_step(question: Question, x: xr.DataArray, executor: Sizes, **beside: Any) -> Plan:
    """Return the plan of a question asked of an array; an error names step and layer.

    Of one about top patches it is the plan of what is asked of the layer: their images.
    """
    kind, asked = question.step.kind, question.parameters
    if isinstance(question.step, PatchComponentsStep):
        kind, asked = "top_images", {"k": question.step.k}
    with _named(question), on_device(question.step.device, tf32=question.step.tf32):
        return PLANS[kind](_at_best(question, x), client=executor, **asked, **beside)


@contextlib.contextmanager
def _named(question: Question) -> Iterator[None]:
    """Let an error that something cannot be asked say of what step and layer."""
    try:
        yield
    except UsageError as error:
        name = f"{question.step.id} of {question.layer}"
        raise type(error)(f"{name}: {error.message}", hint=error.hint) from None


def _at_best(question: Question, x: xr.DataArray) -> xr.DataArray:
    """Return an array without data with the images that take part, as if every image were classified as wanted."""
    wanted = question.step.select
    if wanted is not None and "correct" in x.coords:
        if wanted.correct is not None and (wanted.sample or 0) > x.sizes["image"]:
            right = "right" if wanted.correct else "wrong"
            raise ArrayError(
                f"sample={wanted.sample} of {x.sizes['image']} images, of which those that are classified {right} will "
                "be fewer: how many is known after the extraction",
                hint="select: {sample: …} well below that, or without sample: all of them",
            )
        x = x.assign_coords(correct=("image", np.full(x.sizes["image"], wanted.correct is not False)))
    return question.selected(x)
