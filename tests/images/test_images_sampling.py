from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dneuro.errors import ImageSourceError
from dneuro.images.sampling import draw
from dneuro.spec.images import DigitsImages


def sample(count: int | None, available: int, seed: int = 0) -> list[int]:
    return draw(DigitsImages(source="digits", sample=count, seed=seed), available, "the source").tolist()


@given(st.data(), st.integers(1, 500), st.integers(0, 2**32 - 1))
def test_draw__distinct_sorted_and_nested(data: st.DataObject, available: int, seed: int):
    count = data.draw(st.integers(1, available))
    chosen = sample(count, available, seed)
    assert chosen == sorted(set(chosen)) == sample(count, available, seed)
    assert len(chosen) == count
    assert set(chosen) <= set(range(available))
    assert set(sample(max(1, count // 2), available, seed)) <= set(chosen)


def test_draw__without_sample_takes_all():
    assert sample(None, 4) == [0, 1, 2, 3]


def test_draw__is_the_same_under_every_version():
    # The keys, from the reference implementation's guaranteed stream; a change disowns stores.
    assert sample(5, 1000, seed=7) == [6, 37, 114, 614, 865]
    assert sample(5, 1000, seed=8) != [6, 37, 114, 614, 865]


def test_draw__every_image_is_as_likely():
    counts = np.zeros(10, int)
    for seed in range(2000):
        counts[sample(3, 10, seed)] += 1
    # Each is drawn with probability 0.3: 600 ± 20.5; five standard deviations.
    assert np.abs(counts - 600).max() < 103


def test_draw__more_than_there_are():
    with pytest.raises(ImageSourceError, match="the source has 3 images; a sample of 4") as error:
        sample(4, 3)
    assert error.value.hint == "set sample: 3, or leave it out to take all"
