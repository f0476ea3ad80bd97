"""`metavoxel demo --train`: its seconds and memory, how good the `tiny` model that it trains is, and beside it the paper's
recipe (shared times, replacement, 50 steps, 3 draws) trained on the same scans for as many steps.

    python bench/tiny.py [--paper]      # --paper: the paper's recipe too
"""

import sys
import tempfile
from pathlib import Path

from common import record
from demo import run_demo
from phantom import ours, paper, paper_model, record_model

import metavoxel as mv
from metavoxel.data.phantom import write_cohort
from metavoxel.demo import TRAINING_PEOPLE, TRAINING_SUBJECTS

PEOPLE, PAPER_PEOPLE = 1000, 200


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = f"{TRAINING_SUBJECTS} training scans, 200 fresh subjects"
        record("demo_train", size, run_demo(folder / "demo", "--train"))
        tiny = mv.load(folder / "demo" / "model")
        record_model("tiny", tiny, PEOPLE, ours(tiny, PEOPLE))
        if "--paper" in sys.argv:
            cohort = write_cohort(folder / "cohort", TRAINING_SUBJECTS, seed=TRAINING_PEOPLE)
            theirs = paper_model(cohort, mv.preset("tiny"))
            record_model("paper_recipe", theirs, PAPER_PEOPLE, paper(theirs, PAPER_PEOPLE))


if __name__ == "__main__":
    main()
