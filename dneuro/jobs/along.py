"""What the extraction takes along, so that the job's later steps need not read a layer again.

The plan of an analysis names the kernels of its passes, and what of the layer they see. Those that can be fed while the
layer is in memory are; where they are all that an analysis needs, it answers without the layer having been kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from dneuro import events
from dneuro.analysis.taken import Taken
from dneuro.errors import MemoryLimitError, UsageError
from dneuro.extract.work import lacks
from dneuro.jobs.across import LAYERS, check_names
from dneuro.jobs.coupled import names_of
from dneuro.jobs.plans import plan_step
from dneuro.jobs.pools import SizesOf
from dneuro.jobs.questions import Question, lacking, rows_of
from dneuro.jobs.stand_ins import stand_in
from dneuro.jobs.study import Study
from dneuro.jobs.wiring import source_of
from dneuro.kernels import Moments, TopK
from dneuro.kernels.feeds import Feed, channel_look, join
from dneuro.quantities import MiB, format_bytes
from dneuro.spec.steps import (
    AcrossStep,
    AnalysisStep,
    ConnectionsStep,
    CooccurrenceStep,
    CoupledNmfStep,
    PatchComponentsStep,
    SimilarPlacesStep,
    SourceStep,
    SvdStep,
)
from dneuro.store.layout import LayerPlan
from dneuro.store.units import Unit, units_folder

PARTIAL_LIMIT = 256 * MiB
"""Partial statistics of one unit, all layers together, are at most this large."""

ALWAYS = MiB
"""So little is taken along whatever it spares."""

SHARE = 4
"""More is taken along where a layer is kept if it is at most one part in so many of what a pass would read of it."""


@dataclass
class Along:
    """What is taken along, in the making.

    Parameters
    ----------
    study : Study
        The job.
    sizes : callable
        What the workers of each pool have.
    states : dict
        Per layer and done unit, the names of its partial states and its number of images.
    feeds : dict
        Reductions to be fed, by layer.
    required : dict
        Those that no later pass can make up for.
    counted : set
        Steps and layers of which there will be counts per class.
    """

    study: Study
    sizes: SizesOf
    states: dict[str, list[tuple[tuple[str, ...], int]]]
    feeds: dict[str, tuple[Feed, ...]]
    required: dict[str, tuple[Feed, ...]] = field(default_factory=dict)
    counted: set[tuple[str, str]] = field(default_factory=set)

    def units_without(self, layer: str, feeds: Iterable[Feed]) -> int:
        """Return how many of the units that are done lack the partial states of some of `feeds`."""
        feeds = list(feeds)
        return sum(lacks({"kernels": keys}, feeds, images) for keys, images in self.states.get(layer, ()))

    def lacking(self, layer: str, feeds: Iterable[Feed]) -> list[Feed]:
        """Return those of `feeds` whose partial states some of the units that are done lack."""
        return [feed for feed in feeds if self.units_without(layer, [feed])]

    def bytes_with(self, plan: LayerPlan, feeds: Iterable[Feed]) -> tuple[int, int]:
        """Return (bytes of a unit's partial states that `feeds` of a layer add, bytes of all of them then)."""
        joined = self.feeds | {plan.name: self._joined(plan, feeds)}
        before, after = (self.study.plan.feeding(some).partial_bytes for some in (self.feeds, joined))
        return after - before, after

    def add(self, plan: LayerPlan, feeds: Iterable[Feed], *, required: bool) -> None:
        """Feed these on the way too."""
        self.feeds[plan.name] = self._joined(plan, feeds)
        if required:
            self.required[plan.name] = (*self.required.get(plan.name, ()), *feeds)

    def _joined(self, plan: LayerPlan, feeds: Iterable[Feed]) -> tuple[Feed, ...]:
        joined = self.feeds.get(plan.name, ())
        for feed in feeds:
            joined = join(joined, feed, self.study.plan.unit)
        return joined


def settle(study: Study, sizes: SizesOf, *, store: bool) -> tuple[Study, list[Question]]:
    """Return the study with what its extraction takes along, and all that the job asks, in its order.

    Parameters
    ----------
    study : Study
        The job, checked.
    sizes : callable
        What the workers of each pool have.
    store : bool
        The job's store exists, and what its units lack counts.

    Raises
    ------
    UsageError
        If a layer does not keep what a step needs, and it cannot be taken along either; or if nothing at all would
        be kept of a layer.
    MemoryLimitError
        If that would be too large.
    """
    states = dict(states_of(study)) if store and study.weights_sha256 is not None else {}
    along = Along(study, sizes, states, {plan.name: _statistics(study, plan) for plan in study.plan.layers})
    questions: list[Question] = []
    for step in study.job.steps:
        if not isinstance(step, AnalysisStep):
            continue
        if isinstance(step, CoupledNmfStep):
            questions.append(Question(step, " + ".join(names_of(study, step)), recorded=False))
            continue
        if isinstance(step, AcrossStep):
            questions += _ask_across(step, questions)
            continue
        named = [step.layer] if isinstance(step.layer, str) else step.layer
        for plan in study.plan.layers:
            if named is None or plan.name in named:
                questions += _ask(along, step, plan, named=named is not None)
    _refuse_nothing_kept(along)
    for plan in study.plan.layers:
        _make_good(along, plan)
    for layer, feeds in along.required.items():
        if redone := along.units_without(layer, feeds):
            events.emit(
                "note",
                "extract",
                f"{redone} units of {layer} were extracted without "
                f"{', '.join(sorted({f.key for f in along.lacking(layer, feeds)}))}, which its activations would be "
                "needed for; they are extracted again",
            )
    settled = replace(
        study,
        feeds=along.feeds,
        required=along.required,
        plan=study.plan.feeding(along.feeds, sizes(study.job.extract.pool_name).slots_per_process),
    )
    return settled, questions


def _refuse_nothing_kept(along: Along) -> None:
    """Refuse layers whose activations nobody stores and of which nothing is taken along."""
    nothing = [plan.name for plan in along.study.plan.layers if plan.keep == "stats" and not along.feeds[plan.name]]
    if nothing:
        raise UsageError(
            f"extract: keep: stats keeps nothing of layer {', '.join(nothing)}, for no statistics are taken, and no "
            "later step takes anything along",
            hint=f"statistics: [moments], or layers: {{{nothing[0]}: {{keep: full}}}}",
        )


def _make_good(along: Along, plan: LayerPlan) -> None:
    """Have the statistics of the extract step taken that earlier runs did not; or say which steps find them."""
    statistics = _statistics(along.study, plan)
    if plan.keep == "stats" or (plan.keep == "mean" and len(plan.shape) > 1):  # nothing stored has the maxima
        along.required[plan.name] = (*statistics, *along.required.get(plan.name, ()))
    elif lacking := along.lacking(plan.name, statistics):
        top = [feed.kernel.k for feed in lacking if isinstance(feed.kernel, TopK)]
        steps = ["moments"] * (len(top) < len(lacking)) + [f"top_images: {{k: {k}}}" for k in sorted(set(top))]
        events.emit(
            "note",
            "extract",
            f"{along.units_without(plan.name, lacking)} units of {plan.name} were extracted without "
            f"{', '.join(sorted(feed.key for feed in lacking))}, and the store does not get these statistics any more; "
            f"a step {' and a step '.join(steps)} finds them by a pass over it",
        )


def _ask(along: Along, step: AnalysisStep, plan: LayerPlan, *, named: bool) -> Iterator[Question]:
    """Yield what a step asks of a layer, and let it be taken along; nothing where that cannot be."""
    if isinstance(step, SourceStep):
        yield from _ask_of_two(along, step, plan, named=named)
        return
    if isinstance(step, SimilarPlacesStep | PatchComponentsStep) and len(plan.shape) < 3 and not named:
        events.emit("note", step.id, f"leaves out layer {plan.name}, which has no positions")
        return
    rows = rows_of(along.study, step)
    question = Question(step, plan.name, recorded=rows is not None, rows=rows)
    if rows is not None and (rows.id, plan.name) in along.counted:
        yield question
        return
    missing = lacking(question, plan) if rows is None else f"and step {rows.id} does not count it"
    wishes, whole = _wishes(along, question, plan, readable=not missing) if rows is None else ((), False)
    if missing and not whole:
        if named:
            raise UsageError(
                f"step {step.id}: layer {plan.name} has keep: {plan.keep}, {missing}",
                hint=f"extract: {{layers: {{{plan.name}: {{keep: full}}}}}}",
            )
        events.emit("note", step.id, f"leaves out layer {plan.name}, of which keep: {plan.keep} is stored")
        return
    if isinstance(step, CooccurrenceStep):
        along.counted.add((step.id, plan.name))
    why = _against(along, plan, wishes) if wishes and not missing else ""
    if missing:
        _check_size(along, step, plan, wishes)
    if not wishes or why:
        yield replace(question, why=why)
        return
    along.add(plan, wishes, required=bool(missing))
    yield replace(question, recorded=whole, feeds=wishes)


def _ask_across(step: AcrossStep, questions: list[Question]) -> Iterator[Question]:
    """Yield the one question of a step over several layers: those that the step which it is about is asked of."""
    asked = [one for one in questions if one.step.id == step.of and (not step.layers or one.layer in step.layers)]
    if not asked:
        events.emit("note", step.id, f"is left out: step {step.of} is asked of no layer")
        return
    if step.each_layer:
        check_names(step, [one.layer for one in asked])
    yield Question(step, LAYERS, recorded=True, over=tuple(asked))


def _ask_of_two(along: Along, step: SourceStep, plan: LayerPlan, *, named: bool) -> Iterator[Question]:
    """Yield what a step asks of a layer and the one before; nothing where there is none, or too little is kept."""
    source = source_of(along.study, step, plan)
    if source is None:
        return
    if isinstance(step, ConnectionsStep):
        if step.of != "channel" and not _has_directions(along.study, step.of, plan):
            events.emit("note", step.id, f"leaves out layer {plan.name}, of which step {step.of} gives no directions")
            return
        yield Question(step, plan.name, recorded=True, source=source)
        return
    question = Question(step, plan.name, recorded=False, source=source)
    for one in (plan, source):
        if missing := lacking(question, one):
            if named:
                raise UsageError(
                    f"step {step.id}: layer {one.name} has keep: {one.keep}, {missing}",
                    hint=f"extract: {{layers: {{{one.name}: {{keep: full}}}}}}",
                )
            events.emit("note", step.id, f"leaves out layer {plan.name}: of {one.name} keep: {one.keep} is stored")
            return
    yield question


def _has_directions(study: Study, name: str, plan: LayerPlan) -> bool:
    """Return whether an svd step is asked of a layer that keeps what it needs."""
    step = next(s for s in study.job.steps if isinstance(s, SvdStep) and s.id == name)
    wanted = not step.layers or plan.name in step.layers
    return wanted and not lacking(Question(step, plan.name, recorded=False), plan)


def _wishes(along: Along, question: Question, plan: LayerPlan, *, readable: bool) -> tuple[tuple[Feed, ...], bool]:
    """Return what of a question can be fed on the way, and whether that answers it."""
    wishes: dict[str, Feed] = {}

    def serves(feed: Feed) -> bool:
        if feed.key:
            wishes[feed.key] = feed
        return bool(feed.key)

    as_given = replace(plan, keep="stats")
    plan_of_step = plan_step(question, stand_in(along.study, as_given, Taken(serves, only=not readable)),
                             along.sizes(question.step.pool_name))  # fmt: skip
    return tuple(wishes.values()), plan_of_step.passes == 0


def _against(along: Along, plan: LayerPlan, wishes: tuple[Feed, ...]) -> str:
    """Return why the store is rather read; empty if it is not."""
    if without := along.units_without(plan.name, wishes):
        return f"{without} units were extracted without it"
    more, total = along.bytes_with(plan, wishes)
    arrays = plan.arrays(along.study.plan.images, along.study.plan.unit)
    read = along.study.plan.unit * sum(array.nbytes for array in arrays) // max(1, along.study.plan.images)
    sizes = along.sizes(along.study.job.extract.pool_name)
    room = sizes.memory // (8 * sizes.slots_per_process)
    if more > ALWAYS and (more > read // SHARE or total > min(PARTIAL_LIMIT, room)):
        return f"a pass costs less than {format_bytes(more)} per unit on the way"
    return ""


def _check_size(along: Along, step: AnalysisStep, plan: LayerPlan, wishes: tuple[Feed, ...]) -> None:
    more, total = along.bytes_with(plan, wishes)
    if total > PARTIAL_LIMIT:
        units = along.study.plan.units
        raise MemoryLimitError(
            f"step {step.id}: what it needs of {plan.name} (keep: {plan.keep}) takes {format_bytes(more)} per unit, "
            f"{format_bytes(total)} with all else that is taken along, {format_bytes(units * total)} for {units} "
            f"units; the limit is {format_bytes(PARTIAL_LIMIT)} per unit",
            hint=f"per: channel, a smaller k, fewer layers, or extract: {{layers: {{{plan.name}: {{keep: full}}}}}}",
        )


def _statistics(study: Study, plan: LayerPlan) -> tuple[Feed, ...]:
    """Return the statistics per channel that the extract step asks for."""
    step, look = study.job.extract, channel_look(plan.shape)
    feeds = [Feed(look, Moments())] if "moments" in step.statistics else []
    if "top_images" in step.statistics:
        feeds += [Feed(look, TopK(step.top_k)), Feed(look, TopK(step.top_k, largest=False))]
    return tuple(feeds)


def states_of(study: Study) -> Iterator[tuple[str, list[tuple[tuple[str, ...], int]]]]:
    """Yield, for each layer, what the units that are done have: names of partial states, and their images."""
    folder = units_folder(study.store) / "extract"
    for plan in study.plan.layers:
        found = []
        for number in range(study.plan.units):
            marker = Unit(folder / plan.name, f"{number:05d}").marker(study.fingerprints[plan.name])
            if marker is not None:
                start, stop = study.plan.span(number)
                found.append((tuple(marker.get("kernels", ())), stop - start))
        yield plan.name, found
