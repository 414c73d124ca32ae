"""What the steps of a job must be to each other: order, names, layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeVar

from dneuro.errors import suggest
from dneuro.spec.problems import KeyPath, Problem, ProblemsError, repeated
from dneuro.spec.steps import (
    AcrossStep,
    AnalysisStep,
    ConnectionsStep,
    CooccurrenceStep,
    ExtractStep,
    RowsStep,
    SimilarityStep,
    SourceStep,
    Step,
    SvdStep,
)

Steps = TypeVar("Steps", bound=Sequence[Step])


def check_order(steps: Steps) -> Steps:
    """Return `steps` as they are, if they fit together.

    Raises
    ------
    ProblemsError
        With every problem: steps of the same name, not exactly one extract step, a step before what it
        needs, a layer that is not extracted, one about the rows of something that is no step.
    """
    found = (_names(steps), _places(steps), _layers(steps), _rows(steps), _sources(steps), _across(steps))
    if problems := [*itertools.chain(*found)]:
        raise ProblemsError(*problems)
    return steps


def _names(steps: Sequence[Step]) -> Iterator[Problem]:
    ids = [step.id for step in steps]
    for name in repeated(ids):
        last = len(ids) - 1 - ids[::-1].index(name)
        what = f"{ids.count(name)} steps are named {name!r}"
        yield Problem(what, f"give this one a `name:`, such as {name}-2", _at(steps, last))


def _places(steps: Sequence[Step]) -> Iterator[Problem]:
    kinds = [step.kind for step in steps]
    if "extract" not in kinds:
        yield Problem("no extract step: the others would have nothing to work on",
                      "add `- extract: {layers: [<layer>, …]}`")  # fmt: skip
        return
    first = kinds.index("extract")
    for index, kind in enumerate(kinds):
        if kind == "extract" and index > first:
            yield Problem("a second extract step", "name all layers in the first one", _at(steps, index))
        elif kind == "train" and index > 0:
            yield Problem("the train step comes first", "move it to the top", _at(steps, index))
        elif kind not in ("train", "extract") and index < first:
            yield Problem(f"{kind} uses what the extract step stores, so it comes after it",
                          f"move it below steps[{first}]", _at(steps, index))  # fmt: skip


def _layers(steps: Sequence[Step]) -> Iterator[Problem]:
    extracts = [step for step in steps if isinstance(step, ExtractStep)]
    if not extracts:
        return
    stored = [layer for step in extracts for layer in step.layers]
    for index, step in enumerate(steps):
        if isinstance(step, AnalysisStep):
            why = "the extract step does not store"
            yield from _unknown_layers(step, stored, why, _at(steps, index, "layer"))


def _rows(steps: Sequence[Step]) -> Iterator[Problem]:
    for index, step in enumerate(steps):
        if not isinstance(step, RowsStep) or step.of == "activation":
            continue
        earlier = {s.id: s for s in steps[:index] if isinstance(s, CooccurrenceStep)}
        if step.of not in earlier:
            yield Problem(f"no cooccurrence step named {step.of!r} comes before this one",
                          suggest(step.of, ["activation", *earlier]), _at(steps, index, "of"))  # fmt: skip
        elif step.select is not None:
            yield Problem(f"the counts of step {step.of!r} are compared, and they were made of its images",
                          f"give `select:` to step {step.of!r}", _at(steps, index, "select"))  # fmt: skip
        elif counted := earlier[step.of].layers:
            why = f"step {step.of!r} does not count"
            yield from _unknown_layers(step, counted, why, _at(steps, index, "layer"))


def _sources(steps: Sequence[Step]) -> Iterator[Problem]:
    stored = [layer for step in steps if isinstance(step, ExtractStep) for layer in step.layers]
    for index, step in enumerate(steps):
        if isinstance(step, SourceStep) and step.source is not None and stored and step.source not in stored:
            yield Problem(f"the extract step does not store layer {step.source!r}", suggest(step.source, stored),
                          _at(steps, index, "source"))  # fmt: skip
        if isinstance(step, ConnectionsStep) and step.of != "channel":
            earlier = [s.id for s in steps[:index] if isinstance(s, SvdStep)]
            if step.of not in earlier:
                yield Problem(f"no svd step named {step.of!r} comes before this one",
                              suggest(step.of, ["channel", *earlier]), _at(steps, index, "of"))  # fmt: skip


def _across(steps: Sequence[Step]) -> Iterator[Problem]:
    for index, step in enumerate(steps):
        if not isinstance(step, AcrossStep):
            continue
        earlier = {s.id: s for s in steps[:index] if isinstance(s, step.source_step)}
        source = earlier.get(step.of)
        if source is None:
            yield Problem(f"no {step.source_step.kind} step named {step.of!r} comes before this one",
                          suggest(step.of, list(earlier)) if earlier else f"add `- {step.source_step.kind}:` before it",
                          _at(steps, index, "of"))  # fmt: skip
            continue
        if step.select is not None:
            yield Problem(f"the results of step {step.of!r} are compared, and they were made of its images",
                          f"give `select:` to step {step.of!r}", _at(steps, index, "select"))  # fmt: skip
        if isinstance(source, SimilarityStep) and (source.neighbours is not None or source.threshold is not None):
            yield Problem(f"step {step.of!r} keeps some pairs only, and the average is of all",
                          "a similarity step without neighbours and threshold", _at(steps, index, "of"))  # fmt: skip
        if isinstance(source, AnalysisStep) and source.layers:
            why = f"step {step.of!r} is not asked of"
            yield from _unknown_layers(step, source.layers, why, _at(steps, index, "layer"))


def _unknown_layers(step: AnalysisStep, known: Sequence[str], why: str, at: KeyPath) -> Iterator[Problem]:
    for index, layer in enumerate(step.layers):
        if layer not in known:
            place = at if isinstance(step.layer, str) else (*at, index)
            yield Problem(f"{why} layer {layer!r}", suggest(layer, known), place)


def _at(steps: Sequence[Step], index: int, *below: str) -> KeyPath:
    return (index, steps[index].kind, *below)
