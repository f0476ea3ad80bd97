"""What the report concludes of answers: better or worse than others', for whom, and by what. Each conclusion is held
against answers that were made so that it is true, or is not."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from metavoxel.data.cohort import Cohort, read_cohort
from metavoxel.evaluate import accuracy, coherence, fairness, headsize, plots, summary
from metavoxel.evaluate.claims import Claim
from metavoxel.evaluate.figures import OURS, Figure, Findings
from metavoxel.schema import Categorical, Continuous

Rng = np.random.Generator


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(0)


def test_a_constant_of_several_folds_orders_nobody(rng: Rng) -> None:
    """Each fold's constant is the mean of the others: the higher a fold's people, the lower its constant."""
    fold = np.arange(60) % 3
    for variable, truth, told in (
        (Continuous("age", "years"), rng.normal(40 + 10 * fold, 5), 60.0 - 5 * fold),
        (Categorical("sex", levels=("F", "M")), 1.0 * (rng.random(60) < 0.2 + 0.3 * fold),
         np.stack([0.4 + 0.15 * fold, 0.6 - 0.15 * fold], 1)),
    ):  # fmt: skip
        claim = Claim("constant", "nothing", variable, np.arange(60), truth, told)
        found = {figure.metric: figure.value for figure in accuracy.accuracy([claim], np.arange(60), seed=0)}
        assert {name for name, value in found.items() if np.isnan(value)} == {"auc" if claim.is_class else "r"}


def test_a_baseline_is_held_against_the_model_on_the_same_answers(rng: Rng) -> None:
    """Errors that people share hide from two intervals of their own what they do not hide from the pairs."""
    truth, shared = rng.normal(50, 15, 200), rng.normal(0, 8, 200)
    near, far = truth + shared, truth + 1.1 * shared
    everybody, scanned = np.arange(200), np.arange(150)
    age = Continuous("age", "years")

    def told(who: str, given: str, rows: np.ndarray, values: np.ndarray) -> Claim:
        return Claim(who, given, age, rows, truth[rows], values[rows])

    claims = [
        told(OURS, "scan", scanned, far), told(OURS, "other facts", everybody, near),
        told(OURS, "scan and other facts", scanned, far), told("constant", "nothing", everybody, np.full(200, 50.0)),
        told("linear", "scan", everybody, np.where(everybody < 150, near, 0)),  # so bad only where the model has no scan
        told("vit", "scan", scanned, truth + 20),
    ]  # fmt: skip
    findings = Findings({})
    findings.add(accuracy.accuracy(claims, everybody, seed=0))
    ours, linear = (findings.value("accuracy", "age", "mae", who=who, given="scan") for who in (OURS, "linear"))
    pair = findings.value("paired", "age", "mae", who="linear", given="scan")
    assert pair.value == pytest.approx(0.1 * np.abs(shared[:150]).mean()) and pair.n == 150 < linear.n
    assert pair.low > 0 and ours.low < ours.value - pair.value  # its own interval holds what is better by as much
    assert findings.value("paired", "age", "mae_p", who="linear", given="scan").value < 0.01
    assert accuracy.best_of(findings, "age", "mae", "scan").who == "linear"
    section = next(accuracy.accuracy_sections(findings, claims))
    assert "The best of 2 baselines, linear," in section.conclusion and "the model is behind" in section.conclusion
    assert "better than a constant" in section.conclusion
    assert "Adding the scan to the other facts makes its answers worse: +0.6" in section.conclusion


def test_balanced_accuracy_stands_in_the_table(rng: Rng) -> None:
    """Nine in ten are well: who calls everybody well is right of nine in ten, and recognises nobody."""
    truth = 1.0 * (np.arange(100) < 10)
    ill, told = Categorical("ill", levels=("no", "yes")), np.tile([0.9, 0.1], (100, 1))
    claims = [Claim(who, given, ill, np.arange(100), truth, told) for who, given in
              ((OURS, "scan"), ("constant", "nothing"))]  # fmt: skip
    findings = Findings({})
    findings.add(accuracy.accuracy(claims, np.arange(100), seed=0))
    section = next(accuracy.accuracy_sections(findings, claims))
    shown = dict(zip(section.table.header, section.table.rows[0]))
    assert shown["accuracy"].startswith("0.900") and shown["balanced accuracy"].startswith("0.500")
    assert "not certainly better than a constant" in section.conclusion


def test_every_answer_is_pictured_under_what_it_was_given(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    draw = plots.answers

    def answers(title: str, x: str, blocks: dict, middle: float) -> bytes:
        drawn[title] = x, blocks, middle
        return draw(title, x, blocks, middle)

    monkeypatch.setattr(plots, "answers", answers)
    rows, age = np.arange(40), Continuous("age", "years")
    truth = rng.normal(50, 15, 40)
    asked = [(OURS, "scan"), (OURS, "other facts"), ("exact", "scan"), ("linear", "scan"), ("constant", "nothing")]
    claims = [Claim(who, given, age, rows, truth, truth + rng.normal(0, 9, 40)) for who, given in asked]
    findings = Findings({})
    findings.add(accuracy.scored(claims, rows, seed=0))
    section = next(accuracy.accuracy_sections(findings, claims))
    x, blocks, middle = drawn["age"]
    assert x == "MAE, years" and middle == pytest.approx(np.abs(claims[-1].told - truth).mean())
    assert {heading: [who for who, *_ in own] for heading, own in blocks.items()} == {
        "given the scan": [OURS, "exact", "linear"], "given the other facts": [OURS], "given nothing": ["constant"],
    }  # fmt: skip
    _, value, low, high = blocks["given the scan"][2]
    figure = findings.value("accuracy", "age", "mae", who="linear", given="scan")
    assert (value, low, high) == (figure.value, figure.low, figure.high) and low < value < high
    assert len(section.pictures) == 1 and section.pictures[0].png.startswith(b"\x89PNG")
    alone = [claim.among(rows == 3) for claim in claims]
    findings = Findings({})
    findings.add(accuracy.scored(alone, rows, seed=0))
    next(accuracy.accuracy_sections(findings, alone))
    _, value, low, high = drawn["age"][1]["given the scan"][0]
    assert value == low == high == pytest.approx(abs(claims[0].told[3] - truth[3]))  # one person has no interval


def test_the_limit_is_that_of_the_question_in_the_summary(rng: Rng) -> None:
    """Of a model without scans, what the other facts allow."""
    rows, age = np.arange(60), Continuous("age", "years")
    truth = rng.normal(50, 15, 60)
    off = {(OURS, "nothing"): 12, (OURS, "other facts"): 7, ("exact", "nothing"): 10, ("exact", "other facts"): 5,
           ("exact", "scan"): 3, ("constant", "nothing"): 11}  # fmt: skip
    claims = [Claim(who, given, age, rows, truth, truth + error) for (who, given), error in off.items()]
    findings = Findings({})
    findings.add(accuracy.scored(claims, rows, seed=0))
    table = summary.summary_section(findings, claims, at_once=True).table
    row = dict(zip(table.header, table.rows[0]))
    assert row["exact limit"].startswith("5.00 ") and row["model"].startswith("7.00 ")
    scanned = [*claims, Claim(OURS, "scan", age, rows, truth, truth + 4)]
    findings.add(accuracy.scored(scanned[-1:], rows, seed=0))
    table = summary.summary_section(findings, scanned, at_once=True).table
    assert dict(zip(table.header, table.rows[0]))["exact limit"].startswith("3.00 ")


def cohort_of(tmp_path: Path, **columns: np.ndarray) -> Cohort:
    n = len(next(iter(columns.values())))
    pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)], **columns}).to_csv(tmp_path / "c.csv", index=False)
    return read_cohort(tmp_path / "c.csv")


def test_who_is_served_worse_is_told_from_who_is_harder_and_who_is_served_better(rng: Rng, tmp_path: Path) -> None:
    """At site a, nobody could tell ages better; at b the model is worse than need be; c and d are what is left."""
    n = 400
    site = np.array(list("abcd"))[np.arange(n) % 4]
    truth = rng.normal(50, 15, n)
    exact = truth + rng.normal(0, np.where(site == "a", 12, 4))
    narrow = np.where(site == "b", 10.0, 0)
    ours = exact + rng.normal(0, 1, n) + narrow
    spread = np.where(site == "a", 12, 4)[:, None]
    rows, age = np.arange(n), Continuous("age", "years")
    facts = truth + rng.normal(0, np.where(site == "c", 20, 5))
    claims = [
        Claim(OURS, "scan", age, rows, truth, ours, ours[:, None] + rng.normal(0, 1, (n, 99)) * spread),
        Claim(OURS, "other facts", age, rows, truth, facts), Claim(OURS, "nothing", age, rows, truth, 0 * facts + 50),
        Claim("exact", "scan", age, rows, truth, exact), Claim("constant", "nothing", age, rows, truth, 0 * facts + 50),
    ]  # fmt: skip
    findings = Findings({})
    findings.add(accuracy.accuracy(claims, rows, seed=0))
    findings.add(fairness.fairness(claims, cohort_of(tmp_path, site=site), ["site"], seed=0))
    keys = [(f.variable, f.metric, f.who, f.given, f.group) for f in findings.figures if f.section == fairness.SECTION]
    assert len(keys) == len(set(keys)) and {given for _, _, who, given, _ in keys if who == OURS} == {"scan", "other facts"}
    off = np.abs(ours - truth)
    spread_of_errors = findings.value("accuracy", "age", "mae_sd", given="scan")
    assert spread_of_errors.value == pytest.approx(off.std()) and spread_of_errors.low < off.std() < spread_of_errors.high
    of_group = findings.value(fairness.SECTION, "age", "mae_sd", given="scan", group="site = b")
    assert of_group.value == pytest.approx(off[site == "b"].std())
    section, further = fairness.fairness_sections(findings, claims)
    worse, harder, better, off = section.conclusion.split(". ", 3)
    assert worse.startswith("Served worse than other people, beyond chance: site = b for age (+")
    assert harder.startswith("Harder, but for the exact answer as well, and no more so: site = a for age (+")
    assert better.startswith("Served better: site = c") and "site = d" in better
    assert off == "Intervals (90 %) or probabilities are at fault in: site = b for age."
    row = dict(zip(section.table.header, section.table.rows[0]))
    assert row["group"] == "site = a" and row["for comparison"].endswith("(exact)") and row["90 % holds"].endswith("%")
    assert further.conclusion.startswith("Served worse than other people, beyond chance: site = c for age given the other "
                                         "facts (+")  # fmt: skip
    row = dict(zip(further.table.header, further.table.rows[0]))
    assert row["variable"] == "age given the other facts: MAE" and row["for comparison"].endswith("(constant)")


def test_groups_that_are_served_alike_are_seldom_named(rng: Rng, tmp_path: Path) -> None:
    n = 120
    cohort = cohort_of(tmp_path, site=np.array(list("abcdef"))[np.arange(n) % 6])
    rows, sex, named = np.arange(n), Categorical("sex", levels=("F", "M")), 0
    for trial in range(20):
        truth = rng.integers(2, size=n).astype(float)
        p = np.clip(rng.normal(0.25 + 0.5 * truth, 0.25), 0.01, 0.99)
        p, constant = np.stack([1 - p, p], 1), np.full((n, 2), 0.5)
        claims = [Claim(OURS, "scan", sex, rows, truth, p), Claim("constant", "nothing", sex, rows, truth, constant)]
        findings = Findings({})
        findings.add(found for claim in claims[:1] for value in "abcdef" for found in fairness._less_rest(
            claim, claims[1], rows, cohort.table["site"].to_numpy() == value, value, trial))  # fmt: skip
        groups = [Figure(fairness.SECTION, "sex", "accuracy", 0, group=value) for value in "abcdef"]
        parts = [fairness._Part(findings, "sex", *claims, group) for group in groups]
        named += not fairness._conclusion(parts).startswith("None of 6 groups is served worse")
    assert named <= 3  # at most 1 in 20 is expected, worse or better


@pytest.mark.parametrize("smaller", [False, True])
def test_a_class_that_is_nothing_but_head_size_is_found_out(rng: Rng, smaller: bool) -> None:
    """smaller: whether the second level's heads are the smaller ones. Size alone orders more than half of the pairs that
    are as large as each other to 2 %: that is no proof of more."""
    truth, people = rng.integers(2, size=400).astype(float), np.arange(400)
    sizes = rng.normal(1400 + 120 * (1 - truth if smaller else truth), 80)
    sex = Categorical("sex", levels=("F", "M"))
    by_size = 1 / (1 + np.exp((1460 - sizes) / 40 * (-1 if smaller else 1)))
    by_more = 1 / (1 + np.exp(-rng.normal(4 * truth - 2, 1.0)))
    guess = 1 / (1 + np.exp(-rng.normal(0, 1, 400)))
    found = {}
    for name, p in (("size", by_size), ("more", by_more), ("less", guess)):
        claim = Claim(OURS, "scan", sex, people, truth, np.stack([1 - p, p], 1))
        findings = Findings({})
        findings.add(headsize.beside_head_size(claim, sizes, people))
        figures = {figure.metric: figure.value for figure in findings.figures}
        found[name] = figures, headsize._section(findings, ["sex"]).conclusion
    (of_size, said), (of_more, said_more), (_, said_less) = found.values()
    assert of_size["auc"] == pytest.approx(of_size["auc_of_size"]) and of_size["more_in_pairs"] == pytest.approx(0)
    assert 0.5 < of_size["auc_in_pairs_of_size"] < 0.6 < 0.95 < of_more["auc_in_pairs"]
    assert "nothing shows that it sees more than head size" in said and ": it sees more than head size." in said_more
    assert ": it sees more than head size." not in said_less
    assert of_size["accuracy_of_size"] == pytest.approx(of_size["accuracy"], abs=0.03)
    assert of_more["accuracy_of_both"] >= of_more["accuracy"] - 0.01 > of_more["accuracy_of_size"]
    sizes[10:] = np.nan
    assert list(headsize.beside_head_size(claim, sizes, people)) == []


def test_how_far_a_model_contradicts_itself_is_told_of_the_mean_and_of_most(tmp_path: Path) -> None:
    """From the file that a stopped run goes on from: the model is not asked."""
    rows = [{"variable": "age", "through": "sex", "gap": 0.12, "gap_q95": 0.37, "rows": 25},
            {"variable": "sex", "through": "age", "gap": 0.01, "gap_q95": 0.55, "rows": 25}]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "contradictions.csv", index=False)
    findings = Findings({})
    findings.add(coherence.contradictions([SimpleNamespace(suffix="")], 0, tmp_path))
    findings.add(coherence.surprises(pd.DataFrame({"T1w": [1.0, 2.0, 3.0, np.nan]}), 2.4, pd.DataFrame(index=range(4))))
    assert findings.value("coherence", "sex", "gap_q95 through age").value == 0.55
    said = coherence.coherence_section(findings).conclusion
    assert "25 rows of the cohort were asked about" in said
    assert "for age, through sex: by 0.12 on average, and by up to 0.37 in" in said
    assert "33.3% of 3 T1w scans are unlike those in training; 0.01% of scans like them would be" in said
    more = [{**rows[0], "gap": 0.2, "rows": 75}, {**rows[1], "gap": np.nan, "rows": 0}]
    for fold, told in (("-1", rows), ("-2", more)):
        pd.DataFrame(told).to_csv(tmp_path / f"contradictions{fold}.csv", index=False)
    folds = [SimpleNamespace(suffix=fold) for fold in ("-1", "-2")]
    own = {(f.variable, f.metric): (f.value, f.n) for f in coherence.contradictions(folds, 0, tmp_path)}
    assert own["age", "gap through sex"] == (pytest.approx(0.25 * 0.12 + 0.75 * 0.2), 100)
    assert own["sex", "gap through age"] == (0.01, 25)


def test_scans_unlike_training_are_counted_by_group_too() -> None:
    """Of 12 scans at site a one is odd, of 11 at b nine; of 3 at c nothing is said; one at b is missing."""
    scores = np.r_[3.0, np.ones(11), 3 * np.ones(9), np.nan, np.ones(2), 3 * np.ones(3)]
    words = pd.DataFrame({"site": [*"a" * 12, *"b" * 12, *"c" * 3]}, dtype="category")
    found = {f.group: (f.value, f.n) for f in coherence.surprises(pd.DataFrame({"T1w": scores}), 2.4, words)
             if f.metric == "share_surprising"}  # fmt: skip
    assert found == {"all": (13 / 26, 26), "site = a": (1 / 12, 12), "site = b": (9 / 11, 11)}
