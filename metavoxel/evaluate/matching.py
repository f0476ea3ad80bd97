"""Does a drawn scan show what was asked for? The report's chapters over `requests`."""

from collections.abc import Iterator, Sequence

import pandas as pd

from metavoxel.evaluate import plots
from metavoxel.evaluate.figures import OURS, Figure, Findings
from metavoxel.evaluate.looks import REAL
from metavoxel.evaluate.requests import Sample, compare_curves, linear_fit, match, train_on_drawn
from metavoxel.loading import Progress
from metavoxel.page import Picture, Section, Table

SECTION = "requests"
TRAINED = "trained on"
SD_95 = 1.96
STAGES = 3
"""Of the work: a judge is fitted, scans are read, others are fitted to drawn scans and to both."""
SIZE, CURVES = "head_ml", ("brain_ml", "ventricles_ml", "grey_ml", "white_ml")


def matches(
    image: str, names: Sequence[str], drawn: Sample, real: Sample, training: Sample, progress: Progress
) -> Iterator[Figure]:
    """metric "age: mae" and so on: what a predictor trained on real training scans reads off drawn ones, beside real ones;
    metric "age: mae, trained on drawn": what one trained on drawn, real or both scans knows of real people in the test."""
    progress(0, STAGES)
    judge = linear_fit(training, names)
    progress(1, STAGES)
    for row in match(judge, drawn, real, names).to_dict("records"):
        for who, key in ((OURS, "drawn"), (REAL, "real")):
            yield Figure(SECTION, image, f"{row['variable']}: {row['metric']}", float(row[key]), who)
    progress(2, STAGES)
    for row in train_on_drawn(judge, drawn, training, real, names).to_dict("records"):
        metric = f"{row['variable']}: {row['metric']}, {TRAINED} {row['training']}"
        yield Figure(SECTION, image, metric, float(row["value"]))
    progress(STAGES, STAGES)


def curves(image: str, drawn: pd.DataFrame, real: pd.DataFrame, seed: int) -> Iterator[Figure]:
    """metric "brain_ml: slope_ratio" and so on, at equal head size, see `requests.compare_curves`; drawn, real: volumes
    with age and sex."""
    group = "sex" if "sex" in drawn else None
    for row in compare_curves(drawn, real, CURVES, group, SIZE, seed).to_dict("records"):
        name, n = row["volume"], int(row["n_drawn"])
        if abs(row["slope_real"]) > 2 * row["se_real"]:  # what does not change with age has no ratio of slopes
            value, chance = float(row["slope_ratio"]), SD_95 * float(row["se_ratio"])
            yield Figure(SECTION, image, f"{name}: slope_ratio", value, low=value - chance, high=value + chance, n=n)
        yield Figure(SECTION, image, f"{name}: spread_ratio", float(row["spread_ratio"]), n=n)


def reading_section(findings: Findings, image: str) -> Section:
    """Of what `matches` found."""
    drawn, real, by = _figures(findings, image, OURS), _figures(findings, image, REAL), ("drawn", "both")
    said, rows = [], []
    for metric in real:
        name, score = metric.split(": ")
        learnt = [drawn[f"{metric}, {TRAINED} {kind}"].value for kind in by]
        rows.append((metric.replace("_", " "), *(f"{x:.3g}" for x in (drawn[metric].value, real[metric].value, *learnt))))
        if score in ("mae", "accuracy"):
            one, other = (f"{x:.0%} right" if score == "accuracy" else f"with an error of {x:.3g}"
                          for x in (drawn[metric].value, real[metric].value))  # fmt: skip
            said.append(f"{name} {one} (from real ones {other})")
    return Section(
        f"Do drawn {image} scans show what was asked for?", f"Read from drawn scans: {'; '.join(said)}.",
        table=Table(("", "from drawn scans", "from real ones", *(f"{TRAINED} {kind}" for kind in by)), rows),
        note="Read by ridge and logistic regression on the principal components of real training scans. Trained on drawn, "
        "or on both: by such predictors of drawn scans, or of drawn and real ones, asked about real people.",
    )  # fmt: skip


def ageing_section(findings: Findings, image: str, drawn: pd.DataFrame, real: pd.DataFrame) -> Section:
    """Of what `curves` found. drawn, real: volumes with age, for the picture."""
    found = _figures(findings, image, OURS)
    said: dict[str, list[str]] = {}
    rows, panels = [], []
    for name in CURVES:
        words, spread, slope = name.removesuffix("_ml"), found[f"{name}: spread_ratio"], found.get(f"{name}: slope_ratio")
        interval = "-"
        if slope is not None and slope.low is not None and slope.high is not None:
            interval = f"{slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}]"
            verdict = "too little" if slope.high < 1 else "too much" if slope.low > 1 else "as real ones do, within chance"
            said.setdefault(verdict, []).append(f"{words} {interval}")
        rows.append((words, interval, f"{spread.value:.2f}"))
        if name in CURVES[:2]:
            volumes = {who: (table["age"].to_numpy(float), table[name].to_numpy(float))
                       for who, table in (("real", real), ("drawn", drawn))}  # fmt: skip
            png = plots.curves(words, "age", f"{words}, ml", volumes)
            panels.append(Picture(png, f"{words} volume over age, real and drawn"))
    verdicts = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in said.items())
    return Section(
        f"Do drawn {image} scans age as real ones do?",
        f"Drawn volumes change with age {verdicts} (1: as much as real ones)." if said else "No volume of real scans "
        "changes with age by two standard errors, so there is nothing to follow.",
        panels, Table(("volume", "change with age, times real", "spread, times real"), rows),
        note="At equal head size; 1 is right. Brackets: 95 % intervals. Where real volumes change with age by less than "
        "two standard errors, there is no ratio.",
    )  # fmt: skip


def _figures(findings: Findings, image: str, who: str) -> dict[str, Figure]:
    """This chapter's, by metric."""
    return {f.metric: f for f in findings.figures if (f.section, f.variable, f.who) == (SECTION, image, who)}
