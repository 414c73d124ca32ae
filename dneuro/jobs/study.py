"""What a job means: its images, its network, its sizes, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dneuro import events
from dneuro.engine.executors import Sizes
from dneuro.errors import ImageSourceError, NetworkError, UnreadableImageError
from dneuro.extract.plan import ExtractPlan, plan_extraction
from dneuro.extract.work import IMAGES
from dneuro.images.headers import picture_sizes
from dneuro.images.preprocess import view
from dneuro.images.sources import ImageSource, open_source
from dneuro.kernels.feeds import Feed
from dneuro.spec.job import JobSpec
from dneuro.spec.network import NetworkSpec, Preprocessing
from dneuro.spec.steps import DEFAULT_CODEC
from dneuro.store.files import Location, locate
from dneuro.store.layout import FORMAT
from dneuro.store.units import fingerprint, layer_identity
from dneuro.store.verify import OWN_PARTS

if TYPE_CHECKING:
    from dneuro.nets.describe import Layer
    from dneuro.nets.load import Network


@dataclass(frozen=True)
class Study:
    """A job that was checked against its images and its network.

    Parameters
    ----------
    job : JobSpec
        The job.
    source : ImageSource
        Its images.
    preprocessing : Preprocessing
        How a picture becomes an input.
    input_shape : (int, int, int)
        Colours, height and width of the input.
    network_identity : str
        What the network is, whatever its weights: its name, or a hash of the user's code or file.
    layers : dict of Layer
        Every layer of the network.
    weights : str or None
        Path of trained weights, once there are any.
    weights_sha256 : str or None
        Fingerprint of the weights; None until they are trained.
    class_names : list of str
        Names of the classes of the images.
    predicted_names : list of str or None
        What the network's outputs stand for, where that is known; not always the classes of the images.
    predictions : bool
        Whether the network names a class for each image.
    plan : ExtractPlan
        Sizes of the extraction.
    notes : list of str
        What the user should know.
    feeds : dict
        Reductions that the extraction feeds on the way, by layer; see `dneuro.jobs.along`.
    required : dict
        Those of them that no later pass over the store can make up for.
    memory_format : str
        How the network's convolutions hold their numbers, once ``auto`` is settled.
    """

    job: JobSpec
    source: ImageSource
    preprocessing: Preprocessing
    input_shape: tuple[int, int, int]
    network_identity: str
    layers: dict[str, Layer]
    weights: str | None
    weights_sha256: str | None
    class_names: list[str]
    predicted_names: list[str] | None
    predictions: bool
    plan: ExtractPlan
    notes: list[str]
    feeds: dict[str, tuple[Feed, ...]] = field(default_factory=dict)
    required: dict[str, tuple[Feed, ...]] = field(default_factory=dict)
    memory_format: str = "contiguous"

    @property
    def store(self) -> Location:
        """Path or URL of the store."""
        return locate(self.job.store)

    @property
    def identity(self) -> dict[str, Any]:
        """What everything in the store depends on."""
        return {
            "format": FORMAT,
            "images": self.source.manifest.fingerprint(),
            "network": self.network_identity,
            "weights": self.weights_sha256,
            "precision": self.job.network.precision,
            **({"compile": True} if self.job.network.compile else {}),  # older stores do not name it
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "images_per_unit": self.plan.unit,
            "predictions": self.predictions,
            "thumbnails": self.job.extract.thumbnails,
        }

    def layer_identity(self, layer: str) -> dict[str, Any]:
        """Return what the arrays of one layer depend on."""
        plan = next(plan for plan in self.plan.layers if plan.name == layer)
        return layer_identity(self.identity, layer, plan.keep, plan.dtype)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of every part of the extraction."""
        parts = {plan.name: fingerprint(self.layer_identity(plan.name)) for plan in self.plan.layers}
        return {IMAGES: fingerprint(self.identity), **parts}

    def trained(self, weights: str, sha256: str) -> Study:
        """Return the study with the weights that its training gave."""
        return replace(self, weights=weights, weights_sha256=sha256)


def study(job: JobSpec, executor: Sizes, source: ImageSource | None = None) -> Study:
    """Check a job against its images and its network, and work out its sizes.

    Parameters
    ----------
    job : JobSpec
        What to compute.
    executor : Executor
        Where, as far as memory goes; nothing is submitted.
    source : ImageSource, optional
        The job's images, where they were listed before.

    Raises
    ------
    UsageError
        If images, network, weights or layers are not what the job says.

    Notes
    -----
    **Cost**: lists the images, reads the headers of some of them (`picture_sizes`) and the weights.
    """
    from dneuro.nets.catalogue import find
    from dneuro.nets.describe import check_layers, layers
    from dneuro.nets.held import held_per_image
    from dneuro.nets.load import load

    source = source or open_source(job.images)
    manifest = source.manifest
    if not len(manifest):
        raise ImageSourceError("the image source holds no image", hint="check images: root")
    step = job.extract
    on_cpu = job.network.model_copy(update={"device": "cpu", "precision": "float32", "compile": False})
    if job.train is not None and job.network.weights == "DEFAULT":
        on_cpu = on_cpu.model_copy(update={"weights": "none"})
    wanted = list(step.layers)
    architecture = find(on_cpu)
    input_shape = _input_shape(source, architecture.needed_preprocessing) or architecture.needed_shape
    found = layers(on_cpu, input_shape)
    check_layers(found, wanted, job.network.name)
    _check_names(wanted)
    shapes = {name: _stored_shape(found[name], job.network.name) for name in wanted}
    network = load(on_cpu, partial_for=wanted, input_shape=input_shape)
    labels = manifest.labels
    names = list(manifest.class_names) or [str(i) for i in range(int(labels.max(initial=-1)) + 1)]
    if job.train is not None:
        _check_training(network.classes, len(names), labels, job.network)
    predictions = step.predictions and network.classes is not None
    numbered = all(name.isdigit() for name in names)
    # Of ImageNet's classes both know the numbers; else names may say that the same number means something else.
    alike = bool(manifest.wnids) or numbered or network.class_names in (None, names)
    comparable = bool((labels >= 0).any()) and network.classes == len(names) and alike
    sizes = [p.nbytes for p in network.module.state_dict().values() if p.device.type != "meta"]
    plan = plan_extraction(
        images=len(manifest),
        kept={name: layer.keep for name, layer in step.layers.items()},
        shapes=shapes,
        held=held_per_image(on_cpu, wanted, to_end=predictions, input_shape=input_shape),
        input_shape=input_shape,
        weight_bytes=sum(sizes),
        dtype=step.dtype,
        codec=step.codec or DEFAULT_CODEC,
        batch=step.batch,
        unit=step.images_per_unit,
        predictions=predictions,
        labels=comparable,
        thumbnails=step.thumbnails,
        source_bytes=source.held_bytes + manifest.held_bytes,
        pictures=picture_sizes(source, network.preprocessing),
        compiled=job.network.compile,
        largest_half=max(sizes, default=0) if job.network.precision in ("bfloat16", "float16") else 0,
        device=job.network.device,
        slots_per_process=executor.slots_per_process,
        readers=int(getattr(executor, "cpus", 1)),  # known of workers that a profile describes
        coalescing=bool(getattr(executor, "coalescing", False)),
        limit=executor.memory,
    )
    notes = [] if job.train is not None else list(network.notes)
    if predictions and not comparable and (labels >= 0).any():
        notes.append(_why_not_comparable(network, names))
    if predictions and comparable and numbered and network.class_names is not None:
        notes.append("the images' class numbers are taken for those of the network's outputs")
    for note in notes:
        events.emit("note", "", note)
    return Study(
        job=job.model_copy(update={"network": job.network.model_copy(update={"weights": on_cpu.weights})}),
        source=source,
        preprocessing=network.preprocessing,
        input_shape=input_shape,
        network_identity=network.identity,
        layers=found,
        weights=None,
        weights_sha256=None if job.train is not None else network.weights_sha256,
        class_names=names,
        predicted_names=_predicted_names(
            network, names, same=job.train is not None or (comparable and not numbered), taken=comparable
        ),
        predictions=predictions,
        plan=plan,
        notes=notes,
        memory_format=network.memory_format,
    )


def _predicted_names(network: Network, names: list[str], *, same: bool, taken: bool) -> list[str] | None:
    """Return what the network's outputs stand for: the images' classes where they are the same, else its own.

    `taken` says that the images' class numbers stand in for names that the network does not have.
    """
    return names if same else network.class_names or (names if taken else None)


def _why_not_comparable(network: Network, names: list[str]) -> str:
    """Return the note that predictions cannot be compared with the images' classes."""
    differ = f"the network tells {network.classes} classes apart and the images have {len(names)}"
    if network.classes == len(names) and network.class_names is not None:
        number = next(i for i, name in enumerate(names) if name != network.class_names[i])
        differ = f"class {number} is {network.class_names[number]} to the network and {names[number]} of the images"
    return (
        f"{differ}: predictions are kept, whether they are correct is not (classes: imagenet numbers folders by "
        "their wnids)"
    )


def _check_names(layers: list[str]) -> None:
    """Refuse layers that cannot be called in a store as they are in the network: their names become those of groups."""
    for name in layers:
        cuts = [mark for mark in "/\\" if mark in name]
        if cuts or name in OWN_PARTS:
            why = f"with {cuts[0]!r} it would be a group in a group" if cuts else "it has a part of its own called so"
            raise NetworkError(
                f"layer {name!r} cannot be kept in a store: {why}",
                hint="give the module another name in the network's code, where it is an attribute",
            )


def _stored_shape(layer: Layer, network: str) -> tuple[int, ...]:
    """Return the shape per image in which a layer is stored; refuse one of complex numbers, or of unknown axes."""
    if layer.is_complex:
        raise NetworkError(
            f"layer {layer.name} ({layer.kind}) yields complex numbers, and activations are real ones",
            hint=f"another layer: `dneuro layers {network}` lists them",
        )
    if layer.stored is None:
        raise NetworkError(
            f"layer {layer.name} ({layer.kind}) gives {layer.shape} per image, and which of these are channels and "
            "which are positions is not known",
            hint=f"another layer of the same block; `dneuro layers {network}` lists the dims of each",
        )
    return layer.stored


def _input_shape(source: ImageSource, preprocessing: Preprocessing) -> tuple[int, int, int] | None:
    """Return (colors, height, width) as the first readable image gives it; None if none can be read."""
    for number in range(min(len(source.manifest), 100)):
        try:
            seen = view(source.read(number)[0], preprocessing)
        except UnreadableImageError:
            continue
        return preprocessing.channels, seen.shape[0], seen.shape[1]
    return None


def _check_training(classes: int | None, names: int, labels: Any, network: NetworkSpec) -> None:
    if not (np.asarray(labels) >= 0).any():
        raise ImageSourceError(
            "the train step needs the class of every image, and these images have none",
            hint="a folder per class, or an array with labels",
        )
    if classes is None:
        raise NetworkError(f"{network.name} does not classify, so it cannot be trained here", hint="leave out train")
    if names > classes:
        raise NetworkError(
            f"{network.name} has {classes} outputs, the images have {names} classes",
            hint=f"network: {{name: '{network.name}', classes: {names}}}",
        )

