"""Real brains of two sites: `tiny` on ds002748 + ixi50 (T1w, age, sex, site), beside ridge and logistic regression on the
same voxels and a constant, on people held out.

    python bench/real_brains.py [FOLDS TO RUN, default 1]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from common import SHARED, clock, record

import metavoxel as mv
from metavoxel.data.cohort import Cohort
from metavoxel.evaluate.classical import linear
from metavoxel.evaluate.study import make_study

CONFIG = mv.preset(
    "tiny", reading=150, validation=0.15, joint={"steps": 300, "batch": 32, "rate": 1e-3, "validate_every": 25}
)


def cohort() -> Cohort:
    return mv.concat({
        "ds002748": mv.read_cohort(SHARED / "ds002748", ["T1w", "age", "sex=gender"]),
        "ixi50": mv.read_cohort(SHARED / "ixi50", ["T1w", "age", "sex"]),
    })  # fmt: skip


def answers(train: Cohort, test: Cohort) -> pd.DataFrame:
    """Predictions of every method for the held-out people."""
    with tempfile.TemporaryDirectory() as folder:
        table = mv.train(train, CONFIG, Path(folder) / "m").predict(test, ["age", "sex"])
        study = make_study(train, test, CONFIG, Path(folder))
        lines = study.test.table(linear(study, told=False), "")
    age, sex = train.column("age").to_numpy(), train.column("sex").to_numpy()
    return table.assign(
        truth=test.column("age").to_numpy(), sex_truth=test.column("sex").to_numpy(), site=test.column("site").to_numpy(),
        ridge=lines["age_mean"], logistic=lines["sex"], constant=np.median(age), commonest=pd.Series(sex).mode()[0],
    )  # fmt: skip


def main() -> None:
    folds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    everyone = cohort()
    figures: dict[str, object] = {}
    with clock(figures, "seconds"):
        row = {person: i for i, person in enumerate(everyone.table["participant_id"])}
        parts = everyone.split([0.2] * 5, seed=0, stratify=["age", "sex", "site"])
        tables = []
        for test in parts[:folds]:
            out = [row[p] for p in test.participants]
            kept = [i for i in range(len(everyone)) if i not in out]
            tables.append(answers(everyone.subset(kept), test))
    table = pd.concat(tables)
    for name, column in {"metavoxel": "age_mean", "ridge": "ridge", "constant": "constant"}.items():
        errors = (table[column] - table["truth"]).abs()
        figures[f"age_mae_{name}"] = float(errors.mean())
        for site, group in errors.groupby(table["site"]):
            figures[f"age_mae_{name}_{site}"] = float(group.mean())
    inside = (table["age_q05"] <= table["truth"]) & (table["truth"] <= table["age_q95"])
    figures["age_90_interval_coverage"] = float(inside.mean())
    for name, column in {"metavoxel": "sex", "logistic": "logistic", "constant": "commonest"}.items():
        figures[f"sex_accuracy_{name}"] = float((table[column] == table["sex_truth"]).mean())
    record("real_brains", f"{len(everyone)} people of two sites, {len(table)} held out in {folds} fold(s)", figures)


if __name__ == "__main__":
    main()
