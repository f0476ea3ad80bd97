"""Real brains of two sites: `tiny` on ds002748 + ixi50 (T1w, age, sex, site), beside ridge and logistic regression on the
same voxels and a constant, on people held out.

    python bench/real_brains.py [--folds 1] [--prepared FOLDER] [--init MODEL]

--prepared: of both cohorts as `metavoxel prepare` left them, in FOLDER/ds002748 and FOLDER/ixi50; otherwise as they came.
--init: start from this model, trained on phantoms, and train for less; it knows no site.
"""

import argparse
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
FURTHER = mv.preset(
    "tiny", reading=100, validation=0.15, joint={"steps": 200, "batch": 32, "rate": 3e-4, "matrix_rate": 3e-3,
                                                 "validate_every": 25}
)  # fmt: skip
"""Of a model that can tell phantoms already."""


def cohort(folder: Path) -> Cohort:
    return mv.concat({
        "ds002748": mv.read_cohort(folder / "ds002748", ["T1w", "age", "sex=gender"]),
        "ixi50": mv.read_cohort(folder / "ixi50", ["T1w", "age", "sex"]),
    })  # fmt: skip


def answers(train: Cohort, test: Cohort, init: str | None) -> pd.DataFrame:
    """Predictions of every method for the held-out people."""
    config = FURTHER if init else CONFIG
    with tempfile.TemporaryDirectory() as folder:
        table = mv.train(train, config, Path(folder) / "m", init=init).predict(test, ["age", "sex"])
        study = make_study(train, test, config, Path(folder))
        lines = study.test.table(linear(study, told=False), "")
    age, sex = train.column("age").to_numpy(), train.column("sex").to_numpy()
    return table.assign(
        truth=test.column("age").to_numpy(), sex_truth=test.column("sex").to_numpy(), site=test.column("site").to_numpy(),
        ridge=lines["age_mean"], logistic=lines["sex"], constant=np.median(age), commonest=pd.Series(sex).mode()[0],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--init")
    options = parser.parse_args()
    everyone = cohort(options.prepared or SHARED)
    figures: dict[str, object] = {}
    with clock(figures, "seconds"):
        row = {person: i for i, person in enumerate(everyone.table["participant_id"])}
        parts = everyone.split([0.2] * 5, seed=0, stratify=["age", "sex", "site"])
        tables = []
        for test in parts[: options.folds]:
            out = [row[p] for p in test.participants]
            kept = [i for i in range(len(everyone)) if i not in out]
            tables.append(answers(everyone.subset(kept), test, options.init))
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
    name = "_".join(["real_brains", *(["prepared"] if options.prepared else []), *(["further"] if options.init else [])])
    record(name, f"{len(everyone)} people of two sites, {len(table)} held out in {options.folds} fold(s)", figures)


if __name__ == "__main__":
    main()
