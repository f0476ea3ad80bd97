"""Whether everybody's distributions are as wide as they should be: intervals, ranks and scores of draws, reliability of
probabilities; of all numbers at once, TARP."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from scipy.stats import binom, binomtest

from metavoxel.evaluate import plots
from metavoxel.evaluate.calibration import (
    INTERVALS,
    TENTHS,
    Reliability,
    ece,
    ece_by_chance,
    judged,
    number_calibration,
    pit,
    rank_histogram,
    reliability,
    tarp,
    tenths,
)
from metavoxel.evaluate.claims import Claim
from metavoxel.evaluate.figures import EVERYBODY, EXACT, OURS, Figure, Findings
from metavoxel.evaluate.scores import holm
from metavoxel.page import Picture, Section, Table

SECTION, COUNTED = "calibration", "calibration in tenths"
EVERY_NUMBER = "all numbers"
LEAST_PEOPLE = 30
"""Below, chance covers all but a gross fault."""
LEAST_P = 0.01
"""That one fault or more is found in a report of a model that has none."""
Asked = tuple[str, str]
"""A question: the variable and what is given."""


def calibration(claims: Sequence[Claim], seed: int, group: str = EVERYBODY) -> Iterator[Figure]:
    """coverage_50 ... 95, rank_p, crps and draws_variance (the mean over people: paper, Table 2) of numbers with draws; of
    classes ece, ece_chance_q95, which chance stays under in 95 of 100 cohorts, and ece_p; tarp_p and tarp_lean of all
    numbers that were drawn together. Of everybody, what `_counted` finds of the model, too."""
    for claim in claims:
        found: dict[str, float] = {}
        if claim.is_class:
            off, chance = ece(claim.truth, claim.told), ece_by_chance(claim.told, seed=seed)
            found = {"ece": off, "ece_chance_q95": chance.q95, "ece_p": chance.p(off)}
        elif claim.draws is not None and claim.draws.shape[1] > 1:
            found = number_calibration(claim.truth, claim.draws, seed)
            found["draws_variance"] = float(claim.draws.var(1, ddof=1).mean())
        elif claim.intervals is not None:
            low, high = claim.intervals.T
            found = {"coverage_90": float(((low <= claim.truth) & (claim.truth <= high)).mean())}
        for metric, value in found.items():
            yield Figure(SECTION, claim.variable.name, metric, value, claim.who, claim.given, group, n=len(claim.rows))
        if claim.who == OURS and group == EVERYBODY:
            yield from _counted(claim, seed)
    for given in dict.fromkeys(claim.given for claim in claims):
        own = [claim for claim in claims if claim.given == given and claim.together is not None]
        yield from _together(own, seed, group)


def _counted(claim: Claim, seed: int) -> Iterator[Figure]:
    """Section COUNTED: rank histograms and reliability diagrams as numbers, to draw them anew from.

    rank_01 ... rank_10: the share of people whose truth has a rank in that tenth among its draws. told_01 ... told_10 of
    LEVEL: the mean probability told to the n people whom it puts in that tenth of the scale; true_01 ... true_10 of LEVEL:
    the share of them who are of that level. Levels are those that the ECE looks at; tenths without anybody are left out.
    """
    figure = partial(Figure, COUNTED, claim.variable.name, given=claim.given)
    if claim.is_class:
        levels = claim.variable.levels  # type: ignore[union-attr]
        for level in judged(claim.told):
            people, told, true = tenths(claim.truth == level, claim.told[:, level])
            for tenth in np.flatnonzero(people):
                for metric, values in (("told", told), ("true", true)):
                    words = f"{metric}_{tenth + 1:02d} of {levels[level]}"
                    yield figure(words, float(values[tenth]), n=int(people[tenth]))
    elif claim.draws is not None and claim.draws.shape[1] > 1:
        for rank, count in enumerate(rank_histogram(claim.truth, claim.draws, TENTHS, seed), start=1):
            yield figure(f"rank_{rank:02d}", float(count / len(claim.rows)), n=len(claim.rows))


def _together(own: Sequence[Claim], seed: int, group: str) -> Iterator[Figure]:
    """Of people for whom all these numbers are known, by draws of all at once: it asks whether they hang together, too."""
    if len(own) < 2:
        return
    rows = np.array(sorted(set.intersection(*(set(claim.rows.tolist()) for claim in own))), int)
    if len(rows) < LEAST_PEOPLE:
        return
    at = [np.searchsorted(claim.rows, rows) for claim in own]
    truth = np.stack([claim.truth[places] for claim, places in zip(own, at)], -1)
    draws = np.stack([claim.together[places] for claim, places in zip(own, at) if claim.together is not None], -1)
    found = tarp(truth, draws, seed)
    for metric, value in {"tarp_p": found.p, "tarp_lean": found.lean}.items():
        yield Figure(SECTION, EVERY_NUMBER, metric, value, OURS, own[0].given, group, n=len(rows))


def calibration_section(findings: Findings, claims: Sequence[Claim], seed: int) -> Section:
    """Rank histograms of numbers and reliability of classes, a picture a variable and in it one for each set of given
    facts."""
    shown = [claim for claim in claims if claim.who == OURS]
    asked: dict[str, list[Claim]] = {}
    for claim in shown:
        asked.setdefault(claim.variable.name, []).append(claim)
    rows = []
    for claim in claims:
        if claim.who not in (OURS, EXACT):
            continue
        cells = {metric: findings.value(SECTION, claim.variable.name, metric, who=claim.who, given=claim.given)
                 for metric in ("coverage_50", "coverage_90", "rank_p", "crps", "ece", "ece_p")}  # fmt: skip
        if any(cells.values()):
            rows.append((claim.variable.name, claim.who, claim.given, *(_cell(*cell) for cell in cells.items())))
    for name, given in _questions(findings, shown):
        if name == EVERY_NUMBER:
            tarp_p = findings.value(SECTION, name, "tarp_p", given=given)
            rows.append((name, OURS, given, "", "", _cell("tarp_p", tarp_p), "", "", ""))
    header = ("variable", "who", "given", "50 % holds", "90 % holds", "ranks, p", "CRPS", "ECE", "ECE, p")
    return Section(
        "Are the intervals honest?", _conclusion(findings, shown), list(_pictures(asked, seed)), Table(header, rows),
        note="Ranks: where the truth stands among the draws; even if the draws are right (simulation-based calibration), "
        "and p is the chance of ranks at least as uneven; of all numbers at once, TARP (Lemos et al. 2023). ECE: how far "
        f"probabilities are from shares; p is the chance of as much if they are right. In {LEAST_P:.0%} of reports on "
        "models without fault, one is found, however many questions are asked (Holm over all that is tested: ranks, four "
        "intervals, ECE, TARP). The grey band holds 95 % of even counts. A truth that ties with an interval's end, as whole"
        " numbers do, is inside as often as its place among the tied draws is, and so is one beyond all draws where these "
        "are few; of an exact answer only the ends are known.",
    )  # fmt: skip


def _pictures(asked: Mapping[str, Sequence[Claim]], seed: int) -> Iterator[Picture]:
    """Of the claims about each variable."""
    for name, own in asked.items():
        if own[0].is_class:
            png = plots.reliability(f"{name}, given", {claim.given: _levels(claim) for claim in own})
            yield Picture(png, f"Reliability of {name}, by what is given")
        elif places := {claim.given: pit(claim.truth, claim.draws, seed) for claim in own if claim.draws is not None}:
            png = plots.ranks(f"{name}, given", places)
            yield Picture(png, f"Ranks of the true {name} among its draws, by what is given")


def _levels(claim: Claim) -> list[tuple[str, Reliability]]:
    levels = claim.variable.levels  # type: ignore[union-attr]
    return [(levels[level], reliability(claim.truth == level, claim.told[:, level])) for level in judged(claim.told)]


def faults(findings: Findings, claims: Sequence[Claim]) -> dict[Asked, str]:
    """Which of all the model's answers are not calibrated, and why."""
    asked = _questions(findings, claims)
    tests = [(question, p, words) for question in asked for p, words in _tests(findings, *question)]
    reasons: dict[Asked, list[str]] = {}
    for (question, _, words), p in zip(tests, holm([p for _, p, _ in tests])):
        if p < LEAST_P:
            reasons.setdefault(question, []).append(words)
    return {(name, given): f"{name}, given {given} ({', '.join(own)})" for (name, given), own in reasons.items()}


def _questions(findings: Findings, claims: Sequence[Claim]) -> list[Asked]:
    """Each that the model was asked, and all numbers at once where they were drawn together."""
    asked = [(claim.variable.name, claim.given) for claim in claims if claim.who == OURS]
    sets = dict.fromkeys(given for _, given in asked)
    return asked + [(EVERY_NUMBER, given) for given in sets if findings.value(SECTION, EVERY_NUMBER, "tarp_p", given=given)]


def _tests(findings: Findings, name: str, given: str) -> Iterator[tuple[float, str]]:
    """p of each thing that is looked at in an answer, and what is wrong if that is small."""

    def told(metric: str) -> Figure | None:
        figure = findings.value(SECTION, name, metric, given=given)
        return None if figure is None or np.isnan(figure.value) else figure

    if p := told("rank_p"):
        yield p.value, f"ranks uneven, p = {p.value:.1g}"
    for share in INTERVALS:
        if (held := told(f"coverage_{share}")) and held.n:
            yield coverage_p(held, share), f"{share} % intervals hold {held.value:.0%}"
    if p := told("tarp_p"):
        yield p.value, f"TARP uneven, p = {p.value:.1g}"
    if (off := told("ece")) and (chance := told("ece_chance_q95")) and (p := told("ece_p")):
        yield p.value, f"ECE {off.value:.3f}, chance {chance.value:.3f}, p = {p.value:.1g}"


def coverage_p(held: Figure, percent: int) -> float:
    """p of intervals holding `percent` of as many people, by the figure of how many they held."""
    assert held.n
    return float(binomtest(round(held.value * held.n), held.n, percent / 100).pvalue)


def in_doubt(claims: Sequence[Claim]) -> str:
    """How many people were asked about, in words: what they cannot show may be wrong."""
    few, many = (f(len(claim.rows) for claim in claims) for f in (min, max))
    return f"{few} people" if few == many else f"{few} to {many} people"


def _conclusion(findings: Findings, shown: Sequence[Claim]) -> str:
    wrong, asked = faults(findings, shown), _questions(findings, shown)
    if wrong:
        return f"{len(wrong)} of {len(asked)} questions are off by more than chance: {'; '.join(wrong.values())}."
    if all(len(claim.rows) < LEAST_PEOPLE for claim in shown):
        return f"Too few people to tell: with under {LEAST_PEOPLE}, chance hides all but a gross fault, and none was found."
    said = f"No fault that {in_doubt(shown)} could show was found in {len(asked)} questions."
    drawn = [len(claim.rows) for claim in shown if claim.draws is not None]
    if not drawn:
        return said
    tests = sum(len(list(_tests(findings, *question))) for question in asked)
    tail = LEAST_P / tests / 2
    low, high = binom.ppf([tail, 1 - tail], max(drawn), 0.9) / max(drawn)
    return f"{said} Of {max(drawn)}, 90 % intervals may hold {low:.0%} to {high:.0%} before that is a fault."


def _cell(metric: str, figure: Figure | None) -> str:
    if figure is None or figure.value != figure.value:
        return ""
    return f"{figure.value:.1%}" if metric.startswith("coverage") else f"{figure.value:.3g}"


