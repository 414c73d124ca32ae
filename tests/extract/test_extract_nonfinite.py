"""NaN and infinity among the activations or in the output: an error that says the way out, or the image is masked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dneuro as dn
from dneuro import events
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import NonFiniteError
from dneuro.jobs.driver import run_job
from dneuro.spec import JobSpec
from dneuro.store.units import Unit, units_folder

BAD = [17, 18, 35]
FINE = np.setdiff1d(np.arange(40), BAD)
ALL = {"conv": {"keep": "full"}, "spoil": {"keep": "max"}, "fc": {"keep": "full"}}

CODE = """
import torch
from torch import nn

class Spoil(nn.Module):
    def __init__(self):
        super().__init__()
        place = torch.zeros((1, 4, 10, 10), dtype=torch.bool)
        place[0, 1, 2, 3] = True
        self.register_buffer("place", place)
    def forward(self, x):
        largest = x.amax((1, 2, 3), keepdim=True) + 0 * x
        return torch.where((largest > 0.99) & self.place, torch.full_like(x, VALUE), x)

class Network(nn.Module):
    preprocessing = {"color": "grey"}
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.spoil = Spoil()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.fc = nn.Linear(4, 10)
        with torch.no_grad():  # the first channel is the picture, the others are less than 1
            self.conv.weight *= 0.1
            self.conv.weight[0] = 0
            self.conv.weight[0, 0, 1, 1] = 1
            self.conv.bias *= 0
    def forward(self, x):
        return self.fc(self.flat(self.pool(self.spoil(self.conv(x)))))

def make():
    return Network()
"""

LAST = "return self.fc(self.flat(self.pool(self.spoil(self.conv(x)))))"
AT_THE_END = CODE.replace(LAST, """out = self.fc(self.flat(self.pool(self.conv(x))))
        return torch.where(x[:, 0, 1, 1, None] > 0.99, torch.full_like(out, VALUE), out)""")
"""The same network, which spoils nothing but its output."""

MakeJob = Callable[..., JobSpec]


@pytest.fixture
def spoilt(tmp_path: Path, make_job: MakeJob) -> MakeJob:
    """Return ``spoilt(layers, *steps, value="nan", code=CODE, **settings)``: a job whose network spoils the `BAD`."""
    pictures = np.random.default_rng(2).integers(0, 250, (40, 12, 12), np.uint8)
    pictures[BAD, 1, 1] = 255
    np.savez(tmp_path / "pictures.npz", images=pictures, labels=np.arange(40) % 10)

    def make(layers: object, *steps: object, value: str = "nan", code: str = CODE, **settings: object) -> JobSpec:
        file = tmp_path / f"network{value}.py"
        file.write_text(code.replace("VALUE", f'float("{value}")'))
        images = {"source": "array", "root": str(tmp_path / "pictures.npz")}
        return make_job(
            *steps, images=images, network={"name": f"python:{file}:make"}, layers=layers, images_per_unit=16, batch=4,
            **settings,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(("keep", "neuron"), [("full", r"\(1, 2, 3\)"), ("max", r"\(1,\)"), ("stats", r"\(1,\)")])
def test_nonfinite__ends_the_extraction_with_the_way_out(
    spoilt: MakeJob, threads: ThreadExecutor, value: str, keep: str, neuron: str
) -> None:
    with pytest.raises(NonFiniteError, match=rf"spoil: image (17|18|35), neuron {neuron} is {value} ") as caught:
        run_job(spoilt({"spoil": {"keep": keep}}, value=value), threads)
    assert "on_nonfinite: mask" in str(caught.value.hint)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masked__in_all_layers_and_out_of_every_statistic(
    spoilt: MakeJob, threads: ThreadExecutor, value: str, dtype: str
) -> None:
    seen: list[events.Event] = []
    with events.listening(seen.append):
        result = run_job(spoilt(ALL, value=value, dtype=dtype, on_nonfinite="mask"), threads)
    store = dn.open(result.store)
    np.testing.assert_array_equal(np.flatnonzero(store.images["status"].values == 2), BAD)
    assert (store.images["status"].values[FINE] == 0).all()
    for layer in ALL:
        rows = np.isnan(store[layer].values.reshape(40, -1))
        assert rows[BAD].all()
        assert not rows[FINE].any()
        np.testing.assert_array_equal(store.statistics(layer)["count"], 37)
        assert not np.isin(store.statistics(layer)["top_image"], BAD).any()
    conv = store["conv"].values[FINE].max(axis=(2, 3)).astype("f8")
    np.testing.assert_allclose(store.statistics("conv")["mean"], conv.mean(axis=0), rtol=1e-12)
    assert (store.images["prediction"].values[BAD] == -1).all()
    assert (store.images["prediction"].values[FINE] >= 0).all()
    assert (store.images["checksum"].values != 0).all(), "the images could be read"
    assert store.tree["pictures/picture"].values[BAD].any(axis=(1, 2, 3)).all()
    neuron = "(1,)" if dtype == "float32" else "(1, 2, 3)"
    assert store.masked == dict.fromkeys(BAD, f"spoil, neuron {neuron} is {value}")
    warned = [event.message for event in seen if event.kind == "warning"]
    assert len(warned) == 3
    assert all("spoil, neuron" in text for text in warned)
    verified = dn.verify(result.store)
    assert verified.ok
    assert list(verified.to_dict()["masked"].values()) == [f"spoil, neuron {neuron} is {value}"] * 3


def test_masked__rows_do_not_move_the_others(spoilt: MakeJob, threads: ThreadExecutor) -> None:
    whole = dn.open(run_job(spoilt(["conv"], store="whole.zarr", predictions=False), threads).store)["conv"].values
    some = dn.open(run_job(spoilt(["conv", "spoil"], on_nonfinite="mask"), threads).store)
    np.testing.assert_array_equal(some["conv"].values[FINE], whole[FINE])
    np.testing.assert_array_equal(some["spoil"].values[FINE], whole[FINE])


def test_mask__goes_on_where_the_extraction_had_ended(spoilt: MakeJob) -> None:
    one = ThreadExecutor(1)
    with pytest.raises(NonFiniteError):
        run_job(spoilt(ALL), one)
    result = run_job(spoilt(ALL, on_nonfinite="mask"), one)
    assert result.outcome.done_before == 1, "the first unit has no such image"
    assert sorted(dn.open(result.store).masked) == BAD
    assert run_job(spoilt(ALL), one).outcome.done_before == 3


def test_mask__holds_for_layers_that_are_added_later(spoilt: MakeJob, threads: ThreadExecutor) -> None:
    run_job(spoilt(["spoil"], on_nonfinite="mask"), threads)
    store = dn.open(run_job(spoilt(["spoil", "conv"]), threads).store)
    rows = np.isnan(store["conv"].values.reshape(40, -1)).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(rows), BAD)
    np.testing.assert_array_equal(store.statistics("conv")["count"], 37)


def test_mask__of_an_image_that_other_layers_have_is_refused(spoilt: MakeJob, threads: ThreadExecutor) -> None:
    first = run_job(spoilt(["conv"], predictions=False), threads)
    with pytest.raises(NonFiniteError, match=r"spoil, neuron \(1, 2, 3\) is nan, and .* in other layers") as caught:
        run_job(spoilt(["conv", "spoil"], on_nonfinite="mask", predictions=False), threads)
    assert "another store" in str(caught.value.hint)
    assert np.isfinite(dn.open(first.store)["conv"].values).all()


def test_mask__is_known_to_what_is_made_again(spoilt: MakeJob, threads: ThreadExecutor) -> None:
    job = spoilt(ALL, on_nonfinite="mask")
    run_job(job, threads)
    for part in ("images", "conv"):
        Unit(units_folder(job.store) / "extract" / part, "00001").withdraw()
        again = run_job(job, threads)
        assert again.outcome.done_before == 2
        store = dn.open(again.store)
        np.testing.assert_array_equal(np.flatnonzero(store.images["status"].values), BAD)
        assert np.isnan(store["conv"].values[BAD]).all()
        assert sorted(store.masked) == BAD


@pytest.mark.parametrize("gone", ["a unit", "pictures"])
def test_mask__is_known_to_entries_that_a_job_of_other_layers_makes_again(
    spoilt: MakeJob, threads: ThreadExecutor, gone: str
) -> None:
    first = run_job(spoilt(["spoil"], on_nonfinite="mask"), threads)
    if gone == "a unit":
        Unit(units_folder(first.store) / "extract" / "images", "00001").withdraw()
    else:
        shutil.rmtree(Path(str(first.store)) / "pictures")
    store = dn.open(run_job(spoilt(["conv"]), threads).store)
    np.testing.assert_array_equal(np.flatnonzero(store.images["status"].values == 2), BAD)
    for layer in ("spoil", "conv"):
        rows = np.isnan(store[layer].values.reshape(40, -1)).all(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(rows), BAD, err_msg=layer)
        assert dn.moments(store[layer])["count"].values.max() == 37
    assert sorted(store.masked) == BAD
    assert dn.verify(first.store).ok


def test_mask__of_an_image_that_another_jobs_layers_have_is_refused(spoilt: MakeJob, threads: ThreadExecutor) -> None:
    first = run_job(spoilt(["conv"], predictions=False), threads)
    for number in range(3):
        Unit(units_folder(first.store) / "extract" / "images", f"{number:05d}").withdraw()
    with pytest.raises(NonFiniteError, match=r"spoil, neuron \(1, 2, 3\) is nan, and .* in other layers"):
        run_job(spoilt(["spoil"], on_nonfinite="mask", predictions=False), threads)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_output__that_is_not_finite_names_no_class(spoilt: MakeJob, threads: ThreadExecutor, value: str) -> None:
    said = r"the network's largest output is NaN or infinite: image (17|35), "
    with pytest.raises(NonFiniteError, match=said) as caught:
        run_job(spoilt(["conv", "fc"], value=value, code=AT_THE_END), threads)
    assert "on_nonfinite: mask" in str(caught.value.hint)
    assert "with another store: where this one has them in other layers" in str(caught.value.hint)
    result = run_job(spoilt(["conv", "fc"], value=value, code=AT_THE_END, on_nonfinite="mask"), threads)
    store = dn.open(result.store)
    np.testing.assert_array_equal(np.flatnonzero(store.images["status"].values == 2), BAD)
    np.testing.assert_array_equal(np.flatnonzero(store.images["prediction"].values < 0), BAD)
    assert not store.images["correct"].values[BAD].any()
    assert store.masked == dict.fromkeys(BAD, "the network's largest output is NaN or infinite")
    for layer, array in store.items():
        rows = np.isnan(array.values.reshape(40, -1)).all(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(rows), BAD, err_msg=layer)
        np.testing.assert_array_equal(store.statistics(layer)["count"], 37)
    assert dn.verify(result.store).ok


def test_output__masks_hold_for_layers_that_are_added_later(spoilt: MakeJob, threads: ThreadExecutor) -> None:
    run_job(spoilt(["fc"], code=AT_THE_END, on_nonfinite="mask"), threads)
    store = dn.open(run_job(spoilt(["fc", "conv"], code=AT_THE_END), threads).store)
    rows = np.isnan(store["conv"].values.reshape(40, -1)).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(rows), BAD)


def test_output__nobody_asks_for_may_be_anything(spoilt: MakeJob, threads: ThreadExecutor) -> None:
    store = dn.open(run_job(spoilt(["fc"], code=AT_THE_END, predictions=False), threads).store)
    assert np.isfinite(store["fc"].values).all()
    assert store.masked == {}
