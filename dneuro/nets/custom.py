"""Networks that a user's own Python makes: ``python:package.module:factory``, ``python:path/to/file.py:factory``.

The code that a job names is run, with all that the user may do: it is the user's own, as a script would be.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError
from torch import nn

from dneuro.errors import NetworkError, suggest
from dneuro.nets.architecture import Architecture, shape_made_by
from dneuro.nets.device import seeded
from dneuro.spec.network import NetworkSpec, Preprocessing, split_factory

_importing = threading.Lock()

_LIBRARIES = ("torch", "torchvision")
"""Their code is told by their version, which is recorded."""


def find(spec: NetworkSpec) -> Architecture:
    """Call the factory that a job names and return what it makes.

    Parameters
    ----------
    spec : NetworkSpec
        Its ``classes``, if given, are handed to the factory as ``classes=`` or ``num_classes=``.

    Raises
    ------
    NetworkError
        If the module cannot be imported, has no such factory, or that makes no ``torch.nn.Module``.
    """
    where, name = split_factory(spec.name)
    code = _import_file(spec.name, Path(where)) if _is_file(where) else _import_module(spec.name, where)
    factory = _factory(spec.name, code, name)
    build = partial(_make, spec, factory)
    with seeded(spec.seed):
        module = build().eval().cpu()
    preprocessing = spec.preprocessing or _own_preprocessing(spec.name, module)
    sized = preprocessing is not None and (preprocessing.crop or isinstance(preprocessing.resize, tuple))
    return Architecture(
        name=spec.name,
        identity=f"python:{name} sha256:{_sha256(code, module)}",
        build=build,
        preprocessing=preprocessing,
        input_shape=shape_made_by(preprocessing, ()) if preprocessing is not None and sized else None,
        module=module,
        shapes=False,
    )


def _is_file(where: str) -> bool:
    return where.endswith(".py") or "/" in where


def _import_module(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{where}.".startswith(f"{error.name}."):
            raise _failure(name, f"importing {where}", error) from error
        raise NetworkError(
            f"{name}: there is no module {error.name!r} to import",
            hint="put its folder on PYTHONPATH (workers need it too), or name the file: "
            f"python:path/to/{where.rpartition('.')[2]}.py:{name.rpartition(':')[2]}",
        ) from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise _failure(name, f"importing {where}", error) from error


def _import_file(name: str, path: Path) -> ModuleType:
    """Run a file as a module of its own, under a name that nothing else has; once per content and process."""
    try:
        source = path.read_bytes()
    except OSError as error:
        reason = "is a folder" if path.is_dir() else error.strerror
        raise NetworkError(
            f"{name}: cannot read {path}: {reason}", hint="python:/full/path/to/file.py:factory"
        ) from error
    digest = hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()
    unique = f"_dneuro_network_{digest[:24]}"
    with _importing:
        if unique in sys.modules:
            return sys.modules[unique]
        module = ModuleType(unique)
        module.__file__ = str(path.resolve())
        sys.modules[unique] = module  # dataclasses and the like look their own module up
        try:
            # Not by the import system: that trusts a cached file of the same second, and leaves one behind.
            exec(compile(source, str(path), "exec"), module.__dict__)
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            del sys.modules[unique]
            if isinstance(error, ModuleNotFoundError) and (path.parent / f"{error.name}.py").exists():
                raise NetworkError(
                    f"{name}: it imports {error.name}, a file beside it, but a file is run by itself",
                    hint=f"PYTHONPATH={path.parent}, and python:{path.stem}:{name.rpartition(':')[2]}",
                ) from error
            raise _failure(name, f"running {path}", error) from error
        return module


def _factory(name: str, code: ModuleType, attribute: str) -> Callable[..., Any]:
    try:
        factory = getattr(code, attribute)
    except AttributeError:
        choices = [key for key, value in vars(code).items() if callable(value) and not key.startswith("_")]
        raise NetworkError(f"{name}: there is no {attribute!r} in it", hint=suggest(attribute, choices)) from None
    if isinstance(factory, nn.Module):
        raise NetworkError(
            f"{name} is a network, not a function that makes one",
            hint=f"def make_{attribute}(): return {attribute}",
        )
    if not callable(factory):
        raise NetworkError(
            f"{name} is a {type(factory).__name__}, not a function that makes a network",
            hint="name a function or class that is called without arguments and returns a torch.nn.Module",
        )
    return factory  # type: ignore[no-any-return]


def _make(spec: NetworkSpec, factory: Callable[..., Any]) -> nn.Module:
    settings = {} if spec.classes is None else {_classes_keyword(spec, factory): spec.classes}
    try:
        made = factory(**settings)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise _failure(spec.name, "calling it", error) from error
    if not isinstance(made, nn.Module):
        raise NetworkError(
            f"{spec.name} returns a {type(made).__name__}, not a torch.nn.Module",
            hint="return the module itself, not its weights or a tuple",
        )
    return made


def _classes_keyword(spec: NetworkSpec, factory: Callable[..., Any]) -> str:
    try:
        known = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # something built in
        known = {}  # type: ignore[assignment]
    for keyword in ("classes", "num_classes"):
        if keyword in known and known[keyword].kind != inspect.Parameter.POSITIONAL_ONLY:
            return keyword
    raise NetworkError(
        f"{spec.name} takes no classes=, the job says classes: {spec.classes}",
        hint="leave `classes:` out, or give the factory a parameter `classes`",
    )


def _own_preprocessing(name: str, module: nn.Module) -> Preprocessing | None:
    """Return what the network says of its input in an attribute or method ``preprocessing``."""
    found = getattr(module, "preprocessing", None)
    if isinstance(found, nn.Module):  # a part of the network
        return None
    try:
        found = found() if callable(found) else found
        if found is None or isinstance(found, Preprocessing):
            return found
        return Preprocessing.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["preprocessing", *map(str, first["loc"])])
        raise NetworkError(
            f"{name}: the network's own {place} cannot be used: {first['msg']}",
            hint="a dict with the keys of the job's preprocessing: {'resize': 256, 'crop': 224}",
        ) from error
    except Exception as error:  # whatever the user's method raises
        raise _failure(name, "asking for its preprocessing", error) from error


def _failure(name: str, doing: str, error: BaseException) -> NetworkError:
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    return NetworkError(
        f"{name}: {doing} failed: {type(error).__name__}: {reason}",
        hint="try it alone in Python: the factory must work without arguments",
    )


def _sha256(code: ModuleType, module: nn.Module) -> str:
    """Return a hash of the code: of the factory's file and of those that define the network's parts."""
    modules = {code.__name__, *(type(part).__module__ for part in module.modules())}
    contents = set()
    for name in modules:
        path = getattr(sys.modules.get(name), "__file__", None)
        if path is not None and name.partition(".")[0] not in _LIBRARIES and Path(path).is_file():
            contents.add(hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return hashlib.sha256("\n".join(sorted(contents)).encode()).hexdigest()
