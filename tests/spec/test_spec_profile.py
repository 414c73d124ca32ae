"""Profiles of every kind of machine: what is shipped is right, and what is wrong is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dneuro.errors import SpecError
from dneuro.spec import ProfileSpec, read_profile

PROFILES = sorted((Path(__file__).parents[2] / "cluster").glob("*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_shipped_profiles__have_both_pools(path: Path) -> None:
    profile = read_profile(path)
    for pool in ("extract", "memory"):
        assert profile.group(pool) in profile.groups
        assert profile.timeout(pool) > 0
    assert ProfileSpec.model_validate_json(profile.model_dump_json()) == profile


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_shipped_profiles__their_commented_settings_are_settings(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each `# key: value` is one that may stand there; `# <-` and prose are not touched."""
    monkeypatch.setenv("USER", "me")
    text = re.sub(r"(?m)^( *)# (?=( *- |[a-z_]+:(\s|$)))", r"\1", path.read_text(encoding="utf-8"))
    text = re.sub(r"(?m)^( *)# <- +(?=[a-z_]+:)", r"\1", text)
    assert yaml.safe_load(text) != {}
    whole = tmp_path / "whole.yaml"
    whole.write_text(text, encoding="utf-8")
    assert read_profile(whole)


def errors(tmp_path: Path, text: str) -> str:
    path = tmp_path / "p.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        read_profile(path)
    return str(caught.value).replace(f"{path}:", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backend: slurm\n", "1:1: pools: there must be a pool with its size"),
        ("backend: slurm\npools:\n  extract: {workers: 2}\n", "3:3: pools.extract.memory: missing: how much memory"),
        ("backend: local\nslurm: {account: a}\n", "2:1: slurm: is for `backend: slurm`, this is `backend: local`"),
        ("backend: local\npools:\n  memory:\n    partition: x\n",
         "4:5: pools.memory.partition: is for `backend: slurm`, this is `backend: local`"),
        ("backend: local\nsecurity: {bind: eth0}\n", "2:12: security.bind: workers of this machine listen on loopback"),
        ("backend: address\n", "1:1: address: missing: the scheduler to use"),
        ("backend: address\naddress: {scheduler: host}\n", "'host' is no address of a dask scheduler"),
        ("backend: kubernetes\npools: {extract: {memory: 1GiB}}\n", "kubernetes: missing: the image"),
        ("backend: address\naddress: {scheduler: \"tcp://host:65536\"}\n", "a port is a number from 1 to 65535"),
        ("backend: address\naddress: {scheduler: \"tcp://host:0\"}\n", "a port is a number from 1 to 65535"),
        ("backend: address\naddress: {scheduler: \"tls://host:1\", cert: c.pem}\n",
         "2:1: address: tls://host:1 needs address.ca, address.key"),
        ("backend: local\nstate: nosuch://x\n", "2:1: state: 'nosuch://x': nothing can be kept at nosuch://"),
        ("backend: local\nstate: http://host/x\n", "2:1: state: 'http://host/x': nothing can be kept at http://"),
        ("backend: local\nstate: s3://\n", "2:1: state: 's3://' names no bucket"),
        ("backend: local\nstate: ~nobody-is-called-so/x\n",
         "2:1: state: '~nobody-is-called-so/x' begins with the home of a user"),
        ("backend: local\nstate: \"a\\0b\"\n", "2:1: state: 'a\\x00b' has a null character in it"),
        ("backend: local\npools: {extract: {gpus: true}}\n", "pools.extract.gpus: must be a number, not true"),
        ("backend: local\npools: {extract: {env: {A: true}}}\n",
         "env.A: must be text or a number, not true\nhint: write the text that is meant in quotes: \"true\""),
        ("backend: local\npools: {extract: {env: {A: \"x\\0y\"}}}\n", "pools.extract.env.A: 'x\\x00y' has a null"),
        ("backend: local\npools: {extract: {gpus: 2}}\n", "pools.extract.gpus: must be at most 1, not 2"),
        ("backend: local\npools: {a b: {}}\n", "is no name"),
        ("backend: slurm\npools: {extract: {memory: 1GiB}}\nslurm: {setup: [\"a\\nb\"]}\n", "must be one line of text"),
        ("backend: slurm\npools: {extract: {memory: 1GiB}}\nslurm: {acount: x}\n", "did you mean 'account'"),
        ("backend: slurm\npools: {extract: {memory: 1GiB, walltime: soon}}\n", "a duration such as '4h'"),
        ("backend: slurm\npools: {extract: {memory: 1GiB, walltime: 0}}\n", "must be more than 0"),
        ("backend: local\npools: {extract: {memory: 0}}\n", "must be more than 0"),
        ("backend: local\nstart_timeout: 0s\n", "must be more than 0"),
        ("backend: local\ndriver: {memory: 0}\n", "must be more than 0"),
        ("backend: local\ndriver: {memory: 1KiB}\n", "driver.memory: 1 KiB are too few for a driver"),
        (f"backend: kubernetes\npools: {{extract: {{memory: 1GiB}}}}\nkubernetes:\n  image: a/b@sha256:{'0' * 64}\n"
         "  volumes: [{claim: a, path: /data}, {claim: b, path: /data/}]\n",
         "kubernetes.volumes: two volumes are to be mounted at /data"),
        ("backend: local\npools: {extract: {env: {\"A;B\": 1}}}\n", "is no name of an environment variable"),
        ("backend: slurm\npools: {extract: {memory: 1GiB, directives: [exclude=n7]}}\n",
         "pools.extract.directives[0]: 'exclude=n7' is no option of sbatch"),
        ("backend: slurm\npools: {extract: {memory: 1GiB, directives: ['--comment=\"a']}}\n",
         "pools.extract.directives[0]: '--comment=\"a' has a quote that is not closed"),
    ],
)  # fmt: skip
def test_profile__that_is_wrong_is_told_where(tmp_path: Path, text: str, said: str) -> None:
    assert said in errors(tmp_path, text)


@pytest.mark.parametrize("place", ["driver", "pools.extract"])
@pytest.mark.parametrize(
    ("option", "own", "instead"),
    [
        ("--array=1-4", "--array", "`workers:` of a pool"),
        ("-a1-4", "--array", "`workers:` of a pool"),
        ("--exclude=n7 --output=/tmp/x", "--output", "below `state:`"),
        ("-o x", "--output", "below `state:`"),
        ("--err=x", "--error", "below `state:`"),
        ("--requeue", "--requeue", "`slurm: {requeue: …}`"),
        ("--no-requeue", "--no-requeue", "`slurm: {requeue: …}`"),
        ("--signal=B:TERM@60", "--signal", "`walltime:`"),
        ("-J mine", "--job-name", "`name:` of the job"),
    ],
)
def test_directives__that_dneuro_sets_itself_are_refused_with_what_to_write(
    tmp_path: Path, place: str, option: str, own: str, instead: str
) -> None:
    inside = f"{{directives: ['--licenses=a', '{option}']}}"
    pool, driver = ("memory: 1GiB", inside) if place == "driver" else (f"memory: 1GiB, {inside[1:-1]}", "{}")
    said = errors(tmp_path, f"backend: slurm\npools: {{extract: {{{pool}}}}}\ndriver: {driver}\n")
    assert f"{place}.directives[1]: " in said
    assert f"is not for directives: dneuro sets {own} itself" in said
    assert instead in said


@pytest.mark.parametrize(
    ("option", "why", "instead"),
    [
        ("--clusters=gpu", "the job would go where squeue and scancel do not look for it", "a login node of that"),
        ("--cluster gpu", "the job would go where squeue and scancel do not look for it", "a login node of that"),
        ("-M gpu", "the job would go where squeue and scancel do not look for it", "a login node of that"),
        ("--wait", "sbatch would answer only when the job has ended", "`dneuro logs -f`"),
        ("-W", "sbatch would answer only when the job has ended", "`dneuro logs -f`"),
    ],
)
def test_directives__by_which_a_job_would_be_lost_are_refused(
    tmp_path: Path, option: str, why: str, instead: str
) -> None:
    pools = f"{{extract: {{memory: 1GiB, directives: ['--licenses=a {option}']}}}}"
    said = errors(tmp_path, f"backend: slurm\npools: {pools}\n")
    assert f"is not for directives: {why}" in said
    assert instead in said


def test_directives__of_a_name_that_begins_in_the_same_way_are_taken() -> None:
    given = ["--exclude=n7", "--reservation=r", "--begin=now+1hour", "-C a100", "--oversubscribe", "-w n7",
             "--cluster-constraint=a", "--wait-all-nodes=1"]  # fmt: skip
    pools = {"extract": {"memory": "1GiB", "directives": given}}
    profile = ProfileSpec.model_validate({"backend": "slurm", "pools": pools})
    assert list(profile.pools["extract"].directives) == given


@pytest.mark.parametrize("state", ["s3://bucket", "gs://bucket/a", "memory://a", "file:///tmp/a", "a", "./~b"])
def test_state__is_a_folder_or_in_an_object_store(state: str) -> None:
    assert ProfileSpec(backend="local", state=state).state == state


def test_pools__may_have_any_name() -> None:
    profile = ProfileSpec.model_validate(
        {"backend": "local", "pools": {"extract": {"workers": 1}, "extract-a100": {"workers": 2}, "big": None}}
    )
    assert list(profile.groups) == ["extract", "extract-a100"]
    assert profile.group("big") == profile.group("memory") == "extract"
    assert profile.group("extract-a100") == "extract-a100"


def test_timeout__is_the_pools_or_the_profiles_or_the_backends() -> None:
    pools = {"extract": {"memory": "1GiB"}, "memory": {"memory": "1GiB", "start_timeout": "1h"}}
    profile = ProfileSpec.model_validate({"backend": "slurm", "pools": pools})
    assert (profile.timeout("extract"), profile.timeout("memory")) == (900, 3600)
    assert profile.model_copy(update={"start_timeout": 5.0}).timeout("extract") == 5
    assert ProfileSpec(backend="local").timeout("extract") == 60
