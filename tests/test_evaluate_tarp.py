"""TARP of several numbers at once beside that of sbi, which takes its draws from a posterior of its own kind."""

import numpy as np
import pytest
import torch
from sbi.diagnostics.tarp import run_tarp

from metavoxel.evaluate.calibration import tarp

PEOPLE, DRAWS = 300, 400


class Drawn:
    """All that `run_tarp` asks of a posterior: draws (draws, people, numbers)."""

    def __init__(self, drawn: np.ndarray) -> None:
        self.drawn = torch.from_numpy(drawn).transpose(0, 1)

    def sample_batched(self, shape: tuple[int, ...], x: torch.Tensor, **_: object) -> torch.Tensor:
        assert shape == (DRAWS,) and len(x) == PEOPLE
        return self.drawn


@pytest.mark.parametrize("spread", [1.0, 0.6, 1.7])
def test_it_is_sbis(spread: float) -> None:
    rng = np.random.default_rng(8)
    centre = rng.normal(0, 3, (PEOPLE, 1, 2))
    truth = (centre + rng.normal(0, 1, (PEOPLE, 1, 2)))[:, 0] * [10, 1]
    drawn = (centre + spread * rng.normal(0, 1, (PEOPLE, DRAWS, 2))) * [10, 1]
    low, width = truth.min(0), np.ptp(truth, axis=0)
    points = low + width * np.random.default_rng(4).random(truth.shape)  # those of `tarp` with this seed
    theirs, at = run_tarp(
        torch.from_numpy(truth), torch.zeros(PEOPLE, 1), Drawn(drawn), torch.from_numpy(points),
        num_posterior_samples=DRAWS, show_progress_bar=False,
    )  # fmt: skip
    ours = tarp(truth, drawn, seed=4)
    assert np.abs(np.interp(at, ours.nominal, ours.found) - theirs.numpy()).max() < 0.02
