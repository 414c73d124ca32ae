"""Giving a network its weights, or saying why they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dneuro.errors import NetworkError
from dneuro.nets.vision import rename_key
from dneuro.nets.weights import State

_SHOWN = 3  # keys listed in a message


def fit(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    needed: Callable[[str], bool] | None = None,
    users: Callable[[list[str]], tuple[list[str], list[str]]] | None = None,
) -> tuple[State, list[str]]:
    """Return the complete state of a network, made from what a file holds.

    Parameters
    ----------
    module : torch.nn.Module
        The network, with or without weights; left as it is.
    state : mapping
        Tensors by name, on the CPU.
    source : str
        Where they are from and what for, for messages.
    needed : callable, optional
        Tells of a key whether the network needs it; the default needs all.
    users : callable, optional
        Tells which layers that were asked for need one of some keys, and which do not; for messages.

    Returns
    -------
    state : dict
        As ``module.state_dict()``, in the network's dtypes; what was left out stays as the network has it.
    skipped : list of str
        The keys that were not there and not needed.

    Raises
    ------
    NetworkError
        If keys are missing or unknown, or a tensor has another shape or kind of number.
    """
    own = module.state_dict()
    given = _rename(state, own)
    missing = [key for key in own if key not in given and not key.endswith(".num_batches_tracked")]
    skipped = [key for key in missing if needed is not None and not needed(key)]
    lacking = [key for key in missing if key not in skipped]
    _check(own, given, lacking, source, users(lacking) if users is not None and lacking else ([], []))
    for key, value in given.items():  # in place: the state dict carries versions that some modules ask for
        own[key] = value.to(own[key].dtype)
    return own, skipped


def attach(module: nn.Module, state: State, device: torch.device) -> None:
    """Put the tensors of `fit` into the network itself, on `device`; without a copy where they are there."""
    for key, value in state.items():
        if not value.is_meta:
            state[key] = value.to(device)
    module.load_state_dict(state, assign=True)
    for part in module.modules():  # buffers that belong to no state
        for name, buffer in part.named_buffers(recurse=False):
            if not buffer.is_meta and buffer.device != device:
                setattr(part, name, buffer.to(device))


def leave_file(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what is left of the weights in `state` in a network, if others of them, most, have been copied already.

    Weights of a file are parts of it in memory, and a single one of them keeps all of it.
    """
    there = {tensor.data_ptr(): tensor.nbytes for tensor in state.values() if not tensor.is_meta and tensor.nbytes}
    left = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.data_ptr() in there]
    if 2 * sum(tensor.nbytes for tensor in left) <= sum(there.values()):
        for tensor in left:
            tensor.data = tensor.data.clone()


def _rename(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> State:
    """Give keys of older files today's names, and drop those that serve training only."""
    renamed: State = {}
    for key, value in state.items():
        today = key if key in own else rename_key(key)
        if today is not None:
            renamed[today] = value
    return renamed


def _check(
    own: State, given: State, missing: list[str], source: str, layers: tuple[list[str], list[str]]
) -> None:
    unknown = [key for key in given if key not in own]
    shapes = [key for key in given if key in own and given[key].shape != own[key].shape]
    kinds = [key for key in given if key in own and _kind(given[key]) != _kind(own[key])]
    problems = [
        *([f"misses {_list(missing)}{_needed_by(layers[0])}"] if missing else []),
        *([f"has {_list(unknown)}, which the network does not have"] if unknown else []),
        *(
            f"has {key} of shape {tuple(given[key].shape)} where {tuple(own[key].shape)} is needed"
            for key in shapes[:_SHOWN]
        ),
        *([f"… and {len(shapes) - _SHOWN} more shapes"] if len(shapes) > _SHOWN else []),
        *(f"has {key} as {given[key].dtype} where {own[key].dtype} is needed" for key in kinds[:_SHOWN]),
    ]
    if problems:
        others = unknown or shapes or kinds
        hint = _without(*layers) if all(layers) and not others else _hint(own, given, missing, shapes)
        raise NetworkError(f"{source}: the file {'; '.join(problems)}", hint=hint)


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _list(keys: Sequence[str]) -> str:
    more = f", … ({len(keys)} in all)" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def _needed_by(layers: list[str]) -> str:
    if not layers:
        return ""
    return f", needed by {'layer' if len(layers) == 1 else 'layers'} {_list(layers)}"


def _without(in_need: list[str], others: list[str]) -> str:
    """Return what to do where weights are enough for some of the layers that were asked for."""
    return (
        f"leave {_list(in_need)} out of `layers:` ({_list(others)} can be had with this file), or give the weights of "
        "the whole network, such as weights: DEFAULT"
    )


def _hint(own: State, given: State, missing: list[str], shapes: list[str]) -> str:
    sizes = {size for key in shapes for size in given[key].shape[:1]}
    only_last = all(given[key].shape[1:] == own[key].shape[1:] for key in shapes)
    if len(sizes) == 1 and only_last and not missing:
        return f"if these weights are for another number of classes: network: {{classes: {sizes.pop()}}}"
    return "name the network that these weights are of, or give weights of this one"
