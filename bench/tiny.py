"""`metavoxel demo --train`: its seconds and memory, how good the `tiny` model that it trains is, and beside it the paper's
recipe (shared times, replacement, 50 steps, 3 draws) trained on the same scans for as many steps.

    python bench/tiny.py [--paper]      # --paper: the paper's recipe too
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from common import record
from demo import run_demo

from metavoxel.data.phantom import write_cohort
from metavoxel.demo import TRAINING_PEOPLE, TRAINING_SUBJECTS

JUDGE = [sys.executable, str(Path(__file__).with_name("phantom.py"))]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = f"{TRAINING_SUBJECTS} training scans, 200 fresh subjects"
        record("demo_train", size, run_demo(folder / "demo", "--train"))
        model = str(folder / "demo" / "model")
        subprocess.run([*JUDGE, "ours", "--model", model, "-n", "1000", "--name", "tiny"], check=True)
        if "--paper" in sys.argv:
            cohort = write_cohort(folder / "cohort", TRAINING_SUBJECTS, seed=TRAINING_PEOPLE)
            subprocess.run([*JUDGE, "paper", "--cohort", str(cohort), "-n", "200", "--name", "paper_recipe"], check=True)


if __name__ == "__main__":
    main()
