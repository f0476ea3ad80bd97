"""What held-out people say of the joint model: which checkpoint is best, how sure it may be, where it is off."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metavoxel.denoiser import JointDenoiser, LearnedDenoiser, shown
from metavoxel.diffusion import joint_loss, noised, taus_of
from metavoxel.facts import facts_of
from metavoxel.noise import Noise, several
from metavoxel.question import Given, laid_out
from metavoxel.recalibration import even_tau
from metavoxel.scalars import share_beside_facts, sureness
from metavoxel.schema import Observed, Schema, State, Variable, full_level
from metavoxel.times import MixtureTimes, TimesRule

SEED = 9173
CHUNK = 64
"""Rows in memory at a time."""
MAX_WEIGHED = 256
"""Rows at most for the losses, which need images decoded."""
MAX_RECALIBRATED, VISITS = 1024, 2
"""Rows at most that images are recalibrated by, and questions about each of them."""
MOST_SUBSETS, TOLD = 32, 4096
"""Of a table's facts, that the others are asked given, for each row; fewer where many rows make up for it."""

Batch = Callable[[Tensor], tuple[State, Observed]]
"""Rows of the cohort -> their clean values and which of them are known."""
Question = tuple[dict[str, Given], State, Observed]
"""What is given, what is true, and of whom each variable is asked."""


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
    denoiser.share.fill_(1.0)
    found = surest(denoiser, batch, rows)
    factors = [found[v.name][0] if v.name in found else 1.0 for v in denoiser.schema.scalars]
    denoiser.sureness.copy_(torch.tensor(factors))
    shares = shares_beside_facts(denoiser, batch, rows)
    denoiser.share.copy_(torch.tensor([shares.get(v.name, 1.0) for v in denoiser.schema.scalars]))


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
            expected = denoiser(state, levels)
            facts = facts_of(schema.scalars, state, levels, len(part), denoiser.device)
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
    schema = denoiser.schema
    if not schema.scalars or len(schema) < 2:
        return {}
    subsets = max(1, min(MOST_SUBSETS, TOLD // max(len(rows), 1)))
    heard: dict[str, list[tuple[Tensor, ...]]] = {v.name: [] for v in schema.scalars}
    people = dict.fromkeys(heard, 0)
    for part in rows.split(CHUNK):
        x0, observed = batch(part)
        for name in heard:
            people[name] += int(observed[name].sum())
        question = _given_images(schema, x0, observed) if schema.images else _given_subsets(x0, observed, part, subsets)
        for name, answers in _told(denoiser, *question):
            heard[name].append(answers)
    found = {}
    for v in schema.scalars:
        if any(len(answers[0]) for answers in heard[v.name]):
            raw, x, tau, truth, seen = (torch.cat(parts) for parts in zip(*heard[v.name]))
            found[v.name] = sureness(v, raw, x, tau, truth, seen, people[v.name])
    return found


@torch.no_grad()
def shares_beside_facts(denoiser: JointDenoiser, batch: Batch, rows: Tensor) -> dict[str, float]:
    """Of each scalar that some of these people are known by, and another, and a scan: how much of what the scan adds to
    all other facts is to be believed, as sure as the answers are already: see `scalars.share_beside_facts`."""
    schema = denoiser.schema
    if not schema.images or len(schema.scalars) < 2:
        return {}
    heard: dict[str, list[tuple[Tensor, ...]]] = {v.name: [] for v in schema.scalars}
    for part in rows.split(CHUNK):
        x0, observed = batch(part)
        known = {v.name: Given(x0[v.name], observed=observed[v.name]) for v in schema}
        scans = {image.name: known[image.name] for image in schema.images}
        everyone = torch.arange(len(part), device=denoiser.device)
        reader = denoiser.freeze(*laid_out(schema.variables, scans, everyone, len(part)))
        seen = shown(reader.scan, len(part), denoiser.device)
        for v in schema.scalars:
            told = {name: value for name, value in known.items() if name != v.name}
            state, times = laid_out(schema.variables, told, everyone, len(part))
            others = torch.stack([observed[o.name] for o in schema.scalars if o is not v]).any(0)
            asked = observed[v.name] & others & (seen > 0)
            raw, without = (answers[v.name] for answers in (reader.raw(state, times), reader.unseen(state, times)))
            columns = (raw, without, state[v.name], v.clock.tau(times[v.name]), x0[v.name], seen)
            heard[v.name].append(tuple(column[asked] for column in columns))
    found = {}
    for v in schema.scalars:
        raw, without, x, tau, truth, seen = (torch.cat(parts) for parts in zip(*heard[v.name]))
        if len(raw):
            found[v.name] = share_beside_facts(v, raw, without, x, tau, truth, seen, len(raw))
    return found


def _given_images(schema: Schema, x0: State, observed: Observed) -> Question:
    return {v.name: Given(x0[v.name], observed=observed[v.name]) for v in schema.images}, x0, observed


def _given_subsets(x0: State, observed: Observed, rows: Tensor, subsets: int) -> Question:
    """Each person's facts, given as many `subsets` of them: a draw of a table tells each fact given those before it, and
    factors found given all the others made what is told from few too sure. Of those asked, about as many know a tenth as
    nine tenths of the others: the share that is left is even in its logarithm."""
    noise = Noise(SEED, several(rows.to(next(iter(x0.values())).device), subsets))
    left = len(x0) ** -noise.uniform()
    given, asked = {}, {}
    x0 = {name: x.repeat_interleave(subsets, 0) for name, x in x0.items()}
    for name, x in x0.items():
        there, hidden = observed[name].repeat_interleave(subsets, 0), noise.uniform() < left
        given[name], asked[name] = Given(x, observed=there & ~hidden), there & hidden
    return given, x0, asked


def _told(
    denoiser: JointDenoiser, given: dict[str, Given], x0: State, asked: Observed
) -> Iterator[tuple[str, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]]:
    """What `scalars.sureness` takes of each scalar, of the rows that are asked: one evaluation serves all."""
    rows = torch.arange(len(next(iter(asked.values()))), device=denoiser.device)
    state, times = laid_out(denoiser.schema.variables, given, rows, len(rows))
    reader = denoiser.freeze(state, times)
    raw, seen = reader.raw(state, times), shown(reader.scan, len(rows), denoiser.device)
    for v in denoiser.schema.scalars:
        columns = (raw[v.name], state[v.name], v.clock.tau(times[v.name]), x0[v.name], seen)
        yield v.name, tuple(column[asked[v.name]] for column in columns)  # type: ignore[misc]
