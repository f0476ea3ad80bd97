"""A cohort: one row a scan session, its scalars in a table, its scans as paths; gaps allowed on both sides.

Read from a BIDS folder, from a table with a pattern or columns of paths, or from one scan. People, not rows, are split.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from metavoxel.data import scans as scan_files
from metavoxel.data.columns import ColumnGuess, columns_yaml, describe_columns, read_columns
from metavoxel.data.review import flagged_notes
from metavoxel.data.scans import Found, Session
from metavoxel.data.shares import deal, strata_of
from metavoxel.data.table import (
    IDENTIFIERS,
    TABLE_SUFFIXES,
    bare_id,
    bare_session,
    bare_sessions,
    check_codes,
    check_plausible,
    levels,
    numbers,
    read_sessions,
    read_sidecar,
    read_table,
)
from metavoxel.data.volume import is_scan_name, scan_stem
from metavoxel.errors import MetavoxelError
from metavoxel.files import files_of


@dataclass
class Cohort:
    """Rows of `table` (participant_id, [session_id], scalars) with their `scans` (image -> a path or None a row).

    `columns` describes the scalars, as they were read: a subset keeps all levels. `notes` tells what was assumed or is
    missing, for the person to read.
    """

    table: pd.DataFrame
    scans: dict[str, list[Path | None]]
    columns: dict[str, ColumnGuess]
    root: Path
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def participants(self) -> list[str]:
        """The id of each person once, in the order of the rows."""
        return list(dict.fromkeys(self.table["participant_id"]))

    def column(self, name: str) -> pd.Series:
        """A scalar's cells, indexed by participant (and session), so that errors name the row."""
        if name not in self.columns:
            raise MetavoxelError(f"there is no column {name!r}; there are {', '.join(self.columns) or 'none'}")
        index = self.table["participant_id"].astype(object)
        if "session_id" in self.table:
            session = self.table["session_id"]
            index = index.where(session.isna(), index + " " + session.astype(object).fillna(""))
        return self.table[name].set_axis(index.to_list())

    def subset(self, indices: Sequence[int] | np.ndarray) -> Cohort:
        """The rows at these positions, in this order."""
        positions = [int(i) for i in indices]
        return replace(
            self,
            table=self.table.iloc[positions].reset_index(drop=True),
            scans={name: [paths[i] for i in positions] for name, paths in self.scans.items()},
        )

    def exclude(self, names: Sequence[str]) -> Cohort:
        """Without these people ("sub-01" or "01") or sessions ("sub-01 ses-2"); a note tells who was left out.

        Raises MetavoxelError on a name that is not there, so that a slip of the pen leaves nobody in.
        """
        person = self.table["participant_id"].map(bare_id)
        session = bare_sessions(self.table)
        out = np.zeros(len(self), dtype=bool)
        for name in names:
            who, _, when = name.partition(" ")
            rows = (person == bare_id(who)) & ((session == bare_session(when)) | (when == ""))
            if not rows.any():
                raise MetavoxelError(f"--exclude {name}: no such row in {self.root}; write ids as in its table")
            out |= rows.to_numpy()
        if out.all():
            raise MetavoxelError(f"--exclude leaves nobody of {self.root}; exclude fewer")
        note = f"{int(out.sum())} rows left out by --exclude: {', '.join(names)}"
        return replace(self.subset(np.flatnonzero(~out)), notes=[*self.notes, note])

    def split(self, fractions: Sequence[float], seed: int = 0, stratify: Sequence[str] = ()) -> list[Cohort]:
        """Share the people out at random, one cohort for each of `fractions` (sum 1); nobody is in two of them.

        `stratify`: columns whose values (numbers: in fifths) are spread evenly over the parts. No part is empty.
        """
        kinds = self.kinds(stratify)
        part_of = dict(zip(kinds.index, deal(strata_of(kinds), fractions, seed)))
        rows = self.table["participant_id"].map(part_of).to_numpy()
        return [self.subset(np.flatnonzero(rows == part)) for part in range(len(fractions))]

    def kinds(self, names: Sequence[str]) -> pd.DataFrame:
        """A row a person, their first one's cells in these columns in words: numbers as one of five bands, "20 to 31"."""
        words = {}
        for name in names:
            cells = self.column(name).reset_index(drop=True)
            if self.columns[name].kind == "continuous":
                bands = pd.qcut(numbers(cells, name), 5, duplicates="drop")
                named = bands.rename_categories(lambda band: f"{band.left:.4g} to {band.right:.4g}")
                words[name] = pd.Series(named.add_categories(["missing"])).fillna("missing")
            else:
                words[name] = cells.astype(object).where(cells.notna(), "missing").astype("category")
        people = self.table["participant_id"]
        return pd.DataFrame(words, index=people.index).set_axis(people).loc[~people.duplicated().to_numpy()]

    def schema_yaml(self) -> str:
        """What each scan and column is taken for, for a person to edit; `read_cohort(schema=)` reads it."""
        return columns_yaml(self.columns, {name: paths.count(None) for name, paths in self.scans.items()})

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the table or with a scan's path, size or time of change."""
        digest = hashlib.sha256(self.table.to_csv(index=False).encode())
        for name in self.scans:
            digest.update(name.encode())
            digest.update(self.stats_of(name).encode())
        return digest.hexdigest()[:16]

    def stats_of(self, name: str) -> str:
        """Path, sizes and times of change of each row's scan of that name."""
        lines = []
        for path in self.scans[name]:
            stats = [file.stat() for file in files_of(path)] if path else []
            lines.append(f"{path} {' '.join(f'({s.st_size}, {s.st_mtime_ns})' for s in stats)}\n")
        return "".join(lines)


def read_cohort(
    path: str | os.PathLike[str],
    variables: Sequence[str] | None = None,
    pattern: str | None = None,
    schema: str | os.PathLike[str] | None = None,
) -> Cohort:
    """Read a BIDS folder, a table (.tsv, .csv, .xlsx) or one scan.

    `variables`: the image suffixes (T1w; or with entities, ce-gadolinium_T1w) and table columns to keep, all when None;
    `sex=gender` keeps gender and calls it sex. `pattern`: where a table's scans lie, relative to its folder, such as
    `scans/{participant_id}_{modality}.nii.gz` ({session_id} too), or folders of DICOM series; columns that hold file
    names need none. `schema`: what `metavoxel schema` wrote and a person edited; it settles what each column holds, and
    what it does not list is left out.
    People without a scan, and scans without a row, are kept with gaps and told in `notes`.
    Raises MetavoxelError on an empty folder, an unknown variable, a table and scans without a person in common, a path
    that does not exist, a spelling that is no level, an age that is none.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise MetavoxelError(f"{path}: no such file or folder; check the path")
    if path.is_file() and path.suffix.lower() not in TABLE_SUFFIXES:
        return _one_scan(path, variables)
    root = path if path.is_dir() else path.parent
    table_path = path if path.is_file() else path / "participants.tsv"
    table = read_table(table_path) if table_path.is_file() else pd.DataFrame({"participant_id": []}, dtype=object)
    sidecar = read_sidecar(table_path)
    found: Found = {}
    if pattern is not None:
        found = scan_files.match_pattern(root, pattern)
    elif path.is_dir():
        found = scan_files.match_bids(root)
    if table.empty and not found:
        raise MetavoxelError(f"{path}: no sub-*/anat scans and no participants.tsv; give a BIDS folder, or a table")
    notes: list[str] = []
    table = _with_sessions(root, table, found, notes) if path.is_dir() else table
    table, keys = _join(table, found, table_path, notes)
    in_cells = {str(name): _paths(table, str(name), root) for name in table.columns if _holds_paths(table[name])}
    images_there = [*in_cells, *scan_files.suffixes(found)]
    columns_there = [str(name) for name in table.columns if name not in IDENTIFIERS and name not in images_there]
    wanted = _wanted(path, variables, images_there + columns_there, scan_files.labels(found))
    settled: dict[str, ColumnGuess] = {}
    if schema is not None:
        chosen, settled = read_columns(Path(schema))
        if strangers := [name for name in (*chosen, *settled) if name not in wanted]:
            there = ", ".join(wanted)
            raise MetavoxelError(f"{schema}: {path} has no {strangers[0]!r} (it has {there}); take it out, or correct it")
        wanted = {name: wanted[name] for name in (*chosen, *settled)}

    images: dict[str, list[Path | None]] = {}
    cells = {name: table[name] for name in IDENTIFIERS if name in table}
    for new, old in wanted.items():
        if old in in_cells:
            images[new] = in_cells[old]
        elif old in columns_there:
            cells[new] = table[old]
        else:
            images[new] = scan_files.choose(found, keys, old, notes)
    for name, paths in images.items():
        if gaps := sum(p is None for p in paths):
            notes.append(f"{gaps} of {len(table)} rows have no {name}")
    notes += flagged_notes(root)
    sidecar = {new: sidecar[old] for new, old in wanted.items() if old in sidecar}
    try:
        return _settled(pd.DataFrame(cells), images, sidecar, root, notes, settled)
    except MetavoxelError as error:  # which names the row, of whichever of the tables
        raise MetavoxelError(f"{path}: {error}") from error


def concat(cohorts: Mapping[str, Cohort], site: str | None = "site") -> Cohort:
    """Join cohorts with the same variables; the keys become the levels of a new column `site` (None: no such column).

    Where a person's id occurs in two cohorts, all ids get their cohort's key in front. Spellings of a level that differ
    only in case become the first cohort's. Raises MetavoxelError when variables, kinds or units differ.
    """
    if not isinstance(cohorts, Mapping) or not cohorts:
        raise MetavoxelError("concat: give each cohort a name, such as {'oasis': one, 'adni': another}")
    cohorts = {str(key): cohort for key, cohort in cohorts.items()}
    first_key, first = next(iter(cohorts.items()))
    for key, other in cohorts.items():
        for one, two in ((set(first.columns), set(other.columns)), (set(first.scans), set(other.scans))):
            if one != two:
                odd = ", ".join(sorted(one ^ two))
                raise MetavoxelError(
                    f"concat: {first_key} and {key} differ in {odd}; read both with the same variables"
                )
        for name, guess in other.columns.items():
            mine = first.columns[name]
            if (guess.kind, guess.unit) != (mine.kind, mine.unit):
                kinds = f"{mine.kind} ({mine.unit}) in {first_key}, {guess.kind} ({guess.unit}) in {key}"
                raise MetavoxelError(f"concat: {name} is {kinds}; make the tables agree")
    if site is not None and (site in first.columns or site in first.scans):
        raise MetavoxelError(f"concat: there is a variable {site!r} already; pass another name, or site=None")
    people = [bare_id(person) for cohort in cohorts.values() for person in cohort.participants]
    clash = len(set(people)) < len(people)
    tables = []
    for key, cohort in cohorts.items():
        table = cohort.table.copy()
        if clash:
            table["participant_id"] = [f"{key}-{person}" for person in table["participant_id"]]
        if site is not None:
            table[site] = pd.Series([key] * len(table), dtype=object)
        tables.append(table)
    scans = {name: [p for cohort in cohorts.values() for p in cohort.scans[name]] for name in first.scans}
    notes = [f"{key}: {note}" for key, cohort in cohorts.items() for note in cohort.notes]
    settled: dict[str, ColumnGuess] = {}
    for name, guess in first.columns.items():  # the levels of all cohorts, in the first one's order and spelling
        every = [level for cohort in cohorts.values() for level in cohort.columns[name].levels]
        merged = {level.casefold(): level for level in reversed(every)}
        settled[name] = replace(guess, levels=tuple(dict.fromkeys(merged[level.casefold()] for level in every)))
    if site is not None:
        settled[site] = ColumnGuess(site, "categorical", None, tuple(cohorts), 0, "the cohorts' names")
    return _settled(pd.concat(tables, ignore_index=True), scans, {}, first.root, notes, settled)


def _settled(
    table: pd.DataFrame,
    scans: dict[str, list[Path | None]],
    sidecar: Mapping[str, Mapping[str, object]],
    root: Path,
    notes: list[str],
    settled: Mapping[str, ColumnGuess],
) -> Cohort:
    """A cohort whose columns are what a person has `settled`, else what they seem to be; its classes are spelt in one way
    and its ages are possible."""
    guesses = {n: g for n, g in describe_columns(table, sidecar).items() if n not in IDENTIFIERS}
    columns = {n: replace(settled.get(n, g), n_missing=g.n_missing) for n, g in guesses.items()}
    cohort = Cohort(table, scans, columns, root, notes)
    for name, guess in columns.items():
        if guess.is_class:
            if name not in settled and not sidecar.get(name, {}).get("Levels"):
                check_codes(name, guess.levels)
            table[name] = levels(cohort.column(name), guess.levels).to_numpy()
        elif guess.kind == "continuous":
            if name in settled:
                numbers(cohort.column(name), name)
            check_plausible(cohort.column(name), name, guess.unit)
    return cohort


def _one_scan(path: Path, variables: Sequence[str] | None) -> Cohort:
    """A cohort of one row, its image called by the file's suffix (sub-01_T1w.nii.gz) or by the only variable."""
    if not is_scan_name(path):
        raise MetavoxelError(f"{path}: neither a scan nor a table; give a .nii.gz, .nii, .mgz, .tsv or .csv file")
    stem = scan_stem(path)
    suffix = stem.rpartition("_")[2]
    named = {variable.rpartition("=")[2]: variable.partition("=")[0] for variable in variables or ()}
    if variables is None:
        name = suffix if "_" in stem else "image"
    elif suffix in named or len(named) == 1:
        name = named.get(suffix) or next(iter(named.values()))
    else:
        known = ", ".join(variables)
        raise MetavoxelError(
            f"{path}: cannot tell which of {known} it is; name it ..._T1w.nii.gz, or name one variable"
        )
    person = re.match(r"sub-[^_]+", stem)
    table = pd.DataFrame({"participant_id": [person.group() if person else stem]}, dtype=object)
    return Cohort(table, {name: [path]}, {}, path.parent)


def _wanted(path: Path, variables: Sequence[str] | None, there: list[str], labels: list[str]) -> dict[str, str]:
    """New name -> name in the files, of the variables asked for."""
    if variables is None:
        return {name: name for name in there}
    wanted: dict[str, str] = {}
    for variable in variables:
        new, _, old = variable.partition("=")
        old = old or new
        if old not in there and old not in labels:
            raise MetavoxelError(f"{path}: no variable {old!r}; there are {', '.join(there)}")
        if new in wanted or new in IDENTIFIERS:
            raise MetavoxelError(f"{path}: variable {new!r} is asked for twice, or is an identifier; name each once")
        wanted[new] = old
    return wanted


def _with_sessions(root: Path, table: pd.DataFrame, found: Found, notes: list[str]) -> pd.DataFrame:
    """People's rows repeated for each of their sessions (BIDS sessions.tsv), whose cells come before the person's; a
    scanned session that has no line there has the person's alone."""
    sessions = read_sessions(root)
    if sessions is None or "session_id" in table:
        return table
    listed = set(zip(sessions["participant_id"].map(bare_id), bare_sessions(sessions)))
    known = {bare_id(who) for who in table["participant_id"]}
    bare = [(who, when) for who, when in sorted(found) if when and who in known and (who, when) not in listed]
    if bare:
        whose = "its facts are the person's" if len(bare) == 1 else "their facts are the person's"
        first = f"sub-{bare[0][0]} ses-{bare[0][1]}"
        notes.append(f"{len(bare)} scanned sessions have no line in a sessions.tsv, e.g. {first}; {whose}")
        more = pd.DataFrame(bare, columns=["participant_id", "session_id"], dtype=object)
        sessions = pd.concat([sessions, more], ignore_index=True)
    left = table.assign(person=table["participant_id"].map(bare_id))
    right = sessions.assign(person=sessions["participant_id"].map(bare_id)).drop(columns="participant_id")
    merged = left.merge(right, on="person", how="left", suffixes=("", "\0"))
    for name in set(table.columns) & set(right.columns):
        merged[name] = merged.pop(f"{name}\0").combine_first(merged[name])
    return merged.drop(columns="person")


def _join(table: pd.DataFrame, found: Found, table_path: Path, notes: list[str]) -> tuple[pd.DataFrame, list[Session]]:
    """The table with a row for each session, in its order, then those with scans only; and the session of each row."""
    people = [bare_id(person) for person in table["participant_id"]]
    scanned: dict[str, list[str]] = {}
    for person, session in sorted(found):
        scanned.setdefault(person, []).append(session)
    if people and scanned and not set(people) & set(scanned):
        ids = f"{table['participant_id'].iloc[0]!r} in the table, {'sub-' + next(iter(scanned))!r} among the scans"
        raise MetavoxelError(f"{table_path}: no person has both a row and a scan ({ids}); make the ids agree")
    if "session_id" in table:
        rows = list(range(len(table)))
        sessions = bare_sessions(table).to_list()
    else:
        pairs = [(row, s) for row, person in enumerate(people) for s in scanned.get(person, [""])]
        rows, sessions = [row for row, _ in pairs], [s for _, s in pairs]
    keys = [(people[row], session) for row, session in zip(rows, sessions)]
    extra = sorted(set(found) - set(keys))
    if extra and people:
        notes.append(f"{len(extra)} scanned sessions have no row in {table_path.name}, e.g. sub-{extra[0][0]}")
    prefix = "sub-" if table["participant_id"].str.startswith("sub-").any() or not people else ""
    scans_only = pd.DataFrame({"participant_id": [prefix + person for person, _ in extra]}, dtype=object)
    parts = [part for part in (table.iloc[rows], scans_only) if len(part)]
    joined, keys = pd.concat(parts, ignore_index=True), keys + extra
    if any(session for _, session in keys):
        cells = pd.Series([session or np.nan for _, session in keys], dtype=object)
        joined = joined.drop(columns="session_id", errors="ignore")
        joined.insert(1, "session_id", cells)
    return joined, keys


def _holds_paths(column: pd.Series) -> bool:
    """Whether every cell that is there is the name of a scan."""
    present = column.dropna()
    return len(present) > 0 and all(is_scan_name(str(cell)) for cell in present)


def _paths(table: pd.DataFrame, name: str, root: Path) -> list[Path | None]:
    """A column of file names as paths below `root`; refuses a file that is not there."""
    paths = [None if pd.isna(cell) else root / str(cell) for cell in table[name]]
    owner: dict[Path, str] = {}
    for person, path in zip(table["participant_id"], paths):
        if path is None:
            continue
        if owner.setdefault(path, person) != person:
            fix = "correct one, or write n/a"
            raise MetavoxelError(f"{path}: is named in column {name} for both {owner[path]} and {person}; {fix}")
        if not path.is_file():
            raise MetavoxelError(f"{path}: no such scan, named in column {name} at {person}; correct it, or write n/a")
    return paths
