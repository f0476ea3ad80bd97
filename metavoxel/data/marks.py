"""Marks by which a cohort's rows are known again, and which say nothing of them: what a model keeps of whom it has seen."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from metavoxel.cells import level_name
from metavoxel.data.cohort import Cohort
from metavoxel.data.table import bare_id
from metavoxel.files import digits_of, files_of

Scan = tuple[str, Path]
"""A person and the file, or the folder, of a scan."""
GLANCE = 1 << 16  # bytes from the middle of a file that tell most different scans of one size apart
BY_CHANCE = 0.1
"""This share of rows without a scan may have the id and the facts of somebody else: two studies count from sub-01."""


def marks_of(cohort: Cohort, facts: Sequence[str]) -> list[str]:
    """Of every scan, and of every row without one by its id and `facts` if nobody else's facts are the same."""
    return sorted({*_scan_marks(cohort), *_row_marks(cohort, facts)})


def seen_again(cohort: Cohort, facts: Sequence[str], seen: Collection[str]) -> list[str]:
    """People of the cohort with a scan whose mark has been `seen`, or, where they are more than chance would have, with
    such facts."""
    known = set(seen)
    scans = dict.fromkeys(who for mark, who in _scan_marks(cohort).items() if mark in known)
    rows = dict.fromkeys(who for mark, who in _row_marks(cohort, facts).items() if mark in known)
    return list(scans | rows if len(rows) > BY_CHANCE * len(_without_scan(cohort)) else scans)


def scans_of(cohort: Cohort) -> list[Scan]:
    """Every scan that is there."""
    people = cohort.table["participant_id"]
    return [
        (who, path)
        for paths in cohort.scans.values()
        for who, path in zip(people, paths)
        if path is not None and files_of(path)
    ]


def size_of(path: Path) -> int:
    """Bytes of a scan's files."""
    return sum(file.stat().st_size for file in files_of(path))


def glance(path: Path) -> str:
    """Digits of a few bytes of a scan."""
    files = files_of(path)
    middle = files[len(files) // 2]
    with middle.open("rb") as file:
        file.seek(max(0, middle.stat().st_size // 2 - GLANCE // 2))
        return hashlib.sha256(file.read(GLANCE)).hexdigest()


def _scan_marks(cohort: Cohort) -> dict[str, str]:
    return {digits_of(f"{size_of(path)} {glance(path)}"): who for who, path in scans_of(cohort)}


def _row_marks(cohort: Cohort, facts: Sequence[str]) -> dict[str, str]:
    rows = _without_scan(cohort)
    columns = [[level_name(cell) if pd.notna(cell) else "" for cell in cohort.table[name]] if name in cohort.table
               else [""] * len(cohort) for name in sorted(facts)]  # fmt: skip
    told = pd.Series(["\t".join(cells) for cells in zip(*columns)] if columns else [""] * len(cohort))
    alone = ~told.duplicated(keep=False).to_numpy() & (told.str.strip() != "").to_numpy()
    people = cohort.table["participant_id"].tolist()
    return {digits_of(f"row {bare_id(people[row])}\t{told[row]}"): people[row] for row in rows if alone[row]}


def _without_scan(cohort: Cohort) -> list[int]:
    scanned = np.zeros(len(cohort), bool)
    for paths in cohort.scans.values():
        scanned |= [path is not None for path in paths]
    return np.flatnonzero(~scanned).tolist()
