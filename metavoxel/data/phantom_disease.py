"""What dementia does in phantoms: how probable it is at an age, what it takes from the anatomy, and a score that shows it.

Sizes are chosen so that the anatomy tells dementia, but not surely: of two people alike in age and sex, one healthy and one
with dementia, the best guess is right in four of five cases. The hippocampus loses less than is reported of Alzheimer's
disease; most of the rest of the loss is spread over ventricles, sulci and grey matter, as voxels of 5 mm show it.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

DIAGNOSES = ("control", "mci", "dementia")
MEANINGS = {
    "control": "as in healthy people",
    "mci": "mild cognitive impairment: half of the changes of dementia",
    "dementia": "smaller hippocampi, larger ventricles and sulci, less grey matter",
}
EFFECT = np.array([[0.0], [0.5], [1.0]]) * np.log([1.0, 1.40, 1.08, 0.98, 0.90])
"""(3, 5): shift of the log of (ICV, ventricles, CSF, grey, hippocampus) by each diagnosis."""

SCORE, BEST = "mmse", 30
SCORE_MEANING = "Score like the Mini-Mental State Examination's, 0 to 30, 30 is best"
_SCORE_MEAN, _SCORE_SD = np.array([29.2, 27.0, 22.0]), np.array([1.2, 2.0, 4.0])  # by diagnosis, before it is rounded
_WITH_HIPPOCAMPUS = 0.5  # correlation with the hippocampi's standing among people of the same age, sex and diagnosis


def diagnosis_probabilities(age: np.ndarray) -> np.ndarray:
    """(..., 3), by DIAGNOSES, at ages (...) in years, as in a memory clinic: dementia 1, 7, 19, 42, 69 %, and either
    impairment 4, 29, 56, 79, 92 %, at 40, 60, 70, 80, 90."""
    dementia, impaired = (1 / (1 + np.exp(-(np.asarray(age) - middle) / 9.0)) for middle in (83.0, 68.0))
    return np.stack([1 - impaired, impaired - dementia, dementia], axis=-1)


def draw_diagnosis(age: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Index into DIAGNOSES, (n,), from draws (n,) of a uniform law."""
    worse = diagnosis_probabilities(age)[:, ::-1].cumsum(1)  # p(dementia), p(mci or dementia), 1
    return (uniform < worse[:, 0]).astype(int) + (uniform < worse[:, 1])


def draw_score(diagnosis: np.ndarray, hippocampus: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Whole scores (n,), from draws (n,) of a standard normal law; hippocampus: standing, in sds of its log."""
    shared = _WITH_HIPPOCAMPUS * hippocampus + np.sqrt(1 - _WITH_HIPPOCAMPUS**2) * normal
    return _whole(_SCORE_MEAN[diagnosis] + _SCORE_SD[diagnosis] * shared)


def _whole(score: np.ndarray) -> np.ndarray:
    """A test has no score beyond its best and worst: healthy people reach its ceiling."""
    return np.clip(np.round(score), 0, BEST).astype(int)


def score_cdf(score: int, hippocampus: np.ndarray | None) -> np.ndarray:
    """p(score or less | diagnosis, hippocampus), for standings (..., 3), the last axis by DIAGNOSES. None: not known, which
    gives (1, 1, 3)."""
    tied, known = (0.0, np.zeros((1, 1, 3))) if hippocampus is None else (_WITH_HIPPOCAMPUS, hippocampus)
    shape = np.broadcast_shapes(known.shape, (3,))
    if score >= BEST:
        return np.ones(shape)
    if score < 0:
        return np.zeros(shape)
    standing = (score + 0.5 - _SCORE_MEAN) / _SCORE_SD
    return ndtr((standing - tied * known) / np.sqrt(1 - tied**2))


def score_under(score: np.ndarray, diagnosis: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The scores (n,) of the same people with the `other` diagnosis (n,), each as far from its mean in sds as now."""
    standing = (score - _SCORE_MEAN[diagnosis]) / _SCORE_SD[diagnosis]
    return np.where(other == diagnosis, score, _whole(_SCORE_MEAN[other] + _SCORE_SD[other] * standing))


def untested_probability(age: np.ndarray) -> np.ndarray:
    """Share of people without a score: half of the young, a tenth of the old; it depends on nothing but age."""
    return 0.5 - 0.4 / (1 + np.exp(-(np.asarray(age) - 50.0) / 5.0))
