"""The API of Kubernetes, as far as it is needed here: make, read, list, change and delete objects of one namespace."""

from __future__ import annotations

import contextlib
import importlib
import ssl
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Self

from dneuro.cluster.kubernetes.pods import Manifest
from dneuro.errors import DneuroError, UsageError

_VERSIONS = {
    "Job": "batch/v1",
    "Pod": "v1",
    "Secret": "v1",
    "Service": "v1",
    "Event": "v1",
    "Deployment": "apps/v1",
    "DaskCluster": "kubernetes.dask.org/v1",
    "DaskWorkerGroup": "kubernetes.dask.org/v1",
}


class ApiError(DneuroError):
    """The API refuses, or cannot be reached.

    Parameters
    ----------
    message, hint : str
        As of `DneuroError`.
    code : int, optional
        HTTP status, if there was an answer.
    wrong : bool
        Whether there was none because of what is said about the API here, its certificate or the credentials.
    """

    def __init__(
        self, message: str, hint: str | None = None, code: int | None = None, *, wrong: bool = False
    ) -> None:
        super().__init__(message, hint)
        self.code, self.wrong = code, wrong

    @property
    def passes(self) -> bool:
        """Whether the same request may do later: nobody has answered, or a server with its own troubles."""
        return not self.wrong and (self.code is None or self.code == 429 or self.code >= 500)


class Api:
    """One namespace. In a ``with`` block its requests share a connection; else each has its own.

    Parameters
    ----------
    namespace : str
        Its name.
    context : str, optional
        Of the kubeconfig; the default is the current one, and in a pod its service account.
    kubeconfig : str, optional
        Path of the kubeconfig; the default is ``$KUBECONFIG``, else the one in the home folder.
    """

    def __init__(self, namespace: str, context: str | None = None, kubeconfig: str | None = None) -> None:
        self.namespace, self.context, self.kubeconfig = namespace, context, kubeconfig
        try:
            self._kr8s = importlib.import_module("kr8s")
            self._objects = importlib.import_module("kr8s.objects")
        except ImportError as error:
            hint = 'pip install ".[kubernetes]" in the sources of dneuro'
            raise UsageError(f"Kubernetes needs the package {error.name}", hint) from None
        # Servers are newer than the newest that the client was tested with as often as not.
        warnings.filterwarnings("ignore", "Kubernetes version .* is not supported", UserWarning)
        self._depth, self._held = 0, None

    def __enter__(self) -> Self:
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self._held is not None:
            held, self._held = self._held, None
            # The client has no way to be closed, and would leave its sockets to the garbage collector.
            with contextlib.suppress(AttributeError, ImportError):
                importlib.import_module("kr8s._async_utils").as_sync_func(held._session.aclose)()

    def create(self, manifest: Manifest) -> Manifest:
        """Make an object; return it as it is then, with its uid."""
        with self._translated(f"make the {_what(manifest)}"):
            made = self._kind(manifest["kind"])(manifest, api=self._connection())
            made.create()
            found: Manifest = made.raw.to_dict()
            return found

    def read(self, kind: str, name: str) -> Manifest | None:
        """Return an object; None if there is none of that name."""
        try:
            with self._translated(f"read the {kind} {name}"):
                # By its name and not by a selector: that is what a Role can allow for one name.
                found = self._kind(kind)({"metadata": {"name": name, "namespace": self.namespace}},
                                         api=self._connection())  # fmt: skip
                found.refresh()
                raw: Manifest = found.raw.to_dict()
                return raw
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def list(self, kind: str, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        """Return the objects of a kind that have all of these labels."""
        selector = {"label_selector": ",".join(f"{key}={value}" for key, value in labels.items())} if labels else {}
        with self._translated(f"list the {kind}s"):
            found = self._kind(kind).list(api=self._connection(), namespace=self.namespace, **selector)
            return [one.raw.to_dict() for one in found]

    def patch(self, kind: str, name: str, change: Manifest) -> None:
        """Change an object; nothing happens if it is gone."""
        with contextlib.suppress(_GoneError), self._translated(f"change the {kind} {name}"):
            self._named(kind, name).patch(change)

    def delete(self, kind: str, name: str, *, at_once: bool = False) -> bool:
        """Delete an object and what it owns; return whether it was there."""
        with contextlib.suppress(_GoneError), self._translated(f"delete the {kind} {name}"):
            self._named(kind, name).delete(propagation_policy="Background", force=at_once)
            return True
        return False

    def _named(self, kind: str, name: str) -> Any:
        return self._kind(kind)({"metadata": {"name": name, "namespace": self.namespace}}, api=self._connection())

    def _kind(self, kind: str) -> Any:
        return self._objects.new_class(kind, _VERSIONS[kind], asyncio=False, namespaced=True)

    def _connection(self) -> Any:
        if self._held is None:
            self._held = self._kr8s.api(context=self.context, namespace=self.namespace, kubeconfig=self.kubeconfig)
        return self._held

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        import httpx

        try:
            with self:
                yield
        except self._kr8s.NotFoundError:
            raise _GoneError(f"there is nothing to {what}", code=404) from None
        except self._kr8s.ServerError as error:
            code = getattr(error.response, "status_code", None)
            if code == 404 and not what.startswith(("make", "list")):  # for these it is the kind that is missing
                raise _GoneError(f"there is nothing to {what}", code=404) from None
            raise ApiError(f"Kubernetes refuses to {what} in namespace {self.namespace}: {error}",
                           _hint(code, what), code) from error  # fmt: skip
        except (httpx.HTTPError, self._kr8s.APITimeoutError, OSError, ValueError) as error:
            raise ApiError(
                f"the API of Kubernetes cannot be reached to {what}: {error or type(error).__name__}",
                hint="kubectl cluster-info; KUBECONFIG and kubernetes.context in the profile",
                wrong=type(error) is ValueError or _is_distrusted(error),
            ) from error


class _GoneError(ApiError):
    """There is no such object."""


def _what(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def _is_distrusted(error: BaseException | None) -> bool:
    """Return whether a connection was not made for the server's certificate; the client says it in many wrappings."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _hint(code: int | None, what: str) -> str | None:
    if code == 404:
        return "kubectl get crd daskclusters.kubernetes.dask.org: is the operator of dask-kubernetes installed?"
    if code in (401, 403):
        return "kubectl apply -k deploy/kubernetes makes the namespace's Roles; or its quota is used up"
    return None
