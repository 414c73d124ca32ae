"""Analyses on a device (``--device cuda``) against the same in NumPy, and torch with the whole array on the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import Clock
from benchmarks.question import Candidate, Question
from benchmarks.setting import Setting

K = 100
ITERATIONS = 10
ROWS = 128
"""Rows of a matrix that are compared."""

Ask = Callable[[Any, Setting], Any]


def moments(x: Any, setting: Setting) -> Any:
    """Ask for the variance of every neuron."""
    import dneuro as dn

    return dn.moments(x)["variance"].values


def top(x: Any, setting: Setting) -> Any:
    """Ask for the largest values of every neuron."""
    import dneuro as dn

    return dn.top_images(x, k=K)["top_value"].values


def svd(x: Any, setting: Setting) -> Any:
    """Ask for the leading singular values."""
    import dneuro as dn

    return dn.svd(x, rank=setting.rank, method="krylov")["singular_value"].values


def pearson(x: Any, setting: Setting) -> Any:
    """Ask for the correlations of all neurons, multiplied in float32."""
    import dneuro as dn

    return dn.similarity(x, metric="pearson", precision="float32")["pearson"].values[:ROWS]


def nmf(x: Any, setting: Setting) -> Any:
    """Ask for the loss of each of some iterations."""
    import dneuro as dn

    return dn.nmf(x, rank=setting.rank, init="random", max_iter=ITERATIONS, tol=0)["loss"].values


def kmeans(x: Any, setting: Setting) -> Any:
    """Ask for the sizes of clusters."""
    import dneuro as dn

    return dn.kmeans(x, count=setting.rank, max_iter=ITERATIONS)["size"].values


ASKS: dict[str, Ask] = {"moments": moments, "top": top, "svd": svd, "pearson": pearson, "nmf": nmf, "kmeans": kmeans}


def there(setting: Setting, clock: Clock, name: str) -> Callable[[], Any]:
    """Ask dneuro, on the device."""
    import dneuro as dn

    x, ask = setting.lazy(), ASKS[name]
    with dn.on_device(setting.device):  # libraries and the device's context are nobody's
        ask(x[: 64 + setting.rank].compute(), setting)

    def call() -> Any:
        with dn.on_device(setting.device):
            return ask(x, setting)

    return call


def here(setting: Setting, clock: Clock, name: str) -> Callable[[], Any]:
    """Ask dneuro, in NumPy."""
    x, ask = setting.lazy(), ASKS[name]
    ask(x[: 64 + setting.rank].compute(), setting)
    return lambda: ask(x, setting)


def torch_alone(setting: Setting, clock: Clock, name: str) -> Callable[[], Any]:
    """Ask torch, with the whole array on the device."""
    import torch

    from dneuro.engine.place import opened

    where = opened(setting.device)
    torch.set_float32_matmul_precision("highest")

    def call() -> Any:
        x = torch.from_numpy(setting.whole(clock)).to(where)
        if name == "moments":
            found = torch.cat([some.double().var(dim=0, correction=0) for some in torch.split(x, 256, dim=1)])
        elif name == "top":
            found = x.topk(K, dim=0).values.T
        elif name == "pearson":
            found = torch.corrcoef(x.T)[:ROWS]
        else:
            z = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0)
            found = torch.svd_lowrank(z, setting.rank + 10, niter=4)[1][: setting.rank]
        return found.cpu().numpy()

    return call


def _question(title: str, name: str, *, alone: bool) -> Question:
    candidates = [
        Candidate("dneuro on {device}", partial(there, name=name), "threads"),
        Candidate("dneuro in NumPy", partial(here, name=name), "threads"),
    ]
    if alone:
        candidates.append(Candidate("torch, all of it on {device}", partial(torch_alone, name=name), "memory"))
    return Question(title, tuple(candidates), error=largest_difference)


def largest_difference(found: Any, true: Any) -> float:
    """Return the largest difference as a share of the largest value."""
    return float(np.nanmax(np.abs(found - true)) / np.nanmax(np.abs(true)))


QUESTIONS = (
    _question("Moments of every neuron", "moments", alone=True),
    _question(f"Top {K} images of every neuron", "top", alone=True),
    _question("SVD, rank {rank}, images standardised", "svd", alone=True),
    _question("Pearson correlation of all neurons", "pearson", alone=True),
    _question(f"NMF, rank {{rank}}, {ITERATIONS} iterations", "nmf", alone=False),
    _question(f"k-means, {{rank}} clusters, {ITERATIONS} iterations at most", "kmeans", alone=False),
)
