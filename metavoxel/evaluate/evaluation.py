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
class Side:
    """One model, and who it was trained on and is asked about. fold: which of several it is, None if it is the only one."""

    name: str | Path
    model: MetaVoxel
    test: Cohort
    training: Cohort | None
    baselines: Path | None
    fold: int | None = None

    @property
    def words(self) -> str:
        """What tells it from other folds in words."""
        return "" if self.fold is None else f", fold {self.fold}"

    @property
    def suffix(self) -> str:
        """The same in the names of folders."""
        return "" if self.fold is None else f"-{self.fold}"


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and everything that has been found out on the way.

    sides: the model that is judged; or, where each was trained without one fold, as many, each with the people that it is
    asked about. cohort: all of them, one after the other.
    """

    sides: Sequence[Side]
    cohort: Cohort
    work: Path
    options: Options
    findings: Findings
    quiet: bool

    @property
    def model(self) -> MetaVoxel:
        """The only one, or the first fold's, which knows the same variables as the others."""
        return self.sides[0].model

    @property
    def training(self) -> Cohort | None:
        """Whom the only model was trained on; of several, no one cohort is."""
        return self.sides[0].training if len(self.sides) == 1 else None

    @property
    def slow(self) -> bool:
        """Whether the model draws a scan along with whatever it is asked without one."""
        return bool(self.model.schema.images) and not self.model.denoiser.coverage.separate

    def share(self, side: Side) -> int:
        """Of how many of a side's people scans are drawn."""
        return min(len(side.test), -(-self.options.scans * len(side.test) // len(self.cohort)))

    @cached_property
    def answers(self) -> list[Answers]:
        """Of each model about its people."""
        found = []
        for side in self.sides:
            with one_bar(f"asking{side.words}", self.quiet) as report:
                unseen = self.share(side) if self.slow else None
                folder = self.work / f"answers{side.suffix}{'' if unseen is None else f'-{unseen}'}"
                found.append(ask(side.model, side.test, folder, self.options.seed, report, unseen))
        return found

    @cached_property
    def claims(self) -> list[Claim]:
        each = [list(claims(answers, side.baselines)) for answers, side in zip(self.answers, self.sides)]
        return pooled(each, [len(side.test) for side in self.sides])

    @cached_property
    def rulers(self) -> dict[str, Ruler]:
        """What measures the tissues of each image variable in three dimensions."""
        return {image.name: Ruler(affine_of(image)) for image in self.model.schema.images if len(image.shape) == 3}

    def measured(self, name: str, scans: np.ndarray) -> pd.DataFrame:
        """The tissues of an image variable's scans (n, *shape), which are measured now if they were not before."""
        with one_bar(f"measuring {name}", self.quiet) as report:
            return self.rulers[name](scans, report)

    @property
    def surprises(self) -> pd.DataFrame:
        """A column an image, NaN where there is no scan."""
        return pd.concat([answers.surprises() for answers in self.answers], ignore_index=True)

    @property
    def people(self) -> np.ndarray:
        """(rows,) whose each row is."""
        return self.cohort.table["participant_id"].to_numpy()
