"""A small store such as extraction and analyses leave it, and pages read back as a browser would."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from dneuro.report.write import write_report

CLASSES = ["zero", "one", "two", "three"]
COUNT, SIDE = 24, 14
FIELD = {"size": [5, 5], "stride": [2, 2], "start": [-2, -2]}
VOID = {"img", "meta", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Links, images, text and headings of a page, and whether its tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.source = path.read_text(encoding="utf-8")
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.images: list[dict[str, str]] = []
        self.headings: list[int] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(self.source)
        self.text = " ".join(self.text.split())
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.links += [values[name] for name in ("href", "src") if name in values]
        self.scripts += [values.get("src", "")] if tag == "script" else []
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "img":
            self.images.append(values)
        if tag in {"h1", "h2", "h3", "h4"}:
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="session")
def read_pages() -> Callable[[Path], dict[str, Page]]:
    """Read every page of the report that an index.html belongs to, by file name; those of neurons by their path."""

    def read(index: Path) -> dict[str, Page]:
        paths = sorted(index.parent.rglob("*.html"))
        return {path.relative_to(index.parent).as_posix(): Page(path) for path in paths}

    return read


@pytest.fixture(scope="session")
def pictures() -> Callable[[int], np.ndarray]:
    """Grey pictures: a bright square whose place tells the class, over noise."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (COUNT, SIDE, SIDE, 1), dtype=np.uint8)

    def picture(image: int) -> np.ndarray:
        drawn = noise[image].copy()
        corner = 2 + 2 * (image % len(CLASSES))
        drawn[corner : corner + 5, corner : corner + 5] = 230
        return drawn

    return picture


def _statistics(values: np.ndarray, k: int, side: int | None) -> dict[str, Any]:
    """Moments and both ends of (image, channel), as extraction records them; place = (channel + rank) mod side."""
    channels = values.shape[1]
    down = np.argsort(-values, axis=0, kind="stable")[:k].T
    up = np.argsort(values, axis=0, kind="stable")[:k].T
    rows = np.arange(channels)[:, None]
    found: dict[str, Any] = {
        "count": ("channel", np.full(channels, len(values))),
        "mean": ("channel", values.mean(axis=0)),
        "variance": ("channel", values.var(axis=0)),
        "fraction_active": ("channel", (values > 0).mean(axis=0)),
    }
    for end, order in (("top", down), ("bottom", up)):
        found[f"{end}_value"] = (("channel", "rank"), values[order, rows])
        found[f"{end}_image"] = (("channel", "rank"), order)
        if side is not None:
            place = (rows + np.arange(k)) % side
            found[f"{end}_y"] = (("channel", "rank"), place)
            found[f"{end}_x"] = (("channel", "rank"), place[:, ::-1].copy())
    return found


def result(analysis: str, step: str, layer: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Attributes of a result."""
    return {
        "analysis": analysis, "step": step, "layer": layer, "parameters": parameters, "fingerprint": "cd" * 32,
        "seconds": 0.5, "plan": {"passes": 1}, **more,
    }  # fmt: skip


def _results(layer: str, values: np.ndarray, labels: np.ndarray) -> dict[str, xr.Dataset]:
    centred = values - values.mean(axis=0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    with np.errstate(invalid="ignore", divide="ignore"):
        pearson = np.corrcoef(values.T)
    apart = np.sqrt(((values.T[:, None] - values.T[None]) ** 2).sum(axis=2))
    top = np.argsort(-values, axis=0, kind="stable")[:6].T
    counts = np.stack([np.bincount(labels[row], minlength=len(CLASSES)) for row in top])
    return {
        f"/results/svd/{layer}": xr.Dataset(
            {
                "singular_value": ("component", s), "explained_variance_ratio": ("component", s**2 / (s**2).sum()),
                "residual": ("component", np.full(s.size, 2.5e-9)), "score": (("image", "component"), u),
                "vector": (("component", "channel"), vt),
            },
            attrs=result(
                "svd", "svd", layer, {"rank": s.size, "standardize": "center", "seed": 0}, standardize="center",
                total_variance=float((s**2).sum()), reconstruction_error=0.0, method="gram", passes=2,
            ),
        ),
        f"/results/cof/{layer}": xr.Dataset(
            {"count": (("channel", "class"), counts)}, coords={"class": CLASSES},
            attrs=result("cooccurrence", "cof", layer, {"k": 6, "per": "channel"}),
        ),
        f"/results/similarity/{layer}": xr.Dataset(
            {"pearson": (("channel", "other_channel"), pearson), "euclidean": (("channel", "other_channel"), apart)},
            attrs=result("similarity", "similarity", layer, {"of": "activation", "metric": ["pearson", "euclidean"]}),
        ),
    }  # fmt: skip


def make_root() -> xr.Dataset:
    """Return the images: four classes, image 5 masked, image 2 taken for another class."""
    labels = np.arange(COUNT) % len(CLASSES)
    prediction = labels.copy()
    prediction[2] = 3
    status = np.zeros(COUNT, dtype=np.uint8)
    status[5] = 1
    about = {
        "name": "study", "network": "dneuro:convnet", "weights": "weights.safetensors", "weights_sha256": "3f" * 32,
        "preprocessing": {"resize": 14, "mean": [0.5]}, "images": {"source": "folder", "root": "/data/set"},
        "versions": {"dneuro": "0.1.0"}, "store": "/scratch/a.zarr", "created": "2026-01-02", "fingerprint": "ab" * 32,
    }  # fmt: skip
    return xr.Dataset(
        {
            "prediction": ("image", prediction), "correct": ("image", prediction == labels),
            "status": ("image", status),
        },
        coords={
            "image": np.arange(COUNT), "filename": ("image", [f"set/{i:03d}.png" for i in range(COUNT)]),
            "label": ("image", labels), "class": ("class", CLASSES),
        },
        attrs={"dneuro": about},
    )  # fmt: skip


def make_parts() -> dict[str, xr.Dataset]:
    """Return the datasets of a whole store by path: two layers with positions, one without, all analyses of each."""
    rng = np.random.default_rng(1)
    root = make_root()
    found = {"/": root}
    for layer, channels, side in (("conv.10", 5, 7), ("conv.9", 4, 7), ("fc", 6, None)):
        values = np.maximum(rng.normal(0.4, 1, (COUNT, channels)) * np.arange(1, channels + 1), 0)
        values[:, 1] = 0
        found[f"/layers/{layer}"] = xr.Dataset(
            _statistics(values, 8, side),
            attrs={
                "layer": layer, "order": ["conv.10", "conv.9", "fc"].index(layer),
                "kind": "ReLU", "keep": "max", "input_size": [SIDE, SIDE],
                "shape": [channels, *([side, side] if side else [])], "receptive_field": FIELD if side else None,
            },
        )  # fmt: skip
        found |= _results(layer, values, np.asarray(root["label"].values))
    return found


@pytest.fixture
def root() -> xr.Dataset:
    """The images."""
    return make_root()


@pytest.fixture(scope="session")
def images() -> xr.Dataset:
    """The images again, for results that serve several tests; to be read only."""
    return make_root()


@pytest.fixture
def parts() -> dict[str, xr.Dataset]:
    """The datasets of a whole store, by path."""
    return make_parts()


@pytest.fixture
def tree(parts: dict[str, xr.Dataset]) -> xr.DataTree:
    """The whole store."""
    return xr.DataTree.from_dict(parts)


@pytest.fixture
def small(parts: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """The datasets of the images and of layer fc alone."""
    return {path: data for path, data in parts.items() if path == "/" or path.endswith("/fc")}


@pytest.fixture(scope="session")
def written_in(
    pictures: Callable[[int], np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of the report of the whole store, 3 channels and 4 images at either end; to be read only."""
    tree = xr.DataTree.from_dict(make_parts())
    out = tmp_path_factory.mktemp("report") / "out"
    return write_report(tree, out, pictures=pictures, neurons=3, images=4).parent
