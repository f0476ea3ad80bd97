"""Is a model that has learnt its training people by heart caught? Trained long on 20 scans, judged as by users;
beside it the packaged model, which has seen 40,000 people and none of these.

    python bench/copies.py [--steps 1500]
"""

import argparse
import tempfile
from pathlib import Path

from common import clock, record

import metavoxel as mv
from metavoxel.data.phantom import write_cohort
from metavoxel.evaluate.evaluation import Options
from metavoxel.evaluate.figures import Findings
from metavoxel.evaluate.run import evaluate

FEW, OTHERS = 20, 60
FEW_SEED, OTHERS_SEED = 6403, 6404
SHOWN = ("ratio", "nearer_training", "nearer_training_p", "authenticity", "membership_auc", "near_copies")


def told(findings: Findings, who: str) -> dict[str, object]:
    """The audit by voxels."""
    found = {metric: findings.value("copies", "T1w", f"voxels: {metric}") for metric in SHOWN}
    return {f"{who}_{metric}": figure.value for metric, figure in found.items() if figure is not None}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args().steps
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        few = write_cohort(folder / "few", FEW, seed=FEW_SEED)
        others = write_cohort(folder / "others", OTHERS, seed=OTHERS_SEED)
        options = Options(training=few, scans=OTHERS)
        figures |= told(evaluate("phantom", others, folder / "honest", options), "packaged")
        config = mv.preset("tiny", reading=0, augment=False, validation=0.05,
                           joint={"steps": steps, "batch": FEW, "rate": 1.5e-3, "validate_every": steps})  # fmt: skip
        with clock(figures, "training_seconds"):
            mv.train(few, config, folder / "copier")
        figures |= told(evaluate(folder / "copier", others, folder / "caught", options), "learnt_by_heart")
    record("copies", f"{FEW} people learnt by heart in {steps} steps, {OTHERS} others, as many drawn scans", figures)


if __name__ == "__main__":
    main()
