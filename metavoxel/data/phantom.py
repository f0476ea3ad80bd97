"""Phantom cohorts: brains whose joint law with age, sex and diagnosis is known, hence also the exact posterior.

The law, top to bottom:

1. age ~ uniform(20, 90) years; sex ~ F or M, half each; diagnosis (optional): by age (see phantom_disease).
2. Five anatomical numbers: log(numbers) ~ N(mu(age, sex, diagnosis), D R D), D = diag(sd(age, sex)).
   With a diagnosis also a score, mmse: by diagnosis and hippocampus.
3. The image is rendered so that it shows these numbers exactly; what else differs between images (shape, pose,
   contrast, bias field, noise) is independent of age, sex and diagnosis.

So p(age, sex, diagnosis, mmse | numbers) is a sum over a grid of closed-form densities, and no model of the images beats
it.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from scipy.interpolate import PchipInterpolator

from metavoxel.data import phantom_disease as disease
from metavoxel.data.phantom_disease import DIAGNOSES, SCORE
from metavoxel.data.phantom_render import NUMBERS, render
from metavoxel.errors import MetavoxelError
from metavoxel.naming import level_columns

SEXES = ("F", "M")
AGES = (20.0, 90.0)
AGE_EDGES = np.linspace(*AGES, 281)  # years: the quadrature's cells
_CENTRES = (AGE_EDGES[:-1] + AGE_EDGES[1:]) / 2

# Means and sds of a population of half women, half men. 45-75 y are the decades 40-50, 50-60, 60-70, 70-87 of the 291
# subjects of shared/data/ixi_volumes.tsv (hippocampus: a quadratic fit through all; its decades are not monotone).
# 20, 32 and 90 y are NOT data: the trends continued, flatter in youth for ventricles and hippocampus.
# Brain includes the ventricles, as that file's segmentation (MUSE) has it.
_ANCHOR_AGES = (20.0, 32.0, 45.0, 55.0, 65.0, 75.0, 90.0)
_MEANS = {
    "ventricles_percent": (0.95, 1.10, 1.31, 1.44, 2.03, 2.65, 3.60),  # % of ICV
    "csf_percent": (10.1, 11.0, 11.9, 12.6, 14.4, 15.4, 17.4),  # 100 - brain_percent, % of ICV
    "grey_percent": (57.0, 55.8, 54.5, 53.6, 53.0, 52.1, 51.0),  # % of grey + white
    "hippocampus_percent": (0.557, 0.5565, 0.556, 0.555, 0.545, 0.525, 0.485),  # both sides, % of ICV
}
_SDS = {
    "ventricles_percent": (0.33, 0.40, 0.49, 0.60, 0.89, 1.22, 1.70),
    "csf_percent": (1.9,) * 7,
    "grey_percent": (1.4,) * 7,
    "hippocampus_percent": (0.045,) * 7,
}
_ICV = {"F": (1297.0, 111.0), "M": (1499.0, 121.0)}  # mean, sd in ml; the same at every age, as in IXI
# Men minus women, and the residual correlations, of the logs of (ICV, ventricles, CSF, grey, hippocampus): least
# squares on (1, age, age^2, sex) in the same file.
_SEX_EFFECT = np.array([np.nan, 0.146, 0.051, -0.010, -0.060])  # ICV's stands in _ICV
_CORRELATION = np.array(
    [
        [1.0, 0.15, 0.05, -0.22, -0.33],
        [0.15, 1.0, 0.07, -0.10, -0.16],
        [0.05, 0.07, 1.0, 0.0, -0.17],
        [-0.22, -0.10, 0.0, 1.0, 0.14],
        [-0.33, -0.16, -0.17, 0.14, 1.0],
    ]
)
_CHOLESKY = np.linalg.cholesky(_CORRELATION)


def _moments_to_log(mean: np.ndarray, sd: np.ndarray, sex_effect: float) -> tuple[np.ndarray, np.ndarray]:
    """Mid-sex log mean and within-sex log sd of the half-and-half mixture of two lognormals with this mean and sd."""
    between = math.log(math.cosh(sex_effect) / math.cosh(sex_effect / 2) ** 2)
    variance = np.log1p((sd / mean) ** 2) - between
    return np.log(mean) - variance / 2 - math.log(math.cosh(sex_effect / 2)), np.sqrt(variance)


def _curves() -> tuple[PchipInterpolator, PchipInterpolator]:
    """Monotone curves over age of the log means and log sds, (..., 4), of all numbers but the ICV."""
    logs = [
        _moments_to_log(np.array(_MEANS[name]), np.array(_SDS[name]), effect)
        for name, effect in zip(_MEANS, _SEX_EFFECT[1:], strict=True)
    ]
    mean, sd = (np.stack(part, axis=-1) for part in zip(*logs, strict=True))
    return PchipInterpolator(_ANCHOR_AGES, mean), PchipInterpolator(_ANCHOR_AGES, sd)


_LOG_MEAN, _LOG_SD = _curves()


def _law(age: np.ndarray, male: np.ndarray, diagnosis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd, (..., 5), of the logs of (ICV, ventricles, CSF, grey, hippocampus); `male`: 0 or 1."""
    age, male, diagnosis = np.broadcast_arrays(age, male, diagnosis)
    icv = np.array([_moments_to_log(np.array(mean), np.array(sd), 0.0) for mean, sd in _ICV.values()])[male]
    mean = np.concatenate([icv[..., :1], _LOG_MEAN(age) + (male[..., None] - 0.5) * _SEX_EFFECT[1:]], axis=-1)
    sd = np.concatenate([icv[..., 1:], _LOG_SD(age)], axis=-1)
    return mean + disease.EFFECT[diagnosis], sd


def subjects(n: int, seed: int = 0, diagnosis: bool = False) -> pd.DataFrame:
    """Draw `n` people from the law, without images.

    Columns: participant_id, age (years, two decimals), sex (F, M), only if asked for diagnosis (control, mci, dementia) and
    mmse (whole, 0 to 30), then NUMBERS: icv_ml; ventricles_percent, brain_percent, hippocampus_percent of the ICV;
    grey_percent of grey + white. The curves over age are monotone through points that are data at 45, 55, 65, 75 y and
    extrapolated elsewhere.
    Row i depends on (seed, i) only, not on `n`; without `diagnosis` everybody is a control.
    """
    if n < 1:
        raise MetavoxelError(f"phantom: n is {n}, but a cohort needs at least one subject; pass n >= 1")
    if seed < 0:
        raise MetavoxelError(f"phantom: seed is {seed}; pass 0 or a positive integer")
    rngs = [np.random.default_rng([seed, i]) for i in range(n)]
    uniform = np.array([rng.random(3) for rng in rngs])
    normal = np.array([rng.standard_normal(5) for rng in rngs])
    age = np.round(AGES[0] + (AGES[1] - AGES[0]) * uniform[:, 0], 2)
    male = (uniform[:, 1] < 0.5).astype(int)
    ill = disease.draw_diagnosis(age, uniform[:, 2]) * diagnosis
    mean, sd = _law(age, male, ill)
    residual = normal @ _CHOLESKY.T
    numbers = np.exp(mean + sd * residual)
    numbers[:, 2] = 100 - numbers[:, 2]
    width = max(4, len(str(n)))
    rows = pd.DataFrame({"participant_id": [f"sub-{i + 1:0{width}d}" for i in range(n)], "age": age})
    rows["sex"] = np.array(SEXES)[male]
    if diagnosis:
        rows["diagnosis"] = np.array(DIAGNOSES)[ill]
        rows[SCORE] = disease.draw_score(ill, residual[:, 4], np.array([rng.standard_normal() for rng in rngs]))
    return rows.assign(**dict(zip(NUMBERS, numbers.T, strict=True)))


def changed(rows: pd.DataFrame, **facts: Any) -> pd.DataFrame:
    """The same people under other facts (age=80, sex="M"): the true counterfactual.

    Each keeps its standing within its age, sex and diagnosis: the residuals of the hidden numbers (and of the score) in
    units of their spread.
    `render` of the result with the same seed differs from that of `rows` by what the facts change alone.
    """
    _check(rows, ())
    told = rows.assign(**facts)
    _check(told, [name for name in facts if name in told])
    if SCORE in facts:
        raise MetavoxelError(f"phantom.changed: {SCORE} follows from the diagnosis; change that")
    numbers = rows[list(NUMBERS)].to_numpy(float, copy=True)
    numbers[:, 2] = 100 - numbers[:, 2]
    causes, new_causes = _causes(rows), _causes(told)
    (mean, sd), (new_mean, new_sd) = _law(*causes), _law(*new_causes)
    if SCORE in rows:
        told[SCORE] = disease.score_under(rows[SCORE].to_numpy(), causes[2], new_causes[2])
    numbers = np.exp(new_mean + new_sd * (np.log(numbers) - mean) / sd)
    numbers[:, 2] = 100 - numbers[:, 2]
    return told.assign(**dict(zip(NUMBERS, numbers.T, strict=True)))


def _causes(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Age in years; male, 0 or 1; which of DIAGNOSES."""
    ill = rows["diagnosis"].map(DIAGNOSES.index) if "diagnosis" in rows else pd.Series(0, index=rows.index)
    return rows["age"].to_numpy(float), (rows["sex"] == "M").to_numpy(int), ill.to_numpy(int)


def posterior(rows: pd.DataFrame, given: Sequence[str] = (), anatomy: bool = True) -> pd.DataFrame:
    """The exact p(age, sex[, diagnosis, mmse] | anatomy, given) of each row, in the columns that `predict` writes.

    `rows`: participant_id, NUMBERS and the columns named in `given` (any of age, sex, diagnosis, mmse), which are left out
    of the answer. anatomy: False: as if the NUMBERS were not known. Diagnosis and mmse belong to the law if and only if
    `rows` has the column diagnosis. Quadrature over age by midpoints of cells of a quarter of a year, quantiles by linear
    interpolation within a cell; sums over sex, diagnosis and scores. A quantile of the score is the least whole score that
    is not exceeded with that probability.
    """
    _check(rows, given)
    table = pd.concat([_summary(rows.iloc[i : i + 256], given, anatomy) for i in range(0, len(rows), 256)])
    table.insert(0, "participant_id", rows["participant_id"])
    return table


def _check(rows: pd.DataFrame, given: Sequence[str]) -> None:
    levels = _levels(rows)
    known_facts = ["age", *levels, *([SCORE] if "diagnosis" in levels else [])]
    for name in given:
        if name not in known_facts:
            known = ", ".join(known_facts)
            raise MetavoxelError(f"phantom.posterior: given={name!r} is not in this law; choose from {known}")
    if missing := [name for name in ("participant_id", *NUMBERS, *given) if name not in rows]:
        raise MetavoxelError(f"phantom.posterior: no column {', '.join(missing)}; pass rows made by phantom.subjects")
    if len(rows) == 0 or rows[[*NUMBERS, *given]].isna().any(axis=None):
        raise MetavoxelError("phantom.posterior: no rows, or cells without a value; drop the incomplete rows first")
    if SCORE in given and not rows[SCORE].isin(range(disease.BEST + 1)).all():
        raise MetavoxelError(f"phantom.posterior: {SCORE} has cells that are not whole scores from 0 to {disease.BEST}")
    for name in set(given) & set(levels):
        if unknown := sorted(set(rows[name]) - set(levels[name])):
            known = ", ".join(levels[name])
            raise MetavoxelError(f"phantom.posterior: {name} has {unknown[0]!r}; its levels are {known}")


def _levels(rows: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """The classes of the law that `rows` belong to, in the order of the axes of `posterior_mass`."""
    return {"sex": SEXES, "diagnosis": DIAGNOSES} if "diagnosis" in rows else {"sex": SEXES}


def posterior_mass(rows: pd.DataFrame, given: Sequence[str] = ()) -> np.ndarray:
    """p(age in cell, sex, diagnosis | anatomy, given), (n, cells, 2, 1 or 3), over the cells between AGE_EDGES.

    Memory: 0.2 MB a row. With age given there is one cell, that age.
    """
    return _mass_and_hippocampus(rows, given)[0]


def _mass_and_hippocampus(
    rows: pd.DataFrame, given: Sequence[str], anatomy: bool = True
) -> tuple[np.ndarray, np.ndarray | None]:
    """`posterior_mass`, and in each of its cells the standing of the hippocampi there, in sds; None without anatomy."""
    levels = _levels(rows)
    age = rows["age"].to_numpy(float)[:, None] if "age" in given else _CENTRES[None]
    age = age[:, :, None, None]
    illnesses = np.arange(len(levels.get("diagnosis", ("control",))))
    hippocampus, log_mass = None, np.zeros((len(rows), age.shape[1], 2, len(illnesses)))
    if anatomy:
        numbers = rows[list(NUMBERS)].to_numpy(float, copy=True)
        numbers[:, 2] = 100 - numbers[:, 2]
        mean, sd = _law(age, np.arange(2)[:, None], illnesses)
        standing = (np.log(numbers)[:, None, None, None] - mean) / sd
        white = standing @ np.linalg.inv(_CHOLESKY).T
        hippocampus, log_mass = standing[..., 4], -0.5 * np.square(white).sum(-1) - np.log(sd).sum(-1)
    if "diagnosis" in levels:
        log_mass = log_mass + np.log(disease.diagnosis_probabilities(age[..., 0]))
    if SCORE in given:
        log_mass = log_mass + _log_score(rows[SCORE].to_numpy(int), hippocampus)
    for axis, (name, names) in enumerate(levels.items()):
        if name in given:
            known = rows[name].to_numpy()[:, None] == np.array(names)
            log_mass = np.where(np.expand_dims(known, (1, 3 - axis)), log_mass, -np.inf)
    mass = np.exp(log_mass - log_mass.max((1, 2, 3), keepdims=True))
    return mass / mass.sum((1, 2, 3), keepdims=True), hippocampus


def _log_score(scores: np.ndarray, hippocampus: np.ndarray | None) -> np.ndarray:
    """log p(each row's score | diagnosis, hippocampus), (n, cells, 2, 3); (n, 1, 1, 3) without it."""
    pairs = zip(scores, [None] * len(scores) if hippocampus is None else hippocampus, strict=True)
    p = [disease.score_cdf(score, h) - disease.score_cdf(score - 1, h) for score, h in pairs]
    return np.log(np.maximum(np.stack(p), 1e-300))  # a score that a diagnosis as good as excludes


def _summary(rows: pd.DataFrame, given: Sequence[str], anatomy: bool) -> pd.DataFrame:
    mass, hippocampus = _mass_and_hippocampus(rows, given, anatomy)
    answer: dict[str, np.ndarray] = {}
    if "age" not in given:
        p = mass.sum((2, 3))
        answer["age_mean"] = p @ _CENTRES
        within = np.diff(AGE_EDGES)[0] ** 2 / 12
        answer["age_sd"] = np.sqrt(p @ _CENTRES**2 - answer["age_mean"] ** 2 + within)
        cumulative = np.pad(p.cumsum(1), ((0, 0), (1, 0)))
        for q in (5, 50, 95):
            answer[f"age_q{q:02d}"] = np.array([np.interp(q / 100, row, AGE_EDGES) for row in cumulative])
    for axis, (name, levels) in enumerate(_levels(rows).items()):
        if name not in given:
            p = mass.sum((1, 3 - axis))
            answer[name] = np.array(levels)[p.argmax(1)]
            answer |= dict(zip(level_columns(name, levels), p.T))
    if "diagnosis" in rows and SCORE not in given:
        scores = np.arange(disease.BEST + 1)
        cdfs = (disease.score_cdf(int(score), hippocampus) for score in scores)
        below = np.stack([(mass * cdf).sum((1, 2, 3)) for cdf in cdfs], axis=1)
        p = np.diff(below, prepend=0.0)
        answer[f"{SCORE}_mean"] = p @ scores
        answer[f"{SCORE}_sd"] = np.sqrt(np.maximum(p @ scores**2 - answer[f"{SCORE}_mean"] ** 2, 0))
        # a rounding error below 1 must not make the best score unreachable
        answer |= {f"{SCORE}_q{q:02d}": (below < q / 100 - 1e-12).sum(1) for q in (5, 50, 95)}
    return pd.DataFrame(answer, index=rows.index)


def write_cohort(
    out: Path,
    n: int,
    *,
    seed: int = 0,
    diagnosis: bool = False,
    shape: tuple[int, int, int] = (32, 40, 32),
    spacing: float = 5.0,
    missing: float = 0.0,
    device: str | torch.device | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Path:
    """Write a BIDS folder of `n` phantom scans on a grid of `shape` voxels of `spacing` mm, and return its path.

    `missing`: share of the cells of facts written `n/a`, at random; mmse has more gaps, by age: half of the young were not
    tested. `derivatives/phantom/posterior.tsv`
    holds the exact posterior of each subject given its anatomy (as `posterior`) and the hidden NUMBERS. `on_progress`
    gets the number of scans written so far. The folder appears when it is complete.
    """
    out = Path(out).absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise MetavoxelError(f"phantom: {out} exists and is not an empty folder; choose another or remove it")
    if not 0 <= missing < 1:
        raise MetavoxelError(f"phantom: missing is {missing}; pass a share of cells from 0 to below 1")
    rows = subjects(n, seed, diagnosis)
    scans = render(rows, seed=seed, shape=shape, spacing=spacing, device=device)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            bids = Path(scratch) / out.name
            _write_tables(bids, rows, seed, missing)
            _write_scans(bids, rows["participant_id"], scans, spacing, on_progress)
            bids.replace(out)
    except OSError as error:
        raise MetavoxelError(f"phantom: cannot write {out}: {error.strerror}; choose a folder with room") from error
    return out


def _write_scans(
    bids: Path,
    participants: Sequence[str] | pd.Series,
    scans: Iterator[torch.Tensor],
    spacing: float,
    on_progress: Callable[[int], None] | None,
) -> None:
    names = iter(participants)
    done = 0
    for batch in scans:
        # The world's origin is the centre of the grid, where the brain is.
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = -spacing * (np.array(batch.shape[2:]) - 1) / 2
        for voxels in batch[:, 0].round().short().cpu().numpy():
            name = next(names)
            image = nib.Nifti1Image(voxels, affine)
            image.header.set_xyzt_units("mm", "sec")
            folder = bids / name / "anat"
            folder.mkdir(parents=True)
            nib.save(image, folder / f"{name}_T1w.nii.gz")
        done += len(batch)
        if on_progress is not None:
            on_progress(done)


def _write_tables(bids: Path, rows: pd.DataFrame, seed: int, missing: float) -> None:
    derivative = bids / "derivatives" / "phantom"
    derivative.mkdir(parents=True)
    facts = rows.drop(columns=["participant_id", *NUMBERS]).astype(object)
    hidden = np.random.default_rng([seed, 0, 2]).random(facts.shape) < missing
    facts = facts.mask(hidden)
    if SCORE in facts:
        untested = disease.untested_probability(rows["age"].to_numpy())
        facts[SCORE] = facts[SCORE].mask(np.random.default_rng([seed, 0, 3]).random(len(rows)) < untested)
    facts.insert(0, "participant_id", rows["participant_id"])
    facts.to_csv(bids / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    table = posterior(rows).merge(rows[["participant_id", *NUMBERS]], on="participant_id")
    table.to_csv(derivative / "posterior.tsv", sep="\t", index=False, float_format="%.6g")
    sidecar: dict[str, object] = {
        "age": {"Description": "Age of the phantom", "Units": "years"},
        "sex": {"Description": "Sex of the phantom", "Levels": {"F": "female", "M": "male"}},
    }
    if "diagnosis" in rows:
        sidecar["diagnosis"] = {"Description": "Diagnosis of the phantom", "Levels": disease.MEANINGS}
        sidecar[SCORE] = {"Description": disease.SCORE_MEANING, "Units": "points"}
    numbers = {
        "icv_ml": {"Description": "Intracranial volume", "Units": "ml"},
        "ventricles_percent": {"Description": "Lateral ventricles", "Units": "% of the intracranial volume"},
        "brain_percent": {"Description": "Brain with its ventricles", "Units": "% of the intracranial volume"},
        "grey_percent": {"Description": "Grey matter, the hippocampi included", "Units": "% of grey and white matter"},
        "hippocampus_percent": {"Description": "Both hippocampi", "Units": "% of the intracranial volume"},
    }
    kind = {"BIDSVersion": "1.10.0", "GeneratedBy": [{"Name": "metavoxel phantom"}]}
    for path, content in {
        bids / "participants.json": sidecar,
        bids / "dataset_description.json": {"Name": "metavoxel phantom", "DatasetType": "raw", **kind},
        derivative / "posterior.json": {"age_mean": {"Units": "years"}, **numbers},
        derivative / "dataset_description.json": {
            "Name": "Exact posterior and hidden anatomy",
            "DatasetType": "derivative",
            **kind,
        },
    }.items():
        path.write_text(json.dumps(content, indent=2) + "\n")
