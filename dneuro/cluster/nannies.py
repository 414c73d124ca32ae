"""Worker processes of pools that differ in their environment."""

from __future__ import annotations

from typing import Any

from distributed import Nanny


class PoolNanny(Nanny):  # type: ignore[misc]
    """A nanny whose worker starts with an environment of its own.

    dask has one ``pre-spawn-environ`` for all workers of a process; OpenMP, MKL and CUDA read theirs when they are
    imported, which is before a nanny's ``env`` is set.

    Parameters
    ----------
    *args, **kwargs
        As of `distributed.Nanny`.
    pre_spawn : dict of str to str
        Environment of the worker, from its first instruction on.
    """

    def __init__(self, *args: Any, pre_spawn: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pre_spawn_env.update(pre_spawn)
        self.env.update(pre_spawn)
