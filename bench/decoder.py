"""Trains what draws images, the decoder and the last layers, and leaves what reads as it is.

    python bench/decoder.py MODEL OUT --cohort COHORT --cache FOLDER [--steps N]

Asked for images only, whose facts are mostly known. The network is then the mean of what it was and what it became, one to
three: of 128 people's scans the error at levels .1 to .9 is as small as after training alone, at .97 smaller. For models of
one image, numbers and classes, that know all of everybody. Then `bench/heads.py`.
"""

from dataclasses import replace
from pathlib import Path

import torch
from distil import command, joint, train
from torch import Tensor, nn

import metavoxel as mv
from metavoxel.augment import augment
from metavoxel.config import Optimiser
from metavoxel.diffusion import joint_loss
from metavoxel.loading import ImageStack, load_images
from metavoxel.noise import Noise
from metavoxel.schema import Observed
from metavoxel.times import MixtureTimes

BATCH, SEED, RATE, MATRIX_RATE = 32, 15, 6e-4, 3e-3
BECAME = 0.75
DRAWS = ("decoder.", "last.")
"""How the names of the weights begin that images are drawn by."""


def learn(model: mv.MetaVoxel, cohort: mv.Cohort, scans: ImageStack, out: Path, steps: int) -> None:
    """In place."""
    image, denoiser = model.first_image(), joint(model)
    facts = {v.name: v.encode(cohort.column(v.name))[0] for v in model.schema.scalars}
    known: Observed = {v.name: torch.ones(BATCH, dtype=torch.bool) for v in model.schema}
    rule = replace(MixtureTimes(), read=0.0, tied=0.1)
    for name, weight in denoiser.net.named_parameters():
        weight.requires_grad_(name.startswith(DRAWS))

    def step(module: nn.Module, k: int) -> tuple[Tensor, dict[str, float]]:
        noise = Noise(SEED, torch.arange(BATCH) + k * BATCH)
        rows = noise.integers(len(cohort))
        entries = model.codecs[image.name].encode(augment(scans.rows(rows)[:, None], noise)[:, 0])
        x0 = {image.name: entries, **{name: x[rows] for name, x in facts.items()}}
        times = rule.draw(model.schema, known, noise)
        loss = joint_loss(module, model.schema, x0, known, times, noise).parts[image.name]  # type: ignore[arg-type]
        return loss, {"image": loss.item()}

    before = {name: x.clone() for name, x in denoiser.net.state_dict().items()}
    settings = Optimiser(steps=steps, batch=BATCH, rate=RATE, matrix_rate=MATRIX_RATE, average=0.98, warmup=20,
                         validate_every=50)  # fmt: skip
    train(denoiser, step, settings, out, [x for x in denoiser.net.trunk_matrices() if x.requires_grad])
    became = denoiser.net.state_dict()
    denoiser.net.load_state_dict({name: torch.lerp(x, became[name], BECAME) for name, x in before.items()})


def main() -> None:
    options = command(steps=420).parse_args()
    model, cohort = mv.load(options.model), mv.read_cohort(options.cohort)
    learn(model, cohort, load_images(cohort, model.first_image(), options.cache), options.out, options.steps)
    model.save(options.out)


if __name__ == "__main__":
    main()
