"""Whether the model agrees with itself, which scans are unlike its training, how steady it is when people come again."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from metavoxel.data.cohort import Cohort
from metavoxel.evaluate.claims import Claim, main_claims
from metavoxel.evaluate.evaluation import Side
from metavoxel.evaluate.fairness import LEAST_PEOPLE
from metavoxel.evaluate.figures import EVERYBODY, Figure, Findings
from metavoxel.files import atomic_write
from metavoxel.page import Section, Table
from metavoxel.progress import one_bar
from metavoxel.surprise import TAIL

SECTION = "coherence"
MOST_PEOPLE, DRAWS = 500, 256
"""Of the question of contradictions."""


def contradictions(sides: Sequence[Side], seed: int, work: Path, quiet: bool = True) -> Iterator[Figure]:
    """`MetaVoxel.consistency` of each model about its people, averages over rows; metrics: "gap through WAY", the mean, and
    "gap_q95 through WAY". work: a folder of its tables, which a stopped run goes on from."""
    tables = []
    for side in sides:
        kept = work / f"contradictions{side.suffix}.csv"
        if not kept.exists():
            some = side.test.subset(range(min(-(-MOST_PEOPLE // len(sides)), len(side.test))))
            with atomic_write(kept) as file, one_bar(f"looking for contradictions{side.words}", quiet) as report:
                side.model.consistency(some, draws=DRAWS, seed=seed, progress=report).to_csv(file, index=False)
        tables.append(pd.read_csv(kept).query("rows > 0"))
    for (variable, through), own in pd.concat(tables).groupby(["variable", "through"], sort=False):
        for gap in ("gap", "gap_q95"):
            value, n = float(np.average(own[gap], weights=own["rows"])), int(own["rows"].sum())
            yield Figure(SECTION, str(variable), f"{gap} through {through}", value, n=n)


def surprises(scores: pd.DataFrame, limit: float, words: pd.DataFrame) -> Iterator[Figure]:
    """metrics: share_surprising, median_surprise; the share of each group "sex = F", too.

    scores: a column an image, NaN where there is none. words: as many rows, a column for each way of grouping them.
    """
    for name in scores:
        known = scores[name].dropna()
        yield Figure(SECTION, str(name), "share_surprising", float((known > limit).mean()), n=len(known))
        yield Figure(SECTION, str(name), "median_surprise", float(known.median()), n=len(known))
        for column in words:
            for value, own in known.groupby(words[column].loc[known.index].astype(str)):
                if len(own) >= LEAST_PEOPLE:
                    share, group = float((own > limit).mean()), f"{column} = {value}"
                    yield Figure(SECTION, str(name), "share_surprising", share, group=group, n=len(own))


def retest(claims: Sequence[Claim], cohort: Cohort) -> Iterator[Figure]:
    """Of people with several scans, how far answers about one person's lie apart: of numbers the within-person sd, of
    classes the mean total variation from the person's mean. Nothing where nobody came twice."""
    people = cohort.table["participant_id"].to_numpy()
    for claim in main_claims(claims):
        whose = pd.Series(people[claim.rows])
        often = whose.map(whose.value_counts()).to_numpy() > 1
        if not often.any():
            continue
        told = pd.DataFrame(claim.told[often] if claim.is_class else claim.told[often, None])
        groups = told.groupby(whose[often].to_numpy())
        if claim.is_class:
            off = told - groups.transform("mean")
            metric, value = "retest_variation", float(off.abs().sum(axis=1).mean() / 2)
        else:
            metric, value = "retest_sd", float(np.sqrt(groups.var().mean().iloc[0]))
        yield Figure(SECTION, claim.variable.name, metric, value, claim.who, claim.given, n=int(often.sum()))


def coherence_section(findings: Findings) -> Section | None:
    """None where nothing of it could be measured."""
    own = [figure for figure in findings.figures if figure.section == SECTION]
    if not own:
        return None
    gaps = [figure for figure in own if figure.metric.startswith("gap through ")]
    odd = [figure for figure in own if figure.metric == "share_surprising" and figure.group == EVERYBODY]
    sentences = []
    if gaps:
        worst = max(gaps, key=lambda figure: figure.value)
        most = findings.value(SECTION, worst.variable, worst.metric.replace("gap", "gap_q95", 1))
        of_most = "" if most is None else f", and by up to {most.value:.2f} in 95 of 100"
        sentences.append(f"{worst.n} rows of the cohort were asked about directly and by way of another fact. The answers "
                         f"differ most for {worst.variable}, {worst.metric.removeprefix('gap ')}: by {worst.value:.2f} on "
                         f"average{of_most} (0: one joint law; numbers in sd, classes in probability).")  # fmt: skip
    sentences += [f"{f.value:.1%} of {f.n} {f.variable} scans are unlike those in training; {TAIL:.2%} of scans like them "
                  "would be, if what is looked at were normal." for f in odd]  # fmt: skip
    rows = [(figure.variable, figure.group, figure.metric.replace("_", " "), f"{figure.value:.3g}", str(figure.n))
            for figure in own]  # fmt: skip
    return Section("Does the model agree with itself?", " ".join(sentences) or "See the table.",
                   table=Table(("variable", "group", "figure", "value", "n"), rows))  # fmt: skip
