"""Does a drawn scan show what was asked for? The report's chapter over `requests`."""

from collections.abc import Iterator, Sequence

import pandas as pd

from metavoxel.evaluate import plots
from metavoxel.evaluate.figures import OURS, Figure, Findings
from metavoxel.evaluate.looks import REAL
from metavoxel.evaluate.requests import Sample, compare_curves, linear_fit, match, train_on_drawn
from metavoxel.page import Picture, Section, Table

SECTION = "requests"
SD_95 = 1.96
SIZE, CURVES = "head_ml", ("brain_ml", "ventricles_ml", "grey_ml", "white_ml")


def matches(image: str, names: Sequence[str], drawn: Sample, real: Sample, training: Sample) -> Iterator[Figure]:
    """metric "age: mae" and so on: what a predictor trained on real training scans reads off drawn ones, beside real ones;
    metric "age: mae, trained on drawn": what one trained on drawn, real or both scans knows of real people in the test."""
    judge = linear_fit(training, names)
    for row in match(judge, drawn, real, names).to_dict("records"):
        for who, key in ((OURS, "drawn"), (REAL, "real")):
            yield Figure(SECTION, image, f"{row['variable']}: {row['metric']}", float(row[key]), who)
    for row in train_on_drawn(judge, drawn, training, real, names).to_dict("records"):
        metric = f"{row['variable']}: {row['metric']}, trained on {row['training']}"
        yield Figure(SECTION, image, metric, float(row["value"]))


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


def matching_section(findings: Findings, image: str, tables: tuple[pd.DataFrame, pd.DataFrame] | None) -> Section:
    """tables: volumes of drawn and real scans with their age, for the picture."""
    own = [figure for figure in findings.figures if figure.section == SECTION and figure.variable == image]
    rows, said = [], []
    for figure in own:
        if figure.who != OURS:
            continue
        floor = findings.value(SECTION, image, figure.metric, who=REAL)
        interval = "" if figure.low is None else f" [{figure.low:.2g}, {figure.high:.2g}]"
        words = figure.metric.replace("_", " ")
        rows.append((words, f"{figure.value:.3g}{interval}", f"{floor.value:.3g}" if floor else ""))
        if floor is not None and figure.metric.endswith((": mae", ": accuracy")):
            name = figure.metric.split(":")[0]
            pair = [f"{x:.0%} right" if figure.metric.endswith("accuracy") else f"{x:.3g} off"
                    for x in (figure.value, floor.value)]  # fmt: skip
            said.append(f"{name} read off drawn scans is {pair[0]}, off real ones {pair[1]}")
        if figure.metric.endswith(": slope_ratio"):
            tissue, times = figure.metric.split("_ml")[0], f"{figure.value:.2g}{interval} times"
            said.append(f"with age {tissue} changes {times} as much in drawn scans as in real ones")
    panels = []
    if tables is not None:
        for name in CURVES[:2]:
            made, found = ((table["age"].to_numpy(float), table[name].to_numpy(float)) for table in tables)
            words = name.removesuffix("_ml")
            png = plots.curves(words, "age", f"{words}, ml", {"real": found, "drawn": made})
            panels.append(Picture(png, f"{words} volume over age, real and drawn"))
    return Section(
        f"Do drawn {image} scans show what was asked for?", f"{'; '.join(said) or 'See the table'}.", panels,
        Table(("figure", "drawn scans", "real scans"), rows),
        note="Read by ridge and logistic regression on the principal components of real training scans. Trained on drawn: "
        "predictors of drawn scans, asked about real people. Ratios of slopes on age and of spreads, at equal head "
        "size: 1 is right. Where real volumes change with age by less than two standard errors, slopes have no ratio.",
    )  # fmt: skip
