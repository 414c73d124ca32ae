"""The steps of a job: one model per step, keys as the keyword arguments of the ``dn.`` function."""

from __future__ import annotations

from dneuro.spec.steps.across import AcrossStep, FacetsStep, MeanSimilarityStep
from dneuro.spec.steps.base import (
    DEFAULT_CODEC,
    PLACED,
    PLACING,
    AnalysisStep,
    Codec,
    RowsStep,
    SelectSpec,
    Step,
    WorkersStep,
)
from dneuro.spec.steps.components import (
    CoupledNmfStep,
    NmfStep,
    PatchComponentsStep,
    RandomProjectionsStep,
    SvdStep,
)
from dneuro.spec.steps.extraction import ExtractStep, Layers, LayerSpec, TrainStep
from dneuro.spec.steps.layers import ConnectionsStep, RegressionStep, SourceStep
from dneuro.spec.steps.neurons import CooccurrenceStep, MomentsStep, SelectivityStep, SingleNeuronsStep, TopImagesStep
from dneuro.spec.steps.pairs import ClustersStep, KmeansStep, SimilarityStep, SimilarPlacesStep
from dneuro.spec.steps.report import ReportStep

__all__ = [
    "DEFAULT_CODEC",
    "PLACED",
    "PLACING",
    "STEPS",
    "AcrossStep",
    "AnalysisStep",
    "ClustersStep",
    "Codec",
    "ConnectionsStep",
    "CooccurrenceStep",
    "CoupledNmfStep",
    "ExtractStep",
    "FacetsStep",
    "KmeansStep",
    "LayerSpec",
    "Layers",
    "MeanSimilarityStep",
    "MomentsStep",
    "NmfStep",
    "PatchComponentsStep",
    "RandomProjectionsStep",
    "RegressionStep",
    "ReportStep",
    "RowsStep",
    "SelectSpec",
    "SelectivityStep",
    "SimilarPlacesStep",
    "SimilarityStep",
    "SingleNeuronsStep",
    "SourceStep",
    "Step",
    "SvdStep",
    "TopImagesStep",
    "TrainStep",
    "WorkersStep",
]

STEPS: dict[str, type[Step]] = {
    step.kind: step
    for step in (
        TrainStep,
        ExtractStep,
        MomentsStep,
        TopImagesStep,
        CooccurrenceStep,
        SelectivityStep,
        FacetsStep,
        SvdStep,
        NmfStep,
        CoupledNmfStep,
        RandomProjectionsStep,
        SingleNeuronsStep,
        SimilarityStep,
        MeanSimilarityStep,
        SimilarPlacesStep,
        ClustersStep,
        KmeansStep,
        RegressionStep,
        ConnectionsStep,
        PatchComponentsStep,
        ReportStep,
    )
}
"""Every kind of step, by the name it has in a job file."""
