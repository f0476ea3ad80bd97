"""`metavoxel demo --train`: its seconds and memory, and how good the `tiny` model that it trains is. Beside it the paper's
recipe (shared times, replacement, 50 steps, 3 draws) on the same scans, trained for as long: every step of it decodes
images, which a step of the reading stretch does not and so costs half as much.

    python bench/tiny.py
    python bench/tiny.py --paper      # the paper's recipe
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from common import record
from demo import run_demo
from phantom import ours, paper, paper_model, record_model

import metavoxel as mv
from metavoxel.data.phantom import write_cohort
from metavoxel.demo import TRAINING_PEOPLE, TRAINING_SUBJECTS

PEOPLE, PAPER_PEOPLE = 1000, 40


def train_as_the_demo_does() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        size = f"{TRAINING_SUBJECTS} training scans, 200 fresh subjects"
        record("demo_train", size, run_demo(Path(scratch) / "demo", "--train"))
        tiny = mv.load(Path(scratch) / "demo" / "model")
        record_model("tiny", tiny, PEOPLE, ours(tiny, PEOPLE))


def train_as_the_paper_does() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        cohort = write_cohort(Path(scratch) / "cohort", TRAINING_SUBJECTS, seed=TRAINING_PEOPLE)
        config = mv.preset("tiny")
        same_time = config.joint.steps - config.reading // 2
        theirs = paper_model(cohort, replace(config, joint=replace(config.joint, steps=same_time)))
        record_model("paper_recipe", theirs, PAPER_PEOPLE, paper(theirs, PAPER_PEOPLE))


if __name__ == "__main__":
    train_as_the_paper_does() if "--paper" in sys.argv else train_as_the_demo_does()
