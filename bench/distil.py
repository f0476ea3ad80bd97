"""Teaches a model to read by what models say of a scan and of its mirror image, on average, beside people's own facts.

    python bench/distil.py MODEL OUT --teacher MODEL [--teacher MODEL ...] [-n 10000] [--steps 600]

A person's own age is off from what the scan can tell by eight years, the teachers' mean by two (Hinton et al. 2015; of a
model's own answers to changed inputs, Laine and Aila 2017). On fresh phantoms. Only what reads is taught: the decoder and
the laws stay. The network is then the mean of what it was and what it became, which draws as well as the one and reads
nearly as well as the other (Wortsman et al. 2022: robust fine-tuning). How sure answers may be (see `scalars.sureness`),
where images are off (see `recalibration`) and what is usual of a scan (see `surprise`) is found of other phantoms.
--publish: `metavoxel.load("phantom")` then loads it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from images import scans
from package import cohort
from rich.progress import track
from torch import Tensor, nn

import metavoxel as mv
from metavoxel.augment import augment
from metavoxel.build import MAX_USUAL
from metavoxel.checkpoint import read_tensors
from metavoxel.config import Optimiser
from metavoxel.data import phantom
from metavoxel.denoiser import FrozenScan, JointDenoiser
from metavoxel.diffusion import joint_loss
from metavoxel.laws import Mixture
from metavoxel.loading import ImageStack
from metavoxel.model import PACKAGED
from metavoxel.noise import Noise, several
from metavoxel.question import Given, laid_out
from metavoxel.scalars import clean, law, loss
from metavoxel.schema import Categorical, Observed, Scalar, Schema, State
from metavoxel.surprise import usual
from metavoxel.times import MixtureTimes
from metavoxel.training import optimise
from metavoxel.validation import CHUNK, believe, recalibrate

SEED, BATCH, QUESTIONS, TAUGHT_BATCH = 2028, 48, 4, 100
FRESH, FRESH_SEED = 3000, 77_011
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
def taught(teachers: list[mv.MetaVoxel], stack: ImageStack, scalars: Sequence[Scalar]) -> State:
    """Scalar -> what the teachers say of every scan as it is and mirrored, as raw outputs: normal factors multiplied, log
    probabilities averaged."""
    said: dict[str, list[Tensor]] = {v.name: [] for v in scalars}
    for rows in track(torch.arange(len(stack)).split(TAUGHT_BATCH), "teachers"):
        voxels = stack.rows(rows)
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
            believed, own = (clean(v, x, nothing, tau) for x in (teacher[v.name], raw[v.name]))
            parts.append((believed.exp() * (believed - own)).sum(-1).mean())
            continue
        told = law(v, teacher[v.name], nothing, tau)
        assert isinstance(told, Mixture)
        cost = [loss(v, x, nothing, tau, told.mean()) + 0.5 * x[:, 1] ** 2 * told.variance()
                for x in (teacher[v.name], raw[v.name])]  # fmt: skip
        parts.append((cost[1] - cost[0]).mean())
    return torch.stack(parts).sum()


def learn(
    model: mv.MetaVoxel, facts: State, stack: ImageStack, teacher: State, out: Path, settings: Optimiser
) -> None:
    """In place: of the last averaged weights, which nobody held out has judged, the mean with those of before."""
    scalars, rule = model.schema.scalars, MixtureTimes().reading()
    known: Observed = {v.name: torch.ones(BATCH * QUESTIONS, dtype=torch.bool) for v in model.schema}

    def step(_: nn.Module, k: int) -> tuple[Tensor, dict[str, float]]:
        noise = Noise(SEED, torch.arange(BATCH) + k * BATCH)
        rows = noise.integers(len(stack))
        scan, raw = shown(model, augment(stack.rows(rows)[:, None], noise)[:, 0])
        many = Noise(SEED + 1, several(noise.index, QUESTIONS))
        times = rule.draw(model.schema, known, many)
        x0 = {name: x[rows].repeat_interleave(QUESTIONS, 0) for name, x in facts.items()}
        own = joint_loss(scan, Schema(scalars), x0, known, {name: times[name] for name in x0}, many).total
        soft = missed(scalars, {name: x[rows] for name, x in teacher.items()}, raw)
        return own + WEIGHT * soft, {"own": own.item(), "taught": soft.item()}

    denoiser = joint(model)
    before = {name: x.clone() for name, x in denoiser.net.state_dict().items()}
    optimise(denoiser, step, lambda _: {"loss": 0.0}, settings, out / "training", "joint", denoiser.net.trunk_matrices())
    tensors, _ = read_tensors(out / "training" / "joint.safetensors")
    became = {name.removeprefix("average/net."): x for name, x in tensors.items() if name.startswith("average/net.")}
    denoiser.net.load_state_dict({name: (x + became[name]) / 2 for name, x in before.items()})


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
    parser.add_argument("--teacher", action="append", required=True)
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    model, teachers = mv.load(options.model), [mv.load(name) for name in options.teacher]
    for teacher in teachers:
        joint(teacher)
    scalars, people = model.schema.scalars, phantom.subjects(options.n, SEED)
    stack = cohort(options.out / "scans.npy", model.first_image(), options.n, SEED)
    said = taught(teachers, stack, scalars)
    settings = Optimiser(steps=options.steps, batch=BATCH, average=0.998, validate_every=100, rate=3e-4, matrix_rate=2e-3)
    learn(model, {v.name: v.encode(people[v.name])[0] for v in scalars}, stack, said, options.out, settings)
    ask_fresh_people(model)
    model.save(options.out, half=True)
    if options.publish:
        model.save(PACKAGED / "phantom", half=True)


if __name__ == "__main__":
    main()
