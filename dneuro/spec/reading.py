"""From a YAML file to a checked job or profile; everything that is wrong with it is said at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

from pydantic import ValidationError

from dneuro.errors import SpecError
from dneuro.spec import document, files, overrides, wording
from dneuro.spec.base import Spec
from dneuro.spec.document import Document, Place
from dneuro.spec.job import JobSpec
from dneuro.spec.outline import outline
from dneuro.spec.problems import KeyPath, Problem, ProblemsError, shown
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.series import AnyJob, SeriesSpec

S = TypeVar("S", bound=Spec)
_WORDS: dict[type[Spec], str] = {JobSpec: "job", SeriesSpec: "job", ProfileSpec: "profile"}


def read_job(path: str | PathLike[str], overrides: Sequence[str] = ()) -> JobSpec:
    """Read and check a job file.

    Parameters
    ----------
    path : str or path-like
        A YAML file, in UTF-8.
    overrides : sequence of str
        ``key=value`` settings that replace the file's, such as ``steps.svd.rank=4``.

    Raises
    ------
    SpecError
        With everything that is wrong: place, key path, value, limit or choices, and a way out.
    """
    return _parse(JobSpec, files.read_text(path, "job"), str(path), overrides)


def read_study(path: str | PathLike[str], overrides: Sequence[str] = ()) -> AnyJob:
    """Read and check a job file that may be about several networks or checkpoints; as `read_job`."""
    return parse_study(files.read_text(path, "job"), str(path), overrides)


def parse_study(text: str, name: str = "<job>", overrides: Sequence[str] = ()) -> AnyJob:
    """Check the text of a job that may be about several networks or checkpoints; as `parse_job`."""
    if _names_several(text):
        return _parse(SeriesSpec, text, name, overrides)
    return _parse(JobSpec, text, name, overrides)


def _names_several(text: str) -> bool:
    try:
        data = document.read(text).data
    except document.NotYamlError:  # said again, with its place
        return False
    network = data.get("network") if isinstance(data, dict) else None
    several = isinstance(network, dict) and isinstance(network.get("weights"), list)
    return several or (isinstance(data, dict) and "networks" in data)


def read_profile(path: str | PathLike[str], overrides: Sequence[str] = ()) -> ProfileSpec:
    """Read and check a profile; as `read_job`."""
    return _parse(ProfileSpec, files.read_text(path, "profile"), str(path), overrides)


def parse_job(text: str, name: str = "<job>", overrides: Sequence[str] = ()) -> JobSpec:
    """Check the text of a job; `name` stands for the file in errors. As `read_job`."""
    return _parse(JobSpec, text, name, overrides)


def parse_profile(text: str, name: str = "<profile>") -> ProfileSpec:
    """Check the text of a profile; as `parse_job`."""
    return _parse(ProfileSpec, text, name, ())


def _parse(model: type[S], text: str, name: str, settings: Sequence[str]) -> S:
    try:
        source = _Source(name, document.read(text))
    except document.NotYamlError as error:
        raise SpecError(f"{_in_file(name, error.place)}: {error.message}", error.hint) from None
    _require_mapping(model, source)
    for setting in settings:
        source.override(setting, model)
    try:
        spec = model.model_validate(source.data)
    except ValidationError as error:
        for problem in wording.problems(error, outline(model), source.data, source.written):
            source.report(problem)
    if source.findings:
        raise _as_error(name, source.findings)
    return spec


@dataclass(frozen=True)
class _Finding:
    order: tuple[int, int, int]
    where: str
    message: str
    hint: str | None


class _Source:
    """A document with the overrides put into it: knows which of them a value comes from."""

    def __init__(self, name: str, document: Document) -> None:
        self.name, self.document, self.data = name, document, document.data
        self.settings: list[tuple[KeyPath | None, str]] = []
        self.findings: list[_Finding] = []
        for place, problem in document.problems:
            self._add(problem, place)

    def override(self, setting: str, model: type[Spec]) -> None:
        """Put one ``key=value`` into the data, or note why that cannot be."""
        try:
            path = overrides.apply(self.data, setting, outline(model))
            self.settings.append((path, setting))
        except ProblemsError as error:
            self.settings.append((None, setting))
            for problem in error.problems:
                self._add_to_setting(problem, len(self.settings) - 1)

    def report(self, problem: Problem) -> None:
        """Note a problem, at the place that its key path comes from."""
        index = self._setting(problem.at)
        if index is None:
            self._add(problem, self.document.place(problem.at))
        else:
            self._add_to_setting(problem, index)

    def written(self, path: KeyPath) -> str | None:
        """Return the text of the scalar at `path`, if it stands in the file."""
        return self.document.place(path).text if self._setting(path) is None else None

    def _add(self, problem: Problem, place: Place) -> None:
        where = _in_file(self.name, place)
        self.findings.append(_finding((0, place.line, place.column), where, problem))

    def _add_to_setting(self, problem: Problem, index: int) -> None:
        self.findings.append(_finding((1, index, 0), f"in --set {self.settings[index][1]}", problem))

    def _setting(self, path: KeyPath) -> int | None:
        """Return which override the value at `path` comes from; the last one of several."""
        for index, (target, _) in reversed(list(enumerate(self.settings))):
            if target is None:
                continue
            if path[: len(target)] == target:
                return index
            if path and path not in self.document.places and target[: len(path)] == path:
                return index  # a key on the way that the file does not have
        return None


def _finding(order: tuple[int, int, int], where: str, problem: Problem) -> _Finding:
    path = _dotted(problem.at)
    return _Finding(order, where, f"{path}: {problem.message}" if path else problem.message, problem.hint)


def _in_file(name: str, place: Place) -> str:
    return f"{name}:{place.line}:{place.column}"


def _dotted(path: KeyPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _as_error(name: str, findings: list[_Finding]) -> SpecError:
    if len(findings) == 1:
        return SpecError(f"{findings[0].where}: {findings[0].message}", findings[0].hint)
    lines = [f"{name}: {len(findings)} errors"]
    for finding in sorted(findings, key=lambda finding: finding.order):
        lines.append(f"{finding.where}: {finding.message}")
        if finding.hint is not None:
            lines.append(f"  hint: {finding.hint}")
    return SpecError("\n".join(lines))


def _require_mapping(model: type[Spec], source: _Source) -> None:
    """Refuse what is no mapping, and a job in the place of a profile or the other way round."""
    data: Any = source.data
    word = _WORDS[model]
    needed = ", ".join(f"`{name}:`" for name, field in model.model_fields.items() if field.is_required())
    if data is None:
        raise SpecError(f"{source.name}: holds nothing", f"a {word} has at least {needed}")
    where = _in_file(source.name, source.document.place(()))
    if not isinstance(data, dict):
        raise SpecError(f"{where}: a {word} must be a mapping, `key: value`, not {shown(data)}",
                        f"a {word} has at least {needed}")  # fmt: skip
    for other, what in _WORDS.items():
        if what != word and data.keys() & other.model_fields.keys() and not data.keys() & model.model_fields.keys():
            raise SpecError(f"{where}: this is a {what}, not a {word}", "dneuro run JOB --cluster PROFILE")
