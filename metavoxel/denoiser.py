"""The network as a denoiser: raw outputs -> clean predictions. How it is parameterised is this module's secret.

Images: x_0 = what the entry's own marginal N(m, s^2) says + c_out F, with c_out the sd that this leaves open (EDM's
preconditioning, Karras et al. 2022, about a mean). m and s are the entry's own, and m moves linearly with the facts, so the
network starts from the mean brain of such people. At t = 1 the prediction is m + s F, at t = 0 the value itself.
Numbers: x_0 = what their law over people says (see `laws`) - sigma F. For a law N(0, 1) that is the v-parameterisation
(Salimans and Ho 2022).
Classes: log p(x_0) = F + log q(x_t | x_0), normalised. The network learns what the rest says about x_0; what the noised
value itself says enters by Bayes' rule, exactly, for every chain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metavoxel.clocks import alpha, sigma
from metavoxel.diffusion import Coverage, over_marginal
from metavoxel.nets.joint import JointNet, NetSettings, Scan
from metavoxel.nets.paper import PaperSettings
from metavoxel.nets.tokens import TokenSpec
from metavoxel.paper import PaperDenoiser
from metavoxel.processes import Discrete
from metavoxel.schema import Categorical, Scalar, Schema, State, Times, Variable


@dataclass(frozen=True)
class Told:
    """What one scalar says by itself of its facts: (rows, width) each."""

    mean: Tensor
    """E[fact | x_t], each fact of mean 0 over people; 0 where the scalar is absent."""
    variance: Tensor
    chances: Tensor | None = None
    """A class's p(x_0 | x_t): its facts are not independent, Cov = diag(p) - p p^T."""

    def rows(self, index: Tensor) -> "Told":
        """Only these rows."""
        chances = None if self.chances is None else self.chances[index]
        return Told(self.mean[index], self.variance[index], chances)


class Marginal(nn.Module):
    """Mean and variance of every entry of an image over the training rows: (channels, *grid) each, standardised."""

    mean: Tensor
    variance: Tensor
    slopes: Tensor
    residual: Tensor

    def __init__(self, shape: tuple[int, ...], facts: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("slopes", torch.zeros(facts, *shape))
        self.register_buffer("residual", torch.ones(shape))

    def set(self, mean: Tensor, variance: Tensor, slopes: Tensor, residual: Tensor) -> None:
        """residual: the variance about the mean of people with the same facts. Floors the variances: a background that
        never varied in training may vary a little in use."""
        floor = 0.02 * float(variance.mean())
        self.mean.copy_(mean)
        self.variance.copy_(variance.clamp_min(floor))
        self.slopes.copy_(slopes)
        self.residual.copy_(residual.clamp_min(floor))

    def alone(self) -> "Normal":
        """Of people of whom nothing is told."""
        return Normal(self.mean, self.variance)

    def given(self, facts: Sequence[Told]) -> "Normal":
        """Of people of whom so much is told, (rows, channels, *grid). Age moves every voxel by little: a network alone
        takes days to follow it. What a fact leaves open of itself is spread along its slopes."""
        mean, variance = self.mean[None], self.residual[None]
        for fact, slopes in zip(facts, self.slopes.split([fact.mean.shape[1] for fact in facts])):
            mean = mean + torch.tensordot(fact.mean, slopes, dims=1)
            variance = variance + torch.tensordot(fact.variance, slopes**2, dims=1)
            if fact.chances is not None:
                variance = variance - torch.tensordot(fact.chances, slopes, dims=1) ** 2
        return Normal(mean, torch.maximum(variance, self.residual))


@dataclass(frozen=True)
class Normal:
    """What is expected of every entry of an image: independent normal laws, (rows or 1, channels, *grid) each."""

    mean: Tensor
    variance: Tensor

    def deviation(self, x: Tensor, tau: Tensor) -> Tensor:
        """How far each noised entry is from its mean, in units of its spread."""
        a = alpha(tau)
        return (x - a * self.mean) / torch.sqrt(a**2 * self.variance + sigma(tau) ** 2)

    def clean(self, raw: Tensor, x: Tensor, tau: Tensor) -> Tensor:
        """The normal law's own E[x_0 | x_t], corrected by raw in units of the sd that it leaves open."""
        a, noise = alpha(tau), sigma(tau)
        total = a**2 * self.variance + noise**2
        own = self.mean + a * self.variance / total * (x - a * self.mean)
        return own + noise * torch.sqrt(self.variance / total) * raw


class JointDenoiser(nn.Module):
    """(State, Times) -> clean predictions for a fitted schema.

    Scalars may come with several rows for each row of the images; images are then decoded from the first of them.
    """

    weigh = staticmethod(over_marginal)

    def __init__(self, schema: Schema, settings: NetSettings, coverage: Coverage) -> None:
        super().__init__()
        self.schema, self.coverage = schema, coverage
        dims = len(schema.images[0].shape) if schema.images else 3
        images = {image.name: image.fitted.channels for image in schema.images}
        self.net = JointNet(settings, dims, images, [_token(v) for v in schema.scalars])
        facts = sum(fact_width(v) for v in schema.scalars)
        self.marginals = nn.ModuleDict({image.name: Marginal(image.entry_shape, facts) for image in schema.images})

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, state: State, times: Times) -> State:
        scan = self._encode(state, times)
        tokens = self._attend(state, times, scan)
        clean = self.clean_scalars(self.net.tokens.read(tokens), state, times)
        if scan is not None:
            tokens = tokens.unflatten(0, (len(scan.features.embedding), -1))[:, 0]
            clean |= self._images(scan, tokens, state, times)
        return clean

    def clean_scalars(self, raw: State, state: State, times: Times) -> State:
        """Raw outputs -> clean predictions."""
        clean = {}
        for v in self.schema.scalars:
            x, tau = state[v.name], v.clock.tau(times[v.name])
            if isinstance(v.process, Discrete):
                clean[v.name] = torch.log_softmax(raw[v.name] + v.process.likelihood(x, tau), -1)
            else:
                clean[v.name] = v.law.given(x, tau)[0] - sigma(tau) * raw[v.name]
        return clean

    def _images(self, scan: Scan, tokens: Tensor, state: State, times: Times) -> State:
        """Clean images; rows whose images are all known stay as they are: there is nothing to predict."""
        images = self.schema.images
        clean = {image.name: state[image.name] for image in images}
        asked = torch.stack([times[image.name].flatten(1).amax(1) > 0 for image in images]).any(0)
        if not asked.any():
            return clean
        facts = told(self.schema.scalars, state, times, len(asked))
        if not asked.all():
            rows = asked.nonzero()[:, 0]
            scan, tokens, facts = scan.rows(rows), tokens[rows], [fact.rows(rows) for fact in facts]
            state, times = ({v.name: part[v.name][rows] for v in images} for part in (state, times))
        raw = self.net.decode(scan, tokens)
        found = {}
        for image in images:
            law: Normal = self.marginals[image.name].given(facts)  # type: ignore[operator]
            found[image.name] = law.clean(raw[image.name], state[image.name], image.clock.tau(times[image.name]))
        return found if asked.all() else {name: clean[name].index_copy(0, rows, x) for name, x in found.items()}

    def freeze(self, images: State, times: Times) -> "FrozenScan":
        """The denoiser of the scalars for these images (rows, ...), whose features are computed here, once."""
        return FrozenScan(self, self._encode(images, times))

    def _encode(self, state: State, times: Times) -> Scan | None:
        """People differ by a few per cent of an image's contrast; shown as deviations, that is what is seen first."""
        if not self.schema.images:
            return None
        seen = {}
        for image in self.schema.images:
            x, t = state[image.name], times[image.name]
            tau = image.clock.tau(t if t.any() else t.new_zeros((1,) * t.dim()))  # a map of zeros is work for nothing
            seen[image.name] = torch.cat([x, self.marginals[image.name].alone().deviation(x, tau)], 1)  # type: ignore[operator]
        return self.net.encode(seen, times)

    def _attend(self, state: State, times: Times, scan: Scan | None) -> Tensor:
        names = [v.name for v in self.schema.scalars]
        return self.net.attend({k: state[k] for k in names}, {k: times[k] for k in names}, scan)


def fact_width(v: Scalar) -> int:
    """How many numbers `told` makes of a scalar."""
    return v.process.levels if isinstance(v.process, Discrete) else 1


def told(scalars: Sequence[Scalar], state: State, times: Times, rows: int) -> list[Told]:
    """What each scalar says by itself. Of several rows for each row of the images, the first speaks.

    A number: its mean and variance under its law. A class: p(x_0 | x_t) under its marginal, less the marginal.
    """
    parts = []
    for v in scalars:
        x, t = (part[v.name].reshape(rows, -1)[:, 0] for part in (state, times))
        tau = v.clock.tau(t)
        if isinstance(v, Categorical):
            prior = torch.tensor(v.marginal, device=x.device)
            chances = torch.softmax(prior.log() + v.process.likelihood(x, tau), -1)
            parts.append(Told(chances - prior, chances, chances))
        else:
            mean, variance = v.law.given(x, tau)
            parts.append(Told(mean[:, None], variance[:, None]))
    return parts


class FrozenScan:
    """A denoiser of the scalars given scans that stay as they are. Asks for rows * draws answers at a time."""

    def __init__(self, denoiser: JointDenoiser, scan: Scan | None) -> None:
        self.denoiser, self.scan = denoiser, scan
        self.coverage = denoiser.coverage
        self.device = denoiser.device

    def __call__(self, state: State, times: Times) -> State:
        tokens = self.denoiser._attend(state, times, self.scan)
        return self.denoiser.clean_scalars(self.denoiser.net.tokens.read(tokens), state, times)

    def freeze(self, images: State, times: Times) -> "FrozenScan":
        return self


LearnedDenoiser = JointDenoiser | PaperDenoiser


def make_denoiser(schema: Schema, settings: NetSettings | PaperSettings, coverage: Coverage) -> LearnedDenoiser:
    """An untrained denoiser of the architecture whose settings these are."""
    if isinstance(settings, PaperSettings):
        return PaperDenoiser(schema, settings, coverage)
    return JointDenoiser(schema, settings, coverage)


def _token(v: Variable) -> TokenSpec:
    if isinstance(v.process, Discrete):
        return TokenSpec(v.name, v.process.states, v.process.levels)
    return TokenSpec(v.name)
