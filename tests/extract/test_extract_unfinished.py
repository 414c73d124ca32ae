"""A store that is not finished: what is not extracted yet is never taken for activations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import zarr

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError, NonFiniteError
from dneuro.extract.task import extract_unit
from dneuro.extract.work import ExtractWork
from dneuro.jobs.driver import run_job
from dneuro.jobs.exporting import export
from dneuro.jobs.reporting import report
from dneuro.spec import JobSpec
from dneuro.store.layout import ArrayPlan
from dneuro.store.units import NOT_YET

MakeJob = Callable[..., JobSpec]
Begin = Callable[..., ExtractWork]
KEPT = {"relu1": {"keep": "full"}, "relu2": {"keep": "max"}, "pool2": {"keep": "mean"}, "fc": {"keep": "full"}}


@pytest.fixture
def job(make_job: MakeJob, begin: Begin) -> JobSpec:
    """A job over 40 images that ended after the second of its three units, which has images 16 to 31."""
    job = make_job(layers=KEPT)
    work = begin(job)
    extract_unit(work, 1, work.missing(1))
    return job


def test_unfinished__images_are_nan_and_take_no_part(job: JobSpec) -> None:
    store = dn.open(job.store)
    there = np.isin(np.arange(40), np.arange(16, 32))
    np.testing.assert_array_equal(store.images["status"], np.where(there, 0, NOT_YET))
    np.testing.assert_array_equal(store.not_extracted, np.flatnonzero(~there))
    assert store.masked == {}
    assert "40 images, 24 not extracted yet>" in repr(store)
    assert (store.images["prediction"].values[~there] == -1).all()
    for layer, array in store.items():
        rows = np.isnan(array.values.reshape(40, -1))
        np.testing.assert_array_equal(rows.all(axis=1), ~there, err_msg=layer)
        assert not rows[there].any()
        how = {"pool": "mean"} if layer == "pool2" else {}
        found = dn.moments(array, **how)
        np.testing.assert_array_equal(found["count"], 16)
        part = array[there].drop_vars("status").compute()
        np.testing.assert_allclose(found["mean"], dn.moments(part, **how)["mean"], rtol=1e-12)
    assert dn.select(store["fc"]).attrs["selection"]["images"] == 16
    with pytest.raises(ArrayError, match="the selection is empty: of 16 images 1 images named leaves 0"):
        dn.select(store["fc"], images=[3])


def test_unfinished__report_and_export_say_so(job: JobSpec) -> None:
    page = report(job.store, index=False).read_text(encoding="utf-8")
    assert "<dt>Images not extracted yet</dt><dd>24</dd>" in page
    assert 'id="masked"' not in page
    seen: list[events.Event] = []
    with events.listening(seen.append):
        export(job.store, figures=False)
    (warned,) = (event.message for event in seen if event.kind == "warning")
    assert warned.startswith("24 of 40 images are not extracted yet")


def test_unfinished__nothing_at_all_is_refused(make_job: MakeJob, begin: Begin) -> None:
    job = make_job(layers=KEPT)
    begin(job)
    store = dn.open(job.store)
    with pytest.raises(ArrayError, match="none of the 40 images is extracted yet and could be read"):
        dn.moments(store["fc"])
    with pytest.raises(ArrayError, match="none is extracted yet and could be read"):
        dn.select(store["fc"])


def test_unfinished__layer_that_is_being_added_is_refused(
    make_job: MakeJob, begin: Begin, threads: ThreadExecutor
) -> None:
    run_job(make_job(layers=["fc"]), threads)
    job = make_job(layers=["fc", "relu1"])
    work = begin(job)
    extract_unit(work, 0, work.missing(0))
    store = dn.open(job.store)
    assert not len(store.not_extracted)
    np.testing.assert_array_equal(dn.moments(store["fc"])["count"], 40)
    with pytest.raises(NonFiniteError, match=r"relu1: image 16, .* is nan") as caught:
        dn.moments(store["relu1"], per="neuron")
    assert "dneuro resume" in str(caught.value.hint)


def test_older_store__that_began_with_zeros_grows(
    make_job: MakeJob, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(ArrayPlan, "blank", property(lambda plan: False if plan.dtype == "bool" else 0))
        before = run_job(make_job(layers=["fc"]), threads).store
    assert zarr.open_array(before, path="layers/fc/activation", mode="r").fill_value == 0
    result = run_job(make_job(layers=KEPT), threads)
    assert dn.verify(result.store).findings == []
    store, whole = dn.open(result.store), dn.open(run_job(make_job(layers=KEPT, store="whole.zarr"), threads).store)
    assert "not extracted" not in repr(store)
    for layer, array in whole.items():
        np.testing.assert_array_equal(store[layer], array)
