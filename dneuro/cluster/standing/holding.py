"""The process that holds a cluster that stands: its scheduler, and what keeps its workers."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path

from dneuro.cluster.backends import backend_of
from dneuro.cluster.security import note_keys
from dneuro.cluster.standing.folder import CLUSTER, PROFILE, write
from dneuro.spec.profile import ProfileSpec

TAKEN_AWAY = 143
"""Exit code of a process that was told to end and is to be started again."""


def hold(folder: Path) -> int:
    """Open the profile in a folder, say there where it is, and hold it until this process is told to end.

    Returns
    -------
    int
        The exit code: 0. On Kubernetes, where only `down` means it, and deletes the Job whatever its pod ends with,
        that of a driver whose node is taken away: its Job starts another one elsewhere.
    """
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    (folder / CLUSTER).unlink(missing_ok=True)  # of one before it that was killed
    spec = ProfileSpec.model_validate_json((folder / PROFILE).read_text())
    with backend_of(spec).open(folder=folder, name=folder.name) as machines:
        client = machines.client
        keys, credentials = Path(client.security.tls_client_key).parent, folder / "credentials"
        if spec.security.folder is not None:
            credentials = keys.with_name(f"{keys.name}-credentials")
            note_keys(folder, credentials)
        shutil.rmtree(credentials, ignore_errors=True)
        credentials.mkdir(mode=0o700)
        for file in ("ca.pem", "client.pem", "client.key"):  # the scheduler's own stay with it
            shutil.copy2(keys / file, credentials / file)
        said = {"address": client.scheduler.address, "credentials": str(credentials),
                "dashboard": client.dashboard_link if spec.security.dashboard else ""}  # fmt: skip
        write(folder / CLUSTER, json.dumps(said))
        over.wait()
        (folder / CLUSTER).unlink(missing_ok=True)
    return TAKEN_AWAY if spec.backend == "kubernetes" else 0
