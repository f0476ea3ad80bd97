"""What a checkpoint is chosen by: how good the joint model is on held-out people."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metavoxel.denoiser import LearnedDenoiser
from metavoxel.diffusion import Given, expect, joint_loss
from metavoxel.noise import Noise
from metavoxel.processes import Discrete
from metavoxel.schema import Observed, Scalar, State, Variable
from metavoxel.times import TimesRule

SEED = 9173
CHUNK = 64
"""Rows in memory at a time."""
MAX_WEIGHED = 256
"""Rows at most for the losses, which need images decoded."""

Batch = Callable[[Tensor], tuple[State, Observed]]
"""Rows of the cohort -> their clean values and which of them are known."""


def held_out_figures(denoiser: LearnedDenoiser, batch: Batch, rows: Tensor, times: TimesRule) -> dict[str, float]:
    """Negative log-likelihood of each scalar given the images (or, without images, the other scalars) + image loss.

    A model of one shared time cannot be asked so; for it, the loss of every variable. "loss" is the sum.
    """
    schema = denoiser.schema
    asked: Sequence[Scalar] = schema.scalars if times.separate else ()
    weighed: Sequence[Variable] = schema.images if times.separate else schema.variables
    errors: dict[str, list[Tensor]] = {v.name: [] for v in asked}
    losses: dict[str, list[Tensor]] = {v.name: [] for v in weighed}
    for number, part in enumerate(rows.split(CHUNK)):
        x0, observed = batch(part)
        for scalar in asked:
            errors[scalar.name].append(_errors(denoiser, x0, observed, scalar))
        if weighed and number * CHUNK < MAX_WEIGHED:
            noise = Noise(SEED, part.to(denoiser.device))  # the same at every validation
            levels = times.draw(schema, observed, noise)
            loss = joint_loss(denoiser, schema, x0, observed, levels, noise, denoiser.weigh)
            for v in weighed:
                losses[v.name].append(loss.parts[v.name])
    figures = {}
    for scalar in asked:
        if len(error := torch.cat(errors[scalar.name])):
            # a number's likelihood is a normal's about its mean, with the held-out people's own residual variance
            normal = 0.5 * torch.log(2 * torch.pi * torch.e * (error**2).mean().clamp_min(1e-6))
            figures[scalar.name] = (error.mean() if isinstance(scalar.process, Discrete) else normal).item()
    means = {name: torch.stack(parts).mean().item() for name, parts in losses.items()}
    if means:
        figures |= {"image": sum(means.values())} if times.separate else means
    return {"loss": sum(figures.values()), **figures}


def _errors(denoiser: LearnedDenoiser, x0: State, observed: Observed, v: Scalar) -> Tensor:
    """Of the rows whose value is known: a class's negative log-likelihood in nats, a number's error in scores. None where
    there is nothing to tell it from."""
    schema = denoiser.schema
    others: Sequence[Variable] = schema.images or [other for other in schema.scalars if other is not v]
    if not others:
        return torch.zeros(0)
    given = {o.name: Given(x0[o.name], observed=observed[o.name]) for o in others}
    clean, known = expect(denoiser, schema, given, [v.name])[v.name].float(), observed[v.name]
    truth = x0[v.name][known]
    return -clean[known].gather(-1, truth[:, None])[:, 0] if isinstance(v.process, Discrete) else clean[known] - truth
