"""Receptive fields: which rectangle of the input a position of a layer can see."""

from __future__ import annotations

from dataclasses import dataclass


class UnknownError(Exception):
    """A field cannot be said; the argument is the reason."""


@dataclass(frozen=True)
class ReceptiveField:
    """The rectangle of input pixels that each position (y, x) of a layer can see.

    Parameters
    ----------
    size : (int, int)
        Height and width in input pixels.
    stride : (int, int)
        Input pixels from one position to the next, down and to the right.
    start : (int, int)
        First row and first column that position (0, 0) sees; negative where the input is padded.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    start: tuple[int, int]

    def box(self, y: int, x: int) -> tuple[int, int, int, int]:
        """Return (top, left, bottom, right), the last two exclusive; may reach outside the input."""
        top, left = self.start[0] + y * self.stride[0], self.start[1] + x * self.stride[1]
        return top, left, top + self.size[0], left + self.size[1]

    def window(
        self,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> ReceptiveField:
        """Return the field of a window that slides over positions with this field."""
        (height, width), (down, right), (top, left) = self.size, self.stride, self.start
        return ReceptiveField(
            size=(
                height + (kernel[0] - 1) * dilation[0] * down,
                width + (kernel[1] - 1) * dilation[1] * right,
            ),
            stride=(down * stride[0], right * stride[1]),
            start=(top - padding[0] * down, left - padding[1] * right),
        )


PIXEL = ReceptiveField(size=(1, 1), stride=(1, 1), start=(0, 0))
"""The field of the input itself."""


def union(fields: list[ReceptiveField]) -> ReceptiveField:
    """Return the smallest field that covers them all, position by position.

    Raises
    ------
    UnknownError
        If their strides differ.
    """
    stride = fields[0].stride
    if any(field.stride != stride for field in fields):
        raise UnknownError(f"strides differ: {sorted({field.stride for field in fields})}")
    start = min(f.start[0] for f in fields), min(f.start[1] for f in fields)
    end = max(f.box(0, 0)[2] for f in fields), max(f.box(0, 0)[3] for f in fields)
    return ReceptiveField((end[0] - start[0], end[1] - start[1]), stride, start)
