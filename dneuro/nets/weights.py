"""States of networks in files: reading, downloading, fingerprinting and saving them.

Nothing that a file contains is executed: safetensors hold numbers only, and torch reads pickles with
``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dneuro.errors import NetworkError
from dneuro.files import write_atomically

State = dict[str, Tensor]

_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


def read_state(path: str | Path) -> State:
    """Return the tensors of a weights file by name, on the CPU.

    Parameters
    ----------
    path : str or Path
        ``.safetensors``, or ``.pth`` / ``.pt`` with a state dict, alone or as ``state_dict`` or ``model`` of
        a checkpoint. The prefix ``module.`` is taken off.

    Raises
    ------
    NetworkError
        If the file is missing, damaged, of another kind, or holds something else than named tensors.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise NetworkError(f"weights file {path} {what}", hint="weights: /path/to/the/weights.safetensors")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise NetworkError(
            f"{path} is not a weights file: its name ends in {path.suffix!r}",
            hint="weights: DEFAULT, none, or the path of a .safetensors, .pth or .pt file",
        )
    try:
        if path.suffix == ".safetensors":
            content: object = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NetworkError(
            f"cannot read weights file {path}: {reason}",
            hint="fetch it again, or save tensors alone: torch.save(model.state_dict(), 'weights.pth')",
        ) from error
    return _check_tensors(path, _unwrap(content))


def _unwrap(content: object) -> object:
    """Take the state out of a checkpoint, and the prefix of a wrapper off its names."""
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    for prefix in _PREFIXES:
        if isinstance(content, Mapping) and all(str(key).startswith(prefix) for key in content):
            content = {str(key).removeprefix(prefix): value for key, value in content.items()}
    return content


def _check_tensors(path: Path, content: object) -> State:
    hint = "save the state dict alone: torch.save(model.state_dict(), 'weights.pth')"
    if not isinstance(content, Mapping) or not content:
        what = "is empty" if isinstance(content, Mapping) else f"holds a {type(content).__name__}"
        raise NetworkError(f"weights file {path} {what}, not a state dict (name: tensor)", hint=hint)
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            found = f"{key!r}: {type(value).__name__}"
            raise NetworkError(f"weights file {path} holds {found} where a named tensor belongs", hint=hint)
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            found = f"{key} in a form that is not plain numbers"
            raise NetworkError(f"weights file {path} holds {found}", hint=hint)
    return {key: value.detach() for key, value in content.items()}


def fetch(standard: Any) -> Path:
    """Return the file of weights that torchvision publishes; download it where it is not there yet.

    Raises
    ------
    NetworkError
        If it cannot be downloaded; says which file to put where.
    """
    name = Path(standard.url).name
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / name
    if not path.exists():
        digest = torch.hub.HASH_REGEX.search(name)  # torchvision's names end in the start of their SHA-256
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(standard.url, str(path), digest and digest[1], progress=False)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise NetworkError(
                f"cannot download {standard.url}: {error}",
                hint=f"fetch {name} by hand and put it into {folder}, or say weights: /path/to/{name}",
            ) from error
    return path


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state, over names, dtypes, shapes and contents, in hexadecimal.

    The same for the same weights in whatever file they lie. Tensors on the meta device are left out.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        if not tensor.is_meta:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: str | Path) -> str:
    """Return `state_sha256` of what a safetensors file holds, as it lies there."""
    return state_sha256(safetensors.torch.load_file(path))


def save_state(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a state as safetensors; the file appears whole or not at all.

    Parameters
    ----------
    state : mapping
        Tensors by name.
    path : str or Path
        The file; its folder is made where it is missing.
    """
    write_atomically(Path(path), lambda file: file.write(state_bytes(state)))


def state_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Return a state as the content of a safetensors file."""
    apart = {  # safetensors refuses tensors that share memory
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()
    }
    return safetensors.torch.save(apart)
