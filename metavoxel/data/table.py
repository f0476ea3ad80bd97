"""Tables of clinical facts: read as they stand, checked cell by cell.

A missing cell (empty, n/a, NA, NaN) is NaN. A cell that cannot be right is an error that names its row.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metavoxel.cells import MISSING
from metavoxel.errors import MetavoxelError

TABLE_SUFFIXES = (".tsv", ".csv", ".xlsx")
IDENTIFIERS = ("participant_id", "session_id")
MAX_AGE_YEARS = 130.0


def bare_id(participant_id: str) -> str:
    """The id without BIDS' prefix: `sub-01` and `01` are the same person."""
    return participant_id.removeprefix("sub-")


def bare_session(session_id: str) -> str:
    """The id without BIDS' prefix: `ses-1` and `1` are the same session."""
    return session_id.strip().removeprefix("ses-")


def bare_sessions(table: pd.DataFrame) -> pd.Series:
    """`bare_session` of each row; "" where there is none."""
    session = table["session_id"] if "session_id" in table else pd.Series(np.nan, index=table.index)
    return session.astype(object).fillna("").astype(str).map(bare_session)


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a .tsv, .csv or .xlsx: ids are text, columns of numbers are float64, other cells text; missing cells NaN.

    Raises MetavoxelError, naming the file and row, on a missing participant_id column or cell, a person (and session)
    that occurs twice, a row that is longer or shorter than the header, or a file that is no such table.
    """
    path = Path(path)
    header, rows = _cells(path)
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise MetavoxelError(f"{path}: column {repeated[0]!r} occurs twice; rename or remove one")
    if "participant_id" not in header:
        known = ", ".join(header)
        fix = "rename the column of subjects to it"
        raise MetavoxelError(f"{path}: there is no column participant_id (there are: {known}); {fix}")
    columns = {name: _typed(name, [row[i] for row in rows]) for i, name in enumerate(header)}
    table = pd.DataFrame(columns, columns=header)
    _check_ids(path, table)
    return table


def read_sidecar(table_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The BIDS JSON beside a table (participants.json for participants.tsv); empty when there is none."""
    path = Path(table_path).with_suffix(".json")
    if not path.is_file():
        return {}
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MetavoxelError(f"{path}: not valid JSON ({error}); correct it or remove it") from error
    if not isinstance(sidecar, dict):
        raise MetavoxelError(f"{path}: expected an object with one entry a column; correct it or remove it")
    return {name: entry for name, entry in sidecar.items() if isinstance(entry, dict)}


def read_sessions(root: Path) -> pd.DataFrame | None:
    """The rows of all sub-*/sub-*_sessions.tsv of a BIDS folder (participant_id, session_id, ...); None without any."""
    rows: list[dict[str, str]] = []
    for path in sorted(root.glob("sub-*/sub-*_sessions.tsv")):
        header, body = _cells(path)
        if "session_id" not in header:
            raise MetavoxelError(f"{path}: there is no column session_id (there are: {', '.join(header)}); add it")
        rows += [{"participant_id": path.parent.name} | dict(zip(header, cells)) for cells in body]
    if not rows:
        return None
    names = dict.fromkeys(name for row in rows for name in row)
    table = pd.DataFrame({name: _typed(name, [row.get(name, "") for row in rows]) for name in names})
    _check_ids(root, table)
    return table


def numbers(column: pd.Series, name: str | None = None) -> np.ndarray:
    """(n,) float64, NaN where missing. The index of `column` names the rows in errors.

    Raises MetavoxelError naming row and value of a cell that is not a finite number.
    """
    missing = column.isna().to_numpy()
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.flatnonzero(~np.isfinite(values) & ~missing)
    if wrong.size:
        cell = column.iloc[wrong[0]]
        fix = "correct it, or write n/a if it is not known"
        if "," in str(cell):
            fix = "write it with a decimal point"
        elif re.match(r"[+-]?[\d.]+(e[+-]?\d+)?\s*[a-z]+$", str(cell), re.I):
            fix = "write the number alone, and its Units into the table's .json"
        label = name or column.name
        raise MetavoxelError(f"{label}: {str(cell)!r} at {row_name(column, wrong[0])} is not a number; {fix}")
    return values


def levels(column: pd.Series, allowed: Sequence[str], name: str | None = None) -> pd.Series:
    """The cells in the spelling of `allowed` (case may differ), NaN where missing; index kept.

    Raises MetavoxelError naming row, value and the known levels of a cell that is none of them.
    """
    exact = {level: level for level in allowed}
    folded = Counter(level.casefold() for level in allowed)
    loose = {level.casefold(): level for level in allowed if folded[level.casefold()] == 1}
    cells = words_of(column)
    matched = [cell if cell is np.nan else exact.get(cell, loose.get(cell.casefold())) for cell in cells]
    if None in matched:
        at = matched.index(None)
        known = ", ".join(allowed)
        label, fix = name or column.name, "correct it, or write n/a if it is not known"
        raise MetavoxelError(
            f"{label}: unknown level {cells[at]!r} at {row_name(column, at)}; known levels are {known}; {fix}"
        )
    return pd.Series(matched, index=column.index, name=column.name, dtype=object)


def check_plausible(column: pd.Series, name: str | None = None, unit: str | None = None) -> None:
    """Refuse ages in years that no person has: negative, or beyond 130, as ages in days or months are.

    Only columns whose name starts with "age", in years or of no known unit, are looked at; others pass.
    """
    label = str(name or column.name)
    if not re.match(r"age(_|\b)", label.casefold()) or (unit or "years").casefold() not in ("years", "year", "y", "a"):
        return
    values = numbers(column, label)
    if (values < 0).any():
        at = int(np.flatnonzero(values < 0)[0])
        raise MetavoxelError(f"{label} {values[at]:g} at {row_name(column, at)} is negative; correct it, or write n/a")
    if (values > MAX_AGE_YEARS).any():
        at = int(np.flatnonzero(values > MAX_AGE_YEARS)[0])
        days = np.nanmax(values) > 12 * MAX_AGE_YEARS
        looks = "days; divide by 365.25" if days else "months; divide by 12"
        raise MetavoxelError(
            f"{label} {values[at]:g} at {row_name(column, at)} is no age in years, it looks like {looks}"
        )


def words_of(column: pd.Series) -> list[Any]:
    """Cells as text, whole numbers without a decimal point (a level 1 is read as 1.0); NaN where missing."""
    cells = column.tolist()
    return [
        np.nan if missing else f"{cell:.15g}" if isinstance(cell, (int, float)) else str(cell)
        for cell, missing in zip(cells, column.isna())
    ]


def check_codes(name: str, found: Sequence[str]) -> None:
    """Refuse a sex in three numbers or more that nobody explains: one of them, often 0, stands for "not known"."""
    if name.casefold() in ("sex", "gender") and len(found) > 2 and all(level.isdecimal() for level in found):
        fix = "write what they mean as its Levels into the table's .json, and n/a where it is not known"
        raise MetavoxelError(f"{name}: coded {', '.join(found)}, and nothing says what these mean; {fix}")


def row_name(column: pd.Series | pd.DataFrame, position: int) -> str:
    """How errors call a row: its label (a participant), or its number counted from 1 below the header."""
    label = column.index[position]
    return str(label) if isinstance(label, str) else f"row {int(label) + 1}"


def _cells(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows as stripped text, every row as long as the header, blank lines left out."""
    if not path.is_file():
        raise MetavoxelError(f"{path}: no such table; check the path")
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise MetavoxelError(f"{path}: not a table; give a .tsv, .csv or .xlsx file")
    if suffix == ".xlsx":
        rows = _excel_rows(path)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise MetavoxelError(f"{path}: not UTF-8 text; save the table again as UTF-8") from error
        if "\0" in text:  # UTF-16 without the mark at its start
            raise MetavoxelError(f"{path}: not UTF-8 text; save the table again as UTF-8")
        first = text.partition("\n")[0]
        # Spreadsheets of many countries write semicolons into a .csv; a BIDS .tsv knows no quotes.
        if suffix == ".tsv":
            rows = list(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
        else:
            delimiter = ";" if first.count(";") > first.count(",") else ","
            rows = list(csv.reader(text.splitlines(), delimiter=delimiter))
    rows = [[cell.strip() for cell in row] for row in rows]
    numbered = [(i, row) for i, row in enumerate(rows, start=1) if any(row)]
    if len(numbered) < 2:
        raise MetavoxelError(f"{path}: the table has no rows; add a header and one row a person")
    (_, header), *body = numbered
    for line, row in body:
        if row == header:
            raise MetavoxelError(f"{path}: line {line} repeats the header; remove it")
        if len(row) != len(header):
            fix = "add or remove the separators"
            raise MetavoxelError(f"{path}: line {line} has {len(row)} cells, the header has {len(header)}; {fix}")
    return header, [row for _, row in body]


def _excel_rows(path: Path) -> list[list[str]]:
    try:
        sheet = pd.read_excel(path, header=None, dtype=str, keep_default_na=False)
    except Exception as error:  # openpyxl and zipfile raise many kinds for a broken workbook
        raise MetavoxelError(f"{path}: not a readable workbook; save it again, or as .csv") from error
    return [[str(cell) for cell in row] for row in sheet.to_numpy().tolist()]


def _typed(name: str, cells: list[str]) -> pd.Series:
    """A column of float64 if every cell is a number, else of text. Codes such as 007 and all ids stay text."""
    column = pd.Series([np.nan if cell.casefold() in MISSING else cell for cell in cells], dtype=object)
    present = column.dropna()
    codes = name in IDENTIFIERS or any(re.match(r"[+-]?0\d", str(cell)) for cell in present)
    numeric = pd.to_numeric(present, errors="coerce")
    return column if codes or numeric.isna().any() else pd.to_numeric(column).astype(np.float64)


def _check_ids(path: Path, table: pd.DataFrame) -> None:
    blank = np.flatnonzero(table["participant_id"].isna())
    if blank.size:
        raise MetavoxelError(f"{path}: {row_name(table, blank[0])} has no participant_id; fill it in or remove the row")
    keys = list(zip(table["participant_id"].map(bare_id), bare_sessions(table)))
    seen: dict[tuple[str, str], int] = {}
    for at, key in enumerate(keys):
        if key in seen:
            who = table["participant_id"].iloc[at] + (f" {key[1]}" if key[1] else "")
            rows = f"{row_name(table, seen[key])} and {row_name(table, at)}"
            raise MetavoxelError(f"{path}: {who} occurs twice, in {rows}; remove one or give each a session_id")
        seen[key] = at
