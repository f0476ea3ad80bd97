"""What is said of draws is true of the law that they come from, however few they are."""

import numpy as np
import pytest

from metavoxel.draws import quantiles


@pytest.mark.parametrize("n", [39, 64, 256])
def test_intervals_of_few_exact_draws_hold_what_they_say(n: int) -> None:
    rng = np.random.default_rng(n)
    drawn, truth = rng.normal(size=(20_000, n)), rng.normal(size=20_000)
    low, high = (quantiles(drawn, q, 1) for q in (0.05, 0.95))
    assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.9, abs=0.007)
