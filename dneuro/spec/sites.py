"""The parts of a profile that say how a site's machines are reached, secured and asked for."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Literal

from pydantic import AfterValidator

from dneuro.quantities import format_bytes
from dneuro.spec.base import Bytes, Count, Memory, OrBlank, PathText, Positive, SomeSeconds, Spec
from dneuro.spec.problems import refusal, shown


def _one_line(text: str) -> str:
    if not text.strip() or "\n" in text or "\0" in text:
        raise ValueError(f"must be one line of text, not {shown(text)}")
    return text.strip()


def _check_address(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    host, colon, port = rest.rpartition(":")
    number = re.fullmatch("[0-9]{1,5}", port)
    if scheme not in ("tls", "tcp") or not (separator and colon and host and number):
        raise refusal(f"{shown(address)} is no address of a dask scheduler", "such as tls://host:8786")
    if not 0 < int(port) <= 65535:
        raise refusal(f"{shown(address)}: a port is a number from 1 to 65535", "such as tls://host:8786")
    return address


_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""Schemes of object stores, in which something can be made if it is not there, in one step."""


def _check_state(state: str) -> str:
    scheme, separator, rest = state.partition("://")
    if not separator:
        return state
    if scheme not in (*_BUCKETS, "memory") and scheme.lower() != "file":
        raise refusal(f"{shown(state)}: nothing can be kept at {scheme}://",
                      "a folder, or s3://bucket/folder; others are gs:// and az://")  # fmt: skip
    if scheme in _BUCKETS and not rest.partition("/")[0]:
        raise refusal(f"{shown(state)} names no bucket", f"such as {scheme}://bucket/folder")
    return state


def _check_image(image: str) -> str:
    if not re.fullmatch(r"[a-z0-9][\w.:/-]*@sha256:[0-9a-f]{64}", image):
        raise refusal(
            f"{shown(image)} does not name an image by its digest, so that pods could run different ones",
            "registry/dneuro@sha256:…; the digest is what `docker push` or `skopeo inspect` prints",
        )
    return image


def _check_label(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise refusal(f"{shown(name)} is no name of a Kubernetes object", "small letters, digits and -, at most 63")
    return name


def _check_mount(path: str) -> str:
    if not path.startswith("/") or ":" in path or ".." in path.split("/"):
        raise refusal(f"{shown(path)} is no absolute path", "such as /data")
    if path.rstrip("/") in ("", "/tmp"):
        raise refusal(f"nothing can be mounted at {shown(path)}, which the pods need themselves", "such as /data")
    return path


def _check_driver(memory: int) -> int:
    if memory < 512 * 1024**2:
        raise refusal(f"{format_bytes(memory)} are too few for a driver", "at least 512MiB")
    return memory


def _check_mounts(volumes: tuple[VolumeSpec, ...]) -> tuple[VolumeSpec, ...]:
    paths = [volume.path.rstrip("/") for volume in volumes]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise refusal(f"two volumes are to be mounted at {twice[0]}", "a path for each")
    return volumes


_LOGS = "take it away: logs lie in the job's folder, below `state:`"
_AGAIN = "take it away: `slurm: {requeue: …}` says it of the driver, and a lost worker is replaced by the driver"
_OWN_OPTIONS = {
    "--array": "take it away: each worker is a batch job of its own, and `workers:` of a pool says how many",
    "--output": _LOGS,
    "--error": _LOGS,
    "--open-mode": _LOGS,
    "--requeue": _AGAIN,
    "--no-requeue": _AGAIN,
    "--signal": "take it away: `walltime:` says when a driver or worker is told to end",
    "--job-name": "take it away: it begins with `name:` of the job, and others are found by it",
    "--clusters": "take it away, and submit on a login node of that cluster",
    "--wait": "take it away: `dneuro logs -f` waits until a job has ended",
}
"""Options of sbatch that every batch script has already or must not have, and what to write in their place."""
_LOST = {
    "--clusters": "the job would go where squeue and scancel do not look for it",
    "--wait": "sbatch would answer only when the job has ended",
}
"""Those of them that no batch script has, and why."""
_SHORT = {"-a": "--array", "-o": "--output", "-e": "--error", "-J": "--job-name", "-M": "--clusters", "-W": "--wait"}


def _check_directive(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError:
        raise refusal(f"{shown(text)} has a quote that is not closed") from None
    if not text.startswith("-"):
        raise refusal(f"{shown(text)} is no option of sbatch", "as on its command line, such as --exclude=node7")
    for word in words:
        if own := _own_option(word):
            why = _LOST.get(own, f"dneuro sets {own} itself")
            raise refusal(f"{word} is not for directives: {why}", _OWN_OPTIONS[own])
    return text


def _own_option(word: str) -> str | None:
    given = word.partition("=")[0]
    if given[:2] in _SHORT:
        return _SHORT[given[:2]]
    # sbatch takes the beginning of a name for it, too.
    return next((own for own in _OWN_OPTIONS if len(given) > 4 and own.startswith(given)), None)


StateText = Annotated[PathText, AfterValidator(_check_state)]
"""A folder, or a URL of an object store below which objects can be made."""

Text = Annotated[str, AfterValidator(_one_line)]
"""One line; it goes as it is into a batch script or a manifest."""

Directive = Annotated[Text, AfterValidator(_check_directive)]
"""Options of sbatch, one or several, other than those that dneuro sets."""

ObjectName = Annotated[str, AfterValidator(_check_label)]
"""Name of an object in Kubernetes, a DNS label."""


FILES_HINT = "the files that `dneuro cluster up` names: ca.pem, client.pem, client.key"
"""Which files a tls:// address needs."""


class SecuritySpec(Spec):
    """Who may reach the scheduler and the workers."""

    tls: Literal["auto", "required"] = "auto"
    """``auto``: keys and encryption for all but the workers of this machine over loopback; ``required``: always."""
    bind: Text | None = None
    """Network interface to listen on, such as `ib0`; the default is the one that reaches other machines."""
    dashboard: bool | None = None
    """Serve dask's dashboard, on loopback only; by default on this machine yes, elsewhere no."""
    folder: PathText | None = None
    """Folder for keys in place of the run's own, such as one on a file system that is only yours; all nodes see it."""


class DriverSpec(Spec):
    """The process that runs a submitted job and holds its scheduler."""

    cpus: Positive = 2
    """Cores."""
    memory: Annotated[Memory, AfterValidator(_check_driver)] = 8 * 1024**3
    """Memory; at least 512 MiB, which is what a driver takes before it has anything to do."""
    walltime: SomeSeconds | None = None
    """Time limit; a driver that reaches it is queued again and goes on."""
    max_restarts: Count = 5
    """How often a lost driver is started again by the cluster."""
    partition: Text | None = None
    """Slurm partition (queue) of the driver."""
    directives: tuple[Directive, ...] = ()
    """Further options of sbatch for the driver, each as on its command line."""


class SlurmSpec(Spec):
    """How this site's Slurm is used."""

    account: Text | None = None
    """Account that is charged."""
    qos: Text | None = None
    """Quality of service."""
    setup: tuple[Text, ...] = ()
    """Lines of shell run on a node before Python, such as `module load cuda`."""
    python: Text | None = None
    """Command that starts Python on a node, such as `apptainer exec --nv dneuro.sif python`; by default this Python."""
    submit_workers_from: Literal["driver", "login"] = "driver"
    """Where a submitted job's driver runs: in a Slurm job of its own, or here, where compute nodes may not submit."""
    requeue: bool = True
    """Have Slurm queue the driver again when its node is lost or it is preempted."""
    scratch: PathText | None = None
    """Fast local folder on the nodes for what workers spill; the default is the system's temporary folder."""


class VolumeSpec(Spec):
    """A volume that driver and workers see."""

    claim: ObjectName
    """Name of the PersistentVolumeClaim."""
    path: Annotated[str, AfterValidator(_check_mount)]
    """Where it is mounted."""
    read_only: bool = False
    """Nothing can be written to it."""


class SchedulerSpec(Spec):
    """The pod that hands out the work."""

    cpus: Positive = 1
    """Cores; it uses no more than one."""
    memory: Memory = 2 * 1024**3
    """Memory."""


class KubernetesSpec(Spec):
    """Where in Kubernetes, and from which image."""

    namespace: ObjectName = "dneuro"
    """Namespace of all pods."""
    image: Annotated[str, AfterValidator(_check_image)] | None = None
    """Image of driver and workers, by digest: `registry/dneuro@sha256:…`."""
    service_account: ObjectName = "dneuro-driver"
    """Service account of the driver, which may make worker groups in the namespace."""
    context: Text | None = None
    """Context of the kubeconfig; the default is the current one."""
    image_pull_secret: ObjectName | None = None
    """Secret with the registry's password, if it needs one."""
    volumes: Annotated[tuple[VolumeSpec, ...], AfterValidator(_check_mounts)] = ()
    """Volumes that driver and workers see, such as the images and the stores."""
    environment_secret: ObjectName | None = None
    """Secret whose keys become environment variables of driver and workers, such as those of an object store."""
    scheduler: Annotated[SchedulerSpec, OrBlank()] = SchedulerSpec()
    """The pod that hands out the work."""
    scratch: Bytes = 8 * 1024**3
    """Disk that each pod may fill below /tmp."""
    user: Positive = 1000
    """Number of the user and group that all pods run as, never root; the volumes must be writable for it."""
    gpu_resource: Text = "nvidia.com/gpu"
    """What the cluster calls a GPU, such as `amd.com/gpu` or `nvidia.com/mig-3g.40gb`."""
    scale_down: bool = False
    """Let `kubectl scale` take workers away: the operator asks the scheduler for it by plain HTTP on port 8787, and is
    answered 404, as everybody is; else nothing answers HTTP, and workers can only be added."""


class AddressSpec(Spec):
    """An existing dask scheduler."""

    scheduler: Annotated[str, AfterValidator(_check_address)]
    """Its address, such as `tls://host:8786`."""
    ca: PathText | None = None
    """File with the certificate that all others are signed by, for a tls:// address."""
    cert: PathText | None = None
    """File with this client's certificate."""
    key: PathText | None = None
    """File with this client's key."""

    @property
    def missing(self) -> list[str]:
        """The settings that a tls:// address needs, and that were not given."""
        files = {"ca": self.ca, "cert": self.cert, "key": self.key} if self.scheduler.startswith("tls://") else {}
        return [f"address.{name}" for name, path in files.items() if path is None]
