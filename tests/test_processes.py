"""Processes by their laws: semigroup, stationarity, the exact reverse; per-entry levels; the exact ends."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import expm
from torch import Tensor

from metavoxel.clocks import Cosine, ScaledLinear, alpha, once, sigma
from metavoxel.noise import Noise
from metavoxel.processes import (
    BirthDeath,
    Discrete,
    Gaussian,
    absorbing_chain,
    birth_death_chain,
    marginal_chain,
    uniform_chain,
)

N, ALPHA = 20_000, 1e-3
INF = torch.tensor(math.inf)
UNEVEN = Discrete(BirthDeath((0.1, 0.4, 0.2, 0.3)), 4)
CHAINS = {
    "uniform": uniform_chain(4),
    "absorbing": absorbing_chain(4),
    "marginal": marginal_chain((0.1, 0.2, 0.3, 0.4)),
    "ordinal": birth_death_chain(4),
    "uneven ordinal": UNEVEN,
}
LAW = torch.tensor([0.4, 0.1, 0.3, 0.2])
every_chain = pytest.mark.parametrize("process", CHAINS.values(), ids=CHAINS)


def noise(seed: int = 0, n: int = N) -> Noise:
    return Noise(seed, torch.arange(n))


def full(tau: float, n: int = N) -> Tensor:
    return torch.full((n,), tau)


def generator(process: Discrete) -> np.ndarray:
    """The rate matrix R, written down anew."""
    pi = np.array(process.chain.stationary)
    if not isinstance(process.chain, BirthDeath):
        return np.outer(np.ones(len(pi)), pi) - np.eye(len(pi))
    rates = np.zeros((len(pi), len(pi)))
    for i in range(len(pi) - 1):
        rates[i, i + 1], rates[i + 1, i] = np.sqrt(pi[i + 1] / pi[i]), np.sqrt(pi[i] / pi[i + 1])
    rates -= np.diag(rates.sum(1))
    return rates / np.sort(-np.linalg.eigvals(rates).real)[1]


def same_law(x: Tensor, expected: Tensor) -> float:
    """Chi-square p-value of states x against probabilities; what is impossible must not occur."""
    counts, law = torch.bincount(x, minlength=len(expected)).double(), expected.double() / expected.double().sum()
    possible = law > 1e-9
    assert counts[~possible].sum() == 0
    return (
        stats.chisquare(counts[possible], len(x) * law[possible] / law[possible].sum()).pvalue
        if possible.sum() > 1
        else 1
    )


def test_the_clock_is_exact_at_its_ends_and_inverts() -> None:
    clock, t = Cosine(), torch.linspace(0, 1, 201)
    tau = clock.tau(t)
    assert tau[0] == 0 and tau[-1] == torch.inf and (tau.diff() > 0).all() and torch.isfinite(tau[:-1]).all()
    torch.testing.assert_close(clock.t(tau), t, atol=2e-4, rtol=0)
    torch.testing.assert_close(alpha(tau), torch.cos(t * math.pi / 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(alpha(tau) ** 2 + sigma(tau) ** 2, torch.ones(201))
    assert alpha(tau)[-1] == 0 and sigma(tau)[-1] == 1 and sigma(tau)[0] == 0


def test_latent_diffusions_clock_inverts() -> None:
    clock, t = ScaledLinear(), torch.linspace(0, 1, 201)
    torch.testing.assert_close(clock.t(clock.tau(t)), t, atol=1e-5, rtol=0)
    assert clock.t(torch.tensor(torch.inf)) == 1


def test_repeated_levels_are_worked_out_once_and_others_are_left() -> None:
    maps = torch.rand(3, 1, 1, 1).expand(3, 1, 4, 5)
    assert once(maps).shape == (3, 1, 1, 1)
    assert torch.equal(once(maps).expand_as(maps), maps)
    assert once(maps.contiguous()).shape == maps.shape
    assert once(torch.tensor(0.5).expand(3)).shape == (3,)


# --- Gaussian ---


@pytest.mark.parametrize(("s", "t"), [(0.3, 1.1), (0.0, 0.5), (0.7, math.inf), (1.0, 1.0)])
def test_gaussian_forward_in_two_steps_is_one_step(s: float, t: float) -> None:
    process, x0 = Gaussian(), torch.full((N,), 1.7)
    halfway = process.forward(x0, full(0), full(s), noise(1))
    twice, once = process.forward(halfway, full(s), full(t), noise(2)), process.forward(x0, full(0), full(t), noise(3))
    law = stats.norm(1.7 * math.exp(-t / 2), math.sqrt(-math.expm1(-t)))
    assert stats.kstest(twice.numpy(), law.cdf).pvalue > ALPHA
    assert stats.kstest(once.numpy(), law.cdf).pvalue > ALPHA


def test_gaussian_prior_is_stationary() -> None:
    process = Gaussian()
    x = process.forward(process.prior(noise(1), ()), full(0), full(0.6), noise(2))
    assert stats.kstest(x.numpy(), "norm").pvalue > ALPHA


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("t", "s"), [(1.5, 0.9), (0.4, 0.0), (math.inf, 0.8), (math.inf, 0.0)])
def test_gaussian_reverse_of_a_known_start_leaves_the_law_invariant(t: float, s: float, eta: float) -> None:
    """With x_0 known, q(x_s | x_0) comes back from q(x_t | x_0) for every eta (Song et al. 2021, Lemma 1)."""
    process, x0 = Gaussian(), torch.full((N,), -0.8)
    x_t = process.forward(x0, full(0), full(t), noise(1))
    x_s = process.reverse(x_t, x0, full(t), full(s), noise(2), eta)
    if s == 0:
        torch.testing.assert_close(x_s, x0)
    else:
        law = stats.norm(-0.8 * math.exp(-s / 2), math.sqrt(-math.expm1(-s)))
        assert stats.kstest(x_s.numpy(), law.cdf).pvalue > ALPHA


def test_gaussian_reverse_with_the_ancestral_step_keeps_the_joint_law_of_two_times() -> None:
    process, x0 = Gaussian(), torch.full((N,), -0.8)
    x_s = process.forward(x0, full(0), full(0.5), noise(1))
    x_t = process.forward(x_s, full(0.5), full(1.2), noise(2))
    back = process.reverse(x_t, x0, full(1.2), full(0.5), noise(3), eta=1.0)
    forward, reverse = torch.cov(torch.stack([x_s, x_t])), torch.cov(torch.stack([back, x_t]))
    assert (forward - reverse).abs().max() < 5 / math.sqrt(N)
    # eta 0 is a function of x_t and x_0
    still = process.reverse(x_t, x0, full(1.2), full(0.5), noise(3), eta=0.0)
    assert torch.equal(still, process.reverse(x_t, x0, full(1.2), full(0.5), noise(4), eta=0.0))


def test_gaussian_levels_of_each_entry() -> None:
    process, x, clean = Gaussian(), noise(1, 50).normal(2, 4, 3), torch.zeros(50, 2, 4, 3)
    tau_s, tau_t = torch.rand(50, 1, 4, 3), torch.rand(50, 1, 4, 3) + 1
    still = torch.rand(50, 1, 4, 3) < 0.5
    for level in (0.0, 0.7, math.inf):
        a, b = torch.where(still, level, tau_s), torch.where(still, level, tau_t)
        moves = [process.forward(x, a, b, noise(2, 50)), process.reverse(x, clean, b, a, noise(2, 50))]
        for moved in moves:
            assert torch.equal(moved == x, still.expand_as(x)) and torch.isfinite(moved).all()
    ends = process.forward(x, torch.zeros(()), torch.where(still, 0.0, torch.inf), noise(3, 50))
    assert torch.equal(ends[still.expand_as(x)], x[still.expand_as(x)])
    far = process.forward(x * 1e6, torch.zeros(()), torch.where(still, 0.0, torch.inf), noise(3, 50))
    assert torch.equal(far[~still.expand_as(x)], ends[~still.expand_as(x)])  # nothing of the data is left


def test_gaussian_loss_is_one_for_the_marginal_at_every_level_and_zero_where_known() -> None:
    process, x0 = Gaussian(), noise(1).normal()
    for tau in (0.05, 0.7, 3.0, math.inf):
        x = process.forward(x0, full(0), full(tau), noise(2))
        clean = alpha(full(tau)) * x  # E[x_0 | x_t] of N(0, 1)
        assert process.loss(clean, x0, full(tau)).mean() == pytest.approx(1, abs=0.05)
    assert (process.loss(x0 + 1, x0, full(0)) == 0).all()


# --- Discrete ---


@every_chain
def test_transition_matrices_are_exponentials_of_the_generator(process: Discrete) -> None:
    rates = generator(process)
    for d in (0.0, 1e-3, 0.3, 2.0, 20.0):
        matrix = process.chain.matrix(torch.tensor(d, dtype=torch.float64))
        np.testing.assert_allclose(matrix.numpy(), expm(d * rates), atol=1e-12)
    pi = torch.tensor(process.chain.stationary, dtype=torch.float64)
    torch.testing.assert_close(process.chain.matrix(INF.double()), pi.expand(len(pi), -1))
    torch.testing.assert_close(pi @ process.chain.matrix(torch.tensor(0.7, dtype=torch.float64)), pi)


@every_chain
@given(d=st.floats(0, 100) | st.just(math.inf))
def test_rows_sum_to_one_and_are_probabilities(process: Discrete, d: float) -> None:
    for dtype in (torch.float32, torch.float64):
        matrix = process.chain.matrix(torch.tensor([d, 0.5], dtype=dtype))
        assert matrix.shape == (2, process.states, process.states) and (matrix >= 0).all()
        torch.testing.assert_close(matrix.sum(-1), torch.ones(2, process.states, dtype=dtype))


@given(st.lists(st.floats(0.02, 1), min_size=2, max_size=9))
def test_birth_death_has_a_spectral_gap_of_one_and_moves_to_neighbours_only(weights: list[float]) -> None:
    pi = tuple((np.array(weights) / sum(weights)).tolist())
    chain, d = BirthDeath(pi), 1e-4
    matrix = chain.matrix(torch.tensor(d, dtype=torch.float64)).numpy()
    eigenvalues = np.sort(
        -np.log(np.linalg.eigvals(chain.matrix(torch.tensor(0.05, dtype=torch.float64)).numpy()).real)
    )
    np.testing.assert_allclose(eigenvalues[:2] / 0.05, [0, 1], atol=1e-6)
    rates = (matrix - np.eye(len(pi))) / d
    distance = np.abs(np.subtract.outer(range(len(pi)), range(len(pi))))
    assert np.abs(rates[distance > 1]).max(initial=0) < 1e-3 * np.abs(rates).max() ** 2
    balance = np.array(pi)[:, None] * matrix
    np.testing.assert_allclose(balance, balance.T, atol=1e-12)


@every_chain
@pytest.mark.parametrize(("s", "t"), [(0.3, 1.1), (0.0, 0.5), (0.7, math.inf), (0.9, 0.9)])
def test_discrete_forward_in_two_steps_is_one_step(process: Discrete, s: float, t: float) -> None:
    x0 = torch.full((N,), 1)
    halfway = process.forward(x0, full(0), full(s), noise(1))
    twice, once = process.forward(halfway, full(s), full(t), noise(2)), process.forward(x0, full(0), full(t), noise(3))
    law = process.chain.matrix(torch.tensor(t))[1]
    assert same_law(twice, law) > ALPHA and same_law(once, law) > ALPHA


@every_chain
def test_discrete_prior_is_stationary_and_level_one(process: Discrete) -> None:
    pi = torch.tensor(process.chain.stationary)
    prior = process.prior(noise(1))
    assert same_law(prior, pi) > ALPHA
    assert same_law(process.forward(prior, full(0), full(0.6), noise(2)), pi) > ALPHA
    assert same_law(process.forward(torch.zeros(N, dtype=torch.int64), full(0), full(math.inf), noise(3)), pi) > ALPHA
    start = noise(4).integers(4)
    assert torch.equal(process.forward(start, full(0), full(0), noise(5)), start)


def exact_start(process: Discrete, x_t: Tensor, tau: float) -> Tensor:
    """log p(x_0 | x_t) for x_0 ~ LAW."""
    matrix = process.chain.matrix(torch.tensor(tau, dtype=torch.float64))[:4]
    joint = LAW.double()[:, None] * matrix
    return torch.log((joint / joint.sum(0)).T[x_t]).float()


@every_chain
@pytest.mark.parametrize(("t", "s"), [(1.5, 0.9), (0.4, 0.0), (math.inf, 0.8), (math.inf, 0.0)])
def test_discrete_reverse_leaves_the_exact_law_invariant(process: Discrete, t: float, s: float) -> None:
    """Joint law of (x_s, x_t), forward against reverse, with p(x_0 | x_t) exact; the chain forgets x_0 ~ LAW."""
    x0 = noise(1).choice(LAW.expand(N, -1))
    x_t = process.forward(x0, full(0), full(t), noise(2))
    x_s = process.reverse(x_t, exact_start(process, x_t, t), full(t), full(s), noise(3))
    first, d = process.chain.matrix(torch.tensor(s))[:4], t - s if t < math.inf else t
    second = process.chain.matrix(torch.tensor(d))
    joint = ((LAW @ first)[:, None] * second).flatten()  # p(x_s) q(x_t | x_s)
    assert same_law(x_s * process.states + x_t, joint) > ALPHA


@every_chain
def test_reverse_law_is_bayes_rule(process: Discrete) -> None:
    tau_t, tau_s, clean = 1.3, 0.4, torch.tensor([0.2, 0.5, 0.1, 0.2])
    start, step, whole = (process.chain.matrix(torch.tensor(d)) for d in (tau_s, tau_t - tau_s, tau_t))
    for x in range(process.states):
        reachable = whole[:4, x] > 0
        expected = (
            sum(clean[k] * start[k] * step[:, x] / whole[k, x] for k in range(4) if reachable[k])
            / clean[reachable].sum()
        )
        got = process.reverse_law(torch.tensor([x]), clean.log()[None], torch.tensor([tau_t]), torch.tensor([tau_s]))
        torch.testing.assert_close(got[0], expected, atol=1e-6, rtol=1e-4)


@every_chain
def test_discrete_levels_of_each_row(process: Discrete) -> None:
    n = 600
    x, still = noise(1, n).integers(4), torch.arange(n) % 3 == 0
    clean = torch.log_softmax(torch.randn(n, 4), -1)
    for level in (0.0, 0.7, math.inf):
        state = process.prior(noise(5, n)) if level == math.inf else x
        a, b = torch.where(still, level, torch.full((n,), 0.3)), torch.where(still, level, torch.full((n,), 2.0))
        forward, back = process.forward(state, a, b, noise(2, n)), process.reverse(state, clean, b, a, noise(2, n))
        assert torch.equal(forward[still], state[still]) and torch.equal(back[still], state[still])
        assert (torch.cat([forward, back]) != torch.cat([state, state])).any()


@every_chain
def test_likelihood_and_loss(process: Discrete) -> None:
    x = torch.arange(process.states)
    at_one = process.likelihood(x, torch.full((process.states,), math.inf))
    torch.testing.assert_close(at_one, at_one[:, :1].expand(-1, 4))  # what is at level 1 says nothing
    known = process.likelihood(torch.arange(4), torch.zeros(4))
    assert torch.equal(known.argmax(1), torch.arange(4)) and (known.exp() - torch.eye(4)).abs().max() < 1e-6
    middle = process.likelihood(x, torch.full((process.states,), 0.5)).exp()
    torch.testing.assert_close(middle, process.chain.matrix(torch.tensor(0.5))[:4].T, atol=1e-6, rtol=1e-5)
    clean = torch.log_softmax(torch.randn(4, 4), -1)
    loss = process.loss(clean, torch.arange(4), torch.tensor([0.0, 0.5, 1.0, math.inf]))
    torch.testing.assert_close(loss, torch.cat([torch.zeros(1), -clean.diagonal()[1:]]))
