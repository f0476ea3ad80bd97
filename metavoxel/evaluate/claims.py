"""Everybody's answers side by side: the model's under each set of given facts, the exact posterior's where the cohort's law
is known, a constant's, and the baselines'. What judges answers reads claims and nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metavoxel.data.cohort import Cohort
from metavoxel.data.table import bare_id, bare_sessions
from metavoxel.draws import quantiles
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.asking import BOTH, NOTHING, OTHERS, SCAN, Answers, given_sets
from metavoxel.evaluate.exact import ExactAnswers
from metavoxel.evaluate.figures import CONSTANT, EXACT, OURS
from metavoxel.evaluate.scores import ROUNDING
from metavoxel.naming import level_columns
from metavoxel.schema import Categorical, Scalar, Schema

POSTERIOR = Path("derivatives/phantom/posterior.tsv")
PREDICTIONS = {SCAN: "predictions.csv", BOTH: "predictions_scan_and_others.csv", OTHERS: "predictions_others.csv"}
"""The tables of a baseline's answers, by what they were told."""
DRAWN = ("draws", "intervals", "together")
"""What a claim about a number may hold beside its mean."""


@dataclass(frozen=True)
class Claim:
    """What one answerer says of one variable, given one set of facts, about `rows` of the cohort.

    truth: (n,) in the variable's unit, or a level's index. told: (n,) means of a number, or (n, levels) probabilities of a
    class. draws: (n, draws), intervals: (n, 2) from q05 to q95, of a number, where the answerer gives them; together:
    draws of it along with all other numbers.
    """

    who: str
    given: str
    variable: Scalar
    rows: np.ndarray
    truth: np.ndarray
    told: np.ndarray
    draws: np.ndarray | None = None
    intervals: np.ndarray | None = None
    together: np.ndarray | None = None

    @property
    def is_class(self) -> bool:
        return isinstance(self.variable, Categorical)

    def among(self, inside: np.ndarray) -> "Claim":
        """About those of the cohort's rows (rows,) bool only."""
        own = inside[self.rows]
        drawn: dict[str, Any] = {part: None if (x := getattr(self, part)) is None else x[own] for part in DRAWN}
        return replace(self, rows=self.rows[own], truth=self.truth[own], told=self.told[own], **drawn)


def claims(answers: Answers, baselines: Path | None) -> Iterator[Claim]:
    """All claims about all numbers and classes; without rows, none."""
    tables = {} if baselines is None else tables_of(baselines, answers.model.schema, answers.cohort)
    posterior = answers.cohort.root / POSTERIOR
    law = ExactAnswers(_by_row(posterior, answers.cohort), answers) if posterior.is_file() else None
    for v in answers.model.schema.scalars:
        truth = answers.truth(v.name)
        for given in given_sets(answers.model):
            rows = np.flatnonzero(answers.asked(v.name, given))
            if isinstance(v, Categorical):
                yield from _some(Claim(OURS, given, v, rows, truth[rows], answers.probabilities(v.name, given)[rows]))
            else:
                told, draws = answers.mean(v.name, given)[rows], answers.draws(v.name, given)[rows]
                low_high = np.stack([quantiles(draws, q, 1) for q in (0.05, 0.95)], 1)
                joint = answers.together(v.name, given)
                joint = None if joint is None else joint[rows]
                yield from _some(Claim(OURS, given, v, rows, truth[rows], told, draws, low_high, joint))
        yield from _some(_constant(answers, v, truth))
        if law is not None:
            for given in given_sets(answers.model):
                yield from _some(_tabulated(EXACT, given, law.of(v.name, given), v, truth))
        for (who, given), table in tables.items():
            yield from _some(_tabulated(who, given, table, v, truth))


def tables_of(baselines: Path, schema: Schema, cohort: Cohort) -> dict[tuple[str, str], pd.DataFrame]:
    """Each baseline's answers in the cohort's order, by its name and what it was told; an empty cell is no answer.

    Raises MetavoxelError, with file, person and column, for what is no number, no probability or no interval.
    """
    return {asked: _checked(path, schema, cohort) for asked, path in predictions_of(baselines).items()}


def predictions_of(baselines: Path) -> dict[tuple[str, str], Path]:
    """The table of each baseline in the folder, by its name and what it was told."""
    found = {(path.parent.name, given): path for given, name in PREDICTIONS.items() for path in baselines.glob(f"*/{name}")}
    if not found:
        raise MetavoxelError(f"{baselines}: holds no NAME/{PREDICTIONS[SCAN]}; give what metavoxel baselines wrote")
    return dict(sorted(found.items()))


def pooled(folds: Sequence[Sequence[Claim]], rows: Sequence[int]) -> list[Claim]:
    """The claims of several models, each about people of its own, as if one had made them; rows: of each one's cohort. What
    not all of them say is left out."""
    if len(folds) == 1:
        return list(folds[0])
    starts = np.cumsum([0, *rows[:-1]])
    found: dict[tuple[str, str, str], list[Claim]] = {}
    for start, claims in zip(starts, folds):
        for claim in claims:
            moved = replace(claim, rows=claim.rows + start)
            found.setdefault((claim.variable.name, claim.who, claim.given), []).append(moved)
    return [_joined(own) for own in found.values() if len(own) == len(folds)]


def _joined(own: Sequence[Claim]) -> Claim:
    first = own[0]
    if any(getattr(c.variable, "levels", None) != getattr(first.variable, "levels", None) for c in own):
        raise MetavoxelError(f"{first.variable.name}: the folds' models know different levels; deal the people anew, with "
                             f"--stratify {first.variable.name}")  # fmt: skip
    rows, truth, told = (np.concatenate([getattr(c, part) for c in own]) for part in ("rows", "truth", "told"))
    drawn: dict[str, Any] = {}
    for part in DRAWN:
        each = [x for c in own if (x := getattr(c, part)) is not None]
        drawn[part] = np.concatenate(each) if len(each) == len(own) else None
    return replace(first, rows=rows, truth=truth, told=told, **drawn)


def in_words(given: str) -> str:
    """A set of given facts in words."""
    return "given nothing" if given == NOTHING else f"given the {given}"


def main_claims(claims: Sequence[Claim]) -> list[Claim]:
    """The model's own, given the scan; of a model without images, given all other facts, or nothing if there are none."""
    ours = [claim for claim in claims if claim.who == OURS]
    given = SCAN if any(claim.given == SCAN for claim in ours) else ours[-1].given
    return [claim for claim in ours if claim.given == given]


def _some(claim: Claim | None) -> Iterator[Claim]:
    if claim is not None and len(claim.rows):
        yield claim


def _constant(answers: Answers, v: Scalar, truth: np.ndarray) -> Claim:
    """What the people in training say of everybody."""
    seen: dict[str, Any] = answers.model.summary["columns"][v.name]  # type: ignore[index]
    rows = np.flatnonzero(~np.isnan(truth))
    if not isinstance(v, Categorical):
        return Claim(CONSTANT, NOTHING, v, rows, truth[rows], np.full(len(rows), float(seen["mean"])))
    counts = np.array([seen["counts"][level] for level in v.levels], float) + 0.5  # no level is impossible
    return Claim(CONSTANT, NOTHING, v, rows, truth[rows], np.tile(counts / counts.sum(), (len(rows), 1)))


def _tabulated(who: str, given: str, table: pd.DataFrame, v: Scalar, truth: np.ndarray) -> Claim | None:
    """From a table in the columns of `predict`; None if it says nothing of the variable. Intervals are taken where
    everybody who is answered has one."""
    is_class, columns = isinstance(v, Categorical), _told(v)
    if not set(columns) <= set(table):
        return None
    told = table[columns].to_numpy(float)
    rows = np.flatnonzero(~np.isnan(truth) & ~np.isnan(told).any(1))
    told = told if is_class else told[:, 0]
    ends = _ends(v)
    intervals = table[ends].to_numpy(float)[rows] if not is_class and set(ends) <= set(table) else None
    if intervals is not None and np.isnan(intervals).any():
        intervals = None
    return Claim(who, given, v, rows, truth[rows], told[rows], intervals=intervals)


def _told(v: Scalar) -> list[str]:
    """The columns that an answer is read from."""
    return level_columns(v.name, v.levels) if isinstance(v, Categorical) else [f"{v.name}_mean"]


def _ends(v: Scalar) -> list[str]:
    """The columns of a number's interval."""
    return [f"{v.name}_q05", f"{v.name}_q95"]


def _checked(path: Path, schema: Schema, cohort: Cohort) -> pd.DataFrame:
    """The table of a baseline, with numbers in all columns that are read."""
    table = _by_row(path, cohort)
    for v in schema.scalars:
        columns = [name for name in (_told(v) if isinstance(v, Categorical) else [*_told(v), *_ends(v)]) if name in table]
        if columns:
            read = table[columns].apply(pd.to_numeric, errors="coerce").astype(float)
            _refuse_unfit(path, cohort.column(v.name).index, table[columns], read, v)
            table[columns] = read
    return table


def _refuse_unfit(path: Path, people: pd.Index, cells: pd.DataFrame, read: pd.DataFrame, v: Scalar) -> None:
    """Raises MetavoxelError that names the file, the person and the column. read: the cells as numbers."""
    told = read.to_numpy()
    faults = {"is no number": cells.notna().to_numpy() & np.isnan(told), "is infinite": np.isinf(told)}
    if isinstance(v, Categorical):
        faults["is no probability"] = (told < 0) | (told > 1 + ROUNDING)
    for says, wrong in faults.items():
        if len(places := np.argwhere(wrong)):
            row, column = places[0]
            what = f"{cells.columns[column]} {says} ({cells.iloc[row, column]})"
            raise MetavoxelError(f"{path}: {people[row]}: {what}; correct it, or leave it empty, which is no answer")
    off = np.zeros(len(read), bool)
    if isinstance(v, Categorical) and set(_told(v)) <= set(read):
        off = np.abs(told.sum(1) - 1) > ROUNDING
        says = f"{', '.join(_told(v))} do not sum to 1"
    elif set(_ends(v)) <= set(read):
        low, high = _ends(v)
        off = (read[low] > read[high]).to_numpy()
        says = f"{low} is above {high}"
    if off.any():
        who = people[int(off.argmax())]
        raise MetavoxelError(f"{path}: {who}: {says}; correct them, or leave them empty, which is no answer")


def _by_row(path: Path, cohort: Cohort) -> pd.DataFrame:
    """A table of answers in the cohort's order; NaN for people whom it does not hold."""
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        table = pd.read_csv(path, sep=separator, dtype={"participant_id": str, "session_id": str})
    except ValueError as error:  # as pandas' own are
        why = " ".join(str(error).split())
        raise MetavoxelError(f"{path}: cannot be read as a table ({why}); write it anew") from error
    keys = [key for key in ("participant_id", "session_id") if key in table and key in cohort.table]
    if "participant_id" not in keys:
        raise MetavoxelError(f"{path}: has no column participant_id; answers cannot be told apart")
    if (nobody := table["participant_id"].isna().to_numpy()).any():
        raise MetavoxelError(f"{path}: row {int(nobody.argmax()) + 1} has no participant_id; say whose answer it is")
    names = _names(table, keys)
    if twice := names[names.duplicated()].tolist():
        raise MetavoxelError(f"{path}: answers twice for {twice[0]}; leave one row")
    return table.set_axis(names).reindex(_names(cohort.table, keys))


def _names(table: pd.DataFrame, keys: Sequence[str]) -> pd.Index:
    people = table["participant_id"].map(bare_id)
    return pd.Index(people.str.cat(bare_sessions(table), " ") if "session_id" in keys else people)
