"""How probable a value is given the rest: one evaluation for a class or a number, an integral over the noise for an image.

For a real x of d entries, seen through noise at signal-to-noise ratio g as the denoiser sees it,

    -log p(x) = d/2 log(2 pi e) - 1/2 Integral_0^inf [ d / (1 + g) - E |x - clean(x_g)|^2 ] dg

(Kong, Brekelmans and Ver Steeg 2023, Eq. 8: from the I-MMSE relation of Guo, Shamai and Verdu 2005). It is exact for the
exact denoiser, and a lower bound of log p on average over people for any other.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metavoxel.clocks import alpha, sigma
from metavoxel.diffusion import encode_once, expect, tell
from metavoxel.errors import MetavoxelError
from metavoxel.laws import Mixture
from metavoxel.noise import Noise, several
from metavoxel.processes import Discrete
from metavoxel.question import Denoiser, Given, TellsLaws, laid_out
from metavoxel.schema import Image, Schema, Variable

LOG_SNR = (-8.0, 8.0)
"""Where the integral is taken. At its upper end the noise is .018 sd: finer structure, such as whole years, is not seen."""
LEVELS = 64


def log_likelihood(
    denoiser: Denoiser,
    schema: Schema,
    given: Mapping[str, Given],
    name: str,
    value: Tensor,
    levels: int = LEVELS,
    seed: int = 0,
) -> Tensor:
    """log p(value | given) for each row of value (rows, *entry_shape): (rows,) nats.

    Of a class its log-probability, of a number or an image a log-density in standardised units (codec's). A number's is its
    law's, where the denoiser tells it. Else, and of images, the integral is taken at `levels` levels: in each of
    levels / 2 equal stretches a random one, with a noise and its opposite; the error is about 3 / sqrt(levels) nats for a
    number, sqrt(d) times as much for an image. What is not given is ignored.
    """
    variable = schema[name]
    if name in given:
        raise MetavoxelError(f"{name!r} is given; its likelihood is asked given the others")
    if isinstance(variable.process, Discrete):
        answer = expect(denoiser, schema, given, [name])[name].expand(len(value), -1)
        return answer.gather(-1, value[:, None])[:, 0]
    if not denoiser.coverage.separate:
        raise MetavoxelError("likelihoods need a model trained with separate levels; train with times: mixture")
    if not isinstance(variable, Image) and isinstance(denoiser, TellsLaws):
        law = tell(denoiser, schema, given, [name])[name]
        assert isinstance(law, Mixture)
        return law.log_density(value)
    rows, stretches = len(value), levels // 2
    low, high = LOG_SNR
    width = (high - low) / stretches
    noise = Noise(seed, several(torch.arange(rows, device=value.device), stretches))
    snr = torch.exp(low + width * (noise.index % stretches + noise.uniform()))
    eps = noise.normal(*value.shape[1:])
    twice = _errors(denoiser, schema, given, variable, value, torch.log1p(1 / snr).repeat_interleave(2),
                    torch.stack([eps, -eps], 1).flatten(0, 1))  # fmt: skip
    # |eps|^2 stands for its mean: where noise is small the error is made of that very noise, and the two cancel
    gain = snr * (_square(eps) / (1 + snr) - twice.unflatten(0, (-1, 2)).mean(1))
    d = value[0].numel()
    return 0.5 * width * gain.unflatten(0, (rows, stretches)).sum(1) - 0.5 * d * math.log(2 * math.pi * math.e)


def _errors(
    denoiser: Denoiser, schema: Schema, given: Mapping[str, Given], v: Variable, value: Tensor, tau: Tensor, eps: Tensor
) -> Tensor:
    """|value - clean|^2 at several levels tau a row with their noise eps, rows varying slowest: (rows * levels,)."""
    is_image, levels = isinstance(v, Image), len(tau) // len(value)
    asked = denoiser if is_image else encode_once(denoiser, schema, given)
    seen: Sequence[Variable] = schema.variables if asked is denoiser else schema.scalars
    x0 = value.repeat_interleave(levels, 0)
    level = tau.reshape(-1, *(1,) * (x0.dim() - 1))
    noised = alpha(level) * x0 + sigma(level) * eps
    t = v.clock.t(tau)
    errors = []
    # a batch of rows for images; numbers are few, and all of a scan's levels must be asked together
    for part in torch.arange(len(x0), device=x0.device).split(len(value) if is_image else len(x0)):
        state, times = laid_out(seen, given, part // levels, len(value))
        state[v.name] = noised[part]
        times[v.name] = t[part].reshape(-1, *(1,) * len(v.level_shape)).expand(-1, *v.level_shape)
        errors.append(_square(asked(state, times)[v.name] - x0[part]))
    return torch.cat(errors)


def _square(x: Tensor) -> Tensor:
    """Sum of squares over all but the rows: (n, ...) -> (n,)."""
    return (x**2).reshape(len(x), -1).sum(1)
