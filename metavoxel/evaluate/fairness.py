"""The same figures for each age band, sex, site and any other column: who is served worse than the others?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from metavoxel.data.cohort import Cohort
from metavoxel.data.splits import STRATA
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate import plots
from metavoxel.evaluate.accuracy import LEAST_P, SHOWN, common, losses, scored, shown_value
from metavoxel.evaluate.asking import NOTHING
from metavoxel.evaluate.calibrated import calibration, coverage_p
from metavoxel.evaluate.claims import Claim, in_words, main_claims
from metavoxel.evaluate.figures import CONSTANT, EXACT, OURS, Figure, Findings
from metavoxel.evaluate.scores import apart, holm
from metavoxel.page import Picture, Section, Table

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
    """Accuracy and calibration of the model given each set of facts, group by group: `group` is "sex = F".

    loss_less_rest: the group's mean loss (see `losses`) less that of all other people, above 0 if it is served worse;
    loss_beyond_exact_less_rest: the same of what the model loses beyond the exact answer; both with METRIC_p. The exact
    answer's own, or else a constant's, are there under their names: some groups are harder than others for anybody.
    """
    people = cohort.table["participant_id"].to_numpy()
    own = [(claim, _beside(claims, claim)) for claim in [*main_claims(claims), *_further(claims)]]
    words = cohort.kinds(by).astype(object)
    for column in by:
        of_row = words[column].reindex(people).to_numpy()
        for value in sorted(set(of_row), key=str):
            inside = of_row == value
            some = [(claim, other) for claim, other in own if _enough(claim, people, inside)]
            group, parts = f"{column} = {value}", [claim.among(inside) for claim, _ in some]
            beside = {(other.variable.name, other.who, other.given): other.among(inside) for _, other in some}
            others = [part for part in beside.values() if len(part.rows)]
            found = [*scored([*parts, *others], people, seed, group), *calibration(parts, seed, group)]
            for claim, other in some:
                found += _less_rest(claim, other, people, inside, group, seed)
            once = {(f.variable, f.metric, f.who, f.given): f for f in found}  # a constant is held against several claims
            for figure in once.values():
                yield Figure(**{**vars(figure), "section": SECTION})


def _further(claims: Sequence[Claim]) -> list[Claim]:
    """The model's other claims. Given nothing, all are told the same."""
    main = main_claims(claims)[0].given
    return [claim for claim in claims if claim.who == OURS and claim.given not in (main, NOTHING)]


def _enough(claim: Claim, people: np.ndarray, inside: np.ndarray) -> bool:
    return len(set(people[claim.among(inside).rows])) >= LEAST_PEOPLE


def _beside(claims: Sequence[Claim], ours: Claim) -> Claim:
    """The exact answer given the same, or else a constant's."""
    own = {(claim.who, claim.given): claim for claim in claims if claim.variable.name == ours.variable.name}
    return own.get((EXACT, ours.given)) or own[CONSTANT, NOTHING]


def _less_rest(
    claim: Claim, other: Claim, people: np.ndarray, inside: np.ndarray, group: str, seed: int
) -> Iterator[Figure]:
    if not _enough(claim, people, ~inside):
        return
    one, two = common(claim, other)
    told = [(claim, losses(claim), "loss"), (other, losses(other), "loss")]
    if other.who == EXACT:
        told.append((one, losses(one) - losses(two), "loss_beyond_exact"))
    for who, loss, metric in told:
        if not _enough(who, people, inside) or not _enough(who, people, ~inside):
            continue
        each = pd.Series(loss).groupby([inside[who.rows], people[who.rows]]).mean()
        its, rest = each.loc[True].to_numpy(), each.loc[False].to_numpy()
        value, low, high, p = apart(its, rest, seed=seed)
        figure = partial(Figure, SECTION, who.variable.name, who=who.who, given=who.given, group=group, n=len(its))
        yield figure(f"{metric}_less_rest", value, low=low, high=high)
        yield figure(f"{metric}_less_rest_p", p)


def fairness_sections(findings: Findings, claims: Sequence[Claim]) -> Iterator[Section]:
    """Given the scan (where it can be), a picture a variable; given other facts, a table. Nothing where no group is large
    enough."""
    main, further = main_claims(claims), _further(claims)
    panels = [picture for claim in main for picture in _panel(findings, claim)]
    if panels:
        parts = _parts(findings, claims, {claim.variable.name: claim for claim in main})
        yield Section(
            "Is anybody served worse?", _conclusion(parts), panels, _table(parts),
            note=f"{in_words(main[0].given).capitalize()}. Bars are 95 % intervals, the grey line is everybody. "
            f"Groups of under {LEAST_PEOPLE} people are left out. Loss: the mean error, or the share that is wrong; each "
            "group's is held against that of all people outside it (permutation of Welch's t). For comparison: the exact "
            "answer's figure, or else a constant's. Each p is one test's own; of models that serve all alike, 1 in 20 "
            "reports names a group above as served worse or better, and 1 in 20 intervals or probabilities as at fault "
            "(Holm).",
        )  # fmt: skip
    asked = {f"{claim.variable.name} {in_words(claim.given)}": claim for claim in further}
    if parts := _parts(findings, claims, asked):
        yield Section(
            "Is anybody served worse who is told other facts?", _conclusion(parts), table=_table(parts),
            note="As above, by all of these groups and sets of facts together. Given nothing, all are told the same.",
        )  # fmt: skip


def _groups(findings: Findings, claim: Claim) -> list[Figure]:
    """The shown metric of each group. A group of one class, or of ages in one band, is no fair comparison for what is asked
    about itself."""
    name, metric = claim.variable.name, next(iter(SHOWN[claim.is_class]))
    wanted = SECTION, name, metric, OURS, claim.given
    return [f for f in findings.figures if (f.section, f.variable, f.metric, f.who, f.given) == wanted
            and not f.group.startswith(f"{name} = ")]  # fmt: skip


def _panel(findings: Findings, claim: Claim) -> Iterator[Picture]:
    name, (metric, words) = claim.variable.name, next(iter(SHOWN[claim.is_class].items()))
    everybody, own = findings.value("accuracy", name, metric, given=claim.given), _groups(findings, claim)
    if everybody is not None and own:
        bars = [(f"{f.group} (n {f.n})", f.value, _end(f.low, f.value), _end(f.high, f.value)) for f in own]
        unit = getattr(claim.variable, "unit", "")
        png = plots.groups(name, f"{words}, {unit}" if unit else words, bars, everybody.value)
        yield Picture(png, f"{words} of {name} by group")


def _parts(findings: Findings, claims: Sequence[Claim], asked: Mapping[str, Claim]) -> list["_Part"]:
    return [_Part(findings, question, claim, _beside(claims, claim), group)
            for question, claim in asked.items() for group in _groups(findings, claim)]  # fmt: skip


def _table(parts: Sequence["_Part"]) -> Table:
    header = ("variable", "group", "n", "model", "loss less the others'", "p", "for comparison", "90 % holds", "ECE, p")
    return Table(header, [part.cells() for part in parts])


@dataclass(frozen=True)
class _Part:
    """What was found of one claim in the group that `shown` is about. question: in words; other: whom the answers are held
    against there."""

    findings: Findings
    question: str
    claim: Claim
    other: Claim
    shown: Figure

    @property
    def group(self) -> str:
        return self.shown.group

    def told(self, metric: str, of: Claim | None = None) -> Figure | None:
        """Of the model, or of `other`."""
        of = of or self.claim
        return self.findings.value(SECTION, of.variable.name, metric, who=of.who, given=of.given, group=self.group)

    @property
    def calibration_p(self) -> float | None:
        """Of 90 % intervals or, of a class, of its probabilities."""
        held, p = self.told("coverage_90"), self.told("ece_p")
        return coverage_p(held, 90) if held else p.value if p else None

    @property
    def is_hard(self) -> bool:
        """Whether the exact answer loses as much more here, but for chance."""
        beyond, p = self.told("loss_beyond_exact_less_rest"), self.told("loss_beyond_exact_less_rest_p")
        return beyond is not None and p is not None and (beyond.value <= 0 or p.value >= LEAST_P)

    def cells(self) -> tuple[str, ...]:
        """Of the table."""
        metric = self.shown.metric
        apart, p, held, ece_p = map(self.told, ("loss_less_rest", "loss_less_rest_p", "coverage_90", "ece_p"))
        asked = f"{self.question}: {SHOWN[self.claim.is_class][metric]}"
        other = f"{shown_value(self.told(metric, self.other))} ({self.other.who})"
        return (asked, self.group, str(self.shown.n), shown_value(self.shown), shown_value(apart),
                f"{p.value:.2g}" if p else "", other, f"{held.value:.0%}" if held else "",
                f"{ece_p.value:.2g}" if ece_p else "")  # fmt: skip

    def words(self) -> str:
        """How much worse or better the group is served than others, by the model and by whom it is held against."""
        own, its = self.told("loss_less_rest"), self.told("loss_less_rest", self.other)
        assert own is not None
        unit = getattr(self.claim.variable, "unit", "")
        said = [f"{f.value:+.1%} wrong" if self.claim.is_class else f"{f.value:+.3g} {unit}".rstrip()
                for f in (own, its) if f is not None]  # fmt: skip
        beside = f"; {self.other.who}: {said[1]}" if len(said) > 1 else ""
        return f"{self.group} for {self.question} ({said[0]}{beside})"


def _conclusion(parts: Sequence[_Part]) -> str:
    known = [(part, own, p.value) for part in parts if (own := part.told("loss_less_rest"))
             and (p := part.told("loss_less_rest_p"))]  # fmt: skip
    apart = [(part, own.value) for (part, own, _), p in zip(known, holm([p for *_, p in known])) if p < LEAST_P]
    worse = [part for part, loss in apart if loss > 0]
    said = {
        "Served worse than other people, beyond chance": [part for part in worse if not part.is_hard],
        "Harder, but for the exact answer as well, and no more so": [part for part in worse if part.is_hard],
        "Served better": [part for part, loss in apart if loss < 0],
    }
    sentences = [f"{words}: {'; '.join(part.words() for part in own)}." for words, own in said.items() if own]
    if not worse:
        sentences.insert(0, f"None of {len(known)} groups is served worse than other people, beyond chance.")
    judged = [(part, odds) for part in parts if (odds := part.calibration_p) is not None]
    wrong = [part for (part, _), odds in zip(judged, holm([odds for _, odds in judged])) if odds < LEAST_P]
    if wrong:
        off = "; ".join(f"{part.group} for {part.question}" for part in wrong)
        sentences.append(f"Intervals (90 %) or probabilities are at fault in: {off}.")
    elif judged:
        sentences.append(f"No fault of 90 % intervals or of probabilities was found in {len(judged)} groups.")
    return " ".join(sentences)


def _end(end: float | None, value: float) -> float:
    return value if end is None or not np.isfinite(end) else end
