"""What was asked of `dneuro.patch_components`: checked, laid out and planned before anything is computed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dneuro.analysis.arrays import check_dims, choose, dims_of, is_count, one_of
from dneuro.analysis.checks import check_count
from dneuro.analysis.gathering import Layout
from dneuro.analysis.ica import check_search, counts_of
from dneuro.analysis.patching.rendering import Render, Rendering
from dneuro.engine.blocks import BLOCK_BYTES
from dneuro.engine.device import chosen_name, held_on_device, moving_bytes, process_bytes
from dneuro.engine.executors import Sizes
from dneuro.engine.plan import Plan, in_driver
from dneuro.errors import ArrayError
from dneuro.kernels.ica import BATCH_ITEMS, Fun
from dneuro.store.blocks import BlockArray
from dneuro.store.files import Location

NAME = "patch_components"
RENDERINGS: tuple[Rendering, ...] = ("grey", "rgb", "rgb8")
DIMS = ("sample", "row", "column", "color")
LISTS = ("top_image", "top_value", "top_y", "top_x")
"""Coordinates (channel, sample) of the patches that the result keeps, as `dneuro.top_patches` has them."""


@dataclass(frozen=True)
class Asked:
    """What was asked, checked.

    Parameters
    ----------
    patches : DataArray, dims (channel, sample, row, column, color)
        The samples used, in chunks of whole channels.
    dim : str
        Name of the first dim.
    counts : array (channel,) of int64
        Samples that there are.
    settings : dict
        Keyword arguments of `Render`.
    parameters : dict
        What the result says that was asked.
    notes : list of str
        What the user should know.
    """

    patches: xr.DataArray
    dim: str
    counts: NDArray[np.int64]
    settings: dict[str, Any]
    parameters: dict[str, Any]
    notes: list[str]

    @property
    def edges(self) -> list[int]:
        """Channels at which blocks begin and end."""
        lengths = self.patches.chunksizes[self.dim]
        return [0, *itertools.accumulate(lengths)]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Channels of each block."""
        return list(itertools.pairwise(self.edges))

    @property
    def layout(self) -> Layout:
        """What the result consists of."""
        channels, samples, *size = self.patches.shape
        rank, dtype, wanted = (self.settings[name] for name in ("rank", "dtype", "renderings"))
        shape, kept = (rank, *size), min(self.settings["keep"], samples)
        picture = ("component", "row", "column")
        of_patches = str(self.patches.dtype)
        large: dict[str, tuple[tuple[str, ...], tuple[int, ...], str, str]] = {
            "grey": (picture, shape[:-1], dtype, "independent components, grey"),
            "rgb": ((*picture, "color"), shape, dtype, "independent components of R, G and B, combined"),
            "rgb8": ((*picture, "color"), shape, "uint8", "the same as bytes: 128 is 0"),
            "patch": (DIMS, (kept, *size), of_patches, "patches that excite the channel most"),
        }
        names = [*wanted, *(["patch"] if kept else [])]
        small: dict[str, tuple[str, ...]] = {"count": ()}
        for plane, dims in (("grey", ()), ("rgb", ("color",))):
            small |= {f"{plane}_{name}": dims for name in ("rank", "converged", "iterations")}
            small[f"{plane}_share"] = ("component",)
        small["rgb_correlation"] = ("component", "color")
        block = max(b - a for a, b in self.spans)
        arrays = tuple(
            BlockArray(name, (self.dim, *dims), (channels, *lengths), kind, text)
            for name, (dims, lengths, kind, text) in large.items() if name in names
        )  # fmt: skip
        return Layout(self.dim, block, arrays, small)

    def work(self, place: Location | None) -> Render:
        """Return what a task does."""
        return Render(**self.settings, place=place, large=tuple(array.name for array in self.layout.large))

    def rest(self, x: xr.DataArray) -> xr.Dataset:
        """Return what is known of the channels and of the patches kept, and what was asked."""
        kept = slice(min(self.settings["keep"], self.patches.sizes["sample"]))
        pair = (self.dim, "sample")
        lists = {name: (pair, x[name].transpose(*pair).values[:, kept]) for name in LISTS if name in x.coords}
        coords = {self.dim: x[self.dim].values} if self.dim in x.coords else {}
        attrs = {"analysis": NAME, "layer": str(x.attrs.get("layer", "")), "parameters": self.parameters}
        attrs |= {name: x.attrs[name] for name in ("receptive_field", "selection") if name in x.attrs}
        return xr.Dataset(lists if kept.stop else {}, coords=coords, attrs=attrs)

    def plan(self, executor: Sizes, placed: bool) -> Plan:
        """Return what it takes; `placed` says that pictures are written as they are made."""
        channels, samples, height, width, colors = self.patches.shape
        most = max(b - a for a, b in self.spans)
        pixels, rank, itemsize = height * width, self.settings["rank"], self.patches.dtype.itemsize
        batch = min(most, max(1, BATCH_ITEMS // (samples * pixels)))
        planes = 3 if colors == 3 else 1
        # A chunk as it is computed and as it is joined; of a batch a plane, its copies and singular vectors; components
        # and mixing of all planes, matched, combined and scaled; and the largest array on its way into the store.
        block = itemsize * most * samples * pixels * colors
        task = 2 * block + 8 * 6 * batch * samples * pixels
        task += 8 * batch * rank * pixels * (3 * planes + 6)
        one = self.layout.step_bytes
        task += 2 * most * one
        result = channels * one + self._small * channels
        driver = 2 * self._small * channels if placed else 2 * result + most * one
        return Plan(
            operation=NAME,
            passes=1,
            read_bytes=int(self.patches.nbytes),
            tasks=len(self.spans),
            worker_bytes=process_bytes(executor) + executor.slots_per_process * (task + moving_bytes(block)),
            driver_bytes=in_driver(driver, executor),
            result_bytes=result,
            method=f"FastICA, blocks of {most} channels",
            device=chosen_name(),
            device_bytes=held_on_device(executor.slots_per_process, task),
        )

    @property
    def _small(self) -> int:
        """Bytes of a channel's numbers."""
        return 128 + 40 * int(self.settings["rank"]) + 32 * int(self.settings["keep"])


def ask(
    x: xr.DataArray, k: int, rank: int, renderings: Sequence[Rendering], match: bool, keep: int, fun: Fun,
    max_iter: int, tol: float, seed: int, dtype: str,
) -> Asked:  # fmt: skip
    """Check what was asked.

    Raises
    ------
    ArrayError
        If it cannot be.
    """
    patches, dim = _patches(x)
    check_count("k", k, hint="k=100")
    check_count("keep", keep, hint="keep=9", least=0)
    check_search(fun, max_iter, tol, seed)
    choose("match", match, (True, False))
    choose("dtype", dtype, ("float16", "float32"))
    wanted, notes = _renderings(renderings, patches.sizes["color"])
    counts = counts_of(x, dim)
    patches = _whole_channels(patches.isel(sample=slice(k)), dim)
    samples, pixels = patches.sizes["sample"], patches.sizes["row"] * patches.sizes["column"]
    if not is_count(rank) or rank > min(samples, pixels):
        raise ArrayError(
            f"rank={rank!r} of {samples} patches × {pixels} pixels",
            hint=f"a whole number from 1 to {min(samples, pixels)}",
        )
    counts = np.full(len(patches), samples) if counts is None else np.minimum(counts, samples)
    settings = {"rank": int(rank), "renderings": wanted, "match": bool(match), "keep": int(keep), "dtype": dtype,
                "fun": fun, "max_iter": int(max_iter), "tol": float(tol), "seed": int(seed)}  # fmt: skip
    return Asked(patches, dim, counts, settings, {"k": int(k), **settings, "renderings": list(wanted)}, notes)


def _patches(x: xr.DataArray) -> tuple[xr.DataArray, str]:
    """Return the array as (channel, sample, row, column, color), and the name of the first dim."""
    dims = tuple(map(str, dims_of(x)))
    if len(dims) != 5 or not set(DIMS) < set(dims):
        what = f"dims {dims}" if dims else f"a {type(x).__name__}"
        raise ArrayError(
            f"{NAME} takes an xarray.DataArray (channel, sample, row, column, color), not {what}",
            hint=one_of(x, "dn.top_patches(store, layer)"),
        )
    check_dims(x, "the array")
    dim = next(name for name in dims if name not in DIMS)
    if dim == "component":
        raise ArrayError(f"{NAME} gives components, and {dims} have that name", hint="x.rename(component='channel')")
    patches = x.transpose(dim, *DIMS)
    if patches.dtype.kind not in "fiu" or 0 in patches.shape:
        raise ArrayError(f"{NAME} of {dict(x.sizes)} {x.dtype}", hint="real numbers, and at least one of each")
    if patches.sizes["color"] not in (1, 3):
        raise ArrayError(f"patches of {patches.sizes['color']} colours", hint="3, or 1 for grey")
    return patches, dim


def _renderings(renderings: Sequence[Rendering], colors: int) -> tuple[tuple[Rendering, ...], list[str]]:
    """Return the renderings that there can be, in their usual order, and what is to be said."""
    asked: list[Any] = list(renderings) if isinstance(renderings, list | tuple) else [renderings]
    for name in asked or [""]:
        choose("renderings", name, RENDERINGS)
    wanted = tuple(name for name in RENDERINGS if name in asked)
    if colors == 3:
        return wanted, []
    left_out = [name for name in wanted if name != "grey"]
    if "grey" not in wanted:
        raise ArrayError(f"renderings={asked!r} of patches of one colour", hint="renderings=['grey']")
    return ("grey",), [f"patches have one colour: no {' and no '.join(left_out)}"] if left_out else []


def _whole_channels(patches: xr.DataArray, dim: str) -> xr.DataArray:
    """Return the array in chunks of whole channels, all alike but for the last."""
    if patches.chunks is None:
        per_channel = patches.dtype.itemsize * math.prod(patches.shape[1:])
        return patches.chunk({dim: max(1, BLOCK_BYTES // per_channel), **dict.fromkeys(DIMS, -1)})
    lengths = patches.chunksizes[dim]
    even = len(set(lengths[:-1])) <= 1 and lengths[-1] <= lengths[0]
    return patches.chunk({dim: lengths if even else max(lengths), **dict.fromkeys(DIMS, -1)})
