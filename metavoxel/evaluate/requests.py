"""Whether drawn scans match what was asked of them: judged by predictors trained on real scans, by curves of volumes over
age, and by what a predictor trained on drawn scans knows of real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import wasserstein_distance
from sklearn.decomposition import IncrementalPCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches

from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.figures import CONSTANT
from metavoxel.evaluate.scores import SD_95, bootstrap, number_scores

Sample = tuple[np.ndarray, pd.DataFrame]
"""Scans (n, *shape) and the facts beside them, n rows."""
Predictor = Callable[[np.ndarray], pd.DataFrame]
"""Scans (n, *shape) -> what they say of each fact, n rows."""
Fit = Callable[[Sample, Sequence[str]], Predictor]
"""Scans beside their facts, with gaps, and the names of those to read -> a predictor of them."""



@dataclass(frozen=True)
class Trial:
    """Of one model: what it drew, real scans of people whom it has not learnt from, and of those it has; a judge that was
    fitted to the latter and has seen none of the others."""

    judge: Predictor
    drawn: Sample
    test: Sample
    training: Sample


COMPONENTS, BATCH = 100, 256
SHUFFLES = 50
LEAST_KNOWN, LEAST_APART = 2, 10
PERSON = "participant_id"


def unreadable(facts: Mapping[str, pd.DataFrame], names: Sequence[str]) -> dict[str, str]:
    """Which of the facts cannot be learnt or judged, and why: name -> reason. facts: of each sample, by its people."""
    reasons = {}
    for name in names:
        for whose, table in facts.items():
            known = table[name].dropna()
            if len(known) < LEAST_KNOWN:
                reasons[name] = f"known of {len(known)} of the {whose}, at least {LEAST_KNOWN} are needed"
            elif not pd.api.types.is_numeric_dtype(known) and (known == known.iloc[0]).all():
                reasons[name] = f"all of the {whose} are {known.iloc[0]}"
    return reasons


def linear_fit(sample: Sample, names: Sequence[str]) -> Predictor:
    """Ridge (numbers) and logistic regression (levels) on the scans' principal components, read batch by batch. The
    components are those of all scans and found once, since they are nearly all of the work."""
    scans = sample[0]
    known = {name: _known(sample[1], len(sample[0]), name) for name in names}
    components = min(COMPONENTS, len(scans) - 1)

    def batches(voxels: np.ndarray) -> list[np.ndarray]:
        parts = gen_batches(len(voxels), BATCH, min_batch_size=min(components, len(voxels)))
        return [np.asarray(voxels[part], dtype=np.float32).reshape(part.stop - part.start, -1) for part in parts]

    pca = IncrementalPCA(components)
    for part in batches(scans):
        pca.partial_fit(part)

    def reduced(voxels: np.ndarray) -> np.ndarray:
        return np.concatenate([pca.transform(part) for part in batches(voxels)])

    inputs, fitted = reduced(scans), {}
    for name, (rows, truth) in known.items():
        numeric = np.issubdtype(np.asarray(truth).dtype, np.number)
        model = RidgeCV(np.logspace(-2, 4, 13)) if numeric else LogisticRegression(C=0.1, max_iter=2000)
        fitted[name] = make_pipeline(StandardScaler(), model).fit(inputs[rows], truth)

    def predict(voxels: np.ndarray) -> pd.DataFrame:
        said = reduced(voxels)
        return pd.DataFrame({name: model.predict(said) for name, model in fitted.items()})

    return predict


def agreement(truth: np.ndarray, said: np.ndarray) -> dict[str, float]:
    """Of a number: mae, r; of a class: accuracy (the recognised share), balanced_accuracy. NaN where r has no meaning."""
    if np.issubdtype(truth.dtype, np.number):
        scores = number_scores(truth.astype(float), np.asarray(said, dtype=float))
        return {name: scores[name] for name in ("mae", "r")}
    hits, (levels, found) = truth == said, np.unique(truth, return_inverse=True)
    shares = np.bincount(found, hits, len(levels)) / np.bincount(found)
    return {"accuracy": float(hits.mean()), "balanced_accuracy": float(shares.mean())}


def match(trials: Sequence[Trial], names: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """How well each fact is read off the scans drawn for it, beside real scans of people with that fact, which set the bar;
    of all trials together.

    Rows variable, metric, of (drawn, real), value, low, high: metrics as `agreement` names them, with 95 % intervals over
    people (column participant_id of the facts; without it, each scan is of another person).
    """
    asked = {"drawn": [(t.judge, t.drawn) for t in trials], "real": [(t.judge, t.test) for t in trials]}
    return _rows(asked, "of", names, seed)


def train_on_drawn(trials: Sequence[Trial], names: Sequence[str], seed: int = 0, fit: Fit = linear_fit) -> pd.DataFrame:
    """What predictors of each variable know of real test scans: the judge, others that `fit` makes of drawn scans and of
    these and the training people's, and a constant. Rows variable, metric, training (real, drawn, both, constant), value,
    low, high."""
    judges: dict[str, list[tuple[Predictor, Sample]]] = {"real": [], "drawn": [], "both": [], CONSTANT: []}
    for t in trials:
        both = (np.concatenate([part[0] for part in (t.training, t.drawn)]),
                pd.concat([part[1] for part in (t.training, t.drawn)], ignore_index=True))  # fmt: skip
        made = t.judge, fit(t.drawn, names), fit(both, names), constant(t.training, names)
        for own, judge in zip(judges.values(), made, strict=True):
            own.append((judge, t.test))
    return _rows(judges, "training", names, seed)


def constant(sample: Sample, names: Sequence[str]) -> Predictor:
    """Says the same of every scan: the sample's mean, or its most frequent level."""
    known = {name: pd.Series(_known(sample[1], len(sample[0]), name)[1]) for name in names}
    told = {name: values.mean() if pd.api.types.is_numeric_dtype(values) else values.mode().iloc[0]
            for name, values in known.items()}  # fmt: skip
    return lambda scans: pd.DataFrame(told, index=range(len(scans)))


def _rows(
    asked: Mapping[str, Sequence[tuple[Predictor, Sample]]], key: str, names: Sequence[str], seed: int
) -> pd.DataFrame:
    """asked: who judges what, by its name in the column `key`; several are taken together."""
    rows = []
    for of, judged in asked.items():
        said = pd.concat([judge(scans) for judge, (scans, _) in judged], ignore_index=True)
        facts = pd.concat([facts for _, (_, facts) in judged], ignore_index=True)
        for name in names:
            known, truth = _known(facts, len(said), name)
            told = said[name].to_numpy()[known]
            if not np.issubdtype(truth.dtype, np.number):  # as fixed-width words, which are quick to compare
                truth, told = truth.astype(str), told.astype(str)
            people = (facts[PERSON].to_numpy() if PERSON in facts else np.arange(len(facts)))[known]
            found = bootstrap(partial(_agreement_of, truth, told), people, seed=seed)
            rows += [{"variable": name, "metric": metric, key: of, **each._asdict()} for metric, each in found.items()]
    return pd.DataFrame(rows)


def _agreement_of(truth: np.ndarray, told: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    return agreement(truth[rows], told[rows])


def _known(facts: pd.DataFrame, scans: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows where a fact beside so many scans is known, and its values there."""
    if name not in facts:
        raise MetavoxelError(f"there is no column {name!r} beside the scans; there are {', '.join(map(str, facts))}")
    if scans != len(facts):
        raise MetavoxelError(f"{scans} scans with {len(facts)} rows of facts; give a row a scan")
    rows = np.flatnonzero(facts[name].notna())
    if len(rows) < LEAST_KNOWN:
        raise MetavoxelError(f"{name}: known of {len(rows)} scans; at least {LEAST_KNOWN} are needed")
    return rows, facts[name].to_numpy()[rows]


def compare_curves(
    drawn: pd.DataFrame, real: pd.DataFrame, volumes: Sequence[str], group: str | None = "sex", size: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Volumes over age, of drawn scans against real ones: a row a volume.

    drawn, real: columns age, `group`, `size` and `volumes` (positive; rows with gaps are left out). The line is least
    squares of log volume on age and group, and where a size of heads is named on its log: heads differ more from each other
    than brains do with age. slope_drawn, slope_real, slope_ratio, their standard errors (se_...); ratio_low, ratio_high:
    the 95 % interval of the ratio (Fieller 1954), endless where the real slope may be 0; spread_ratio: of the sds about the
    line; for each level of `group`, wasserstein_LEVEL: distance between the volumes in sds of the real ones,
    and chance_LEVEL: its mean when drawn and real are shuffled, the floor.
    """
    wanted = ["age", *([group] if group else []), *([size] if size else []), *volumes]
    for which, table in (("drawn", drawn), ("real", real)):
        if missing := [name for name in wanted if name not in table]:
            fix = f"pass {', '.join(wanted)}"
            raise MetavoxelError(f"compare_curves: the {which} scans have no column {missing[0]!r}; {fix}")
    rng, rows = np.random.default_rng(seed), []
    levels = sorted(set(pd.concat([drawn[group], real[group]]).dropna())) if group else []
    for name in volumes:
        tables = [table[(table[name] > 0) & table[wanted].notna().all(axis=1)] for table in (drawn, real)]
        (slope, error, spread), (true_slope, true_error, true_spread) = (
            _line(table, name, group, levels, size) for table in tables
        )
        ratio = slope / true_slope
        low, high = _fieller(slope, error, true_slope, true_error)
        row = {
            "volume": name, "n_drawn": len(tables[0]), "n_real": len(tables[1]), "slope_drawn": slope, "se_drawn": error,
            "slope_real": true_slope, "se_real": true_error, "slope_ratio": ratio,
            "ratio_low": low, "ratio_high": high,
            "se_ratio": float(np.hypot(error, ratio * true_error) / abs(true_slope)), "spread_ratio": spread / true_spread,
        }  # fmt: skip
        for level in levels:
            made, found = (t.loc[t[group] == level, name].to_numpy(float) for t in tables)
            row |= dict(zip((f"wasserstein_{level}", f"chance_{level}"), _distance(made, found, rng), strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def distances(
    drawn: pd.DataFrame, real: pd.DataFrame, volumes: Sequence[str], column: str, levels: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """Wasserstein distances as in `compare_curves` within each of these levels of a column: rows volume, level,
    wasserstein, chance; none of fewer than LEAST_APART drawn or real scans."""
    rng, rows = np.random.default_rng(seed), []
    for level in levels:
        parts = [table[table[column] == level] for table in (drawn, real)]
        for name in volumes:
            made, found = (part.loc[part[name] > 0, name].to_numpy(float) for part in parts)
            if min(len(made), len(found)) >= LEAST_APART:
                distance, chance = _distance(made, found, rng)
                rows.append({"volume": name, "level": level, "wasserstein": distance, "chance": chance})
    return pd.DataFrame(rows, columns=["volume", "level", "wasserstein", "chance"])


def _fieller(over: float, over_error: float, under: float, under_error: float) -> tuple[float, float]:
    """Ends of the 95 % interval of a ratio of independent estimates: all r for which over - r under may be 0. One of plus
    and minus two standard errors is too narrow, and lies wrong, where `under` is little more than its error."""
    curvature = under**2 - (SD_95 * under_error) ** 2
    if curvature <= 0:
        return -np.inf, np.inf
    middle = over * under / curvature
    half = np.sqrt(max(middle**2 - (over**2 - (SD_95 * over_error) ** 2) / curvature, 0.0))
    return float(middle - half), float(middle + half)


def _line(
    table: pd.DataFrame, name: str, group: str | None, levels: Sequence[str], size: str | None
) -> tuple[float, float, float]:
    """Slope of the log a year, its standard error, and the sd about the line."""
    inside = [(table[group] == level).to_numpy(float) for level in levels] if group else [np.ones(len(table))]
    columns = [np.log(table[size].to_numpy(float))] if size else []
    columns += [column for column in inside if column.any()]
    design = np.stack([table["age"].to_numpy(float), *columns], axis=1)
    free = len(table) - design.shape[1]
    if free < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        raise MetavoxelError(f"compare_curves: {len(table)} scans with a {name} are too few, or of one age, for a line")
    logs = np.log(table[name].to_numpy(float))
    weights = np.linalg.lstsq(design, logs, rcond=None)[0]
    spread = float(np.sqrt(np.square(logs - design @ weights).sum() / free))
    return float(weights[0]), spread * float(np.sqrt(np.linalg.inv(design.T @ design)[0, 0])), spread


def _distance(drawn: np.ndarray, real: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Wasserstein distance in sds of the real values, and its mean over shuffles of the two; NaN of too few."""
    if len(drawn) < 2 or len(real) < 2:
        return float("nan"), float("nan")
    unit, both = real.std(ddof=1), np.concatenate([drawn, real])
    shuffled = (rng.permutation(both) for _ in range(SHUFFLES))
    chance = np.mean([wasserstein_distance(mixed[: len(drawn)], mixed[len(drawn) :]) for mixed in shuffled])
    return float(wasserstein_distance(drawn, real) / unit), float(chance / unit)
