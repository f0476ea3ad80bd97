"""The network as a denoiser: raw outputs -> clean predictions. How it is parameterised is this module's secret.

Reals: x_0 = what the entry's own marginal N(m, s^2) says + c_out F, with c_out the sd that this leaves open (EDM's
preconditioning, Karras et al. 2022, about a mean). For numbers m = 0, s = 1, which is the v-parameterisation (Salimans
and Ho 2022); images have a mean and a spread at every entry, and the mean moves linearly with the facts, so the network
starts from the mean brain of such people. At t = 1 the prediction is m + s F, at t = 0 the value itself.
Classes: log p(x_0) = F + log q(x_t | x_0), normalised. The network learns what the rest says about x_0; what the noised
value itself says enters by Bayes' rule, exactly, for every chain.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metavoxel.clocks import alpha, sigma
from metavoxel.diffusion import Coverage
from metavoxel.nets.joint import JointNet, NetSettings, Scan
from metavoxel.nets.tokens import TokenSpec
from metavoxel.processes import Discrete
from metavoxel.schema import Categorical, Image, Scalar, Schema, State, Times, Variable


class Marginal(nn.Module):
    """Mean and variance of every entry of an image over the training rows: (channels, *grid) each, standardised."""

    mean: Tensor
    variance: Tensor
    slopes: Tensor

    def __init__(self, shape: tuple[int, ...], facts: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("slopes", torch.zeros(facts, *shape))

    def set(self, mean: Tensor, variance: Tensor, slopes: Tensor) -> None:
        """Floors the variance: a background that never varied in training may vary a little in use."""
        self.mean.copy_(mean)
        self.variance.copy_(variance.clamp_min(0.02 * float(variance.mean())))
        self.slopes.copy_(slopes)

    def seen(self, x: Tensor, tau: Tensor) -> Tensor:
        """The entries, and how far each is from its mean in units of its spread: (n, 2 channels, *grid). People differ
        by a few per cent of an image's contrast; shown as deviations, that is what the network sees first."""
        a = alpha(tau)
        return torch.cat([x, (x - a * self.mean) / torch.sqrt(a**2 * self.variance + sigma(tau) ** 2)], 1)

    def clean(self, raw: Tensor, x: Tensor, tau: Tensor, facts: Tensor) -> Tensor:
        """facts: (n, facts), as `told`. Age moves every voxel by little: a network alone takes days to follow it."""
        a, noise = alpha(tau), sigma(tau)
        total = a**2 * self.variance + noise**2
        mean = self.mean + torch.tensordot(facts, self.slopes, dims=1)
        own = mean + a * self.variance / total * (x - a * mean)
        return own + noise * torch.sqrt(self.variance / total) * raw


class JointDenoiser(nn.Module):
    """(State, Times) -> clean predictions for a fitted schema.

    Scalars may come with several rows for each row of the images; images are then decoded from the first of them.
    """

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
        raw = self.net.tokens.read(tokens)
        if scan is not None:
            rows = len(scan.features.embedding)
            raw |= self._decode(scan, tokens.unflatten(0, (rows, -1))[:, 0], times)
        return self.clean(self.schema.variables, raw, state, times)

    def _decode(self, scan: Scan, tokens: Tensor, times: Times) -> State:
        """Raw values of the images; rows whose images are all known are not decoded: there is nothing to predict."""
        names = [image.name for image in self.schema.images]
        asked = torch.stack([times[name].flatten(1).amax(1) > 0 for name in names]).any(0)
        if asked.all():
            return self.net.decode(scan, tokens)
        channels = {image.name: image.fitted.channels for image in self.schema.images}
        raw = {name: torch.zeros_like(times[name]).repeat(1, c, *(1,) * (times[name].dim() - 2))
               for name, c in channels.items()}  # fmt: skip
        if not asked.any():
            return raw
        rows = asked.nonzero()[:, 0]
        decoded = self.net.decode(scan.rows(rows), tokens[rows])
        return {name: raw[name].index_copy(0, rows, decoded[name]) for name in names}

    def freeze(self, images: State, times: Times) -> "FrozenScan":
        """The denoiser of the scalars for these images (rows, ...), whose features are computed here, once."""
        return FrozenScan(self, self._encode(images, times))

    def _encode(self, state: State, times: Times) -> Scan | None:
        if not self.schema.images:
            return None
        seen = {
            image.name: self.marginals[image.name].seen(state[image.name], image.clock.tau(times[image.name]))  # type: ignore[operator]
            for image in self.schema.images
        }
        return self.net.encode(seen, times)

    def _attend(self, state: State, times: Times, scan: Scan | None) -> Tensor:
        names = [v.name for v in self.schema.scalars]
        return self.net.attend({k: state[k] for k in names}, {k: times[k] for k in names}, scan)

    def clean(self, variables: Sequence[Variable], raw: State, state: State, times: Times) -> State:
        """Raw outputs -> clean predictions."""
        clean = {}
        for v in variables:
            x, tau = state[v.name], v.clock.tau(times[v.name])
            if isinstance(v.process, Discrete):
                clean[v.name] = torch.log_softmax(raw[v.name] + v.process.likelihood(x, tau), -1)
            elif isinstance(v, Image):
                facts = told(self.schema.scalars, state, times, len(x))
                clean[v.name] = self.marginals[v.name].clean(raw[v.name], x, tau, facts)  # type: ignore[operator]
            else:
                clean[v.name] = alpha(tau) * x - sigma(tau) * raw[v.name]
        return clean


def fact_width(v: Scalar) -> int:
    """How many numbers `told` makes of a scalar."""
    return v.process.levels if isinstance(v.process, Discrete) else 1


def told(scalars: Sequence[Scalar], state: State, times: Times, rows: int) -> Tensor:
    """What the scalars say by themselves, (rows, facts), each of mean 0 over people and 0 where absent.

    A number's own estimate E[x_0 | x_t] under N(0, 1); of a class, p(x_0 | x_t) under its marginal, less the marginal.
    Of several rows for each row of the images, the first speaks.
    """
    parts = []
    for v in scalars:
        x, t = (part[v.name].reshape(rows, -1)[:, 0] for part in (state, times))
        tau = v.clock.tau(t)
        if isinstance(v, Categorical):
            prior = torch.tensor(v.marginal, device=x.device)
            parts.append(torch.softmax(prior.log() + v.process.likelihood(x, tau), -1) - prior)
        else:
            parts.append((alpha(tau) * x)[:, None])
    return torch.cat(parts, 1) if parts else torch.zeros(rows, 0, device=next(iter(state.values()), torch.empty(0)).device)


class FrozenScan:
    """A denoiser of the scalars given scans that stay as they are. Asks for rows * draws answers at a time."""

    def __init__(self, denoiser: JointDenoiser, scan: Scan | None) -> None:
        self.denoiser, self.scan = denoiser, scan
        self.coverage = denoiser.coverage
        self.device = denoiser.device

    def __call__(self, state: State, times: Times) -> State:
        tokens = self.denoiser._attend(state, times, self.scan)
        return self.denoiser.clean(self.denoiser.schema.scalars, self.denoiser.net.tokens.read(tokens), state, times)

    def freeze(self, images: State, times: Times) -> "FrozenScan":
        return self


def _token(v: Variable) -> TokenSpec:
    if isinstance(v.process, Discrete):
        return TokenSpec(v.name, v.process.states, v.process.levels)
    return TokenSpec(v.name)
