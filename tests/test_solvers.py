"""Solvers by their order of convergence on a law whose probability flow is known; never by their output."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from metavoxel.clocks import Cosine, alpha, sigma
from metavoxel.codecs import Standard
from metavoxel.diffusion import sample
from metavoxel.methods import MEAN_STEPS
from metavoxel.noise import Noise
from metavoxel.processes import Gaussian
from metavoxel.schema import Continuous, Schema, State, Times
from metavoxel.solvers import ANCESTRAL, DDIM, DPM2M, Solver
from metavoxel.times import MixtureTimes, facts_plan

MEAN, SD = 0.8, 0.4
CLOCK = Cosine()


def expectation(x: Tensor, tau: Tensor, sd: float = SD) -> Tensor:
    """E[x_0 | x_t] for x_0 ~ N(MEAN, sd^2)."""
    a, s = alpha(tau), sigma(tau)
    return MEAN + a * sd**2 / (a**2 * sd**2 + s**2) * (x - a * MEAN)


def flow(x: Tensor, tau_t: Tensor, tau_s: Tensor) -> Tensor:
    """The exact probability flow from tau_t to tau_s: it keeps the quantile."""
    spread = [torch.sqrt(alpha(tau) ** 2 * SD**2 + sigma(tau) ** 2) for tau in (tau_t, tau_s)]
    return alpha(tau_s) * MEAN + spread[1] / spread[0] * (x - alpha(tau_t) * MEAN)


def walk(solver: Solver, x: Tensor, levels: Tensor) -> Tensor:
    """x taken along `levels`, as `sample` does it."""
    process, noise, previous = Gaussian(), Noise(0, torch.arange(len(x))), None
    for t, s in pairwise(levels):
        tau_t, tau_s = CLOCK.tau(t), CLOCK.tau(s)
        clean = expectation(x, tau_t)
        x = process.reverse(x, solver.aim(clean, previous, tau_t, tau_s), tau_t, tau_s, noise, solver.eta)
        previous = (clean, tau_t)
    return x


def slope(steps: list[int], errors: list[float]) -> float:
    """Order of convergence: minus the slope of log error over log steps."""
    x, y = torch.tensor(steps).double().log(), torch.tensor(errors).double().log()
    return float(-((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


@pytest.mark.parametrize(("solver", "order"), [(DDIM, 1), (DPM2M, 2)], ids=["ddim", "2m"])
@pytest.mark.parametrize("uneven", [False, True])
def test_order_of_convergence(solver: Solver, order: int, uneven: bool) -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    steps, errors = [16, 32, 64, 128, 256], []
    for n in steps:
        u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        levels = 0.95 - 0.9 * (u**1.5 if uneven else u)
        exact = flow(x, CLOCK.tau(levels[0]), CLOCK.tau(levels[-1]))
        errors.append(float((walk(solver, x, levels) - exact).abs().max()))
    assert slope(steps, errors) == pytest.approx(order, abs=0.2)
    assert slope(steps[-2:], errors[-2:]) == pytest.approx(order, abs=0.12)


def test_the_second_order_rule_is_exact_where_predictions_are_linear_in_log_snr() -> None:
    """Lu et al. 2022: 2M extrapolates the clean prediction linearly in log(alpha / sigma) to the interval's middle."""
    tau = torch.tensor([3.0, 2.0, 0.7], dtype=torch.float64)
    log_snr = -torch.log(torch.expm1(tau)) / 2
    middle = (log_snr[1] + log_snr[2]) / 2
    aimed = DPM2M.aim(1 + 2 * log_snr[1], (1 + 2 * log_snr[0], tau[0]), tau[1], tau[2])
    assert aimed == pytest.approx(float(1 + 2 * middle))


@pytest.mark.parametrize(
    ("before", "t", "s"), [(math.inf, 2.0, 1.0), (2.0, 1.0, 0.0), (0.0, 0.0, 0.0), (math.inf,) * 3]
)
def test_intervals_that_touch_the_ends_fall_back_to_first_order(before: float, t: float, s: float) -> None:
    clean = torch.tensor([0.3])
    interval, previous = (torch.tensor([t]), torch.tensor([s])), (clean + 1, torch.tensor([before]))
    assert torch.equal(DPM2M.aim(clean, previous, *interval), clean)
    assert torch.equal(DPM2M.aim(clean, None, *interval), clean)


class GaussianOracle:
    """The exact denoiser of one number."""

    coverage, device = MixtureTimes(), torch.device("cpu")

    def __init__(self, sd: float = SD) -> None:
        self.sd = sd

    def __call__(self, state: State, times: Times) -> State:
        return {"x": expectation(state["x"], CLOCK.tau(times["x"]), self.sd)}

    def freeze(self, images: State, times: Times) -> "GaussianOracle":
        return self


@pytest.mark.parametrize(("solver", "order"), [(DDIM, 1), (DPM2M, 2)], ids=["ddim", "2m"])
def test_sample_converges_at_the_solvers_order(solver: Solver, order: int) -> None:
    schema, denoiser = Schema([Continuous("x", scale=Standard(0.0, 1.0))]), GaussianOracle()

    def ask(levels: list[float], n: int = 50) -> Tensor:
        return sample(denoiser, schema, {}, ["x"], n, list(pairwise(levels)), solver)["x"][0].double()

    start = ask([0.95, 0.95])  # a step of no length: what the walk starts from
    ends = [CLOCK.tau(torch.tensor(t)).double() for t in (0.95, 0.1)]
    steps, errors = [20, 40, 80, 160], []
    for n in steps:
        levels = torch.linspace(0.95, 0.1, n + 1, dtype=torch.float64).tolist()
        errors.append(float((ask(levels) - flow(start, *ends)).abs().max()))
    assert slope(steps, errors) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("solver", "least"), [(ANCESTRAL, 0.8), (DDIM, 0.85), (DPM2M, 0.95)])
def test_few_steps_from_prior_to_data_keep_most_of_the_spread(solver: Solver, least: float) -> None:
    """A few steps shrink the spread (documented); from 1 to 0 exactly, and closer with more steps."""
    schema, denoiser = Schema([Continuous("x", scale=Standard(0.0, 1.0))]), GaussianOracle()
    spreads = []
    for steps in (20, 200):
        plan = [(1 - k / steps, 1 - (k + 1) / steps) for k in range(steps)]
        x = sample(denoiser, schema, {}, ["x"], 10_000, plan, solver)["x"]
        assert abs(x.mean() - MEAN) < 4 * SD / math.sqrt(10_000) + 0.02
        spreads.append(float(x.std()) / SD)
    assert spreads[0] > least and abs(spreads[1] - 1) < 0.03
    assert abs(spreads[1] - 1) < abs(spreads[0] - 1)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.45, 0.7, 1.0])
def test_the_default_plan_of_numbers_keeps_their_spread(share: float) -> None:
    """What is told of a number leaves a share of its sd over people; its intervals must be as wide as that."""
    schema, denoiser = Schema([Continuous("x", scale=Standard(0.0, 1.0))]), GaussianOracle(share)
    x = sample(denoiser, schema, {}, ["x"], 20_000, facts_plan(MEAN_STEPS), DPM2M)["x"]
    assert abs(float(x.mean()) - MEAN) < 0.03 * share
    assert float(x.std()) / share == pytest.approx(1, abs=0.06 if share < 0.2 else 0.02)
