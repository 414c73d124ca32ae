"""What a driver writes of its job, as far as others count on it: a file that says otherwise is damaged."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError


class _Step(BaseModel):
    step: str
    state: str
    done: float
    total: float
    what: str
    rate: float
    left: float | None
    seconds: float


class _Units(BaseModel):
    total: int
    done: int
    failed: int
    masked: int


class _Memory(BaseModel):
    now: int
    peak: int
    limit: int


class _Error(BaseModel):
    message: str


class _Status(BaseModel):
    state: str = ""
    attempt: int | None = None
    exit_code: int | None = None
    ended: float | None = None
    left: float | None = None
    steps: list[_Step] = []
    units: _Units | Annotated[dict[str, int], Field(max_length=0)] | None = None
    workers: dict[str, int] = {}
    memory: dict[str, _Memory] = {}
    peak_memory: int = 0
    paused: list[str] = []
    error: _Error | None = None


def is_status(found: dict[str, Any]) -> bool:
    """Return whether the content of a ``status.json`` is what a driver writes; parts may be missing."""
    try:
        _Status.model_validate(found)
    except ValidationError:
        return False
    return True
