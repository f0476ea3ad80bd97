"""Teaches a model to read by what models say of a scan and of its mirror image, on average, beside people's own facts.

    python bench/distil.py MODEL OUT --cohort COHORT --cache FOLDER --teacher MODEL [--teacher MODEL ...] [--steps N]

A person's own age is off from what the scan can tell by eight years, the teachers' mean by two (Hinton et al. 2015; of a
model's own answers to changed inputs, Laine and Aila 2017). Only what reads is taught: the decoder and the laws stay. For
models of one image, numbers and classes, that know all of everybody. Then `bench/heads.py`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from package import averaged
from rich.progress import track
from torch import Tensor, nn

import metavoxel as mv
from metavoxel.augment import augment
from metavoxel.config import Optimiser
from metavoxel.denoiser import FrozenScan, JointDenoiser
from metavoxel.diffusion import joint_loss
from metavoxel.loading import ImageStack, load_images
from metavoxel.noise import Noise
from metavoxel.question import Given, laid_out
from metavoxel.scalars import clean
from metavoxel.schema import Categorical, Observed, Scalar, Schema, State
from metavoxel.times import MixtureTimes
from metavoxel.training import Step, optimise

BATCH, QUESTIONS, TAUGHT_BATCH = 48, 4, 100
WEIGHT = 4.0
"""Of the teachers' word, in nats, beside people's own facts."""


def joint(model: mv.MetaVoxel) -> JointDenoiser:
    """As it was trained: no surer or less sure."""
    assert isinstance(model.denoiser, JointDenoiser)
    model.denoiser.forget_held_out()
    return model.denoiser


def shown(model: mv.MetaVoxel, voxels: Tensor) -> tuple[FrozenScan, State]:
    """The reader of these scans, and its raw answers where nothing else is known."""
    image, denoiser = model.first_image(), model.denoiser
    assert isinstance(denoiser, JointDenoiser)
    given = {image.name: Given(model.codecs[image.name].encode(voxels))}
    state, times = laid_out(model.schema.variables, given, torch.arange(len(voxels)), len(voxels))
    reader = denoiser.freeze(state, times)
    return reader, reader.raw(state, times)


@torch.no_grad()
def taught(teachers: list[mv.MetaVoxel], scans: ImageStack, scalars: Sequence[Scalar], people: int) -> State:
    """Scalar -> what the teachers say of every scan as it is and mirrored, as raw outputs: normal factors multiplied, log
    probabilities averaged."""
    said: dict[str, list[Tensor]] = {v.name: [] for v in scalars}
    for rows in track(torch.arange(people).split(TAUGHT_BATCH), "teachers"):
        voxels = scans.rows(rows)
        answers = [shown(teacher, x)[1] for teacher in teachers for x in (voxels, voxels.flip(1))]
        for v in scalars:
            raw = torch.stack([answer[v.name] for answer in answers])
            if isinstance(v, Categorical):
                said[v.name].append(raw.log_softmax(-1).mean(0))
            else:
                mean, sharpness = raw.unbind(-1)
                together = (mean * sharpness).mean(0) / sharpness.mean(0)
                said[v.name].append(torch.stack([together, sharpness.mean(0)], -1))
    return {name: torch.cat(parts) for name, parts in said.items()}


def missed(scalars: Sequence[Scalar], teacher: State, raw: State) -> Tensor:
    """How much less likely pupils make what the teachers believe: Kullback and Leibler's divergence, in nats, of people's
    mean, summed over scalars."""
    parts, people = [], torch.arange(len(next(iter(raw.values()))))
    state, times = laid_out(scalars, {}, people, len(people))
    for v in scalars:
        nothing, tau = state[v.name], v.clock.tau(times[v.name])
        if isinstance(v, Categorical):
            told, own = (clean(v, x, nothing, tau) for x in (teacher[v.name], raw[v.name]))
            parts.append((told.exp() * (told - own)).sum(-1).mean())
            continue
        mean, variance = v.law.given(nothing, tau, (teacher[v.name][:, 0], teacher[v.name][:, 1]))
        likely = [v.law.gain(mean, nothing, tau, (x[:, 0], x[:, 1])) - 0.5 * x[:, 1] ** 2 * variance
                  for x in (teacher[v.name], raw[v.name])]  # fmt: skip
        parts.append((likely[0] - likely[1]).mean())
    return torch.stack(parts).sum()


def learn(model: mv.MetaVoxel, cohort: mv.Cohort, scans: ImageStack, teacher: State, out: Path, settings: Optimiser,
          seed: int) -> None:  # fmt: skip
    """In place: the last averaged weights."""
    scalars, rule = model.schema.scalars, MixtureTimes().reading()
    facts = {v.name: v.encode(cohort.column(v.name))[0] for v in scalars}
    known: Observed = {v.name: torch.ones(BATCH * QUESTIONS, dtype=torch.bool) for v in model.schema}

    def step(_: nn.Module, k: int) -> tuple[Tensor, dict[str, float]]:
        noise = Noise(seed, torch.arange(BATCH) + k * BATCH)
        rows = noise.integers(len(cohort))
        scan, raw = shown(model, augment(scans.rows(rows)[:, None], noise)[:, 0])
        many = Noise(seed + 1, (noise.index[:, None] * QUESTIONS + torch.arange(QUESTIONS)).flatten())
        times = rule.draw(model.schema, known, many)
        x0 = {name: x[rows].repeat_interleave(QUESTIONS, 0) for name, x in facts.items()}
        own = joint_loss(scan, Schema(scalars), x0, known, {name: times[name] for name in x0}, many).total
        soft = missed(scalars, {name: x[rows] for name, x in teacher.items()}, raw)
        return own + WEIGHT * soft, {"own": own.item(), "taught": soft.item()}

    denoiser = joint(model)
    train(denoiser, step, settings, out, denoiser.net.trunk_matrices())


def train(denoiser: JointDenoiser, step: Step, settings: Optimiser, out: Path, matrices: Sequence[Tensor]) -> None:
    """In place: the last averaged weights, which nobody held out has judged."""
    optimise(denoiser, step, lambda _: {"loss": 0.0}, settings, out / "training", "joint", matrices)
    denoiser.load_state_dict(averaged(out))


def command(steps: int) -> argparse.ArgumentParser:
    """What is asked of whoever teaches a model anew."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=steps)
    return parser


def main() -> None:
    parser = command(steps=1000)
    parser.add_argument("--teacher", action="append", required=True)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--average", type=float, default=0.998)
    parser.add_argument("--seed", type=int, default=14)
    options = parser.parse_args()
    model, teachers = mv.load(options.model), [mv.load(name) for name in options.teacher]
    for teacher in teachers:
        joint(teacher)
    cohort = mv.read_cohort(options.cohort)
    scans = load_images(cohort, model.first_image(), options.cache)
    said = taught(teachers, scans, model.schema.scalars, len(cohort))
    rates = {"rate": options.rate, "matrix_rate": options.rate * 20 / 3}
    settings = Optimiser(steps=options.steps, batch=BATCH, average=options.average, validate_every=100, **rates)
    learn(model, cohort, scans, said, options.out, settings, options.seed)
    model.save(options.out)


if __name__ == "__main__":
    main()
