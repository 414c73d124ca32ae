"""Independent components of many small problems at once: whitening by SVD, symmetric FastICA, in float64.

A problem is samples × features, of a hundred patches of some thousand pixels, say. After whitening it is samples ×
components, so small that a loop over problems would spend its time between them: all of them iterate together, and
those that have converged drop out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import NonFiniteError
from dneuro.kernels.base import Array, Origin, State, spans, to_numpy

Fun = Literal["logcosh", "exp", "cube"]

DEGENERATE = 1e-9
"""Singular values below this share of the largest one are rounding (of float32 samples, too, they are noise)."""

CALM = 50
"""Iterations after which steps are halved: with few samples whole ones may go round in circles for ever."""

BATCH_ITEMS = 1 << 20
"""Elements of the problems that are worked on together, unless a single one has more (8 MiB in float64)."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Unmixed:
    """What came of a batch of problems (problems B, samples S, features P, components K).

    Parameters
    ----------
    component : array (B, K, P)
        Rows that turn centred samples into sources (the unmixing matrix); NaN beyond `rank`.
    mixing : array (B, P, K)
        What a source adds to a sample: its pictures are the columns.
    mean : array (B, P)
        Of the samples.
    source : array (B, S, K)
        Sources, each of variance 1.
    rank : array (B,) of int64
        Components that there could be: 0 for a constant problem, less than K for a degenerate one.
    converged : array (B,) of bool
        Whether the tolerance was reached; False where there was nothing to find.
    iterations : array (B,) of int64
        Iterations taken.
    """

    component: Matrix
    mixing: Matrix
    mean: Matrix
    source: Matrix
    rank: NDArray[np.int64]
    converged: NDArray[np.bool_]
    iterations: NDArray[np.int64]


def fast_ica(
    x: NDArray[Any], components: int, *, fun: Fun = "logcosh", max_iter: int = 200, tol: float = 1e-4,
    seeds: Sequence[Sequence[int]],
) -> Unmixed:  # fmt: skip
    """Find the independent components of every problem of a batch.

    Parameters
    ----------
    x : array (B, S, P)
        Samples of each problem; any real dtype.
    components : int
        K, at most min(S, P).
    fun : {"logcosh", "exp", "cube"}
        The contrast, as in scikit-learn.
    max_iter, tol : int, float
        An iteration that turns no component by more than `tol` (1 − |cos|) is the last.
    seeds : sequence of sequence of int
        Of each problem's first rotation: a problem gives the same wherever it lies in a batch.

    Notes
    -----
    A problem of rank r < K gets r components, the others NaN. Rows are ordered by what they add to the samples
    (the norm of their column of `mixing`), largest first, and signed so that the largest entry of that is positive.

    With few samples (a hundred patches) the iterations of every third problem go round in circles. After `CALM` of them
    only half of each step is taken: that ends where whole steps would change nothing, too.

    References
    ----------
    Hyvärinen & Oja, "Independent component analysis: algorithms and applications" (2000), symmetric decorrelation.
    """
    values = np.asarray(x, dtype=np.float64)
    batch = len(values)
    mean = values.mean(axis=1)
    white, turn, rank = _whiten(values - mean[:, None, :], components, np.abs(values).max(axis=(1, 2), initial=0.0))
    rotation = np.full((batch, components, components), np.nan)
    converged, iterations = np.zeros(batch, bool), np.zeros(batch, np.int64)
    for r in np.unique(rank[rank > 0]):
        those = np.flatnonzero(rank == r)
        start = np.stack([np.random.default_rng(seeds[b]).standard_normal((r, r)) for b in those.tolist()])
        found = _rotate(white[those, :, :r], _decorrelate(start), fun, max_iter, tol)
        rotation[those, :r, :r], converged[those], iterations[those] = found
    known = np.nan_to_num(rotation)
    component = np.matmul(known, turn)
    length = np.einsum("bkp,bkp->bk", turn, turn)
    inverse = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    mixing = np.matmul(np.swapaxes(turn, 1, 2) * inverse[:, None, :], np.swapaxes(known, 1, 2))
    source = np.matmul(white, np.swapaxes(known, 1, 2))
    component, mixing, source = _ordered(component, mixing, source, rank)
    return Unmixed(component, mixing, mean, source, rank, converged, iterations)


def unmix(
    x: NDArray[Any], counts: NDArray[np.int64] | None, components: int, *, fun: Fun = "logcosh", max_iter: int = 200,
    tol: float = 1e-4, seeds: Sequence[Sequence[int]],
) -> Unmixed:  # fmt: skip
    """Find the independent components of problems of which each may have samples, and components, of its own number.

    Parameters
    ----------
    x : array (B, S, P)
        Samples of each problem.
    counts : array (B,) of int, or None
        How many of them count, the first ones; None for all.
    components : int
        K; where a problem has fewer samples or features, the rest is NaN.
    fun, max_iter, tol, seeds
        As `fast_ica` takes them. A problem gives the same as if the samples that do not count were not there.
    """
    batch, samples, features = x.shape
    counts = np.full(batch, samples) if counts is None else counts
    if (counts == samples).all() and components <= min(samples, features):
        return fast_ica(x, components, fun=fun, max_iter=max_iter, tol=tol, seeds=seeds)
    whole = _nothing(batch, samples, features, components)
    for count in np.unique(counts[counts > 0]).tolist():
        those = np.flatnonzero(counts == count)
        most = min(components, count, features)
        own = [seeds[b] for b in those.tolist()]
        found = fast_ica(x[those, :count], most, fun=fun, max_iter=max_iter, tol=tol, seeds=own)
        whole.component[those, :most], whole.mixing[those, :, :most] = found.component, found.mixing
        whole.source[those, :count, :most], whole.mean[those] = found.source, found.mean
        whole.rank[those], whole.converged[those] = found.rank, found.converged
        whole.iterations[those] = found.iterations
    return whole


def _nothing(batch: int, samples: int, features: int, components: int) -> Unmixed:
    """Return what comes of problems without samples."""
    return Unmixed(
        component=np.full((batch, components, features), np.nan),
        mixing=np.full((batch, features, components), np.nan),
        mean=np.full((batch, features), np.nan),
        source=np.full((batch, samples, components), np.nan),
        rank=np.zeros(batch, np.int64),
        converged=np.zeros(batch, bool),
        iterations=np.zeros(batch, np.int64),
    )


def _whiten(centred: Matrix, components: int, scale: Matrix) -> tuple[Matrix, Matrix, NDArray[np.int64]]:
    """Return the whitened samples (B, S, K), what whitens (B, K, P), and the rank of each problem, at most K."""
    _, samples, features = centred.shape
    if samples <= features:
        # Patches are far fewer than their pixels: through the smaller side, and of the larger one only what is kept. A
        # third of the multiplications of a whole decomposition.
        triangle = np.linalg.qr(np.swapaxes(centred, 1, 2), mode="r")
        u, sizes, _ = np.linalg.svd(np.swapaxes(triangle, 1, 2))
        v = np.matmul(np.swapaxes(u[:, :, :components], 1, 2), centred)
        v = np.divide(v, sizes[:, :components, None], out=np.zeros_like(v), where=sizes[:, :components, None] > 0)
    else:
        turned = np.linalg.qr(centred)
        left, sizes, v = np.linalg.svd(turned[1], full_matrices=False)
        u = np.matmul(turned[0], left)
    # The mean of equal samples is off by rounding, at every entry.
    dust = samples * np.finfo(float).eps * np.sqrt(samples * features) * scale
    least = np.maximum(DEGENERATE * sizes[:, 0], dust)
    live = sizes[:, :components] > least[:, None]
    rank = live.sum(axis=1)
    # sign as in scikit-learn: the start of the iteration does not depend on LAPACK's
    signs = np.sign(u[:, 0, :components])
    signs[signs == 0] = 1
    white = u[:, :, :components] * (signs * live)[:, None, :] * np.sqrt(samples)
    inverse = np.divide(np.sqrt(samples), sizes[:, :components], out=np.zeros(live.shape), where=live)
    return white, v[:, :components] * (signs * inverse)[:, :, None], rank


def _rotate(
    white: Matrix, w: Matrix, fun: Fun, max_iter: int, tol: float
) -> tuple[Matrix, NDArray[np.bool_], NDArray[np.int64]]:
    """Return the rotation (B, r, r) of each problem, whether it converged, and after how many iterations."""
    batch, samples, _ = white.shape
    converged, iterations = np.zeros(batch, bool), np.zeros(batch, np.int64)
    at_work = np.arange(batch)
    z, turned = white, np.swapaxes(white, 1, 2)
    w = w.copy()
    for number in range(max_iter):
        old = w[at_work]
        projected = np.matmul(old, turned)
        g, slope = _contrast(projected, fun)
        new = _decorrelate(np.matmul(g, z) / samples - slope[:, :, None] * old)
        along = np.einsum("bij,bij->bi", new, old)
        moved = np.abs(np.abs(along) - 1).max(axis=1)
        if number >= CALM:
            half = _decorrelate(new + np.where(along < 0, -1.0, 1.0)[:, :, None] * old)
            new = np.where((moved < tol)[:, None, None], new, half)
        w[at_work] = new
        iterations[at_work] += 1
        ended = moved < tol
        converged[at_work[ended]] = True
        if ended.any():
            at_work, z = at_work[~ended], z[~ended]
            turned = np.swapaxes(z, 1, 2)
        if not at_work.size:
            break
    return w, converged, iterations


def _contrast(projected: Matrix, fun: Fun) -> tuple[Matrix, Matrix]:
    """Return g of every entry (B, r, S), and the mean over the samples of g′ (B, r)."""
    if fun == "logcosh":
        g = np.tanh(projected)
        return g, 1 - np.mean(g * g, axis=2)
    if fun == "cube":
        square = projected * projected
        return square * projected, 3 * np.mean(square, axis=2)
    square = projected * projected
    decay = np.exp(-square / 2)
    return projected * decay, np.mean((1 - square) * decay, axis=2)


def _decorrelate(w: Matrix) -> Matrix:
    """Return (W Wᵀ)^(−1/2) W of each: the nearest rotation."""
    u, _, v = np.linalg.svd(w)
    nearest: Matrix = np.matmul(u, v)
    return nearest


def _ordered(
    component: Matrix, mixing: Matrix, source: Matrix, rank: NDArray[np.int64]
) -> tuple[Matrix, Matrix, Matrix]:
    """Return all with the largest column of `mixing` first and its largest entry positive; NaN beyond the rank."""
    beyond = np.arange(component.shape[1])[None, :] >= rank[:, None]
    sizes = np.linalg.norm(mixing, axis=1)
    sizes[beyond] = -1
    order = np.argsort(-sizes, axis=1, kind="stable")
    component = np.take_along_axis(component, order[:, :, None], axis=1)
    mixing = np.take_along_axis(mixing, order[:, None, :], axis=2)
    source = np.take_along_axis(source, order[:, None, :], axis=2)
    largest = np.abs(mixing).argmax(axis=1)
    signs = np.sign(np.take_along_axis(mixing, largest[:, None, :], axis=1))[:, 0]
    signs[beyond] = np.nan
    return component * signs[:, :, None], mixing * signs[:, None, :], source * signs[:, None, :]


@dataclass(frozen=True)
class Unmix:
    """Independent components of blocks of problems (problems, samples, features…); see `unmix`.

    A second block (problems,), if there is one, says how many samples of each count.

    Parameters
    ----------
    rank : int
        Components of each problem.
    fun, max_iter, tol
        As `fast_ica` takes them.
    seed : int
        With the number of a problem, the seed of that problem.
    dtype : str
        Of what is kept; everything is computed in float64.
    samples : int
        Of each problem, for the plan.
    """

    rank: int
    fun: Fun
    max_iter: int
    tol: float
    seed: int
    dtype: str
    samples: int
    whole_rows: ClassVar[bool] = True

    def start(self) -> State:  # noqa: D102
        return {}

    def update(self, state: State, blocks: Sequence[Array], origin: Origin) -> State:  # noqa: D102
        x = to_numpy(blocks[0])
        x = x.reshape(*x.shape[:2], -1)
        counts = to_numpy(blocks[1]) if len(blocks) > 1 else np.full(len(x), x.shape[1])
        for some in spans(len(x), BATCH_ITEMS // (x.shape[1] * x.shape[2])):
            numbers = [int(number) for number in origin["image"][some]]
            check_samples(x[some], counts[some], numbers)
            seeds = [(self.seed, number) for number in numbers]
            found = unmix(
                x[some], counts[some], self.rank, fun=self.fun, max_iter=self.max_iter, tol=self.tol, seeds=seeds
            )
            state = self.merge(state, {name: self._kept(value) for name, value in vars(found).items()})
        return state

    def _kept(self, value: NDArray[Any]) -> NDArray[Any]:
        return value.astype(self.dtype) if value.dtype.kind == "f" else value

    def merge(self, a: State, b: State) -> State:  # noqa: D102
        if not a or not b:
            return a or b
        return {name: np.concatenate([a[name], b[name]]) for name in a}

    def finalise(self, state: State) -> dict[str, NDArray[Any]]:
        """Return the fields of `Unmixed`, problems in their order."""
        return dict(state)

    def memory(self, images: int, rows: int, features: int) -> tuple[int, int]:  # noqa: D102
        width = features // self.samples
        kept = 2 * self.rank * width + width + self.samples * self.rank
        batch = max(BATCH_ITEMS, features)
        # Centred, its singular vectors and LAPACK's copies; and the states that go into a merger.
        return images * (np.dtype(self.dtype).itemsize * kept + 24), 8 * 6 * batch + 16 * rows * kept


def check_samples(x: NDArray[Any], counts: NDArray[np.int64], numbers: Sequence[int]) -> None:
    """Refuse NaN and infinity among the samples (B, S, P) that count.

    Raises
    ------
    NonFiniteError
        Names problem and sample.
    """
    if x.dtype.kind != "f":
        return
    bad = ~np.isfinite(x)
    bad &= np.arange(x.shape[1])[:, None] < counts[:, None, None]
    if bad.any():
        problem, sample, _ = (int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise NonFiniteError(
            f"problem {numbers[problem]}, sample {sample} holds NaN or infinity ({int(bad.sum())} such values here)",
            hint="leave the sample out, or fill it with the mean of the others",
        )
