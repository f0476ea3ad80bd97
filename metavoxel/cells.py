"""What a table's cells mean before anything is made of them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

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
