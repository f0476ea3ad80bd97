"""Numbers drawn from the law that one evaluation tells, one after another; and what that law says without a draw."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kstest

import metavoxel as mv
from metavoxel.beliefs import Belief
from metavoxel.codecs import Log, Standard
from metavoxel.diffusion import sample
from metavoxel.laws import Mixture
from metavoxel.likelihood import log_likelihood
from metavoxel.methods import draw_facts
from metavoxel.question import Denoiser, Given, ScalarLaws
from metavoxel.schema import Continuous, Schema, State, Times
from metavoxel.solvers import BY_LAW
from metavoxel.times import MixtureTimes, even_plan

NAMES = ["a", "b", "c"]
COVARIANCE = torch.tensor([[1.0, 0.9, -0.5], [0.9, 1.0, -0.6], [-0.5, -0.6, 1.0]], dtype=torch.float64)
SCHEMA = Schema([Continuous(name, scale=Standard(0.0, 1.0)) for name in NAMES])


class ThreeNumbers:
    """The exact denoiser of a normal law of three numbers, by Bayes' rule; it tells their laws."""

    coverage, device = MixtureTimes(), torch.device("cpu")

    def __call__(self, state: State, times: Times) -> State:
        return {name: law.mean() for name, law in self.tell(state, times).items() if isinstance(law, Mixture)}

    def freeze(self, images: State, times: Times) -> "ThreeNumbers":
        return self

    def tell(self, state: State, times: Times) -> ScalarLaws:
        taus = torch.stack([v.clock.tau(times[v.name]) for v in SCHEMA], 1).double()
        a, noise = torch.exp(-taus / 2), 1 - torch.exp(-taus)
        total = a[:, :, None] * COVARIANCE * a[:, None] + torch.diag_embed(noise)
        gain = torch.linalg.solve(total + 1e-9 * torch.eye(3), a[:, :, None] * COVARIANCE).mT
        mean = (gain @ torch.stack([state[name] for name in NAMES], 1).double()[..., None])[..., 0]
        left = (COVARIANCE - gain @ (a[:, :, None] * COVARIANCE)).diagonal(dim1=1, dim2=2).clamp_min(0)
        parts = zip(NAMES, mean.float().mT[..., None], left.float().mT[..., None])
        return {name: Mixture(torch.ones_like(middle), middle, open_) for name, middle, open_ in parts}


class OnlyMeans:
    """The same, which tells no laws."""

    coverage, device = ThreeNumbers.coverage, ThreeNumbers.device

    def __call__(self, state: State, times: Times) -> State:
        return ThreeNumbers()(state, times)

    def freeze(self, images: State, times: Times) -> "OnlyMeans":
        return self


@pytest.mark.parametrize(("denoiser", "steps"), [(ThreeNumbers(), None), (ThreeNumbers(), 4), (OnlyMeans(), None)])
def test_numbers_are_drawn_jointly_in_any_number_of_steps(denoiser: Denoiser, steps: int | None) -> None:
    n = 20_000
    drawn = draw_facts(denoiser, SCHEMA, {}, NAMES, n, steps=steps)
    found = torch.cov(torch.stack([drawn[name][0] for name in NAMES]).double())
    assert (found - COVARIANCE).abs().max() < 5 / n**0.5


def test_one_step_by_law_draws_what_the_law_says() -> None:
    x = sample(ThreeNumbers(), SCHEMA, {}, ["b"], 5000, even_plan(1), BY_LAW, seed=4)["b"][0]
    assert kstest(x.numpy(), "norm").pvalue > 1e-3


def test_a_number_is_as_likely_as_its_law_says() -> None:
    """By one evaluation, and by the integral over the noise of one who tells the mean only."""
    rows = torch.distributions.MultivariateNormal(torch.zeros(3).double(), COVARIANCE).sample((6,)).float()
    given = {"a": Given(rows[:, 0]), "c": Given(rows[:, 2])}
    gain = torch.linalg.solve(COVARIANCE[[0, 2]][:, [0, 2]], COVARIANCE[[0, 2], 1])
    mean, left = rows[:, [0, 2]].double() @ gain, 1 - COVARIANCE[1, [0, 2]] @ gain
    exact = torch.distributions.Normal(mean, left.sqrt()).log_prob(rows[:, 1].double())
    told = log_likelihood(ThreeNumbers(), SCHEMA, given, "b", rows[:, 1])
    integral = log_likelihood(OnlyMeans(), SCHEMA, given, "b", rows[:, 1], levels=800)
    assert torch.allclose(told.double(), exact, atol=1e-3) and torch.allclose(integral.double(), exact, atol=0.4)


def test_draws_do_not_depend_on_how_many_are_asked_for() -> None:
    few, many = (draw_facts(ThreeNumbers(), SCHEMA, {}, NAMES, n, seed=2) for n in (3, 50))
    assert all(torch.equal(few[name][0], many[name][0, :3]) for name in NAMES)


def test_a_learnt_table_draws_numbers_that_hang_together(tmp_path: Path) -> None:
    """Walked together, numbers of which each says much of the other were drawn twice as far apart as people are."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=1500)
    table = pd.DataFrame({"a": a, "b": 0.95 * a + 0.31 * rng.normal(size=1500)})
    config = mv.preset("tiny", net={"token_width": 32, "token_depth": 2},
                       joint={"steps": 200, "batch": 128, "rate": 4e-3, "validate_every": 100})  # fmt: skip
    model = mv.fit(mv.Schema([mv.Continuous(name) for name in table]), {}, table, tmp_path, config, quiet=True)
    drawn = model.sample(n=2000).frame()[["a", "b"]]
    assert drawn.std().to_numpy() == pytest.approx(table.std().to_numpy(), rel=0.12)
    assert drawn.corr().loc["a", "b"] > 0.85  # 0.95 of more steps


def test_a_number_may_have_two_humps_given_another(tmp_path: Path) -> None:
    """b is a or -a: of people of a = 1.5, as many near 1.5 as near -1.5, and few between."""
    rng = np.random.default_rng(0)
    a = rng.uniform(-2, 2, 1500)
    table = pd.DataFrame({"a": a, "b": a * rng.choice([-1, 1], 1500) + 0.1 * rng.normal(size=1500)})
    config = mv.preset("tiny", net={"token_width": 32, "token_depth": 2},
                       joint={"steps": 300, "batch": 128, "rate": 4e-3, "validate_every": 150})  # fmt: skip
    model = mv.fit(mv.Schema([mv.Continuous(name) for name in table]), {}, table, tmp_path, config, quiet=True)
    drawn = np.abs(model.sample({"a": 1.5}, ["b"], n=2000)["b"])
    assert (drawn < 0.5).mean() < 0.05  # of all people a quarter
    assert np.median(drawn) == pytest.approx(1.5, abs=0.25)
    assert model.posterior({"a": 1.5}).std("b") == pytest.approx(1.5, abs=0.25)


def test_a_belief_speaks_in_the_numbers_own_unit() -> None:
    """On a scale that is not linear as well: mean and spread are of the values, not of the scores."""
    values = np.exp(np.random.default_rng(1).normal(3, 0.4, 4000))
    for scaling in ("linear", "log", "quantile"):
        schema = mv.Schema([mv.Continuous("volume", "ml", scaling=scaling)]).fit(pd.DataFrame({"volume": values}))
        variable = schema.scalar("volume")
        assert isinstance(variable, Continuous)
        belief = Belief(variable, variable.law.given(torch.zeros(1), torch.tensor([torch.inf])))
        assert belief.mean[0] == pytest.approx(values.mean(), rel=0.01), scaling
        assert belief.std[0] == pytest.approx(values.std(), rel=0.04), scaling
        levels = torch.tensor([0.05, 0.5, 0.95])
        assert belief.quantiles(levels)[0] == pytest.approx(np.quantile(values, levels), rel=0.03), scaling


@pytest.mark.parametrize("spread", [0.5, 1.0, 1.5])
def test_moments_of_a_skewed_number_are_exact(spread: float) -> None:
    """Of a log-normal law: exp(s^2 / 2), times sqrt(exp(s^2) - 1)."""
    variable = Continuous("volume", scale=Log(0.0, spread))
    belief = Belief(variable, Mixture(torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1)))
    assert belief.mean[0] == pytest.approx(np.exp(spread**2 / 2), rel=1e-4)
    assert belief.std[0] == pytest.approx(np.exp(spread**2 / 2) * np.sqrt(np.exp(spread**2) - 1), rel=5e-3)


def test_whole_points_stay_whole() -> None:
    schema = mv.Schema([mv.Continuous("score")]).fit(pd.DataFrame({"score": np.arange(200) % 11}))
    variable = schema.scalar("score")
    assert isinstance(variable, Continuous)
    belief = Belief(variable, variable.law.given(torch.zeros(1), torch.tensor([torch.inf])))
    assert belief.quantiles(torch.tensor([0.1, 0.37, 0.8]))[0].tolist() == [1.0, 4.0, 8.0]
