"""One evaluation as it goes on: what is judged, by which options, and what has been found."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from metavoxel.data.cohort import Cohort
from metavoxel.evaluate.anatomy import Ruler
from metavoxel.evaluate.asking import Answers, ask
from metavoxel.evaluate.claims import Claim, claims, pooled
from metavoxel.evaluate.figures import Findings
from metavoxel.latents import affine_of
from metavoxel.model import MetaVoxel
from metavoxel.progress import one_bar


@dataclass(frozen=True)
class Options:
    """split, fold: whose part test is evaluated, and whose part train scans are compared with; training: a cohort instead.
    by: further columns to group people by. scans: how many are drawn. radimagenet, medicalnet: files of their weights.
    licence: of the training data."""

    split: Path | None = None
    fold: int | None = None
    training: Path | None = None
    baselines: Path | None = None
    by: Sequence[str] = ()
    scans: int = 128
    radimagenet: Path | None = None
    medicalnet: Path | None = None
    licence: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Fold:
    """One model, the people that it is asked about, the folder of its baselines, and what tells it from other folds in
    words and in the names of folders: nothing where there is one model."""

    model: MetaVoxel
    cohort: Cohort
    baselines: Path | None
    words: str
    suffix: str


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and everything that has been found out on the way.

    models: the one that is judged; or, where each was trained without one fold, as many, and `cohorts` is the people that
    each is asked about. cohort: all of them, one after the other.
    """

    models: Sequence[MetaVoxel]
    cohorts: Sequence[Cohort]
    cohort: Cohort
    training: Cohort | None
    baselines: Sequence[Path | None]
    work: Path
    options: Options
    findings: Findings
    quiet: bool

    @property
    def model(self) -> MetaVoxel:
        """The only one, or the first fold's, which knows the same variables as the others."""
        return self.models[0]

    @property
    def folds(self) -> list[Fold]:
        """Each model with the people that it is asked about."""
        each = enumerate(zip(self.models, self.cohorts, self.baselines), start=1)
        if len(self.models) == 1:
            return [Fold(*parts, "", "") for _, parts in each]
        return [Fold(*parts, f", fold {number}", f"-{number}") for number, parts in each]

    @cached_property
    def answers(self) -> list[Answers]:
        """Of each model about its people."""
        found = []
        for fold in self.folds:
            with one_bar(f"asking{fold.words}", self.quiet) as report:
                folder = self.work / f"answers{fold.suffix}"
                found.append(ask(fold.model, fold.cohort, folder, self.options.seed, report))
        return found

    @cached_property
    def claims(self) -> list[Claim]:
        each = [list(claims(answers, baselines)) for answers, baselines in zip(self.answers, self.baselines)]
        return pooled(each, [len(cohort) for cohort in self.cohorts])

    @cached_property
    def rulers(self) -> dict[str, Ruler]:
        """What measures the tissues of each image variable in three dimensions."""
        return {image.name: Ruler(affine_of(image)) for image in self.model.schema.images if len(image.shape) == 3}

    @property
    def surprises(self) -> pd.DataFrame:
        """A column an image, NaN where there is no scan."""
        return pd.concat([answers.surprises() for answers in self.answers], ignore_index=True)

    @property
    def people(self) -> np.ndarray:
        """(rows,) whose each row is."""
        return self.cohort.table["participant_id"].to_numpy()
