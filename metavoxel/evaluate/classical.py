"""What needs no network: ridge and logistic regression on voxels, gradient boosting on volumes and on the table.

scikit-learn's pipelines. How much they are regularised is chosen by cross-validation inside of the training part, whose
folds are dealt by people.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import KernelPCA
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import Tensor

from metavoxel.data.cohort import Cohort
from metavoxel.data.table import IDENTIFIERS
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.study import Part, Study
from metavoxel.schema import Categorical, Scalar

VOXEL_MM = 5.0
"""Voxels are averaged to about this size."""
FARTHEST = 5.0
"""A voxel's sd that it can be from the mean."""
FOLDS = 5
CHUNK = 32
RIDGE = {"alpha": np.logspace(-3, 3, 7)}
LOGISTIC = {"C": np.logspace(-2, 4, 7)}
BOOSTING = {"max_iter": [25, 50, 100, 200], "max_leaf_nodes": [4, 15]}

Answers = dict[str, np.ndarray]
"""Target -> numbers in their unit (rows,), or probabilities of the levels (rows, levels); NaN where there are none."""
Volumes = Callable[[Cohort], pd.DataFrame]
"""A cohort -> its anatomical volumes, a row for each of its rows in their order. Identifiers among them are left out."""


def linear(study: Study, told: bool) -> Answers:
    """Ridge regression of numbers and logistic regression of classes, on the voxels and, if `told`, the other facts."""
    parts = (study.train, study.test)
    rows = [study.learners, study.test.scanned]
    voxels = [_pooled(part, own) for part, own in zip(parts, rows)]
    found = {}
    for v in study.wanted:
        facts = [part.facts(study.others(v.name) if told else [])[own].numpy() for part, own in zip(parts, rows)]
        train, test = (np.concatenate(pair, 1) for pair in zip(voxels, facts))
        found[v.name] = _learn(study, v, *_line(v, voxels[0].shape[1]), rows, train, test)
    return found


def trees(study: Study, told: bool, volumes: Volumes | None = None) -> Answers:
    """Gradient boosting on `volumes`, if there are any, and, if `told`, on the table's other columns; gaps are allowed."""
    parts = (study.train, study.test)
    rows = [torch.arange(len(part)) for part in parts]
    measured = [_measured(part.cohort, volumes) for part in parts]
    found = {}
    for v in study.wanted:
        cells = [_cells(part, study.others(v.name) if told else []) for part in parts]
        train, test = (np.concatenate(pair, 1) for pair in zip(measured, cells))
        if not train.shape[1]:
            raise MetavoxelError(f"{v.name}: no other column tells anything of it; add columns, or leave out trees")
        found[v.name] = _learn(study, v, *_boosting(v, study.seed), rows, train, test)
    return found


def _learn(
    study: Study, v: Scalar, model: tuple[BaseEstimator, ...], grid: dict, rows: Sequence[Tensor],
    train: np.ndarray, test: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Answers for the rows of the test part, from inputs (n, widths) of the `rows` that have any. model: steps that see no
    target, and an estimator whose setting in `grid` is chosen by inner cross-validation."""
    values, known = (x[rows[0]].numpy() for x in study.train.target(v.name))
    people, truth = study.train.people[rows[0].numpy()][known], values[known]
    scoring = "neg_log_loss" if isinstance(v, Categorical) else "neg_mean_squared_error"
    search = GridSearchCV(model[-1], grid, scoring=scoring, cv=_folds(v, people, truth, study.seed))
    learned = make_pipeline(*model[:-1], search).fit(train[known], truth)
    shape = (len(v.levels),) if isinstance(v, Categorical) else ()
    found = np.full((len(study.test), *shape), np.nan)
    if len(test) and isinstance(v, Categorical):
        probabilities = np.zeros((len(test), *shape))
        probabilities[:, learned.classes_] = learned.predict_proba(test)
        found[rows[1].numpy()] = probabilities
    elif len(test):
        found[rows[1].numpy()] = v.decode(torch.from_numpy(learned.predict(test)))
    return found


def _folds(v: Scalar, people: np.ndarray, truth: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nobody is in both sides of a fold, and every class is in every fold."""
    if isinstance(v, Categorical):
        holders = {v.levels[code]: len(set(people[truth == code])) for code in np.unique(truth)}
        rarest = min(holders, key=lambda level: holders[level])
        if holders[rarest] < 2:
            raise MetavoxelError(f"{v.name}: a single person who trains is {rarest}; leave this level out, or add people")
        dealer: Any = StratifiedGroupKFold(min(FOLDS, holders[rarest]), shuffle=True, random_state=seed)
    elif (count := len(set(people))) < 2:
        raise MetavoxelError(f"{v.name}: is known of {count} people who train; cross-validation needs at least 2")
    else:
        dealer = GroupKFold(min(FOLDS, count), shuffle=True, random_state=seed)
    return list(dealer.split(people, truth, people))


def _line(v: Scalar, voxels: int) -> tuple[tuple[BaseEstimator, ...], dict]:
    """All voxels together weigh as much as one fact. The principal components of all people hold whatever an L2 penalty can
    use, and are as many as people, not voxels."""
    scans = ("voxels", make_pipeline(StandardScaler(), FunctionTransformer(_shrink)), slice(0, voxels))
    inputs = ColumnTransformer([scans], remainder=StandardScaler())
    # in double precision: beside facts, which weigh thousands of times what a fine component does, single lost the latter
    components = make_pipeline(FunctionTransformer(np.float64), KernelPCA(kernel="linear", eigen_solver="dense"))
    if isinstance(v, Categorical):
        return (inputs, components, LogisticRegression(max_iter=1000)), LOGISTIC
    return (inputs, components, Ridge()), RIDGE


def _shrink(voxels: np.ndarray) -> np.ndarray:
    """A voxel that is dark in nearly all who train, but not in somebody else, would be thousands of sd away."""
    return voxels.clip(-FARTHEST, FARTHEST) / np.sqrt(voxels.shape[1], dtype=voxels.dtype)


def _boosting(v: Scalar, seed: int) -> tuple[tuple[BaseEstimator, ...], dict]:
    kind = HistGradientBoostingClassifier if isinstance(v, Categorical) else HistGradientBoostingRegressor
    return (kind(learning_rate=0.05, min_samples_leaf=10, early_stopping=False, random_state=seed),), BOOSTING


def _pooled(part: Part, rows: Tensor) -> np.ndarray:
    """(n, voxels) float32 of these rows' scans, averaged to about VOXEL_MM."""
    image = part.schema.images[0]
    window = [max(1, round(VOXEL_MM / size)) for size in image.spacing]
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[len(image.shape)]
    chunks = [pool(part.voxels(own), window, ceil_mode=True).flatten(1) for own in rows.split(CHUNK)]
    return torch.cat(chunks).numpy()


def _cells(part: Part, names: Sequence[str]) -> np.ndarray:
    """(rows, names) float64: scores and codes, NaN where missing."""
    columns = [torch.where(known, values.double(), torch.nan) for values, known in map(part.target, names)]
    return torch.stack(columns, 1).numpy() if columns else np.zeros((len(part), 0))


def _measured(cohort: Cohort, volumes: Volumes | None) -> np.ndarray:
    """(rows, volumes) float64."""
    if volumes is None:
        return np.zeros((len(cohort), 0))
    table = volumes(cohort)
    if len(table) != len(cohort):
        raise MetavoxelError(f"{cohort.root}: {len(table)} rows of volumes for {len(cohort)} scans; measure them anew")
    return table.drop(columns=[name for name in IDENTIFIERS if name in table]).to_numpy(np.float64)
