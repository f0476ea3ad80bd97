"""Two evaluations of the same people side by side, with paired tests: which model is better, beyond chance?"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from metavoxel.data.cohort import Cohort
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.accuracy import LOW_IS_GOOD, SHOWN
from metavoxel.evaluate.calibration import crps
from metavoxel.evaluate.claims import Claim
from metavoxel.evaluate.figures import OURS
from metavoxel.evaluate.scores import class_scores, compare, holm, number_scores
from metavoxel.files import DIGITS, atomic_write, make_folder
from metavoxel.page import Report, Section, Table

ANSWERS = "answers"
TRUTH = "truth"
CRPS, OF_DRAWS = "CRPS", " (CRPS)"
"""A figure, and the end of its column's name in the answers."""
KEYS = ["participant_id", "session_id"]
LEAST_P = 0.05
GOOD_LOW = {*(words for shown in SHOWN for metric, words in shown.items() if metric in LOW_IS_GOOD), CRPS}
Scores = Callable[[np.ndarray, np.ndarray], dict[str, float]]
"""True values and what was said of them -> figures."""


def save_answers(claims: Sequence[Claim], cohort: Cohort, folder: Path) -> None:
    """One CSV a variable: who each row is, the truth (of a class, its level), and what the model said under each set of
    given facts: GIVEN of a number, "GIVEN (CRPS)" for the score of its draws, "GIVEN: LEVEL" for the probability of each
    level of a class."""
    identity = cohort.table[[key for key in KEYS if key in cohort.table]]
    make_folder(folder)
    for name in dict.fromkeys(claim.variable.name for claim in claims):
        own = [claim for claim in claims if claim.who == OURS and claim.variable.name == name]
        table = identity.copy()
        levels: tuple[str, ...] = getattr(own[0].variable, "levels", ())
        table[TRUTH] = pd.Series(np.nan, table.index, dtype=object if levels else float)
        for claim in own:
            table.loc[claim.rows, TRUTH] = np.array(levels, object)[claim.truth.astype(int)] if levels else claim.truth
            columns = [f"{claim.given}: {level}" for level in levels] if levels else [claim.given]
            table[columns] = np.nan
            table.loc[claim.rows, columns] = claim.told.reshape(len(claim.rows), -1)
            if claim.draws is not None:
                table.loc[claim.rows, claim.given + OF_DRAWS] = crps(claim.truth, claim.draws)
        with atomic_write(folder / f"{name}.csv") as file:
            table.to_csv(file, index=False, float_format=DIGITS)


def comparison(a: Path, b: Path, seed: int = 0) -> tuple[pd.DataFrame, list[str]]:
    """variable, given, figure, a, b, difference (a less b) with its 95 % interval low and high, p, n, p_holm (corrected
    for all tests of the variable); and what was left out, in sentences.

    a, b: folders of two evaluations. Raises MetavoxelError where they have no variable or nobody in common, or where the
    truth differs: then they are not about the same people.
    """
    rows, left_out = [], dict[str, None]()
    for name in _shared(a, b):
        one, other = (_read(folder / ANSWERS / f"{name}.csv") for folder in (a, b))
        both, either = one.index.intersection(other.index), one.index.union(other.index)
        if not len(both):
            raise MetavoxelError(f"{a} and {b}: have nobody in common; evaluate both models on one cohort")
        if alone := len(either) - len(both):
            left_out[f"{alone} of {len(either)} rows were asked about in one evaluation only, and are left out."] = None
        one, other = one.loc[both], other.loc[both]
        levels = _same_levels(name, one, other, a, b)
        truth = _truth(one, levels)
        differs = ~np.isclose(truth, _truth(other, levels), equal_nan=True)
        if differs.any():
            who = both[differs][0][0]
            raise MetavoxelError(f"{name} of {who} differs between {a} and {b}; evaluate both models on one cohort")
        for given, (said_a, said_b) in _answered(one, other):
            known = ~(np.isnan(truth) | np.isnan(said_a).any(1) | np.isnan(said_b).any(1))
            scores: Scores = class_scores if levels else number_scores
            shown = SHOWN[bool(levels)]
            shape = (-1, said_a.shape[1]) if levels else (-1,)
            if given.endswith(OF_DRAWS):
                given, scores, shown = given.removesuffix(OF_DRAWS), _mean, {CRPS: CRPS}
            right, people = truth[known], both.get_level_values(0)[known]
            of_a, of_b = said_a[known].reshape(shape), said_b[known].reshape(shape)
            found = compare(scores, right, of_a, of_b, people, seed=seed)
            values = scores(right, of_a), scores(right, of_b)
            rows += [{"variable": name, "given": given, "figure": words, "a": values[0][key], "b": values[1][key],
                      "difference": found[key].value, "low": found[key].low, "high": found[key].high,
                      "p": found[key].p, "n": int(known.sum())} for key, words in shown.items()]  # fmt: skip
    if not rows:
        raise MetavoxelError(f"{a} and {b}: were asked no question in common; evaluate both models on one cohort")
    table = pd.DataFrame(rows).assign(p_holm=np.nan)
    for _, own in table.dropna(subset="p").groupby("variable"):
        table.loc[own.index, "p_holm"] = holm(own["p"].to_list())
    return table, list(left_out)


def _mean(truth: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return {CRPS: float(scores.mean())}


def comparison_page(table: pd.DataFrame, left_out: Sequence[str], a: Path, b: Path) -> Report:
    """A section a variable."""
    sections = []
    for name, own in table.groupby("variable", sort=False):
        found = own.to_dict("records")
        better: dict[str, list[str]] = {a.name: [], b.name: []}
        for f in found:
            if f["p_holm"] < LEAST_P:
                lower = (f["difference"] < 0) == (f["figure"] in GOOD_LOW)
                better[a.name if lower else b.name].append(f"{f['figure']} given {f['given']} ({f['difference']:+.3g})")
        said = [f"{who} is better in {'; '.join(where)}." for who, where in better.items() if where]
        conclusion = " ".join(said) or "Neither is better beyond chance in any figure."
        rows = [(f["given"], f["figure"], _shown(f["a"]), _shown(f["b"]), _difference(f), _shown(f["p"], ".2g"),
                 _shown(f["p_holm"], ".2g"), str(f["n"])) for f in found]  # fmt: skip
        header = ("given", "figure", a.name, b.name, "difference", "p", "p of all", "n")
        sections.append(Section(str(name), conclusion, table=Table(header, rows)))
    note = ("Intervals: paired bootstrap over people. p: permutation that exchanges, person by person, what the two models "
            f"said; p of all: corrected for all tests of the variable (Holm), by which it is said who is better (below "
            f"{LEAST_P:g}).")  # fmt: skip
    return Report(f"{a.name} beside {b.name}", ["Two models, asked about the same people.", *left_out], sections, [note])


def _shown(value: float, digits: str = ".3g") -> str:
    """Nothing where it could not be found, as R2 of one person."""
    return "" if np.isnan(value) else f"{value:{digits}}"


def _difference(found: Mapping[Hashable, float]) -> str:
    interval = f" [{found['low']:.3g}, {found['high']:.3g}]" if not np.isnan(found["low"]) else ""
    return _shown(found["difference"], "+.3g") + interval


def _same_levels(name: str, one: pd.DataFrame, other: pd.DataFrame, a: Path, b: Path) -> list[str]:
    """Of a class, the levels in the first one's order, which both must know; none of a number."""
    known = [sorted(levels) for levels in (_levels(one), _levels(other))]
    if known[0] != known[1]:
        says = " and ".join(f"{', '.join(levels) or 'numbers'} in {folder}" for levels, folder in zip(known, (a, b)))
        raise MetavoxelError(f"{name}: has the levels {says}; compare models that know the same")
    return _levels(one)


def _levels(table: pd.DataFrame) -> list[str]:
    """Of a class, in order; none of a number."""
    return list(dict.fromkeys(column.partition(": ")[2] for column in map(str, table.columns) if ": " in column))


def _truth(table: pd.DataFrame, levels: Sequence[str]) -> np.ndarray:
    """(rows,), of a class as an index of the levels."""
    number = {level: index for index, level in enumerate(levels)}
    return (table[TRUTH].map(number) if levels else table[TRUTH]).to_numpy(dtype=float)


def _shared(a: Path, b: Path) -> list[str]:
    names = [{path.stem for path in (folder / ANSWERS).glob("*.csv")} for folder in (a, b)]
    for folder, found in zip((a, b), names):
        if not found:
            raise MetavoxelError(f"{folder}: holds no {ANSWERS}; give a folder that metavoxel evaluate wrote")
    if not names[0] & names[1]:
        raise MetavoxelError(f"{a} and {b}: were not asked about any variable in common")
    return sorted(names[0] & names[1])


def _read(path: Path) -> pd.DataFrame:
    header = pd.read_csv(path, nrows=0)
    text = [*KEYS, *([TRUTH] if _levels(header) else [])]  # a level may be called 1
    table = pd.read_csv(path, dtype=dict.fromkeys(text, str))
    visit = table[KEYS[1]].fillna("") if KEYS[1] in table else table.groupby(KEYS[0]).cumcount()
    return table.drop(columns=KEYS, errors="ignore").set_axis(pd.MultiIndex.from_arrays([table[KEYS[0]], visit]))


def _answered(one: pd.DataFrame, other: pd.DataFrame) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Under each set of given facts that both were asked: what they said, (rows, 1) or (rows, levels)."""
    columns = [column for column in one.columns if column != TRUTH and column in other]
    for given in dict.fromkeys(column.split(": ")[0] for column in columns):
        own = [column for column in columns if column.split(": ")[0] == given]
        yield given, (one[own].to_numpy(float), other[own].to_numpy(float))
