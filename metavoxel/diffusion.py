"""The whole idea: every variable forgets towards its own prior on one clock; a question is a choice of how much each
entry has been forgotten.

Two verbs. `joint_loss` teaches a denoiser, (State, Times) -> clean predictions. `sample` asks it: what is `Given` is held
at a level (0: known), what is wanted is walked from 1 to 0 along a plan, everything else stays at 1: ignored.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metavoxel.clocks import alpha
from metavoxel.laws import Mixture
from metavoxel.noise import Noise
from metavoxel.processes import Discrete
from metavoxel.question import Denoiser, Given, Question, ScalarLaws
from metavoxel.schema import Observed, Schema, State, Times, Variable
from metavoxel.solvers import ANCESTRAL, Solver
from metavoxel.times import Plan


class Learner(Protocol):
    """A denoiser that can be told how far it is off."""

    def judge(self, state: State, times: Times, x0: State) -> State:
        """The loss of every entry, given clean values x0; only of variables that are asked for."""
        ...


@dataclass(frozen=True)
class Loss:
    total: Tensor
    parts: dict[str, Tensor]
    """Variable -> mean weighed loss over its entries that were asked for."""


Weigh = Callable[[Variable, Tensor], Tensor | float]
"""(variable, tau) -> what its process's loss is multiplied by at each entry."""


def over_marginal(v: Variable, tau: Tensor) -> Tensor | float:
    """Every variable's loss is 1 for a predictor that knows only the marginal, so that none drowns another."""
    return 1 / v.baseline_loss(tau)


def noise_error(v: Variable, tau: Tensor) -> Tensor | float:
    """Unit weights on the squared error of the noise and on the cross-entropy (paper, Eq. 5).

    The clean prediction is off by sigma/alpha times what the noise is off by, and `Gaussian.loss` is over sigma^2.
    """
    return 1.0 if isinstance(v.process, Discrete) else alpha(tau) ** 2


def weighed(clean: State, schema: Iterable[Variable], times: Times, x0: State, weigh: Weigh = over_marginal) -> State:
    """Of clean predictions, the loss of every entry of these variables by their own processes."""
    losses = {}
    for v in schema:
        if times[v.name].any():
            tau = v.clock.tau(times[v.name])
            losses[v.name] = v.process.loss(clean[v.name], x0[v.name], tau) * weigh(v, tau)
    return losses


def taus_of(schema: Schema, times: Times) -> dict[str, Tensor]:
    """Levels on the clock; what is known throughout is left out: it is neither noised nor judged."""
    return {v.name: v.clock.tau(times[v.name]) for v in schema if times[v.name].any()}


def noised(schema: Schema, x0: State, taus: Mapping[str, Tensor], noise: Noise) -> State:
    """Clean values x0 as a denoiser is shown them at these levels (of `taus_of`); noise: see `joint_loss`."""
    state, start = dict(x0), torch.zeros((), device=noise.index.device)
    for name, tau in taus.items():
        stream = noise.every(len(noise) // len(x0[name]))
        state[name] = schema[name].process.forward(x0[name], start, tau, stream)
    return state


def joint_loss(
    denoiser: Learner, schema: Schema, x0: State, observed: Observed, times: Times, noise: Noise
) -> Loss:
    """How far a denoiser is off: the sum over variables of their mean losses (paper, Eq. 5).

    x0: (n, ...) in codec units, anything where missing; observed: (n,) bool; times: levels as drawn by `times`, 1 where
    missing. Missing and known entries carry no loss. Scalars may hold several rows for each row of the images (rows of
    the images varying slowest): so many questions about one scan, for the price of one. noise: one draw a scalar's row.
    """
    taus = taus_of(schema, times)
    losses = denoiser.judge(noised(schema, x0, taus, noise), times, x0)
    parts = dict.fromkeys(schema.names, torch.zeros((), device=noise.index.device))
    for name, tau in taus.items():
        error = losses[name]
        asked = (tau > 0) & observed[name].reshape(-1, *(1,) * (tau.dim() - 1))
        asked = asked.expand_as(error).to(error.dtype)
        parts[name] = (error * asked).sum() / asked.sum().clamp_min(1)
    return Loss(torch.stack(list(parts.values())).sum(), parts)


def expect(denoiser: Denoiser, schema: Schema, given: Mapping[str, Given], want: Sequence[str]) -> State:
    """Clean predictions of the wanted variables in one evaluation: known at 0, wanted at 1. Exact if the denoiser is.

    E[x | given] for reals, (rows, *entry_shape); log p(level | given) for classes, (rows, levels).
    """
    question = Question(denoiser, schema, given, want, draws=1, seed=0, first_row=0)
    clean = question.denoise(question.start(1.0), 1.0)
    return {name: clean[name] for name in want}


def tell(denoiser: Denoiser, schema: Schema, given: Mapping[str, Given], want: Sequence[str]) -> ScalarLaws:
    """`expect`, but the whole laws of numbers: in one evaluation, too."""
    question = Question(denoiser, schema, given, want, draws=1, seed=0, first_row=0)
    laws = question.tell(question.start(1.0), 1.0)
    return {name: laws[name] for name in want}


def encode_once(denoiser: Denoiser, schema: Schema, given: Mapping[str, Given]) -> Denoiser:
    """A denoiser of the scalars for which these scans are encoded already: `expect` and `sample` may then be asked any
    number of times about the same `given`. Where the scans are not all known or absent, the denoiser as it is."""
    return Question(denoiser, schema, given, [v.name for v in schema.scalars if v.name not in given], 1, 0, 0).denoiser


def sample(
    denoiser: Denoiser,
    schema: Schema,
    given: Mapping[str, Given],
    want: Sequence[str],
    n: int,
    plan: Plan,
    solver: Solver = ANCESTRAL,
    seed: int = 0,
    *,
    first_row: int = 0,
    first_draw: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> State:
    """n draws of the wanted variables for each row of `given` (one row if nothing is given): (rows, n, *entry_shape).

    Row i's draw j depends on (seed, first_row + i, first_draw + j) only, so large n may be asked for in parts.
    """
    question = Question(denoiser, schema, given, want, n, seed, first_row, first_draw)
    state = question.start(plan[0][0])
    previous: dict[str, tuple[Tensor, Tensor]] = {}
    for number, (t, s) in enumerate(plan):
        if s > t:
            state, previous = question.forget(state, t, s), {}
            continue
        state = question.impose(state, t)
        told: Mapping[str, Mixture | Tensor] = question.tell(state, t) if solver.draws else question.denoise(state, t)
        for v in question.moving:
            tau_t, tau_s = question.tau(v, t), question.tau(v, s)
            target = told[v.name]
            if isinstance(target, Mixture):
                target = target.draw(question.noise)
            elif not isinstance(v.process, Discrete):
                aim = solver.aim(target, previous.get(v.name), tau_t, tau_s)
                target, previous[v.name] = aim, (target, tau_t)
            state[v.name] = v.process.reverse(state[v.name], target, tau_t, tau_s, question.noise, solver.eta)
        on_step(number)
    state = question.impose(state, 0.0)
    return {name: state[name].unflatten(0, (question.rows, n)) for name in want}
