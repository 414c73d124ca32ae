"""Array mathematics: reductions as data, for NumPy blocks on the CPU and torch blocks on a GPU.

A kernel is a frozen description with four verbs; see `dneuro.kernels.base`. It knows nothing of files,
networks or clusters, so the same kernel serves the pass that is fused into the extraction and a later
pass over the store.
"""

from dneuro.kernels.base import Kernel, Origin, State
from dneuro.kernels.class_sums import ClassSums
from dneuro.kernels.factorise import Energy, Scores
from dneuro.kernels.krylov import Step
from dneuro.kernels.moments import ImageMoments, Moments
from dneuro.kernels.nmf import Alternate, Totals
from dneuro.kernels.off_diagonal import OffDiagonal
from dneuro.kernels.products import CrossProducts, PairDistances, TileProducts
from dneuro.kernels.standardise import Standardise
from dneuro.kernels.top import TopK
from dneuro.kernels.triangle import Triangle

__all__ = [
    "Alternate",
    "ClassSums",
    "CrossProducts",
    "Energy",
    "ImageMoments",
    "Kernel",
    "Moments",
    "OffDiagonal",
    "Origin",
    "PairDistances",
    "Scores",
    "Standardise",
    "State",
    "Step",
    "TileProducts",
    "TopK",
    "Totals",
    "Triangle",
]
