"""Renderings of components against Pillow, and against orders and signs that are known."""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image

from dneuro.kernels import patches

RNG = np.random.default_rng(0)


def test_grey__is_pillows() -> None:
    values = RNG.integers(0, 256, (4, 5, 6, 3), np.uint8)
    expected = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in values])
    assert np.abs(patches.grey(values) - expected).max() <= 0.51, "Pillow rounds"
    np.testing.assert_array_equal(patches.grey(values[..., :1]), values[..., 0])


def test_match__finds_order_and_sign() -> None:
    reference = RNG.standard_normal((3, 5, 40))
    orders = np.stack([RNG.permutation(5) for _ in range(3)])
    signs = RNG.choice([-1.0, 1.0], (3, 5))
    other = np.empty_like(reference)
    for b, k in itertools.product(range(3), range(5)):
        other[b, orders[b, k]] = 7 * signs[b, k] * reference[b, k] + 0.1 * RNG.standard_normal(40) + 3
    order, r = patches.match(reference, other)
    np.testing.assert_array_equal(order, orders)
    np.testing.assert_array_equal(np.sign(r), signs)
    for b, k in itertools.product(range(3), range(5)):
        np.testing.assert_allclose(r[b, k], np.corrcoef(reference[b, k], other[b, order[b, k]])[0, 1])


def test_match__is_the_best_of_all_pairings() -> None:
    reference, other = RNG.standard_normal((2, 1, 4, 6))
    order, _ = patches.match(reference, other)
    r = np.abs(np.corrcoef(reference[0], other[0])[:4, 4:])
    best = max(itertools.permutations(range(4)), key=lambda p: sum(r[k, p[k]] for k in range(4)))
    assert tuple(order[0]) == best


def test_together__brings_colours_into_the_order_of_one() -> None:
    green = RNG.standard_normal((2, 3, 20))
    red = -green[:, [2, 0, 1]]
    found, r = patches.together([red, green, green], 1, matched=True)
    np.testing.assert_allclose(found[0], green)
    np.testing.assert_allclose(r, 1)
    found, r = patches.together([red, green, green], 1, matched=False)
    np.testing.assert_array_equal(found[0], red)
    expected = [[np.corrcoef(green[b, k], red[b, k])[0, 1] for k in range(3)] for b in range(2)]
    np.testing.assert_allclose(r[..., 0], expected)


def test_together__components_that_are_missing_take_nobodys_place() -> None:
    green = RNG.standard_normal((1, 3, 20))
    red = green[:, [1, 0, 2]].copy()
    red[:, 2] = np.nan
    (found, _, _), r = patches.together([red, green, green], 1, matched=True)
    np.testing.assert_allclose(found[0, :2], green[0, :2])
    assert np.isnan(found[0, 2]).all()
    assert np.isnan(r[0, 2, 0])
    assert r[0, 2, 1] == 1


def test_eight_bit__keeps_zero_and_hues() -> None:
    values = np.zeros((1, 3, 2, 3))
    values[0, 0] = [[-4, 2, 0], [1, 0, 4]]
    values[0, 2] = np.nan
    found = patches.eight_bit(values)
    assert found[0, 0].tolist() == [[1, 192, 128], [160, 128, 255]]
    assert (found[0, 1:] == 128).all()


def test_share__is_that_of_the_variance() -> None:
    values = RNG.standard_normal((2, 9, 6))
    counts = np.array([9, 4])
    total = patches.variance(values, counts)
    np.testing.assert_allclose(total, [values[0].var(axis=0).sum(), values[1, :4].var(axis=0).sum()])
    parts = RNG.standard_normal((2, 3, 6))
    parts[1, 2] = np.nan
    found = patches.share([parts, parts], [total, 3 * total])
    np.testing.assert_allclose(found[0], 2 * (parts[0] ** 2).sum(axis=1) / (4 * total[0]))
    assert np.isnan(found[1]).tolist() == [False, False, True]
    assert np.isnan(patches.share([parts], [np.zeros(2)])).all()
