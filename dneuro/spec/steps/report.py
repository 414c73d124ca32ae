"""The step that draws."""

from __future__ import annotations

from typing import ClassVar

from dneuro.spec.base import Positive
from dneuro.spec.steps.base import Step


class ReportStep(Step):
    """Pages and pictures of everything the store holds, in ``<store>.report/``."""

    kind: ClassVar[str] = "report"
    neurons: Positive = 12
    """Channels shown per layer: those with the largest variance."""
    images: Positive = 9
    """Images shown per channel and per component, at either end."""
    index: bool = True
    """Pages of every channel of every layer too, some ten kilobytes each, and an index that finds, filters and
    sorts them."""
