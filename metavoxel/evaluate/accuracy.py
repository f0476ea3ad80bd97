"""How near everybody's answers are to the truth, under each set of given facts: the paper's Tables 1 and 2. Who is
nearer than whom is asked of the same people's answers."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from metavoxel.evaluate import plots
from metavoxel.evaluate.asking import BOTH, NOTHING, OTHERS
from metavoxel.evaluate.claims import Claim, in_words, main_claims
from metavoxel.evaluate.figures import CONSTANT, EVERYBODY, EXACT, OURS, Figure, Findings
from metavoxel.evaluate.scores import bootstrap, class_scores, compare, number_scores
from metavoxel.page import Picture, Section, Table

SECTION, PAIRED = "accuracy", "paired"
SHOWN = (
    {"mae": "MAE", "r2": "R2", "r": "r"},
    {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auc": "AUC", "brier": "Brier"},
)
"""Of numbers, of classes: what stands in the page's table. The rest is in metrics.json."""
LOW_IS_GOOD = ("mae", "brier")
LEAST_P = 0.05


def accuracy(claims: Sequence[Claim], people: np.ndarray, seed: int) -> Iterator[Figure]:
    """What `scored` and `paired` find. people: (rows,) whose each row of the cohort is."""
    yield from scored(claims, people, seed)
    yield from paired(claims, people, seed)


def scored(claims: Sequence[Claim], people: np.ndarray, seed: int, group: str = EVERYBODY) -> Iterator[Figure]:
    """All scores of all claims with 95 % intervals, people drawn anew."""
    for claim in claims:
        found = bootstrap(partial(_scores, claim), people[claim.rows], seed=seed)
        for metric, (value, low, high) in found.items():
            yield Figure(SECTION, claim.variable.name, metric, value, claim.who, claim.given, group, low, high,
                         len(claim.rows))  # fmt: skip


def paired(claims: Sequence[Claim], people: np.ndarray, seed: int) -> Iterator[Figure]:
    """Section PAIRED: the model's scores less those of `who` on the rows that both answered, with intervals, and METRIC_p.

    who: a constant, the exact answer, the best baseline given the same; the model itself, of its answers given the scan and
    other facts, less those given the other facts alone.
    """
    ours = {(claim.variable.name, claim.given): claim for claim in claims if claim.who == OURS}
    for (name, given), claim in ours.items():
        others = [other for other in claims if other.variable.name == name and other.who != OURS]
        beside = [other for other in others if (other.who, other.given) in ((CONSTANT, NOTHING), (EXACT, given))]
        baselines = [other for other in others if other.given == given and other.who not in (CONSTANT, EXACT)]
        if baselines:
            beside.append(min(baselines, key=partial(_loss_beyond, claim)))
        if given == BOTH and (name, OTHERS) in ours:
            beside.append(ours[name, OTHERS])
        for other in beside:
            yield from _difference(claim, other, people, seed)


def losses(claim: Claim) -> np.ndarray:
    """(rows,) how far off each answer is in the number's unit; of a class, 1 where another is likelier."""
    return 1.0 * (claim.told.argmax(1) != claim.truth) if claim.is_class else np.abs(claim.told - claim.truth)


def _loss_beyond(ours: Claim, other: Claim) -> float:
    """The other's mean loss less ours on the rows that both answered; infinite where there are none."""
    one, two = common(ours, other)
    return float((losses(two) - losses(one)).mean()) if len(one.rows) else np.inf


def _difference(ours: Claim, other: Claim, people: np.ndarray, seed: int) -> Iterator[Figure]:
    one, two = common(ours, other)
    if not len(one.rows):
        return
    scores = class_scores if ours.is_class else number_scores
    found = compare(scores, one.truth, one.told, two.told, people[one.rows], seed=seed)
    for metric in SHOWN[ours.is_class]:
        value, low, high, p = found[metric]
        if metric in ("r", "auc") and NOTHING in (ours.given, other.given):
            continue  # see _scores
        told = partial(Figure, PAIRED, ours.variable.name, who=other.who, given=ours.given, n=len(one.rows))
        yield told(metric, value, low=low, high=high)
        yield told(f"{metric}_p", p)


def common(one: Claim, other: Claim) -> tuple[Claim, Claim]:
    """About the rows that both are about: a baseline on tables, say, answers people without a scan, too."""
    rows = np.intersect1d(one.rows, other.rows)
    inside = np.zeros(max(one.rows.max(), other.rows.max()) + 1, bool)
    inside[rows] = True
    return one.among(inside), other.among(inside)


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
            [_picture(findings, name, main, own, unit)], columns=1,
            table=Table(header, rows),
            note="Brackets: 95 % intervals, people drawn anew 1,000 times. p: how often answerers whose answers could be "
            "exchanged, person by person, would differ as much. The best of several baselines was chosen on these "
            "people: the model is called behind it only where p times their number is under .05. Who is told nothing puts "
            "nobody in order, and has no r or AUC. Every other score is in metrics.json.",
        )  # fmt: skip


def _picture(findings: Findings, name: str, metric: str, own: Sequence[Claim], unit: str) -> Picture:
    """The table's first score, row by row, in blocks of answers to the same question."""
    blocks: dict[str, list[tuple[str, float, float, float]]] = {}
    middle = np.nan
    for claim in own:
        figure = findings.value(SECTION, name, metric, who=claim.who, given=claim.given)
        assert figure is not None
        value, low, high = figure.value, figure.low, figure.high
        ends = (value, value) if low is None or high is None or not figure.has_interval else (low, high)
        blocks.setdefault(in_words(claim.given), []).append((claim.who, value, *ends))
        middle = figure.value if claim.who == CONSTANT else middle
    words = SHOWN[own[0].is_class][metric]
    png = plots.answers(name, f"{words}, {unit}" if unit and not own[0].is_class else words, blocks, middle)
    caption = "Blue: the model; orange: the exact answer; grey: others. The line is the constant; bars are 95 % intervals."
    return Picture(png, f"{words} of {name}, by who answers and what is given", caption)


def _conclusion(findings: Findings, name: str, metric: str, own: Sequence[Claim], unit: str) -> str:
    given, is_class = main_claims(own)[0].given, own[0].is_class
    ours = findings.value(SECTION, name, metric, given=given)
    constant = findings.value(SECTION, name, metric, who=CONSTANT, given=NOTHING)
    exact = findings.value(SECTION, name, metric, who=EXACT, given=given)
    assert ours is not None and constant is not None
    worth = {"ahead": "better than", "behind": "worse than"}.get(_verdict(findings, name, metric, CONSTANT, given),
                                                                 "not certainly better than")  # fmt: skip
    limit = f"; the exact answer has {_said(exact.value, is_class, unit)}" if exact else ""
    sentences = [f"{in_words(given).capitalize()}, the model has {_said(ours.value, is_class, unit)}, {worth} a constant "
                 f"({_said(constant.value, is_class, unit)}){limit}."]  # fmt: skip
    if best := best_of(findings, name, metric, given):
        number = len({claim.who for claim in own if claim.given == given} - {OURS, EXACT, CONSTANT})
        verdict = _verdict(findings, name, metric, best.who, given, number)
        which = f"The best of {number} baselines, {best.who}," if number > 1 else f"The baseline {best.who}"
        sentences.append(f"{which} has {_said(best.value, is_class, unit)}.")
        if apart := _apart(findings, name, metric, best.who, given, unit):
            beside = f"the model is {verdict or 'not told apart from it'}"
            sentences.append(f"The model less it, on the same answers: {apart}; {beside}.")
    if _verdict(findings, name, metric, OURS, BOTH) == "behind":
        apart = _apart(findings, name, metric, OURS, BOTH, unit)
        sentences.append(f"Adding the scan to the other facts makes its answers worse: {apart}.")
    return " ".join(sentences)


def _pair(findings: Findings, name: str, metric: str, who: str, given: str) -> tuple[Figure, float] | None:
    """How the model differs from `who`, and p; None where both answered nobody."""
    apart, p = (findings.value(PAIRED, name, told, who=who, given=given) for told in (metric, f"{metric}_p"))
    return None if apart is None or p is None else (apart, p.value)


def _verdict(findings: Findings, name: str, metric: str, who: str, given: str, tries: int = 1) -> str:
    """Whether the model is "ahead" or "behind", beyond chance; else nothing. tries: of how many `who` is the best, so that
    it had as many chances to be ahead of the model."""
    found = _pair(findings, name, metric, who, given)
    if found is None:
        return ""
    apart, p = found
    ahead = (apart.value < 0) == (metric in LOW_IS_GOOD)
    return "" if p * (1 if ahead else tries) >= LEAST_P else "ahead" if ahead else "behind"


def _apart(findings: Findings, name: str, metric: str, who: str, given: str, unit: str) -> str:
    """A difference with its interval and p, in words."""
    found = _pair(findings, name, metric, who, given)
    if found is None:
        return ""
    apart, p = found
    form, after = ("+.1%", "") if metric == "accuracy" else ("+.3g", f" {unit}".rstrip())
    interval = "" if not apart.has_interval else f" [{apart.low:{form}}, {apart.high:{form}}]"
    return f"{apart.value:{form}}{after}{interval}, p = {p:.2g}"


def best_of(findings: Findings, name: str, metric: str, given: str) -> Figure | None:
    """The best of the baselines' figures given the same, by the rows that the model answered; None without baselines."""

    def told(section: str) -> list[Figure]:
        return [f for f in findings.figures if (f.section, f.variable, f.metric, f.given, f.group) ==
                (section, name, metric, given, EVERYBODY) and f.who not in (OURS, EXACT, CONSTANT)]  # fmt: skip

    beside = {figure.who for figure in told(PAIRED)}
    found = [figure for figure in told(SECTION) if not beside or figure.who in beside]
    better = min if metric in LOW_IS_GOOD else max
    return better(found, key=lambda figure: figure.value) if found else None


def _said(value: float, is_class: bool, unit: str) -> str:
    return f"{value:.1%} right" if is_class else f"a mean error of {value:.3g} {unit}".rstrip()


def shown_value(figure: Figure | None) -> str:
    """A figure and its interval as they are to be read."""
    if figure is None or figure.value != figure.value:
        return "-"
    digits = 3 if abs(figure.value) < 1 else 2 if abs(figure.value) < 100 else 0
    if not figure.has_interval:
        return f"{figure.value:.{digits}f}"
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"
