"""Averages over all pairs of neurons: against NumPy on the whole matrix, wherever it lies and however it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro.engine.executors import ThreadExecutor
from dneuro.errors import ArrayError, MemoryLimitError
from dneuro.quantities import GiB, MiB

RNG = np.random.default_rng(1)
VALUES = RNG.standard_normal((40, 17)) + RNG.standard_normal((40, 1))
VALUES[:, 5] = 2.0  # does not vary
METRICS = ["pearson", "euclidean", "cosine", "covariance"]


def layer(values: np.ndarray = VALUES) -> xr.DataArray:
    return xr.DataArray(values, dims=("image", "channel"), attrs={"layer": "fc"})


def pairs(matrix: Any) -> np.ndarray:
    """The values of all pairs, each once, that have one."""
    values = np.asarray(matrix)[np.triu_indices(len(matrix), 1)]
    return values[np.isfinite(values)]


def test_mean_similarity__as_numpy_has_it_on_the_whole_matrix(threads: ThreadExecutor) -> None:
    with np.errstate(invalid="ignore"):
        correlations = pairs(np.corrcoef(VALUES.T))
    apart = pairs(np.linalg.norm(VALUES.T[:, None] - VALUES.T, axis=2))
    fewer = layer(VALUES[:, :6])
    found = dn.mean_similarity({"wide": dn.similarity(layer()), "narrow": dn.similarity(fewer)}, client=threads)
    assert found["layer"].values.tolist() == ["wide", "narrow"]
    assert found["features"].values.tolist() == [17, 6]
    assert found["pearson_pairs"].values.tolist() == [16 * 15 // 2, 5 * 4 // 2], "NaN is skipped"
    assert found["euclidean_pairs"].values.tolist() == [17 * 16 // 2, 6 * 5 // 2]
    for metric, wanted in (("pearson", correlations), ("euclidean", apart)):
        assert float(found[metric][0]) == pytest.approx(wanted.mean(), rel=1e-12)
        assert float(found[f"{metric}_std"][0]) == pytest.approx(wanted.std(), rel=1e-9)


@pytest.mark.parametrize("chunks", [(4, 17), (17, 3), (5, 4), (1, 1)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_mean_similarity__however_the_matrix_is_cut(
    chunks: Any, dtype: str, counted: Any, threads: ThreadExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 200)
    whole = dn.similarity(layer(), metric="pearson")["pearson"].astype(dtype)
    lazy, reads = counted(whole.values, chunks, whole.dims)
    found = dn.mean_similarity({"fc": xr.Dataset({"pearson": lazy})}, client=threads)
    assert float(found["pearson"][0]) == pytest.approx(pairs(whole).astype("f8").mean(), rel=1e-12)
    assert int(found["pearson_pairs"][0]) == len(pairs(whole))
    assert set(reads.values()) == {1}, "every chunk is read once"


def test_mean_similarity__of_every_metric_and_of_images(tmp_path: Path, threads: ThreadExecutor) -> None:
    similar = dn.similarity(layer(), metric=METRICS, client=threads)
    found = dn.mean_similarity({"fc": similar}, client=threads)
    for metric in METRICS:
        assert float(found[metric][0]) == pytest.approx(pairs(similar[metric]).mean(), rel=1e-12)
    of_images = dn.similarity(layer(), metric="cosine", per="image", client=threads)
    found = dn.mean_similarity({"fc": of_images, "other": similar}, client=threads)
    assert found["features"].values.tolist() == [40, 17]
    assert float(found["cosine"][0]) == pytest.approx(pairs(of_images["cosine"]).mean(), rel=1e-12)
    assert np.isnan(found["pearson"][0])
    assert found["pearson_pairs"].values.tolist() == [0, 120]
    on_disk = dn.similarity(layer(), out=tmp_path / "matrix.zarr", client=threads)
    again = dn.mean_similarity({"fc": on_disk}, client=threads)
    assert float(again["pearson"][0]) == pytest.approx(pairs(similar["pearson"]).mean(), rel=1e-6)


def test_mean_similarity__of_one_neuron_and_of_none_that_varies(threads: ThreadExecutor) -> None:
    one, still = layer(VALUES[:, :1]), layer(np.ones((5, 3)))
    found = dn.mean_similarity({"one": dn.similarity(one), "still": dn.similarity(still)}, client=threads)
    assert np.isnan(found["pearson"]).all()
    assert found["pearson_pairs"].values.tolist() == [0, 0]
    assert np.isnan(found["euclidean"][0])
    assert float(found["euclidean"][1]) == float(found["euclidean_std"][1]) == 0.0


def test_mean_similarity__holds_no_matrix() -> None:
    """60,000 neurons: 27 GiB as they lie, read in blocks."""
    empty = da.zeros((60_000, 60_000), chunks=2000, dtype="f8")
    wide = {"conv": xr.Dataset({"pearson": (("neuron", "other_neuron"), empty)})}
    plan = dn.plan("mean_similarity", wide, client=ThreadExecutor(1, memory=2 * GiB))
    assert plan.passes == 1
    assert plan.read_bytes == 60_000**2 * 8
    assert plan.worker_bytes < GiB
    assert plan.driver_bytes < 8 * MiB
    with pytest.raises(MemoryLimitError, match="mean_similarity needs"):
        dn.mean_similarity(wide, client=ThreadExecutor(1, memory=100 * MiB))


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "an empty mapping"),
        ({"fc": dn.similarity(layer(), neighbours=2)}, "layer fc: the dataset has no matrix of similarities"),
        ({"fc": dn.similarity(layer(), metric="pearson", threshold=0.5)}, "layer fc: the dataset has no matrix"),
        ({"fc": xr.Dataset()}, "layer fc: the dataset has no matrix"),
        ({"fc": layer()}, "layer fc: expected a dataset, got DataArray"),
    ],
)
def test_mean_similarity__refuses_what_is_not_all_pairs(results: Any, message: str) -> None:
    for call in (lambda: dn.mean_similarity(results), lambda: dn.plan("mean_similarity", results)):
        with pytest.raises(ArrayError) as caught:
            call()
        assert message in caught.value.message
        assert "dn.similarity" in str(caught.value.hint)
