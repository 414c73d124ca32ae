from __future__ import annotations

import hashlib
import io
import os
import pickle
import stat
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
from torchvision import models

from dneuro.errors import NetworkError
from dneuro.nets.weights import fetch, read_state, save_state, state_sha256

State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(2, 3, generator=generator),
        "bn.num_batches_tracked": torch.tensor(7),
        "half": torch.randn(3, generator=generator).to(torch.bfloat16),
        "empty": torch.zeros(0, 4),
    }


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a
    )


def test_read_state__same_from_every_kind_of_file(tmp_path: Path, state: State) -> None:
    save_state(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "c.pt")
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "d.pth")
    compiled = {f"_orig_mod.{key}": torch.nn.Parameter(value, False) for key, value in state.items()}
    torch.save(compiled, tmp_path / "e.pth")
    torch.save(
        state, tmp_path / "f.pth", _use_new_zipfile_serialization=False
    )  # as torchvision's older files
    for path in sorted(tmp_path.iterdir()):
        assert same(read_state(path), state), path.name
        assert state_sha256(read_state(path)) == state_sha256(state)


def test_read_state__keeps_a_prefix_that_not_all_names_have(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "a.pth")
    assert set(read_state(tmp_path / "a.pth")) == {"module.a", "b"}


class Evil:
    """Executes a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch evil-was-here",))


def test_read_state__never_runs_what_a_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, "zip.pth")
    torch.save({"weight": Evil()}, "old.pth", _use_new_zipfile_serialization=False)
    Path("plain.pth").write_bytes(pickle.dumps({"weight": Evil()}))
    for name in ("zip.pth", "old.pth", "plain.pth"):
        with pytest.raises(NetworkError, match=f"cannot read weights file {name}") as caught:
            read_state(name)
        assert "save" in str(caught.value.hint)
    assert not Path("evil-was-here").exists()


def test_read_state__refuses_a_pickled_module(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(NetworkError, match=r"cannot read weights file .*module\.pth"):
        read_state(tmp_path / "module.pth")


def damaged_files() -> dict[str, bytes]:
    whole = io.BytesIO()
    torch.save({"a": torch.arange(1000.0)}, whole)
    tensors = safetensors.torch.save({"a": torch.arange(1000.0)})
    return {
        "empty.pth": b"",
        "text.pth": b"this is not a network\n",
        "noise.pt": hashlib.sha256(b"noise").digest() * 100,
        "cut.pth": whole.getvalue()[: len(whole.getvalue()) // 2],
        "empty.safetensors": b"",
        "huge-header.safetensors": struct.pack("<Q", 2**62) + b"{}",
        "cut.safetensors": tensors[:-100],
        "pickle.safetensors": pickle.dumps({"a": 1}),
        "overlap.safetensors": b"".join(
            [
                struct.pack("<Q", 62),
                b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4]}}  ',
                b"\0\0\0\0",
            ]
        ),
    }


@pytest.mark.parametrize("name", list(damaged_files()))
def test_read_state__names_a_damaged_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(damaged_files()[name])
    with pytest.raises(NetworkError, match=name) as caught:
        read_state(tmp_path / name)
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "is empty"),
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({"a": torch.zeros(1), "epoch": 3}, "holds 'epoch': int where a named tensor belongs"),
        ({1: torch.zeros(1)}, "holds 1: Tensor"),
        ({"state_dict": {"a": "b"}}, "holds 'a': str"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "in a form that is not plain numbers"),
        ({"a": torch.empty(10**9, device="meta")}, "in a form that is not plain numbers"),
    ],
)
def test_read_state__refuses_what_is_not_a_state_dict(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(NetworkError, match=message) as caught:
        read_state(tmp_path / "odd.pth")
    assert "state_dict()" in str(caught.value.hint)


def test_read_state__says_what_is_wrong_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"missing\.pth does not exist"):
        read_state(tmp_path / "missing.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(NetworkError, match="is a folder"):
        read_state(tmp_path / "folder.pth")
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(NetworkError, match=r"its name ends in '\.h5'") as caught:
        read_state(tmp_path / "weights.h5")
    assert ".safetensors" in str(caught.value.hint)


def test_state_sha256__sees_names_shapes_dtypes_and_contents_and_nothing_else(state: State) -> None:
    digest = state_sha256(state)
    assert digest == state_sha256(dict(reversed(state.items())))
    assert digest == state_sha256(
        {**state, "conv.weight": state["conv.weight"].t().contiguous().t()}
    )  # strides
    others = [
        {**state, "conv.weight": state["conv.weight"].reshape(3, 2)},
        {**state, "conv.weight": state["conv.weight"].view(torch.int32)},
        {**state, "conv.weight": state["conv.weight"].nextafter(torch.tensor(9.0))},
        {"conv.Weight" if key == "conv.weight" else key: value for key, value in state.items()},
        {key: value for key, value in state.items() if key != "empty"},
    ]
    assert len({digest, *map(state_sha256, others)}) == 1 + len(others)


def test_save_state__takes_shared_and_strided_tensors_and_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.safetensors"
    shared = torch.arange(6.0).reshape(2, 3)
    save_state({"a": shared.t(), "b": shared, "c": shared}, path)
    save_state({"a": shared.t(), "b": shared, "c": shared}, path)
    assert same(read_state(path), {"a": shared.t(), "b": shared, "c": shared})
    assert list(path.parent.iterdir()) == [path]
    plain = path.with_name("plain")
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)  # as the umask says


def test_save_state__leaves_the_old_file_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    save_state({"a": torch.zeros(1)}, path)

    def full_disk(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_state({"a": torch.ones(1)}, path)
    assert same(read_state(path), {"a": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == [path]


def test_fetch__says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_args: object, **_kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.raises(
        NetworkError, match=r"cannot download https://.*-7be5be79\.pth: .*not known"
    ) as caught:
        fetch(models.AlexNet_Weights.DEFAULT)
    hint = str(caught.value.hint)
    assert (
        f"fetch alexnet-owt-7be5be79.pth by hand and put it into {tmp_path / 'hub' / 'checkpoints'}" in hint
    )
    assert "weights: /path/to/alexnet-owt-7be5be79.pth" in hint


def test_fetch__refuses_a_download_with_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(io.BytesIO):
        def info(self) -> Any:
            return type("Headers", (), {"get_all": lambda *_: None})()

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_args: Answer(b"<html>log in first</html>"))
    with pytest.raises(NetworkError, match=r"invalid hash value"):
        fetch(models.AlexNet_Weights.DEFAULT)
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


def test_fetch__takes_the_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    path.touch()
    assert fetch(models.AlexNet_Weights.DEFAULT) == path
