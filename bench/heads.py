"""Fits the last layers of a model's numbers and classes again, by log-likelihood, all else kept as it is.

    python bench/heads.py MODEL OUT [--cohort COHORT --cache FOLDER] [-n 15000]

Training leaves them where its last few thousand questions pulled them. What they read is computed once here for every
person, asked as in training, so that they may be fitted to all people together, in seconds. How sure answers may be (see
`scalars.sureness`), where images are off (see `recalibration`) and what is usual of a scan (see `surprise`) is then found
of fresh phantoms; without --cohort, only that.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from images import scans
from rich.progress import track
from torch import Tensor, nn

import metavoxel as mv
from metavoxel.build import MAX_USUAL
from metavoxel.data import phantom
from metavoxel.denoiser import JointDenoiser
from metavoxel.diffusion import noised, taus_of
from metavoxel.loading import load_images
from metavoxel.noise import Noise
from metavoxel.schema import Observed, Schema, State, Times, full_level
from metavoxel.surprise import usual
from metavoxel.times import MixtureTimes
from metavoxel.validation import CHUNK, believe, recalibrate

QUESTIONS, BATCH, SEED = 4, 48, 31
FRESH, FRESH_SEED = 3000, 77_011
STEPS, ROWS, RATE = 1500, 1024, 2e-3

Block = tuple[dict[str, Tensor], State, Times, State]
"""What the last layers read, noised values, levels, clean values: of scalars, (rows, ...) each."""


def last_layers(denoiser: JointDenoiser) -> dict[str, nn.Module]:
    """Of every scalar."""
    heads = denoiser.net.tokens.heads
    return {v.name: head[-1] for v, head in zip(denoiser.schema.scalars, heads)}  # type: ignore[index]


Question = tuple[State, Times, Noise]


def questions(schema: Schema, entries: Tensor, facts: State, rows: Tensor) -> Iterator[Question]:
    """Of these people: facts asked of the scan, QUESTIONS times, and once without any scan."""
    image = schema.images[0]
    for number, scan in ((QUESTIONS, True), (1, False)):
        noise = Noise(SEED + scan, (rows[:, None] * number + torch.arange(number)).flatten())
        everyone = {v.name: torch.ones(len(noise), dtype=torch.bool) for v in schema}
        times = MixtureTimes().reading().draw(schema, everyone, noise)
        shown = len(rows) if scan else 1
        times[image.name] = full_level(image, 0.0 if scan else 1.0, shown)
        repeated = {name: x[rows].repeat_interleave(number, 0) for name, x in facts.items()}
        yield {**repeated, image.name: entries[:shown]}, times, noise


def read_by_last_layers(denoiser: JointDenoiser, state: State, times: Times) -> dict[str, Tensor]:
    """Scalar -> what its last layer reads when it is asked so."""
    read: dict[str, Tensor] = {}

    def take(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda layer, seen: read.__setitem__(name, seen[0])

    hooks = [layer.register_forward_pre_hook(take(name)) for name, layer in last_layers(denoiser).items()]
    denoiser.freeze(state, times)(state, times)
    for hook in hooks:
        hook.remove()
    return read


@torch.no_grad()
def listen(model: mv.MetaVoxel, cohort: mv.Cohort, cache: Path) -> list[Block]:
    schema, image = model.schema, model.first_image()
    scalars, blocks = Schema(schema.scalars), []
    stack = load_images(cohort, image, cache)
    facts = {v.name: v.encode(cohort.column(v.name))[0] for v in scalars}
    for rows in track(torch.arange(len(cohort)).split(BATCH), "listening"):
        entries = model.codecs[image.name].encode(stack.rows(rows))
        for x0, times, noise in questions(schema, entries, facts, rows):
            state = noised(scalars, x0, taus_of(scalars, times), noise)
            read = read_by_last_layers(model.denoiser, state, times)  # type: ignore[arg-type]
            blocks.append((read, *({name: part[name] for name in scalars.names} for part in (state, times, x0))))
    return blocks


def refit(denoiser: JointDenoiser, blocks: list[Block]) -> None:
    """In place."""
    scalars = denoiser.schema.scalars
    read, state, times, x0 = (
        {v.name: torch.cat([block[part][v.name] for block in blocks]) for v in scalars} for part in range(4)
    )
    last = last_layers(denoiser)
    weights = [weight for layer in last.values() for weight in layer.parameters()]
    optimiser = torch.optim.Adam(weights, lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, STEPS)
    generator = torch.Generator().manual_seed(SEED)
    for _ in track(range(STEPS), "fitting"):
        some = torch.randint(len(x0[scalars[0].name]), (ROWS,), generator=generator)
        picked = ({name: x[some] for name, x in part.items()} for part in (state, times, x0))
        losses = denoiser.judge_scalars({name: layer(read[name][some]) for name, layer in last.items()}, *picked)
        optimiser.zero_grad()
        torch.stack([loss.mean() for loss in losses.values()]).sum().backward()
        optimiser.step()
        schedule.step()


def ask_fresh_people(model: mv.MetaVoxel) -> None:
    """How sure it may be, where it is off, and what is usual of a scan, in place."""
    image, people = model.first_image(), phantom.subjects(FRESH, FRESH_SEED)
    voxels = torch.from_numpy(scans(people, FRESH_SEED, image))
    facts = {v.name: v.encode(people[v.name])[0] for v in model.schema.scalars}

    def batch(rows: Tensor) -> tuple[State, Observed]:
        x0 = {image.name: model.codecs[image.name].encode(voxels[rows]), **{name: x[rows] for name, x in facts.items()}}
        return x0, {name: torch.ones(len(rows), dtype=torch.bool) for name in x0}

    assert isinstance(model.denoiser, JointDenoiser)
    recalibrate(model.denoiser, batch, torch.arange(FRESH), MixtureTimes())
    believe(model.denoiser, batch, torch.arange(FRESH))
    entries = model.codecs[image.name].encode(voxels[:MAX_USUAL])
    model.summary["usual"] = {image.name: usual(model.denoiser, image, entries.split(CHUNK)).to_dict()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cohort", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("-n", type=int, default=15_000)
    options = parser.parse_args()
    model = mv.load(options.model)
    if options.cohort:
        cohort = mv.read_cohort(options.cohort)
        blocks = listen(model, cohort.subset(range(min(options.n, len(cohort)))), options.cache)
        refit(model.denoiser, blocks)  # type: ignore[arg-type]
    ask_fresh_people(model)
    model.save(options.out, half=True)


if __name__ == "__main__":
    main()
