"""What a variable may be called: its name becomes a column of answers, a key and the name of a file."""

from collections.abc import Sequence
from typing import Protocol

from metavoxel.data.table import IDENTIFIERS
from metavoxel.errors import MetavoxelError

TAKEN = (*IDENTIFIERS, "draw", "warning", "truth")
"""Columns that the tables of answers and draws have besides."""
UNFIT = '/\\:*?"<>|=,{}\0\n\r\t'
"""What no file is called on some system or other, or what the command line takes apart."""


QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
NUMBER_COLUMNS = ("mean", "sd", *QUANTILES)
"""NAME_mean and so on: a number's columns in the table of answers."""


class Named(Protocol):
    """A variable, of which a class also has `levels`."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...


def level_columns(name: str, levels: Sequence[str]) -> list[str]:
    """A class's probabilities in the table of answers."""
    return [f"{name}_p_{level}" for level in levels]


def answer_columns(variable: Named) -> list[str]:
    """All that the table of answers may say of it: a class has its bare name too, a number and an image have not."""
    name, levels = variable.name, getattr(variable, "levels", None)
    if levels is not None:
        return [name, *level_columns(name, levels)]
    return [f"{name}_{part}" for part in (("surprise",) if variable.kind == "image" else NUMBER_COLUMNS)]


def check_names(variables: Sequence[Named]) -> None:
    """Raises MetavoxelError, with the fix, where a name is empty, repeated, taken or no name for a file, or where two
    would be told in one column."""
    names = [variable.name for variable in variables]
    if not names or len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise MetavoxelError(f"a schema needs variables with names of their own; repeated: {repeated}")
    fix = "call it something else in the table, or by --variables new=old"
    for name in names:
        odd = next((sign for sign in name if sign in UNFIT), None)
        if name in TAKEN:
            wrong = "is a column that answers have besides"
        elif odd is not None:
            wrong = f"holds {odd!r}, which no file's name may"
        elif name.strip() != name or name.strip(".") != name or not name:
            wrong = "is no name for a file"
        else:
            continue
        raise MetavoxelError(f"variable {name!r} {wrong}; {fix}")
    told: dict[str, str] = {}
    for variable in sorted(variables, key=lambda variable: len(variable.name)):
        for column in answer_columns(variable):
            if column in told:
                wrong = f"would be told in the column {column!r}, as {told[column]!r} is"
                raise MetavoxelError(f"variable {variable.name!r} {wrong}; {fix}")
            told[column] = variable.name
