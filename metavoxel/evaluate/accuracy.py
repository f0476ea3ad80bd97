"""How near everybody's answers are to the truth, under each set of given facts: the paper's Tables 1 and 2."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from metavoxel.evaluate.asking import NOTHING
from metavoxel.evaluate.claims import Claim, in_words, main_claims
from metavoxel.evaluate.figures import CONSTANT, EVERYBODY, EXACT, OURS, Figure, Findings
from metavoxel.evaluate.scores import bootstrap, class_scores, number_scores
from metavoxel.page import Section, Table

SECTION = "accuracy"
SHOWN = {"mae": "MAE", "r2": "R2", "r": "r"}, {"accuracy": "accuracy", "auc": "AUC", "brier": "Brier"}
"""Of numbers, of classes: what stands in the page's table. The rest is in metrics.json."""


def accuracy(claims: Sequence[Claim], people: np.ndarray, seed: int, group: str = EVERYBODY) -> Iterator[Figure]:
    """All scores of all claims with 95 % intervals, people drawn anew. people: (rows,) whose each row of the cohort is."""
    for claim in claims:
        found = bootstrap(partial(_scores, claim), people[claim.rows], seed=seed)
        for metric, (value, low, high) in found.items():
            yield Figure(SECTION, claim.variable.name, metric, value, claim.who, claim.given, group, low, high,
                         len(claim.rows))  # fmt: skip


def _scores(claim: Claim, rows: np.ndarray) -> dict[str, float]:
    """Who was told nothing says the same of everybody and puts nobody in order: over folds or sites, each with an answer of
    its own, r and AUC would say only how these differ."""
    found = (class_scores if claim.is_class else number_scores)(claim.truth[rows], claim.told[rows])
    return found | {"auc" if claim.is_class else "r": np.nan} if claim.given == NOTHING else found


def accuracy_sections(findings: Findings, claims: Sequence[Claim]) -> Iterator[Section]:
    """A section for each variable: who was told what, how near the answers were."""
    for name in dict.fromkeys(claim.variable.name for claim in claims if claim.who == OURS):
        own = [claim for claim in claims if claim.variable.name == name]
        is_class, unit = own[0].is_class, getattr(own[0].variable, "unit", "")
        shown = SHOWN[is_class]
        main = next(iter(shown))
        rows = [(claim.who, claim.given, str(len(claim.rows)), *(
            shown_value(findings.value(SECTION, name, metric, who=claim.who, given=claim.given)) for metric in shown
        )) for claim in own]  # fmt: skip
        header = ("who", "given", "n", *(f"{words}, {unit}" if metric == "mae" and unit else words
                                         for metric, words in shown.items()))  # fmt: skip
        yield Section(
            f"{name}: how near are the answers?", _conclusion(findings, name, main, own, unit),
            table=Table(header, rows),
            note="Brackets: 95 % intervals, people drawn anew 1,000 times. Who is told nothing puts nobody in "
            "order, and has no r or AUC. Every other score is in metrics.json.",
        )  # fmt: skip


def _conclusion(findings: Findings, name: str, metric: str, own: Sequence[Claim], unit: str) -> str:
    given = main_claims(own)[0].given
    ours = findings.value(SECTION, name, metric, given=given)
    constant = findings.value(SECTION, name, metric, who=CONSTANT, given=NOTHING)
    exact = findings.value(SECTION, name, metric, who=EXACT, given=given)
    assert ours is not None and constant is not None
    is_class = own[0].is_class
    gain = ours.value - constant.value if is_class else constant.value - ours.value
    lowest = (ours.low or ours.value) - constant.value if is_class else constant.value - (ours.high or ours.value)
    worth = "no better than" if gain <= 0 else "better than" if lowest > 0 else "not certainly better than"
    said = _said(ours.value, is_class, unit)
    limit = f"; the exact answer has {_said(exact.value, is_class, unit)}" if exact else ""
    best = best_of(findings, name, metric, given)
    beside = ""
    if best is not None:
        overlap = (best.low or best.value) <= ours.value <= (best.high or best.value)
        ahead = (ours.value > best.value) == is_class
        verdict = "as good, within chance" if overlap else "behind" if ahead else "ahead"
        beside = f" The best of the baselines, {best.who}, is {verdict}: {_said(best.value, is_class, unit)}."
    useless = _said(constant.value, is_class, unit)
    return f"{in_words(given).capitalize()}, the model has {said}, {worth} a constant ({useless}){limit}.{beside}"


def best_of(findings: Findings, name: str, metric: str, given: str) -> Figure | None:
    """The best of the baselines' figures given the same; None without baselines."""
    wanted = (SECTION, name, metric, given, EVERYBODY)
    found = [f for f in findings.figures if (f.section, f.variable, f.metric, f.given, f.group) == wanted
             and f.who not in (OURS, EXACT, CONSTANT)]  # fmt: skip
    better = min if metric in ("mae", "brier") else max
    return better(found, key=lambda figure: figure.value) if found else None


def _said(value: float, is_class: bool, unit: str) -> str:
    return f"{value:.1%} right" if is_class else f"a mean error of {value:.3g} {unit}".rstrip()


def shown_value(figure: Figure | None) -> str:
    """A figure and its interval as they are to be read."""
    if figure is None or figure.value != figure.value:
        return "-"
    digits = 3 if abs(figure.value) < 1 else 2 if abs(figure.value) < 100 else 0
    if figure.low is None or figure.high is None or figure.low != figure.low:
        return f"{figure.value:.{digits}f}"
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"
