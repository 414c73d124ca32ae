"""A job over several networks or checkpoints: its members, planned together, run one after the other, compared."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dneuro import events
from dneuro.engine.executors import Sizes, get_executor
from dneuro.errors import DneuroError, PartialError
from dneuro.images.sources import ImageSource
from dneuro.jobs.calibration import Forecast, forecast
from dneuro.jobs.driver import JobResult, run_job
from dneuro.jobs.planning import JobPlan, plan_job, too_little_room
from dneuro.jobs.pools import SizesOf
from dneuro.jobs.reporting import report_folder
from dneuro.spec.profile import ProfileSpec
from dneuro.spec.series import AnyJob, SeriesSpec
from dneuro.spec.steps import ReportStep
from dneuro.store.files import Location, locate, put, remove
from dneuro.store.opening import open_store


@dataclass(frozen=True)
class MembersResult(Mapping[str, JobResult]):
    """What came of a job over several networks or checkpoints: a mapping from member to its result.

    Parameters
    ----------
    results : dict of JobResult
        By member.
    report : Path or RemotePath, or None
        The page that links the members' reports and shows their numbers side by side.
    seconds : float
        Time it took.
    """

    results: dict[str, JobResult]
    report: Location | None
    seconds: float

    def __getitem__(self, member: str) -> JobResult:
        return self.results[member]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def stores(self) -> dict[str, Location]:
        """The store of each member."""
        return {member: result.store for member, result in self.results.items()}


@dataclass(frozen=True)
class MembersPlan:
    """The plans of all members of a job.

    Parameters
    ----------
    series : SeriesSpec
        The job.
    members : dict of JobPlan
        By member.
    notes : list of str
        What there is to say of all of them together.
    """

    series: SeriesSpec
    members: dict[str, JobPlan]
    notes: list[str] = field(default_factory=list)

    @property
    def units(self) -> int:
        """Units of all extractions together."""
        return sum(plan.units for plan in self.members.values())

    @property
    def done(self) -> int:
        """Units that are done already."""
        return sum(plan.done for plan in self.members.values())

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk, uncompressed, of all members together."""
        return sum(plan.disk_bytes for plan in self.members.values())

    @property
    def worker_bytes(self) -> int:
        """Peak memory of one worker process: members run one after the other."""
        return max(plan.worker_bytes for plan in self.members.values())

    def forecasts(self, profile: ProfileSpec, images: int) -> dict[str, Forecast]:
        """Try each member on a few of the images; see `dneuro.jobs.calibration.forecast`."""
        return {member: forecast(plan, profile, images) for member, plan in self.members.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a plain dictionary."""
        return {
            "job": self.series.name,
            "members": {member: plan.to_dict() for member, plan in self.members.items()},
            "notes": self.notes,
            "disk_bytes": self.disk_bytes,
            "worker_bytes": self.worker_bytes,
        }


AnyPlan = JobPlan | MembersPlan
"""The plan of a job about one network, or about several."""


def plan_any(job: AnyJob, where: Sizes | SizesOf) -> AnyPlan:
    """Check a job in full, whether it has members or not, and return its plan; as `dneuro.jobs.planning.plan_job`."""
    return plan_members(job, where) if isinstance(job, SeriesSpec) else plan_job(job, where)


def plan_members(series: SeriesSpec, where: Sizes | SizesOf) -> MembersPlan:
    """Check all members in full and return their plans; the images are listed once. Starts nothing, writes nothing.

    Raises
    ------
    DneuroError
        As `dneuro.jobs.planning.plan_job`; the message names the member.
    """
    plans: dict[str, JobPlan] = {}
    source: ImageSource | None = None
    for member, job in series.members.items():
        with _naming(member):
            plans[member] = plan_job(job, where, source)
        source = plans[member].study.source
    told = too_little_room(locate(series.store), sum(plan.left_bytes for plan in plans.values()))
    if told:
        events.emit("note", "", told)
    return MembersPlan(series, plans, [told] if told else [])


def run_any(plan: AnyPlan, client: Any, **settings: Any) -> JobResult | MembersResult:
    """Run a job that was planned, whether it has members or not; as `dneuro.jobs.driver.run_job`."""
    if isinstance(plan, MembersPlan):
        return run_members(plan, client, **settings)
    return run_job(plan, client, **settings)


def run_members(job: SeriesSpec | MembersPlan, client: Any = None, **settings: Any) -> MembersResult:
    """Run a job for each of its members; run it again to resume it.

    All members are checked before the first one is started. Events of their steps name the member.

    Parameters
    ----------
    job : SeriesSpec or MembersPlan
        What to compute, or the plans of it.
    client : distributed.Client, Machines or Executor, optional
        Where; the default is the active dask client, else threads.
    **settings
        As `dneuro.jobs.driver.run_job` takes them.

    Raises
    ------
    DneuroError
        Of the kind that says what went wrong, naming the member; what was done stays done.
    PartialError
        If some units failed again and again; the other members are done.
    """
    began = time.perf_counter()
    plan = job if isinstance(job, MembersPlan) else plan_members(job, get_executor(client))
    results: dict[str, JobResult] = {}
    failed: list[PartialError] = []
    for number, (member, one) in enumerate(plan.members.items(), 1):
        events.emit("note", "", f"{member}, {number} of {len(plan.members)}")
        try:
            with _naming(member), events.of_member(member):
                results[member] = run_job(one, client, **settings)
        except PartialError as error:
            failed.append(error)
    if failed:
        raise failed[0]
    index = _compare(plan.series, results) if any(isinstance(s, ReportStep) for s in plan.series.steps) else None
    return MembersResult(results, index, time.perf_counter() - began)


def _compare(series: SeriesSpec, results: Mapping[str, JobResult]) -> Location:
    """Write the page over all members, beside their reports."""
    from dneuro.report.series import write_series

    place = report_folder(series.store)
    trees, links = {}, {}
    for member, result in results.items():
        opened = open_store(result.store)
        opened.tree.attrs["dneuro"] = {**opened.attrs, "store": str(result.store)}
        trees[member] = opened.tree
        if result.report is not None:
            links[member] = f"../{report_folder(result.store).name}/index.html"
    if isinstance(place, Path):
        return write_series(series.name, trees, links, place)
    with tempfile.TemporaryDirectory(prefix="dneuro-") as folder:
        made = Path(folder) / "report"
        write_series(series.name, trees, links, made)
        remove(place)
        put(made, place, last="index.html")
    return place / "index.html"


@contextmanager
def _naming(member: str) -> Iterator[None]:
    """Have an error name the member."""
    try:
        yield
    except DneuroError as error:
        error.message = f"{member}: {error.message}"
        raise
