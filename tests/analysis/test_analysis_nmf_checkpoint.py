"""A factorisation that was stopped goes on from its last iteration, and from its own activations only."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_layers import coupled, labelled, parts, small_blocks

import dneuro as dn
from dneuro import events
from dneuro.engine import ThreadExecutor
from dneuro.errors import ArrayError, FingerprintError, StoreError, UsageError

EXECUTOR = ThreadExecutor(2)


@pytest.fixture(autouse=True)
def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


class StoppedError(Exception):
    """What a killed run looks like from within."""


def stop_after(iterations: int) -> Any:
    def listen(event: events.Event) -> None:
        if event.kind == "progress" and event.what == "iterations" and event.done == iterations:
            raise StoppedError

    return listen


@pytest.mark.parametrize("chunks", [(9, 24), (40, 3)])
def test_checkpoint__goes_on_from_the_last_iteration(
    chunks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.analysis.nonnegative.checkpoint.EVERY", 0.0)
    x, path = labelled(parts(), chunks), tmp_path / "state.npz"
    asked: dict[str, Any] = {"rank": 3, "max_iter": 8, "tol": 0, "client": EXECUTOR}
    with pytest.raises(StoppedError), events.listening(stop_after(5)):
        dn.nmf(x, checkpoint=path, **asked)
    found = dn.nmf(x, checkpoint=path, **asked)
    assert found.attrs["passes"] == 1 + 8 - 4, "of the fifth iteration nothing was kept, of four all; one read looks"
    straight = dn.nmf(x, **asked)
    np.testing.assert_allclose(found["loss"], straight["loss"], rtol=1e-12)
    np.testing.assert_allclose(found["neuron_weight"], straight["neuron_weight"], rtol=1e-9, atol=1e-12)
    longer = dn.nmf(x, checkpoint=path, **{**asked, "max_iter": 10})
    assert longer.attrs["passes"] == 1 + 2
    assert longer["loss"].sizes == {"iteration": 10}


@pytest.mark.parametrize("chunks", [(9, 24), (40, 3)])
@pytest.mark.parametrize("ended", ["max_iter", "tol"])
def test_checkpoint__that_is_finished_is_of_its_own_activations_only(chunks: Any, ended: str, tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    values = parts(dtype="f4")
    stop: dict[str, Any] = {"max_iter": 4, "tol": 0} if ended == "max_iter" else {"max_iter": 500, "tol": 1e-3}
    asked = {"rank": 3, "checkpoint": path, "client": EXECUTOR, **stop}
    first = dn.nmf(labelled(values, chunks), **asked)
    for other in (100 * parts(seed=1, dtype="f4"), 1e20 * values, values[::-1].copy(), values[:, ::-1].copy()):
        with pytest.raises(FingerprintError, match="not those that the kept state was made of"):
            dn.nmf(labelled(other.astype("f4"), chunks), **asked)
    for same in (chunks, (40, 24), (40, 5)):
        again = dn.nmf(labelled(values, same), **asked)
        assert again.attrs["passes"] == 1
        np.testing.assert_array_equal(again["neuron_weight"], first["neuron_weight"])
    if ended == "max_iter":
        fewer = dn.nmf(labelled(values, chunks), **{**asked, "max_iter": 2})
        assert fewer.attrs["iterations"] == 4, "no iteration is undone"


def test_checkpoint__is_of_its_own_images_only(tmp_path: Path) -> None:
    """Twins: the activations of the two classes are the same, the images are not."""
    half = parts(20)
    x = labelled(np.concatenate([half, half]), (9, 24), label=("image", np.repeat([0, 1], 20)))
    asked: dict[str, Any] = {"rank": 3, "max_iter": 3, "tol": 0, "checkpoint": tmp_path / "s.npz", "client": EXECUTOR}
    dn.nmf(dn.select(x, classes=[0]), **asked)
    with pytest.raises(FingerprintError, match="is not the state of this factorisation"):
        dn.nmf(dn.select(x, classes=[1]), **asked)


def test_checkpoint__that_is_not_whole_or_nowhere_says_so(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"rank": 2, "max_iter": 2, "tol": 0, "client": EXECUTOR}
    path = tmp_path / "state.npz"
    dn.nmf(labelled(parts()), checkpoint=path, **asked)
    with np.load(path) as file:
        kept = {name: file[name] for name in file.files if name != "neurons-0"}
    np.savez(path, **kept)
    with pytest.raises(FingerprintError, match="is not the state"):
        dn.nmf(labelled(parts()), checkpoint=path, **asked)
    below = tmp_path / "file"
    below.write_text("no folder")
    for wrong in (tmp_path, below / "state.npz"):
        with pytest.raises(StoreError, match="checkpoint=") as caught:
            dn.nmf(labelled(parts()), checkpoint=wrong, **asked)
        assert "state.npz" in str(caught.value.hint)
    for nothing in (5, "", True, "\0state.npz", "~nobody-is-called-so/state.npz"):
        with pytest.raises(ArrayError, match="checkpoint="):
            dn.nmf(labelled(parts()), checkpoint=nothing, **asked)  # type: ignore[arg-type]


def test_checkpoint__may_be_a_url_of_this_machine_or_of_a_store_of_objects(tmp_path: Path) -> None:
    place = tmp_path / "new folder" / "state.npz"
    asked: dict[str, Any] = {"rank": 2, "tol": 0, "client": EXECUTOR}
    for where in (place.as_uri(), f"file://localhost{place}", "memory://dneuro/state.npz"):
        first = dn.nmf(labelled(parts()), max_iter=2, checkpoint=where, **asked)
        again = dn.nmf(labelled(parts()), max_iter=2, checkpoint=where, **asked)
        assert again.attrs["passes"] == 1
        np.testing.assert_array_equal(again["neuron_weight"], first["neuron_weight"])
    assert place.is_file()
    with pytest.raises(UsageError, match="names the machine 'node7'") as caught:
        dn.nmf(labelled(parts()), checkpoint="file://node7/state.npz", **asked)
    assert caught.value.hint == "file:///state.npz"


def test_checkpoint__that_cannot_be_written_is_refused_before_anything_is_read(
    counted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, reads = counted(parts(), (9, 24))
    asked: dict[str, Any] = {"rank": 2, "max_iter": 2, "tol": 0, "client": EXECUTOR}
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="is a folder, a state is one file") as caught:
        dn.nmf(x, checkpoint=tmp_path, **asked)
    assert caught.value.hint == f"checkpoint={str(tmp_path / 'state.npz')!r}"
    with pytest.raises(StoreError, match="file is no folder") as caught:
        dn.nmf(x, checkpoint=tmp_path / "file" / "state.npz", **asked)
    assert "checkpoint='state.npz'" in str(caught.value.hint)
    little = type("Usage", (), {"free": 100})
    monkeypatch.setattr("dneuro.store.files.shutil.disk_usage", lambda _: little)
    with pytest.raises(StoreError, match=r"takes .*, its disk has 100 B free") as caught:
        dn.nmf(x, checkpoint=tmp_path / "state.npz", **asked)
    assert "another disk" in str(caught.value.hint)
    monkeypatch.setattr(Path, "touch", denied(errno.EACCES))
    with pytest.raises(StoreError, match="cannot be written: Permission denied") as caught:
        dn.nmf(x, checkpoint=tmp_path / "state.npz", **asked)
    assert "can be written to" in str(caught.value.hint)
    assert not reads
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_checkpoint__whose_disk_gets_full_says_that_the_state_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.npz"
    asked: dict[str, Any] = {"rank": 2, "tol": 0, "checkpoint": path, "client": EXECUTOR}
    dn.nmf(labelled(parts()), max_iter=2, **asked)
    with monkeypatch.context() as patch:
        patch.setattr("dneuro.store.states.np.savez", denied(errno.ENOSPC))
        with pytest.raises(StoreError, match="the disk is full; the state before stays") as caught:
            dn.nmf(labelled(parts()), max_iter=4, **asked)
    assert "checkpoint=… on another disk" in str(caught.value.hint)
    assert dn.nmf(labelled(parts()), max_iter=3, **asked).attrs["passes"] == 1 + 1
    assert [found.name for found in tmp_path.iterdir()] == ["state.npz"]


def denied(number: int) -> Any:
    """What the system says of a file."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_checkpoint__of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    dn.nmf(labelled(parts()), rank=3, max_iter=2, tol=0, checkpoint=path, client=EXECUTOR)
    with pytest.raises(FingerprintError, match="is not the state of this factorisation"):
        dn.nmf(labelled(parts()), rank=2, checkpoint=path, client=EXECUTOR)
    with pytest.raises(FingerprintError, match="their sums differ"):
        dn.nmf(labelled(parts(seed=1)), rank=3, max_iter=4, tol=0, checkpoint=path, client=EXECUTOR)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FingerprintError, match="is not the state"):
        dn.nmf(labelled(parts()), rank=3, checkpoint=path, client=EXECUTOR)


def test_coupled__goes_on_from_a_checkpoint_and_from_a_result(tmp_path: Path) -> None:
    pixels, layer = coupled()
    xs = {"a": labelled(pixels, (9, 2)), "b": labelled(layer, (9, 10))}
    asked: dict[str, Any] = {"rank": 3, "tol": 0, "client": EXECUTOR, "checkpoint": tmp_path / "state.npz"}
    dn.coupled_nmf(xs, max_iter=3, **asked)
    found = dn.coupled_nmf(xs, max_iter=6, **asked)
    assert found.attrs["passes"] == 1 + 3
    more = dn.coupled_nmf(xs, rank=3, max_iter=2, tol=0, init=found, client=EXECUTOR)
    assert more["loss"][-1] < found["loss"][-1]
