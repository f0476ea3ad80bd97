"""Who is for training and who for testing: drawn once by person, written down, and checked whenever it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metavoxel.data.cohort import Cohort
from metavoxel.data.marks import Scan, glance, scans_of, size_of
from metavoxel.data.shares import deal, strata_of
from metavoxel.data.table import bare_id, read_table
from metavoxel.errors import MetavoxelError
from metavoxel.files import atomic_write, checksum

STRATA = ("age", "sex", "gender", "site", "scanner", "center", "centre")
"""Columns that are spread evenly over the parts, of those which a cohort has."""
PARTS = ("train", "test")


@dataclass(frozen=True)
class Drawn:
    """A new split: a row a person (participant_id, part, fold where there are any, and the strata); how it was drawn."""

    table: pd.DataFrame
    about: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """The table as .tsv, and beside it as .json how it was drawn, how even it is and what was checked."""
        path = Path(path)
        if path.suffix != ".tsv":
            raise MetavoxelError(f"{path}: a split is a table; name it .tsv")
        with atomic_write(path) as file:
            self.table.to_csv(file, sep="\t", index=False, na_rep="n/a")
        with atomic_write(path.with_suffix(".json")) as file:
            file.write(json.dumps(self.about, indent=2) + "\n")


def draw_split(
    cohort: Cohort, test: float = 0.2, folds: int = 0, seed: int = 0, stratify: Sequence[str] | None = None
) -> Drawn:
    """Deal the people into a part test and a part train, the latter in `folds` (0: not in folds).

    All scans of one person are in one part, and so are people who share a scan byte for byte. `stratify`: columns that
    are spread evenly, numbers in five bands; default: age, sex and site where the cohort has them.
    Raises MetavoxelError when there is nothing to split off, or fewer people than parts.
    """
    if not 0 <= test < 1 or folds < 0 or folds == 1 or (test == 0 and folds == 0):
        raise MetavoxelError(f"split: --test {test:g} --folds {folds}: give a share below 1, or two folds or more, or both")
    names = _strata(cohort) if stratify is None else list(stratify)
    kinds, same = cohort.kinds(names), same_scans(cohort)
    head = {person: group[0] for group in same for person in group}  # the others go where this one goes
    heads = kinds[[head.get(person, person) == person for person in kinds.index]]
    shares = [(1 - test) / max(folds, 1)] * max(folds, 1)
    dealt = deal(strata_of(heads), [test, *shares], seed) if test else deal(strata_of(heads), shares, seed) + 1
    number = dict(zip(heads.index, dealt.tolist()))
    numbers = [number[head.get(person, person)] for person in kinds.index]  # 0: test
    table = pd.DataFrame({"participant_id": kinds.index, "part": ["train" if part else "test" for part in numbers]})
    if folds:
        table["fold"] = pd.Series([str(part) if part else np.nan for part in numbers], dtype=object)
    where = table["part"] if not folds else table["part"].where(table["fold"].isna(), "fold " + table["fold"])
    table = table.join(kinds.reset_index(drop=True).astype(object).replace("missing", np.nan))
    about = {
        "Cohort": cohort.fingerprint(), "Seed": seed, "StratifiedBy": names, "People": _counts(where),
        "Strata": {name: {part: _counts(rows) for part, rows in table[name].groupby(where)} for name in names},
        "SameScans": same,
        "Checked": "nobody is in two parts; people who share a scan byte for byte are in one",
    }  # fmt: skip
    return Drawn(table, about)


def leave_out(cohort: Cohort, column: str) -> Drawn:
    """Everybody in the part train, and a fold for each value of a class, such as each site: a model that is trained without
    a fold is asked about a site that it has never seen.

    Raises MetavoxelError when the column is no class, somebody's is missing, there is one value only, or a scan is at two.
    """
    guess = cohort.columns.get(column)
    if guess is None or not guess.is_class:
        known = ", ".join(name for name, each in cohort.columns.items() if each.is_class) or "none"
        raise MetavoxelError(f"--leave-out {column}: {cohort.root} has no such class (it has {known})")
    values = cohort.kinds([column])[column].astype(str)
    if (values == "missing").any():
        who = values.index[values == "missing"][0]
        raise MetavoxelError(f"--leave-out {column}: is missing for {who}; fill it in, or leave them out of the table")
    folds = {value: number for number, value in enumerate(sorted(set(values)), start=1)}
    if len(folds) < 2:
        raise MetavoxelError(f"--leave-out {column}: everybody is {next(iter(folds))}; there is nobody left to train on")
    same = same_scans(cohort)
    for group in same:
        if len(set(values[group])) > 1:
            raise MetavoxelError(f"{' and '.join(group)} have the same scan, but not the same {column}; take one out")
    table = pd.DataFrame({"participant_id": values.index, "part": "train", "fold": [str(folds[v]) for v in values],
                          column: values.to_numpy()})  # fmt: skip
    about = {"Cohort": cohort.fingerprint(), "LeftOut": column, "Folds": {str(n): value for value, n in folds.items()},
             "People": _counts("fold " + table["fold"]), "SameScans": same,
             "Checked": "nobody is in two folds; people who share a scan byte for byte are in one"}  # fmt: skip
    return Drawn(table, about)


def _counts(column: pd.Series) -> dict[str, int]:
    return {str(value): int(count) for value, count in column.value_counts(dropna=False).sort_index().items()}


@dataclass(frozen=True)
class Split:
    """A split as it was read: bare id -> its part, and its fold where there are any."""

    path: Path
    part: dict[str, str]
    fold: dict[str, int]

    def take(self, cohort: Cohort, part: str = "train", fold: int | None = None) -> tuple[Cohort, dict[str, object]]:
        """The cohort's rows of a part, and a record of it. `fold`: train is the part train without it, test is it alone.

        Raises MetavoxelError when the part is empty, there is no such fold, or someone else has one of its scans.
        """
        if fold is not None and fold not in self.fold.values():
            known = f"1 to {max(self.fold.values())}" if self.fold else "none"
            raise MetavoxelError(f"{self.path}: there is no fold {fold} (there are {known}); see metavoxel split --folds")
        ids = [bare_id(person) for person in cohort.table["participant_id"]]
        inside = np.array([self._belongs(person, part, fold) for person in ids])
        if not inside.any():
            raise MetavoxelError(f"{self.path}: nobody of {cohort.root} is in its part {part!r}; split this cohort anew")
        ours = {person for person, there in zip(ids, inside) if there}
        theirs = {person for person in ids if person in self.part} - ours
        for group in same_scans(cohort):
            here, there = ([who for who in group if bare_id(who) in side] for side in (ours, theirs))
            if here and there:
                fix = "put both into one part, or take the copy out of the cohort"
                raise MetavoxelError(f"{self.path}: {here[0]} and {there[0]} have the same scan, in two parts; {fix}")
        taken = cohort.subset(np.flatnonzero(inside))
        without = f" without fold {fold}" if fold is not None and part == "train" else ""
        what = f"fold {fold}" if fold is not None and part == "test" else f"part {part}{without}"
        unknown = len({person for person in ids if person not in self.part})
        lost = f"; {unknown} people are in none of its parts" if unknown else ""
        taken.notes = [*cohort.notes, f"{len(taken.participants)} people, the {what} of {self.path.name}{lost}"]
        record: dict[str, object] = {"file": self.path.name, "checksum": checksum(self.path), "part": part, "fold": fold,
                                     "people": len(taken.participants)}  # fmt: skip
        return taken, record

    def _belongs(self, person: str, part: str, fold: int | None) -> bool:
        if fold is None:
            return self.part.get(person) == part
        return self.part.get(person) == "train" and (self.fold.get(person) == fold) == (part == "test")


def part_of(
    cohort: Cohort, split: str | os.PathLike[str] | None, part: str, fold: int | None
) -> tuple[Cohort, dict[str, object]]:
    """What the options --split and --fold leave of a cohort, and a record of it under "split"; all where there is none."""
    if split is None:
        if fold is not None:
            raise MetavoxelError(f"--fold {fold} is of no split; add --split FILE")
        return cohort, {}
    taken, record = read_split(split).take(cohort, part, fold)
    return taken, {"split": record}


def read_split(path: str | os.PathLike[str]) -> Split:
    """A split from a .tsv or .csv with the columns participant_id, part and perhaps fold. Raises MetavoxelError, naming
    who, when somebody is in two parts or in one that is neither train nor test."""
    path = Path(path)
    table = read_table(path)
    if "part" not in table:
        raise MetavoxelError(f"{path}: there is no column part; make the file with metavoxel split COHORT -o {path.name}")
    folds = table["fold"] if "fold" in table else pd.Series(np.nan, index=table.index)
    part: dict[str, str] = {}
    fold: dict[str, int] = {}
    for who, own, number in zip(table["participant_id"], table["part"], folds):
        person = bare_id(who)
        if own not in PARTS:
            raise MetavoxelError(f"{path}: {who} is in the part {own!r}; write train or test")
        if part.setdefault(person, own) != own:
            raise MetavoxelError(f"{path}: {who} is in train and in test; leave one")
        if pd.notna(number):
            if not str(number).removesuffix(".0").isdecimal():
                raise MetavoxelError(f"{path}: {who} is in the fold {number!r}; write a whole number, or n/a")
            if fold.setdefault(person, int(float(number))) != int(float(number)):
                raise MetavoxelError(f"{path}: {who} is in two folds; leave one")
    return Split(path, part, fold)


def same_scans(cohort: Cohort) -> list[list[str]]:
    """Groups of people that share a scan's bytes, each in the cohort's order. Only files of one size are read."""
    groups: list[list[str]] = []
    for one_size in _alike(scans_of(cohort), size_of):
        for one_middle in _alike(one_size, glance):
            groups += [[person for person, _ in same] for same in _alike(one_middle, checksum)]
    home: dict[str, set[str]] = {}
    for group in groups:
        joined = set(group).union(*(home.get(person, set()) for person in group))
        home |= dict.fromkeys(joined, joined)
    distinct = {id(group): group for group in home.values()}
    order = {person: i for i, person in enumerate(cohort.participants)}
    return sorted((sorted(group, key=order.__getitem__) for group in distinct.values()), key=lambda g: order[g[0]])


def _alike(scans: list[Scan], key: Callable[[Path], object]) -> list[list[Scan]]:
    """The scans whose key occurs at two people or more, by key."""
    found: dict[object, list[Scan]] = {}
    for person, path in scans:
        found.setdefault(key(path), []).append((person, path))
    return [group for group in found.values() if len({person for person, _ in group}) > 1]


def _strata(cohort: Cohort) -> list[str]:
    return [n for n, g in cohort.columns.items() if n.casefold() in STRATA and (g.is_class or g.kind == "continuous")]
