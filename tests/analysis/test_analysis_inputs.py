"""What an array must be, and what is said if it is not."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import dneuro as dn
from dneuro import events
from dneuro.analysis import ANALYSES
from dneuro.errors import ArrayError, NonFiniteError, UsageError

ALL: dict[str, dict[str, Any]] = {
    "moments": {},
    "top_images": {"k": 2},
    "cooccurrence": {"k": 2},
    "svd": {"rank": 1},
    "nmf": {"rank": 1, "max_iter": 3, "tol": 0},
    "similarity": {},
    "random_projections": {"directions": 2},
    "selectivity": {},
    "clusters": {"count": 2},
    "kmeans": {"count": 2},
    "single_neurons": {"count": 2, "baseline": 1, "k": 2},
}
OTHERS = {"similar_places", "regression", "connections", "patch_components"}
"""Those that do not take one array of any layer: what they take is tested with them."""
EVERY = pytest.mark.parametrize(("analysis", "parameters"), ALL.items())
RNG = np.random.default_rng(0)


def layer(*shape: int, dtype: str = "f4") -> xr.DataArray:
    """An array as the store gives it."""
    x = xr.DataArray(
        np.abs(RNG.standard_normal(shape)).astype(dtype),  # as after a ReLU: every analysis takes them
        dims=("image", "channel", "y", "x")[: len(shape)],
        coords={"image": np.arange(shape[0]), "label": ("image", np.arange(shape[0]) % 2)},
        attrs={"layer": "features.9", "class_names": ["cat", "dog"]},
    )
    return x.chunk(dict.fromkeys(x.dims, 2))


def test_analyses__are_all_tested_here() -> None:
    assert set(ALL) | OTHERS == set(ANALYSES)


@EVERY
def test_input__without_images(analysis: str, parameters: dict[str, Any]) -> None:
    x = layer(6, 4).rename(image="sample")
    with pytest.raises(ArrayError, match=r"'features\.9' has dims \('sample', 'channel'\)") as caught:
        ANALYSES[analysis](x.assign_coords(label=0) if analysis == "cooccurrence" else x, **parameters)
    assert caught.value.hint == "x.rename({'sample': 'image'})"


@EVERY
@pytest.mark.parametrize("dtype", ["i4", "u1", "bool", "c8"])
def test_input__that_is_not_floating_point(analysis: str, parameters: dict[str, Any], dtype: str) -> None:
    with pytest.raises(ArrayError, match=rf"holds {np.dtype(dtype)}, activations are floating point") as caught:
        ANALYSES[analysis](layer(6, 4).astype(dtype, keep_attrs=True), **parameters)
    assert caught.value.hint == "x.astype('float32')"


@EVERY
@pytest.mark.parametrize("where", [{"image": slice(0)}, {"channel": slice(0)}, {"channel": 0}])
def test_input__that_is_empty(analysis: str, parameters: dict[str, Any], where: dict[str, Any]) -> None:
    if analysis == "cooccurrence" and "image" in where:
        with pytest.raises(ArrayError, match="none of these images has one"):
            ANALYSES[analysis](layer(6, 4).isel(where), **parameters)
        return
    with pytest.raises(ArrayError, match="at least one image and one feature") as caught:
        ANALYSES[analysis](layer(6, 4).isel(where), **parameters)
    assert caught.value.hint


@pytest.mark.parametrize("analysis", ["moments", "top_images", "svd", "similarity"])
def test_input__of_unknown_length(analysis: str) -> None:
    x = layer(6, 4)
    lost = xr.DataArray(x.data[x.data[:, 0] > -9], dims=x.dims)
    with pytest.raises(ArrayError, match="not known before something is computed") as caught:
        ANALYSES[analysis](lost, **ALL[analysis])
    assert "compute_chunk_sizes" in str(caught.value.hint)


@EVERY
def test_input__that_is_no_dataarray(analysis: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(ArrayError, match=r"expected an xarray\.DataArray with a dim 'image', got ndarray") as caught:
        ANALYSES[analysis](np.zeros((3, 3), "f4"), **parameters)
    assert "dims=('image', 'channel')" in str(caught.value.hint)


@pytest.mark.parametrize("analysis", [*ANALYSES, "ica"])
def test_input__that_holds_arrays_in_place_of_being_one(analysis: str) -> None:
    x, parameters = given(analysis)
    for ask in (getattr(dn, analysis), functools.partial(dn.plan, analysis)):
        for held in (x.to_dataset(name="features.9"), {"features.9": x}):
            with pytest.raises(ArrayError, match=rf"(got|not a) {type(held).__name__}\n") as caught:
                ask(held, **parameters)
            assert str(caught.value.hint).startswith("one of what it holds: x['features.9']; choices: features.9")


def test_input__beside_the_array_must_be_an_array_too() -> None:
    x, parameters = given("regression")
    with pytest.raises(ArrayError, match="got Dataset") as caught:
        dn.regression(x, **{**parameters, "source": x.to_dataset(name="a")})
    assert caught.value.hint
    weights, _ = given("connections")
    with pytest.raises(ArrayError, match=r"directions= \(a Dataset\) do not fit") as caught:
        dn.connections(weights, directions=weights.to_dataset(name="a"))  # type: ignore[arg-type]
    assert caught.value.hint


@pytest.mark.parametrize("analysis", [*ANALYSES, "ica"])
def test_argument__that_there_is_not_names_the_function(analysis: str) -> None:
    x, parameters = given(analysis)
    with pytest.raises(TypeError, match=rf"^{analysis}\(\) got an unexpected keyword argument 'rnak'"):
        getattr(dn, analysis)(x, **parameters, rnak=3)
    with pytest.raises(UsageError, match=rf"^{analysis}: got an unexpected keyword argument 'rnak'") as caught:
        dn.plan(analysis, x, **parameters, rnak=3)
    assert caught.value.hint == f"help(dn.{analysis})"


@pytest.mark.parametrize(
    ("analysis", "wrong", "hint"),
    [
        ("moments", {"per": "neurons"}, "did you mean 'neuron'"),
        ("moments", {"per": "images"}, "did you mean 'image'"),
        ("top_images", {"pool": "maximum"}, "max"),
        ("similarity", {"metric": "pearsson"}, "did you mean 'pearson'"),
        ("similarity", {"metric": []}, "choices: pearson, euclidean"),
        ("svd", {"standardize": "neurons"}, "did you mean 'neuron'"),
        ("svd", {"method": "lanczos"}, "choices: auto, tsqr, gram, krylov"),
        ("svd", {"rank": 5}, "from 1 to 4"),
        ("svd", {"rank": True}, "from 1 to 4"),
    ],
)
def test_choice__that_there_is_not(analysis: str, wrong: dict[str, Any], hint: str) -> None:
    with pytest.raises(ArrayError) as caught:
        ANALYSES[analysis](layer(6, 4), **{**ALL[analysis], **wrong})
    assert repr(next(iter(wrong.values()))) in caught.value.message or wrong == {"metric": []}
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("per", ["channel", "neuron"])
def test_channel__must_be_named(per: Any) -> None:
    x = layer(6, 4, 2).rename(channel="filter")
    if per == "neuron":
        assert dn.moments(x, per=per)["mean"].dims == ("filter", "y")
        return
    with pytest.raises(ArrayError, match="per='channel' needs one named 'channel'"):
        dn.moments(x, per=per)


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("chunked", [True, False])
def test_nonfinite__names_layer_image_and_neuron(
    analysis: str, parameters: dict[str, Any], bad: float, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 16)
    x = layer(8, 5, 3, 2).assign_coords(image=np.arange(8) * 11)
    place = (6, 3, 2, 1)
    values = x.values
    values[place] = bad
    spoilt = x.copy(data=da.from_array(values, chunks=(3, 2, 2, 2)) if chunked else values)
    with pytest.raises(NonFiniteError, match=rf"features\.9: image 66, neuron \(3, 2, 1\) is {bad}") as caught:
        ANALYSES[analysis](spoilt, **parameters)
    hint = str(caught.value.hint)
    way_out = hint[hint.index("x.isel") :].partition(" leaves")[0]
    left = eval(way_out, {"x": spoilt.isel(image=slice(7))})
    assert 66 not in left["image"]
    assert left.sizes["image"] == 6
    ANALYSES[analysis](left, **parameters)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("ask", [
    lambda x: dn.similarity(x, per="image"),
    lambda x: dn.clusters(x, count=2, per="image"),
    lambda x: dn.svd(x, rank=2),
])  # fmt: skip
def test_nonfinite__names_the_neuron_where_images_are_the_columns(ask: Any, chunked: bool) -> None:
    x = layer(8, 7, 3, 2).assign_coords(image=np.arange(8) * 11)
    values = x.values
    values[6, 2, 1, 1] = np.nan
    spoilt = x.copy(data=da.from_array(values, chunks=(8, 1, 3, 2)) if chunked else values)
    with pytest.raises(NonFiniteError, match=r"features\.9: image 66, neuron \(2, 1, 1\) is nan"):
        ask(spoilt)


def test_nonfinite__hint_works_without_coordinates() -> None:
    x = xr.DataArray(np.array([[1.0], [np.nan], [2.0]], "f4"), dims=("image", "channel"))
    with pytest.raises(NonFiniteError, match="activations: image 1, ") as caught:
        dn.moments(x)
    hint = str(caught.value.hint)
    left = eval(hint[hint.index("x.isel") :].partition(" leaves")[0], {"x": x})
    assert left.values.tolist() == [[1], [2]]


@EVERY
@pytest.mark.parametrize("coordinate", [True, False])
def test_masked__images_are_left_out_everywhere(
    analysis: str, parameters: dict[str, Any], coordinate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if they had never been there, and the others keep their numbers."""
    monkeypatch.setattr("dneuro.engine.plan.BLOCK_BYTES", 64)
    x = layer(12, 4, 2, 2, dtype="f8" if analysis == "nmf" else "f4")  # nmf multiplies in the dtype of the array
    numbers = np.arange(12) if not coordinate else np.array([3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 97, 93])
    x = x.assign_coords(image=numbers) if coordinate else x.drop_vars("image")
    gone = [1, 6, 7, 11]
    masked = x.copy(data=da.from_array(np.where(np.isin(np.arange(12), gone)[:, None, None, None], np.nan, x.values)))
    masked = masked.assign_coords(status=("image", np.isin(np.arange(12), gone).astype("u1")))
    rest = x.assign_coords(image=numbers).isel(image=np.setdiff1d(np.arange(12), gone))
    found = ANALYSES[analysis](masked.chunk(image=5), **parameters)
    expected = ANALYSES[analysis](rest.compute(), **parameters)
    assert set(found.variables) == set(expected.variables)
    for name in expected.variables:
        if found[name].dtype.kind == "f":
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, atol=1e-12)
        else:
            np.testing.assert_array_equal(found[name], expected[name])
    assert found.attrs.get("images", 8) == 8


def test_masked__per_image_results_keep_their_numbers() -> None:
    x = layer(6, 3).assign_coords(status=("image", [0, 0, 1, 0, 1, 0]))
    for found in (dn.moments(x, per="image"), dn.svd(x, rank=2)):
        assert found["image"].values.tolist() == [0, 1, 3, 5]
    scores = dn.svd(x, rank=2)["score"].reindex(image=np.arange(6))
    assert np.isnan(scores.values).all(axis=1).tolist() == [False, False, True, False, True, False]


@EVERY
def test_masked__all_of_them(analysis: str, parameters: dict[str, Any]) -> None:
    x = layer(6, 3).assign_coords(status=("image", np.ones(6, "u1")))
    with pytest.raises(ArrayError, match="none of the 6 images could be read"):
        ANALYSES[analysis](x, **parameters)


def test_masked__rank_is_bounded_by_the_readable() -> None:
    x = layer(6, 5).assign_coords(status=("image", [0, 0, 1, 0, 1, 1]))
    with pytest.raises(ArrayError, match="rank=4 of 3 images × 5 neurons"):
        dn.svd(x, rank=4)


def stored(keep: str) -> xr.DataArray:
    """A layer of 3 × 4 positions of which one number per channel was stored."""
    x = layer(9, 4).assign_attrs(keep=keep, shape=[4, 3, 4])
    if keep == "max":
        y, z = RNG.integers(0, 3, (9, 4), "i2"), RNG.integers(0, 4, (9, 4), "i2")
        x = x.assign_coords(activation_y=(x.dims, da.from_array(y, chunks=4)), activation_x=(x.dims, z))
    return x


@pytest.mark.parametrize("attributes", [True, False])
def test_stored_maxima__come_with_their_positions(attributes: bool) -> None:
    x = stored("max") if attributes else stored("max").drop_attrs()
    found = dn.top_images(x, k=3)
    for end in ("top", "bottom"):
        for dim in ("y", "x"):
            expected = x[f"activation_{dim}"].values[found[f"{end}_image"].values, np.arange(4)[:, None]]
            np.testing.assert_array_equal(found[f"{end}_{dim}"], expected)


def test_stored_maxima__positions_are_read_only_where_they_are_wanted() -> None:
    x = stored("max")
    fails = da.map_blocks(lambda block: 1 / 0, x["activation_y"].data, dtype="i2", meta=np.empty((0, 0), "i2"))
    x = x.assign_coords(activation_y=(x.dims, fails))
    for analysis in ("moments", "svd", "similarity"):
        ANALYSES[analysis](x, **ALL[analysis])
    with pytest.raises(ZeroDivisionError):
        dn.top_images(x, k=3)


@pytest.mark.parametrize(("keep", "pool"), [("max", "mean"), ("mean", "max")])
@pytest.mark.parametrize("analysis", ["moments", "top_images", "similarity", "cooccurrence"])
def test_stored_pooled__is_not_taken_for_the_other(analysis: str, keep: str, pool: str) -> None:
    with pytest.raises(ArrayError, match=rf"'features\.9' holds the {keep} over positions") as caught:
        ANALYSES[analysis](stored(keep), **{**ALL[analysis], "pool": pool})
    assert f"pool={keep!r}" in str(caught.value.hint)
    ANALYSES[analysis](stored(keep), **{**ALL[analysis], "pool": keep})


def test_names__of_the_features_are_kept() -> None:
    x = layer(6, 3, 2, 2).assign_coords(channel=[10, 20, 30], y=[0.5, 1.5])
    assert dn.moments(x)["channel"].values.tolist() == [10, 20, 30]
    vectors = dn.svd(x, rank=2)["vector"]
    assert vectors.dims == ("component", "channel", "y", "x")
    assert vectors["y"].values.tolist() == [0.5, 1.5]
    matrix = dn.similarity(x)["pearson"]
    assert matrix.dims == ("channel", "other_channel")
    assert matrix["other_channel"].values.tolist() == [10, 20, 30]
    assert dn.similarity(x, per="neuron")["pearson"].dims == ("neuron", "other_neuron")


@EVERY
def test_names__of_the_features_may_be_those_of_the_result(analysis: str, parameters: dict[str, Any]) -> None:
    x = layer(6, 4)
    known = ANALYSES[analysis](x, **parameters)
    for name in map(str, known.data_vars):
        if "channel" in name:  # such a variable is called after the dim
            continue
        found = ANALYSES[analysis](x.rename(channel=name).assign_coords({name: list("abcd")}), **parameters)
        called = {variable: str(variable).replace("channel", f"input_{name}") for variable in known.data_vars}
        assert set(found.data_vars) == set(called.values())
        for variable, other in called.items():
            dims = tuple(str(dim).replace("channel", f"input_{name}") for dim in known[variable].dims)
            assert found[other].dims == dims, name
            np.testing.assert_array_equal(found[other], known[variable])


def test_names__of_rows_may_be_those_of_the_result() -> None:
    counts = xr.DataArray(RNG.integers(1, 9, (4, 3)), dims=("channel", "class"))
    for analysis, parameters in (("selectivity", {}), ("similarity", {}), ("clusters", {"count": 2})):
        known = ANALYSES[analysis](counts, **parameters)
        for name in map(str, known.data_vars):
            found = ANALYSES[analysis](counts.rename(channel=name).assign_coords({name: list("abcd")}), **parameters)
            assert set(found.data_vars) == set(known.data_vars)
            assert found[name].dims[0] == known[name].dims[0].replace("channel", f"input_{name}")


@EVERY
def test_attributes__say_what_was_asked(analysis: str, parameters: dict[str, Any]) -> None:
    attrs = ANALYSES[analysis](layer(6, 4), **parameters).attrs
    assert attrs["analysis"] == analysis
    assert attrs["layer"] == "features.9"
    assert set(parameters) < set(attrs["parameters"])


@EVERY
def test_input__too_large_to_be_squared(analysis: str, parameters: dict[str, Any]) -> None:
    x = layer(6, 4, 2, dtype="f8") * 1e200
    x.attrs["layer"] = "features.9"
    with pytest.raises(ArrayError, match=r"orders float32 exactly|squares of numbers beyond 1e\+150") as caught:
        ANALYSES[analysis](x.assign_coords(label=("image", np.arange(6) % 2)), **parameters)
    assert caught.value.hint


@pytest.mark.parametrize("standardize", ["image", "neuron"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_svd__does_not_depend_on_the_unit(standardize: Any, scale: float) -> None:
    """Squares of such float32 numbers leave its range; Z does not."""
    values = np.random.default_rng(1).standard_normal((60, 24)).astype("f4")
    values[5] = 0.0
    wanted = dn.svd(xr.DataArray(values.astype("f8"), dims=("image", "channel")), rank=3, method="gram",
                    standardize=standardize)  # fmt: skip
    x = xr.DataArray(values * np.float32(scale), dims=("image", "channel"))
    found = dn.svd(x, rank=3, method="krylov", standardize=standardize)
    np.testing.assert_allclose(found["singular_value"], wanted["singular_value"], rtol=1e-4)


LABELLED = ["top_images", "cooccurrence", "selectivity", "random_projections", "kmeans"]


@pytest.mark.parametrize("analysis", LABELLED)
@pytest.mark.parametrize("labels", [list("ababab"), [0.0, 1.0] * 3, [np.nan] * 6])
def test_labels__that_are_no_whole_numbers(analysis: str, labels: Any) -> None:
    x = layer(6, 4).assign_coords(label=("image", labels))
    with pytest.raises(ArrayError, match=r"the coordinate 'label' is .* classes are whole numbers") as caught:
        ANALYSES[analysis](x, **ALL[analysis])
    assert "one class index per image" in str(caught.value.hint)


@pytest.mark.parametrize("analysis", ["cooccurrence", "selectivity", "kmeans"])
def test_labels__that_count_no_classes(analysis: str) -> None:
    x = layer(6, 4).assign_coords(label=("image", np.arange(6) * 10**9))
    with pytest.raises(ArrayError, match="has a class 5000000000: classes are counted from 0"):
        ANALYSES[analysis](x, **ALL[analysis])


ODD: list[Any] = [None, -1, 1.5, "x", np.nan, np.inf, [], {}, 10**30, b"x", 2 + 1j, np.array([1, 2])]
NAMES = [(name, key) for name, function in ANALYSES.items() for key in inspect.signature(function).parameters
         if key not in ("x", "client", "checkpoint", "out")]  # fmt: skip


@pytest.mark.parametrize(("analysis", "key"), NAMES)
@pytest.mark.parametrize("value", ODD, ids=map(repr, ODD))
def test_argument__is_right_or_refused_with_a_way_out(analysis: str, key: str, value: Any) -> None:
    x, parameters = given(analysis)
    parameters[key] = value
    try:
        dn.plan(analysis, x, **parameters)
    except UsageError as error:
        assert error.hint, error.message
        with pytest.raises(UsageError):
            ANALYSES[analysis](x, **parameters)


def given(analysis: str) -> tuple[xr.DataArray, dict[str, Any]]:
    """What an analysis can be asked of, and how."""
    if analysis == "similar_places":
        return layer(6, 4, 3, 3), {"neighbours": 2}
    if analysis == "regression":
        return layer(6, 4), {"source": layer(6, 3), "folds": 2, "k": 1}
    if analysis == "connections":
        return xr.DataArray(np.ones((4, 3, 2, 2)), dims=("channel", "source_channel", "y", "x")), {"k": 1}
    if analysis == "ica":
        return layer(4, 6, 3).rename(image="channel", channel="sample", y="pixel").drop_vars("label"), {"rank": 2}
    if analysis == "patch_components":
        patches = np.random.default_rng(0).integers(0, 256, (2, 6, 3, 3, 3), np.uint8)
        return xr.DataArray(patches, dims=("channel", "sample", "row", "column", "color")), {"rank": 2, "k": 6}
    return layer(6, 4), dict(ALL[analysis])


@pytest.mark.parametrize("images", [list("abcdef"), [0.5, 1, 2, 3, 4, 5], np.arange(6).astype("M8[D]")])
@pytest.mark.parametrize("ask", [
    lambda x: dn.top_images(x, k=2),
    lambda x: dn.nmf(x, rank=1, max_iter=2, tol=0),
    lambda x: dn.similarity(x, per="image"),
])  # fmt: skip
def test_images__without_numbers_go_by_their_places(images: Any, ask: Any) -> None:
    x = layer(6, 4).assign_coords(image=images)
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.message)):
        found = dn.top_images(x, k=6)
    assert sorted(found["top_image"].values[0]) == list(range(6))
    assert [note for note in notes if "holds no whole numbers, results have images by their places" in note]
    spoilt = x.where(x["label"].copy(data=np.arange(6)) != 4)
    with pytest.raises(NonFiniteError, match=r"features\.9: image 4, ") as caught:
        ask(spoilt)
    hint = str(caught.value.hint)
    left = eval(hint[hint.index("x.drop_isel") :].partition(" leaves")[0], {"x": spoilt})
    assert left.sizes["image"] == 5
    ask(left)


def test_images__may_have_whole_numbers_as_floats() -> None:
    x = layer(6, 4).assign_coords(image=np.array([3.0, 5, 9, 11, 12, -2]))
    notes: list[str] = []
    with events.listening(lambda event: notes.append(event.message)):
        found = dn.top_images(x, k=6)["top_image"]
    assert found.dtype == np.int64
    assert sorted(found.values[0]) == [-2, 3, 5, 9, 11, 12]
    assert not [note for note in notes if "places" in note]
