"""Is a class told from more than the size of the head? Men's heads are larger: a network may tell sex and have seen nothing
else. Among people whose heads are as large, size says nothing."""

from collections.abc import Iterator, Sequence

import numpy as np

from metavoxel.evaluate.claims import Claim, main_claims
from metavoxel.evaluate.evaluation import Evaluation
from metavoxel.evaluate.figures import Figure, Findings
from metavoxel.evaluate.scans import scans_of
from metavoxel.evaluate.scores import auc
from metavoxel.page import Section, Table

SECTION = "head size"
AS_LARGE = 0.02
"""Heads whose volumes differ by less than this share are as large."""
LEAST_PAIRS = 30


def head_size_section(run: Evaluation) -> Section | None:
    """None without a class of two levels that is told from scans in three dimensions."""
    image = next((image for image in run.model.schema.images if image.name in run.rulers), None)
    claims = [claim for claim in main_claims(run.claims) if claim.is_class and claim.told.shape[1] == 2]
    if image is None or not claims:
        return None
    scans, _ = scans_of(run, run.cohort, image)
    sizes = np.full(len(run.cohort), np.nan)
    there = [path is not None for path in run.cohort.scans[image.name]]
    sizes[there] = run.measured(image.name, scans)["head_ml"].to_numpy(float)
    for claim in claims:
        figures = list(beside_head_size(claim, sizes))
        run.findings.add(figures)
        if not figures:
            run.findings.left_out.append(f"{claim.variable.name} beside head size: too few people's heads are as large.")
    return _section(run.findings, [claim.variable.name for claim in claims])


def beside_head_size(claim: Claim, sizes: np.ndarray) -> Iterator[Figure]:
    """AUC of a claim about two levels, of head size alone, and of the claim in pairs of people whose heads are as large;
    sizes: (rows,) of the cohort in ml, NaN where unknown. Nothing where too few pairs are alike."""
    own = sizes[claim.rows]
    known = ~np.isnan(own)
    truth, told, own = claim.truth[known] == 1, claim.told[known, 1], own[known]
    one, other = (np.flatnonzero(truth == level) for level in (True, False))
    if not len(one) or not len(other):
        return
    alike = np.abs(np.log(own[one, None] / own[other])) < AS_LARGE
    if alike.sum() < LEAST_PAIRS:
        return
    by_size = auc(own[one], own[other])
    ahead = np.sign(told[one, None] - told[other])[alike]
    found = {"auc": auc(told[one], told[other]), "auc_of_size": max(by_size, 1 - by_size),
             "auc_in_pairs": float((ahead.mean() + 1) / 2)}  # fmt: skip
    for metric, value in found.items():
        n = int(alike.sum()) if metric == "auc_in_pairs" else int(known.sum())
        yield Figure(SECTION, claim.variable.name, metric, value, claim.who, claim.given, n=n)


def _section(findings: Findings, names: Sequence[str]) -> Section | None:
    rows, said = [], []
    for name in names:
        own = [f for f in findings.figures if (f.section, f.variable) == (SECTION, name)]
        if own:
            everybody, size, pairs = (figure.value for figure in own)
            rows.append((name, f"{everybody:.3f}", f"{size:.3f}", f"{pairs:.3f}", str(own[-1].n)))
            said.append(f"{name} is told with an AUC of {everybody:.2f}; head size alone has {size:.2f}; of people whose "
                        f"heads are as large, the model puts {pairs:.0%} of pairs in the right order")  # fmt: skip
    if not rows:
        return None
    return Section(
        "Is it more than head size?", f"{'; '.join(said)} (50 % is a guess).",
        table=Table(("class", "AUC", "AUC of head size", "AUC, heads as large", "such pairs"), rows),
        note=f"As large: the volumes inside the skull differ by less than {AS_LARGE:.0%}.",
    )  # fmt: skip
