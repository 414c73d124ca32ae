"""Jobs with drivers of their own: submitted, watched, cancelled, resumed, tried again, cleared away."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import dneuro as dn
from dneuro.cluster import DriverRef, processes
from dneuro.errors import BusyError, CancelledError, FingerprintError, PartialError, UsageError
from dneuro.jobs import ending, submitting, watching
from dneuro.jobs.folder import JobFolder, find, folders
from dneuro.jobs.handle import Job
from dneuro.jobs.lease import Holder
from dneuro.jobs.watching import status
from dneuro.spec import JobSpec, PoolSpec, ProfileSpec
from dneuro.store.units import units_folder

MakeJob = Callable[..., JobSpec]
UNITS = 24
SETTINGS: dict[str, Any] = {"images": {"source": "digits", "sample": 16 * UNITS}, "batch": 1}


@pytest.fixture
def profile(tmp_path: Path) -> ProfileSpec:
    pool = PoolSpec(workers=1, memory="3GiB")
    return ProfileSpec(backend="local", state=str(tmp_path / "state"), pools={"extract": pool})


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """End the drivers that a failing test left."""
    yield
    for folder in folders(tmp_path / "state"):
        kept = folder.read("driver")
        if kept and kept["backend"] == "local" and int(kept["id"]) != os.getpid():
            processes.stop(DriverRef.from_dict(kept), 0)


def family(job: Job) -> list[psutil.Process]:
    """The driver of a job and its workers."""
    driver = psutil.Process(int(job._folder.read("driver")["id"]))
    return [driver, *driver.children(recursive=True)]


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in time"
        time.sleep(0.05)


def done_units(job: JobSpec) -> set[str]:
    return {path.name for path in (units_folder(job.store) / "extract" / "fc").glob("*.done")}


def test_submitted_job__runs_by_itself_and_can_be_watched(make_job: MakeJob, profile: ProfileSpec) -> None:
    spec = make_job({"moments": None}, **SETTINGS)
    job = dn.submit(spec, profile)
    assert [one.id for one in dn.jobs(cluster=profile)] == [job.id]
    assert dn.jobs("small", cluster=profile)[0].id == job.id
    with pytest.raises(BusyError, match="is at work on"):
        dn.submit(spec, profile)
    seen: list[watching.JobStatus] = []
    store = job.result  # waits itself; here the waiting is looked at
    end = job.wait(120, seen.append, period=0.1)
    assert end.state == "done", (job._folder.path / "driver.log").read_text()
    assert {one.state for one in seen} <= {"pending", "starting", "running"}
    assert "running" in {one.state for one in seen}
    assert all(one.exit_code is None for one in seen)
    assert store()["fc"].sizes["image"] == 16 * UNITS
    found = end.to_dict()
    assert (found["exit_code"], found["attempt"], found["error"]) == (0, 1, None)
    assert [(step["step"], step["state"]) for step in found["steps"]] == [
        ("extract", "done"), ("moments", "done")]  # fmt: skip
    assert found["units"] == {"total": UNITS, "done": UNITS, "failed": 0, "masked": 0}
    assert found["peak_memory"] > 100 * 2**20
    kinds = [(entry["kind"], entry["step"]) for entry in job.logs(follow=True)]
    assert kinds.count(("finished", "extract")) == 1
    with pytest.raises(UsageError, match="is done"):
        job.resume()


def test_cancelled_job__leaves_no_process_and_resumes(make_job: MakeJob, profile: ProfileSpec) -> None:
    spec = make_job(**SETTINGS)
    job = dn.submit(spec, profile)
    until(lambda: len(done_units(spec)) >= 3)
    started = family(job)
    assert len(started) >= 2
    now = job.cancel()
    assert (now.state, now.exit_code, now.advice) == ("cancelled", 5, f"dneuro resume {job.id}")
    until(lambda: not any(one.is_running() and one.status() != "zombie" for one in started))
    with pytest.raises(CancelledError):
        job.result()
    assert job.cancel().state == "cancelled", "again is no error"
    before = done_units(spec)
    assert 3 <= len(before) < UNITS
    job.resume()
    assert job.wait(120).state == "done"
    assert job.status().found["attempt"] == 2
    first = next(entry for entry in job.logs() if (entry["kind"], entry["step"]) == ("started", "extract"))
    assert first["data"]["units"]["done"] >= len(before)


def test_job__whose_driver_was_killed_or_told_to_end_says_so(
    make_job: MakeJob, profile: ProfileSpec
) -> None:
    spec = make_job(**SETTINGS)
    job = dn.submit(spec, profile)
    until(lambda: len(done_units(spec)) >= 2)
    started = family(job)
    os.kill(started[0].pid, signal.SIGKILL)
    until(lambda: job.status().state == "lost", 10)
    now = job.status()
    assert "has died" in now.found["error"]["message"]
    assert (now.advice, now.exit_code) == (f"dneuro resume {job.id}", None)
    assert job._folder.read("status")["state"] == "running", "what it wrote itself"
    until(lambda: not any(one.is_running() and one.status() != "zombie" for one in started), 30)
    assert job.cancel().state == "cancelled"
    assert job.status().exit_code == 5

    before = len(done_units(spec))
    job.resume()
    until(lambda: len(done_units(spec)) > before)
    os.kill(int(job._folder.read("driver")["id"]), signal.SIGTERM)  # by its machine: nobody cancelled it
    until(lambda: job.status().is_over, 30)
    now = job.status()
    assert (now.state, now.advice) == ("interrupted", f"dneuro resume {job.id}")
    assert now.found["error"]["message"].startswith("its driver was told to stop, and nobody has cancelled the job")
    assert "stopped by the user" not in str(list(job.logs()))
    assert job._folder.read("status")["exit_code"] == 143


# ── without processes ────────────────────────────────────────────────────────────────────────────────────────────────


class NoDriver:
    """A backend that starts nothing, and says of a driver what it is told to say."""

    def __init__(self, state: str = "gone") -> None:
        self.state, self.started, self.cleaned, self.asked, self.why = state, 0, 0, 0, ""

    def sizes(self, pool: str) -> Any:
        from dneuro.cluster import WorkerSizes

        return WorkerSizes(2, 1, 1, 4 * 2**30)

    def check_files(self, files: Any) -> None:
        pass

    def start_driver(self, folder: Any, command: Any, name: str) -> DriverRef:
        self.started += 1
        return DriverRef("queue", str(self.started))

    def driver_state(self, ref: DriverRef) -> str:
        self.asked += 1
        return self.state

    def why_waiting(self, ref: DriverRef) -> str:
        self.asked += 1
        return self.why

    def stop_driver(self, ref: DriverRef, *, grace: float) -> None:
        self.state = "gone"

    def clean_up(self, folder: Any) -> list[str]:
        self.cleaned += 1
        return ["worker 7"]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> NoDriver:
    backend = NoDriver()
    for module in (submitting, watching, ending):
        monkeypatch.setattr(module, "backend_of", lambda profile: backend)
    return backend


def test_job__that_waits_in_a_queue_is_pending_until_its_driver_is_gone(
    make_job: MakeJob, profile: ProfileSpec, queue: NoDriver
) -> None:
    queue.state = "pending"
    job = dn.submit(make_job(), profile)
    assert job.status().state == "pending"
    assert job.status().found["note"] == "its driver waits to be started"
    queue.why = "job 1 PENDING (JobHeldUser)"
    assert job.status().found["note"] == "its driver waits to be started: job 1 PENDING (JobHeldUser)"
    with pytest.raises(BusyError, match="waits to be started"):
        job.resume()
    queue.state = "gone"
    now = job.status()
    assert now.state == "lost"
    assert "ended before it began" in now.found["error"]["message"]
    job.resume()
    assert queue.started == 2
    queue.state = "running"
    ended = ending.cancel(job._folder)
    assert (ended.status.state, ended.status.exit_code, ended.ended) == ("cancelled", 5, ["worker 7"])
    assert queue.state == "gone"


def test_driver__that_a_queue_starts_after_the_job_was_cancelled_leaves(
    make_job: MakeJob, profile: ProfileSpec, queue: NoDriver
) -> None:
    from dneuro.jobs.drive import drive

    job = dn.submit(make_job(), profile)
    job.cancel()
    job._folder.remember("cancel", {"time": 0})
    with pytest.raises(CancelledError):
        drive(str(job._folder.path))


ALIVE, DEAD, SILENT = ((True, 1.0), (False, 1.0), (None, 40.0))


@pytest.mark.parametrize(
    ("said", "lease", "driver", "expected"),
    [
        ("running", ALIVE, "running", "running"),
        ("running", ALIVE, "unknown", "running"),
        ("running", DEAD, "gone", "lost"),
        ("running", DEAD, "unknown", "lost"),
        ("running", DEAD, "pending", "pending"),
        ("running", DEAD, "running", "pending"),
        ("running", DEAD, "unanswered", "pending"),
        ("running", SILENT, "unknown", "running"),
        ("running", SILENT, "unanswered", "running"),
        ("running", SILENT, "running", "running"),
        ("running", SILENT, "gone", "lost"),
        ("running", SILENT, "ending", "running"),
        ("running", DEAD, "ending", "pending"),
        ("interrupted", DEAD, "ending", "pending"),
        ("starting", DEAD, "gone", "lost"),
        ("interrupted", DEAD, "gone", "interrupted"),
        ("interrupted", DEAD, "pending", "pending"),
        ("interrupted", DEAD, "unknown", "interrupted"),
        ("interrupted", DEAD, "unanswered", "pending"),
        ("interrupted", SILENT, "running", "pending"),
        ("interrupted", ALIVE, "running", "pending"),
    ],
)
def test_truth__is_not_what_a_dead_driver_said(
    said: str, lease: tuple[bool | None, float], driver: Any, expected: str
) -> None:
    last = Holder(2, {"pid": 7, "host": "there"}, lease[1], lease[0])
    unanswered = driver == "unanswered"  # by a queue, which alone could tell
    asked = "unknown" if unanswered else driver
    state, _ = watching._truth(said, last, {"attempt": 2}, asked, {"time": 0}, unanswered=unanswered)
    assert state == expected


def leave_lease(job: Job, *, silent: float = 0.0, **content: Any) -> None:
    """Leave the lease of a driver on another machine, and the state that it has written."""
    place = job._folder.attempt(1) / "lease.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    lease = {"host": "elsewhere", "pid": 7, "started": 1.0, "boot": 1.0, "ended": None, **content}
    place.write_text(json.dumps(lease))
    os.utime(place, (time.time() - silent,) * 2)
    job._folder.remember("status", {"state": "running", "attempt": 1})


@pytest.mark.parametrize("said", ["pending", "interrupted", "running"])
def test_job__is_not_over_while_its_queue_does_not_answer(
    make_job: MakeJob, profile: ProfileSpec, queue: NoDriver, said: str
) -> None:
    job = dn.submit(make_job(), profile)
    job._folder.remember("submitted", {**job._folder.read("submitted"), "time": 1.0})
    if said != "pending":
        leave_lease(job, silent=3600, ended=1.0 if said == "interrupted" else None)
        job._folder.remember("status", {"state": said, "attempt": 1, "exit_code": 143})
    queue.state = "unknown"
    now = job.status()
    assert (now.state, now.is_over, now.exit_code) == ("pending", False, None)
    heard = "" if said == "pending" else ", process 7 on elsewhere, silent for 1 h 0 min"
    assert now.found["note"] == f"nobody answers for its driver{heard}"
    queue.state = "gone"
    assert job.status().state == {"interrupted": "interrupted"}.get(said, "lost")
    queue.state = "unknown"
    assert job.cancel().state == "cancelled"
    job.resume()
    assert queue.started == 2


def test_job__of_another_user_is_lost_where_its_queue_says_nothing_of_it(
    make_job: MakeJob, profile: ProfileSpec, queue: NoDriver
) -> None:
    """It may have forgotten the driver, or keep it from others: it never says more."""
    job = dn.submit(make_job(), profile)
    driver = job._folder.read("driver")
    job._folder.remember("driver", {**driver, "details": {**driver["details"], "user": "somebody-else"}})
    queue.state = "unknown"
    assert job.status().state == "pending", "it may wait to be started"
    leave_lease(job, silent=3600)
    assert job.status().state == "lost"
    leave_lease(job, silent=3600, ended=1.0, driver=DriverRef("queue", "0").to_dict())  # of an attempt before
    job._folder.remember("status", {"state": "pending"})
    job._folder.remember("submitted", {**job._folder.read("submitted"), "time": 1.0})
    assert job.status().state == "pending", "it may wait to be started again"


def test_job__whose_process_nobody_can_tell_of_is_lost_once_it_should_have_begun(
    make_job: MakeJob, profile: ProfileSpec, queue: NoDriver
) -> None:
    job = dn.submit(make_job(), profile)
    leave_lease(job, silent=3600, ended=1.0, driver=DriverRef("queue", "7").to_dict())  # before, on another backend
    job._folder.remember("status", {"state": "pending"})
    job._folder.remember("driver", DriverRef("address", "8", {"host": "elsewhere"}).to_dict())
    queue.state = "unknown"
    assert job.status().state == "pending"
    job._folder.remember("submitted", {**job._folder.read("submitted"), "time": 1.0})
    assert job.status().state == "lost"


def test_wait__asks_a_queue_now_and_then_and_never_about_a_driver_that_is_heard_of(
    make_job: MakeJob, profile: ProfileSpec, queue: NoDriver
) -> None:
    job = dn.submit(make_job(), profile)

    def asked_in(looks: int) -> int:
        before, seen = queue.asked, list[watching.JobStatus]()

        def look(now: watching.JobStatus) -> None:
            seen.append(now)
            assert len(seen) < looks, "enough"

        with pytest.raises(AssertionError, match="enough"):
            job.wait(progress=look, period=0)
        assert {now.state for now in seen} == {"pending" if queue.state == "pending" else "running"}
        return queue.asked - before

    queue.state = "pending"
    assert asked_in(5) == 2, "where it is, and why it waits"
    queue.state = "running"
    leave_lease(job)
    assert asked_in(5) == 0
    leave_lease(job, silent=40)
    assert asked_in(5) == 1
    before = queue.asked
    job.status()
    assert queue.asked == before + 1, "who looks once wants to know"


def test_follow__asks_a_queue_now_and_then(
    make_job: MakeJob, profile: ProfileSpec, queue: NoDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = dn.submit(make_job(), profile)
    queue.state, before, looks = "pending", queue.asked, []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 5:
            job._folder.remember("status", {"state": "done", "exit_code": 0})

    monkeypatch.setattr(time, "sleep", sleep)
    assert list(job.logs(follow=True)) == []
    assert (len(looks), queue.asked - before) == (5, 2)


def test_resume__is_refused_while_nobody_knows_whether_the_driver_lives(
    make_job: MakeJob, profile: ProfileSpec, queue: NoDriver
) -> None:
    job = dn.submit(make_job(), profile)
    place = job._folder.attempt(1) / "lease.json"
    place.parent.mkdir(parents=True)
    lease = {"host": "elsewhere", "pid": 7, "started": 1.0, "boot": 1.0, "ended": None}
    place.write_text(json.dumps(lease))
    queue.state = "running"
    with pytest.raises(BusyError, match="process 7 on elsewhere is at work on job"):
        job.resume()
    queue.state = "unknown"
    with pytest.raises(BusyError, match="as far as one can tell from here; if it stays silent it counts as dead in 1"):
        job.resume()
    assert (queue.started, queue.cleaned) == (1, 0), "its machines are left alone"
    queue.state = "gone"  # by whoever started it: no waiting
    job.resume()
    assert job._folder.read("dead") == {"attempt": 1}


def test_resume__does_not_wait_for_the_node_of_a_driver_that_is_dead(
    make_job: MakeJob, profile: ProfileSpec, queue: NoDriver
) -> None:
    """Its queue may be at ending it for hours."""
    job = dn.submit(make_job(), profile)
    job._folder.remember("status", {"state": "running", "attempt": 1})
    place = job._folder.attempt(1) / "lease.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": 1.0, "boot": 1.0, "ended": None}))
    os.utime(place, (1, 1))
    queue.state = "ending"
    assert (job.status().state, job.status().found["note"]) == ("pending", "what is left of its driver is being ended")
    job.resume()
    assert (queue.started, queue.cleaned) == (2, 1)


def test_resume__of_a_job_whose_images_are_others_now_is_refused(
    make_job: MakeJob, make_photos: Callable[..., dict[str, Any]], profile: ProfileSpec, queue: NoDriver, threads: Any
) -> None:
    photos = make_photos(20)
    spec = make_job(**photos)
    dn.run(spec, client=threads)
    job = dn.submit(spec, profile)
    (Path(photos["images"]["root"]) / "cat" / "000.png").rename(Path(photos["images"]["root"]) / "cat" / "0.png")
    with pytest.raises(FingerprintError) as caught:
        job.resume()
    assert caught.value.exit_code == 64
    assert queue.started == 1


def test_submit__starts_nothing_that_cannot_be(make_job: MakeJob, profile: ProfileSpec, queue: NoDriver) -> None:
    spec = make_job({"svd": {"rank": 2, "layer": "fc", "workers": "huge"}})
    queue.sizes = ProfileSizes(profile)  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="no pool 'huge'"):
        dn.submit(spec, profile)
    assert queue.started == 0
    assert not Path(profile.state).exists()


class ProfileSizes:
    """Sizes that know the pools of a profile."""

    def __init__(self, profile: ProfileSpec) -> None:
        self.profile = profile

    def __call__(self, pool: str) -> Any:
        self.profile.group(pool)
        return NoDriver.sizes(NoDriver(), pool)


def test_folder__gives_back_what_was_submitted_whatever_its_texts_look_like(tmp_path: Path, make_job: MakeJob) -> None:
    spec = make_job({"svd": {"rank": 2, "layer": "fc", "name": "0o10"}}, name="1e5", store="2024-01-01.zarr")
    profile = ProfileSpec(backend="local", state=str(tmp_path))
    folder = JobFolder.of(tmp_path, spec)
    folder.write(spec, profile, {}, "submit")
    assert (folder.read_job(), folder.read_profile()) == (spec, profile)
    assert find("1e5", tmp_path) == folder


def test_find__takes_what_is_unique_and_names_what_is_near(tmp_path: Path, make_job: MakeJob) -> None:
    known = []
    for name in ("alexnet", "alexnet-small", "vgg"):
        spec = make_job(name=name)
        known.append(JobFolder.of(tmp_path, spec))
        known[-1].write(spec, None, {}, "submit")
    assert find("alexnet", tmp_path) == known[0], "the name itself, though another begins with it"
    assert find("alexnet-s", tmp_path) == known[1]
    assert find("v", tmp_path) == known[2]
    assert find(known[2].id, tmp_path) == known[2]
    assert find(str(known[2].path), tmp_path / "elsewhere") == known[2]
    with pytest.raises(UsageError, match="fits 2 jobs: alexnet"):
        find("alex", tmp_path)
    with pytest.raises(UsageError) as caught:
        find("alexnett", tmp_path)
    assert "did you mean 'alexnet" in str(caught.value.hint)
    with pytest.raises(UsageError, match="there is no job"):
        find("vgg", tmp_path / "elsewhere")


@pytest.mark.usefixtures("threads_as_machines")
def test_failed_units__stay_left_out_until_they_are_asked_for(
    make_job: MakeJob, profile: ProfileSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dneuro.extract import task
    from dneuro.jobs import drive

    honest, tried = task.batches, []

    def batches(work: Any, layers: Any, start: int, stop: int) -> Any:
        if start == 16:
            tried.append(start)
            raise ValueError("torn")
        return honest(work, layers, start, stop)

    monkeypatch.setattr(task, "batches", batches)
    spec = make_job({"moments": None})
    with pytest.raises(PartialError, match="1 of 3 units"):
        dn.run(spec, cluster=profile)
    (folder,) = folders(profile.state)
    found = status(folder)
    assert (found.state, found.exit_code, found.advice) == ("partial", 3, f"dneuro retry {folder.id} --failed")
    assert found.found["units"] == {"total": 3, "done": 2, "failed": 1, "masked": 0}
    assert len(tried) == 3
    with pytest.raises(PartialError, match="torn"):  # as a driver does that is started again
        drive.drive(str(folder.path))
    assert len(tried) == 3, "a driver that is started again does not try it again"

    started: list[Any] = []
    monkeypatch.setattr(submitting, "_start", lambda *args: started.append(args))
    assert submitting.retry(folder) == 1
    assert started
    monkeypatch.setattr(task, "batches", honest)
    drive.drive(str(folder.path))
    assert status(folder).state == "done"
    with pytest.raises(UsageError, match=r"no unit of job .* has failed for good"):
        submitting.retry(folder)


@pytest.mark.usefixtures("threads_as_machines")
def test_gc__removes_what_is_over_and_never_a_store(make_job: MakeJob, profile: ProfileSpec, tmp_path: Path) -> None:
    done, failed = make_job(store="a.zarr"), make_job(store="b.zarr", name="failed")
    dn.run(done, cluster=profile)
    with pytest.raises(UsageError):
        dn.run(make_job({"svd": {"rank": 10**6, "layer": "fc"}}, store="c.zarr"), cluster=profile)
    kept = JobFolder.of(profile.state, failed)
    kept.write(failed, profile, {}, "submit")
    kept.remember("status", {"state": "failed", "ended": time.time()})
    stray = units_folder(done.store) / "extract" / f".00000.done.x{dn.jobs.__name__}.partial"
    stray.write_text("half")
    before = sorted(path for path in tmp_path.rglob("*.zarr*/**/*") if path.is_file() and path != stray)
    found = ending.waste(list(folders(profile.state)))
    assert {one.path for one in found} == {stray, JobFolder.of(profile.state, done).path}
    assert ending.waste(list(folders(profile.state)), older=3600) == [one for one in found if one.what == "partial"]
    ending.clear(found)
    assert [folder.id for folder in folders(profile.state)] == [kept.id]
    assert sorted(path for path in tmp_path.rglob("*.zarr*/**/*") if path.is_file()) == before
