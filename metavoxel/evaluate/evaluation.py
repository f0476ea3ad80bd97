"""One evaluation as it goes on: what is judged, by which options, and what has been found."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from metavoxel.data.cohort import Cohort
from metavoxel.evaluate.asking import ask
from metavoxel.evaluate.claims import Claim, claims
from metavoxel.evaluate.figures import Findings
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
class Evaluation:
    """What is evaluated, and everything that has been found out on the way."""

    model: MetaVoxel
    cohort: Cohort
    training: Cohort | None
    work: Path
    options: Options
    findings: Findings
    quiet: bool

    @cached_property
    def claims(self) -> list[Claim]:
        with one_bar("asking", self.quiet) as report:
            answers = ask(self.model, self.cohort, self.work / "answers", self.options.seed, report)
        return list(claims(answers, self.options.baselines))

    @property
    def people(self) -> np.ndarray:
        """(rows,) whose each row is."""
        return self.cohort.table["participant_id"].to_numpy()
