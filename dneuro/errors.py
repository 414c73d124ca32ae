"""Every error that dneuro raises on purpose.

::

    DneuroError                     exit code 4
    ├── UsageError                  2     what was asked for cannot be
    │   ├── SpecError                     a job or profile file: file, line, key, value, choices
    │   ├── ImageSourceError              images missing, mislabelled, empty
    │   ├── NetworkError                  unknown network or layer, weights that do not fit
    │   ├── ArrayError                    an array without the dims or dtype an analysis needs
    │   ├── MemoryLimitError              the plan, or a picture, does not fit
    │   └── DeviceError                   a device that is not there, or has no room
    ├── UnreadableImageError        4     one image; extraction masks it and goes on
    ├── NonFiniteError              4     NaN or infinity among the activations
    ├── StoreError                  4     a store that is missing, foreign or damaged
    │   ├── NotAStoreError          2     something else lies where the store would go
    │   ├── DiskFullError           4     no room where it is written
    │   └── FingerprintError        64    the store was made from something else
    ├── BusyError                   4     another run is at work on the same store
    ├── SchedulerLostError          4     the scheduler that hands out the work has ended under a run
    ├── PartialError                3     some units failed, everything else is done
    └── CancelledError              5     stopped by the user
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class DneuroError(Exception):
    """Root of the tree: what happened, and one line that says the way out.

    Parameters
    ----------
    message : str
        What, the actual value, the limit, and where.
    hint : str, optional
        One line that can be followed or pasted as it is.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process borders; subclasses add fields, so rebuild without calling __init__.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[DneuroError], args: tuple[Any, ...], state: dict[str, Any]) -> DneuroError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(DneuroError):
    """What was asked for cannot be; nothing was started."""

    exit_code = 2


class SpecError(UsageError):
    """A job or profile file that says something dneuro does not understand."""


class ImageSourceError(UsageError):
    """An image source that is missing, empty or wrongly labelled."""


class NetworkError(UsageError):
    """A network, layer or weights file that is unknown or does not fit."""


class ArrayError(UsageError):
    """An array without the dims or the dtype that an analysis needs."""


class MemoryLimitError(UsageError):
    """A plan that does not fit into the memory there is, so nothing was started; or a picture that did before."""


class DeviceError(UsageError):
    """A device that a worker does not have, or that has no room for a task; no other is taken in its place."""


class UnreadableImageError(DneuroError):
    """One image that cannot be decoded; extraction masks it, lists it and goes on."""


class NonFiniteError(DneuroError):
    """NaN, infinity or what a dtype does not hold among the activations; names layer, image and neuron."""


class StoreError(DneuroError):
    """A store that is missing, not dneuro's, or damaged."""


class NotAStoreError(StoreError):
    """Something else lies where a store would go; it is left as it is."""

    exit_code = 2


class DiskFullError(StoreError):
    """A disk without room for what was to be written, or a quota that is used up."""


class FingerprintError(StoreError):
    """A store that was made from other images, weights or settings than the job asks for."""

    exit_code = 64


class BusyError(DneuroError):
    """Another run is at work on the same store."""


class SchedulerLostError(DneuroError):
    """The dask scheduler of a run has ended, or was started anew; what is done stays done."""


class PartialError(DneuroError):
    """Some units failed again and again; everything else is done."""

    exit_code = 3


class CancelledError(DneuroError):
    """Stopped by the user; what is done stays done."""

    exit_code = 5


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """Return the `count` choices that look most like `name`, best first; may be empty."""
    return difflib.get_close_matches(name, list(choices), n=count, cutoff=0.5)


def suggest(name: str, choices: Iterable[str], limit: int = 12) -> str:
    """Return the text of a hint: the nearest choices if any, then the choices themselves.

    Parameters
    ----------
    name : str
        What the user wrote.
    choices : iterable of str
        What could have been written.
    limit : int
        At most this many choices are listed.
    """
    known = list(choices)
    near = nearest(name, known)
    listed = ", ".join(known[:limit]) + (f", … ({len(known)} in all)" if len(known) > limit else "")
    meant = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return f"{meant}choices: {listed}" if known else f"{meant}there are none to choose from"
