"""What held-out people say of the joint model: which checkpoint is best, how sure it may be, where it is off."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metavoxel.denoiser import JointDenoiser, LearnedDenoiser, shown
from metavoxel.diffusion import joint_loss, noised, taus_of
from metavoxel.facts import facts_of
from metavoxel.noise import Noise
from metavoxel.question import Given, laid_out
from metavoxel.recalibration import even_tau
from metavoxel.scalars import sureness
from metavoxel.schema import Observed, Scalar, Schema, State, Variable, full_level
from metavoxel.times import MixtureTimes, TimesRule

SEED = 9173
CHUNK = 64
"""Rows in memory at a time."""
MAX_WEIGHED = 256
"""Rows at most for the losses, which need images decoded."""
MAX_RECALIBRATED, VISITS = 1024, 2
"""Rows at most that images are recalibrated by, and questions about each of them."""
MOST_SUBSETS, TOLD = 16, 4096
"""Of the other facts, that each number and class of a table is asked given; fewer where many rows make up for it."""

Batch = Callable[[Tensor], tuple[State, Observed]]
"""Rows of the cohort -> their clean values and which of them are known."""


def held_out_figures(denoiser: LearnedDenoiser, batch: Batch, rows: Tensor, times: TimesRule) -> dict[str, float]:
    """Loss of each scalar given the images (or, without images, some of the other scalars), as sure as is best, and of the
    images as in training: 1 for a predictor that knows only the marginal.

    A model of one shared time cannot be asked so; for it, the loss of every variable. "loss" is the sum.
    """
    schema = denoiser.schema
    weighed: Sequence[Variable] = schema.images if times.separate else schema.variables
    losses: dict[str, list[Tensor]] = {v.name: [] for v in weighed}
    for part in rows[:MAX_WEIGHED].split(CHUNK) if weighed else ():
        x0, observed = batch(part)
        noise = Noise(SEED, part.to(denoiser.device))  # the same at every validation
        levels = times.draw(schema, observed, noise)
        found = joint_loss(denoiser, schema, x0, observed, levels, noise)
        for v in weighed:
            losses[v.name].append(found.parts[v.name])
    means = {name: torch.stack(parts).mean().item() for name, parts in losses.items() if parts}
    if not times.separate:
        return {"loss": sum(means.values()), **means}
    figures = {name: loss.mean().item() for name, (_, loss) in surest(denoiser, batch, rows).items()}
    if means:
        figures["image"] = sum(means.values())
    return {"loss": sum(figures.values()), **figures}


def believe(denoiser: JointDenoiser, batch: Batch, rows: Tensor) -> None:
    """Makes its answers, in place, as sure as these people bear out: nobody whom it was trained on."""
    denoiser.sureness.fill_(1.0)
    found = surest(denoiser, batch, rows)
    factors = [found[v.name][0] if v.name in found else 1.0 for v in denoiser.schema.scalars]
    denoiser.sureness.copy_(torch.tensor(factors))


@torch.no_grad()
def recalibrate(denoiser: JointDenoiser, batch: Batch, rows: Tensor, times: MixtureTimes) -> None:
    """Makes what it expects of images, in place, come true of these people on average: nobody whom it was trained on."""
    schema = denoiser.schema
    for image in schema.images:
        law = denoiser.law(image.name)
        ends = torch.stack([law.low.flatten(1).amin(1), law.high.flatten(1).amax(1)])
        denoiser.recalibration(image.name).clear(ends, law.slopes)
    asks = replace(times, read=0.0, tied=0.0, partial=0.5)
    counts: dict[str, Tensor] = {}
    for part in rows[:MAX_RECALIBRATED].split(CHUNK):
        x0, observed = batch(part)
        for visit in range(VISITS):
            noise = Noise(SEED + visit, part.to(denoiser.device))
            levels = asks.draw(schema, observed, noise)
            for image in schema.images:
                t = image.clock.t(even_tau(noise.uniform()))
                levels[image.name] = torch.where(levels[image.name] > 0, full_level(image, t, len(noise), t.device), 0.0)
            taus = taus_of(schema, levels)
            state = noised(schema, x0, taus, noise)
            expected, facts = denoiser(state, levels), facts_of(schema.scalars, state, levels, len(part))
            for name in taus.keys() & {image.name for image in schema.images}:
                there = observed[name]
                asked = (x[there] for x in (expected[name], taus[name], facts, x0[name]))
                found = denoiser.recalibration(name).counts(*asked)
                groups = counts.setdefault(name, found.new_zeros(CHUNK, *found.shape[1:]))  # one of each chunk's people
                groups[: len(part)][there] += found
    for name, groups in counts.items():
        denoiser.recalibration(name).settle(groups)


@torch.no_grad()
def surest(denoiser: LearnedDenoiser, batch: Batch, rows: Tensor) -> dict[str, tuple[float, Tensor]]:
    """How sure each scalar's answers may be to lose least of people not trained on, and their losses then: see
    `scalars.sureness`. Only of scalars that are known of some of them and that there is something to tell from."""
    assert isinstance(denoiser, JointDenoiser)
    subsets = 1 if denoiser.schema.images else max(1, min(MOST_SUBSETS, TOLD // max(len(rows), 1)))
    heard: dict[str, list[tuple[Tensor, ...]]] = {v.name: [] for v in denoiser.schema.scalars}
    for part in rows.split(CHUNK):
        for question in _asked(denoiser.schema, *batch(part), part, subsets):
            for name, answers in _told(denoiser, *question):
                heard[name].append(answers)
    found = {}
    for v in denoiser.schema.scalars:
        if any(len(answers[0]) for answers in heard[v.name]):
            raw, x, tau, x0, seen = (torch.cat(parts) for parts in zip(*heard[v.name]))
            found[v.name] = sureness(v, raw, x, tau, x0, seen, subsets)
    return found


def _asked(
    schema: Schema, x0: State, observed: Observed, rows: Tensor, subsets: int
) -> Iterator[tuple[Sequence[Scalar], dict[str, Given], State, Observed]]:
    """What is asked given what, of people with these values: all scalars given the images, which one evaluation serves.
    Without images, each given as many `subsets` of the other scalars: a draw of a table tells each given those before it,
    and factors found given all the others made what is told of few known too sure."""
    if schema.images:
        yield schema.scalars, {v.name: Given(x0[v.name], observed=observed[v.name]) for v in schema.images}, x0, observed
        return
    noise = Noise(SEED, (rows[:, None] * subsets + torch.arange(subsets)).flatten().to(x0[schema.names[0]].device))
    x0, observed = ({name: x.repeat_interleave(subsets, 0) for name, x in part.items()} for part in (x0, observed))
    for v in schema.scalars if len(schema) > 1 else ():
        share = noise.uniform()
        given = {o.name: Given(x0[o.name], observed=observed[o.name] & (noise.uniform() < share))
                 for o in schema.scalars if o is not v}  # fmt: skip
        yield [v], given, x0, observed


def _told(
    denoiser: JointDenoiser, wanted: Sequence[Scalar], given: dict[str, Given], x0: State, observed: Observed
) -> Iterator[tuple[str, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]]:
    """What `scalars.sureness` takes of each scalar, of the rows whose value is known."""
    if not wanted:
        return
    rows = torch.arange(len(x0[wanted[0].name]), device=denoiser.device)
    state, times = laid_out(denoiser.schema.variables, given, rows, len(rows))
    reader = denoiser.freeze(state, times)
    raw, seen = reader.raw(state, times), shown(reader.scan, len(rows), denoiser.device)
    for v in wanted:
        columns = (raw[v.name], state[v.name], v.clock.tau(times[v.name]), x0[v.name], seen)
        yield v.name, tuple(column[observed[v.name]] for column in columns)  # type: ignore[misc]
