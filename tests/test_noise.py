"""Counter-based randomness: its laws, its independence, and that nothing but seed, draw, call and entry matters."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from metavoxel.noise import Noise

ALPHA = 1e-3  # of each test; seeds are fixed, so a pass stays a pass


def noise(n: int, seed: int = 0, first: int = 0) -> Noise:
    return Noise(seed, torch.arange(first, first + n))


@pytest.mark.parametrize("seed", [0, 1, -7, 2**63 - 1])
def test_uniform_and_normal_have_their_laws(seed: int) -> None:
    stream = noise(500, seed)
    u, z, odd = stream.uniform(100), stream.normal(100), stream.normal(7, 3)
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > ALPHA
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > ALPHA
    assert stats.kstest(odd.flatten().numpy(), "norm").pvalue > ALPHA
    assert u.shape == (500, 100) and odd.shape == (500, 7, 3) and stream.normal().shape == (500,)
    assert stats.kurtosis(z.flatten().numpy()) == pytest.approx(0, abs=5 * math.sqrt(24 / z.numel()))


def test_the_first_number_of_each_draw_has_the_law_too() -> None:
    """Across draws and seeds, not along one stream."""
    assert stats.kstest(noise(20_000).uniform().numpy(), "uniform").pvalue > ALPHA
    assert stats.kstest(noise(20_000).normal().numpy(), "norm").pvalue > ALPHA
    across = torch.cat([noise(1, seed).uniform() for seed in range(2000)])
    assert stats.kstest(across.numpy(), "uniform").pvalue > ALPHA
    rows = Noise(3, torch.arange(5000) * (1 << 32))  # `sample` numbers rows so
    assert stats.kstest(rows.uniform().numpy(), "uniform").pvalue > ALPHA


def test_uniform_stays_inside_the_open_interval_at_the_extreme_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of exactly 1 would draw a level of probability 0."""
    for bits in (0, -1):
        monkeypatch.setattr(Noise, "_bits", lambda self, count, bits=bits: torch.full((len(self), count), bits))
        u = noise(1).uniform()
        assert 0 < u.item() < 1
        assert torch.isfinite(noise(1).normal(3)).all()
        assert noise(1).integers(3).item() in (0, 2)
        assert noise(1).choice(torch.tensor([[0.0, 1.0, 0.0]])).item() == 1


def test_draws_calls_entries_and_seeds_are_independent() -> None:
    first, n = noise(4000), 4000
    a, b, pair = first.normal(), first.normal(), noise(n, 5).normal(2)
    other = noise(n, 1).normal()
    streams = {"call": (a, b), "draw": (a[1:], a[:-1]), "seed": (a, other), "entry": (pair[:, 0], pair[:, 1])}
    for name, (x, y) in streams.items():
        assert abs(np.corrcoef(x, y)[0, 1]) < 4 / math.sqrt(n), name
        cells = np.histogram2d(stats.norm.cdf(x), stats.norm.cdf(y), bins=8, range=[[0, 1], [0, 1]])[0]
        assert stats.chi2_contingency(cells).pvalue > ALPHA, name
    assert len(torch.unique(torch.cat([a, b, other]))) > 0.999 * 3 * n


def test_the_numbers_of_a_draw_do_not_depend_on_the_batch() -> None:
    together = noise(64, 3)
    want = [together.normal(2, 5), together.uniform(), together.integers(7, 4), together.normal(3)]
    for first, size in ((0, 1), (17, 1), (10, 30), (63, 1)):
        part = noise(size, 3, first)
        got = [part.normal(2, 5), part.uniform(), part.integers(7, 4), part.normal(3)]
        assert all(torch.equal(x, y[first : first + size]) for x, y in zip(got, want))
    shuffled = torch.randperm(64)
    assert torch.equal(Noise(3, shuffled).normal(2, 5), want[0][shuffled])
    assert not torch.equal(noise(64, 4).normal(2, 5), want[0])


def test_integers_and_choice_have_their_laws() -> None:
    stream = noise(30_000)
    counts = torch.bincount(stream.integers(5), minlength=5)
    assert len(counts) == 5 and stats.chisquare(counts).pvalue > ALPHA
    law = torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0])
    drawn = torch.bincount(stream.choice(law.expand(30_000, -1)), minlength=5)
    assert drawn[1] == drawn[4] == 0
    kept = law > 0
    assert stats.chisquare(drawn[kept], 30_000 * law[kept].double() / law[kept].double().sum()).pvalue > ALPHA
    unnormalised = stream.choice(7 * law.expand(30_000, -1))
    both = torch.stack([drawn, torch.bincount(unnormalised, minlength=5)])
    assert stats.chi2_contingency(both[:, kept]).pvalue > ALPHA
