"""Similarities of two groups of features, from the sums and products of z = x − shift."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dneuro.errors import ArrayError
from dneuro.kernels.base import spans

Group = Mapping[str, Any]
"""What is known of a group of features: shift, sum and sum of squares of z (features,), count; ``multiplied``, squares
of what float32 has multiplied, which is about other shifts too."""

Matrix = NDArray[np.float64]

WORK_ITEMS = 1 << 16
"""Elements of a tile that are worked on at a time (512 KiB)."""

CANCELS = {"float32": 0.15, "float64": 1e-7}
"""Squared distances below this share of the squares that they are the difference of have lost digits: some of seven of
those that float32 multiplied (what is left is right to 2e-6), half of them in float64. They are summed directly."""

EXTREME = 1e15
"""Root mean squares beyond this, or below its inverse, leave the range of float32 when they are multiplied."""


def pearson(a: Group, b: Group, products: Matrix) -> Matrix:
    """Return correlations in −1…1; NaN where a feature does not vary."""
    left, right = _inverse(_variation(a)), _inverse(_variation(b))
    found = _about_mean(a, b, products)
    found *= left[:, None]
    found *= right
    np.clip(found, -1.0, 1.0, out=found)
    return found


def covariance(a: Group, b: Group, products: Matrix) -> Matrix:
    """Return covariances, divided by the count less one as `numpy.cov` does; NaN of one image."""
    found = _about_mean(a, b, products)
    found /= np.nan if a["count"] < 2 else a["count"] - 1
    return found


def cosine(a: Group, b: Group, products: Matrix) -> Matrix:
    """Return cosines in −1…1; NaN where a feature is zero everywhere."""
    found: Matrix = products + a["shift"][:, None] * (b["sum"] + a["count"] * b["shift"])
    found += a["sum"][:, None] * b["shift"]
    found *= _inverse(_norm(a))[:, None]
    found *= _inverse(_norm(b))
    np.clip(found, -1.0, 1.0, out=found)
    return found


def euclidean(a: Group, b: Group, products: Matrix) -> Matrix:
    """Return distances; those that cancel are not exact."""
    found: Matrix = squared_distances(a, b, products)
    np.maximum(found, 0.0, out=found)
    np.sqrt(found, out=found)
    return found


def squared_distances(a: Group, b: Group, products: Matrix) -> Matrix:
    """Return squared distances, negative ones too where they cancel."""
    apart = a["shift"][:, None] - b["shift"]
    found: Matrix = a["sum"][:, None] - b["sum"]
    found *= 2.0
    found += a["count"] * apart
    found *= apart
    found -= 2.0 * products
    found += a["squares"][:, None] + b["squares"]
    return found


METRICS: dict[str, Callable[[Group, Group, Matrix], Matrix]] = {
    "pearson": pearson,
    "euclidean": euclidean,
    "cosine": cosine,
    "covariance": covariance,
}
"""Every metric, by the name it has in ``dn.similarity`` and in a job."""

CLOSE = {"pearson": 1.0, "euclidean": -1.0, "cosine": 1.0, "covariance": 1.0}
"""Which end of a metric is "alike"."""

WIDE = ("covariance",)
"""Metrics that are float64 always: squares of activations that float32 holds leave its range."""

OWN = {"pearson": 1.0, "euclidean": 0.0, "cosine": 1.0}
"""What a feature has with itself, exactly, where it has anything."""


def dtype_of(metric: str, precision: str) -> np.dtype[Any]:
    """Return the dtype of a metric where activations are multiplied in this precision."""
    return np.dtype("float64" if metric in WIDE else precision)


def bytes_per_pair(metrics: Iterable[str], precision: str) -> int:
    """Return the bytes that the metrics of one pair take."""
    return sum(dtype_of(metric, precision).itemsize for metric in metrics)


def cancelling(a: Group, b: Group, products: Matrix, precision: str, *, same: bool) -> NDArray[np.int32]:
    """Return which distances have lost digits, numbered along the flattened tile; of a group with itself for i < j."""
    width = products.shape[1]
    found = []
    for rows in row_spans(products):
        part = part_of(a, rows)
        squared = squared_distances(part, b, products[rows])
        large = part["squares"][:, None] + b["squares"]
        large += part["count"] * (part["shift"][:, None] - b["shift"]) ** 2
        large *= CANCELS["float64"]
        if precision == "float32":
            np.maximum(large, CANCELS[precision] * (part["multiplied"][:, None] + b["multiplied"]), out=large)
        close = squared < large
        if same:
            close &= np.arange(width) > np.arange(rows.start, rows.start + len(close))[:, None]
        found.append((np.flatnonzero(close) + rows.start * width).astype(np.int32))
    return np.concatenate(found)


def beyond_range(group: Group) -> bool:
    """Return whether float32 may overflow, or lose all digits, when z is multiplied."""
    sizes = np.sqrt(np.asarray(group["squares"]) / max(1, group["count"]))
    some = sizes[sizes > 0]
    return bool(len(some) and (not np.isfinite(some).all() or some.max() > EXTREME or some.min() < 1 / EXTREME))


def evaluate(
    metric: str, a: Group, b: Group, products: Matrix, precision: str, *, same: bool,
    exact: Mapping[str, Any] | None = None,
) -> NDArray[Any]:
    """Return one metric of a tile (features of a, features of b).

    Parameters
    ----------
    precision : {"float32", "float64"}
        Its dtype, unless the metric is among `WIDE`.
    same : bool
        `a` and `b` are the same features: symmetric to the last bit, the diagonal exactly 0 or 1.
    exact : mapping, optional
        ``index`` (pairs,) along the flattened tile of those whose squared distances ``squared`` are known better.
    """
    found = np.empty(products.shape, dtype=dtype_of(metric, precision))
    with np.errstate(over="ignore"):  # looked at below
        for rows in row_spans(products):
            found[rows] = METRICS[metric](part_of(a, rows), b, products[rows])
        if metric == "euclidean" and exact is not None:
            found.reshape(-1)[exact["index"]] = np.sqrt(exact["squared"])
    if metric == "euclidean" and np.isinf(found).any():
        raise ArrayError(f"some distance is beyond what {precision} holds", hint="precision='float64'")
    if same:
        for i in range(len(found) - 1):
            found[i + 1 :, i] = found[i, i + 1 :]
        own = found.diagonal()
        np.fill_diagonal(found, np.where(np.isnan(own), np.nan, OWN.get(metric, own)))
    return found


def part_of(group: Group, rows: slice) -> Group:
    """Return some features of a group."""
    return {name: values if name == "count" else values[rows] for name, values in group.items()}


def row_spans(products: Matrix) -> list[slice]:
    """Cut a tile into slices of about `WORK_ITEMS` elements."""
    return list(spans(len(products), WORK_ITEMS // max(1, products.shape[1])))


def _about_mean(a: Group, b: Group, products: Matrix) -> Matrix:
    found = a["sum"][:, None] * (b["sum"] / -a["count"])
    found += products
    return np.asarray(found)


def _variation(group: Group) -> Matrix:
    """Return Σ (x − mean)²; exactly 0 for what does not vary, as its z are all exactly the same."""
    return np.asarray(group["squares"] - group["sum"] ** 2 / group["count"])


def _norm(group: Group) -> Matrix:
    shift = group["shift"]
    return np.asarray(group["squares"] + shift * (2 * group["sum"] + group["count"] * shift))


def _inverse(squares: Matrix) -> Matrix:
    """Return 1/√, NaN of what is not positive."""
    found = np.full(squares.shape, np.nan)
    alive = squares > 0
    found[alive] = 1.0 / np.sqrt(squares[alive])
    return found
