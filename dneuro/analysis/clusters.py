"""Which neurons are redundant, which images alike: a tree by their similarity, cut into clusters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro import events
from dneuro.analysis.arrays import Pool, choose, is_count, told_apart
from dneuro.analysis.checks import check_count, check_number
from dneuro.analysis.images import class_labels, taking_part
from dneuro.analysis.kmeans import check_classes, class_counts
from dneuro.analysis.pairing import Of, count_features
from dneuro.analysis.selection import says_selection
from dneuro.analysis.similarity import plan_similarity, similarity
from dneuro.engine.executors import get_executor
from dneuro.engine.plan import Plan
from dneuro.errors import ArrayError

Metric = Literal["pearson", "euclidean"]
Linkage = Literal["average", "complete", "single", "ward"]
OWN = ("group", "rank", "merge", "column", "leaf", "cluster", "order", "size", "medoid", "spread", "member",
       "linkage", "leaf_neuron", "leaf_image", "class_count")  # fmt: skip
"""Dims and variables of the result, besides those of the matrix."""
TOO_LARGE = "per='channel', fewer neurons, or more memory"
TOO_MANY_IMAGES = "dn.kmeans, which needs no matrix of images × images; or fewer of them: dn.select(x, sample=2000)"


@says_selection
def clusters(
    x: xr.DataArray,
    *,
    count: int | None = None,
    distance: float | None = None,
    metric: Metric = "pearson",
    linkage: Linkage = "average",
    per: Of = "channel",
    pool: Pool = "max",
    k: int = 10,
    client: Any = None,
) -> xr.Dataset:
    """Agglomerative clusters of channels or neurons, or of images, by their similarity.

    Parameters
    ----------
    x : DataArray, dims (image N, channel P[, y, x]) or (channel P, class N)
        Activations, or the counts of `cooccurrence`, whose rows are then compared over the classes.
    count : int, optional
        Cut the tree into this many clusters.
    distance : float, optional
        Or cut it where clusters would be joined over more than this distance.
    metric : {"pearson", "euclidean"}
        The distance is 1 − r (0 to 2), or the Euclidean one.
    linkage : {"average", "complete", "single", "ward"}
        Distance between clusters, as in `scipy.cluster.hierarchy.linkage`; ``"ward"`` is for Euclidean distances.
    per : {"channel", "neuron", "image"}
        What is clustered: channels (all positions made one number by `pool`) or neurons, by what they do over the
        images; or the images, by what all neurons do for them. Images by their channels, or by their leading
        components, are those of ``x.max(("y", "x"))`` and of ``dn.svd(x, …)["score"]``.
    pool : {"max", "mean"}
        As in `top_images`.
    k : int
        Members listed of each cluster, the most central first.
    client : distributed.Client, optional
        Where the similarity is computed; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        cluster (channel, or neuron for ``per="neuron"``) int64: 0 is the largest; −1 for what has no similarity, for it
        does not vary; order (channel) int64: its place in the tree's order, those without a cluster last; pearson or
        euclidean (channel, other_channel) float64: what the tree is made of. Of each cluster (dim group): size and
        medoid (group) int64, spread (group): mean distance of two members (NaN of one), member (group, rank) int64,
        −1 = none. Neurons are numbered as they lie. linkage (merge, column), leaf_neuron (leaf) int64: SciPy's tree,
        and the neuron that each of its leaves is. With ``per="image"`` over image and other_image, of the images that
        take part; members, medoids and leaf_image are numbers of images; where `x` has a coordinate ``label``, also
        class_count (group, class) int64.

    Raises
    ------
    ArrayError
        If `x` is not such an array, not exactly one of `count` and `distance` is given, or `count` is more than there
        are neurons.
    NonFiniteError
        If it holds NaN or infinity; names layer, image and neuron.
    MemoryLimitError
        If the P × P matrix does not fit into a worker, or with the tree into this process; before anything is read.
        Of N images it is N × N: `kmeans` clusters as many as there are.

    Notes
    -----
    **Cost**: that of `similarity`, then 32·P² bytes and O(P²) steps in this process (of images, 32·N²: 13 GB for
    20,000). Exact. Of clusters of one size the one whose first neuron comes first is first.

    Source: Zhang, "Visualizing neuron role with dimensionality reduction of feature space", future work:
    agglomerative clusters of redundant neurons. The paper names neither distance nor linkage; average linkage by
    1 − correlation, and where the tree is cut, are dneuro's.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> a, b = np.sin(np.arange(20.0)), np.cos(np.arange(20.0))
    >>> x = xr.DataArray(np.stack([a, b, 2 * a, 3 * a + 1], axis=1), dims=("image", "channel"))
    >>> dn.clusters(x, distance=0.1)["cluster"].values.tolist()
    [0, 1, 0, 0]
    """
    executor = get_executor(client)
    parameters: dict[str, Any] = {"count": count, "distance": distance, "metric": metric, "linkage": linkage,
                                  "per": per, "pool": pool, "k": k}  # fmt: skip
    plan = plan_clusters(x, **parameters, client=executor)
    hint = TOO_MANY_IMAGES if per == "image" else TOO_LARGE
    plan.check(executor, hint=hint, driver_hint=hint)
    own = (*OWN, "class") if "image" in x.dims else OWN
    similar = similarity(told_apart(x, own), metric=metric, per=per, pool=pool, client=executor)
    array = similar[metric]
    matrix = np.asarray(array.values, dtype=np.float64)
    live = np.flatnonzero(np.isfinite(matrix.diagonal()))
    if count is not None and count > len(live):
        events.emit("note", "clusters", f"only {len(live)} of {len(matrix)} vary: as many clusters, not {count}")
    apart = _distances(matrix[np.ix_(live, live)], metric)
    tree = _tree(apart, linkage)
    joined = len(live) - count if count is not None else int(np.count_nonzero(tree[:, 2] <= float(distance or 0)))
    what, numbers = "neuron", np.arange(len(matrix))
    if per == "image":
        what, numbers = "image", similar.coords["image"].values
    found = _describe(_cut(tree, len(live), max(0, joined)), apart, numbers[live], k)
    dim = str(array.dims[0])
    cluster, order = np.full(len(matrix), -1), np.full(len(matrix), -1)
    cluster[live] = found.cluster
    leaves = np.concatenate([live[_leaves(tree, len(live))], np.setdiff1d(np.arange(len(matrix)), live)])
    order[leaves] = np.arange(len(matrix))
    result = similar[[metric]].assign(
        cluster=(dim, cluster),
        order=(dim, order),
        size=("group", found.size),
        medoid=("group", found.member[:, 0]),
        spread=("group", found.spread),
        member=(("group", "rank"), found.member),
        linkage=(("merge", "column"), tree),
    ).assign({f"leaf_{what}": ("leaf", numbers[live])})
    if per == "image":
        result = _with_classes(result, x, found)
    compared = {what: similar.attrs[what] for what in ("images", "classes") if what in similar.attrs}
    result.attrs = {"analysis": "clusters", "layer": similar.attrs["layer"], **compared, "parameters": parameters}
    return result


def plan_clusters(
    x: xr.DataArray,
    *,
    count: int | None = None,
    distance: float | None = None,
    metric: Metric = "pearson",
    linkage: Linkage = "average",
    per: Of = "channel",
    pool: Pool = "max",
    k: int = 10,
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `clusters`; reads no data."""
    choose("metric", metric, ("pearson", "euclidean"))
    choose("linkage", linkage, ("average", "complete", "single", "ward"))
    if linkage == "ward" and metric != "euclidean":
        raise ArrayError(f"linkage='ward' is about Euclidean distances, not {metric}", hint="metric='euclidean'")
    check_count("k", k, hint="k=10")
    plan = plan_similarity(x, metric=metric, per=per, pool=pool, client=client)
    members = count_features(x, per, pool)
    if per == "image":
        check_classes(x)
    _check_cut(count, distance, members, "images" if per == "image" else "neurons")
    return replace(
        plan, operation="clusters", result_bytes=plan.result_bytes + (64 + 8 * k) * members,
        driver_bytes=plan.driver_bytes + 32 * members**2,
    )  # fmt: skip


def _with_classes(result: xr.Dataset, x: xr.DataArray, found: _Groups) -> xr.Dataset:
    """Return the result with the number of images of each class in each cluster, if classes are known."""
    rows = taking_part(x)
    cluster = np.full(x.sizes["image"], -1)
    cluster[slice(None) if rows is None else rows] = result["cluster"].values
    counts = class_counts(x, cluster, len(found.size))
    return result.assign(counts).assign_coords({"class": class_labels(x)[1]}) if counts else result


def _check_cut(count: int | None, distance: float | None, members: int, what: str) -> None:
    if (count is None) == (distance is None):
        raise ArrayError(
            "one of count and distance says where the tree is cut" + ("" if count is None else ", not both"),
            hint="count=8, or distance=0.3",
        )
    if count is not None and (not is_count(count) or count > members):
        raise ArrayError(f"count={count!r} of {members} {what}", hint=f"a whole number from 1 to {members}")
    if distance is not None:
        check_number("distance", distance, least=0, hint="distance=0.3")


def _distances(similar: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """Return the distances, in the memory of `similar`."""
    if metric == "pearson":
        np.subtract(1.0, similar, out=similar)
    np.fill_diagonal(similar, 0.0)
    return similar


def _tree(apart: NDArray[np.float64], linkage: Linkage) -> NDArray[np.float64]:
    """Return SciPy's tree (merge, 4)."""
    from scipy.cluster.hierarchy import linkage as link  # not at the top: workers load this file too; SciPy is large
    from scipy.spatial.distance import squareform

    if len(apart) < 2:
        return np.empty((0, 4))
    return np.asarray(link(squareform(apart, checks=False), method=linkage))


def _leaves(tree: NDArray[np.float64], leaves: int) -> NDArray[np.int64]:
    from scipy.cluster.hierarchy import leaves_list

    return np.asarray(leaves_list(tree), dtype=np.int64) if len(tree) else np.arange(leaves)


def _cut(tree: NDArray[np.float64], leaves: int, joined: int) -> NDArray[np.int64]:
    """Return the cluster of each leaf after the first `joined` mergers: by size, then by first leaf."""
    above = np.arange(leaves + joined)
    for number, merger in enumerate(tree[:joined, :2].astype(np.int64)):
        above[merger] = leaves + number
    for node in range(leaves + joined - 1, -1, -1):  # from the top down: what is above a node is known
        above[node] = above[above[node]]
    _, first, member, size = np.unique(above[:leaves], return_index=True, return_inverse=True, return_counts=True)
    place = np.empty(len(size), dtype=np.int64)
    place[np.lexsort((first, -size))] = np.arange(len(size))
    return place[member]


@dataclass(frozen=True)
class _Groups:
    """Clusters: of each leaf, and what is to be said of each of them."""

    cluster: NDArray[np.int64]
    size: NDArray[np.int64]
    spread: NDArray[np.float64]
    member: NDArray[np.int64]


def _describe(
    cluster: NDArray[np.int64], apart: NDArray[np.float64], numbers: NDArray[np.int64], k: int
) -> _Groups:
    size = np.bincount(cluster)
    spread = np.full(len(size), np.nan)
    member = np.full((len(size), min(k, int(size.max(initial=1)))), -1)
    for group in range(len(size)):
        own = np.flatnonzero(cluster == group)
        reach = apart[np.ix_(own, own)].sum(axis=1)
        if len(own) > 1:
            spread[group] = reach.sum() / (len(own) * (len(own) - 1))
        central = own[np.argsort(reach, kind="stable")][:k]
        member[group, : len(central)] = numbers[central]
    return _Groups(cluster, size, spread, member)
