"""The train step: weights made from the job's own images, kept beside the store."""

from __future__ import annotations

import json
import time

import numpy as np

from dneuro import events
from dneuro.engine.executors import Executor
from dneuro.errors import ImageSourceError, UnreadableImageError
from dneuro.extract.reading import seen
from dneuro.extract.work import Attempt
from dneuro.images.memory import PictureMemory
from dneuro.images.preprocess import to_input
from dneuro.images.sources import open_source
from dneuro.jobs.study import Study
from dneuro.spec.job import JobSpec
from dneuro.spec.network import Preprocessing
from dneuro.spec.steps import TrainStep
from dneuro.store.files import Location, append, write_atomically
from dneuro.store.remote import RemotePath
from dneuro.store.units import Unit, fingerprint, units_folder

POLL = 0.2
"""Seconds between two looks at how far the training is."""


def train(study: Study, executor: Executor, attempt: Attempt) -> Study:
    """Train the network on a worker, unless that was done before; return the study with its weights.

    Raises
    ------
    DneuroError
        If the images or labels do not suit the network, or the loss is no longer finite.
    BusyError
        If a later run has taken over.
    """
    step = study.job.train
    assert step is not None
    wanted, unit, weights = _trained(study, step)
    marker = unit.marker(wanted)
    if marker is None or not weights.is_file():
        attempt.refuse_if_overtaken("the training")
        unit.begin(0)
        events.emit("started", "train", total=step.epochs, what="epochs")
        log = unit.folder / f"{unit.name}.epochs"
        log.unlink(missing_ok=True)
        memory = study.plan.picture_bytes(executor.memory)
        future = executor.submit(_train, study.job, study.preprocessing, memory, weights, log)
        shown = 0
        while True:
            over = future.done()
            lines = _lines(log)
            for line in lines[shown:]:
                found = json.loads(line)
                message = f"loss {found['loss']:.3f}, accuracy {found['accuracy']:.1%}"
                events.emit("progress", "train", message, done=found["epoch"], total=step.epochs, what="epochs")
            shown = len(lines)
            if over:
                break
            executor.watch()
            time.sleep(POLL)
        executor.wait([future])  # should it be over because nobody knows it any more, this says so
        sha256, history = future.result()
        attempt.refuse_if_overtaken("the training")
        marker = {"fingerprint": wanted, "sha256": sha256, "history": history}
        unit.publish(marker)
        message = f"accuracy {history[-1][1]:.1%} over the last epoch"
        events.emit("finished", "train", message, done=step.epochs, total=step.epochs, what="epochs")
    else:
        again = "trained before; its weights are used again"
        events.emit("finished", "train", again, done=step.epochs, total=step.epochs, what="epochs")
    return study.trained(str(weights), marker["sha256"])


def trained_before(study: Study) -> Study:
    """Return the study with the weights that an earlier run has trained, if its job trains and one has."""
    if study.job.train is None:
        return study
    if isinstance(study.store, RemotePath):
        study.store.check_bucket()  # before anything is looked for in it
    wanted, unit, weights = _trained(study, study.job.train)
    marker = unit.marker(wanted)
    return study if marker is None or not weights.is_file() else study.trained(str(weights), marker["sha256"])


def _trained(study: Study, step: TrainStep) -> tuple[str, Unit, Location]:
    """Return the fingerprint of a training, its unit, and where its weights are."""
    wanted = fingerprint(
        {
            "images": study.source.manifest.fingerprint(),
            "preprocessing": study.preprocessing.model_dump(mode="json"),
            "identity": study.network_identity,
            "network": study.job.network.model_dump(mode="json", exclude={"device", "preprocessing"}),
            "train": step.model_dump(mode="json", exclude={"name", "workers"}),
        }
    )
    unit = Unit(units_folder(study.store).absolute() / "train", wanted[:16])
    return wanted, unit, unit.folder / f"{unit.name}.safetensors"


def _lines(log: Location) -> list[str]:
    try:
        return log.read_text().splitlines()
    except FileNotFoundError:
        return []


def _train(
    job: JobSpec, preprocessing: Preprocessing, picture_bytes: int, weights: Location, log: Location
) -> tuple[str, list[tuple[float, float]]]:
    """Read all images, train, write the weights; return their fingerprint and the history."""
    from dneuro.nets.train import train as run
    from dneuro.nets.weights import state_bytes, state_sha256

    step = job.train
    assert step is not None
    source, memory = open_source(job.images), PictureMemory(picture_bytes)
    images, labels = [], []
    for number in range(len(source.manifest)):
        if source.manifest.labels[number] < 0:
            continue
        try:
            images.append(to_input(seen(source, number, memory, preprocessing)[0], preprocessing))
        except UnreadableImageError:
            continue  # extraction masks it and lists it
        labels.append(source.manifest.labels[number])
    if not images:
        raise ImageSourceError("no image with a class could be read, there is nothing to train on")

    def note(epoch: int, loss: float, accuracy: float) -> None:
        append(log, json.dumps({"epoch": epoch, "loss": loss, "accuracy": accuracy}))

    state, history = run(
        job.network.model_copy(update={"preprocessing": preprocessing}),
        np.stack(images),
        np.asarray(labels, dtype=np.int64),
        epochs=step.epochs,
        batch=step.batch,
        learning_rate=step.learning_rate,
        seed=step.seed,
        on_epoch=note,
    )
    write_atomically(weights, lambda file: file.write(state_bytes(state)))
    return state_sha256(state), history
