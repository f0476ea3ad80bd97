"""Is a class told from more than the size of the head? Men's heads are larger: a network may tell sex and have seen nothing
else. Among people whose heads are as large, size says nothing."""

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from metavoxel.evaluate.accuracy import shown_value
from metavoxel.evaluate.claims import Claim, main_claims
from metavoxel.evaluate.evaluation import Evaluation
from metavoxel.evaluate.figures import Figure, Findings
from metavoxel.evaluate.scans import scans_of
from metavoxel.evaluate.scores import LEAST_PROBABILITY, Figures, auc, bootstrap
from metavoxel.page import Section, Table

SECTION = "head size"
AS_LARGE = 0.02
"""Heads whose volumes differ by less than this share are as large."""
LEAST_PAIRS = 30
FOLDS = 5
WHO = {"": "model", "_of_size": "head size alone", "_of_both": "both"}
"""The ends of metrics, and whose they are."""


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
        figures = list(beside_head_size(claim, sizes, run.people, run.options.seed))
        run.findings.add(figures)
        if not figures:
            run.findings.left_out.append(f"{claim.variable.name} beside head size: too few people's heads are as large.")
    return _section(run.findings, [claim.variable.name for claim in claims])


def beside_head_size(claim: Claim, sizes: np.ndarray, people: np.ndarray, seed: int = 0) -> Iterator[Figure]:
    """Of a claim about two levels and of head size alone (_of_size): auc; auc_in_pairs, of people whose heads are as large;
    accuracy, of size by logistic regression on other people of the same cohort, as is that of claim and size (_of_both).
    more_in_pairs, more_right: claim less size. Intervals are over people. Nothing where too few pairs are alike.

    sizes: (rows,) of the cohort in ml, NaN where unknown; people: (rows,) whose each row is.
    """
    known = ~np.isnan(sizes[claim.rows])
    rows, truth, told = claim.rows[known], claim.truth[known] == 1, claim.told[known, 1]
    size, whose = np.log(sizes[rows]), people[rows]
    one, other = np.flatnonzero(truth), np.flatnonzero(~truth)
    alike = (np.abs(size[one, None] - size[other]) < AS_LARGE).astype(float)
    if alike.sum() < LEAST_PAIRS:
        return
    # whichever way round size tells more
    larger = size if auc(size[one], size[other]) >= 0.5 else -size
    ahead = {end: alike * (1 + np.sign(by[one, None] - by[other])) / 2 for end, by in (("", told), ("_of_size", larger))}
    right = {"": claim.told[known].argmax(1) == truth}
    if min(len(set(whose[level])) for level in (one, other)) >= FOLDS:
        odds = np.log(np.clip(told, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY))
        odds -= np.log(np.clip(1 - told, LEAST_PROBABILITY, 1))
        right["_of_size"] = _told_by(size[:, None], truth, whose, seed) == truth
        right["_of_both"] = _told_by(np.stack([odds, size], 1), truth, whose, seed) == truth

    def score(drawn: np.ndarray) -> Figures:
        often = np.bincount(drawn, minlength=len(rows)).astype(float)
        times, chosen = (often[one], often[other]), truth[drawn]
        pairs = times[0] @ alike @ times[1]
        both = chosen.any() and not chosen.all()
        found = {f"auc{end}": auc(by[drawn[chosen]], by[drawn[~chosen]]) if both else np.nan
                 for end, by in (("", told), ("_of_size", larger))}  # fmt: skip
        for end, won in ahead.items():
            found[f"auc_in_pairs{end}"] = float(times[0] @ won @ times[1] / pairs) if pairs else np.nan
        found |= {f"accuracy{end}": float(own[drawn].mean()) for end, own in right.items()}
        found["more_in_pairs"] = found["auc_in_pairs"] - found["auc_in_pairs_of_size"]
        if "accuracy_of_size" in found:
            found["more_right"] = found["accuracy"] - found["accuracy_of_size"]
        return found

    for metric, (value, low, high) in bootstrap(score, whose, seed=seed).items():
        n = int(alike.sum()) if "pairs" in metric else len(rows)
        yield Figure(SECTION, claim.variable.name, metric, value, claim.who, claim.given, low=low, high=high, n=n)


def _told_by(facts: np.ndarray, truth: np.ndarray, people: np.ndarray, seed: int) -> np.ndarray:
    """(rows,) bool: what facts (rows, k) say, by what they say of other people."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    return cross_val_predict(model, facts, truth, groups=people, cv=folds)


def _section(findings: Findings, names: Sequence[str]) -> Section | None:
    rows, said = [], []
    for name in names:
        own = {f.metric: f for f in findings.figures if (f.section, f.variable) == (SECTION, name)}
        if not own:
            continue
        for end, who in WHO.items():
            cells = [shown_value(own.get(f"{metric}{end}")) for metric in ("accuracy", "auc", "auc_in_pairs")]
            rows.append((name, who, *("" if cell == "-" else cell for cell in cells)))
        more, pairs, by_size = (own[metric] for metric in ("more_in_pairs", "auc_in_pairs", "auc_in_pairs_of_size"))
        said.append(f"Of {pairs.n} pairs of people whose heads are as large, the model puts {pairs.value:.0%} in the right "
                    f"order of {name}; size, which still differs by up to {AS_LARGE:.0%}, {by_size.value:.0%} (a guess: "
                    f"50 %): {_verdict(more)}.")  # fmt: skip
        if "more_right" in own:
            said.append(f"Over everybody, the model is right of {own['accuracy'].value:.1%}, head size alone of "
                        f"{own['accuracy_of_size'].value:.1%}, both together of {own['accuracy_of_both'].value:.1%}.")
    if not rows:
        return None
    return Section(
        "Is it more than head size?", " ".join(said),
        table=Table(("class", "told by", "accuracy", "AUC", "AUC, heads as large"), rows),
        note=f"As large: the volumes inside the skull differ by less than {AS_LARGE:.0%}. Brackets: 95 % intervals, people "
        f"drawn anew. Head size, and both, tell by a logistic regression on other people of this cohort ({FOLDS} parts), "
        "whom the model has not seen.",
    )  # fmt: skip


def _verdict(more: Figure) -> str:
    if not more.has_interval or more.low <= 0 <= more.high:  # type: ignore[operator]
        return "nothing shows that it sees more than head size"
    return "it sees more than head size" if more.value > 0 else "it sees less than head size alone"
