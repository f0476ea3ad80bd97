"""The law of a number over people: exact by Bayes' rule, and where a network that adds nothing starts from."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, norm

import metavoxel as mv
from metavoxel.clocks import alpha, sigma
from metavoxel.config import NetSettings
from metavoxel.denoiser import make_denoiser
from metavoxel.laws import Factor, Law, Mixture
from metavoxel.methods import draw_facts
from metavoxel.noise import Noise
from metavoxel.times import MixtureTimes


def flat(n: int = 2000) -> np.ndarray:
    return np.random.default_rng(0).uniform(-np.sqrt(3), np.sqrt(3), n)


def factor(mean: float, sharpness: float) -> Factor:
    return Factor(torch.tensor([[mean]]), torch.tensor([[sharpness]]), torch.zeros(1, 1))


def test_one_normal_part_is_the_textbook_answer() -> None:
    x, tau = torch.linspace(-3, 3, 5), torch.tensor([0, 0.1, 1, 5, torch.inf])
    told = Law().given(x, tau)
    assert torch.allclose(told.mean(), alpha(tau) * x, atol=1e-6)
    assert torch.allclose(told.variance(), sigma(tau) ** 2, atol=1e-6)


@pytest.mark.parametrize("tau", [0.02, 0.3, 2.0, 8.0])
def test_given_agrees_with_quadrature(tau: float) -> None:
    law = Law.of(np.concatenate([flat(300), flat(300) / 5 + 2]))
    at = torch.tensor([tau])
    a, noise, x = float(alpha(at)), float(sigma(at)), 0.8

    def density(z: float) -> float:
        return float(norm.pdf(z, law.centres, law.widths).mean() * norm.pdf(x, a * z, noise))

    near = [x / max(a, 0.1) + k * noise for k in (-3, 0, 3)]
    moments = [quad(lambda z, k=k: z**k * density(z), -6, 6, points=near, limit=500)[0] for k in range(3)]
    told = law.given(torch.tensor([x]), at)
    assert float(told.mean()) == pytest.approx(moments[1] / moments[0], abs=2e-3)
    assert float(told.variance()) == pytest.approx(moments[2] / moments[0] - (moments[1] / moments[0]) ** 2, abs=2e-3)


@pytest.mark.parametrize("tau", [0.0, 0.3, 2.0, float("inf")])
def test_a_hint_enters_by_bayes_rule(tau: float) -> None:
    law = Law.of(np.concatenate([flat(300), flat(300) / 5 + 2]))
    at, x, hinted, sharpness = torch.tensor([tau]), 0.8, 0.3, 2.5
    a, noise = float(alpha(at)), max(float(sigma(at)), 1e-3)

    def density(z: float) -> float:
        factor = norm.pdf(x, a * z, noise) * norm.pdf(z, hinted, 1 / sharpness)
        return float(norm.pdf(z, law.centres, law.widths).mean() * factor)

    near = [x / max(a, 0.1) + k * noise for k in (-3, 0, 3)] if tau else [x - 3e-3, x, x + 3e-3]
    moments = [quad(lambda z, k=k: z**k * density(z), -6, 6, points=near, limit=500)[0] for k in range(3)]
    hint = factor(hinted, sharpness)
    told = law.given(torch.tensor([x]), at, hint)
    assert float(told.mean()) == pytest.approx(moments[1] / moments[0], abs=2e-3)
    assert float(told.variance()) == pytest.approx(moments[2] / moments[0] - (moments[1] / moments[0]) ** 2, abs=2e-3)
    silent, alone = law.given(torch.tensor([x]), at, factor(hinted, 0.0)), law.given(torch.tensor([x]), at)
    assert torch.allclose(silent.mean(), alone.mean()) and torch.allclose(silent.variance(), alone.variance())


@pytest.mark.parametrize("n", [1, 9, 30, 2000])
def test_mean_and_variance_are_the_peoples_own(n: int) -> None:
    x = flat(n) + 0.5
    law = Law.of(x)
    if n == 1:
        assert law == Law()
        return
    centres, widths = np.array(law.centres), np.array(law.widths)
    assert centres.mean() == pytest.approx(x.mean()) and (centres**2 + widths**2).mean() == pytest.approx((x**2).mean())


TWO_HUMPS = Mixture(
    torch.tensor([[0.3, 0.7], [1, 0]]), torch.tensor([[-2.0, 1.0], [0, 5]]), torch.tensor([[0.25, 1.0], [4, 1]])
)


def test_quantiles_of_a_mixture_are_those_of_integration() -> None:
    levels = torch.tensor([1e-4, 0.05, 0.3, 0.5, 0.95, 1 - 1e-4])
    found = TWO_HUMPS.quantiles(levels)
    assert found[1].numpy() == pytest.approx(norm.ppf(levels, 0, 2), abs=0.02)
    below = 0.3 * norm.cdf(found[0], -2, 0.5) + 0.7 * norm.cdf(found[0], 1, 1)
    assert below == pytest.approx(levels.numpy(), abs=1e-6)


@pytest.mark.parametrize("sharpness", [0.0, 0.3, 3.0])
def test_quantiles_of_a_skewed_law(sharpness: float) -> None:
    """Of which the widest parts are a thousand times as wide as the narrowest."""
    scores = np.exp(2 * np.random.default_rng(0).normal(size=3000))
    law = Law.of((scores - scores.mean()) / scores.std())
    hint = factor(0.2, sharpness)
    told = law.given(torch.zeros(1), torch.tensor([torch.inf]), hint)
    levels = torch.tensor([0.0001, 0.05, 0.25, 0.5, 0.75, 0.95])
    shares, means, sds = (part[0].double().numpy() for part in (told.shares, told.means, told.variances.sqrt()))
    below = (shares * norm.cdf(told.quantiles(levels).numpy()[0][:, None], means, sds)).sum(1)
    assert below == pytest.approx(levels.numpy(), abs=1e-5)


def test_the_density_of_a_mixture_is_the_sum_of_its_parts() -> None:
    x = torch.linspace(-3, 3, 7)
    one = Mixture(TWO_HUMPS.shares[:1], TWO_HUMPS.means[:1], TWO_HUMPS.variances[:1])
    exact = np.log(0.3 * norm.pdf(x, -2, 0.5) + 0.7 * norm.pdf(x, 1, 1))
    assert one.log_density(x).numpy() == pytest.approx(exact, abs=1e-5)
    assert TWO_HUMPS.log_density(x[:2]).numpy() == pytest.approx([exact[0], norm.logpdf(-2, 0, 2)], abs=1e-5)


def test_draws_of_a_mixture_are_spread_like_it() -> None:
    n = 20_000
    many = Mixture(*(part[:1].expand(n, -1) for part in (TWO_HUMPS.shares, TWO_HUMPS.means, TWO_HUMPS.variances)))
    drawn = many.draw(Noise(0, torch.arange(n))).numpy()
    assert kstest(drawn, lambda x: 0.3 * norm.cdf(x, -2, 0.5) + 0.7 * norm.cdf(x, 1, 1)).pvalue > 1e-3
    assert drawn.mean() == pytest.approx(float(TWO_HUMPS.mean()[0]), abs=0.05)
    assert drawn.var() == pytest.approx(float(TWO_HUMPS.variance()[0]), rel=0.03)


def test_a_mixture_far_narrower_than_its_parts_lie_apart() -> None:
    """As of a whole score that is told nearly for sure, beside parts that weigh nothing."""
    sure = Mixture(torch.tensor([[1 - 1e-9, 1e-9]]), torch.tensor([[28.0, -500.0]]), torch.tensor([[1e-4, 1.0]]))
    found = sure.quantiles(torch.tensor([0.05, 0.95]))[0].numpy()
    assert found == pytest.approx(norm.ppf([0.05, 0.95], 28, 0.01), abs=1e-4)


def test_tied_scores_are_no_trouble() -> None:
    law = Law.of(np.repeat([-1.0, 1.0], 50))
    told = law.given(torch.tensor([0.9, 0.0]), torch.tensor([0.0, torch.inf]))
    assert float(told.mean()[0]) == pytest.approx(0.9) and abs(float(told.mean()[1])) < 1e-4
    assert float(told.variance()[1]) == pytest.approx(1.0, abs=1e-3)


def test_an_untrained_network_draws_the_cohort() -> None:
    """Its heads silenced, numbers drawn from nothing are spread as in the cohort: here flat, which no normal law is."""
    ages = np.random.default_rng(1).uniform(20, 90, 3000)
    schema = mv.Schema([mv.Continuous("age", "years")])
    schema = schema.fit(pd.DataFrame({"age": ages}))
    denoiser = make_denoiser(schema, NetSettings(widths=(8,), token_width=16), MixtureTimes())
    for parameter in denoiser.net.tokens.heads.parameters():
        parameter.data.zero_()
    drawn = schema.scalar("age").decode(draw_facts(denoiser, schema, {}, ["age"], 4000)["age"][0])
    assert kstest(drawn, "uniform", (20, 70)).statistic < 0.03
    assert drawn.std() == pytest.approx(ages.std(), rel=0.03)


@pytest.mark.parametrize("tau", [0.05, 0.8, torch.inf])
def test_the_gain_of_a_hint_is_that_of_integration(tau: float) -> None:
    law = Law.of(np.concatenate([flat(300), flat(300) / 5 + 2]))
    x0, x, at = (torch.tensor([value]) for value in (0.4, -0.3, tau))
    hint = factor(0.9, 2.5)
    grid = np.linspace(-8, 8, 40_001)
    a, s = math.exp(-tau / 2), math.sqrt(1 - math.exp(-tau))
    prior = sum(norm.pdf(grid, c, w) for c, w in zip(law.centres, law.widths)) * norm.pdf(-0.3, a * grid, s)
    told = prior * np.exp(-0.5 * (2.5 * (grid - 0.9)) ** 2)
    expected = -0.5 * (2.5 * (0.4 - 0.9)) ** 2 - math.log(told.sum() / prior.sum())
    assert float(law.gain(x0, x, at, hint)) == pytest.approx(expected, abs=1e-4)
    assert abs(float(law.gain(x0, x, at, factor(0.9, 0.0)))) < 1e-6


@pytest.mark.parametrize("tau", [0.3, torch.inf])
def test_several_factors_are_a_sum(tau: float) -> None:
    """Mean, spread and gain beside integration: two humps on a law with edges."""
    law, at, x, x0 = Law.of(flat(300)), torch.tensor([tau]), torch.tensor([0.4]), torch.tensor([-0.9])
    hint = Factor(torch.tensor([[-1.0, 0.8]]), torch.tensor([[6.0, 4.0]]), torch.tensor([[0.7, 0.3]]).log())
    grid = np.linspace(-4, 4, 80_001)
    a, s = math.exp(-tau / 2), math.sqrt(1 - math.exp(-tau))
    prior = sum(norm.pdf(grid, c, w) for c, w in zip(law.centres, law.widths)) * norm.pdf(0.4, a * grid, s)

    def said(z: np.ndarray | float) -> np.ndarray | float:
        return 0.7 * np.exp(-18 * (z + 1) ** 2) + 0.3 * np.exp(-8 * (z - 0.8) ** 2)

    p = prior * said(grid)
    mean = (p * grid).sum() / p.sum()
    told = law.given(x, at, hint)
    assert float(told.shares.sum()) == pytest.approx(1, abs=1e-5)
    assert float(told.mean()) == pytest.approx(mean, abs=1e-3)
    assert float(told.variance()) == pytest.approx((p * (grid - mean) ** 2).sum() / p.sum(), abs=1e-3)
    assert float(law.gain(x0, x, at, hint)) == pytest.approx(math.log(said(-0.9) * prior.sum() / p.sum()), abs=1e-3)


def test_what_is_known_gains_nothing_and_the_right_sharpness_gains_most() -> None:
    law, n = Law(), 20_000
    x0 = torch.randn(n, generator=torch.Generator().manual_seed(0))
    seen = x0 + 0.5 * torch.randn(n, generator=torch.Generator().manual_seed(1))  # sharpness 2
    nothing, absent = torch.zeros(n), torch.full((n,), torch.inf)

    def hint(sharpness: float) -> Factor:
        return Factor(seen[:, None], torch.full((n, 1), sharpness), torch.zeros(n, 1))

    gains = {s: float(law.gain(x0, nothing, absent, hint(s)).mean()) for s in (1.4, 1.8, 2.0, 2.2, 2.8)}
    assert max(gains, key=gains.get) == 2.0  # type: ignore[arg-type]
    assert gains[2.0] == pytest.approx(0.5 * math.log(5), abs=0.02)  # what is told of N(0, 1): log(1 + 2^2) / 2
    assert law.gain(x0, x0, nothing, hint(2.0)).abs().max() < 1e-5
