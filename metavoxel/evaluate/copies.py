"""Whether drawn scans are copies of people in the training set, and whether a model tells who was in it.

Everything is measured against people held out from training, who are as far from a generator that only learnt the law
as the training people are. Rows are features or voxels (scans, ...), compared by Euclidean distance, a part at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import pairwise_distances_chunked

from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.scores import auc, persons
from metavoxel.evaluate.two_sample import comparable

PERMUTATIONS = 2000
STRANGERS_QUANTILE = 0.01
REPEATS_QUANTILE = 0.5
FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class Threshold:
    """Below this distance a generated scan is a near copy; `basis` says in words what it was taken from."""

    distance: float
    basis: str


@dataclass(frozen=True)
class Audit:
    """What was found in the generated scans; of each share, `_floor` is that of held-out people's scans in their place.

    distance_to_training, distance_to_held_out: medians to the nearest of as many of both; ratio (median) and ratio_q05: of
    the two for each scan, 1 in the middle where nothing is copied.
    nearer_training: share whose nearest scan is a training one, what is _expected if training made no difference, and
    the _p of so much or more.
    authenticity: share farther from the nearest training scan than that one is from another person's (Alaa et al. 2022).
    membership_auc, membership_found: `membership` by the distance to the nearest generated scan.
    near_copies: share below the threshold. near: each of them, nearest first: `made` and `training` (rows), `distance`.
    held_out_near: rows of the held-out scans below it.
    """

    figures: dict[str, float]
    threshold: Threshold
    near: pd.DataFrame
    held_out_near: np.ndarray


def audit(
    made: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    train_people: ArrayLike | None = None,
    held_people: ArrayLike | None = None,
    seed: int = 0,
) -> Audit:
    """made (n, ...), train (m, ...), held_out (k, ...): features or voxels; people: whose each scan is (all differ).

    Raises MetavoxelError if somebody is in both sets, or one person's scans are all there is to train on.
    """
    made, train, held_out = comparable(made, train, held_out)
    person = _numbered({"training": (train, train_people), "held-out": (held_out, held_people)})
    of_train, of_held = person[: len(train)], person[len(train) :]
    if of_train.max() == 0:
        raise MetavoxelError("all training scans are of one person; copies cannot be told from people who look alike")
    to_train, which = nearest(made, train)
    to_held, which_held = nearest(made, held_out)
    among, _ = nearest(train, train, of_train, of_train)
    held_to_train, held_which = nearest(held_out, train)
    limit = threshold(train, of_train)
    copied = np.flatnonzero(to_train < limit.distance)
    # anew, since |x|^2 + |y|^2 - 2 x.y leaves a little where nothing is
    distance = np.linalg.norm(made[copied] - train[which[copied]], axis=1)
    near = pd.DataFrame({"made": copied, "training": which[copied], "distance": distance})
    found = membership(nearest(train, made)[0], nearest(held_out, made)[0])
    figures = {
        **_ratio(made, train, held_out, seed),
        **_nearer(to_train < to_held, which, which_held, of_train, of_held, seed),
        "authenticity": float((to_train > among[which]).mean()),
        "authenticity_floor": float((held_to_train > among[held_which]).mean()),
        **{f"membership_{name}": value for name, value in found.items()},
        "near_copies": len(copied) / len(made),
        "near_copies_floor": float((held_to_train < limit.distance).mean()),
    }
    near = near.sort_values("distance", kind="stable", ignore_index=True)
    return Audit(figures, limit, near, np.flatnonzero(held_to_train < limit.distance))


@dataclass(frozen=True)
class Fold:
    """Row numbers: of the scans that a fold's model drew, of the real ones that it learnt from, of those held out."""

    made: np.ndarray
    training: np.ndarray
    held_out: np.ndarray


def audit_folds(
    seen: Sequence[tuple[np.ndarray, np.ndarray]], people: np.ndarray, folds: Sequence[Fold], seed: int = 0
) -> Audit:
    """`audit` of each fold's model beside its own people, as one: figures are means over drawn scans, p is the smallest,
    corrected for as many folds, and rows are those of all drawn and real scans.

    seen: of each fold, which may have features of its own, the scans that it drew (k, d) and all real ones (m, d); people
    (m,): whose the latter are.
    """
    parts = [audit(made, real[f.training], real[f.held_out], people[f.training], people[f.held_out], seed)
             for (made, real), f in zip(seen, folds, strict=True)]  # fmt: skip
    drawn = [len(fold.made) for fold in folds]
    figures = {key: float(np.average([part.figures[key] for part in parts], weights=drawn)) for key in parts[0].figures}
    figures["nearer_training_p"] = min(1.0, len(folds) * min(part.figures["nearer_training_p"] for part in parts))
    near = pd.concat([part.near.assign(made=fold.made[part.near["made"]], training=fold.training[part.near["training"]])
                      for part, fold in zip(parts, folds)])  # fmt: skip
    limit = Threshold(float(np.average([part.threshold.distance for part in parts], weights=drawn)),
                      f"{parts[0].threshold.basis} in the first fold, and likewise in the others")  # fmt: skip
    held_out_near = np.concatenate([fold.held_out[part.held_out_near] for part, fold in zip(parts, folds)])
    return Audit(figures, limit, near.sort_values("distance", kind="stable", ignore_index=True), held_out_near)


def nearest(
    x: np.ndarray, others: np.ndarray, x_people: np.ndarray | None = None, others_people: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of x (n, d): the distance (n,) to its nearest row of others (m, d), and which that is (n,).

    With people (n,), (m,): the nearest of another person; infinite if there is none.
    """
    parts, first = [], 0
    for distances in pairwise_distances_chunked(x, others):
        if x_people is not None and others_people is not None:
            distances[x_people[first : first + len(distances), None] == others_people] = np.inf
        which = distances.argmin(1)
        parts.append((distances[np.arange(len(which)), which], which))
        first += len(distances)
    found, index = zip(*parts)
    return np.concatenate(found), np.concatenate(index)


def threshold(train: np.ndarray, people: np.ndarray) -> Threshold:
    """How near is a copy: nearer than half of the pairs of one person's scans, where people have several; else nearer
    than 99 % of training scans are to their nearest stranger (compare Dar et al. 2023). train (m, d), people (m,)."""
    repeats, first = [], 0
    person = persons(people)
    if np.bincount(person).max() > 1:
        for distances in pairwise_distances_chunked(train, train):
            rows = np.arange(first, first + len(distances))
            twice = (person[rows, None] == person) & (rows[:, None] < np.arange(len(train)))
            repeats.append(distances[twice])
            first += len(distances)
        own = np.concatenate(repeats)
        return Threshold(float(np.quantile(own, REPEATS_QUANTILE)), f"the median of {len(own)} pairs of one person's scans")
    strangers, _ = nearest(train, train, people, people)
    basis = f"the 1 % quantile of {len(strangers)} training scans' distance to the nearest other person's"
    return Threshold(float(np.quantile(strangers, STRANGERS_QUANTILE)), basis)


def membership(members: np.ndarray, others: np.ndarray) -> dict[str, float]:
    """Can one tell from a score who was in the training set (membership inference, Shokri et al. 2017)? The score is low
    for members: the model's loss on a person's scan, or its distance to the nearest generated one (Chen et al. 2020).

    auc: the chance that a member (n,) scores below another (m,); .5 tells nothing. found: share of members found while
    at most 1 % of the others are accused (Carlini et al. 2022); above that if anything is told.
    """
    accused = np.sort(others)[int(FALSE_ALARMS * len(others))]
    return {"auc": auc(-members, -others), "found": float((members < accused).mean())}


def _ratio(made: np.ndarray, train: np.ndarray, held_out: np.ndarray, seed: int) -> dict[str, float]:
    """As many of both: the nearest of many is nearer than the nearest of few."""
    rng, size = np.random.default_rng(seed), min(len(train), len(held_out))
    to_train, to_held = (nearest(made, z[np.sort(rng.permutation(len(z))[:size])])[0] for z in (train, held_out))
    ratio = to_train / np.maximum(to_held, np.finfo(float).tiny)
    return {
        "distance_to_training": float(np.median(to_train)),
        "distance_to_held_out": float(np.median(to_held)),
        "ratio": float(np.median(ratio)),
        "ratio_q05": float(np.quantile(ratio, 0.05)),
    }


def _nearer(
    nearer: np.ndarray,
    which: np.ndarray,
    which_held: np.ndarray,
    of_train: np.ndarray,
    of_held: np.ndarray,
    seed: int,
) -> dict[str, float]:
    """Whose scan is the nearest? Had training made no difference, any person might as well have been held out: the people
    are shared out anew, which keeps that some are near to many generated scans. One-sided."""
    hits = np.bincount(np.where(nearer, of_train[which], of_held[which_held]), minlength=of_held.max() + 1)
    trained, rng = of_train.max() + 1, np.random.default_rng(seed)
    chance = np.array([rng.permutation(hits)[:trained].sum() for _ in range(PERMUTATIONS)])
    return {
        "nearer_training": float(nearer.mean()),
        "nearer_training_expected": float(trained / len(hits)),
        "nearer_training_p": float((1 + (chance >= nearer.sum()).sum()) / (1 + PERMUTATIONS)),
    }


def _numbered(sets: dict[str, tuple[np.ndarray, ArrayLike | None]]) -> np.ndarray:
    """(rows of both sets,) a number for each person, training first; without people, one for each scan."""
    named: list[np.ndarray] = []
    for what, (scans, people) in sets.items():
        named.append(np.array([f"{what} {i}" for i in range(len(scans))]) if people is None else np.asarray(people))
        if named[-1].shape != (len(scans),):
            raise MetavoxelError(f"{len(scans)} {what} scans need as many people, got {named[-1].shape}")
    both = sorted(set(named[0].tolist()) & set(named[1].tolist()), key=str)
    if both:
        some = ", ".join(map(str, both[:5])) + (f" and {len(both) - 5} others" if len(both) > 5 else "")
        raise MetavoxelError(f"in the training and in the held-out set: {some}; split the cohort by person")
    return persons(np.concatenate([people.astype(object) for people in named]))
