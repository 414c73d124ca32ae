"""What a user may write in YAML: jobs (what to compute) and profiles (where to compute it).

``read_job`` and ``read_profile`` turn a file into a checked model, or raise one SpecError that names the
file, line, column and key of everything that is wrong with it. The models are immutable, can be built from
Python as well, and ``model_dump_json()`` gives a text that ``parse_job`` reads back.
"""

from __future__ import annotations

from dneuro.spec.files import find_profile
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
from dneuro.spec.job import JobSpec
from dneuro.spec.network import NetworkSpec, Preprocessing
from dneuro.spec.profile import PoolSpec, ProfileSpec
from dneuro.spec.reading import parse_job, parse_profile, parse_study, read_job, read_profile, read_study
from dneuro.spec.series import AnyJob, SeriesSpec, members_of, store_pattern
from dneuro.spec.steps import (
    STEPS,
    AnalysisStep,
    ClustersStep,
    CooccurrenceStep,
    CoupledNmfStep,
    ExtractStep,
    KmeansStep,
    LayerSpec,
    MomentsStep,
    NmfStep,
    RandomProjectionsStep,
    ReportStep,
    RowsStep,
    SelectivityStep,
    SimilarityStep,
    Step,
    SvdStep,
    TopImagesStep,
    TrainStep,
)

__all__ = [
    "STEPS",
    "AnalysisStep",
    "AnyJob",
    "ArrayImages",
    "Cifar10Images",
    "ClustersStep",
    "CooccurrenceStep",
    "CoupledNmfStep",
    "DigitsImages",
    "ExtractStep",
    "FilesImages",
    "FolderImages",
    "ImagenetValImages",
    "ImagesSpec",
    "JobSpec",
    "KmeansStep",
    "LayerSpec",
    "MnistImages",
    "MomentsStep",
    "NetworkSpec",
    "NmfStep",
    "PoolSpec",
    "Preprocessing",
    "ProfileSpec",
    "RandomProjectionsStep",
    "ReportStep",
    "RowsStep",
    "SelectivityStep",
    "SeriesSpec",
    "SimilarityStep",
    "Step",
    "SvdStep",
    "TopImagesStep",
    "TrainStep",
    "find_profile",
    "members_of",
    "parse_job",
    "parse_profile",
    "parse_study",
    "read_job",
    "read_profile",
    "read_study",
    "store_pattern",
]
