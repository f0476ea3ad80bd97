"""Tables only: scikit-learn's breast-cancer data with 20 % of the cells removed at random, in training and in test.

    python bench/tabular.py
"""

import tempfile

import numpy as np
import pandas as pd
import torch
from common import clock, record
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

import metavoxel as mv
from metavoxel.diffusion import expect
from metavoxel.question import Given

CONFIG = mv.preset(
    "tiny",
    net={"token_width": 48, "token_depth": 2},
    times={"kind": "mixture", "scalar_given": 0.75},
    joint={"steps": 800, "batch": 128, "rate": 2e-3, "weight_decay": 0.1, "validate_every": 50},
)
FOLDS = 5


def main() -> None:
    data = load_breast_cancer(as_frame=True)
    cells = data.data.mask(np.random.default_rng(0).random(data.data.shape) < 0.2)
    diagnosis = pd.Series(np.array(["malignant", "benign"])[data.target], name="diagnosis")
    table = cells.assign(diagnosis=diagnosis)
    numbers = [mv.Continuous(name, scaling="quantile") for name in cells.columns]
    schema = mv.Schema([*numbers, mv.Categorical("diagnosis", ("benign", "malignant"))])
    ours, theirs = np.zeros(len(table)), np.zeros(len(table))
    figures: dict[str, object] = {}
    aucs: list[tuple[float, float]] = []
    with clock(figures, "seconds"):
        for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(cells, diagnosis):
            with tempfile.TemporaryDirectory() as folder:
                model = mv.fit(schema, {}, table.iloc[train].reset_index(drop=True), folder, CONFIG)
            state, observed = model.schema.encode(table.iloc[test])
            known = {name: Given(state[name], observed=observed[name]) for name in cells.columns}
            with torch.no_grad():
                ours[test] = expect(model.denoiser, model.schema, known, ["diagnosis"])["diagnosis"][:, 1].exp().numpy()
            boosted = HistGradientBoostingClassifier(random_state=0).fit(cells.iloc[train], diagnosis.iloc[train])
            theirs[test] = boosted.predict_proba(cells.iloc[test])[:, 1]
            truth = diagnosis.iloc[test] == "malignant"
            aucs.append((roc_auc_score(truth, ours[test]), roc_auc_score(truth, theirs[test])))
    figures["auc_metavoxel"], figures["auc_hist_gradient_boosting"] = (float(x) for x in np.mean(aucs, 0))
    figures["auc_metavoxel_worst_fold"], figures["auc_hist_gradient_boosting_worst_fold"] = (
        float(x) for x in np.min(aucs, 0)
    )
    record("tabular", f"{len(table)} rows, {FOLDS} folds, 20 % of cells missing", figures)


if __name__ == "__main__":
    main()
