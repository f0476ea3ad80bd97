"""Trains the brain extraction that comes with the package, `--strip builtin`.

    python bench/train_brain.py RUN [--steps N] [--resume | --take]

On 40 heads of ixi50 and the 72 stripped brains of ds002748; ten heads are held out, for bench/strip.py. The weights and
whom they have not seen go to metavoxel/packaged/brain/brain.safetensors; see the model card beside it.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from common import SHARED
from random_heads import Chance, Source, draw, stripped, whole
from torch import Tensor, nn

from metavoxel.checkpoint import read_tensors, write_tensors
from metavoxel.config import Optimiser
from metavoxel.nets.outline import OutlineNet
from metavoxel.prepare.brain import SPACING_MM, WEIGHTS
from metavoxel.training import optimise

SEED = 4
STAGE = "brain"
CHANNELS = (8, 16, 32, 64, 96)
HELD_OUT = 10
STRIPPED_SHARE = 0.08  # of the draws
COARSE_MM = 4.0
FINE_SHARE = 0.5  # of the last draws; of the first none, for coarse ones cost a third, and teach where a brain is
JUDGED = 8  # draws of the validation, always the same; the people are those of the training


def held_out() -> list[str]:
    """Ten people of ixi50, one at random of each five that follow one another in age."""
    people = pd.read_csv(SHARED / "ixi50" / "participants.tsv", sep="\t").sort_values("age", kind="stable")
    rng = np.random.default_rng(SEED)
    return sorted(rng.choice(five) for five in np.array_split(people["participant_id"].to_numpy(), HELD_OUT))


def loss_of(logits: Tensor, brain: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy and one minus Dice, both of shares of voxels; and the Dice."""
    logits = logits.float()
    p = logits.sigmoid()
    dice = (2 * (p * brain).sum() + 1) / (p.sum() + brain.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, brain) + 1 - dice, {"dice": dice.item()}


def train(run: Path, steps: int, resume: bool) -> None:
    torch.manual_seed(SEED)
    unseen = held_out()
    heads = sorted(path.name for path in (SHARED / "ixi50").glob("sub-*"))
    brains = sorted(path.name for path in (SHARED / "ds002748").glob("sub-*"))
    fine = [[whole(name) for name in heads if name not in unseen], [stripped(name) for name in brains]]
    coarse = [[source.coarse() for source in group] for group in fine]

    def random_head(number: int, groups: list[list[Source]], spacing: float) -> tuple[Tensor, Tensor]:
        chance = Chance(SEED * 10**9 + number)
        group = groups[chance.happens(STRIPPED_SHARE)]
        image, brain = draw(group[chance.integer(len(group))], chance, spacing)
        return image.contiguous(memory_format=torch.channels_last_3d), brain

    def step(module: nn.Module, number: int) -> tuple[Tensor, dict[str, float]]:
        is_fine = Chance(-number).happens(FINE_SHARE * number / steps)
        image, brain = random_head(number, fine, SPACING_MM) if is_fine else random_head(number, coarse, COARSE_MM)
        return loss_of(module(image), brain)

    judged = [random_head(-1 - i, fine, SPACING_MM) for i in range(JUDGED)]

    def validate(module: nn.Module) -> dict[str, float]:
        found = [loss_of(module(image), brain) for image, brain in judged]
        dice = [parts["dice"] for _, parts in found]
        loss = float(np.mean([loss.item() for loss, _ in found]))
        return {"loss": loss, "dice": float(np.mean(dice)), "worst": min(dice)}

    net = OutlineNet(CHANNELS).to(memory_format=torch.channels_last_3d)
    kernels = [p for name, p in net.named_parameters() if p.ndim == 5 and not name.startswith("logits")]
    settings = Optimiser(
        steps=steps, batch=1, rate=2e-3, matrix_rate=0.02, average=0.99, precision="bfloat16", validate_every=200
    )
    optimise(net, step, validate, settings, run, STAGE, kernels, resume=resume)


def package(run: Path) -> None:
    """The best averaged weights that the run has saved, in float16."""
    tensors, saved = read_tensors(run / f"{STAGE}.safetensors")
    best = {name.removeprefix("best/"): x.half() for name, x in tensors.items() if name.startswith("best/")}
    about = {"channels": CHANNELS, "held_out": held_out(), "seed": SEED, "validation": saved["best"]}
    write_tensors(WEIGHTS, best, about)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=4400)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--take", action="store_true", help="do not train: package what the run has saved so far")
    options = parser.parse_args()
    if not options.take:
        train(options.run, options.steps, options.resume)
    package(options.run)


if __name__ == "__main__":
    main()
