"""`tiny` from scratch, as `metavoxel demo --train` trains it, beside the paper's recipe on the same scans and budget.

    python bench/tiny.py [TRAINING SUBJECTS, default 3000]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

PYTHON, HERE = sys.executable, Path(__file__).parent


def main() -> None:
    n = sys.argv[1] if len(sys.argv) > 1 else "3000"
    with tempfile.TemporaryDirectory() as folder:
        cohort, model, cache = (str(Path(folder) / name) for name in ("cohort", "model", "cache"))
        for command in (
            [PYTHON, "-m", "metavoxel.cli", "phantom", cohort, "-n", n, "--seed", "1"],
            [PYTHON, "-m", "metavoxel.cli", "train", cohort, "-o", model, "--cache", cache],
            [PYTHON, str(HERE / "phantom.py"), "ours", "--model", model, "-n", "1000", "--name", "tiny"],
            [PYTHON, str(HERE / "phantom.py"), "paper", "--cohort", cohort, "--cache", cache, "-n", "500",
             "--name", "paper_recipe"],
        ):
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
