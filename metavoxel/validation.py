"""What a checkpoint is chosen by: how good the joint model is on held-out people."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metavoxel.denoiser import LearnedDenoiser
from metavoxel.diffusion import Given, joint_loss, laid_out
from metavoxel.noise import Noise
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
    """Loss of each scalar given the images (or, without images, the other scalars), and of the images as in training: 1
    for a predictor that knows only the marginal.

    A model of one shared time cannot be asked so; for it, the loss of every variable. "loss" is the sum.
    """
    schema = denoiser.schema
    asked: Sequence[Scalar] = schema.scalars if times.separate else ()
    weighed: Sequence[Variable] = schema.images if times.separate else schema.variables
    errors: dict[str, list[Tensor]] = {v.name: [] for v in asked}
    losses: dict[str, list[Tensor]] = {v.name: [] for v in weighed}
    for number, part in enumerate(rows.split(CHUNK)):
        x0, observed = batch(part)
        for name, error in _told_by_the_rest(denoiser, x0, observed, asked).items():
            errors[name].append(error)
        if weighed and number * CHUNK < MAX_WEIGHED:
            noise = Noise(SEED, part.to(denoiser.device))  # the same at every validation
            levels = times.draw(schema, observed, noise)
            loss = joint_loss(denoiser, schema, x0, observed, levels, noise)
            for v in weighed:
                losses[v.name].append(loss.parts[v.name])
    told = {name: torch.cat(parts) for name, parts in errors.items() if parts}
    figures = {name: part.mean().item() for name, part in told.items() if len(part)}
    means = {name: torch.stack(parts).mean().item() for name, parts in losses.items()}
    if means:
        figures |= {"image": sum(means.values())} if times.separate else means
    return {"loss": sum(figures.values()), **figures}


def _told_by_the_rest(
    denoiser: LearnedDenoiser, x0: State, observed: Observed, asked: Sequence[Scalar]
) -> dict[str, Tensor]:
    """Losses of each scalar, of the rows whose value is known: given the images, where one evaluation serves all, or,
    without images, given the other scalars. None of a scalar that there is nothing to tell from."""
    images = denoiser.schema.images
    questions: list[tuple[Sequence[Variable], Sequence[Scalar]]] = (
        [(images, asked)] if images else [([other for other in asked if other is not v], [v]) for v in asked]
    )
    losses: State = {}
    for others, wanted in questions:
        if not others or not wanted:
            continue
        given = {o.name: Given(x0[o.name], observed=observed[o.name]) for o in others}
        rows = torch.arange(len(x0[wanted[0].name]), device=denoiser.device)
        state, times = laid_out(denoiser.schema.variables, given, rows, len(rows))
        found = denoiser.judge(state, times, x0)
        losses |= {v.name: found[v.name][observed[v.name]].float() for v in wanted}
    return losses
