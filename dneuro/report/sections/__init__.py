"""The sections of a layer's page, one file per analysis.

A new analysis adds a file with ``build(result, layer, studio) -> Block`` and a line in ``SECTIONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dneuro.report.blocks import Block, Studio
from dneuro.report.contents import Layer, Result
from dneuro.report.sections import (
    clusters,
    cooccurrence,
    facets,
    feeding,
    kmeans,
    moments,
    nmf,
    other,
    patch_components,
    random_projections,
    selectivity,
    similar_places,
    similarity,
    single_neurons,
    svd,
    top_images,
)


@dataclass(frozen=True)
class Kind:
    """One analysis: the heading of its section, the variables (any of them) it needs, what builds its blocks."""

    analysis: str
    title: str
    needs: tuple[str, ...]
    build: Callable[[Result, Layer, Studio], Block | Sequence[Block]]
    anchor: str = ""
    """Of the section, where another one is about the same analysis."""

    def fits(self, result: Result) -> bool:
        """Whether the result is of this kind and has something to show."""
        return result.analysis == self.analysis and any(name in result.data for name in self.needs)


SECTIONS = (
    Kind("moments", "Moments", ("variance",), moments.build),
    Kind("top_images", "Top images", ("top_image",), top_images.build),
    Kind("single_neurons", "Single neurons", ("variance",), single_neurons.build),
    Kind("random_projections", "Random projections", ("variance",), random_projections.build),
    Kind("svd", "Singular value decomposition", ("singular_value",), svd.build),
    Kind("nmf", "Non-negative factorisation", ("neuron_weight",), nmf.build),
    Kind("coupled_nmf", "Coupled non-negative factorisation", ("neuron_weight",), nmf.build),
    Kind("cooccurrence", "Co-occurrence with classes", ("count",), cooccurrence.build),
    Kind("patch_components", "Patches and their components", ("count",), patch_components.build),
    Kind("selectivity", "Selectivity", ("mf", "class_selectivity"), selectivity.build),
    Kind("facets", "Facets", ("facet",), facets.build),
    Kind("similarity", "Similarity", similarity.NEEDS, similarity.build),
    Kind("clusters", "Clusters of neurons", ("leaf_neuron",), clusters.build),
    Kind("clusters", "Clusters of images: trees", ("leaf_image",), clusters.build, "clusters-of-images"),
    Kind("similar_places", "Where similar neurons lie", ("own",), similar_places.build),
    Kind("regression", "Fed by: regression", ("coefficient",), feeding.build_regression),
    Kind("connections", "Fed by: weights", ("strength",), feeding.build_connections),
    Kind("kmeans", "Clusters of images", ("cluster",), kmeans.build),
)
"""In the order of the page."""


@dataclass(frozen=True)
class Section:
    """A heading of a layer's page with its blocks."""

    anchor: str
    title: str
    blocks: list[Block]


def build(layer: Layer, studio: Studio) -> Iterable[Section]:
    """Yield the sections that the layer has results for."""
    left = list(_without_repeats(layer, studio.shown))
    for kind in SECTIONS:
        fitting = [result for result in left if kind.fits(result)]
        if fitting:
            left = [result for result in left if result not in fitting]
            built = [kind.build(result, layer, studio) for result in fitting]
            blocks = [block for one in built for block in ([one] if isinstance(one, Block) else one)]
            yield Section(kind.anchor or kind.analysis, kind.title, blocks)
    if left:
        yield Section("other", "Other results", [other.build(result) for result in left])


def _without_repeats(layer: Layer, shown: int) -> Iterable[Result]:
    """Yield the results; what extraction recorded is left out where a step shows the same."""
    for result in layer.results:
        later = (r for r in layer.results if not r.recorded and r.analysis == result.analysis)
        if not (result.recorded and any(_shows(r, result, shown) for r in later)):
            yield result


def _shows(step: Result, recorded: Result, shown: int) -> bool:
    ranks = {"rank": slice(shown)}
    return all(
        name in step.data
        and step.data[name].isel(ranks, missing_dims="ignore").equals(array.isel(ranks, missing_dims="ignore"))
        for name, array in recorded.data.items()
    )
