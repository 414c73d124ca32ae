"""What is sent to Kubernetes is what its schemas and the operator's allow, and no more than the pods need."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.testing
import yaml

from dneuro.cli import app
from dneuro.cluster import backend_of
from dneuro.cluster.backends import NeededFile
from dneuro.cluster.kubernetes import KubernetesBackend, names
from dneuro.errors import SpecError, UsageError
from dneuro.jobs.submitting import read_both, submit
from dneuro.quantities import GiB, MiB
from dneuro.spec import read_profile
from dneuro.spec.profile import ProfileSpec

MakeProfile = Callable[..., ProfileSpec]
Check = Callable[[dict[str, Any]], None]
Manifests = dict[str, dict[str, Any]]

ROOT = Path(__file__).parents[3]
COMMAND = ["/home/somebody/.venv/bin/python", "-m", "dneuro", "drive", "JOB"]


def preview(profile: ProfileSpec, folder: Path, name: str = "demo") -> list[dict[str, Any]]:
    text = backend_of(profile).preview(folder, COMMAND, name)
    return [one for one in yaml.safe_load_all(text) if one]


@pytest.fixture
def manifests(make_profile: MakeProfile, tmp_path: Path) -> Manifests:
    """Of a profile that says everything, by kind, and groups by their pool."""
    gpus = {"workers": 2, "cpus": 4, "gpus": 1, "memory": "16GiB", "threads": 2, "env": {"COLOUR": "no"},
            "node_selector": {"nvidia.com/gpu.product": "A100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]}  # fmt: skip
    volumes = [{"claim": "data", "path": str(tmp_path)}, {"claim": "photos", "path": "/photos", "read_only": True}]
    profile = make_profile(
        {"extract": gpus, "memory": {"memory": "5000MB"}}, volumes=volumes, image_pull_secret="registry",
        environment_secret="s3", user=1234, namespace="lab",
    )  # fmt: skip
    profile = profile.model_copy(update={"driver": profile.driver.model_copy(update={"walltime": 3600.0})})
    found = preview(profile, tmp_path / "state" / "jobs" / "demo-12345678")
    pools = {one["metadata"]["name"].removeprefix("demo-000000-"): one for one in found
             if one["kind"] == "DaskWorkerGroup"}  # fmt: skip
    return {one["kind"]: one for one in found if one not in pools.values()} | pools


def pods(manifests: Manifests) -> dict[str, dict[str, Any]]:
    found = {name: manifests[name]["spec"]["worker"]["spec"] for name in ("extract", "memory")}
    cluster = manifests["DaskCluster"]["spec"]
    return {**found, "scheduler": cluster["scheduler"]["spec"], "default": cluster["worker"]["spec"],
            "driver": manifests["Job"]["spec"]["template"]["spec"]}  # fmt: skip


def variables(pod: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}


def test_manifests__are_those_of_the_plan(manifests: Manifests) -> None:
    assert set(manifests) == {"Job", "Secret", "DaskCluster", "extract", "memory"}
    assert {one["metadata"]["namespace"] for one in manifests.values()} == {"lab"}
    labels = {one["metadata"]["labels"]["dneuro.org/job"] for one in manifests.values()}
    assert labels == {names.label("demo-12345678", claim="data")}


def test_manifests__fit_the_schemas_of_the_api_and_of_the_operator(
    manifests: Manifests, check_api_kind: Check, check_dask_kind: Check
) -> None:
    for name in ("Job", "Secret"):
        check_api_kind(manifests[name])
    for name in ("DaskCluster", "extract", "memory"):
        check_dask_kind(manifests[name])
    for name, pod in pods(manifests).items():
        check_api_kind({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod})


def test_manifests__schemas_refuse_what_is_wrong(
    manifests: Manifests, check_api_kind: Check, check_dask_kind: Check
) -> None:
    manifests["Job"]["spec"]["template"]["spec"]["restartPolcy"] = "Never"
    with pytest.raises(Exception, match="restartPolcy"):
        check_api_kind(manifests["Job"])
    manifests["extract"]["spec"]["worker"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(Exception, match="imagee"):
        check_dask_kind(manifests["extract"])


def test_operator__makes_valid_and_hardened_deployments_of_them(
    manifests: Manifests, operator_made: Any, check_api_kind: Check, violations: Callable[[dict[str, Any]], list[str]]
) -> None:
    made = [operator_made.scheduler(manifests["DaskCluster"]), operator_made.worker(manifests["extract"])]
    for deployment in made:
        check_api_kind(deployment)
        assert violations(deployment["spec"]["template"]["spec"]) == []
    check_api_kind(operator_made.service(manifests["DaskCluster"]))
    environment = variables(made[1]["spec"]["template"]["spec"])
    assert environment["DASK_SCHEDULER_ADDRESS"] == "tls://demo-000000-scheduler.lab.svc:8786", "not the operator's tcp"
    assert environment["DASK_WORKER_NAME"] == "demo-000000-extract-worker-0123456789"


def test_pods__satisfy_the_restricted_level(
    manifests: Manifests, violations: Callable[[dict[str, Any]], list[str]]
) -> None:
    for name, pod in pods(manifests).items():
        assert violations(pod) == [], name
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 1234
        assert pod["automountServiceAccountToken"] is (name == "driver")
        assert re.search(r"@sha256:[0-9a-f]{64}$", pod["containers"][0]["image"])
    spoilt = pods(manifests)["driver"]
    spoilt["containers"][0]["securityContext"]["capabilities"] = {"add": ["SYS_ADMIN"]}
    assert violations(spoilt) == ["driver keeps capabilities"]


def test_pods__have_their_own_key_and_nobody_elses(manifests: Manifests) -> None:
    for name, pod in pods(manifests).items():
        role = {"scheduler": "scheduler", "driver": None}.get(name, "worker")
        items = [item["key"] for volume in pod["volumes"] for item in volume.get("secret", {}).get("items", [])]
        assert items == ([] if role is None else ["ca.pem", f"{role}.pem", f"{role}.key"]), name
        modes = [volume["secret"]["defaultMode"] for volume in pod["volumes"] if "secret" in volume]
        assert set(modes) <= {0o440}
    held = manifests["Secret"]["data"]
    assert not [name for name in held if name.startswith("client")], "the client's key stays with the driver"
    assert all(base64.b64decode(value) for value in held.values())


def test_pods__get_what_their_pool_says(manifests: Manifests) -> None:
    container = pods(manifests)["extract"]["containers"][0]
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    command = " ".join(container["command"])
    assert f"--memory-limit {16 * GiB - 192 * MiB} " in command
    assert "--nthreads 2 " in command
    assert "--resources extract=2 " in command
    assert variables(pods(manifests)["extract"])["OMP_NUM_THREADS"] == "2", "four cores for two tasks"
    assert variables(pods(manifests)["extract"])["COLOUR"] == "no"
    assert pods(manifests)["extract"]["nodeSelector"] == {"nvidia.com/gpu.product": "A100"}
    assert pods(manifests)["extract"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert pods(manifests)["memory"]["containers"][0]["resources"]["limits"] == {"cpu": "1", "memory": "5000000000"}
    assert "nodeSelector" not in pods(manifests)["memory"]
    mounts = {mount["mountPath"]: mount.get("readOnly") for mount in container["volumeMounts"]}
    assert mounts["/photos"] is True
    assert manifests["extract"]["spec"]["worker"]["replicas"] == 2
    assert manifests["DaskCluster"]["spec"]["worker"]["replicas"] == 0, "workers are in the pools' groups"


def test_pods__start_dask_by_the_commands_that_there_are(manifests: Manifests) -> None:
    assert pods(manifests)["scheduler"]["containers"][0]["command"][:2] == ["dask", "scheduler"]
    assert pods(manifests)["extract"]["containers"][0]["command"][:2] == ["dask", "worker"]
    assert variables(pods(manifests)["scheduler"])["DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES"] == "[]"


@pytest.mark.parametrize(
    ("settings", "listens"),
    [({}, "127.0.0.1:0"), ({"scale_down": True}, ":8787"), ({"scale_down": False}, "127.0.0.1:0")],
)
def test_http__is_open_only_where_workers_are_to_be_taken_away(
    make_profile: MakeProfile, tmp_path: Path, settings: dict[str, bool], listens: str
) -> None:
    found = preview(make_profile(**settings), tmp_path / "state" / "jobs" / "x")
    (cluster,) = [one for one in found if one["kind"] == "DaskCluster"]
    groups = [one for one in found if one["kind"] == "DaskWorkerGroup"]
    command = cluster["spec"]["scheduler"]["spec"]["containers"][0]["command"]
    assert command[command.index("--dashboard-address") + 1] == listens
    for group in groups:
        command = group["spec"]["worker"]["spec"]["containers"][0]["command"]
        assert command[command.index("--dashboard-address") + 1] == "127.0.0.1:0"


def test_settings__arrive_as_dask_reads_them(manifests: Manifests) -> None:
    import dask

    pod = variables(pods(manifests)["extract"])
    read = dask.config.collect_env(pod)
    assert read["distributed"]["nanny"]["preload"] == ["dneuro.cluster.versions"]
    assert read["distributed"]["worker"]["memory"]["spill"] is False
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1, "KEPT": "yes"}}):
        dask.config.update(dask.config.config, read)
        spawn = dask.config.get("distributed.nanny.pre-spawn-environ")
        assert (str(spawn["OMP_NUM_THREADS"]), spawn["KEPT"]) == ("2", "yes")


def test_driver__is_started_again_only_when_it_was_lost(manifests: Manifests) -> None:
    job = manifests["Job"]["spec"]
    pod = job["template"]["spec"]
    assert (job["backoffLimit"], pod["restartPolicy"]) == (5, "Never")
    evicted, failed = job["podFailurePolicy"]["rules"]
    assert (evicted["action"], evicted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (failed["action"], failed["onExitCodes"]["values"]) == ("FailJob", [2, 3, 4, 5, 64])
    assert not {1, 137, 143} & set(failed["onExitCodes"]["values"]), "a crash, a kill, a lost machine"
    assert pod["activeDeadlineSeconds"] == 3600
    assert pod["containers"][0]["command"][-5:] == ["python", *COMMAND[1:]], "the image's Python, not this machine's"
    assert "/driver.log" in " ".join(pod["containers"][0]["command"])


def test_driver__knows_that_the_pod_before_it_is_dead(manifests: Manifests) -> None:
    environment = {one["name"]: one for one in pods(manifests)["driver"]["containers"][0]["env"]}
    assert environment["DNEURO_DRIVER"]["value"] == manifests["Job"]["metadata"]["name"]
    assert environment["DNEURO_DRIVER_LIFE"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.uid"
    assert manifests["Job"]["spec"]["podReplacementPolicy"] == "Failed", "it has ended before the next one is made"


def test_everything__belongs_to_the_driver_and_ends_with_it(manifests: Manifests) -> None:
    owners = {name: one["metadata"].get("ownerReferences", [{}])[0].get("kind") for name, one in manifests.items()}
    assert owners == {"Job": None, "Secret": "Job", "DaskCluster": "Job", "extract": "DaskCluster",
                      "memory": "DaskCluster"}  # fmt: skip
    kept = manifests["Job"]["spec"]["ttlSecondsAfterFinished"]
    assert 60 <= kept <= 15 * 60, "a driver that was killed has ended nothing, and its GPUs are nobody else's"


def test_state__in_an_object_store_needs_no_volume(make_profile: MakeProfile) -> None:
    profile = make_profile(volumes=[])
    command = preview(profile, "s3://bucket/state/jobs/demo-1")[0]["spec"]["template"]["spec"]["containers"][0]["command"]  # type: ignore[arg-type]
    assert command == ["python", *COMMAND[1:]]


def test_sizes__have_the_drivers_memory_not_this_machines(make_profile: MakeProfile) -> None:
    profile = make_profile()
    driver = profile.driver.model_copy(update={"memory": 3 * 10**9})
    assert backend_of(profile.model_copy(update={"driver": driver})).sizes("extract").driver_memory == 3 * 10**9


def test_folder__on_no_volume_is_refused(make_profile: MakeProfile) -> None:
    with pytest.raises(UsageError, match=r"/elsewhere/jobs/x is on no volume") as caught:
        preview(make_profile(), Path("/elsewhere/jobs/x"))
    assert "kubernetes.volumes" in str(caught.value.hint)


VOLUMES = [{"claim": "stores", "path": "/stores"}, {"claim": "photos", "path": "/photos", "read_only": True},
           {"claim": "mine", "path": "/photos/mine"}]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (NeededFile("store", Path("/home/me/acts.zarr"), written=True),
         "store: /home/me/acts.zarr is on no volume that the pods can write to (/stores, /photos/mine)"),
        (NeededFile("store", Path("/tmp/acts.zarr"), written=True), "is on no volume"),  # gone with the pod
        (NeededFile("store", Path("/photos/acts.zarr"), written=True), "volume /photos, which is mounted read-only"),
        (NeededFile("store", Path("/stores"), written=True), "is a volume itself"),
        (NeededFile("images.root", Path("/data/train")),
         "images.root: /data/train is on no volume that the pods can read (/stores, /photos, /photos/mine)"),
    ],
)  # fmt: skip
def test_files__that_the_pods_would_not_find_are_refused(
    make_profile: MakeProfile, file: NeededFile, why: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(why)) as caught:
        backend_of(make_profile(volumes=VOLUMES)).check_files([file])
    assert f"{file.key}: a path below one of kubernetes.volumes" in str(caught.value.hint)


def test_files__on_a_volume_are_found(make_profile: MakeProfile) -> None:
    backend_of(make_profile(volumes=VOLUMES)).check_files([
        NeededFile("store", Path("/stores/a.zarr"), written=True), NeededFile("images.root", Path("/photos")),
        NeededFile("store", Path("/photos/mine/a.zarr"), written=True),
    ])  # fmt: skip


def test_job__with_its_store_on_no_volume_is_refused_before_anything_is_sent(
    make_profile: MakeProfile, write_job: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KubernetesBackend, "api", property(lambda self: pytest.fail("nothing is to be sent")))
    profile = make_profile()
    job = write_job()
    given = {**yaml.safe_load(job.read_text()), "store": "/elsewhere/acts.zarr"}
    job.write_text(yaml.safe_dump(given))
    with pytest.raises(UsageError, match=r"store: /elsewhere/acts\.zarr is on no volume"):
        submit(*read_both(job, profile))
    file = tmp_path / "profile.yaml"
    file.write_text(yaml.safe_dump(profile.model_dump(mode="json", exclude_none=True)))
    ended = typer.testing.CliRunner().invoke(app, ["plan", str(job), "--cluster", str(file)])
    assert "is on no volume" in str(ended.exception)
    assert not list(tmp_path.glob("state/jobs/*"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("pools: {extract: {memory: 4Gigs}}", "4Gigs"),
        ("kubernetes: {image: dneuro:latest}", "digest"),
        ("kubernetes: {namespace: My_Lab}", "small letters"),
        ("kubernetes: {user: 0}", "greater than 0|positive|at least"),
        ("kubernetes: {volumes: [{claim: data, path: data}]}", "absolute path"),
        ("kubernetes: {volumes: [{claim: data, path: /tmp}]}", "need themselves"),
        ("kubernetes: {scheduler: {memory: lots}}", "lots"),
    ],
)
def test_profile__with_what_the_operator_would_swallow_is_refused(tmp_path: Path, line: str, why: str) -> None:
    image = "kubernetes: {image: 'r/d@sha256:" + "0" * 64 + "'}"
    given = yaml.safe_load(image) | {"backend": "kubernetes", "pools": {"extract": {"memory": "8GiB"}}}
    for section, value in yaml.safe_load(line).items():
        given[section] = {**given[section], **value}
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(SpecError, match=why):
        read_profile(path)


@pytest.mark.parametrize(
    ("pool", "why"),
    [
        ({"tolerations": [{"key": "gpu", "efect": "NoSchedule"}]}, "efect"),
        ({"tolerations": [{"key": "gpu", "effect": "noschedule"}]}, "noschedule"),
        ({"tolerations": [{"key": "gpu", "value": 1}]}, "it must be str"),
        ({"tolerations": [{"effect": "NoSchedule"}]}, "Exists"),
        ({"node_selector": {"a b": "c"}}, "no label's name"),
        ({"node_selector": {"a": "c d"}}, "no label's value"),
        ({"memory": "200MB"}, "too few"),
    ],
)
def test_pool__with_what_the_operator_would_swallow_is_refused(
    make_profile: MakeProfile, tmp_path: Path, pool: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        preview(make_profile({"extract": {"memory": "2GiB", **pool}}), tmp_path / "state" / "jobs" / "x")


def test_names__fit_and_stay_apart() -> None:
    assert names.slug("My_Job 3", 40) == "my-job-3"
    long = [names.slug("a" * 60 + end, 40) for end in "bc"]
    assert len(set(long)) == 2
    assert all(len(name) <= 40 for name in long)
    groups = names.group_names("x" * 40, ["a_b", "a-b", "extraction-on-large-gpus"])
    assert len(set(groups.values())) == 3
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in groups.values())


@pytest.mark.parametrize(("count", "text"), [(8 * GiB, "8Gi"), (1536 * MiB, "1536Mi"), (5_000_000_000, "5000000000")])
def test_quantities__are_exact(count: int, text: str) -> None:
    assert names.quantity(count) == text


def test_shipped_profile__can_be_previewed(check_dask_kind: Check) -> None:
    profile = read_profile(ROOT / "cluster" / "kubernetes.yaml")
    found = preview(profile, Path("/state/jobs/demo-1"))
    assert [one["kind"] for one in found] == ["Job", "Secret", "DaskCluster", "DaskWorkerGroup", "DaskWorkerGroup"]
    check_dask_kind(found[2])
