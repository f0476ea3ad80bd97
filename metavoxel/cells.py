"""What a table's cells mean before anything is made of them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from metavoxel.errors import MetavoxelError

MISSING = {"", "n/a", "na", "nan"}


def cells_of(column: Sequence[object] | pd.Series) -> pd.Series:
    """The cells with what tables write for "missing" (empty, n/a) as missing."""
    cells = pd.Series(column)
    if pd.api.types.is_numeric_dtype(cells):
        return cells
    return cells.mask(cells.map(lambda cell: isinstance(cell, str) and cell.strip().lower() in MISSING).astype(bool))


def level_name(cell: object) -> str:
    """A level read as a number (1.0) is the level '1'."""
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).strip()


def floats_of(column: Sequence[object] | pd.Series, name: str) -> np.ndarray:
    """(n,) float64, NaN where missing; an error names the variable and the row of what is no number."""
    cells = cells_of(column)
    values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=float)
    wrong = np.isnan(values) & cells.notna().to_numpy() | np.isinf(values)
    if wrong.any():
        row = int(wrong.argmax())
        cell = str(cells.iloc[row])
        raise MetavoxelError(f"{name}: row {cells.index[row]} holds {cell!r}, which is not a number")
    return values


def codes_of(column: Sequence[object] | pd.Series, levels: Sequence[str], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Which level each cell is (n,) int64, and whether it is known (n,) bool; an error names the variable, the row and the
    levels."""
    cells = cells_of(column)
    index = {level: code for code, level in enumerate(levels)}
    for level in levels:  # f is F, unless the levels themselves differ only in case
        index.setdefault(level.casefold(), index[level])
    known = cells.notna().to_numpy(dtype=bool, copy=True)
    codes = np.zeros(len(cells), dtype=np.int64)
    for row in np.flatnonzero(known).tolist():
        level = level_name(cells.iloc[row])
        code = index.get(level, index.get(level.casefold()))
        if code is None:
            allowed = ", ".join(levels)
            raise MetavoxelError(f"{name}: row {cells.index[row]} holds unknown level {level!r}; known levels: {allowed}")
        codes[row] = code
    return codes, known
