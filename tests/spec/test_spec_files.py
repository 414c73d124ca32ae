from __future__ import annotations

import re
from pathlib import Path

import pytest

from dneuro.errors import SpecError
from dneuro.spec import PoolSpec, ProfileSpec, find_profile, read_job, read_profile

REPOSITORY = Path(__file__).parents[2]


def test_local_profile__is_the_defaults() -> None:
    profile = read_profile(REPOSITORY / "cluster" / "local.yaml")
    pools = {"extract": PoolSpec(), "memory": PoolSpec()}
    assert profile == ProfileSpec.model_validate({"backend": "local", "pools": pools})


def test_local_profile__its_commented_settings_are_valid(tmp_path: Path) -> None:
    text = (REPOSITORY / "cluster" / "local.yaml").read_text(encoding="utf-8")
    path = tmp_path / "all.yaml"
    path.write_text(re.sub(r"(?m)^    # ", "    ", text), encoding="utf-8")
    assert read_profile(path).pools["extract"] == PoolSpec(workers=4, threads=1, cpus=2, memory=4 * 1024**3)


def test_profile__error_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("backend: local\npools:\n  extract:\n    wrkers: 2\n  memry: {}\n", encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        read_profile(path, ["backend=slrum"])
    assert str(caught.value).splitlines() == [
        f"{path}: 3 errors",
        f"{path}:4:5: pools.extract.wrkers: unknown key 'wrkers'",
        "  hint: did you mean 'workers' or 'gres'? choices: workers, threads, cpus, memory, gpus, env, start_timeout, "
        "partition, walltime, constraint, gres, directives, … (16 in all)",
        f"{path}:5:3: pools.memry: unknown pool 'memry'",
        "  hint: did you mean 'memory'? any other name makes a pool of its own",
        "in --set backend=slrum: backend: unknown value 'slrum'",
        "  hint: did you mean 'slurm'? choices: local, slurm, kubernetes, address",
    ]


def test_profile__given_a_job(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: x\nsteps: [report]\n", encoding="utf-8")
    with pytest.raises(SpecError, match="this is a job, not a profile"):
        read_profile(path)


def test_file__byte_order_mark_is_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfbackend: local\r\nstate: x\r\n")
    assert read_profile(path).state == "x"


def test_file__not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("backend: local\n# Größe\n".encode("latin-1"))
    with pytest.raises(SpecError, match=r"a\.yaml:2: not UTF-8: byte 0xf6") as caught:
        read_profile(path)
    assert caught.value.hint == "save the file as UTF-8"


def test_file__missing_names_the_nearest(tmp_path: Path) -> None:
    for name in ("alexnet.yaml", "vgg16.yml", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(SpecError, match="no such file") as caught:
        read_job(tmp_path / "vgg61.yml")
    assert caught.value.hint == f"jobs there: {tmp_path / 'vgg16.yml'}, {tmp_path / 'alexnet.yaml'}"
    with pytest.raises(SpecError, match="no such file") as caught:
        read_job(tmp_path / "nowhere" / "vgg61.yml")
    assert caught.value.hint == "there is no job there"


def test_file__a_folder_names_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "alexnet.yaml").touch()
    with pytest.raises(SpecError, match="is a folder, not a job") as caught:
        read_job(tmp_path)
    assert caught.value.hint == f"jobs there: {tmp_path / 'alexnet.yaml'}"


def test_find_profile__by_path_by_name_and_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first / "gpu.yaml", second / "gpu.yaml", second / "local.yaml", second / "big.box.yml"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    folders = [tmp_path / "none", first, second]
    assert find_profile("gpu", folders) == first / "gpu.yaml"
    assert find_profile(None, folders) == second / "local.yaml"
    assert find_profile("big.box", folders) == second / "big.box.yml"
    assert find_profile(str(second / "gpu.yaml"), folders) == second / "gpu.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()  # a folder of that name is no profile
    assert find_profile("local", folders) == second / "local.yaml"


def test_find_profile__unknown_lists_the_nearest_first(tmp_path: Path) -> None:
    for name in ("big", "gpu", "local"):
        (tmp_path / f"{name}.yaml").touch()
    for wanted in ("locl", "elsewhere/locl.yaml"):
        with pytest.raises(SpecError, match="locl") as caught:
            find_profile(wanted, [tmp_path])
        assert caught.value.hint == "profiles there: local, big, gpu"
    with pytest.raises(SpecError, match="no profile 'local' in any folder"):
        find_profile(None, [])
