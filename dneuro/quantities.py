"""Bytes and durations, as people write them and as they want to read them."""

from __future__ import annotations

import re

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB

_BYTES = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": KiB, "ki": KiB, "mib": MiB, "mi": MiB, "gib": GiB, "gi": GiB, "tib": 1024 * GiB, "ti": 1024 * GiB,
}  # fmt: skip
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(text: str | int | float) -> int:
    """Return a number of bytes from ``"8GiB"``, ``"500 MB"``, ``"1.5g"`` or a plain number.

    Raises
    ------
    ValueError
        If the number is missing or negative, or the unit is unknown.
    """
    return round(_parse(text, _BYTES, "an amount of memory such as '8GiB' or '500MB'"))


def parse_duration(text: str | int | float) -> float:
    """Return seconds from ``"4h"``, ``"15m"``, ``"90 s"``, ``"1h30m"`` or a plain number of seconds.

    Raises
    ------
    ValueError
        If the number is missing or negative, or the unit is unknown.
    """
    parts = re.findall(r"[0-9.]+\s*[a-z]+", text, re.IGNORECASE) if isinstance(text, str) else []
    if len(parts) > 1 and "".join(parts).replace(" ", "") == str(text).replace(" ", ""):
        return sum(parse_duration(part) for part in parts)
    return _parse(text, _SECONDS, "a duration such as '4h', '15m' or '90s'")


def _parse(text: str | int | float, units: dict[str, float] | dict[str, int], what: str) -> float:
    if isinstance(text, bool):
        raise ValueError(f"{text!r} is not {what}")
    if isinstance(text, int | float):
        if not 0 <= text < 2**63:
            raise ValueError(f"{text!r} is not {what}")
        return float(text)
    match = _QUANTITY.fullmatch(text)
    if match is None or match.group(2).lower() not in units:
        raise ValueError(f"{text!r} is not {what}")
    value = float(match.group(1)) * units[match.group(2).lower()]
    if not value < 2**63:
        raise ValueError(f"{text!r} is not {what}: too large")
    return value


def format_bytes(count: float) -> str:
    """Return ``"1.5 GiB"``: three significant digits in the largest fitting binary unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1000 or unit == "TiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def format_duration(seconds: float) -> str:
    """Return ``"0.4 s"``, ``"12 s"``, ``"3 min 20 s"`` or ``"2 h 5 min"``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
