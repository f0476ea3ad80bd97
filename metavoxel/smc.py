"""Draws of p(wanted | given) that are right in the limit, from a denoiser that knows one level for all: the reference that
replacement is measured against (Twisted Diffusion Sampler, Wu et al. 2023).

Particles carry every variable at one level t and walk down the plan together. What is given steers them twice. A step is
proposed as if the clean value of a given entry were known: the bridge q(x_s | x_t, given), exact, which needs no gradient.
And a particle counts for how well its clean prediction explains what is given, the twist: for reals a normal density about
the prediction, for classes the predicted probability. Weights make up for both, so any proposal and any twist would do in
the limit of many particles; what is left is the error of the plan's steps, which falls with their length.

One weight judges all given entries at once. Its variance grows with their number: this is for a few dozen entries and many
particles, not for scans (there particles die out, and `ess` shows it).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metavoxel.asked import whole
from metavoxel.clocks import sigma
from metavoxel.errors import MetavoxelError
from metavoxel.noise import Noise
from metavoxel.processes import TINY, Discrete
from metavoxel.question import Given, count_rows, device_of
from metavoxel.schema import Schema, State, Times, Variable, full_level
from metavoxel.times import Plan


@dataclass(frozen=True)
class Filtered:
    draws: State
    """The wanted variables: (rows, particles, *entry_shape), equally likely; several may stem from one particle."""
    log_evidence: Tensor
    """(rows,) log p(given), nats: a density in codec units for reals, a probability for classes."""
    ess: Tensor
    """(moves, rows) effective sample size before each move of the plan, at most `particles`."""


@dataclass(frozen=True)
class _Known:
    """A given value for every particle, (n, *entry_shape), and where it holds, (n, *level_shape) bool: maybe nowhere."""

    value: Tensor
    where: Tensor


@torch.no_grad()
def smc(
    denoiser: Callable[[State, Times], State],
    schema: Schema,
    given: Mapping[str, Given],
    want: Sequence[str],
    particles: int,
    plan: Plan,
    seed: int = 0,
    *,
    first_row: int = 0,
) -> Filtered:
    """Draws of the wanted variables for each row of `given` (one row if nothing is given), by `particles` particles a row.

    given: values in codec units, where their mask holds and where they were observed; their `level` is not used, for all
    levels are tied. plan: from 1 down to 0, such as `even_plan(100)`. Row i depends on (seed, first_row + i, particles).
    Raises MetavoxelError for a question that makes no sense and for a plan that goes back up.
    """
    rows = count_rows(schema, given, want)
    whole("particles", particles, 1)
    if not plan or plan[0][0] != 1 or plan[-1][1] != 0 or any(s >= t for t, s in plan):
        raise MetavoxelError("particles walk from 1 down to 0 and never back; give a plan such as even_plan(100)")
    device, n = device_of(denoiser, given), rows * particles
    row, place = torch.arange(rows, device=device)[:, None], torch.arange(particles, device=device)
    streams = (first_row + row) * (1 << 32)
    noise, row_noise = Noise(seed, (streams + place).flatten()), Noise(seed, (streams + particles).flatten())
    known = {v.name: _spread(v, given.get(v.name), n, device) for v in schema}

    state = {v.name: v.process.prior(noise, v.entry_shape) for v in schema}
    weight = torch.zeros(rows, particles, dtype=torch.float64, device=device)
    evidence, sizes = weight.new_zeros(rows), []
    for t, s in plan:
        clean = denoiser(state, {v.name: full_level(v, t, n, device) for v in schema})
        twist = _twist(schema, known, clean, t).reshape_as(weight)
        weight = weight + twist
        sizes.append(1 / torch.softmax(weight, 1).square().sum(1))
        poor = ((sizes[-1] < particles / 2) | (s == 0))[:, None]
        chosen = torch.where(poor, _resample(weight, row_noise), place)
        average = torch.logsumexp(weight, 1, keepdim=True) - math.log(particles)
        evidence = evidence + torch.where(poor, average, 0.0)[:, 0]
        flat = (chosen + particles * row).flatten()
        state, clean = ({name: x[flat] for name, x in part.items()} for part in (state, clean))
        state, ratio = _step(schema, known, state, clean, t, s, noise)
        weight = torch.where(poor, 0.0, weight) - twist.gather(1, chosen) + ratio.reshape_as(weight)
    return Filtered({name: state[name].unflatten(0, (rows, particles)) for name in want}, evidence, torch.stack(sizes))


def _spread(v: Variable, given: Given | None, n: int, device: torch.device) -> _Known:
    """The same value for all particles of a row, rows varying slowest."""
    where = torch.ones(n, *v.level_shape, dtype=torch.bool, device=device)
    if given is None:
        value = torch.zeros(n, *v.entry_shape, device=device)
        return _Known(value.long() if isinstance(v.process, Discrete) else value, ~where)
    particles = n // len(given.value)
    if given.mask is not None:
        where = where & given.mask.repeat_interleave(particles, 0)
    if given.observed is not None:
        where = where & given.observed.repeat_interleave(particles).reshape(n, *(1,) * len(v.level_shape))
    return _Known(given.value.repeat_interleave(particles, 0), where)


def _tau(v: Variable, t: float, like: Tensor) -> Tensor:
    """The clock at t, (1,): all particles are at one level."""
    return v.clock.tau(torch.tensor([t], device=like.device))


def _variance(v: Variable, tau: Tensor) -> Tensor:
    """What an entry of a real at that level leaves open of its clean value if only its marginal is known."""
    return sigma(tau) ** 2 * v.baseline_loss(tau)


def _twist(schema: Schema, known: Mapping[str, _Known], clean: State, t: float) -> Tensor:
    """(n,) about log p(given | state at t): how well the clean prediction explains what is given."""
    parts = []
    for v in schema:
        given, guess = known[v.name], clean[v.name]
        if isinstance(v.process, Discrete):
            fit = guess.gather(1, given.value[:, None])[:, 0].clamp_min(math.log(TINY))
        else:
            fit = _log_normal(given.value - guess, _variance(v, _tau(v, t, guess)))
        parts.append(_total(fit, given.where))
    return torch.stack(parts).sum(0)


def _step(
    schema: Schema, known: Mapping[str, _Known], state: State, clean: State, t: float, s: float, noise: Noise
) -> tuple[State, Tensor]:
    """Moves every particle from t to s as if the given were its clean value, the rest by its clean prediction; and (n,) the
    log of how likely the model itself makes that move, over how likely it was proposed."""
    moved, ratios = {}, []
    for v in schema:
        given, x, free = known[v.name], state[v.name], clean[v.name]
        tau_t, tau_s = _tau(v, t, x), _tau(v, s, x)
        if isinstance(v.process, Discrete):
            sure = torch.nn.functional.one_hot(given.value, v.process.levels).to(free.dtype).log()
            law = v.process.reverse_law(x, free, tau_t, tau_s)
            bridge = v.process.reverse_law(x, torch.where(given.where[:, None], sure, free), tau_t, tau_s)
            to = noise.choice(bridge)
            ratio = torch.log(law.clamp_min(TINY) / bridge.clamp_min(TINY)).gather(1, to[:, None])[:, 0]
        else:
            mean, sd = v.process.reverse_law(x, free, tau_t, tau_s)
            centre, _ = v.process.reverse_law(x, torch.where(given.where, given.value, free), tau_t, tau_s)
            to = centre + sd * noise.normal(*v.entry_shape)
            # the model does not know the clean value as well as the bridge does, and what it leaves open widens its move;
            # without this, a long step would make the given look less likely than it is
            gain, _ = v.process.reverse_law(torch.zeros_like(tau_t), torch.ones_like(tau_t), tau_t, tau_s)
            ratio = _log_normal(to - mean, sd**2 + gain**2 * _variance(v, tau_t)) - _log_normal(to - centre, sd**2)
        moved[v.name] = to
        ratios.append(_total(ratio, given.where))
    return moved, torch.stack(ratios).sum(0)


def _log_normal(deviation: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * (deviation**2 / variance + torch.log(2 * math.pi * variance))


def _total(log_density: Tensor, where: Tensor) -> Tensor:
    """(n, ...), summed over the entries where it counts: (n,)."""
    return torch.where(where, log_density.double(), 0.0).reshape(len(log_density), -1).sum(1)


def _resample(weight: Tensor, noise: Noise) -> Tensor:
    """Log weights (rows, particles) -> (rows, particles) which particle goes on in each place, systematically: one uniform
    number a row, and every particle goes on as often as its share of the weight says, give or take one."""
    particles = weight.shape[1]
    cumulative = torch.softmax(weight, 1).cumsum(1)
    place = (torch.arange(particles, device=weight.device) + noise.uniform(1).double()) / particles
    return torch.searchsorted(cumulative, place.contiguous()).clamp_max(particles - 1)
