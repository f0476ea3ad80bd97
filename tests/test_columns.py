"""What a column holds: guessed with a reason, written for a person to edit, and what they wrote is honoured or named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import metavoxel as mv
from metavoxel.data.columns import describe_columns
from metavoxel.data.table import check_codes, numbers, read_table
from metavoxel.errors import MetavoxelError
from metavoxel.variables import infer_schema, left_out

SIDECAR = {
    "gds": {"Levels": {"0": "none", "1": "mild", "2": "severe"}, "Description": "Global deterioration"},
    "weight": {"Units": "kg"},
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Thirty people, in a workbook as a spreadsheet writes it."""
    n, rng = 30, np.random.default_rng(0)
    content = pd.DataFrame({
        "participant_id": [f"{i:03d}" for i in range(n)],
        "age": rng.integers(20, 80, n),
        "weight": rng.uniform(50, 90, n).round(1),
        "sex": rng.permutation([1, 2] * 15),
        "gds": rng.permutation([0, 1, 2] * 10),
        "visits": rng.permutation([1, 2, 3] * 10),
        "pain": rng.permutation(["mild", "severe", "none"] * 10),
        "colour": rng.permutation(["red", "green", "blue"] * 10),
        "remark": ["as before"] * 3 + [f"remark {i}" for i in range(n - 3)],
        "code": [f"x{i}" for i in range(n)],
    })  # fmt: skip
    content.loc[4, "weight"] = np.nan
    content.to_excel(tmp_path / "people.xlsx", index=False)
    (tmp_path / "people.json").write_text(json.dumps(SIDECAR))
    return tmp_path / "people.xlsx"


def test_a_workbook_reads_as_the_same_table_as_text(table):
    sheet = read_table(table)
    sheet.to_csv(table.with_suffix(".csv"), index=False)
    pd.testing.assert_frame_equal(sheet, read_table(table.with_suffix(".csv")))
    assert sheet["participant_id"].iloc[7] == "007" and sheet["age"].dtype == np.float64
    assert sheet["weight"].isna().sum() == 1 and sheet["colour"].isin(["red", "green", "blue"]).all()


def test_workbooks_that_are_none(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK no workbook")
    with pytest.raises(MetavoxelError, match=r"a\.xlsx: not a readable workbook"):
        read_table(tmp_path / "a.xlsx")
    pd.DataFrame().to_excel(tmp_path / "b.xlsx")
    with pytest.raises(MetavoxelError, match=r"b\.xlsx: the table has no rows"):
        read_table(tmp_path / "b.xlsx")


def test_every_kind_has_its_reason(table):
    columns = mv.read_cohort(table).columns
    assert {name: guess.kind for name, guess in columns.items()} == {
        "age": "continuous", "weight": "continuous", "sex": "categorical", "gds": "ordinal", "visits": "continuous",
        "pain": "ordinal", "colour": "categorical", "remark": "text", "code": "identifier",
    }  # fmt: skip
    assert columns["sex"].levels == ("1", "2") and "its name" in columns["sex"].reason
    assert columns["gds"].levels == ("0", "1", "2") and "none, mild, severe" in columns["gds"].reason
    assert columns["gds"].meaning == "Global deterioration" and columns["weight"].unit == "kg"
    assert columns["pain"].levels == ("none", "mild", "severe") and "scale" in columns["pain"].reason
    assert "3 different whole ones, are they codes?" in columns["visits"].reason
    assert "whole" not in columns["age"].reason and columns["weight"].n_missing == 1


def test_amounts_with_units_are_named_and_not_taken_for_words():
    column = pd.Series(["45 years", "1.5e4 days", "31"] * 3, index=[f"sub-{i}" for i in range(9)])
    assert describe_columns(column.to_frame("age"))["age"].kind == "continuous"
    with pytest.raises(MetavoxelError, match=r"age: '45 years' at sub-0 is not a number; write the number alone"):
        numbers(column, "age")
    assert describe_columns(pd.DataFrame({"ward": ["1a", "2b", "1a"] * 3}))["ward"].kind == "categorical"


def test_a_sex_in_unexplained_numbers():
    check_codes("sex", ("1", "2"))
    check_codes("grade", ("0", "1", "2"))
    with pytest.raises(MetavoxelError, match=r"sex: coded 0, 1, 2, and nothing says what these mean; write .* n/a"):
        check_codes("sex", ("0", "1", "2"))


def test_sex_coded_in_a_cohort(refused, run, tmp_path):
    (tmp_path / "p.csv").write_text("participant_id,sex\n" + "".join(f"{i},{i % 3}\n" for i in range(9)))
    assert "coded 0, 1, 2" in refused("schema", tmp_path / "p.csv")
    (tmp_path / "p.json").write_text(json.dumps({"sex": {"Levels": {"0": "other", "1": "male", "2": "female"}}}))
    assert run("schema", tmp_path / "p.csv")[0] == 0


# --- the file


def edited(path: Path, change) -> Path:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_what_is_written_reads_back_as_it_was(run, table, tmp_path):
    assert run("schema", table, "-o", tmp_path / "schema.yaml")[0] == 0
    before, after = mv.read_cohort(table), mv.read_cohort(table, schema=tmp_path / "schema.yaml")
    pd.testing.assert_frame_equal(before.table, after.table)
    for name, guess in before.columns.items():
        assert guess == replace(after.columns[name], reason=guess.reason)
    assert "sub-" not in (text := (tmp_path / "schema.yaml").read_text()) and text.count("reason:") == 9


def test_an_edited_file_is_not_written_over(run, refused, table, tmp_path):
    file = tmp_path / "schema.yaml"
    for _ in range(2):  # the same again is no loss
        assert run("schema", table, "-o", file)[0] == 0
    edited = file.read_text() + "# looked through\n"
    file.write_text(edited)
    assert "may have been edited" in refused("schema", table, "-o", file)
    assert file.read_text() == edited


def test_an_edited_file_is_honoured(run, table, tmp_path):
    run("schema", table, "-o", tmp_path / "schema.yaml")

    def change(content):
        content["columns"]["visits"] = {"kind": "ordinal", "levels": [1, 2, 3]}
        content["columns"]["gds"]["kind"] = "categorical"
        content["columns"]["colour"]["levels"] = ["red", "blue", "green", "yellow"]
        content["columns"]["weight"]["unit"] = "pounds"
        content["columns"]["pain"]["kind"] = "text"
        del content["columns"]["sex"]

    path = edited(tmp_path / "schema.yaml", change)
    model = infer_schema(mv.read_cohort(table, schema=path), mv.preset("tiny"))
    assert model.names == ("age", "weight", "gds", "visits", "colour")
    assert model["visits"] == mv.Ordinal("visits", ("1", "2", "3")) and type(model["gds"]) is mv.Categorical
    assert model["colour"].levels == ("red", "blue", "green", "yellow") and model["weight"].unit == "pounds"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["columns"]["sex"].update(kind="nominal"), "columns.sex.kind: Input should be 'continuous'"),
        (lambda c: c["columns"]["sex"].update(level=["a"]), "columns.sex.level: Extra inputs"),
        (lambda c: c["columns"]["sex"].update(levels=[]), "columns.sex.levels: a class needs its levels"),
        (lambda c: c["columns"]["sex"].update(levels=[True, False]), "put the level in quotes"),
        (lambda c: c["columns"]["sex"].update(levels=["1"]), "sex: unknown level '2' at"),
        (lambda c: c["columns"].update(iq={"kind": "continuous"}), "has no 'iq' (it has age"),
        (lambda c: c["columns"]["colour"].update(kind="continuous"), "colour: '"),
        (lambda c: c.update(columns=3), "columns: Input should be a valid dictionary"),
    ],
)
def test_edits_that_cannot_be(refused, run, table, tmp_path, change, words):
    run("schema", table, "-o", tmp_path / "schema.yaml")
    path = edited(tmp_path / "schema.yaml", change)
    assert words in refused("train", table, "--schema", path, "-o", tmp_path / "model")
    assert not (tmp_path / "model" / "model.json").exists()


def test_files_that_are_no_schema(refused, table, tmp_path):
    (tmp_path / "a.yaml").write_text("columns: [")
    assert "cannot be read as YAML" in refused("train", table, "--schema", tmp_path / "a.yaml", "-o", tmp_path / "m")
    (tmp_path / "a.yaml").write_text("")
    said = refused("train", table, "--schema", tmp_path / "a.yaml", "-o", tmp_path / "m")
    assert "metavoxel schema COHORT writes one" in said


def test_columns_that_tell_nobody_apart_are_no_variables_and_it_says_so(run, tmp_path):
    """A constant, an index that pandas wrote, free text."""
    table = tmp_path / "t.csv"
    rows = [f"{i},{i},sub-{i},{50 + i % 30},3,yes,note {i % 40}" for i in range(60)]
    table.write_text("\n".join([",Unnamed: 0,participant_id,age,tesla,consent,remarks", *rows]) + "\n")
    cohort = mv.read_cohort(table)
    assert infer_schema(cohort, mv.preset("tiny")).names == ("age",)
    said = "; ".join(left_out(cohort))
    for words in ("a column without a name (identifier", "Unnamed: 0 (identifier", "tesla (the same in everybody)",
                  "consent (the same in everybody)", "remarks (text"):  # fmt: skip
        assert words in said, said
    (tmp_path / "c.yaml").write_text("joint: {steps: 1, batch: 2, validate_every: 1}\n")
    status, error = run("train", table, "-o", tmp_path / "m", "--config", tmp_path / "c.yaml")
    assert status == 0 and "left out: " in error and "tesla" in error
