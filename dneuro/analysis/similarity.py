"""Which neurons say the same?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import Pool, View
from dneuro.analysis.keeping import Collect, Keep
from dneuro.analysis.metrics import cancelling, evaluate
from dneuro.analysis.pairing import Of, Pairing, Precision, pairing
from dneuro.analysis.selection import says_selection
from dneuro.analysis.tiles import TileWork, stripped
from dneuro.engine.executors import Executor, get_executor
from dneuro.engine.plan import Plan
from dneuro.engine.residence import Persist, resident, residents
from dneuro.engine.visits import visit
from dneuro.kernels import CrossProducts, PairDistances
from dneuro.store.files import Location
from dneuro.store.groups import Making, making

DEFAULT = ("pearson", "euclidean")


@says_selection
def similarity(
    x: xr.DataArray,
    *,
    metric: str | Sequence[str] = DEFAULT,
    per: Of = "channel",
    pool: Pool = "max",
    neighbours: int | None = None,
    threshold: float | None = None,
    out: str | Location | None = None,
    precision: Precision = "auto",
    persist: Persist = "auto",
    client: Any = None,
) -> xr.Dataset:
    """Correlation, covariance, cosine or Euclidean distance of every two channels or neurons, or of every two images.

    Parameters
    ----------
    x : DataArray, dims (image N, channel P[, y, x]) or (channel P, class N)
        Activations, or the counts of `cooccurrence`, whose rows are then compared over the classes.
    metric : {"pearson", "euclidean", "cosine", "covariance"} or sequence of them
        What to compute.
    per : {"channel", "neuron", "image"}
        Compare channels (all positions made one number by `pool`) or neurons over the images, or the images over all
        neurons; scores of `svd`, selected channels or pooled ones are arrays of images too.
    pool : {"max", "mean"}
        As in `top_images`.
    neighbours : int, optional
        Keep only the M others that are most alike each neuron (largest value, smallest distance), for layers whose
        P × P matrix would not fit on a disk: the matrix never exists.
    threshold : float, optional
        Keep only pairs whose value is at least this in size (or whose distance is at most this); of one metric.
    out : path or URL, optional
        A new Zarr group that the matrices are written to, tile by tile, where P × P does not fit into memory; needs
        1 to 2 GiB per 16,000 neurons and metric. In an object store: ``s3://bucket/matrix.zarr``.
    precision : {"auto", "float32", "float64"}
        In which activations are multiplied, and dtype of the result; sums are float64 always, and so are covariances,
        which have the range of squares. ``"auto"`` is float64 up to 2,048 neurons or 4,096 images and for float64
        activations, else float32, twice as fast.
    persist : {"auto", True, False}
        Whether an array that has to be read several times is read once and kept in memory; ``"auto"`` if it fits, and
        more than 2,048 neurons are compared: of fewer it is read again only where distances cancel.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        One matrix per metric (channel, other_channel), or (neuron, other_neuron) for ``per="neuron"`` (channel, y and
        x stacked), or (image, other_image), symmetric to
        the last bit; backed by the file with `out`. The diagonal is exactly 1, or 0. Pearson
        is NaN where a neuron does not vary, as in `numpy.corrcoef`, cosine where it is zero throughout; covariance is
        divided by N − 1, as in `numpy.cov`.

        With `neighbours` instead, per metric: ``<metric>_neighbour`` (features…, neighbour min(M, P − 1)) int64, the
        position of the other neuron along the stacked features, −1 where there are fewer that have a value, and
        ``<metric>_value``; images go by their numbers; the most alike first, of
        equal ones the lower number first. With `threshold`: ``first``,
        ``second`` (pair) int64, first < second, and ``<metric>_value`` (pair).

    Raises
    ------
    ArrayError
        If `x` is not such an array, the metric unknown, or what to keep is said twice.
    NonFiniteError
        If it holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If a task does not fit into a worker, or the result into the driver; before anything is read. If more pairs
        pass `threshold` than there is room for.
    UsageError
        If `out` exists.
    StoreError, BusyError
        If it cannot be written, or another call is at it.

    Notes
    -----
    **Cost**: up to 2,048 neurons one pass, state 8·P² bytes. Beyond, half of the tiles (i ≤ j), each summed over all
    images by one task: whichever is read less, all tiles of a task stay in memory while the images stream by (about
    P / √(M/8) reads of the array with M bytes per task), or some columns stay while the others stream by (about
    2·N·P / M reads); `plan` says which, how often and how much. Distances that cancel are summed directly, which reads
    their columns once more. The workers' memory is bounded by plan; the driver holds the result, or nothing with
    `out`, or 32·P·M bytes with `neighbours`. How many pairs pass a `threshold` nobody knows before: of the driver the
    plan counts a million, 80 bytes each, and more are kept where it has room for them; of the workers it counts the
    most that a task may find, in a quarter of its memory. Of images, N and P change places.

    **Accuracy**: float64: rounding. float32: activations are multiplied about the mean of the images that are read
    together, at most 1,024 at a time, and their products added in float64, whatever the order of the images: the error
    is below 1e-5, as a rule 1e-7, of a correlation, and twice that of a distance relative to it.

    Source: Sadeghi, "Conceptual Content in Deep Convolutional Neural Networks": similarity (Pearson correlation) and
    dissimilarity (Euclidean distance) of two neurons of a layer, by their rows of co-occurrence frequencies: give the
    ``count`` of `cooccurrence`. The same of activations, and the other metrics, are dneuro's.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> x = xr.DataArray(np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]], "f4"), dims=("image", "channel"))
    >>> dn.similarity(x, metric="pearson")["pearson"].values.round(6).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    executor = get_executor(client)
    asked = pairing(x, metric, per, pool, neighbours, threshold, out, precision, persist, executor)
    asked.check(executor)
    events.emit("note", "similarity", f"{asked.seen.layer or 'array'}: {asked.plan}")
    kept = {name: value for name, value in (("neighbours", neighbours), ("threshold", threshold)) if value is not None}
    what = "classes" if "class" in x.dims and "image" not in x.dims else "images"
    attrs = {
        "analysis": "similarity",
        "layer": asked.seen.layer,
        what: len(asked.seen.taking_part),
        "precision": asked.precision,
        "method": asked.plan.method,
        "parameters": {"metric": list(asked.metrics), "per": per, "pool": pool, **kept},
    }
    with _file(asked) as made:
        keep, collect = asked.keep(None if made is None else made.place), asked.collect()
        if asked.tiling is None:
            _by_rows(asked, keep, collect, executor)
        else:
            _by_tiles(asked, keep, collect, executor)
        if made is not None:
            from dneuro.store import matrices  # not at the top: Zarr is large, and few results go to a file

            matrices.finish(made.group, attrs)
    return asked.result(collect).assign_attrs(attrs)


def plan_similarity(
    x: xr.DataArray,
    *,
    metric: str | Sequence[str] = DEFAULT,
    per: Of = "channel",
    pool: Pool = "max",
    neighbours: int | None = None,
    threshold: float | None = None,
    out: str | Location | None = None,
    precision: Precision = "auto",
    persist: Persist = "auto",
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `similarity`; reads no data."""
    executor = get_executor(client)
    return pairing(x, metric, per, pool, neighbours, threshold, out, precision, persist, executor).plan


@contextlib.contextmanager
def _file(asked: Pairing) -> Iterator[Making | None]:
    """Yield a new group with empty matrices, if one is asked for; it gets its name when all of it is there."""
    if asked.out is None:
        yield None
        return
    with making(asked.out) as made:
        asked.create(made.group)
        made.ready()
        yield made


def _by_tiles(asked: Pairing, keep: Keep, collect: Collect, executor: Executor) -> None:
    """Let each task compute its tiles from the first image to the last."""
    seen, tiling = asked.seen, asked.tiling
    assert tiling is not None
    work = TileWork(stripped(tiling), asked.precision, keep, asked.compared_over)
    with resident(
        seen.xs[0], executor, passes=asked.reads, worker_bytes=asked.plan.worker_bytes - asked.held_bytes,
        persist=asked.persist, step="similarity",
    ) as x:  # fmt: skip
        found = visit(
            [x], work, tiling.visits(), executor, bands=tiling.bands, prepare=seen.prepare, rows=seen.rows,
            step="similarity",
        )  # fmt: skip
        with contextlib.closing(found):  # tasks write into the file: it is removed when none is at work any more
            for kept in found:
                collect.gather(kept)
                del kept


def _by_rows(asked: Pairing, keep: Keep, collect: Collect, executor: Executor) -> None:
    """Add up all products in one pass, then go through them tile by tile here."""
    with residents(
        asked.seen.xs, executor, passes=asked.reads, persist=asked.persist, step="similarity",
        worker_bytes=asked.plan.process_bytes(executor) - asked.held_bytes,
    ) as xs:  # fmt: skip
        products, group, exact = _products(replace(asked.seen, xs=tuple(xs)), asked.metrics, executor)
        del xs
    kept = keep.start()
    everything = slice(0, len(products))
    kept = keep.tile(
        kept, everything, everything,
        lambda metric: evaluate(metric, group, group, products, asked.precision, same=True, exact=exact),
    )  # fmt: skip
    collect.gather(kept)


def _products(
    seen: View, metrics: Sequence[str], executor: Executor
) -> tuple[NDArray[np.float64], dict[str, Any], dict[str, Any]]:
    """Return the products of all pairs, what is known of each feature, and distances that were summed directly."""
    found = seen.reduce({"products": CrossProducts()}, executor, "similarity")["products"]
    products = found.pop("products")
    group = {**found, "squares": products.diagonal().copy(), "count": int(found["count"])}
    close, squared = np.empty(0, dtype=np.int32), np.empty(0)
    if "euclidean" in metrics:
        close = cancelling(group, group, products, "float64", same=True)
    if len(close) and not seen.readable:
        events.emit("note", "similarity", f"{len(close)} pairs of {seen.layer} are almost alike: half of the "
                    "digits of their distance are lost, for the activations were not kept")  # fmt: skip
        close = close[:0]
    elif len(close):
        pairs = np.stack(np.divmod(close, len(products)), axis=1)
        squared = seen.reduce({"pairs": PairDistances(pairs)}, executor, "similarity")["pairs"]["squared"]
    return products, group, {"index": close, "squared": squared}
