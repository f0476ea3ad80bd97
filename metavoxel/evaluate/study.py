"""Who trains and who is asked, as every baseline sees them: the same people, grid, facts and answers to give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from metavoxel.config import Config
from metavoxel.data.cohort import Cohort
from metavoxel.data.table import bare_id
from metavoxel.errors import MetavoxelError
from metavoxel.loading import ImageStack, load_images
from metavoxel.naming import answer_columns
from metavoxel.progress import one_bar, say
from metavoxel.schema import Categorical, Image, Scalar, Schema
from metavoxel.variables import infer_schema

USUAL = ("age", "sex")
"""What is asked by default, as in the paper."""


@dataclass(frozen=True)
class Part:
    """The rows of one part: scans on the schema's grid, read when they are first asked for, and facts as scores."""

    cohort: Cohort
    schema: Schema
    cache: Path
    quiet: bool = True

    def __len__(self) -> int:
        return len(self.cohort)

    @cached_property
    def people(self) -> np.ndarray:
        """(rows,) who each row is."""
        return self.cohort.table["participant_id"].to_numpy()

    @cached_property
    def scanned(self) -> Tensor:
        """The rows that have a scan of any kind."""
        there = [[path is not None for path in self.cohort.scans[image.name]] for image in self._images()]
        return torch.tensor(there).any(0).nonzero()[:, 0]

    def voxels(self, rows: Tensor) -> Tensor:
        """(n, images, *shape) float32 of these rows; zeros where a scan is missing."""
        return torch.stack([stack.rows(rows) for stack in self._stacks], 1)

    def target(self, name: str) -> tuple[Tensor, Tensor]:
        """A scalar's scores or codes (rows,), and which are known (rows,) bool."""
        return self.schema.scalar(name).encode(self.cohort.column(name))

    def facts(self, names: Sequence[str]) -> Tensor:
        """(rows, widths) float32: scores, or a level's 0 and 1, each with whether it is known. What is missing is imputed
        by the mean, a score of 0, or by no level."""
        columns = [torch.zeros(len(self), 0)]
        for name in names:
            values, known = self.target(name)
            variable = self.schema.scalar(name)
            wide = F.one_hot(values, len(variable.levels)) if isinstance(variable, Categorical) else values[:, None]
            columns.append(torch.cat([wide * known[:, None], known[:, None]], 1).float())
        return torch.cat(columns, 1)

    def table(self, answers: Mapping[str, np.ndarray], warning: str) -> pd.DataFrame:
        """The columns that `predict` promises. answers: a number in its unit (rows,), or each level's probability
        (rows, levels); NaN where there is none, which `warning` explains."""
        columns: dict[str, np.ndarray] = {}
        for name, values in answers.items():
            variable = self.schema.scalar(name)
            if isinstance(variable, Categorical):
                columns |= dict(zip(answer_columns(variable), (_most_probable(variable, values), *values.T)))
            else:
                columns[f"{name}_mean"] = values
        unanswered = [any(np.isnan(values[row]).any() for values in answers.values()) for row in range(len(self))]
        identity = self.cohort.table[[c for c in ("participant_id", "session_id") if c in self.cohort.table]]
        return identity.assign(**columns, warning=np.where(unanswered, warning, ""))

    @cached_property
    def _stacks(self) -> list[ImageStack]:
        stacks = []
        for image in self._images():
            with one_bar(f"reading {image.name}", self.quiet) as report:
                stacks.append(load_images(self.cohort, image, self.cache, report))
        return stacks

    def _images(self) -> tuple[Image, ...]:
        if not self.schema.images:
            raise MetavoxelError(f"{self.cohort.root}: holds no scan, which this baseline reads")
        return self.schema.images


def _most_probable(variable: Categorical, probabilities: np.ndarray) -> np.ndarray:
    levels = np.array(variable.levels, dtype=object)
    known = ~np.isnan(probabilities).any(1)
    return np.where(known, levels[np.where(known[:, None], probabilities, 0).argmax(1)], np.nan)


@dataclass(frozen=True)
class Study:
    """One comparison: `want` is learned from the rows of `train` and answered for those of `test`."""

    train: Part
    test: Part
    want: tuple[str, ...]
    validation: float
    """Share of the training people by whom a checkpoint is chosen."""
    seed: int = 0

    @property
    def schema(self) -> Schema:
        """Images, and scalars scaled by the training rows."""
        return self.train.schema

    @property
    def learners(self) -> Tensor:
        """The training rows that have a scan. Raises MetavoxelError where there are none."""
        if not len(self.train.scanned):
            raise MetavoxelError(f"{self.train.cohort.root}: nobody who trains has a scan; use another split")
        return self.train.scanned

    @property
    def wanted(self) -> list[Scalar]:
        return [self.schema.scalar(name) for name in self.want]

    def others(self, name: str) -> list[str]:
        """What an answer for `name` may be told besides the scan: every other number and class."""
        return [scalar.name for scalar in self.schema.scalars if scalar.name != name]


def make_study(
    train: Cohort,
    test: Cohort,
    config: Config,
    cache: Path,
    want: Sequence[str] | None = None,
    seed: int = 0,
    quiet: bool = True,
) -> Study:
    """The study of two cohorts with the same variables. config: its grid and its share of validation are used.

    want: default age and sex, where the cohort has neither all numbers and classes. Raises MetavoxelError where somebody
    is in both cohorts, one is empty, or what is wanted has a single value in training.
    """
    if not len(train) or not len(test):
        raise MetavoxelError(f"{train.root}: nobody is left to {'test' if len(train) else 'train'} on; use another split")
    if shared := {bare_id(person) for person in train.participants} & {bare_id(person) for person in test.participants}:
        first = ", ".join(sorted(shared)[:5])
        raise MetavoxelError(f"{len(shared)} people are in training and in testing ({first}); leave each in one of them")
    schema = infer_schema(train, replace(config, scaling={}))
    names = [scalar.name for scalar in schema.scalars]
    schema = schema.fit(pd.DataFrame({name: train.column(name).to_numpy() for name in names}))
    chosen = _wanted(train, names, want)
    if want is None and not quiet and (lost := _same_in_all(train, chosen)):
        say(f"nobody is asked about {', '.join(lost)}: the same in all who train")
    parts = [Part(cohort, schema, cache, quiet) for cohort in (train, test)]
    return Study(parts[0], parts[1], chosen, config.validation, seed)


def _same_in_all(train: Cohort, chosen: Sequence[str]) -> list[str]:
    """What would be asked by default, had it more than one value in training."""
    usual = [name for name in train.columns if name.casefold() in USUAL]
    asked = usual if set(usual) & set(chosen) else train.columns
    return [name for name in asked if name not in chosen and train.column(name).nunique() < 2]


def _wanted(train: Cohort, names: Sequence[str], want: Sequence[str] | None) -> tuple[str, ...]:
    asked = want or [name for name in names if name.casefold() in USUAL] or names
    values = {name: train.column(name).dropna().unique() for name in names}
    chosen = []
    for name in asked:
        if name not in names:
            there = ", ".join(names) or "none"
            raise MetavoxelError(f"{train.root}: {name} is no number or class of this cohort; there are {there}")
        if len(values[name]) > 1:
            chosen.append(name)
        elif want is not None:
            only = f"{name} is {values[name][0]} for all"
            raise MetavoxelError(f"{train.root}: {only} who train, so there is nothing to learn; leave it out of --want")
    if not chosen:
        raise MetavoxelError(f"{train.root}: no number or class differs between the people who train")
    return tuple(chosen)
