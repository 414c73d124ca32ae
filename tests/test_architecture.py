"""The layers of the package, held by reading its imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dneuro

ROOT = Path(dneuro.__file__).parent

# What each room may import besides itself; the rooms are in ARCHITECTURE order, from the ground up.
BASE = {"allocation", "errors", "quantities", "events", "files", "products"}
ISLANDS = {"kernels", "nets", "images", "store"}
MAY_IMPORT: dict[str, set[str]] = {
    "allocation": set(),
    "errors": set(),
    "quantities": set(),
    "events": set(),
    "files": set(),
    "products": set(),
    "spec": BASE,
    **{island: BASE | {"spec"} for island in ISLANDS},
    "engine": BASE | {"spec"},
    "extract": BASE | {"spec", "engine"} | ISLANDS,
    "analysis": BASE | {"spec", "engine", "kernels", "store"},
    "report": BASE | {"spec"},
    "cluster": BASE | {"spec", "engine"},
    "jobs": BASE | {"spec", "engine", "extract", "analysis", "report", "cluster"} | ISLANDS,
    "progress": BASE,
    "tables": BASE | {"jobs", "cluster"},
    "cli": BASE | {"spec", "engine", "jobs", "cluster", "nets", "progress", "tables"},
    "__init__": BASE | {"analysis", "cluster", "extract", "jobs", "store"},
    "__main__": {"cli"},
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).parts[0].removesuffix(".py"), path


def imports(path: Path) -> Iterator[str]:
    """The rooms of dneuro that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "dneuro" else [module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("dneuro."))


@pytest.mark.parametrize("room", sorted({room for room, _ in modules()}))
def test_layers__imports_point_down(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {found}"
        for its, path in modules()
        if its == room
        for found in imports(path)
        if found != room and found not in MAY_IMPORT[room]
    ]
    assert wrong == []


def test_layers__have_no_cycle_between_files() -> None:
    files = {".".join(("dneuro", *path.relative_to(ROOT).with_suffix("").parts)): path for _, path in modules()}
    edges = {
        name: {
            target
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom) and node.module
            for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            if target in files
        }
        for name, path in files.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above, name))
        if name not in done:
            for target in edges[name]:
                visit(target, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("dneuro", {"numpy", "torch", "xarray", "distributed", "pydantic"}),
        ("dneuro.cli", {"numpy", "torch", "xarray", "distributed", "pydantic"}),
        ("dneuro.spec", {"numpy", "torch", "xarray", "distributed"}),
        ("dneuro.images.sources", {"torch", "xarray", "distributed"}),
        ("dneuro.analysis", {"torch", "torchvision", "matplotlib", "PIL"}),
        ("dneuro.engine", {"torch", "zarr", "matplotlib"}),
        ("dneuro.store", {"torch", "matplotlib", "PIL"}),
    ],
)
def test_imports__leave_out_what_is_heavy(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*(set({sorted(absent)!r}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_face__names_exactly_what_it_offers() -> None:
    assert dneuro.__all__ == [
        "DneuroError",
        "Job",
        "Store",
        "class_selectivity",
        "clusters",
        "connect",
        "connections",
        "cooccurrence",
        "coupled_nmf",
        "export",
        "extract",
        "facets",
        "gini",
        "ica",
        "jobs",
        "kmeans",
        "listening",
        "mean_similarity",
        "moments",
        "nmf",
        "on_device",
        "open",
        "open_cluster",
        "patch_components",
        "plan",
        "random_projections",
        "regression",
        "report",
        "run",
        "select",
        "selectivity",
        "similar_places",
        "similarity",
        "single_neurons",
        "spectral_flatness",
        "submit",
        "svd",
        "top_images",
        "top_patches",
        "verify",
        "weights_between",
    ]
    for name in dneuro.__all__:
        assert callable(getattr(dneuro, name))
    with pytest.raises(AttributeError, match="no attribute 'svdd'"):
        _ = dneuro.svdd


def test_face__is_not_hidden_by_packages_of_the_same_name() -> None:
    code = "import dneuro.extract.run, dneuro.report.write; print(callable(dneuro.extract), callable(dneuro.report))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "True"]
