"""Independent components of many small problems at once: whitening by SVD, symmetric FastICA, in float64.

A problem is samples × features, of a hundred patches of some thousand pixels, say. After whitening it is samples ×
components, so small that a loop over problems would spend its time between them: all of them iterate together, and
those that have converged drop out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ArrayError, NonFiniteError
from dneuro.kernels.base import Array, Origin, State, placed, spans, to_numpy
from dneuro.kernels.triangle import triangle_of

Fun = Literal["logcosh", "exp", "cube"]

DEGENERATE = 1e-9
"""Singular values below this share of the largest one are rounding (of float32 samples, too, they are noise)."""

CALM = 50
"""Iterations after which steps are halved: with few samples whole ones may go round in circles for ever."""

ORDINARY = 100
"""Problems whose largest number lies within 2^±100 are taken as they are, others at unit scale: they are squared."""

SQUARED = 1e-3
"""Where the last singular value wanted is above this share of the largest, squaring costs 6 of 16 digits at most."""

BATCH_ITEMS = 1 << 20
"""Elements of the problems that are worked on together, unless a single one has more (8 MiB in float64)."""

Matrix = Array
"""Of float64, in the namespace of the samples; what is decided about each problem is NumPy's."""


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
    x: Array, components: int, *, fun: Fun = "logcosh", max_iter: int = 200, tol: float = 1e-4,
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
    xp, where = array_api_compat.array_namespace(x), array_api_compat.device(x)
    values, batch = xp.astype(x, xp.float64), len(x)
    largest = xp.max(xp.abs(values), axis=(1, 2))
    unit = _units(to_numpy(largest))
    far = (unit != 1).any()
    by = placed(unit, xp, where)
    if far:
        values, largest = values * by[:, None, None], largest * by
    mean = xp.mean(values, axis=1)
    white, turn, rank = _whiten(values - mean[:, None, :], components, largest)
    rotation = xp.zeros((batch, components, components), dtype=xp.float64, device=where)
    converged, iterations = np.zeros(batch, bool), np.zeros(batch, np.int64)
    for r in np.unique(rank[rank > 0]):
        those = np.flatnonzero(rank == r)
        start = np.stack([np.random.default_rng(seeds[b]).standard_normal((r, r)) for b in those.tolist()])
        own = placed(those, xp, where)
        first = _decorrelate(placed(start, xp, where))
        found = _rotate(xp.take(white, own, axis=0)[:, :, : int(r)], first, fun, max_iter, tol)
        rotation[own, : int(r), : int(r)], converged[those], iterations[those] = found
    component = xp.matmul(rotation, turn)
    inverse = _inverse(xp.einsum("bkp,bkp->bk", turn, turn))
    mixing = xp.matmul(_turned(turn) * inverse[:, None, :], _turned(rotation))
    source = xp.matmul(white, _turned(rotation))
    component, mixing, source = _ordered(component, mixing, source, rank)
    if far:
        with np.errstate(over="ignore"):  # whoever keeps them looks
            component, mixing = component * by[:, None, None], mixing / by[:, None, None]
            mean = mean / by[:, None]
    return Unmixed(component, mixing, mean, source, rank, converged, iterations)


def _units(largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what problems with these largest numbers are multiplied by: powers of two, so that nothing is rounded."""
    powers = np.frexp(largest)[1]
    far = (np.abs(powers) > ORDINARY) & (largest > 0)
    return np.ldexp(1.0, np.where(far, np.clip(-powers, -1000, 1000), 0))


def _turned(matrices: Matrix) -> Matrix:
    """Return each of many matrices transposed."""
    return array_api_compat.array_namespace(matrices).matrix_transpose(matrices)


def _inverse(numbers: Matrix, over: float = 1.0) -> Matrix:
    """Return `over` divided by numbers that are not negative; 0 where they are 0."""
    xp = array_api_compat.array_namespace(numbers)
    some = numbers > 0
    return xp.where(some, over / xp.where(some, numbers, xp.ones_like(numbers)), xp.zeros_like(numbers))


def unmix(
    x: Array, counts: NDArray[np.int64] | None, components: int, *, fun: Fun = "logcosh", max_iter: int = 200,
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
    xp, where = array_api_compat.array_namespace(x), array_api_compat.device(x)
    whole = _nothing(x, components)
    for count in np.unique(counts[counts > 0]).tolist():
        those = np.flatnonzero(counts == count)
        most = min(components, count, features)
        own, place = [seeds[b] for b in those.tolist()], placed(those, xp, where)
        found = fast_ica(xp.take(x, place, axis=0)[:, :count], most, fun=fun, max_iter=max_iter, tol=tol, seeds=own)
        whole.component[place, :most], whole.mixing[place, :, :most] = found.component, found.mixing
        whole.source[place, :count, :most], whole.mean[place] = found.source, found.mean
        whole.rank[those], whole.converged[those] = found.rank, found.converged
        whole.iterations[those] = found.iterations
    return whole


def _nothing(x: Array, components: int) -> Unmixed:
    """Return what comes of problems without samples."""
    batch, samples, features = x.shape
    xp, where = array_api_compat.array_namespace(x), array_api_compat.device(x)

    def unknown(*shape: int) -> Matrix:
        return xp.full(shape, float("nan"), dtype=xp.float64, device=where)

    return Unmixed(
        component=unknown(batch, components, features),
        mixing=unknown(batch, features, components),
        mean=unknown(batch, features),
        source=unknown(batch, samples, components),
        rank=np.zeros(batch, np.int64),
        converged=np.zeros(batch, bool),
        iterations=np.zeros(batch, np.int64),
    )


def _whiten(centred: Matrix, components: int, scale: Matrix) -> tuple[Matrix, Matrix, NDArray[np.int64]]:
    """Return the whitened samples (B, S, K), what whitens (B, K, P), and the rank of each problem, at most K."""
    xp = array_api_compat.array_namespace(centred)
    _, samples, features = centred.shape
    if samples <= features:
        # Patches are far fewer than their pixels: through the smaller side, and of the larger one only what is kept. A
        # third of the multiplications of a whole decomposition.
        u, sizes = _smaller_side(centred, components)
        v = xp.matmul(_turned(u[:, :, :components]), centred)
        some = sizes[:, :components, None]
        v = xp.where(some > 0, v / xp.where(some > 0, some, xp.ones_like(some)), xp.zeros_like(v))
    else:
        turned = xp.linalg.qr(centred)
        left, sizes, v = xp.linalg.svd(turned[1], full_matrices=False)
        u = xp.matmul(turned[0], left)
    # The mean of equal samples is off by rounding, at every entry.
    dust = samples * float(np.finfo(float).eps) * math.sqrt(samples * features) * scale
    least = xp.maximum(DEGENERATE * sizes[:, 0], dust)
    live = sizes[:, :components] > least[:, None]
    rank = to_numpy(xp.sum(live, axis=1, dtype=xp.int64))
    # sign as in scikit-learn: the start of the iteration does not depend on LAPACK's
    ones = xp.ones_like(u[:, 0, :components])
    signs = xp.where(u[:, 0, :components] < 0, -ones, ones)
    white = u[:, :, :components] * (signs * live)[:, None, :] * math.sqrt(samples)
    inverse = _inverse(xp.where(live, sizes[:, :components], xp.zeros_like(signs)), math.sqrt(samples))
    return white, v[:, :components] * (signs * inverse)[:, :, None], rank


def _smaller_side(centred: Matrix, components: int) -> tuple[Matrix, Matrix]:
    """Return left singular vectors (B, S, S) and singular values (B, S) of problems with fewer samples than features.

    They are those of the samples' products, which are made several times as fast as a triangle; where the components
    wanted are too different in size for that, those of the triangle. Each problem is looked at by itself.
    """
    xp, where = array_api_compat.array_namespace(centred), array_api_compat.device(centred)
    squares, u = xp.linalg.eigh(xp.matmul(centred, _turned(centred)))
    u, sizes = xp.flip(u, axis=2), xp.sqrt(xp.clip(xp.flip(squares, axis=1), 0.0, None))
    steep = np.flatnonzero(~to_numpy(sizes[:, components - 1] > SQUARED * sizes[:, 0]))
    if steep.size:
        own = placed(steep, xp, where)
        triangles = triangle_of(_turned(xp.take(centred, own, axis=0)))
        u[own], sizes[own], _ = xp.linalg.svd(_turned(triangles))
    return u, sizes


def _rotate(
    white: Matrix, w: Matrix, fun: Fun, max_iter: int, tol: float
) -> tuple[Matrix, NDArray[np.bool_], NDArray[np.int64]]:
    """Return the rotation (B, r, r) of each problem, whether it converged, and after how many iterations."""
    xp, where = array_api_compat.array_namespace(white), array_api_compat.device(white)
    batch, samples, _ = white.shape
    converged, iterations = np.zeros(batch, bool), np.zeros(batch, np.int64)
    at_work = np.arange(batch)
    own, z, turned = placed(at_work, xp, where), white, _turned(white)
    w = xp.asarray(w, copy=True)
    for number in range(max_iter):
        old = xp.take(w, own, axis=0)
        projected = xp.matmul(old, turned)
        g, slope = _contrast(projected, fun)
        new = _decorrelate(xp.matmul(g, z) / samples - slope[:, :, None] * old)
        along = xp.einsum("bij,bij->bi", new, old)
        calm = xp.max(xp.abs(xp.abs(along) - 1), axis=1) < tol
        if number >= CALM:
            signs = xp.where(along < 0, -xp.ones_like(along), xp.ones_like(along))
            half = _decorrelate(new + signs[:, :, None] * old)
            new = xp.where(calm[:, None, None], new, half)
        w[own] = new
        iterations[at_work] += 1
        ended = to_numpy(calm)
        converged[at_work[ended]] = True
        if ended.any():
            left = np.flatnonzero(~ended)
            at_work, z = at_work[left], xp.take(z, placed(left, xp, where), axis=0)
            own, turned = placed(at_work, xp, where), _turned(z)
        if not at_work.size:
            break
    return w, converged, iterations


def _contrast(projected: Matrix, fun: Fun) -> tuple[Matrix, Matrix]:
    """Return g of every entry (B, r, S), and the mean over the samples of g′ (B, r)."""
    xp = array_api_compat.array_namespace(projected)
    if fun == "logcosh":
        g = xp.tanh(projected)
        return g, 1 - xp.mean(g * g, axis=2)
    square = projected * projected
    if fun == "cube":
        return square * projected, 3 * xp.mean(square, axis=2)
    decay = xp.exp(-square / 2)
    return projected * decay, xp.mean((1 - square) * decay, axis=2)


def _decorrelate(w: Matrix) -> Matrix:
    """Return (W Wᵀ)^(−1/2) W of each: the nearest rotation."""
    xp = array_api_compat.array_namespace(w)
    u, _, v = xp.linalg.svd(w)
    return xp.matmul(u, v)


def _ordered(
    component: Matrix, mixing: Matrix, source: Matrix, rank: NDArray[np.int64]
) -> tuple[Matrix, Matrix, Matrix]:
    """Return all with the largest column of `mixing` first and its largest entry positive; NaN beyond the rank."""
    xp, where = array_api_compat.array_namespace(mixing), array_api_compat.device(mixing)
    beyond = placed(np.arange(component.shape[1])[None, :] >= rank[:, None], xp, where)
    sizes = xp.sqrt(xp.sum(mixing * mixing, axis=1))
    sizes = xp.where(beyond, -xp.ones_like(sizes), sizes)
    order = xp.argsort(-sizes, axis=1, stable=True)
    component = xp.take_along_axis(component, order[:, :, None], axis=1)
    mixing = xp.take_along_axis(mixing, order[:, None, :], axis=2)
    source = xp.take_along_axis(source, order[:, None, :], axis=2)
    largest = xp.argmax(xp.abs(mixing), axis=1)
    signs = xp.sign(xp.take_along_axis(mixing, largest[:, None, :], axis=1))[:, 0]
    signs = xp.where(beyond, xp.full_like(signs, float("nan")), signs)
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
        x = blocks[0].reshape(*blocks[0].shape[:2], -1)
        counts = to_numpy(blocks[1]) if len(blocks) > 1 else np.full(len(x), x.shape[1])
        for some in spans(len(x), BATCH_ITEMS // (x.shape[1] * x.shape[2])):
            numbers = [int(number) for number in origin["image"][some]]
            check_samples(x[some], counts[some], numbers)
            seeds = [(self.seed, number) for number in numbers]
            found = unmix(
                x[some], counts[some], self.rank, fun=self.fun, max_iter=self.max_iter, tol=self.tol, seeds=seeds
            )
            # Off a device at once: of a problem much is kept, and nothing of it is needed again.
            kept = {name: self._kept(to_numpy(value)) for name, value in vars(found).items()}
            self._check(kept, x[some], numbers)
            state = self.merge(state, kept)
        return state

    @np.errstate(over="ignore")
    def _kept(self, value: NDArray[Any]) -> NDArray[Any]:
        return value.astype(self.dtype) if value.dtype.kind == "f" else value

    def _check(self, kept: State, x: Array, numbers: Sequence[int]) -> None:
        """Refuse to give what is beyond the range of the dtype."""
        for name in ("component", "mixing", "mean"):
            beyond = np.isinf(kept[name]).reshape(len(x), -1).any(axis=1)
            if beyond.any():
                problem = int(beyond.argmax())
                size = float(np.nanmax(np.abs(to_numpy(x[problem]))))
                raise ArrayError(
                    f"problem {numbers[problem]}: its {name} is beyond what {np.dtype(self.dtype)} holds, of numbers "
                    f"up to {size:.3g}",
                    hint=f"x / {size:.0e}" if np.dtype(self.dtype).itemsize > 4 else "x.astype('float64')",
                )

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


def check_samples(x: Array, counts: NDArray[np.int64], numbers: Sequence[int]) -> None:
    """Refuse NaN and infinity among the samples (B, S, P) that count.

    Raises
    ------
    NonFiniteError
        Names problem and sample.
    """
    xp, where = array_api_compat.array_namespace(x), array_api_compat.device(x)
    if not xp.isdtype(x.dtype, "real floating"):
        return
    found = ~xp.isfinite(x)
    found &= placed(np.arange(x.shape[1])[:, None] < counts[:, None, None], xp, where)
    if bool(xp.any(found)):
        bad = to_numpy(found)
        problem, sample, _ = (int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise NonFiniteError(
            f"problem {numbers[problem]}, sample {sample} holds NaN or infinity ({int(bad.sum())} such values here)",
            hint="leave the sample out, or fill it with the mean of the others",
        )
