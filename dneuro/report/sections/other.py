"""Results of a kind that has no figure here: listed with what they hold, not hidden."""

from __future__ import annotations

from dneuro.report.blocks import Block, facts, heading, variables
from dneuro.report.contents import Result


def build(result: Result) -> Block:
    """Return the block of a result by its variables."""
    return Block(
        f"{heading(result)} ({result.analysis})",
        caption="This report has no figure for it; the store holds these variables.",
        variables=variables(result.data),
        facts=facts(result),
    )
