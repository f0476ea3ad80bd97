"""Does a drawn scan show what was asked for? The report's chapters over `requests`."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from metavoxel.evaluate import plots
from metavoxel.evaluate.figures import CONSTANT, EVERYBODY, OURS, Figure, Findings
from metavoxel.evaluate.looks import REAL
from metavoxel.evaluate.requests import Sample, Trial, compare_curves, distances, linear_fit, match, train_on_drawn
from metavoxel.loading import Progress
from metavoxel.page import Picture, Section, Table

SECTION = "requests"
TRAINED = "trained on"

VERDICTS = {-1: "harder to read", 1: "easier to read, so too typical", 0: "as easy to read, within chance"}
AGE_BANDS = 3
SIZE, CURVES = "head_ml", ("brain_ml", "ventricles_ml", "grey_ml", "white_ml", "csf_ml")
WRONG_WAY, TOO_LITTLE, TOO_MUCH = "the wrong way", "too little", "too much"
AS_REAL, UNCERTAIN = "as real ones do, within chance", "by an amount that is not certain"


def matches(
    image: str, names: Sequence[str], samples: Sequence[tuple[Sample, Sample, Sample]], seed: int, progress: Progress
) -> Iterator[Figure]:
    """metric "age: mae" and so on: what a predictor trained on real training scans reads off drawn ones, beside real ones
    and what a constant tells of real people; metric "age: mae, trained on drawn": what one trained on drawn, real or both
    scans knows of real people in the test.

    samples: of each model, scans that it drew, real ones of people whom it has not learnt from, and of those it has.
    """
    stages = len(samples) + 2  # judges are fitted, scans are read, others are fitted to drawn scans and to both
    trials = []
    for done, (drawn, test, training) in enumerate(samples):
        progress(done, stages)
        trials.append(Trial(linear_fit(training, names), drawn, test, training))
    progress(stages - 2, stages)
    for row in match(trials, names, seed).to_dict("records"):
        yield _figure(image, row, f"{row['variable']}: {row['metric']}", OURS if row["of"] == "drawn" else REAL)
    progress(stages - 1, stages)
    for row in train_on_drawn(trials, names, seed).to_dict("records"):
        metric, alone = f"{row['variable']}: {row['metric']}", row["training"] == CONSTANT
        own = metric if alone else f"{metric}, {TRAINED} {row['training']}"
        yield _figure(image, row, own, CONSTANT if alone else OURS)
    progress(stages, stages)


def _figure(image: str, row: Mapping[Any, Any], metric: str, who: str) -> Figure:
    return Figure(SECTION, image, metric, row["value"], who, low=row["low"], high=row["high"])


def curves(image: str, drawn: pd.DataFrame, real: pd.DataFrame, seed: int) -> Iterator[Figure]:
    """metric "brain_ml: slope_ratio" and so on, at equal head size, see `requests.compare_curves`; "brain_ml: wasserstein"
    of each group "sex = F" and of thirds of the real people by age, beside that of real scans shuffled with them. drawn,
    real: volumes with age and sex."""
    group = "sex" if "sex" in drawn else None
    parts = [compare_curves(drawn, real, names, group, size, seed) for names, size in ((CURVES, SIZE), ((SIZE,), None))]
    for row in pd.concat(parts, ignore_index=True).to_dict("records"):
        name, n = row["volume"], int(row["n_drawn"])
        if np.isfinite(row["ratio_low"]):  # what does not surely change with age has no ratio of slopes
            low, high = float(row["ratio_low"]), float(row["ratio_high"])
            yield Figure(SECTION, image, f"{name}: slope_ratio", float(row["slope_ratio"]), low=low, high=high, n=n)
        yield Figure(SECTION, image, f"{name}: spread_ratio", float(row["spread_ratio"]), n=n)
        for key in map(str, row):
            if key.startswith("wasserstein_") and not np.isnan(row[key]):
                level = key.removeprefix("wasserstein_")
                for who, value in ((OURS, row[key]), (REAL, row[f"chance_{level}"])):
                    yield Figure(SECTION, image, f"{name}: wasserstein", float(value), who, group=f"{group} = {level}")
    for row in _by_age(drawn, real, seed).to_dict("records"):
        for who, key in ((OURS, "wasserstein"), (REAL, "chance")):
            group = f"age = {row['level']}"
            yield Figure(SECTION, image, f"{row['volume']}: wasserstein", float(row[key]), who, group=group)


def _by_age(drawn: pd.DataFrame, real: pd.DataFrame, seed: int) -> pd.DataFrame:
    """`requests.distances` in each of AGE_BANDS parts of the real people."""
    ends = np.unique(np.quantile(real["age"].dropna(), np.linspace(0, 1, AGE_BANDS + 1)))
    words = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(ends)]

    def banded(table: pd.DataFrame) -> pd.DataFrame:
        part = np.searchsorted(ends[1:-1], table["age"])
        inside = table["age"].between(ends[0], ends[-1])
        return table.assign(band=pd.Series(np.array(words, object)[part], index=table.index).where(inside))

    if not words:  # all of one age
        return pd.DataFrame()
    return distances(banded(drawn), banded(real), (*CURVES, SIZE), "band", words, seed)


def reading_section(findings: Findings, image: str) -> Section:
    """Of what `matches` found. A fact that is easier to read from drawn scans than from real ones is as much of a fault as
    one that is harder: such scans are what is usual for it, and nothing of what people of one kind differ in."""
    drawn, real, nothing = (_figures(findings, image, who) for who in (OURS, REAL, CONSTANT))
    told: dict[str, list[tuple[int, str]]] = {}
    rows = []
    for metric in real:
        name, score = metric.split(": ")
        one, other, constant = drawn[metric], real[metric], nothing[metric]
        learnt = (drawn[f"{metric}, {TRAINED} {kind}"] for kind in ("drawn", "both"))
        rows.append((metric.replace("_", " "), *(_in_brackets(figure) for figure in (one, other, *learnt, constant))))
        sign = _sign(one, other) * (-1 if score == "mae" else 1)
        words = score.replace("_", " ")
        told.setdefault(name, []).append((sign, f"{words} {one.value:.3g} against {other.value:.3g}"))
    said: dict[str, list[str]] = {}
    for name, own in told.items():
        signs = [sign for sign, _ in own]
        sign = -1 if -1 in signs else max(signs)
        shown = next(words for each, words in own if each == sign)
        said.setdefault(VERDICTS[sign], []).append(f"{name} ({shown})")
    verdicts = _in_order(said, tuple(VERDICTS.values()))
    return Section(
        f"Do drawn {image} scans show what was asked for?", f"Drawn scans, read beside real ones, are {verdicts}.",
        table=Table(("trained on, asked about", "real, drawn scans", "real, real scans", "drawn, real scans",
                     "drawn and real, real scans", "constant, real scans"), rows),
        note="Read by ridge and logistic regression on the principal components of scans. Brackets: 95 % intervals over "
        "people; drawn and real ones differ where the interval of their difference leaves out 0 (Zou and Donner 2008).",
    )  # fmt: skip


def _in_order(said: Mapping[str, Sequence[str]], verdicts: Sequence[str]) -> str:
    """said: verdict -> of what."""
    return "; ".join(f"{verdict}: {', '.join(said[verdict])}" for verdict in verdicts if verdict in said)


def _in_brackets(figure: Figure) -> str:
    if math.isnan(figure.value):
        return "-"
    known = figure.low is not None and figure.high is not None and not math.isnan(figure.low)
    return f"{figure.value:.3g}" + (f" [{figure.low:.3g}, {figure.high:.3g}]" if known else "")


def _sign(one: Figure, other: Figure) -> int:
    """1: `one` is surely above `other`; -1: below; 0: not sure, of estimates taken as independent. The interval of the
    difference is made from the intervals of both."""
    if None in (one.low, one.high, other.low, other.high):
        return 0
    apart = one.value - other.value
    below = math.hypot(one.value - one.low, other.high - other.value)  # type: ignore[operator]
    above = math.hypot(one.high - one.value, other.value - other.low)  # type: ignore[operator]
    return int(apart > below) - int(-apart > above)


def ageing_section(findings: Findings, image: str, drawn: pd.DataFrame, real: pd.DataFrame) -> Section:
    """Of what `curves` found. drawn, real: volumes with age, for the picture."""
    found = _figures(findings, image, OURS)
    apart = {(f.metric, f.group, f.who): f.value for f in findings.figures
             if (f.section, f.variable) == (SECTION, image) and f.metric.endswith(": wasserstein")}  # fmt: skip
    groups = list(dict.fromkeys(group for _, group, _ in apart))
    said: dict[str, list[str]] = {}
    rows, panels = [], []
    for name in (*CURVES, SIZE):
        words, spread, slope = name.removesuffix("_ml"), found[f"{name}: spread_ratio"], found.get(f"{name}: slope_ratio")
        interval = "-"
        if slope is not None and slope.low is not None and slope.high is not None:
            interval = f"{slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}]"
            said.setdefault(_verdict(slope.low, slope.high), []).append(f"{words} {interval}")
        metric = f"{name}: wasserstein"
        distances = (f"{apart[metric, group, OURS]:.2f} ({apart[metric, group, REAL]:.2f})"
                     if (metric, group, OURS) in apart else "-" for group in groups)  # fmt: skip
        rows.append((words, interval, f"{spread.value:.2f}", *distances))
        if name in CURVES[:2]:
            volumes = {who: (table["age"].to_numpy(float), table[name].to_numpy(float))
                       for who, table in (("real", real), ("drawn", drawn))}  # fmt: skip
            png = plots.curves(words, "age", f"{words}, ml", volumes)
            panels.append(Picture(png, f"{words} volume over age, real and drawn"))
    verdicts = _in_order(said, (WRONG_WAY, TOO_LITTLE, TOO_MUCH, AS_REAL, UNCERTAIN))
    return Section(
        f"Do drawn {image} scans age as real ones do?",
        f"Drawn volumes change with age {verdicts} (1: as much as real ones)." if said else "No volume of real scans "
        "surely changes with age, so there is nothing to follow.",
        panels, Table(("volume", "change with age, times real", "spread, times real",
                       *(f"distance, {group}" for group in groups)), rows),
        note="At equal head size, but for the head itself; 1 is right. Square brackets: 95 % intervals. Where real volumes "
        "do not surely change with age, there is no ratio. Distance: Wasserstein, in sds of the real volumes; in round "
        "brackets what chance leaves.",
    )  # fmt: skip


def _verdict(low: float, high: float) -> str:
    """Of drawn volumes' change with age, which is between `low` and `high` times that of real ones."""
    if high < 0:
        return WRONG_WAY
    if low > 1:
        return TOO_MUCH
    if high < 1:
        return TOO_LITTLE
    return UNCERTAIN if low < 0 else AS_REAL


def _figures(findings: Findings, image: str, who: str) -> dict[str, Figure]:
    """This chapter's about everybody, by metric."""
    wanted = (SECTION, image, who, EVERYBODY)
    return {f.metric: f for f in findings.figures if (f.section, f.variable, f.who, f.group) == wanted}
