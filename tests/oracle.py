"""A joint law of a class, an ordinal, a number and a small image whose exact denoiser is known at any levels.

Given class k and ordinal j (probability WEIGHTS[k, j]) the number and the voxels z are jointly N(MEANS[k, j], SIGMA).
Entry i is seen as y_i = alpha_i z_i + sigma_i eps_i, each at its own level, so y | k, j is Gaussian too, and what the
state says about (k, j) and z is a finite mixture of Gaussians. Levels 0 (sigma 0) and 1 (alpha 0) are ordinary cases.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metavoxel.codecs import Standard
from metavoxel.laws import Mixture
from metavoxel.question import Given, ScalarLaws
from metavoxel.schema import Categorical, Continuous, Image, Latent, Ordinal, Schema, State, Times
from metavoxel.times import MixtureTimes

GRID = (2, 3)
VOXELS = GRID[0] * GRID[1]
CLASSES, STAGES = 3, 4


def _law() -> tuple[Tensor, Tensor, Tensor]:
    """What tells of class, stage and number lies partly in faint directions of the scan, which noise hides first."""
    weights = torch.tensor([[8.0, 4, 2, 1], [2, 5, 4, 2], [1, 1, 4, 6]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(20)
    basis = torch.linalg.qr(torch.randn(VOXELS, VOXELS, generator=generator, dtype=torch.float64))[0]
    sd = torch.tensor([1.1, 0.9, 0.7, 0.5, 0.45, 0.4], dtype=torch.float64)
    score = torch.tensor([0.3, 0.0, 0.2, 0.5, 0.0, 0.7], dtype=torch.float64)  # the number's share of each direction
    factors = torch.cat([score[None], basis * sd])
    sigma = factors @ factors.T
    sigma[0, 0] += 0.06
    by_class = torch.tensor(
        [[0.4, 0.0, 0.3, 1.1, 0.0, 0.0], [0.0, 0.0, 0.0, -0.3, 0.6, 0.0], [-0.5, 0, 0, -0.8, 0.0, 0.0]]
    )
    by_stage = torch.linspace(-1, 1, STAGES)[:, None] * torch.tensor([0.3, 0.2, 0.0, 0.0, 1.0, 0.0])
    shift = (by_class[:, None] + by_stage).double()  # in sd of each direction
    number = torch.tensor([-0.5, 0.1, 0.5]).double()[:, None] + torch.tensor([-0.3, -0.1, 0.1, 0.3]).double()
    means = torch.cat([number[..., None], (shift * sd) @ basis.T], -1)
    return weights / weights.sum(), means, sigma


WEIGHTS, MEANS, SIGMA = _law()
"""(classes, stages); (classes, stages, 1 + voxels); (1 + voxels, 1 + voxels). Entry 0 is the number."""


@dataclass(frozen=True)
class Posterior:
    """p(class), p(stage): (n, levels); mean and sd of the number (n,) and of the voxels (n, 1, *GRID)."""

    probabilities: dict[str, Tensor]
    mean: dict[str, Tensor]
    sd: dict[str, Tensor]


def schema(chain: str = "uniform") -> Schema:
    """diagnosis, stage, score and scan; `chain` is the class's."""
    return Schema(
        (
            Categorical("diagnosis", ("a", "b", "c"), chain=chain, marginal=tuple(WEIGHTS.sum(1).tolist())),  # type: ignore[arg-type]
            Ordinal("stage", ("0", "1", "2", "3"), marginal=tuple(WEIGHTS.sum(0).tolist())),
            Continuous("score", scale=Standard(0.0, 1.0)),
            Image("scan", GRID, latent=Latent(1, GRID, (0.0,), (1.0,))),
        )
    )


def draw(n: int, seed: int = 0) -> State:
    """n rows of the law itself."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.multinomial(WEIGHTS.flatten(), n, replacement=True, generator=generator)
    spread = torch.randn(n, len(SIGMA), generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(SIGMA).T
    z = (MEANS.flatten(0, 1)[pair] + spread).float()
    return {
        "diagnosis": pair // STAGES,
        "stage": pair % STAGES,
        "score": z[:, 0],
        "scan": z[:, 1:].reshape(n, 1, *GRID),
    }


class Oracle:
    """The exact denoiser of the law: every clean prediction in closed form, at every combination of levels."""

    device = torch.device("cpu")

    def __init__(self, chain: str = "uniform", coverage: object | None = None) -> None:
        self.schema = schema(chain)
        self.coverage = coverage or MixtureTimes()

    def __call__(self, state: State, times: Times) -> State:
        answer = self.posterior(state, times)
        classes = {name: torch.log(p).float() for name, p in answer.probabilities.items()}
        return classes | {name: mean.float() for name, mean in answer.mean.items()}

    def tell(self, state: State, times: Times) -> ScalarLaws:
        """The score's law, a normal part for each class and stage; the classes'."""
        y, tau_y, known = self._seen(state, times)
        pairs = CLASSES * STAGES
        weight, mean, left = (torch.empty(len(y), pairs, dtype=torch.float64) for _ in range(3))
        for level, rows in _alike(tau_y):
            weight[rows], rest, shift, inside = _parts(y[rows], level, known[rows])
            mean[rows], left[rows] = rest[:, 0] + shift[:, :1], inside[0].expand(len(shift), pairs)
        score = Mixture(weight.float(), mean.float(), left.float())
        return {name: x for name, x in self(state, times).items() if name != "scan"} | {"score": score}

    def freeze(self, images: State, times: Times) -> "FrozenOracle":
        return FrozenOracle(self, images, times)

    def posterior(self, state: State, times: Times) -> Posterior:
        """What a state at these levels says of the clean values."""
        n = len(state["score"])
        y, tau_y, known = self._seen(state, times)
        weight, mean, sd = (
            torch.empty(n, CLASSES * STAGES, dtype=torch.float64),
            torch.empty_like(y),
            torch.empty_like(y),
        )
        for level, rows in _alike(tau_y):
            weight[rows], mean[rows], sd[rows] = _condition(y[rows], level, known[rows])
        pair = weight.unflatten(1, (CLASSES, STAGES))
        return Posterior(
            {"diagnosis": pair.sum(2), "stage": pair.sum(1)},
            {"score": mean[:, 0], "scan": mean[:, 1:].reshape(n, 1, *GRID)},
            {"score": sd[:, 0], "scan": sd[:, 1:].reshape(n, 1, *GRID)},
        )

    def ask(self, given: dict[str, Given]) -> Posterior:
        """The exact posterior of everything given values (level 0 where known, 1 elsewhere)."""
        n = max([len(value.value) for value in given.values()], default=1)
        state, times = {}, {}
        for v in self.schema:
            dtype = torch.int64 if v.name in ("diagnosis", "stage") else torch.float32
            state[v.name] = torch.zeros(n, *v.entry_shape, dtype=dtype)
            if v.name == "diagnosis" and v.process.states > CLASSES:  # type: ignore[union-attr]
                state[v.name] += CLASSES  # the absorbing chain's prior
            times[v.name] = torch.ones(n, *v.level_shape)
            if v.name in given:
                value, mask = given[v.name].value, given[v.name].mask
                seen = torch.ones(n, *v.level_shape, dtype=torch.bool) if mask is None else mask
                state[v.name] = torch.where(seen, value, state[v.name])  # what is at level 1 is not looked at
                if given[v.name].observed is not None:
                    seen = seen & given[v.name].observed.reshape(n, *(1,) * len(v.level_shape))
                times[v.name] = torch.where(seen, 0.0, times[v.name])
        return self.posterior(state, times)

    def _seen(self, state: State, times: Times) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers and their levels, (n, d) each; what is seen of classes, (n, pairs)."""
        tau = {v.name: v.clock.tau(times[v.name]).double() for v in self.schema}
        y = torch.cat([state["score"][:, None], state["scan"].flatten(1)], 1).double()
        tau_y = torch.cat([tau["score"][:, None], tau["scan"].flatten(1)], 1)
        known = self._evidence("diagnosis", state, tau)[:, :, None] + self._evidence("stage", state, tau)[:, None, :]
        return y, tau_y, known.flatten(1)

    def _evidence(self, name: str, state: State, tau: dict[str, Tensor]) -> Tensor:
        """log q(x_t | x_0 = k): (n, levels), -inf where it is impossible."""
        process = self.schema[name].process
        matrix = process.chain.matrix(tau[name])  # type: ignore[union-attr]
        return torch.log(matrix.take_along_dim(state[name][:, None, None], 2)[:, : process.levels, 0])  # type: ignore[union-attr]


class FrozenOracle:
    """The oracle for scans (rows, ...) that stay as they are."""

    def __init__(self, oracle: Oracle, images: State, times: Times) -> None:
        self.oracle, self.images, self.times = oracle, images, times
        self.coverage, self.device = oracle.coverage, oracle.device

    def __call__(self, state: State, times: Times) -> State:
        clean = self.oracle(*self._whole(state, times))
        return {name: clean[name] for name in ("diagnosis", "stage", "score")}

    def tell(self, state: State, times: Times) -> ScalarLaws:
        return self.oracle.tell(*self._whole(state, times))

    def _whole(self, state: State, times: Times) -> tuple[State, Times]:
        """With the scans, for every draw."""
        draws = len(state["score"]) // len(self.images["scan"])
        scan = {name: x.repeat_interleave(draws, 0) for name, x in self.images.items()}
        level = {name: t.repeat_interleave(draws, 0) for name, t in self.times.items()}
        return {**state, **scan}, {**times, **level}

    def freeze(self, images: State, times: Times) -> "FrozenOracle":
        return self


def _alike(tau: Tensor) -> list[tuple[Tensor, Tensor | slice]]:
    """The distinct rows of levels (n, d), each with its rows: the linear algebra depends on the levels alone."""
    if (tau == tau[:1]).all():
        return [(tau[0], slice(None))]
    levels, which = torch.unique(tau, dim=0, return_inverse=True)
    return [(level, which == number) for number, level in enumerate(levels)]


def _parts(y: Tensor, tau: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y (n, d) at levels tau (d,), log_weight (n, pairs) of what else is known -> p(pair) (n, pairs); of z in each pair the
    mean, but for a shift (pairs, d) and (n, d), and the variance (d,).

    y | pair ~ N(A m, A S A + N) with A = diag(alpha), N = diag(sigma^2). S is the same for all pairs, so
    log p(y | pair) is linear in y, and so is E[z | pair, y] = rest + G y.
    """
    a, means = torch.exp(-tau / 2), MEANS.flatten(0, 1)
    precision = torch.linalg.inv(a[:, None] * SIGMA * a - torch.diag(torch.expm1(-tau)))
    gain = SIGMA * a @ precision
    pull = precision @ (a * means).T
    offset = -0.5 * ((a * means).T * pull).sum(0)
    weight = torch.softmax(WEIGHTS.log().flatten() + log_weight + offset + y @ pull, 1)
    return weight, means - a * means @ gain.T, y @ gain.T, (SIGMA - gain * a @ SIGMA).diagonal().clamp_min(0)


def _condition(y: Tensor, tau: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same -> p(pair) (n, pairs), E and sd of z (n, d)."""
    weight, rest, shift, inside = _parts(y, tau, log_weight)
    mean = weight @ rest
    between = (weight @ rest**2 - mean**2).clamp_min(0)
    return weight, mean + shift, (inside + between).sqrt()
