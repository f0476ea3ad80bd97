"""`metavoxel evaluate` as a user runs it: what it writes, that a stopped run goes on, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

import metavoxel as mv
from metavoxel.checkpoint import read_json, write_json
from metavoxel.data.marks import marks_of
from metavoxel.data.phantom import subjects, write_cohort
from metavoxel.data.splits import draw_split, part_of
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.asking import DRAWS, ask
from metavoxel.evaluate.claims import CONSTANT, EXACT, Claim
from metavoxel.evaluate.coherence import retest
from metavoxel.evaluate.compare import comparison
from metavoxel.evaluate.evaluation import Options
from metavoxel.evaluate.figures import OURS, Findings
from metavoxel.evaluate.run import compare_evaluations, evaluate
from metavoxel.evaluate.sides import refuse_leak, sides_of
from metavoxel.files import make_folder
from metavoxel.model import resolve

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


def _baseline(folder: Path, cohort: Path, **columns: object) -> Path:
    """A folder of baselines with one of them, "flat", which says the same of everybody. columns: to change or add."""
    people = mv.read_cohort(cohort).table[["participant_id"]]
    flat = people.assign(age_mean=50.0, age_q05=40.0, age_q95=60.0, sex_p_F=0.5, sex_p_M=0.5)
    make_folder(folder / "baselines/flat")
    flat.assign(**columns).to_csv(folder / "baselines/flat/predictions.csv", index=False)
    return folder / "baselines"


def test_report_figures_and_card_are_written(report):
    findings = Findings.load(report / "metrics.json")
    ours, constant, exact = (findings.value("accuracy", "age", "mae", who=who, given=given) for who, given in
                             (("model", "scan"), (CONSTANT, "nothing"), (EXACT, "scan")))  # fmt: skip
    assert ours.value < constant.value and exact.value < constant.value
    assert ours.low < ours.value < ours.high
    sections = set(findings.frame()["section"])
    assert {"accuracy", "calibration", "images", "copies", "coherence", "requests"} <= sections
    assert findings.value("coherence", "T1w", "share_surprising").value == 0
    assert 0.5 < findings.value("coherence", "T1w", "median_surprise").value < 1.5
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "In short" in page and "src=\"data:image/png" in page
    assert "http" not in page.split("<body>")[1]  # self-contained
    assert "Test-retest: nobody came twice." in (report / "model_card.md").read_text(encoding="utf-8")
    card = json.loads((report / "model_card.json").read_text())
    assert card["training"]["people"] == mv.load("phantom").summary["people"]
    assert card["training"]["cohort"] == "not recorded"  # by the version that trained it
    assert "cohort: not recorded." in (report / "model_card.md").read_text(encoding="utf-8")


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
    before, stamp = kept.read_bytes(), (out / "work/drawn/8/T1w.npy").stat().st_mtime_ns
    kept.unlink()
    (out / "metrics.json").unlink()
    evaluate("phantom", cohort, out, Options(training=strangers, scans=8), quiet=True)
    assert (out / "metrics.json").read_bytes() == (report / "metrics.json").read_bytes()
    assert np.array_equal(np.load(kept)["age|scan|mean"], np.load(report / "work/answers" / kept.name)["age|scan|mean"])
    assert len(before) == len(kept.read_bytes())
    assert (out / "work/drawn/8/T1w.npy").stat().st_mtime_ns == stamp  # not drawn again
    asked = next((out / "work/answers").glob("*.npz")).stat().st_mtime_ns
    other = Options(training=strangers, scans=6, by=["sex"], baselines=_baseline(out, cohort), licence="CC0")
    fewer = evaluate("phantom", cohort, out, other, quiet=True)
    assert fewer.value("images", "T1w", "voxels: fid").n == 6
    assert next((out / "work/answers").glob("*.npz")).stat().st_mtime_ns == asked  # nor asked again for options' sake
    about = read_json(out / "metrics.json")
    assert about["options"] == {"split": None, "fold": None, "training": strangers.name, "baselines": "baselines",
                                "by": ["sex"], "scans": 6}  # fmt: skip
    assert about["torch"] == torch.__version__ and str(tmp_path) not in json.dumps(about)
    assert read_json(report / "metrics.json")["options"] != about["options"]


def test_a_model_beside_itself_does_not_differ_and_beside_a_worse_one_does(report, tmp_path):
    same, left_out = comparison(report, report)
    assert not left_out
    told = same.dropna(subset="difference")  # answers to nothing are all alike, and have no r
    assert len(told) > 10 and (told["difference"] == 0).all() and (told["p"] == 1).all()
    worse = tmp_path / "worse"
    shutil.copytree(report / "answers", worse / "answers")
    table = pd.read_csv(worse / "answers" / "age.csv")
    table["scan"] = table["scan"].mean()
    table.to_csv(worse / "answers" / "age.csv", index=False)
    found = comparison(report, worse)[0].set_index(["variable", "given", "figure"])
    assert found.loc[("age", "scan", "MAE"), "difference"] < 0
    assert found.loc[("age", "scan", "MAE"), "p"] < found.loc[("age", "scan", "MAE"), "p_holm"] < 0.05
    assert found.loc[("age", "scan", "CRPS"), "difference"] == 0  # of the draws, which were left as they are
    compare_evaluations(worse, report, tmp_path / "beside")
    page = (tmp_path / "beside/comparison.html").read_text(encoding="utf-8")
    assert "out is better in MAE given scan" in page and "worse is better" not in page


def test_a_comparison_is_by_the_names_of_levels_and_says_who_is_left_out(report, tmp_path):
    """The other model may know the levels in another order, or not the same ones, or have been asked about fewer people."""
    other = tmp_path / "other"
    shutil.copytree(report / "answers", other / "answers")
    path = other / "answers" / "sex.csv"
    table = pd.read_csv(path)
    assert set(table["truth"].dropna()) == {"F", "M"}
    table[table.columns[::-1]].iloc[:-4].to_csv(path, index=False)  # M before F
    found, left_out = comparison(report, other)
    assert (found.dropna(subset="difference")["difference"] == 0).all()
    assert left_out == [f"4 of {PEOPLE} rows were asked about in one evaluation only, and are left out."]
    compare_evaluations(report, other, tmp_path / "page")
    page = (tmp_path / "page/comparison.html").read_text(encoding="utf-8")
    assert left_out[0] in page and "nan" not in page.casefold().replace("nanc", "")
    table["truth"] = table["truth"].replace("M", "male")
    table.rename(columns=lambda name: name.replace(": M", ": male")).to_csv(path, index=False)
    with pytest.raises(MetavoxelError, match=r"sex: has the levels F, M in .* and F, male in"):
        comparison(report, other)


def test_evaluations_without_a_question_in_common_are_refused(report, tmp_path):
    other = tmp_path / "other"
    (other / "answers").mkdir(parents=True)
    table = pd.read_csv(report / "answers/age.csv")
    table.set_axis([c.replace("scan", "sketch").replace("nothing", "all") for c in table], axis=1).drop(
        columns=[c for c in table if c.startswith("other facts")]).to_csv(other / "answers/age.csv", index=False)
    with pytest.raises(MetavoxelError, match="no question in common"):
        comparison(report, other)


def test_a_table_is_judged_as_one_and_its_training_rows_are_refused(refused, tmp_path):
    """No sentence of the report is about scans, and who was trained on is known again by id and facts."""
    table = subjects(200, seed=9, diagnosis=True)[["age", "sex", "diagnosis"]]
    table.insert(0, "participant_id", [f"sub-{number:03d}" for number in range(len(table))])
    for name, rows in (("train", table.iloc[:160]), ("test", table.iloc[160:180])):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    joint = {"steps": 2, "batch": 4, "validate_every": 2}
    model = tmp_path / "model"
    mv.train(tmp_path / "train.csv", mv.preset("tiny", joint=joint), model, quiet=True)
    assert "in the training of" in refused("evaluate", model, tmp_path / "train.csv", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = evaluate(model, tmp_path / "test.csv", tmp_path / "out", quiet=True)
    assert "Copies" not in " ".join(found.left_out)
    words = (tmp_path / "out/report.html").read_text(encoding="utf-8").partition("</style>")[2]
    card = read_json(tmp_path / "out/model_card.json")
    assert " scan" not in words.replace("scanned", "") and "the nothing" not in words
    assert "Given the other facts, the model has a mean error of" in words and "Given nothing, the model" not in words
    assert not any("scan" in limit for limit in card["limits"]) and card["not_evaluated"] == found.left_out
    source = card["training"]["cohort"]
    assert source["name"] == tmp_path.name and len(source["fingerprint"]) == 16
    written = (tmp_path / "out/model_card.md").read_text(encoding="utf-8")
    assert f"160 people, 160 rows; cohort: {tmp_path.name}, fingerprint {source['fingerprint']}." in written
    others = mv.train(tmp_path / "test.csv", mv.preset("tiny", joint=joint), tmp_path / "others", quiet=True)
    assert others.summary["cohort"]["fingerprint"] != source["fingerprint"]
    told_nothing = np.load(next((tmp_path / "out").rglob("*.npz")))["age|nothing|draws"]
    assert len(np.unique(told_nothing[:, 0])) > 1  # ranks of people who share their draws would not be independent


def test_models_of_folds_are_judged_together(cohort, tmp_path):
    """Each fold's people are asked of that fold's model: here all are the same one, so answers are those of one model."""
    draw_split(mv.read_cohort(cohort), test=0, folds=2).save(tmp_path / "folds.tsv")
    for fold in (1, 2):
        (tmp_path / f"fold-{fold}").symlink_to(resolve("phantom"))
    options = Options(split=tmp_path / "folds.tsv", scans=12)
    found = evaluate(str(tmp_path / "fold-{fold}"), cohort, tmp_path / "out", options, quiet=True)
    scans = [np.load(tmp_path / "out" / f"work/drawn-{fold}/6/T1w.npy").astype(np.float32) for fold in (1, 2)]
    assert sum(map(len, scans)) == 12 == found.value("images", "T1w", "voxels: fid").n
    assert min(np.abs(one - other).mean() for one in scans[0] for other in scans[1]) > 0.01  # not from the same noise
    assert found.value("requests", "T1w", "ventricles_ml: spread_ratio").value > 0
    assert not found.value("copies", "T1w", "voxels: nearer_training").value > 0.9  # it has learnt from none of them
    table = pd.read_csv(tmp_path / "out/answers/age.csv").set_index("participant_id")
    told = mv.load("phantom").predict(cohort, ["age"], draws=0).set_index("participant_id")["age_mean"]
    known = table["scan"].notna()
    assert len(table) == PEOPLE and np.allclose(table["scan"][known], told[table.index[known]], atol=1e-3)
    assert found.value("accuracy", "age", "mae", given="scan").n == known.sum()
    card = (tmp_path / "out/model_card.md").read_text(encoding="utf-8")
    assert "2 models, each without the people of a fold" in card and card.count("- age: ") == 3  # and each fold's
    with pytest.raises(MetavoxelError, match="is a model for every fold; add --split"):
        evaluate(str(tmp_path / "fold-{fold}"), cohort, tmp_path / "other", quiet=True)


def test_what_baselines_were_told_stands_beside_their_answers(report, cohort, tmp_path):
    """A baseline that knows the truth when it is told the other facts, and the mean from the scan."""
    people = mv.read_cohort(cohort).table
    for name, ages in (("predictions.csv", 50.0), ("predictions_scan_and_others.csv", people["age"])):
        make_folder(tmp_path / "baselines/oracle")
        table = people[["participant_id"]].assign(age_mean=ages)
        table.to_csv(tmp_path / "baselines/oracle" / name, index=False)
    shutil.copytree(report / "work", tmp_path / "out/work")
    options = Options(baselines=tmp_path / "baselines", scans=0)
    found = evaluate("phantom", cohort, tmp_path / "out", options, quiet=True)
    blind, told = (found.value("accuracy", "age", "mae", who="oracle", given=given).value for given in
                   ("scan", "scan and other facts"))  # fmt: skip
    assert told == 0 and blind > 5


def test_people_of_the_training_are_refused_by_name(cohort, tmp_path):
    people = mv.read_cohort(cohort)
    with pytest.raises(MetavoxelError, match=r"sub-0001, sub-0002, .* and 19 more are both in training and in the test"):
        refuse_leak(people, people)
    one, two = people.subset(range(12)), people.subset(range(12, 24))
    two.scans["T1w"][3] = one.scans["T1w"][5]
    with pytest.raises(MetavoxelError, match="sub-0006 and sub-0016 have the same scan"):
        refuse_leak(one, two)


def test_a_model_is_not_asked_by_another_split_than_it_was_trained_with(cohort, tmp_path):
    one, other = (tmp_path / f"{seed}.tsv" for seed in (1, 2))
    for seed, file in enumerate((one, other)):
        draw_split(mv.read_cohort(cohort), seed=seed).save(file)
    folder = tmp_path / "model"
    shutil.copytree(resolve("phantom"), folder)
    about = read_json(folder / "model.json")
    _, taken = part_of(mv.read_cohort(cohort), one, "train", None)
    write_json(folder / "model.json", about | {"summary": about["summary"] | taken})
    with pytest.raises(MetavoxelError, match=r"model: was trained with the split 1.tsv; people of another test"):
        sides_of(str(folder), mv.read_cohort(cohort), Options(split=other))
    assert len(sides_of(str(folder), mv.read_cohort(cohort), Options(split=one))) == 1
    assert len(sides_of(str(folder), mv.read_cohort(cohort), Options(split=other, training=cohort))) == 1


def test_a_table_with_a_pattern_is_evaluated(run, cohort, tmp_path):
    """Under other names than the model's, as tables have them."""
    table = pd.read_csv(cohort / "participants.tsv", sep="\t").iloc[:12].rename(columns={"sex": "gender"})
    people = cohort.parent / "people.csv"
    table.to_csv(people, index=False)
    pattern = "cohort/{participant_id}/anat/{participant_id}_{modality}.nii.gz"
    status, error = run("evaluate", "phantom", people, "-o", tmp_path / "out", "--scans", 0, "--pattern", pattern,
                        "--variables", "T1w,age,sex=gender")  # fmt: skip
    assert status == 0, error
    assert Findings.load(tmp_path / "out/metrics.json").value("accuracy", "sex", "auc", given="scan").n > 8


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
    assert len(error.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_fact_that_drawn_people_do_not_tell_apart_does_not_cost_the_report(cohort, strangers, tmp_path):
    """The scans that are drawn are of the first people: here all women, and one alone whose age is known."""
    folder = tmp_path / "cohort"
    shutil.copytree(cohort, folder)
    table = pd.read_csv(folder / "participants.tsv", sep="\t").sort_values("sex", kind="stable")
    table.iloc[1:8, table.columns.get_loc("age")] = np.nan
    assert (table["sex"].iloc[:8] == "F").all() and table["sex"].nunique() == 2
    table.to_csv(folder / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    found = evaluate("phantom", folder, tmp_path / "out", Options(training=strangers, scans=8), quiet=True)
    said = " ".join(found.left_out)
    assert "sex read from drawn T1w scans: all of the drawn people are F." in said
    assert "age read from drawn T1w scans: known of 1 of the drawn people, at least 2 are needed." in said
    assert found.value("images", "T1w", "voxels: fid").n == 8 and (tmp_path / "out/report.html").exists()


def test_what_baselines_cannot_mean_is_refused_before_anybody_is_asked(refused, cohort, tmp_path):
    """By file, person and column."""
    def third(value: object, usual: object) -> list[object]:
        return [value if row == 2 else usual for row in range(PEOPLE)]

    for columns, says in (
        ({"age_mean": third("old", 50)}, "age_mean is no number (old)"),
        ({"age_mean": third("inf", 50)}, "age_mean is infinite"),
        ({"age_q05": third(70, 40)}, "age_q05 is above age_q95"),
        ({"sex_p_F": third(-0.2, 0.5), "sex_p_M": third(1.2, 0.5)}, "sex_p_F is no probability (-0.2)"),
        ({"sex_p_F": third(0.51, 0.5)}, "sex_p_F, sex_p_M do not sum to 1"),
        ({"sex_p_M": third("maybe", 0.5)}, "sex_p_M is no number (maybe)"),
    ):
        given = _baseline(tmp_path, cohort, **columns)
        said = refused("evaluate", "phantom", cohort, "-o", tmp_path / "out", "--baselines", given)
        assert f"flat/predictions.csv: sub-0003: {says}" in said and "which is no answer" in said
    nobody = "participant_id,age_mean\n,50\n"
    for text, says in {"": "cannot be read as a table", nobody: "row 1 has no participant_id"}.items():
        (given / "flat/predictions.csv").write_text(text)
        assert says in refused("evaluate", "phantom", cohort, "-o", tmp_path / "out", "--baselines", given)
    assert not (tmp_path / "out").exists()


def test_an_empty_cell_of_a_baseline_is_no_answer(report, cohort, tmp_path):
    """Nor is a row that another cohort's person has, whatever stands in it; probabilities are told to three digits."""
    shutil.copytree(report / "work", tmp_path / "out/work")
    ages = [None if row == 2 else 50.0 for row in range(PEOPLE)]
    ends = [None if row == 3 else 40.0 for row in range(PEOPLE)]
    given = _baseline(tmp_path, cohort, age_mean=ages, age_q05=ends, sex_p_F=0.5004, sex_p_M=0.4999)
    with (given / "flat/predictions.csv").open("a") as file:
        file.write("sub-stranger,unknown,1,2,7,8\n")
    found = evaluate("phantom", cohort, tmp_path / "out", Options(baselines=given, scans=0), quiet=True)
    known = mv.read_cohort(cohort).table["age"].notna()
    answered = known & pd.notna(pd.Series(ages))
    assert found.value("accuracy", "age", "mae", who="flat", given="scan").n == answered.sum() < known.sum()
    assert found.value("calibration", "age", "coverage_90", who="flat", given="scan") is None  # not everybody has one
    assert found.value("accuracy", "sex", "auc", who="flat", given="scan") is not None


def test_the_page_says_what_it_left_out_and_why(cohort, tmp_path):
    def said(**options: object) -> list[str]:
        return evaluate("phantom", few, tmp_path / "out", Options(**options), quiet=True).left_out

    few = mv.read_cohort(cohort).subset(range(6))
    alone = said(scans=2)
    for sentence in (
        "TARP: fewer than two numbers are told together.",
        "Groups by age, sex: each has fewer than 10 people.",
        "Drawn scans by the features of a network trained here: --baselines, which holds one, was not given.",
        "Drawn scans by 2.5-D features: --radimagenet was not given.",
        "Copies of training scans, and what predictors read off drawn ones: the training cohort is not known; add --split "
        "or --training.",
    ):
        assert sentence in alone
    assert read_json(tmp_path / "out/metrics.json")["left_out"] == alone
    given = _baseline(tmp_path, cohort)
    made = {"baselines": {"linear": {}, "trees": {}}, "failed": {"vit": "out of memory\nat step 3"}}
    write_json(given / "baselines.json", made)
    beside = said(scans=2, baselines=given)
    for sentence in (
        "Baseline vit: it failed (out of memory).",
        "Baselines densenet, image-only, continuous-sex, paper: not trained; metavoxel baselines --resume adds them.",
        "Drawn scans by the features of a network trained here: baselines holds no densenet/network-1.safetensors.",
    ):
        assert sentence in beside
    undrawn = said(scans=0)
    assert "Drawn scans: none were asked for (--scans 0)." in undrawn
    assert not any("Copies" in sentence or "2.5-D" in sentence for sentence in undrawn)


def test_what_is_refused_leaves_nothing(refused, cohort, untrained, tmp_path):
    for option, says in {
        ("--by", "height"): "has no such column", ("--radimagenet", "no.pth"): "no.pth: no such file",
        ("--scans", 0, "--medicalnet", "no.pth"): "of which there are none", ("--baselines", tmp_path): "holds no NAME",
    }.items():  # fmt: skip
        assert says in refused("evaluate", "phantom", cohort, "-o", tmp_path / "out", *option)
    assert not (tmp_path / "out").exists()
    assert "holds a model" in refused("evaluate", "phantom", cohort, "-o", untrained)


def test_people_whose_scans_were_learnt_from_are_refused(refused, phantoms, untrained, tmp_path):
    """Without any split, in another folder and under other names, too; models trained from this one on know it as well."""
    copy = tmp_path / "copy"
    for folder in sorted(phantoms.glob("sub-*"))[:2]:
        own = copy / folder.name.replace("sub-", "sub-x") / "anat"
        own.mkdir(parents=True)
        for file in (folder / "anat").iterdir():
            shutil.copyfile(file, own / file.name.replace("sub-", "sub-x"))
    shutil.copyfile(phantoms / "participants.tsv", copy / "participants.tsv")
    (copy / "participants.tsv").write_text((copy / "participants.tsv").read_text().replace("sub-", "sub-x"))
    says = refused("evaluate", untrained, copy, "-o", tmp_path / "out")
    assert "sub-x0001, sub-x0002 are in the training of" in says
    few = mv.preset("tiny", joint={"steps": 1, "batch": 2, "validate_every": 1}, reading=0, validation=0.5)
    people = write_cohort(tmp_path / "others", 4, seed=77)
    further = mv.train(people, few, tmp_path / "further", init=untrained, quiet=True)
    both = [marks_of(mv.read_cohort(root), further.schema.names) for root in (phantoms, people)]
    assert set().union(*both) == set(further.summary["seen"])
    assert "seen" not in further.describe()["summary"]


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


def test_draws_of_several_numbers_hang_together(tmp_path):
    """Each alone from the same noise, they would all rise and fall as one, whatever the model says."""
    rng = np.random.default_rng(5)
    table = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(80)], "a": rng.normal(50, 9, 80),
                          "b": rng.normal(20, 4, 80), "c": rng.normal(0, 1, 80)})  # fmt: skip
    table[:60].to_csv(tmp_path / "train.csv", index=False)
    table[60:].to_csv(tmp_path / "test.csv", index=False)
    joint = {"steps": 2, "batch": 4, "validate_every": 2}
    model = mv.train(tmp_path / "train.csv", mv.preset("table", joint=joint), tmp_path / "model", quiet=True)
    asked = ask(model, mv.read_cohort(tmp_path / "test.csv"), tmp_path / "answers", 0, lambda *_: None)
    one, other = asked.together("a", "nothing"), asked.together("b", "nothing")
    alike = [spearmanr(x, y).statistic for x, y in zip(one, other)]
    assert one.shape == (20, DRAWS) and abs(np.mean(alike)) < 0.1 and len(np.unique(one)) == one.size
    assert asked.together("a", "other facts") is None  # each was told another one
    short = evaluate(tmp_path / "model", tmp_path / "test.csv", tmp_path / "short", quiet=True)
    assert "TARP given nothing: all numbers are known of fewer than 30 people." in short.left_out
    assert "Groups: the cohort has no age, sex or site; name other columns with --by." in short.left_out
    others = table.assign(participant_id=[f"sub-x{i}" for i in range(80)], a=rng.normal(50, 9, 80))
    others[:40].to_csv(tmp_path / "many.csv", index=False)
    many = evaluate(tmp_path / "model", tmp_path / "many.csv", tmp_path / "many", quiet=True)
    assert many.value("calibration", "all numbers", "tarp_p", given="nothing") is not None
    assert not any("TARP" in sentence for sentence in many.left_out)


def test_facts_that_nobody_has(cohort, tmp_path):
    people = mv.read_cohort(cohort)
    none = replace(people, table=people.table.assign(age=np.nan, sex=None))
    with pytest.raises(MetavoxelError, match=r"age, sex: known of nobody who is asked about"):
        evaluate("phantom", none, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    ageless = replace(people, table=people.table.assign(age=np.nan))
    found = evaluate("phantom", ageless.subset(range(6)), tmp_path / "out", Options(scans=0), quiet=True)
    assert "age: known of nobody who was asked about." in found.left_out
    assert found.value("accuracy", "sex", "accuracy", given="scan") is not None


def test_answers_that_are_not_numbers_are_refused_by_name(phantoms, untrained, tmp_path):
    model = mv.load(untrained)
    for weights in model.denoiser.net.parameters():
        torch.nn.init.constant_(weights, float("nan"))
    with pytest.raises(MetavoxelError, match=r"sub-\d+: the model's \w+ given nothing is not a number; .*train it again"):
        ask(model, mv.read_cohort(phantoms), tmp_path / "answers", 0, lambda *_: None)
    assert not list((tmp_path / "answers").glob("*.npz"))


def test_people_who_came_twice_say_how_steady_answers_are(cohort):
    """Three people come twice, one once: of numbers the sd within a person, of classes how far from their mean."""
    people = mv.read_cohort(cohort).subset(range(7))
    people = replace(people, table=people.table.assign(participant_id=[*"aabbccd"]))
    age = np.array([50.0, 52, 60, 64, 70, 70, 99])
    sure = np.array([0.9, 0.7, 0.5, 0.5, 0.2, 0.4, 0.1])
    schema, rows = mv.load("phantom").schema, np.arange(7)
    claims = [Claim(OURS, "scan", schema.scalar("age"), rows, age, age),
              Claim(OURS, "scan", schema.scalar("sex"), rows, np.zeros(7), np.stack([sure, 1 - sure], 1))]  # fmt: skip
    found = {(figure.variable, figure.metric): figure for figure in retest(claims, people)}
    assert np.isclose(found["age", "retest_sd"].value, np.sqrt((2 + 8 + 0) / 3)) and found["age", "retest_sd"].n == 6
    assert np.isclose(found["sex", "retest_variation"].value, 0.2 / 3)
    assert not list(retest(claims, replace(people, table=people.table.assign(participant_id=[*"abcdefg"]))))
