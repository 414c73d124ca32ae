from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import StoreError
from dneuro.jobs.driver import run_job
from dneuro.spec import parse_job
from dneuro.store import Store, open_store

KEPT = {"relu1": {"keep": "full"}, "relu2": {"keep": "max"}, "pool2": {"keep": "mean"}, "conv1": {"keep": "stats"},
        "fc": {"keep": "full"}}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with every way of keeping a layer, and results."""
    path = tmp_path_factory.mktemp("opening") / "acts.zarr"
    job = {
        "name": "opening",
        "images": {"source": "digits", "sample": 40},
        "network": {"name": "dneuro:convnet", "weights": "none"},
        "store": str(path),
        "steps": [
            {"extract": {"layers": KEPT, "images_per_unit": 16, "top_k": 5}},
            {"svd": {"layer": ["fc", "relu1"], "rank": 2, "method": "krylov"}},
            {"moments": {"per": "image", "layer": "fc"}},
        ],
    }
    executor = ThreadExecutor(2)
    run_job(parse_job(json.dumps(job)), executor)
    executor._pool.shutdown()
    yield path


@pytest.fixture
def store(path: Path) -> Store:
    return open_store(path)


def test_store__is_a_mapping_of_layers_to_arrays(store: Store) -> None:
    assert list(store) == ["relu1", "pool2", "relu2", "fc"], "in the order of the network, without conv1"
    assert len(store) == 4
    assert "fc" in store
    assert store.layers == ["conv1", "relu1", "pool2", "relu2", "fc"]
    assert {name: array.dims for name, array in store.items()} == {
        "relu1": ("image", "channel", "y", "x"),
        "pool2": ("image", "channel"),
        "relu2": ("image", "channel"),
        "fc": ("image", "channel"),
    }


def test_store__reads_nothing_before_it_is_asked(store: Store) -> None:
    array = store["relu1"]
    assert array.chunks is not None
    assert array.chunks[0] == (16, 16, 8)
    assert array.dtype == np.float32


def test_store__labels_every_array(store: Store, path: Path) -> None:
    root = store.images
    for name, array in store.items():
        assert array.coords["image"].values.tolist() == list(range(40))
        for coord in ("filename", "label", "prediction", "correct"):
            np.testing.assert_array_equal(array.coords[coord].values, root[coord].values)
        assert "status" not in array.coords, "nothing is masked"
        assert array.attrs["layer"] == name
        assert array.attrs["class_names"] == list("0123456789")
    assert store["relu1"].attrs["shape"] == [10, 12, 12]
    assert store["relu1"].attrs["keep"] == "full"
    # conv 5×5, then pooling 2×2: position (0, 0) sees 6 × 6 pixels, the next one starts 2 further on
    assert store["relu1"].attrs["receptive_field"] == {"size": [6, 6], "stride": [2, 2], "start": [0, 0]}
    assert store["relu1"].attrs["input_size"] == [28, 28]
    assert store["fc"].attrs["receptive_field"] is None
    assert {"activation_y", "activation_x"} <= store["relu2"].coords.keys()


def test_store__tells_where_it_comes_from(store: Store) -> None:
    attrs = store.attrs
    assert attrs["job"] == "opening"
    assert attrs["network"] == "dneuro:convnet"
    assert attrs["images"]["source"] == "digits"
    assert attrs["preprocessing"]["resize"] == [28, 28]
    assert len(attrs["weights_sha256"]) == len(attrs["fingerprint"]) == 64
    assert {"torch", "zarr", "dneuro", "python"} <= attrs["versions"].keys()


def test_store__gives_statistics_of_layers_without_activations(store: Store) -> None:
    found = store.statistics("conv1")
    assert found["mean"].sizes == {"channel": 10}
    assert found["top_image"].sizes == {"channel": 10, "rank": 5}
    assert {"top_y", "top_x"} <= found.variables.keys()
    assert not [v for v in found.variables if "image" in found[v].dims]
    with pytest.raises(StoreError, match="of layer 'conv1' only statistics were kept") as caught:
        store["conv1"]
    assert "statistics('conv1')" in str(caught.value.hint)


def test_store__gives_results_by_step_and_layer(store: Store) -> None:
    found = store.results
    assert {step: list(layers) for step, layers in found.items()} == {"svd": ["relu1", "fc"], "moments": ["fc"]}
    assert found["svd"]["relu1"]["vector"].dims == ("component", "channel", "y", "x")
    assert found["moments"]["fc"]["mean"].dims == ("image",)
    assert found["svd"]["fc"].attrs["analysis"] == "svd"
    assert found["svd"]["fc"].attrs["parameters"]["rank"] == 2


def test_store__names_the_nearest_layer(store: Store) -> None:
    with pytest.raises(StoreError, match="has no layer 'relu_1'") as caught:
        store["relu_1"]
    assert "'relu1'" in str(caught.value.hint)
    with pytest.raises(StoreError, match="has no layer"):
        store.statistics("nope")


def test_store__shows_what_it_holds(store: Store) -> None:
    text = repr(store)
    for words in ("40 images", "relu1", "10×12×12, full", "stats", "results: svd (relu1, fc)"):
        assert words in text


@pytest.mark.parametrize("what", ["nothing", "file", "folder", "group", "array", "broken"])
def test_open__refuses_what_is_no_store(tmp_path: Path, what: str) -> None:
    path = tmp_path / "mine"
    make: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "file": lambda: path.write_text("x"),
        "folder": path.mkdir,
        "group": lambda: zarr.create_group(path),
        "array": lambda: zarr.create_array(path, shape=(3,), dtype="f4"),
        "broken": lambda: path.mkdir() or (path / "zarr.json").write_text("{"),
    }
    make[what]()
    with pytest.raises(StoreError, match="mine"):
        open_store(path)


FOREIGN = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in ("dneuro", "torch"):
                raise ImportError(name)

    sys.meta_path.insert(0, Blocker())
    import warnings
    warnings.simplefilter("error")
    import json
    import numpy as np
    import xarray as xr
    import zarr

    path = sys.argv[1]
    tree = xr.open_datatree(path, engine="zarr", consolidated=False)
    layer = xr.open_zarr(path, group="layers/relu1", consolidated=False)
    plain = zarr.open_group(path, mode="r")
    assert "dneuro" not in sys.modules
    print(json.dumps({
        "groups": sorted(tree.groups),
        "classes": [str(tree["class"].values[i]) for i in tree["label"].values],
        "files": tree["filename"].values.tolist(),
        "prediction": tree["prediction"].values.tolist(),
        "correct": tree["correct"].values.tolist(),
        "layer_label": layer["label"].values.tolist(),
        "layer_file": layer["filename"].values.tolist(),
        "dims": list(layer["activation"].dims),
        "units": layer["activation"].attrs["units"],
        "sum": float(layer["activation"].values.astype("f8").sum()),
        "plain": float(plain["layers/relu1/activation"][:].astype("f8").sum()),
        "mean": layer["mean"].values.tolist(),
        "singular": tree["results/svd/fc/singular_value"].values.tolist(),
        "network": tree.attrs["dneuro"]["network"],
        "keep": layer.attrs["keep"],
    }))
"""


def test_store__opens_without_dneuro(store: Store, path: Path) -> None:
    program = textwrap.dedent(FOREIGN)
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    array = store["relu1"]
    names = array.attrs["class_names"]
    assert found["classes"] == [names[i] for i in array["label"].values]
    assert found["files"] == found["layer_file"] == array["filename"].values.tolist()
    assert found["prediction"] == array["prediction"].values.tolist()
    assert found["correct"] == array["correct"].values.tolist()
    assert found["layer_label"] == array["label"].values.tolist()
    assert found["dims"] == ["image", "channel", "y", "x"]
    assert found["units"] == "activation"
    total = float(array.values.astype("f8").sum())
    assert found["sum"] == found["plain"] == pytest.approx(total)
    np.testing.assert_allclose(found["mean"], array.max(("y", "x")).values.astype("f8").mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found["singular"], store.results["svd"]["fc"]["singular_value"].values)
    assert found["network"] == "dneuro:convnet"
    assert found["keep"] == "full"
    assert {"/layers/conv1", "/results/svd/relu1", "/pictures"} <= set(found["groups"])


def test_store__is_opened_by_xarray_itself_with_all_of_its_groups(path: Path) -> None:
    tree = xr.open_datatree(path, engine="zarr", consolidated=False)
    assert tree["layers/relu2/activation_max"].sizes == {"image": 40, "channel": 20}
    assert tree["pictures/picture"].shape == (40, 28, 28, 1)
