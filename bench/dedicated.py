"""A network that can do nothing but tell age and sex from a scan, beside the joint model: MONAI's DenseNet121 in three
dimensions, as large as ours, trained on the same scans with the same augmentation, by `metavoxel baselines`.

    python bench/dedicated.py [--steps 300]
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import clock, record
from phantom import cohort, judge

import metavoxel as mv
from metavoxel.data.phantom import write_cohort
from metavoxel.demo import TRAINING_PEOPLE, TRAINING_SUBJECTS
from metavoxel.evaluate.dedicated import ask, train_dedicated
from metavoxel.evaluate.sizes import sizes
from metavoxel.evaluate.study import make_study

PEOPLE = 1000


def main() -> None:
    tiny = sizes("tiny")
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=tiny.dedicated.steps)
    settings = replace(tiny.dedicated, steps=parser.parse_args().steps)
    image = mv.load("phantom").first_image()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        training = mv.read_cohort(write_cohort(folder / "c", TRAINING_SUBJECTS, seed=TRAINING_PEOPLE))
        people, rows, exact = cohort(folder / "test", PEOPLE, image)
        people.table["participant_id"] = "test-" + people.table["participant_id"]  # both cohorts count from 1
        study = make_study(training, people, tiny.joint, folder / "cache")
        with clock(figures, "training_seconds"):
            networks = train_dedicated(study, "densenet", tiny.densenet, settings, folder / "m")
        table = study.test.table(ask(networks, study, told=False), "").assign(age_sd=np.nan)
    figures |= {name: value for name, value in judge(table, rows, exact).items() if not name.startswith("age_sd")}
    figures["parameters"] = sum(p.numel() for network in networks for p in network.parameters())
    size = f"{TRAINING_SUBJECTS} scans, {settings.steps} steps of {settings.batch}; {PEOPLE} fresh test scans"
    record("dedicated", size, figures)


if __name__ == "__main__":
    main()
