"""The habits that all models of what a user may write have in common."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from dneuro import quantities
from dneuro.spec.problems import refusal, shown

N = TypeVar("N", int, float)

Json = dict[str, Any]
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"


class Spec(BaseModel):
    """Strict, immutable: an unknown key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class OrBlank:
    """Annotation: nothing after the colon means an empty mapping, that is, all defaults."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_fill_blank, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        return {"anyOf": [handler(schema), {"type": "null"}]}


def _fill_blank(value: object) -> object:
    return {} if value is None else value


@dataclass(frozen=True)
class OrWritten:
    """Annotation: a validator accepts this JSON schema too, and turns it into the annotated type."""

    schema: Json

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        return {"anyOf": [handler(schema), self.schema]}


ONE, SEVERAL = "<one>", "<several>"
"""Tags for a union of one value and a list; in angle brackets, for they are no part of a key path."""

by_count = Discriminator(lambda value: SEVERAL if isinstance(value, list | tuple) else ONE)
"""Tells one value from a list, so that an error is about the form that was written."""


ALL, NUMBER = "<all>", "<number>"
all_or_number = Discriminator(lambda value: ALL if value == "all" else NUMBER)
"""Tells the word that stands for all there are from a number, which anything else is taken for."""


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {shown(value)}")
    return value


def _check_name(name: str) -> str:
    if not re.fullmatch(_NAME, name):
        better = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")
        raise refusal(f"{shown(name)} is no name: letters, digits, `_`, `.` and `-`, a letter or digit first",
                      f"such as {better}" if better else None)  # fmt: skip
    return name


def _expand(text: str) -> str:
    """Expand ``~`` and environment variables; name a variable that is not set, and a user that there is not."""
    if not text.strip():
        raise ValueError("must not be empty")
    if "\0" in text:
        raise ValueError(f"{shown(text)} has a null character in it, and cannot be the name of anything")
    expanded = os.path.expandvars(os.path.expanduser(text))  # noqa: PTH111 - URLs must stay as they are
    if "$" in expanded:
        raise ValueError(f"{text!r} names an environment variable that is not set")
    if expanded.startswith("~"):
        raise refusal(f"{shown(text)} begins with the home of a user that this machine does not know",
                      f"the path in full; ./{text} is what is called so here")  # fmt: skip
    return expanded


def _parse_bytes(value: object) -> int:
    return _parse(quantities.parse_bytes, value, "an amount of memory such as '8GiB' or '500MB'")


def _parse_seconds(value: object) -> float:
    return _parse(quantities.parse_duration, value, "a duration such as '4h', '15m' or '90s'")


def _parse(parse: Callable[[str | int | float], N], value: object, what: str) -> N:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be {what}, not {shown(value)}")
    try:
        return parse(value)
    except OverflowError:
        raise ValueError(f"must be {what}; {shown(value)} is too large") from None


def _check_some(value: N) -> N:
    if value <= 0:
        raise ValueError("must be more than 0")
    return value


no_bool = BeforeValidator(_refuse_bool)
Number = Annotated[float, no_bool]
PositiveNumber = Annotated[float, Field(gt=0), no_bool]
NotNegative = Annotated[float, Field(ge=0), no_bool]
Share = Annotated[float, Field(gt=0, lt=1), no_bool]
Positive = Annotated[int, Field(gt=0), no_bool]
Count = Annotated[int, Field(ge=0), no_bool]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), no_bool]
"""What every random generator in use accepts."""

Name = Annotated[
    str,
    AfterValidator(_check_name),
    WithJsonSchema({"type": "string", "pattern": f"^{_NAME}$"}),
]
"""A name that is also the name of a folder."""

PathText = Annotated[str, AfterValidator(_expand)]
"""A path or URL; ``~`` and ``$VARIABLES`` are expanded."""

Bytes = Annotated[
    int,
    BeforeValidator(_parse_bytes),
    PlainSerializer(lambda n: n, return_type=int),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["8GiB", "500MB"]}),
]
"""An amount of memory in bytes, written as ``8GiB`` or as a number."""

Memory = Annotated[Bytes, AfterValidator(_check_some)]
"""An amount of memory that something can run in."""

Seconds = Annotated[
    float,
    BeforeValidator(_parse_seconds),
    WithJsonSchema({"type": ["string", "number"], "examples": ["4h", "15m"]}),
]
"""A duration in seconds, written as ``4h`` or as a number."""

SomeSeconds = Annotated[Seconds, AfterValidator(_check_some)]
"""A duration in which something can happen."""
