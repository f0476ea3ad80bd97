"""The paper's own model and its ablations, each a joint model of another configuration; and its way of asking."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from metavoxel.answers import batches
from metavoxel.data.cohort import Cohort
from metavoxel.data.table import IDENTIFIERS
from metavoxel.evaluate.replacement import facts_by_replacement, scanned
from metavoxel.evaluate.study import Part
from metavoxel.loading import Progress
from metavoxel.methods import PAPER_STEPS
from metavoxel.model import MetaVoxel
from metavoxel.schema import Categorical, Continuous


def images_alone(cohort: Cohort) -> Cohort:
    """The cohort without its facts."""
    kept = [name for name in IDENTIFIERS if name in cohort.table]
    return replace(cohort, table=cohort.table[kept], columns={})


def as_numbers(cohort: Cohort) -> Cohort:
    """The cohort with each class as the number of its level, from 0 (paper, "Continuous-sex")."""
    table, columns = cohort.table.copy(), dict(cohort.columns)
    for name, guess in cohort.columns.items():
        if guess.is_class and len(guess.levels) > 1:
            table[name] = table[name].map({level: code for code, level in enumerate(guess.levels)}).astype(float)
            columns[name] = replace(guess, kind="continuous", levels=(), reason="the number of its level")
    return replace(cohort, table=table, columns=columns)


def as_known(cohort: Cohort, model: MetaVoxel) -> Cohort:
    """The cohort with classes as numbers, if that is how the model knows them."""
    numbers = [v.name for v in model.schema.scalars if isinstance(v, Continuous)]
    return as_numbers(cohort) if any(cohort.columns[name].is_class for name in numbers) else cohort


@torch.no_grad()
def by_draws(
    model: MetaVoxel,
    part: Part,
    want: Sequence[str],
    given: Sequence[str] = (),
    seed: int = 0,
    progress: Progress = lambda done, total: None,
    most: int | None = None,
    steps: int = PAPER_STEPS,
) -> dict[str, np.ndarray]:
    """Answers by the paper's inference, replacement: of a number the mean of a few draws, of a class each level's share.

    given: facts that are told beside the scans; a cell that is missing is drawn along. A class that the model knows as a
    number is rounded to the nearest level, draw by draw. NaN for a row without a scan, and for all but `most` of the rows,
    at random.
    """
    some = np.random.default_rng(seed).permutation(len(part)) < (len(part) if most is None else most)
    cohort = as_known(part.cohort, model)
    found: dict[str, np.ndarray] = {}
    for name in want:
        variable = part.schema.scalar(name)
        shape = (len(variable.levels),) if isinstance(variable, Categorical) else ()
        found[name] = np.full((len(part), *shape), np.nan)
    for batch in batches(model.schema, model.codecs, cohort, dict.fromkeys(given), model.device):
        asked = scanned(model, batch.known, batch.rows) & torch.from_numpy(some[batch.first : batch.first + batch.rows])
        for own, drawn in facts_by_replacement(model, batch.known, want, asked, batch.first, seed, steps):
            for name, draws in drawn.items():
                found[name][batch.first + own] = [_summary(part.schema.scalar(name), row) for row in draws]
        progress(batch.first + batch.rows, len(part))
    return found


def _summary(variable: Categorical | Continuous, draws: np.ndarray) -> np.ndarray:
    """Mean () of numbers, shares (levels,) of names of levels or of their numbers."""
    if isinstance(variable, Continuous):
        return draws.mean()
    if draws.dtype != object:
        codes = np.rint(draws).clip(0, len(variable.levels) - 1).astype(int)
        draws = np.array(variable.levels, dtype=object)[codes]
    return np.array([(draws == level).mean() for level in variable.levels])
