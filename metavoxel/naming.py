"""What a variable may be called: its name becomes a column of answers, a key and the name of a file."""

from collections.abc import Sequence

from metavoxel.data.table import IDENTIFIERS
from metavoxel.errors import MetavoxelError

TAKEN = (*IDENTIFIERS, "draw", "warning", "truth")
"""Columns that the tables of answers and draws have besides."""
UNFIT = '/\\:*?"<>|=,{}\0\n\r\t'
"""What no file is called on some system or other, or what the command line takes apart."""


QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
NUMBER_COLUMNS = ("mean", "sd", *QUANTILES)
"""NAME_mean and so on: a number's columns in the table of answers, in which a class has its bare name."""


def check_names(names: Sequence[str], classes: Sequence[str] = ()) -> None:
    """Raises MetavoxelError, with the fix, where a name is empty, repeated, taken or no name for a file. classes: those
    of the names that are told as a class."""
    if not names or len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise MetavoxelError(f"a schema needs variables with names of their own; repeated: {repeated}")
    for name in names:
        odd = next((sign for sign in name if sign in UNFIT), None)
        stem, _, suffix = name.rpartition("_")
        if name in TAKEN or (name in classes and stem in names and suffix in (*NUMBER_COLUMNS, "surprise")):
            wrong = "is a column that answers have besides"
        elif odd is not None:
            wrong = f"holds {odd!r}, which no file's name may"
        elif name.strip() != name or name.strip(".") != name or not name:
            wrong = "is no name for a file"
        else:
            continue
        raise MetavoxelError(f"variable {name!r} {wrong}; call it something else in the table, or by --variables new=old")
