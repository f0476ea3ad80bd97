"""A network that can do nothing but tell age and sex from a scan, beside the joint model: MONAI's DenseNet121 in three
dimensions, as large as ours, trained on the same scans with the same augmentation for as many seconds as `tiny`.

    python bench/dedicated.py [--seconds 540]
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from common import record
from monai.networks.nets import DenseNet121
from phantom import cohort, judge

import metavoxel as mv
from metavoxel.augment import augment
from metavoxel.data import phantom
from metavoxel.data.phantom import write_cohort
from metavoxel.demo import TRAINING_PEOPLE, TRAINING_SUBJECTS
from metavoxel.loading import ImageStack, load_images
from metavoxel.noise import Noise

BATCH, RATE, PEOPLE = 48, 1e-3, 1000
HELD_OUT = 0.1
CHECKS = 8


def answers(network: torch.nn.Module, scans: ImageStack, rows: torch.Tensor) -> torch.Tensor:
    """(n, 2): age, standardised; logit of male."""
    network.eval()
    with torch.no_grad():
        found = torch.cat([network(scans.rows(part)[:, None]) for part in rows.split(BATCH)])
    network.train()
    return found


def loss(found: torch.Tensor, age: torch.Tensor, male: torch.Tensor) -> torch.Tensor:
    return F.l1_loss(found[:, 0], age) + F.binary_cross_entropy_with_logits(found[:, 1], male)


def fit(scans: ImageStack, age: torch.Tensor, male: torch.Tensor, seconds: float) -> tuple[torch.nn.Module, int]:
    """AdamW, cosine over the time there is; the best of CHECKS by held-out people, as ours is chosen."""
    torch.manual_seed(0)
    network = DenseNet121(3, 1, 2, init_features=32, growth_rate=16)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    order = torch.randperm(len(scans))
    held_out, training = order[: int(HELD_OUT * len(scans))], order[int(HELD_OUT * len(scans)) :]
    best, best_loss, check, step = network.state_dict(), math.inf, 1, 0
    start = time.monotonic()
    while (done := (time.monotonic() - start) / seconds) < 1:
        noise = Noise(0, torch.arange(BATCH) + step * BATCH)
        rows = training[noise.integers(len(training))]
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        optimiser.zero_grad()
        loss(network(augment(scans.rows(rows)[:, None], noise)), age[rows], male[rows]).backward()
        optimiser.step()
        step += 1
        if done >= check / CHECKS or (time.monotonic() - start) >= seconds:
            check += 1
            now = loss(answers(network, scans, held_out), age[held_out], male[held_out]).item()
            if now < best_loss:
                best, best_loss = {k: v.clone() for k, v in network.state_dict().items()}, now
            print(f"{step} steps, {done:.0%}: held-out loss {now:.3f}", flush=True)
    network.load_state_dict(best)
    return network, step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=540)
    seconds = parser.parse_args().seconds
    image = mv.load("phantom").first_image()
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_cohort(Path(scratch) / "c", TRAINING_SUBJECTS, seed=TRAINING_PEOPLE)
        scans = load_images(mv.read_cohort(folder), image, Path(scratch) / "cache")
        known = phantom.subjects(TRAINING_SUBJECTS, TRAINING_PEOPLE)
        age, male = torch.tensor(known["age"].to_numpy()).float(), torch.tensor((known["sex"] == "M").to_numpy()).float()
        middle, spread = age.mean(), age.std()
        network, steps = fit(scans, (age - middle) / spread, male, seconds)
        people, rows, exact = cohort(Path(scratch) / "test", PEOPLE, image)
        found = answers(network, load_images(people, image, Path(scratch) / "cache"), torch.arange(PEOPLE))
    table = pd.DataFrame({
        "age_mean": (found[:, 0] * spread + middle).numpy(), "age_sd": np.full(PEOPLE, np.nan),
        "sex": np.where(found[:, 1] > 0, "M", "F"),
    })  # fmt: skip
    figures = {name: value for name, value in judge(table, rows, exact).items() if not name.startswith("age_sd")}
    figures |= {"parameters": sum(p.numel() for p in network.parameters()), "training_seconds": seconds}
    record("dedicated", f"{TRAINING_SUBJECTS} scans, {steps} steps of {BATCH}; {PEOPLE} fresh test scans", figures)


if __name__ == "__main__":
    main()
