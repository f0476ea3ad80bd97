"""Splits: by person, even, written down with how they were drawn, and no leak let through."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import metavoxel as mv
from metavoxel.data.cohort import Cohort
from metavoxel.data.columns import describe_columns
from metavoxel.data.splits import draw_split, leave_out, read_split, same_scans
from metavoxel.errors import MetavoxelError
from metavoxel.model import load


def many(n: int = 300, sessions: int = 2) -> Cohort:
    """People with an age, a sex and a site, each in two rows; one in twelve ages is not known."""
    rng = np.random.default_rng(0)
    ages = rng.uniform(20, 90, n).round(1)
    ages[::12] = np.nan
    table = pd.DataFrame({
        "participant_id": [f"sub-{i:03d}" for i in range(n)], "age": ages, "sex": rng.choice(["F", "M"], n),
        "site": rng.choice(["A", "B", "C"], n, p=[0.6, 0.3, 0.1]), "iq": rng.normal(100, 15, n),
    })  # fmt: skip
    table = table.loc[table.index.repeat(sessions)].reset_index(drop=True)
    table.insert(1, "session_id", [str(i % sessions) for i in range(len(table))])
    columns = {name: guess for name, guess in describe_columns(table).items() if not name.endswith("_id")}
    return Cohort(table, {}, columns, Path("many"))


def cohort(root: Path, n: int = 12) -> Path:
    """Small files in the place of scans; the fifth person's is the second's."""
    for i in range(1, n + 1):
        path = root / f"sub-{i:02d}/anat/sub-{i:02d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes([i]) * 1000)
    shutil.copy(root / "sub-02/anat/sub-02_T1w.nii.gz", root / "sub-05/anat/sub-05_T1w.nii.gz")
    rows = [f"sub-{i:02d}\t{30 + i}\t{'FM'[i % 2]}" for i in range(1, n + 1)]
    (root / "participants.tsv").write_text("\n".join(["participant_id\tage\tsex", *rows]) + "\n")
    return root


def test_parts_and_folds_are_alike():
    drawn = draw_split(many(), test=0.2, folds=4, seed=1)
    table = drawn.table
    assert drawn.about["StratifiedBy"] == ["age", "sex", "site"]
    assert sorted(table["participant_id"]) == many().participants
    where = table["fold"].fillna("test")
    assert where.value_counts().to_dict() == dict.fromkeys(["test", "1", "2", "3", "4"], 60)
    for name, most in (("sex", 0.06), ("site", 0.08), ("age", 0.05)):
        shares = pd.crosstab(where, table[name].fillna("n/a"), normalize="index")
        assert (shares - shares.mean()).abs().to_numpy().max() < most, shares
    assert table["age"].nunique() == 5 and table["age"].isna().sum() == 25


def test_a_seed_draws_the_same_again():
    one, same, other = (draw_split(many(), seed=seed).table for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one, same)
    assert (one["part"] != other["part"]).sum() > 30 and "fold" not in one
    bare = draw_split(many(), test=0, folds=5, stratify=[])
    assert set(bare.table["part"]) == {"train"} and bare.about["StratifiedBy"] == []


def test_each_site_is_left_out_once(run, tmp_path):
    drawn = leave_out(many(), "site")
    drawn.save(tmp_path / "sites.tsv")
    split, everybody = read_split(tmp_path / "sites.tsv"), many()
    for fold, site in drawn.about["Folds"].items():
        asked, trained = (split.take(everybody, part, int(fold))[0] for part in ("test", "train"))
        assert set(asked.column("site")) == {site} and site not in set(trained.column("site"))
        assert len(asked) + len(trained) == len(everybody)
    path = cohort(tmp_path / "cohort")
    status, error = run("split", path, "-o", tmp_path / "s.tsv", "--leave-out", "site")
    assert status == 2 and "has no such class (it has sex)" in error
    status, error = run("split", path, "-o", tmp_path / "s.tsv", "--leave-out", "sex")
    assert status == 2 and "sub-02 and sub-05 have the same scan, but not the same sex" in error


def test_sessions_stay_with_their_person(tmp_path):
    draw_split(many(), test=0.25, folds=3).save(tmp_path / "s.tsv")
    split, everybody = read_split(tmp_path / "s.tsv"), many()
    train, test = (split.take(everybody, part)[0] for part in ("train", "test"))
    assert len(train) + len(test) == 600 and len(test) == 2 * len(test.participants) == 150
    assert not set(train.participants) & set(test.participants)
    held = [set(split.take(everybody, "test", fold)[0].participants) for fold in (1, 2, 3)]
    assert set().union(*held) == set(train.participants) and sum(map(len, held)) == 225
    rest, record = split.take(everybody, "train", 2)
    assert set(rest.participants) == set(train.participants) - held[1]
    assert record["people"] == 150 and record["fold"] == 2 and record["checksum"].startswith("sha256:")


def test_people_with_one_scan_stay_together(tmp_path):
    data = mv.read_cohort(cohort(tmp_path / "bids"))
    assert same_scans(data) == [["sub-02", "sub-05"]]
    for seed in range(8):
        part = draw_split(data, test=0.4, seed=seed).table.set_index("participant_id")["part"]
        assert part["sub-02"] == part["sub-05"]
    data.scans["again"] = [None] * 4 + [data.scans["T1w"][8]] + [None] * 7
    assert same_scans(data) == [["sub-02", "sub-05", "sub-09"]]


def test_the_command_records_what_it_did(run, tmp_path):
    out = tmp_path / "splits.tsv"
    status, said = run("split", cohort(tmp_path / "bids"), "-o", out, "--folds", 2, "--test", 0.25)
    assert status == 0 and "sub-02 and sub-05 have the same scan" in said and "spread evenly: age, sex" in said
    table = pd.read_csv(out, sep="\t", keep_default_na=False)
    assert list(table) == ["participant_id", "part", "fold", "age", "sex"] and len(table) == 12
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["Seed"] == 0 and about["SameScans"] == [["sub-02", "sub-05"]]
    assert sum(about["People"].values()) == 12 and set(about["Strata"]["sex"]) == {"test", "fold 1", "fold 2"}


def test_leaks_are_refused(refused, tmp_path):
    root, out = cohort(tmp_path / "bids"), tmp_path / "s.tsv"
    train = ["train", root, "-o", tmp_path / "model", "--split", out]

    def write(*rows: str) -> None:
        out.write_text("\n".join(["participant_id\tpart\tfold", *(row.replace(" ", "\t") for row in rows)]) + "\n")

    write("sub-02 train n/a", "sub-05 test n/a", "sub-07 train n/a")
    assert "sub-02 and sub-05 have the same scan, in two parts; put both" in refused(*train)
    write("sub-02 train 1", "sub-05 train 2", "sub-07 train 2")
    assert "sub-05 and sub-02 have the same scan" in refused(*train, "--fold", 1)
    write("sub-01 train n/a", "01 test n/a")
    assert "01 occurs twice" in refused(*train)
    out.write_text("participant_id\tsession_id\tpart\nsub-01\ta\ttrain\nsub-01\tb\ttest\n")
    assert "sub-01 is in train and in test" in refused(*train)
    write("sub-01 validation n/a")
    assert "sub-01 is in the part 'validation'; write train or test" in refused(*train)
    write("sub-01 train first")
    assert "in the fold 'first'" in refused(*train)
    write("sub-77 train n/a")
    assert "nobody of" in refused(*train)
    write("sub-01 train 1", "sub-02 train 2")
    assert "no fold 3 (there are 1 to 2)" in refused(*train, "--fold", 3)
    assert "add --split" in refused("train", root, "-o", tmp_path / "model", "--fold", 1)
    out.write_text("participant_id\tage\nsub-01\t3\n")
    assert "there is no column part" in refused(*train)


def test_splits_that_cannot_be(refused, tmp_path):
    root = cohort(tmp_path / "bids")
    for options in (["--test", 0], ["--test", 1], ["--folds", 1], ["--folds", -2]):
        assert "two folds or more" in refused("split", root, "-o", tmp_path / "s.tsv", *options)
    assert "11 people cannot fill 21 parts" in refused("split", root, "-o", tmp_path / "s.tsv", "--folds", 20)
    assert "no column 'iq'" in refused("split", root, "-o", tmp_path / "s.tsv", "--stratify", "iq")
    assert "name it .tsv" in refused("split", root, "-o", tmp_path / "s.json")
    assert not list(tmp_path.glob("s.*"))


def test_training_uses_its_part_only_and_says_so(run, phantoms, tmp_path):
    run("split", phantoms, "-o", tmp_path / "s.tsv", "--folds", 2, "--test", 0.25)
    net = "net: {widths: [8, 8], patch: 4, token_width: 16, token_depth: 1}"
    (tmp_path / "c.yaml").write_text(f"{net}\njoint: {{steps: 1, batch: 2, validate_every: 1}}\nreading: 0\n")
    options = ["--config", tmp_path / "c.yaml", "--split", tmp_path / "s.tsv"]
    status, said = run("train", phantoms, "-o", tmp_path / "model", "--fold", 1, *options)
    split = read_split(tmp_path / "s.tsv")
    people = sum(fold != 1 for fold in split.fold.values())
    assert status == 0 and f"{people} people, the part train without fold 1 of s.tsv" in said, said
    model = load(tmp_path / "model")
    assert model.summary["people"] == people and model.summary["split"]["fold"] == 1
    run("predict", tmp_path / "model", phantoms, "-o", tmp_path / "p.csv", "-n", 2, "--split", tmp_path / "s.tsv")
    answered = {person.removeprefix("sub-") for person in pd.read_csv(tmp_path / "p.csv")["participant_id"]}
    assert answered == {person for person, part in split.part.items() if part == "test"}


def test_too_few_people_to_hold_any_out():
    with pytest.raises(MetavoxelError, match="1 people cannot fill 2 parts"):
        draw_split(many(1))
