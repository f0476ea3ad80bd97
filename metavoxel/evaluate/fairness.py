"""The same figures for each age band, sex, site and any other column: who is served worse than the others?"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from metavoxel.data.cohort import Cohort
from metavoxel.data.splits import STRATA
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate import plots
from metavoxel.evaluate.accuracy import SHOWN, scored
from metavoxel.evaluate.calibrated import calibration
from metavoxel.evaluate.claims import Claim, in_words, main_claims
from metavoxel.evaluate.figures import Figure, Findings
from metavoxel.page import Picture, Section

SECTION = "fairness"
LEAST_PEOPLE = 10
"""A smaller group's figures say nothing, and may give a person away."""


def group_columns(cohort: Cohort, by: Sequence[str]) -> list[str]:
    """Age, sex and site where the cohort has them, and the columns that were asked for."""
    unknown = [name for name in by if name not in cohort.columns]
    if unknown:
        raise MetavoxelError(f"--by {unknown[0]}: {cohort.root} has no such column (it has {', '.join(cohort.columns)})")
    return list(dict.fromkeys([*(name for name in STRATA if name in cohort.columns), *by]))


def fairness(claims: Sequence[Claim], cohort: Cohort, by: Sequence[str], seed: int) -> Iterator[Figure]:
    """Accuracy and calibration of the model given the scan (where it can be), group by group: `group` is "sex = F"."""
    people = cohort.table["participant_id"].to_numpy()
    own = main_claims(claims)
    words = cohort.kinds(by).astype(object) if by else pd.DataFrame(index=pd.Index(people))
    for column in by:
        of_row = words[column].reindex(people).to_numpy()
        for value in sorted(set(of_row), key=str):
            inside = of_row == value
            some = [part for claim in own if len(set(people[(part := claim.among(inside)).rows])) >= LEAST_PEOPLE]
            group = f"{column} = {value}"
            for figure in (*scored(some, people, seed, group), *calibration(some, seed, group)):
                yield Figure(**{**vars(figure), "section": SECTION})


def fairness_section(findings: Findings, claims: Sequence[Claim]) -> Section | None:
    """A picture a variable; None where no group is large enough."""
    panels, apart, looked = [], [], 0
    for claim in main_claims(claims):
        name, metric = claim.variable.name, next(iter(SHOWN[claim.is_class]))
        everybody = findings.value("accuracy", name, metric, given=claim.given)
        rows = [f for f in findings.figures if (f.section, f.variable, f.metric) == (SECTION, name, metric)]
        # a group of one class, or of ages in one band, is no fair comparison for what is asked about itself
        rows = [f for f in rows if not f.group.startswith(f"{name} = ")]
        if everybody is None or not rows:
            continue
        looked += len(rows)
        bars = [(f"{f.group} (n {f.n})", f.value, _end(f.low, f.value), _end(f.high, f.value)) for f in rows]
        words = SHOWN[claim.is_class][metric]
        unit = getattr(claim.variable, "unit", "")
        panels.append(Picture(plots.groups(name, f"{words}, {unit}" if unit else words, bars, everybody.value),
                              f"{words} of {name} by group"))  # fmt: skip
        apart += [f"{f.group} for {name} ({f.value:.3g}, everybody {everybody.value:.3g})" for f, (_, _, low, high)
                  in zip(rows, bars) if not low <= everybody.value <= high]  # fmt: skip
    if not panels:
        return None
    expected = 0.05 * looked
    said = f"{len(apart)} of {looked} groups differ from everybody (about {expected:.1f} would by chance alone)"
    return Section(
        "Is anybody served worse?", f"{said}{': ' if apart else ''}{'; '.join(apart)}.", panels,
        note=f"{in_words(main_claims(claims)[0].given).capitalize()}. Bars are 95 % intervals, the grey line is everybody. "
        f"Groups of under {LEAST_PEOPLE} people are left out.",
    )  # fmt: skip


def _end(end: float | None, value: float) -> float:
    return value if end is None or not np.isfinite(end) else end
