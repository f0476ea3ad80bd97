"""Whether everybody's distributions are as wide as they should be: intervals, ranks and scores of draws, reliability of
probabilities; of all numbers at once, TARP."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import binomtest

from metavoxel.evaluate import plots
from metavoxel.evaluate.calibration import (
    INTERVALS,
    ece,
    ece_by_chance,
    number_calibration,
    pit,
    reliability,
    tarp,
)
from metavoxel.evaluate.claims import Claim, in_words, main_claims
from metavoxel.evaluate.figures import EVERYBODY, EXACT, OURS, Figure, Findings
from metavoxel.page import Picture, Section, Table

SECTION = "calibration"
EVERY_NUMBER = "all numbers"
LEAST_PEOPLE = 30
"""Below, chance covers all but a gross fault."""
LEAST_P = 0.01


def calibration(claims: Sequence[Claim], seed: int, group: str = EVERYBODY) -> Iterator[Figure]:
    """coverage_50 ... 95, rank_p and crps of numbers with draws; of classes ece, and ece_chance_q95, which chance stays
    under in 95 of 100 cohorts; tarp_p and tarp_lean of all numbers with draws given the same facts."""
    for claim in claims:
        found: dict[str, float] = {}
        if claim.is_class:
            found = {"ece": ece(claim.truth, claim.told), "ece_chance_q95": ece_by_chance(claim.told, seed=seed).q95}
        elif claim.draws is not None and claim.draws.shape[1] > max(INTERVALS) // 5:
            found = number_calibration(claim.truth, claim.draws, seed)
        elif claim.intervals is not None:
            low, high = claim.intervals.T
            found = {"coverage_90": float(((low <= claim.truth) & (claim.truth <= high)).mean())}
        for metric, value in found.items():
            yield Figure(SECTION, claim.variable.name, metric, value, claim.who, claim.given, group, n=len(claim.rows))
    for given in dict.fromkeys(claim.given for claim in claims):
        yield from _together([claim for claim in claims if claim.given == given and claim.draws is not None], seed, group)


def _together(own: Sequence[Claim], seed: int, group: str) -> Iterator[Figure]:
    """Of people for whom all these numbers are known. Each was drawn alone, so this asks whether all are right, not whether
    they hang together as they should."""
    if len(own) < 2:
        return
    rows = np.array(sorted(set.intersection(*(set(claim.rows.tolist()) for claim in own))), int)
    if len(rows) < LEAST_PEOPLE:
        return
    at = [np.searchsorted(claim.rows, rows) for claim in own]
    truth = np.stack([claim.truth[places] for claim, places in zip(own, at)], -1)
    draws = np.stack([claim.draws[places] for claim, places in zip(own, at) if claim.draws is not None], -1)
    found = tarp(truth, draws, seed)
    for metric, value in {"tarp_p": found.p, "tarp_lean": found.lean}.items():
        yield Figure(SECTION, EVERY_NUMBER, metric, value, OURS, own[0].given, group, n=len(rows))


def calibration_section(findings: Findings, claims: Sequence[Claim], seed: int) -> Section:
    """Rank histograms of numbers and reliability of classes given the scan (or what comes nearest to it)."""
    shown = [claim for claim in claims if claim.who == OURS]
    panels = []
    for claim in main_claims(claims):
        title = f"{claim.variable.name} {in_words(claim.given)}"
        if claim.is_class:
            levels = claim.variable.levels  # type: ignore[union-attr]
            bins = [(level, reliability(claim.truth == index, claim.told[:, index])) for index, level in enumerate(levels)]
            png = plots.reliability(title, bins[1:] if len(levels) == 2 else bins)
            panels.append(Picture(png, f"Reliability: {title}"))
        elif claim.draws is not None:
            png = plots.ranks(title, pit(claim.truth, claim.draws, seed))
            panels.append(Picture(png, f"Ranks of the truth among the draws: {title}"))
    rows = []
    for claim in claims:
        if claim.who not in (OURS, EXACT):
            continue
        cells = {metric: findings.value(SECTION, claim.variable.name, metric, who=claim.who, given=claim.given)
                 for metric in ("coverage_50", "coverage_90", "rank_p", "crps", "ece", "ece_chance_q95")}  # fmt: skip
        if any(cells.values()):
            rows.append((claim.variable.name, claim.who, claim.given, *(_cell(*cell) for cell in cells.items())))
    header = ("variable", "who", "given", "50 % holds", "90 % holds", "ranks, p", "CRPS", "ECE", "ECE by chance")
    return Section(
        "Are the intervals honest?", _conclusion(findings, shown), panels, Table(header, rows),
        note="Ranks: where the truth stands among the draws; even if the draws are right (simulation-based calibration), "
        "and p is the chance of ranks at least as uneven. ECE: how far probabilities are from shares, and what a perfectly "
        "calibrated answerer stays under in 95 of 100 such cohorts. The grey band holds 95 % of even counts. A truth that "
        "ties with an interval's end, as whole numbers do, is inside as often as its place among the tied draws is; of an "
        "exact answer only the ends are known, and ties are inside.",
    )  # fmt: skip


def faults(findings: Findings, claims: Sequence[Claim]) -> list[str]:
    """Which of the model's answers are not calibrated, beyond chance."""
    found = []
    for claim in claims:
        if claim.who == OURS and (reasons := list(_reasons(findings, claim.variable.name, claim.given))):
            found.append(f"{claim.variable.name}, given {claim.given} ({', '.join(reasons)})")
    return found


def _reasons(findings: Findings, name: str, given: str) -> Iterator[str]:
    """What is off by more than chance. Each interval is looked at, so each is allowed a part of LEAST_P."""

    def told(metric: str) -> Figure | None:
        return findings.value(SECTION, name, metric, given=given)

    p, off, chance = told("rank_p"), told("ece"), told("ece_chance_q95")
    if p is not None and p.value < LEAST_P:
        yield f"ranks uneven, p = {p.value:.1g}"
    for share in INTERVALS:
        held = told(f"coverage_{share}")
        if held is not None and held.n:
            inside = round(held.value * held.n)
            if binomtest(inside, held.n, share / 100).pvalue < LEAST_P / len(INTERVALS):
                yield f"{share} % intervals hold {held.value:.0%}"
    if off is not None and chance is not None and off.value > chance.value:
        yield f"ECE {off.value:.3f}, chance {chance.value:.3f}"


def _conclusion(findings: Findings, shown: Sequence[Claim]) -> str:
    wrong = faults(findings, shown)
    if not wrong and all(len(claim.rows) < LEAST_PEOPLE for claim in shown):
        return f"Too few people to tell: with under {LEAST_PEOPLE}, chance hides all but a gross fault, and none was found."
    if not wrong:
        return (f"No fault was found in {len(shown)} questions: intervals hold what they say, probabilities can be taken "
                "at face value.")  # fmt: skip
    return f"{len(wrong)} of {len(shown)} questions are off by more than chance: {'; '.join(wrong)}."


def _cell(metric: str, figure: Figure | None) -> str:
    if figure is None or figure.value != figure.value:
        return ""
    return f"{figure.value:.1%}" if metric.startswith("coverage") else f"{figure.value:.3g}"


