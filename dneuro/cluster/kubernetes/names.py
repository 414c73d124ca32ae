"""Names and quantities as Kubernetes takes them; its own check of what lies inside a DaskCluster is lax."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from dneuro.cluster.record import STANDING
from dneuro.errors import UsageError, suggest
from dneuro.quantities import GiB, MiB

CLUSTER = 40
"""Letters that the name of a cluster may have, so that those derived from it stay within 63."""

POOL = 16
"""Letters of a pool's name that its worker group's name may have."""

_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_TOLERATION: dict[str, type[str] | type[int] | tuple[str, ...]] = {
    "key": str,
    "operator": ("Exists", "Equal"),
    "value": str,
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "tolerationSeconds": int,
}


def slug(text: str, longest: int) -> str:
    """Return small letters, digits and dashes that stand for a text; one that is cut keeps apart from others."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
    if len(plain) <= longest:
        return plain
    return f"{plain[: longest - 7].strip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def label(folder: str, claim: str = "") -> str:
    """Return the value of the label that everything has which belongs to a job or to a standing cluster.

    The name of a job's folder has in it which store the job is about, by its path: others in the namespace may have
    that path on another volume. That of a standing cluster is its profile's alone: theirs lies in another `state`, too.

    Parameters
    ----------
    folder : str
        Path or URL of its folder.
    claim : str
        Of the volume that the folder is on, if it is on one.
    """
    place, apart = Path(folder), claim
    if place.parent.name == STANDING:
        whole = folder if "://" in folder else os.path.normpath(place.absolute())
        apart = f"{claim}:{whole}"
    if not apart:
        return slug(place.name, 63)
    return f"{slug(place.name, 54)}-{hashlib.sha256(apart.encode()).hexdigest()[:8]}"


def group_names(cluster: str, pools: Iterable[str]) -> dict[str, str]:
    """Return the name of the worker group of each pool."""
    found: dict[str, str] = {}
    for pool in pools:
        name = f"{cluster}-{slug(pool, POOL)}"
        while name in found.values():  # a-b and a_b
            name += "x"
        found[pool] = name
    return found


def quantity(count: int) -> str:
    """Return bytes as a quantity: exactly, and as short as that allows."""
    for size, suffix in ((GiB, "Gi"), (MiB, "Mi")):
        if count % size == 0:
            return f"{count // size}{suffix}"
    return str(count)


def check_selector(labels: Mapping[str, str], where: str) -> None:
    """Refuse labels that no node can have.

    Raises
    ------
    UsageError
        Names the first.
    """
    for key, value in labels.items():
        prefix, _, name = key.rpartition("/")
        if not _LABEL.fullmatch(name) or (prefix and not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", prefix)):
            raise UsageError(f"{where}: {key!r} is no label's name", hint="such as nvidia.com/gpu.product")
        if value and not _LABEL.fullmatch(value):
            raise UsageError(f"{where}: {value!r} is no label's value", hint="letters, digits, - _ . at most 63")


def check_tolerations(tolerations: Collection[Mapping[str, Any]], where: str) -> None:
    """Refuse tolerations that Kubernetes would: the pods would never be made, and nobody would say why.

    Raises
    ------
    UsageError
        Names the first.
    """
    for toleration in tolerations:
        for key, value in toleration.items():
            allowed = _TOLERATION.get(key)
            if allowed is None:
                raise UsageError(f"{where}: a toleration has no {key!r}", hint=suggest(key, list(_TOLERATION)))
            if isinstance(allowed, tuple):
                if value not in allowed:
                    raise UsageError(f"{where}: {key} is {value!r}", hint=suggest(str(value), list(allowed)))
            elif not isinstance(value, allowed) or isinstance(value, bool):
                raise UsageError(f"{where}: {key} is {value!r}, it must be {allowed.__name__}", hint="put it in quotes")
        if toleration.get("operator") != "Exists" and "key" not in toleration:
            raise UsageError(f"{where}: a toleration without key must be `operator: Exists`", hint="add key:")
