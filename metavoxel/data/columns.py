"""What each column of a table holds: guessed from its cells, written as YAML for a person to edit, and read back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from metavoxel.data.table import IDENTIFIERS, words_of
from metavoxel.errors import MetavoxelError

MAX_LEVELS = 20  # more different words than this are names or remarks, not a class
FEW_CODES = 6  # so few different whole numbers may be codes of classes; a person is asked to look
CLASS_NAME = re.compile(r"sex|gender|site|scanner|cent(er|re)|group|diagnosis|handedness|race|ethnicity")
AMOUNT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*(years?|yrs?|y|months?|mo|weeks?|days?|d|kg|cm|mm|ml)?", re.I)
SCALES = (
    ("none", "no", "absent", "normal", "minimal", "questionable", "very mild", "mild", "moderate", "marked", "severe",
     "very severe"),
    ("never", "rarely", "sometimes", "often", "always"),
    ("very low", "low", "medium", "middle", "high", "very high"),
    ("primary", "secondary", "tertiary"),
    ("i", "ii", "iii", "iv", "v"),
)  # fmt: skip
"""Words in the order of what they say, lowest first."""

Kind = Literal["continuous", "categorical", "ordinal", "identifier", "text"]
HEAD = """\
# What each scan and column of the cohort is taken for. Edit kind, unit and levels; take out what is not to be used.
# kind: continuous (a number), categorical (a class), ordinal (a class, its levels in order, lowest first),
#       identifier or text (neither is used). missing, reason and meaning are there to be read.
"""


@dataclass(frozen=True)
class ColumnGuess:
    """What a column seems to hold, and why. `levels` are in the sidecar's order and spelling where there is one;
    `meaning`, the sidecar's description."""

    name: str
    kind: Kind
    unit: str | None
    levels: tuple[str, ...]
    n_missing: int
    reason: str
    meaning: str | None = None

    @property
    def is_class(self) -> bool:
        """Whether it holds one of a few levels, in order or not."""
        return self.kind in ("categorical", "ordinal")


def describe_columns(table: pd.DataFrame, sidecar: Mapping[str, Any] | None = None) -> dict[str, ColumnGuess]:
    """Guess what each column holds; a sidecar's Levels and Units settle it. Levels that differ only in case are one."""
    return {name: _describe(table[name], name, (sidecar or {}).get(name, {})) for name in table.columns}


def columns_yaml(columns: Mapping[str, ColumnGuess], scans: Mapping[str, int]) -> str:
    """The text of a schema file. `scans`: image -> rows without it."""
    entries = {}
    for name, guess in columns.items():
        entry = {
            "kind": guess.kind, "unit": guess.unit, "levels": list(guess.levels), "missing": guess.n_missing,
            "reason": guess.reason, "meaning": guess.meaning,
        }  # fmt: skip
        entries[name] = {key: value for key, value in entry.items() if value not in (None, [])}
    content = {"scans": {name: {"missing": n} for name, n in scans.items()}, "columns": entries}
    return HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def read_columns(path: Path) -> tuple[list[str], dict[str, ColumnGuess]]:
    """The scans and the columns that a schema file names. Raises MetavoxelError that names the entry which is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MetavoxelError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    try:
        file = _file.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        fix = first["msg"].removeprefix("Value error, ")
        raise MetavoxelError(f"{path}: {place}: {fix}; metavoxel schema COHORT writes one to edit") from error
    for name, entry in file.columns.items():
        if entry.kind in ("categorical", "ordinal") and len(set(entry.levels)) < max(1, len(entry.levels)):
            raise MetavoxelError(f"{path}: columns.{name}.levels: a class needs its levels, each once; list them all")
    return list(file.scans), {
        name: ColumnGuess(name, e.kind, e.unit, e.levels, e.missing, f"{path.name} says so", e.meaning)
        for name, e in file.columns.items()
    }


def _level(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"YAML reads an unquoted yes or no as {value}; put the level in quotes")
    return f"{value:.15g}" if isinstance(value, int | float) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Scan(_Strict):
    missing: int = 0


class _Entry(_Strict):
    kind: Kind
    unit: str | None = None
    levels: tuple[Annotated[str, BeforeValidator(_level)], ...] = ()
    missing: int = 0
    reason: str = ""
    meaning: str | None = None


class _File(_Strict):
    scans: dict[str, _Scan] = {}
    columns: dict[str, _Entry] = {}


_file = TypeAdapter(_File)


def _describe(column: pd.Series, name: str, entry: Mapping[str, Any]) -> ColumnGuess:
    words = [word for word in words_of(column) if word is not np.nan]
    numeric = pd.api.types.is_numeric_dtype(column) and bool(words)
    unit = entry.get("Units") or ("years" if name.casefold() == "age" else None)
    missing = len(column) - len(words)

    def guess(kind: Kind, reason: str, found: tuple[str, ...] = ()) -> ColumnGuess:
        own_unit, meaning = unit if kind == "continuous" else None, entry.get("Description")
        return ColumnGuess(name, kind, own_unit, found, missing, reason, meaning)

    if name in IDENTIFIERS:
        return guess("identifier", "its name")
    if re.fullmatch(r"(Unnamed: \d+)?", name):  # the row numbers of pandas
        return guess("identifier", "it has no name")
    listed = entry.get("Levels")
    if isinstance(listed, (dict, list)) and listed:
        known = [str(level) for level in listed]
        used = {word.casefold() for word in words}
        found = tuple(level for level in known if level.casefold() in used) or tuple(known)
        meanings = [str(listed[level]) for level in found] if isinstance(listed, dict) else []
        if scale := next((words for words in (found, meanings) if _is_scale(words)), None):
            return guess("ordinal", f"the sidecar lists levels that are a scale ({', '.join(scale)})", found)
        return guess("categorical", "the sidecar lists levels", found)
    if not words:
        return guess("text", "every cell is missing")
    distinct = _distinct(words)
    if numeric and set(words) == {"0", "1"} and not entry.get("Units"):
        return guess("categorical", "only 0 and 1", distinct)
    if numeric:
        whole = all(re.fullmatch(r"[+-]?\d+", word) for word in distinct)
        if whole and len(distinct) <= MAX_LEVELS and CLASS_NAME.fullmatch(name.casefold()):
            return guess("categorical", f"its name, and {len(distinct)} different codes", distinct)
        few = whole and len(distinct) <= FEW_CODES
        doubt = f"; only {len(distinct)} different whole ones, are they codes?" if few else ""
        return guess("continuous", f"every cell is a number{doubt}")
    amounts = sum(AMOUNT.fullmatch(word) is not None for word in words)
    if amounts == len(words):
        return guess("continuous", "every cell is a number, some with a unit")
    if len(distinct) <= MAX_LEVELS and len(distinct) <= max(2, len(words) / 2):
        if ordered := _in_order(distinct):
            return guess("ordinal", f"{len(distinct)} words that are a scale", ordered)
        return guess("categorical", f"{len(distinct)} different words in {len(words)} cells", distinct)
    if amounts > len(words) / 2:  # numbers with a slip of the pen: `numbers` names the row
        return guess("continuous", f"{amounts} of {len(words)} cells are numbers")
    if len(distinct) == len(words):
        return guess("identifier", "no two cells are alike")
    return guess("text", f"{len(distinct)} different words in {len(words)} cells")


def _distinct(words: Sequence[str]) -> tuple[str, ...]:
    """The different words, sorted, numbers by size; of spellings that differ only in case, the commonest."""
    spellings: dict[str, str] = {}
    for word, _ in sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])):
        spellings.setdefault(word.casefold(), word)
    try:
        return tuple(sorted(spellings.values(), key=float))
    except ValueError:
        return tuple(sorted(spellings.values()))


def _in_order(words: Sequence[str]) -> tuple[str, ...]:
    """Three words or more of one scale, lowest first; none where they are not."""
    for scale in SCALES:
        if len(words) > 2 and all(word.casefold() in scale for word in words):
            return tuple(sorted(words, key=lambda word: scale.index(word.casefold())))
    return ()


def _is_scale(words: Sequence[str]) -> bool:
    """Whether words stand in the order of a scale, in either direction."""
    ordered = _in_order(words)
    return bool(ordered) and tuple(words) in (ordered, ordered[::-1])
