"""`metavoxel evaluate` as a user runs it: what it writes, that a stopped run goes on, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import metavoxel as mv
from metavoxel.data.phantom import write_cohort
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.claims import CONSTANT, EXACT
from metavoxel.evaluate.compare import comparison
from metavoxel.evaluate.evaluation import Options
from metavoxel.evaluate.figures import Findings
from metavoxel.evaluate.run import evaluate, refuse_leak

PEOPLE = 24


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("people") / "cohort", PEOPLE, seed=301, missing=0.05)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("others") / "cohort", PEOPLE, seed=302)


@pytest.fixture(scope="module")
def report(cohort, strangers, tmp_path_factory) -> Path:
    """Of the packaged model; the strangers stand in for its training people."""
    out = tmp_path_factory.mktemp("evaluation") / "out"
    evaluate("phantom", cohort, out, Options(training=strangers, scans=8), quiet=True)
    return out


def test_report_figures_and_card_are_written(report):
    findings = Findings.load(report / "metrics.json")
    ours, constant, exact = (findings.value("accuracy", "age", "mae", who=who, given=given) for who, given in
                             (("model", "scan"), (CONSTANT, "nothing"), (EXACT, "scan")))  # fmt: skip
    assert ours.value < constant.value and exact.value < constant.value
    assert ours.low < ours.value < ours.high
    sections = set(findings.frame()["section"])
    assert {"accuracy", "calibration", "images", "copies", "coherence"} <= sections
    page = (report / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "In short" in page and "src=\"data:image/png" in page
    assert "http" not in page.split("<body>")[1]  # self-contained
    assert "Test-retest: nobody was scanned twice." in (report / "model_card.md").read_text()
    assert json.loads((report / "model_card.json").read_text())["training"]["people"] == 40000


def test_answers_are_those_of_predict(report, cohort):
    table = pd.read_csv(report / "answers" / "age.csv")
    told = mv.load("phantom").predict(cohort, ["age"], draws=4)
    known = table["scan"].notna().to_numpy()
    assert np.allclose(table["scan"][known], told["age_mean"][known], atol=1e-3)
    assert known.sum() == pd.read_csv(cohort / "participants.tsv", sep="\t")["age"].notna().sum()


def test_a_stopped_run_goes_on_to_the_same_figures(report, cohort, strangers, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(report, out)
    kept = next((out / "work/answers").glob("*.npz"))
    before, stamp = kept.read_bytes(), (out / "work/drawn/T1w.npy").stat().st_mtime_ns
    kept.unlink()
    (out / "metrics.json").unlink()
    evaluate("phantom", cohort, out, Options(training=strangers, scans=8), quiet=True)
    assert (out / "metrics.json").read_bytes() == (report / "metrics.json").read_bytes()
    assert np.array_equal(np.load(kept)["age|scan|mean"], np.load(report / "work/answers" / kept.name)["age|scan|mean"])
    assert len(before) == len(kept.read_bytes())
    assert (out / "work/drawn/T1w.npy").stat().st_mtime_ns == stamp  # not drawn again


def test_a_model_beside_itself_does_not_differ_and_beside_a_worse_one_does(report, tmp_path):
    same = comparison(report, report)
    told = same.dropna(subset="difference")  # answers to nothing are all alike, and have no r
    assert len(told) > 10 and (told["difference"] == 0).all() and (told["p"] == 1).all()
    worse = tmp_path / "worse"
    shutil.copytree(report / "answers", worse / "answers")
    table = pd.read_csv(worse / "answers" / "age.csv")
    table["scan"] = table["scan"].mean()
    table.to_csv(worse / "answers" / "age.csv", index=False)
    found = comparison(report, worse).set_index(["variable", "given", "figure"])
    assert found.loc[("age", "scan", "MAE"), "difference"] < 0
    assert found.loc[("age", "scan", "MAE"), "p"] < 0.05


def test_people_of_the_training_are_refused_by_name(cohort, tmp_path):
    people = mv.read_cohort(cohort)
    with pytest.raises(MetavoxelError, match=r"sub-0001, sub-0002, .* and 19 more are both in training and in the test"):
        refuse_leak(people, people)
    one, two = people.subset(range(12)), people.subset(range(12, 24))
    two.scans["T1w"][3] = one.scans["T1w"][5]
    with pytest.raises(MetavoxelError, match="sub-0006 and sub-0016 have the same scan"):
        refuse_leak(one, two)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda table: table.drop(columns="sex"), "lacks sex, which the model was trained on"),
        (lambda table: table.assign(sex="X"), "sex.*unknown level 'X'"),
        (lambda table: table.iloc[:0], "the table has no rows"),
    ],
)
def test_a_cohort_that_cannot_be_evaluated(run, cohort, tmp_path, spoil, says):
    folder = tmp_path / "cohort"
    shutil.copytree(cohort, folder)
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    spoil(table).to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    status, error = run("evaluate", "phantom", folder, "-o", tmp_path / "out")
    assert status == 2 and pd.Series([error]).str.contains(says).all(), error
    assert len(error.strip().splitlines()) == 1 and not (tmp_path / "out" / "report.html").exists()


def test_one_person_and_one_class_are_said_to_be_too_few(cohort, tmp_path):
    folder = tmp_path / "cohort"
    table = pd.read_csv(cohort / "participants.tsv", sep="\t").dropna().iloc[:1]
    for person in table["participant_id"]:
        shutil.copytree(cohort / person, folder / person)
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    found = evaluate("phantom", folder, tmp_path / "out", Options(scans=2), quiet=True)
    said = " ".join(found.left_out)
    assert "everybody in this cohort is of one class" in said and "one person only" in said
    assert "too few scans" in said
