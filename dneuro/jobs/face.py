"""Jobs from Python: `run` a job file or model, or `extract` without writing a job at all."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dneuro.cluster import backend_of, profile_folders
from dneuro.cluster.signals import ended_by_signals
from dneuro.errors import UsageError
from dneuro.jobs.drive import attend
from dneuro.jobs.driver import JobResult, run_job
from dneuro.jobs.folder import JobFolder
from dneuro.jobs.lease import refuse_if_busy
from dneuro.jobs.members import MembersResult, plan_any, run_members
from dneuro.jobs.needed import check_files
from dneuro.jobs.submitting import read_cluster, refuse_if_driven
from dneuro.spec import (
    AnyJob,
    JobSpec,
    ProfileSpec,
    SeriesSpec,
    find_profile,
    members_of,
    parse_job,
    read_profile,
    read_study,
)
from dneuro.store.opening import Store, open_store
from dneuro.store.units import units_folder


def run(
    job: AnyJob | str | os.PathLike[str],
    *,
    cluster: ProfileSpec | str | os.PathLike[str] | None = None,
    client: Any = None,
    overrides: Sequence[str] = (),
) -> JobResult | MembersResult:
    """Run a job here and now; run it again to resume it.

    Parameters
    ----------
    job : JobSpec, SeriesSpec or path
        What to compute.
    cluster : ProfileSpec or path, optional
        A profile, or its path or name: where to compute. Workers are started and ended with the run, also with one
        that is told to end (SIGTERM), or whose terminal is closed (SIGHUP).
    client : distributed.Client, optional
        Workers that are there already, instead of `cluster`. With neither, the active dask client, else threads of
        this process.
    overrides : sequence of str
        Settings that take the place of the file's, such as ``"steps.svd.rank=16"``.

    Returns
    -------
    JobResult
        Where the store and the report are, and what was done; for a job over several networks or checkpoints a
        mapping from the name of each to its result, with the page that compares them as ``report``.

    Raises
    ------
    DneuroError
        Of the kind that says what went wrong; what was done stays done.
    """
    spec = job if isinstance(job, JobSpec | SeriesSpec) else read_study(Path(job), overrides)
    if cluster is None:
        return run_members(spec, client) if isinstance(spec, SeriesSpec) else run_job(spec, client)
    if client is not None:
        raise UsageError("run() takes a cluster or a client, not both", hint="leave one of them out")
    profile = read_cluster(cluster)
    backend = backend_of(profile)
    for one in members_of(spec).values():
        refuse_if_busy(units_folder(one.store) / "attempts")  # before workers are started for nothing
    folder = JobFolder.of(profile.state, spec)
    before = refuse_if_driven(folder, profile)  # one that waits would later drive it with this profile
    check_files(spec, backend)
    planned = plan_any(spec, backend.sizes)
    if before is not None:
        before.clean_up(folder.path)
    folder.write(spec, profile, planned.to_dict(), "run")
    with ended_by_signals():
        return attend(folder, spec, backend, planned)


def extract(
    network: str | Mapping[str, Any],
    *,
    images: str | os.PathLike[str] | Mapping[str, Any],
    layers: Sequence[str] | Mapping[str, Any],
    out: str | os.PathLike[str],
    weights: str | os.PathLike[str] = "DEFAULT",
    client: Any = None,
    **settings: Any,
) -> Store:
    """Run a network once over images and open the store of its activations; again resumes, or just opens.

    Parameters
    ----------
    network : str or mapping
        Name such as ``"torchvision:alexnet"``, or the ``network:`` part of a job.
    images : str, path or mapping
        ``"digits"``, a folder that holds a folder per class, a ``.npz`` file or Zarr group, or the ``images:`` part
        of a job.
    layers : sequence of str, or mapping
        Layers to keep in full, or what to keep of each: ``{"features.12": {"keep": "max"}}``.
    out : str or path
        Where the store goes.
    weights : str or path
        ``"DEFAULT"``, ``"none"`` or a file; for `network` given as a name.
    client : distributed.Client, optional
        Where to compute; the default is the active dask client, else threads.
    **settings
        More of the extract step's settings: ``dtype``, ``batch``, ``top_k``, ….

    Returns
    -------
    Store
        A mapping of layer names to labelled, dask-backed arrays.

    Raises
    ------
    UsageError
        If images, network, weights or layers are not what is said here.
    """
    job = {
        "name": _name(out),
        "images": _images(images),
        "network": dict(network) if isinstance(network, Mapping) else {"name": network, "weights": os.fspath(weights)},
        "store": os.fspath(out),
        "steps": [{"extract": {"layers": _layers(layers), **settings}}],
    }
    result = run_job(parse_job(json.dumps(job, ensure_ascii=False), "extract()"), client)
    if result.outcome.masked:
        listed = "; ".join(f"{name}: {why}" for name, why in result.outcome.masked[:10])
        warnings.warn(f"{len(result.outcome.masked)} images are masked: {listed}", stacklevel=2)
    return open_store(os.fspath(out))


@contextlib.contextmanager
def open_cluster(profile: str | os.PathLike[str] = "local") -> Iterator[Any]:
    """Start the workers of a profile and give a plain dask client; they end with the ``with`` block.

    So they do when this process is told to end (SIGTERM), or its terminal is closed (SIGHUP), unless the program has
    handlers of its own for these: the block ends with KeyboardInterrupt.

    Parameters
    ----------
    profile : str or path
        A profile file, or the name of one.

    Yields
    ------
    distributed.Client
    """
    backend = backend_of(read_profile(find_profile(os.fspath(profile), profile_folders())))
    with ended_by_signals(), backend.open() as machines:
        yield machines.client


def _images(images: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(images, Mapping):
        return dict(images)
    text = os.fspath(images)
    if text == "digits":
        return {"source": "digits"}
    is_array = text.endswith(".npz") or (Path(text) / "zarr.json").is_file() or (Path(text) / ".zgroup").is_file()
    return {"source": "array" if is_array else "folder", "root": text}


def _layers(layers: Sequence[str] | Mapping[str, Any]) -> list[str] | dict[str, Any]:
    if isinstance(layers, Mapping):
        return {name: {"keep": kept} if isinstance(kept, str) else kept for name, kept in layers.items()}
    return [layers] if isinstance(layers, str) else list(layers)


def _name(out: str | os.PathLike[str]) -> str:
    stem = "".join(c if c.isalnum() or c in "_.-" else "-" for c in Path(out).stem).strip("-_.")
    return stem if stem and stem.isascii() else "extract"
