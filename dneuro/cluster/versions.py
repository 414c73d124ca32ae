"""The versions of what computes, which must be the same wherever a job runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from dneuro.errors import DneuroError

PACKAGES = ("dneuro", "torch", "dask", "distributed", "zarr", "numpy")

MISSING = "missing"


def versions() -> dict[str, str]:
    """Return the versions of Python and of what computes, here."""
    found = {"python": "{}.{}".format(*sys.version_info)}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = MISSING
    return found


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Return what is not the same, in words."""
    return [f"{name} {there.get(name, MISSING)} instead of {version}" for name, version in here.items()
            if there.get(name, MISSING) != version]  # fmt: skip


def check_versions(client: Any) -> None:
    """Refuse workers that have other versions than this process.

    Raises
    ------
    DneuroError
        Names the workers and what is not the same.
    """
    here, names = versions(), tuple(versions())

    def probe() -> dict[str, str]:
        # Sent whole: a worker without dneuro could not import it to say that it has none.
        import sys
        from importlib import metadata

        found = {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
        for package in names:
            if package != "python":
                try:
                    found[package] = metadata.version(package)
                except metadata.PackageNotFoundError:
                    found[package] = "missing"
        return found

    wrong = {
        worker: found
        for worker, there in sorted(client.run(probe, on_error="ignore").items())
        if (found := differences(here, there))
    }
    if wrong:
        worker, found = next(iter(wrong.items()))
        raise DneuroError(
            f"{len(wrong)} workers have other versions than this process; {worker} has {', '.join(found)}",
            hint="the same environment on all machines: slurm.setup, the image, or pip install on the workers",
        )


def dask_setup(nanny: Any) -> None:
    """Refuse to start a worker beside others of other versions; dask runs this as a preload of the nanny.

    What it must have stands in the settings that it was given, ``dneuro.versions``.
    """
    import dask

    if found := differences(dask.config.get("dneuro.versions", {}), versions()):
        # Anything less than an exit is logged by dask, and the worker started all the same.
        raise SystemExit(f"error: this worker has other versions than its driver: {', '.join(found)}")
