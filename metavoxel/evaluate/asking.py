"""Every useful question about every person, asked once and kept on disk in blocks: a stopped evaluation goes on from the
last, and memory holds one block of scans however large the cohort is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from metavoxel.answers import Batch, batches, surprise_of
from metavoxel.beliefs import Belief
from metavoxel.data.cohort import Cohort
from metavoxel.diffusion import encode_once, tell
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.replacement import PAPER_DRAWS, facts_by_replacement, scanned
from metavoxel.files import atomic_write, make_folder
from metavoxel.laws import Mixture
from metavoxel.loading import Progress
from metavoxel.methods import draw_facts
from metavoxel.model import MetaVoxel
from metavoxel.question import Denoiser, Given
from metavoxel.schema import Categorical, Scalar

DRAWS = 99
"""A multiple of the ranks' bins, less one."""
BLOCK = 64
"""Rows that are asked about before anything is written."""
SURPRISE = "surprise"
NOTHING, OTHERS, SCAN, BOTH = "nothing", "other facts", "scan", "scan and other facts"
TOGETHER = (NOTHING, SCAN)
"""Where every number is told the same, so that draws of all of them can hang together."""


def given_sets(model: MetaVoxel) -> list[str]:
    """What can be told before a scalar is asked for."""
    alone = len(model.schema.scalars) == 1
    sets = [NOTHING, OTHERS, *([SCAN, BOTH] if model.schema.images else [])]
    return [name for name in sets if not (alone and name in (OTHERS, BOTH))]


@dataclass(frozen=True)
class Answers:
    """What the model said of each row of a cohort, as `ask` left it in `folder`. unseen: how many of the first rows were
    asked about without their scan; None: all."""

    model: MetaVoxel
    cohort: Cohort
    folder: Path
    unseen: int | None = None

    def truth(self, name: str) -> np.ndarray:
        """(rows,) in the variable's unit, or a level's index, float; NaN where missing."""
        variable = self.model.schema.scalar(name)
        column = self.cohort.column(name)
        values, known = variable.encode(column)
        if isinstance(variable, Categorical):
            return np.where(known.numpy(), values.numpy(), np.nan)
        return np.where(known.numpy(), pd.to_numeric(column, errors="coerce").to_numpy(float), np.nan)

    def mean(self, name: str, given: str) -> np.ndarray:
        """(rows,) E[number | given]."""
        return self._kept[f"{name}|{given}|mean"]

    def probabilities(self, name: str, given: str) -> np.ndarray:
        """(rows, levels)."""
        return self._kept[f"{name}|{given}|probabilities"]

    def draws(self, name: str, given: str) -> np.ndarray:
        """(rows, draws) of a number."""
        return self._kept[f"{name}|{given}|draws"]

    def together(self, name: str, given: str) -> np.ndarray | None:
        """(rows, draws) of a number, drawn along with all others; None where these were told something else."""
        return self._kept.get(f"{name}|{given}|together")

    def surprises(self) -> pd.DataFrame:
        """A column an image: how unlike the training scans each row's is, NaN where there is none."""
        images = [image.name for image in self.model.schema.images if image.name in self.model.usual]
        return pd.DataFrame({name: self._kept[f"{name}|{SURPRISE}"] for name in images})

    def asked(self, name: str, given: str) -> np.ndarray:
        """(rows,) whether the truth is known and what the question tells is there: any scan, any other fact."""
        there = ~np.isnan(self.truth(name))
        images = [image.name for image in self.model.schema.images]
        scan = np.any([[path is not None for path in self.cohort.scans[image]] for image in images], axis=0)
        facts = [other.name for other in self.model.schema.scalars if other.name != name]
        others = np.any([~np.isnan(self.truth(other)) for other in facts], axis=0)
        if given in (SCAN, BOTH):
            there = there & scan
        elif self.unseen is not None:
            there = there & (np.arange(len(there)) < self.unseen)
        return there & others if given in (OTHERS, BOTH) else there

    @cached_property
    def _kept(self) -> dict[str, np.ndarray]:
        parts = [dict(np.load(path)) for path in blocks(self.folder, len(self.cohort))]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def blocks(folder: Path, rows: int) -> list[Path]:
    """One file for each BLOCK of rows."""
    return [folder / f"rows-{first:06d}.npz" for first in range(0, rows, BLOCK)]


def refuse_lacking(model: MetaVoxel, cohort: Cohort) -> None:
    """Raises MetavoxelError where the cohort lacks a variable that the model knows, or has a cell that it cannot read."""
    lacking = [v.name for v in model.schema.scalars if v.name not in cohort.columns]
    lacking += [v.name for v in model.schema.images if v.name not in cohort.scans]
    if lacking:
        there = ", ".join([*cohort.scans, *cohort.columns])
        raise MetavoxelError(f"{cohort.root}: lacks {', '.join(lacking)}, which the model was trained on (it has {there})")
    for scalar in model.schema.scalars:
        scalar.encode(cohort.column(scalar.name))


@torch.no_grad()
def ask(
    model: MetaVoxel, cohort: Cohort, folder: Path, seed: int, progress: Progress, unseen: int | None = None
) -> Answers:
    """Asks for each number and class under each of `given_sets`. Raises MetavoxelError for a cohort that it cannot be
    asked about (`refuse_lacking`), and for predictions that are not numbers.

    unseen: how many of the first rows a model of one shared time is asked about without their scan, which it has to draw
    along, PAPER_DRAWS times; None: all.
    """
    refuse_lacking(model, cohort)
    make_folder(folder)
    sets = given_sets(model)
    for number, path in enumerate(blocks(folder, len(cohort))):
        first = number * BLOCK
        rows = range(first, min(first + BLOCK, len(cohort)))
        if not path.exists():
            parts = [dict(_asked(model, batch, sets, first + batch.first, seed, unseen))
                     for batch in batches(model.schema, model.codecs, cohort.subset(rows),
                                          dict.fromkeys(v.name for v in model.schema.scalars), model.device)]  # fmt: skip
            kept = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            _refuse_nan(kept, cohort, first)
            with atomic_write(path, "wb") as file:
                np.savez(file, **kept)  # type: ignore[arg-type]
        progress(rows[-1] + 1, len(cohort))
    return Answers(model, cohort, folder, unseen)


def _asked(
    model: MetaVoxel, batch: Batch, sets: list[str], first: int, seed: int, unseen: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    if model.denoiser.coverage.separate:
        yield from _asked_at_once(model, batch, sets, first, seed)
    else:
        yield from _asked_by_draws(model, batch, sets, first, seed, unseen)
    for image in model.schema.images:
        if image.name in model.usual:
            seen = surprise_of(model.denoiser, image, model.usual[image.name], batch.known[image.name])
            yield f"{image.name}|{SURPRISE}", seen


def _asked_at_once(
    model: MetaVoxel, batch: Batch, sets: list[str], first: int, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """mean and draws of a number, probabilities of a class, each in one evaluation."""
    known, rows, schema = batch.known, batch.rows, model.schema
    scans = {image.name: known[image.name] for image in schema.images}
    seeing = encode_once(model.denoiser, schema, scans) if scans else model.denoiser
    # where nothing is told of anybody, each row holds what is absent, so that every person gets draws of their own
    absent = torch.zeros(rows, dtype=torch.bool, device=model.device)
    nobody = {name: Given(value.value, observed=absent) for name, value in known.items()}
    unseen = {name: nobody[name] for name in scans}
    blind = encode_once(model.denoiser, schema, unseen) if scans else model.denoiser
    for v in schema.scalars:
        others = [other.name for other in schema.scalars if other.name != v.name]
        for given in sets:
            told = {**(scans if given in (SCAN, BOTH) else unseen),
                    **{name: (known if given in (OTHERS, BOTH) else nobody)[name] for name in others}}  # fmt: skip
            reader = seeing if given in (SCAN, BOTH) else blind
            for what, value in _answer(reader, model, v, told, first, rows, seed).items():
                yield f"{v.name}|{given}|{what}", value
    # of numbers that are told the same facts, draws that hang together, too
    if len(numbers := [v.name for v in schema.scalars if not isinstance(v, Categorical)]) > 1:
        classes = {v.name: nobody[v.name] for v in schema.scalars if v.name not in numbers}
        for given in [given for given in sets if given in TOGETHER]:
            told, reader = ({**scans, **classes}, seeing) if given == SCAN else ({**unseen, **classes}, blind)
            draws = DRAWS if told else DRAWS * rows  # where nothing is told there is one row
            drawn = draw_facts(reader, schema, told, numbers, draws, seed, first_row=first)
            for name in numbers:
                yield f"{name}|{given}|together", np.reshape(schema.scalar(name).drawn(drawn[name]), (rows, DRAWS))


def _answer(
    reader: Denoiser, model: MetaVoxel, v: Scalar, told: Mapping[str, Given], first: int, rows: int, seed: int
) -> dict[str, np.ndarray]:
    law = tell(reader, model.schema, told, [v.name])[v.name]
    if isinstance(v, Categorical):
        assert isinstance(law, Tensor)
        return {"probabilities": _each_row(law.double().exp(), rows)}
    assert isinstance(law, Mixture)
    drawn = draw_facts(reader, model.schema, told, [v.name], DRAWS, seed, first_row=first)[v.name]
    values = _each_row(torch.from_numpy(np.asarray(v.drawn(drawn))), rows)
    return {"mean": _each_row(torch.from_numpy(Belief(v, law).mean), rows), "draws": values}


def _asked_by_draws(
    model: MetaVoxel, batch: Batch, sets: list[str], first: int, seed: int, unseen: int | None
) -> Iterator[tuple[str, np.ndarray]]:
    """The same of a few draws by the paper's inference, zeros of whom is not asked. It draws along whatever it is not told,
    so of the scan alone, or of nothing, one walk answers for every number and class."""
    known, rows, schema = batch.known, batch.rows, model.schema
    names = [v.name for v in schema.scalars]
    few = torch.arange(first, first + rows) < (first + rows if unseen is None else unseen)
    for given in sets:
        seeing = given in (SCAN, BOTH)
        asked = scanned(model, known, rows) if seeing else few
        for want in [names] if given in (NOTHING, SCAN) else [[name] for name in names]:
            told = [*(image.name for image in schema.images if seeing), *(name for name in names if name not in want)]
            given_now = {name: known[name] for name in told}
            found = {name: _no_draws(schema.scalar(name), rows) for name in want}
            for own, drawn in facts_by_replacement(model, given_now, want, asked, first, seed):
                for name, values in drawn.items():
                    levels = getattr(schema.scalar(name), "levels", None)
                    found[name][own] = values if levels is None else values[..., None] == np.array(levels, dtype=object)
            for name, draws in found.items():
                if isinstance(schema.scalar(name), Categorical):
                    yield f"{name}|{given}|probabilities", draws.mean(1)
                else:
                    yield f"{name}|{given}|mean", draws.mean(1)
                    yield f"{name}|{given}|draws", draws


def _no_draws(v: Scalar, rows: int) -> np.ndarray:
    return np.zeros((rows, PAPER_DRAWS, *((len(v.levels),) if isinstance(v, Categorical) else ())))


def _each_row(x: Tensor, rows: int) -> np.ndarray:
    return x.expand(rows, *x.shape[1:]).cpu().numpy()


def _refuse_nan(kept: Mapping[str, np.ndarray], cohort: Cohort, first: int) -> None:
    answers = {key: values for key, values in kept.items() if not key.endswith(SURPRISE)}  # that is NaN without a scan
    for key, values in answers.items():
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
        if len(bad):
            person = cohort.table["participant_id"].iloc[first + bad[0]]
            name, given, _ = key.split("|")
            raise MetavoxelError(f"{person}: the model's {name} given {given} is not a number; its weights are damaged or "
                                 "its training diverged: train it again")  # fmt: skip
