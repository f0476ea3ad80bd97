"""What a cohort's scans and columns become in a model, where nobody says."""

from metavoxel.clocks import CLOCKS
from metavoxel.config import Config
from metavoxel.data.cohort import Cohort
from metavoxel.data.columns import ColumnGuess
from metavoxel.data.table import numbers
from metavoxel.schema import Categorical, Continuous, Image, Ordinal, Schema, Variable


def infer_schema(cohort: Cohort, config: Config) -> Schema:
    """One variable for each kind of scan and each number or class that differs between people; see `left_out`."""
    clock = CLOCKS[config.clock]
    variables: list[Variable] = [
        Image(name, config.shape, tuple(config.spacing), config.codec, clock=clock) for name in cohort.scans
    ]
    for name, guess in cohort.columns.items():
        if _unfit(cohort, name, guess):
            continue
        if guess.kind == "continuous":
            scaling = config.scaling.get(name, config.scaling.get("*", "linear"))
            variables.append(Continuous(name, guess.unit or "", scaling, clock=clock))
        else:
            levels = tuple(guess.levels)
            is_ordinal = guess.kind == "ordinal" or name in config.ordinal
            variables.append(Ordinal(name, levels) if is_ordinal else Categorical(name, levels, config.chain))
    return Schema(variables)


def left_out(cohort: Cohort) -> list[str]:
    """The columns that become no variable, each with the reason."""
    reasons = {name: _unfit(cohort, name, guess) for name, guess in cohort.columns.items()}
    return [f"{name or 'a column without a name'} ({reason})" for name, reason in reasons.items() if reason]


def _unfit(cohort: Cohort, name: str, guess: ColumnGuess) -> str:
    """Why a column is no variable; nothing where it is one."""
    if guess.kind == "continuous":
        same = len(set(numbers(cohort.column(name).dropna(), name))) < 2
    elif guess.is_class:
        same = len(guess.levels) < 2
    else:
        return f"{guess.kind}: {guess.reason}"
    return "the same in everybody" if same else ""
