"""Of which pictures are the top patches of each channel made?"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import xarray as xr

from dneuro import events
from dneuro.analysis.gathering import Blocks
from dneuro.analysis.patching.asked import NAME, RENDERINGS, ask
from dneuro.analysis.patching.rendering import Rendering
from dneuro.analysis.selection import says_selection
from dneuro.engine.executors import get_executor
from dneuro.engine.plan import Plan
from dneuro.engine.visits import Visit, visit
from dneuro.kernels.ica import Fun
from dneuro.store.files import Location


@says_selection
def patch_components(
    x: xr.DataArray,
    *,
    k: int = 100,
    rank: int = 8,
    renderings: Sequence[Rendering] = RENDERINGS,
    match: bool = True,
    keep: int = 9,
    fun: Fun = "logcosh",
    max_iter: int = 200,
    tol: float = 1e-4,
    seed: int = 0,
    dtype: str = "float16",
    out: str | Location | None = None,
    checkpoint: str | Location | None = None,
    client: Any = None,
) -> xr.Dataset:
    """Independent components of the top patches of every channel, as pictures in the renderings of Sadeghi's paper.

    Parameters
    ----------
    x : DataArray, dims (channel C, sample S, row, column, color 3 or 1)
        Patches as `top_patches` gives them, backed by dask or NumPy; its coordinate ``count`` says how many samples of
        a channel there are.
    k : int
        Patches used of each channel, the first ones.
    rank : int
        Components K of each channel, at most min(S, pixels).
    renderings : sequence of {"grey", "rgb", "rgb8"}
        ``"grey"``: components of the patches in grey; ``"rgb"``: of red, green and blue each alone, then combined;
        ``"rgb8"``: that as bytes. Of patches of one colour only grey is made.
    match : bool
        Whether the components of red and blue are brought into order and sign of the green ones, for independent
        components have none of their own: pairs such that the sum of |correlations| is largest. Otherwise the i-th
        largest of each colour are combined as they come.
    keep : int
        Patches kept beside the components, the first ones; 0 for none.
    fun, max_iter, tol, seed
        As `ica` takes them.
    dtype : {"float16", "float32"}
        Of pictures that are no bytes; float16 is exact to 5e-4 of a pixel's value.
    out : path or URL, optional
        A new Zarr group that pictures are written to, channels by channels, by the tasks that make them, where they
        would not fit into memory. In an object store: ``s3://bucket/pictures.zarr``.
    checkpoint : path, optional
        With `out`: a file that says which channels are done, so that a killed call goes on after them when it is
        repeated; their pictures lie beside it until all are there.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.

    Returns
    -------
    Dataset
        Pictures: what a component of variance 1 adds to a patch, in pixel values.

        grey (channel, component, row, column); rgb (channel, component, row, column, color); rgb8 the same as uint8,
        each picture over its own range: 128 is 0, its largest size 1 or 255. By the part of the variance they make up,
        largest first (rgb: of green), and the largest pixel is positive. NaN (rgb8: 128) beyond the rank.
        patch (channel, sample, row, column, color): the first `keep` patches, 0 beyond the count.
        count (channel): patches used; grey_rank, grey_converged, grey_iterations (channel), and rgb_… (channel, color):
        as `ica` has them; grey_share, rgb_share (channel, component): part of the variance of the patches, about their
        mean; rgb_correlation (channel, component, color): how well a colour's component goes with the green one.
        With top_image, top_value, top_y, top_x (channel, sample) of the patches kept, where `x` has them.

    Raises
    ------
    ArrayError
        If `x` has no such dims, or `rank` is not in 1…min(S, pixels).
    NonFiniteError
        If a patch holds NaN or infinity.
    MemoryLimitError
        If a task, or without `out` the result, would not fit; before anything is read.
    UsageError
        If `out` exists.
    StoreError, BusyError
        If it cannot be written, or another call is at it.
    FingerprintError
        If `checkpoint` is the state of something else.

    Notes
    -----
    **Cost**: each chunk of patches is computed once. Per channel and plane (grey, R, G, B) an `ica` of S × pixels:
    2·S²·pixels multiplications, and S·K² per iteration. A task holds its chunk, and one plane in float64 six times;
    what computing the chunk takes besides is not in the plan. Result: 11·K·pixels bytes per channel for all three
    renderings in float16 (VGG16's conv5_3: 1.7 GB), which nobody holds with `out`.

    A channel with no more than `rank` different patches has fewer components, a dead one (never above 0) none.

    References
    ----------
    Sadeghi, "Conceptual Content in Deep Convolutional Neural Networks": 8 independent components of each neuron's top
    patches in grey; of R, G and B, combined; in 8 bits. That patches are the samples and pictures the columns of the
    mixing matrix, that R and B are matched with G, and how bytes are scaled, are dneuro's: the paper does not say.

    Examples
    --------
    >>> import numpy as np, xarray as xr, dneuro as dn
    >>> patches = np.random.default_rng(0).integers(0, 256, (3, 20, 5, 5, 3), np.uint8)
    >>> x = xr.DataArray(patches, dims=("channel", "sample", "row", "column", "color"))
    >>> found = dn.patch_components(x, rank=4)
    >>> dict(found["rgb8"].sizes)
    {'channel': 3, 'component': 4, 'row': 5, 'column': 5, 'color': 3}
    """
    executor = get_executor(client)
    asked = ask(x, k, rank, renderings, match, keep, fun, max_iter, tol, seed, dtype)
    asked.plan(executor, out is not None).check(
        executor, hint="a smaller k, patches in chunks of fewer channels, or workers with more memory",
        driver_hint="out='pictures.zarr' writes them as they are made; or fewer renderings, some channels at a time",
    )  # fmt: skip
    for note in asked.notes:
        events.emit("note", NAME, note)
    blocks = Blocks(asked.layout, out, checkpoint, {**asked.parameters, "edges": asked.edges})
    with blocks.writing() as place:
        work = asked.work(place)
        missing = [span for span in asked.spans if span[0] not in blocks.done]
        visits = [Visit((span,), (span[0], asked.counts[slice(*span)]), span[1] - span[0]) for span in missing]
        found = visit(
            [asked.patches.transpose("sample", asked.dim, ...)], work, visits, executor,
            bands=[(0, asked.patches.sizes["sample"])], step=NAME, what="channels",
        )  # fmt: skip
        with contextlib.closing(found):  # tasks write into the group: it is left when none is at work any more
            for start, small in found:
                blocks.add(start, small)
        result = blocks.finish(asked.rest(x))
    _say(result, rank)
    return result if out is None else blocks.opened()


def plan_patch_components(
    x: xr.DataArray,
    *,
    k: int = 100,
    rank: int = 8,
    renderings: Sequence[Rendering] = RENDERINGS,
    match: bool = True,
    keep: int = 9,
    fun: Fun = "logcosh",
    max_iter: int = 200,
    tol: float = 1e-4,
    seed: int = 0,
    dtype: str = "float16",
    out: str | Location | None = None,
    checkpoint: str | Location | None = None,
    client: Any = None,
) -> Plan:
    """Return the passes and the memory of `patch_components`; computes no patch."""
    asked = ask(x, k, rank, renderings, match, keep, fun, max_iter, tol, seed, dtype)
    return asked.plan(get_executor(client), out is not None)


def _say(result: xr.Dataset, rank: int) -> None:
    """Tell what is not as asked."""
    count = result["count"].values
    if (count == 0).any():
        events.emit("note", NAME, f"{int((count == 0).sum())} of {len(count)} channels have no activation above 0")
    for plane in ("grey", "rgb"):
        if f"{plane}_rank" not in result:
            continue
        ranks, converged = result[f"{plane}_rank"].values, result[f"{plane}_converged"].values
        lacking, unfinished = int((ranks < rank).sum()), int((~converged & (ranks > 0)).sum())
        if lacking:
            events.emit("note", NAME, f"{plane}: {lacking} of {ranks.size} have fewer than {rank} components")
        if unfinished:
            events.emit("warning", NAME, f"{plane}: {unfinished} of {ranks.size} did not converge; a larger max_iter")
