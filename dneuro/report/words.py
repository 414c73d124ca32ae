"""Numbers, counts and settings as the pages write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NOTHING = "–"
"""What stands where there is no value."""


def number(value: float | None, *, pad: bool = False) -> str:
    """Return `value` with three significant digits: ``0.125``, ``1,230``, ``−4.5e-7``, ``NaN``.

    With `pad`, zeros at the end stay (``6.30``), for numbers that stand in a row.
    """
    if value is None:
        return NOTHING
    value = float(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "−∞" if value < 0 else "∞"
    if value == 0:
        return "0"
    size = abs(value)
    if 1e-3 <= size < 1e6:
        decimals = max(0, 2 - math.floor(math.log10(size)))
        text = f"{value:,.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text and not pad else text
    else:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def percent(share: float | None) -> str:
    """Return a share of 1 as ``12.5 %``."""
    if share is None:
        return NOTHING
    return f"{number(100 * share)} %" if math.isfinite(share) else "NaN"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 image`` or ``1,797 images``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(items: list[str], limit: int = 12) -> str:
    """Return the items joined by commas, at most `limit` of them."""
    more = f", … ({len(items):,} in all)" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def setting(value: Any) -> str:
    """Return the value of a setting in one line, nested mappings and lists included."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return settings(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(setting(item) for item in value) + "]"
    return str(value)


def settings(values: Mapping[str, Any]) -> str:
    """Return ``k = 100, per = channel``; empty for no settings."""
    return ", ".join(
        f"{key} = ({setting(value)})" if isinstance(value, Mapping) else f"{key} = {setting(value)}"
        for key, value in values.items()
    )


def cut(text: str, length: int, *, end: bool = False) -> str:
    """Return at most `length` letters of a text, its beginning or (with `end`) its end, and an ellipsis."""
    if len(text) <= length:
        return text
    return f"…{text[1 - length :]}" if end else f"{text[: length - 1]}…"


def short(digest: str) -> str:
    """Return the first twelve characters of a digest, without a ``sha256:`` in front of it."""
    return digest.removeprefix("sha256:")[:12]


def quoted(values: Mapping[str, Any]) -> str:
    """Return settings as a caption appends them: `` Parameters: k = 100.`` or nothing."""
    return f" Parameters: {settings(values)}." if values else ""
