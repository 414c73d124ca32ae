"""Whether torch may round the factors of float32 products (TF32): one setting for a whole process, in two words.

Nothing here needs torch before it is used.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Products:
    """What float32 products are computed in, for as long as somebody computes: torch has no setting per thread.

    The first to come sets it, and the last to leave puts back what the first has found. Whoever wants the other setting
    waits until all have left.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._inside, self._tf32 = 0, False
        self._restore: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def rounded(self, tf32: bool) -> Iterator[None]:
        """Return the context in which products, convolutions included, are or are not rounded to TF32."""
        with self._turn:
            self._turn.wait_for(lambda: not self._inside or self._tf32 == tf32)
            if not self._inside:
                self._tf32, self._restore = tf32, _set(tf32)
            self._inside += 1
        try:
            yield
        finally:
            with self._turn:
                self._inside -= 1
                if not self._inside:
                    self._restore()
                    self._turn.notify_all()


PRODUCTS = Products()
"""Those of this process: networks and analyses share it."""


def _set(tf32: bool) -> Callable[[], None]:
    """Set torch's words, and return what puts back those that were found.

    Torch has older words, and from 2.9 on newer ones for the same; whoever sets an older one sets the newer, too. Where
    somebody has set a newer one alone, torch refuses to say the older.
    """
    import torch

    cudnn: Any = torch.backends.cudnn
    older = _said(torch.get_float32_matmul_precision), _said(lambda: cudnn.allow_tf32)
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(cudnn, "conv", None))
    newer = [(place, _said(functools.partial(getattr, place, "fp32_precision"))) for place in places]
    if older[0] is not None:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if older[1] is not None:
        cudnn.allow_tf32 = tf32
    for place, word in newer:
        if word is not None:
            place.fp32_precision = "tf32" if tf32 else "ieee"

    def restore() -> None:
        if older[0] is not None:
            torch.set_float32_matmul_precision(older[0])
        if older[1] is not None:
            cudnn.allow_tf32 = older[1]
        for place, word in newer:
            if word is not None:
                place.fp32_precision = word

    return restore


def _said(word: Callable[[], Any]) -> Any:
    """Return what torch says; None where it has no such word, or refuses to say it."""
    try:
        return word()
    except (AttributeError, RuntimeError):
        return None
