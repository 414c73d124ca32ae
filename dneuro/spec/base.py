"""The habits that all models of what a user may write have in common."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

from dneuro import quantities


class Spec(BaseModel):
    """Strict, immutable: an unknown key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _expand(text: str) -> str:
    """Expand ``~`` and environment variables; name a variable that is not set."""
    expanded = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111 - URLs must stay as they are
    if "$" in expanded:
        raise ValueError(f"{text!r} names an environment variable that is not set")
    return expanded


PathText = Annotated[str, AfterValidator(_expand)]
"""A path or URL; ``~`` and ``$VARIABLES`` are expanded."""

Bytes = Annotated[
    int,
    BeforeValidator(quantities.parse_bytes),
    PlainSerializer(lambda n: n, return_type=int),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["8GiB", "500MB"]}),
]
"""An amount of memory in bytes, written as ``8GiB`` or as a number."""

Seconds = Annotated[
    float,
    BeforeValidator(quantities.parse_duration),
    WithJsonSchema({"type": ["string", "number"], "examples": ["4h", "15m"]}),
]
"""A duration in seconds, written as ``4h`` or as a number."""
