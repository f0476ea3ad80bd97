"""Tables and cohorts: every spelling of missing, every gap, and every mistake named with its row."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metavoxel.data.cohort import Cohort, concat, read_cohort
from metavoxel.data.columns import describe_columns
from metavoxel.data.table import check_plausible, levels, numbers, read_sidecar, read_table
from metavoxel.errors import MetavoxelError

DATA = Path(__file__).parents[1].parent / "shared" / "data"
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared real data are not beside this checkout")


def table_file(folder: Path, text: str, name: str = "participants.tsv") -> Path:
    """A table whose cells are written with blanks between them."""
    separator = "\t" if name.endswith(".tsv") else ","
    lines = [separator.join(line.split()) for line in text.strip().splitlines()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"scan")


def bids(root: Path, people: str = "01 02 03", text: str | None = None) -> Path:
    touch(root, *[f"sub-{p}/anat/sub-{p}_T1w.nii.gz" for p in people.split()])
    table_file(root, text or "participant_id age sex\nsub-01 30 F\nsub-02 40 M\nsub-03 50 F")
    return root


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- tables


def test_missing_cells_numbers_and_codes(tmp_path):
    path = table_file(
        tmp_path, "participant_id age site code score\n01 30 007 a n/a\n02 NA 011 NaN NA\n3 n/a 007 b nan"
    )
    table = read_table(path)
    assert table["participant_id"].tolist() == ["01", "02", "3"]
    assert table["age"].dtype == np.float64 and table["age"].isna().tolist() == [False, True, True]
    assert table["site"].tolist() == ["007", "011", "007"]
    assert table["code"].isna().tolist() == [False, True, False]
    assert table["score"].isna().all()


def test_csv_of_spreadsheets(tmp_path):
    path = tmp_path / "people.csv"
    path.write_bytes('\ufeffparticipant_id;age;remark\r\na;30;"x, y"\r\n\r\nb;;z\r\n'.encode())
    table = read_table(path)
    assert table["remark"].tolist() == ["x, y", "z"] and table["age"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("subject age\n01 3", ["no column participant_id", "subject, age", "rename"]),
        ("participant_id age\n01 3\n02 4\nsub-01 5", ["sub-01 occurs twice", "row 1 and row 3", "session_id"]),
        ("participant_id session_id\n01 a\n01 a", ["01 a occurs twice", "row 1 and row 2"]),
        ("participant_id session_id\n01 a\nsub-01 ses-a", ["sub-01 a occurs twice", "row 1 and row 2"]),
        ("participant_id age\n01 3\nn/a 4", ["row 2 has no participant_id"]),
        ("participant_id age age\n01 3 4", ["'age' occurs twice"]),
        ("participant_id age\n01 3 4", ["line 2 has 3 cells", "the header has 2"]),
        ("participant_id age", ["no rows"]),
        ("participant_id age\n01 3\nparticipant_id age\n02 4", ["line 3 repeats the header; remove it"]),
    ],
)
def test_refused_tables(tmp_path, text, words):
    path = table_file(tmp_path, text)
    with pytest.raises(MetavoxelError) as caught:
        read_table(path)
    message = one_line(caught)
    assert "participants.tsv" in message and all(word in message for word in words), message


def test_refused_files(tmp_path):
    for name, content, word in (
        ("a.tsv", None, "no such table"),
        ("a.json", b"{}", "not a table"),
        ("b.csv", b"participant_id,name\n1,M\xfcller\n", "UTF-8"),
        ("c.tsv", b"", "no rows"),
        ("e.csv", "participant_id,age\n1,30\n".encode("utf-16"), "save the table again as UTF-8"),
        ("f.csv", "participant_id,age\n1,30\n".encode("utf-16-le"), "save the table again as UTF-8"),
        ("g.tsv", b"participant_id;age\n1;30\n", "no column participant_id"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(MetavoxelError, match=word):
            read_table(tmp_path / name)
    table_file(tmp_path, "participant_id\n01", "d.tsv")
    (tmp_path / "d.json").write_text("{nonsense")
    with pytest.raises(MetavoxelError, match="not valid JSON"):
        read_sidecar(tmp_path / "d.tsv")


def test_guesses():
    n = 40
    table = pd.DataFrame(
        {
            "participant_id": [f"s{i}" for i in range(n)],
            "age": np.linspace(20, 60, n),
            "sex": ["f", "M"] * 20,
            "ill": [0.0, 1.0] * 20,
            "grade": [1.0, 2.0, np.nan, 3.0] * 10,
            "name": [f"name {i}" for i in range(n)],
            "remark": ["fine"] * 2 + [f"remark {i}" for i in range(n - 2)],
            "slip": ["x"] + [str(i) for i in range(n - 1)],
            "mixed": ["F"] * 3 + ["f"] * 30 + ["m"] * 7,
        }
    )
    guesses = describe_columns(
        table, {"sex": {"Levels": {"M": "male", "F": "female"}}, "grade": {"Levels": ["3", "2", "1"]}}
    )
    kinds = {name: guess.kind for name, guess in guesses.items()}
    assert kinds == {
        "participant_id": "identifier",
        "age": "continuous",
        "sex": "categorical",
        "ill": "categorical",
        "grade": "categorical",
        "name": "identifier",
        "remark": "text",
        "slip": "continuous",
        "mixed": "categorical",
    }
    assert guesses["age"].unit == "years" and guesses["grade"].n_missing == 10
    assert guesses["sex"].levels == ("M", "F") and guesses["grade"].levels == ("3", "2", "1")
    assert guesses["ill"].levels == ("0", "1") and guesses["mixed"].levels == ("f", "m")


def test_a_cell_that_cannot_be_right_names_file_and_row(tmp_path):
    (tmp_path / "people.csv").write_text('participant_id,age\nsub-01,31\nsub-02,"38,7"\nsub-03,44\n')
    with pytest.raises(MetavoxelError, match=r"people\.csv: age: '38,7' at sub-02 is not a number; write it with"):
        read_cohort(tmp_path / "people.csv")


def test_numbers_and_levels_name_row_and_value():
    column = pd.Series(["31", "n.k.", np.nan], index=["sub-01", "sub-02", "sub-03"], name="age", dtype=object)
    with pytest.raises(MetavoxelError, match=r"age: 'n\.k\.' at sub-02 is not a number"):
        numbers(column)
    with pytest.raises(MetavoxelError, match="decimal point"):
        numbers(pd.Series(["38,7"]), "age")
    with pytest.raises(MetavoxelError, match="inf"):
        numbers(pd.Series([np.inf]), "age")
    np.testing.assert_array_equal(numbers(column.replace("n.k.", "32.5")), [31, 32.5, np.nan])
    sex = pd.Series(["m", np.nan, "F", "x"], index=["a", "b", "c", "d"], name="sex", dtype=object)
    assert levels(sex.iloc[:3], ["F", "M"]).tolist()[::2] == ["M", "F"]
    with pytest.raises(MetavoxelError, match="sex: unknown level 'x' at d; known levels are F, M; "):
        levels(sex, ["F", "M"])
    assert levels(pd.Series([1.0, np.nan, 2.0]), ["1", "2"]).tolist()[::2] == ["1", "2"]
    with pytest.raises(MetavoxelError, match="'A' at row 1"):
        levels(pd.Series(["A"]), ["aa", "b"], "dose")
    assert levels(pd.Series(["a", "A"]), ["a", "A"]).tolist() == ["a", "A"], (
        "levels that differ only in case stay apart"
    )


@pytest.mark.parametrize(
    ("ages", "words"),
    [
        ([21900, 14600], "age 21900 at sub-0 .*looks like days; divide by 365.25"),
        ([np.nan, 20, 720], "age 720 at sub-2 .*looks like months; divide by 12"),
        ([30, -4], "age -4 at sub-1 is negative"),
    ],
)
def test_age_in_other_units(ages, words):
    column = pd.Series(ages, index=[f"sub-{i}" for i in range(len(ages))], dtype=float)
    with pytest.raises(MetavoxelError, match=words):
        check_plausible(column, "age", "years")
    check_plausible(column, "agegroup", None)
    check_plausible(column.abs(), "age", "days")


# --- cohorts from folders


def test_bids_folder_with_gaps_on_both_sides(tmp_path):
    root = bids(tmp_path, "01 03 09")
    cohort = read_cohort(root)
    assert cohort.table["participant_id"].tolist() == ["sub-01", "sub-02", "sub-03", "sub-09"]
    assert [p and p.name for p in cohort.scans["T1w"]] == [
        "sub-01_T1w.nii.gz",
        None,
        "sub-03_T1w.nii.gz",
        "sub-09_T1w.nii.gz",
    ]
    assert np.isnan(cohort.table["age"].iloc[3]) and cohort.table["sex"].isna().tolist() == [False] * 3 + [True]
    assert (
        len(cohort.notes) == 2 and "1 scanned sessions have no row" in cohort.notes[0] and "1 of 4" in cohort.notes[1]
    )


def test_ids_with_and_without_prefix(tmp_path):
    cohort = read_cohort(bids(tmp_path, text="participant_id age\n01 3\n02 4\n03 5"), ["T1w", "age"])
    assert len(cohort) == 3 and None not in cohort.scans["T1w"]


def test_variables_choose_and_rename(tmp_path):
    root = bids(tmp_path)
    touch(root, "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-01/anat/sub-01_T1w_mask.nii.gz", "sub-01/anat/sub-01_T1w.json")
    everything = read_cohort(root)
    assert list(everything.scans) == ["FLAIR", "T1w"] and list(everything.columns) == ["age", "sex"]
    cohort = read_cohort(root, ["image=T1w", "years=age"])
    assert list(cohort.scans) == ["image"] and list(cohort.columns) == ["years"]
    with pytest.raises(MetavoxelError, match="no variable 'T2w'; there are FLAIR, T1w, age, sex"):
        read_cohort(root, ["T2w"])
    with pytest.raises(MetavoxelError, match="asked for twice"):
        read_cohort(root, ["a=age", "a=sex"])
    with pytest.raises(MetavoxelError, match="no column 'weight'"):
        cohort.column("weight")


def test_several_runs(tmp_path):
    root = bids(tmp_path, "01 02")
    touch(root, "sub-01/anat/sub-01_run-1_T1w.nii.gz", "sub-03/anat/sub-03_run-2_T1w.nii.gz")
    touch(root, "sub-03/anat/sub-03_run-1_T1w.nii.gz", "sub-03/anat/sub-03_ce-gd_acq-x_T1w.nii.gz")
    cohort = read_cohort(root)
    names = [p.name for p in cohort.scans["T1w"]]
    assert names == ["sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz", "sub-03_run-1_T1w.nii.gz"]
    assert "2 rows have several T1w" in cohort.notes[0] and "run-1_T1w (1)" in cohort.notes[1]
    runs = read_cohort(root, ["first=run-1_T1w"])
    assert [p is None for p in runs.scans["first"]] == [False, True, False]


def test_sessions(tmp_path):
    root = tmp_path
    table_file(root, "participant_id age sex\nsub-01 30 F\nsub-02 40 M")
    touch(
        root, *[f"sub-01/ses-{s}/anat/sub-01_ses-{s}_T1w.nii.gz" for s in ("a", "b")], "sub-02/anat/sub-02_T1w.nii.gz"
    )
    cohort = read_cohort(root)
    assert cohort.participants == ["sub-01", "sub-02"] and len(cohort) == 3
    assert cohort.table["age"].tolist() == [30, 30, 40]
    assert cohort.table["session_id"].tolist()[:2] == ["a", "b"]
    assert cohort.column("age").index.tolist() == ["sub-01 a", "sub-01 b", "sub-02"]
    table_file(root / "sub-01", "session_id age weight\nses-a n/a 60\nses-b 32 61", "sub-01_sessions.tsv")
    cohort = read_cohort(root)
    assert cohort.table["age"].tolist() == [30, 32, 40] and cohort.table["weight"].tolist()[:2] == [60, 61]
    assert None not in cohort.scans["T1w"] and len(cohort) == 3
    touch(root, "sub-01/ses-c/anat/sub-01_ses-c_T1w.nii.gz", "sub-02/ses-x/anat/sub-02_ses-x_T1w.nii.gz")
    (root / "sub-02/anat/sub-02_T1w.nii.gz").unlink()
    further = read_cohort(root)  # sessions without a line: the person's facts hold
    assert further.column("age").to_dict() == {"sub-01 a": 30, "sub-01 b": 32, "sub-01 c": 30, "sub-02 x": 40}
    assert further.table["sex"].tolist() == ["F", "F", "F", "M"] and None not in further.scans["T1w"]
    assert any("2 scanned sessions have no line in a sessions.tsv, e.g. sub-01 ses-c" in note for note in further.notes)
    assert not any("have no row in" in note for note in further.notes)
    one, two = cohort.split([0.5, 0.5], seed=0)
    assert not set(one.participants) & set(two.participants) and len(one) + len(two) == 3


def test_level_spelling_follows_the_sidecar(tmp_path):
    root = bids(tmp_path, text="participant_id sex\nsub-01 f\nsub-02 M\nsub-03 n/a")
    (root / "participants.json").write_text(json.dumps({"sex": {"Levels": {"M": "male", "F": "female"}}}))
    cohort = read_cohort(root)
    assert cohort.table["sex"].tolist()[:2] == ["F", "M"] and cohort.columns["sex"].levels == ("M", "F")


def test_refused_folders(tmp_path):
    with pytest.raises(MetavoxelError, match="no such file or folder"):
        read_cohort(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MetavoxelError, match="give a BIDS folder"):
        read_cohort(tmp_path / "empty")
    root = bids(tmp_path / "apart", "A1 A2")
    with pytest.raises(MetavoxelError, match=r"'sub-01' in the table, 'sub-A1' among the scans.*; make the ids agree"):
        read_cohort(root)
    days = bids(tmp_path / "days", text="participant_id age\nsub-01 9000\nsub-02 21900\nsub-03 n/a")
    with pytest.raises(MetavoxelError, match=r"age 9000 at sub-01 .*days"):
        read_cohort(days)
    twice = bids(tmp_path / "twice", text="participant_id age\nsub-01 30\nsub-01 31")
    with pytest.raises(MetavoxelError, match="sub-01 occurs twice"):
        read_cohort(twice)


def test_scans_without_a_table_and_a_table_without_scans(tmp_path):
    touch(tmp_path / "scans", "sub-01/anat/sub-01_T1w.nii.gz")
    cohort = read_cohort(tmp_path / "scans")
    assert cohort.participants == ["sub-01"] and cohort.columns == {}
    cohort = read_cohort(table_file(tmp_path / "table", "participant_id a b\n1 2 x\n2 n/a y", "people.csv"))
    assert cohort.scans == {} and len(cohort) == 2 and list(cohort.columns) == ["a", "b"]


# --- cohorts from tables and single scans


def test_table_and_pattern(tmp_path):
    path = table_file(tmp_path, "participant_id age\nx_1 30\nx_2 40\nx_3 50", "people.csv")
    touch(tmp_path, "scans/x_1_T1w.nii.gz", "scans/x_1_FLAIR.nii.gz", "scans/x_3_T1w.nii.gz", "scans/readme.txt")
    cohort = read_cohort(path, ["T1w", "age"], "scans/{participant_id}_{modality}.nii.gz")
    assert [p and p.name for p in cohort.scans["T1w"]] == ["x_1_T1w.nii.gz", None, "x_3_T1w.nii.gz"]
    touch(tmp_path, "deep/sub-x_1/sub-x_1.nii")
    cohort = read_cohort(path, pattern="deep/{participant_id}/{participant_id}.nii")
    assert [p is None for p in cohort.scans["image"]] == [False, True, True]
    with pytest.raises(MetavoxelError, match="no scan matches the pattern"):
        read_cohort(path, pattern="scan/{participant_id}.nii.gz")
    with pytest.raises(MetavoxelError, match=r"use \{participant_id\}"):
        read_cohort(path, pattern="scans/{subject}.nii.gz")


def test_column_of_paths(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    path = table_file(tmp_path, "participant_id T1w age\n1 a.nii.gz 30\n2 n/a 40\n3 b.nii.gz n/a", "people.tsv")
    cohort = read_cohort(path, ["T1w", "age"])
    assert cohort.scans["T1w"] == [tmp_path / "a.nii.gz", None, tmp_path / "b.nii.gz"]
    assert list(cohort.columns) == ["age"] and "T1w" not in cohort.table
    table_file(tmp_path, "participant_id T1w\n1 a.nii.gz\n2 c.nii.gz", "people.tsv")
    with pytest.raises(MetavoxelError, match=r"c\.nii\.gz: no such scan, named in column T1w at 2"):
        read_cohort(path)
    table_file(tmp_path, "participant_id T1w\n1 a.nii.gz\n2 a.nii.gz", "people.tsv")
    with pytest.raises(MetavoxelError, match=r"a\.nii\.gz: is named in column T1w for both 1 and 2"):
        read_cohort(path)


def test_one_scan(tmp_path):
    touch(tmp_path, "sub-07_ses-1_T1w.nii.gz", "brain.nii", "notes.pdf")
    cohort = read_cohort(tmp_path / "sub-07_ses-1_T1w.nii.gz")
    assert cohort.participants == ["sub-07"] and list(cohort.scans) == ["T1w"] and len(cohort) == 1
    assert list(read_cohort(tmp_path / "brain.nii", ["T2w"]).scans) == ["T2w"]
    assert list(read_cohort(tmp_path / "sub-07_ses-1_T1w.nii.gz", ["a=T1w", "b=FLAIR"]).scans) == ["a"]
    with pytest.raises(MetavoxelError, match="cannot tell which of T1w, T2w"):
        read_cohort(tmp_path / "brain.nii", ["T1w", "T2w"])
    with pytest.raises(MetavoxelError, match="neither a scan nor a table"):
        read_cohort(tmp_path / "notes.pdf")


# --- splitting, joining, fingerprints


def people(n: int, seed: int = 0, sessions: int = 1) -> Cohort:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "participant_id": np.repeat([f"sub-{i:03}" for i in range(n)], sessions),
            "age": np.repeat(rng.uniform(20, 90, n), sessions),
            "sex": np.repeat(rng.choice(["F", "M"], n), sessions),
        }
    )
    columns = {k: g for k, g in describe_columns(table).items() if k != "participant_id"}
    return Cohort(table, {"T1w": [None] * len(table)}, columns, Path())


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(3, 60),
    sessions=st.integers(1, 3),
    weights=st.lists(st.integers(1, 10), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    stratify=st.sampled_from([(), ("sex",), ("sex", "age")]),
)
def test_split_shares_out_people(n, sessions, weights, seed, stratify):
    cohort = people(n, sessions=sessions)
    fractions = [w / sum(weights) for w in weights]
    parts = cohort.split(fractions, seed, stratify)
    ids = [person for part in parts for person in part.participants]
    assert sorted(ids) == cohort.participants and sum(map(len, parts)) == len(cohort)
    for part, fraction in zip(parts, fractions):
        assert len(part.participants) >= 1
        assert abs(len(part.participants) - fraction * n) < 2 or len(part.participants) == 1


def test_split_is_stratified_and_seeded():
    cohort = people(200)
    one, two = cohort.split([0.8, 0.2], seed=3, stratify=["sex", "age"])
    share = [(part.table["sex"] == "F").mean() for part in (one, two)]
    assert abs(share[0] - share[1]) < 0.03 and abs(one.table["age"].mean() - two.table["age"].mean()) < 2
    assert one.participants == cohort.split([0.8, 0.2], seed=3, stratify=["sex", "age"])[0].participants
    assert one.participants != cohort.split([0.8, 0.2], seed=4, stratify=["sex", "age"])[0].participants
    for fractions in ([0.5, 0.4], [1.2, -0.2], []):
        with pytest.raises(MetavoxelError, match="sum to 1"):
            cohort.split(fractions)
    with pytest.raises(MetavoxelError, match="cannot fill"):
        people(1).split([0.5, 0.5])


def test_fingerprint_follows_table_and_files(tmp_path):
    root = bids(tmp_path / "a")
    before = read_cohort(root).fingerprint()
    assert before == read_cohort(root).fingerprint() and len(before) == 16
    (root / "sub-02/anat/sub-02_T1w.nii.gz").write_bytes(b"other scan")
    changed = read_cohort(root).fingerprint()
    table_file(root, "participant_id age sex\nsub-01 31 F\nsub-02 40 M\nsub-03 50 F")
    assert len({before, changed, read_cohort(root).fingerprint()}) == 3


def test_concat(tmp_path):
    one = read_cohort(bids(tmp_path / "one"))
    two = read_cohort(bids(tmp_path / "two", text="participant_id age sex\nsub-01 60 m\nsub-02 70 f\nsub-03 n/a m"))
    both = concat({"A": one, "B": two})
    assert both.table["site"].tolist() == ["A"] * 3 + ["B"] * 3 and both.columns["site"].levels == ("A", "B")
    assert both.participants[::3] == ["A-sub-01", "B-sub-01"] and len(both.participants) == 6
    assert both.table["sex"].tolist() == ["F", "M", "F", "M", "F", "M"]
    assert len(both.scans["T1w"]) == 6 and "site" not in concat({"A": one}, site=None).columns
    shutil.rmtree(tmp_path / "two")
    three = read_cohort(bids(tmp_path / "three", "08 09", "participant_id age\nsub-08 60\nsub-09 70"))
    with pytest.raises(MetavoxelError, match="A and C differ in sex"):
        concat({"A": one, "C": three})
    with pytest.raises(MetavoxelError, match="a variable 'sex' already"):
        concat({"A": one}, site="sex")


# --- real cohorts


@real_data
def test_real_cohorts_join():
    one = read_cohort(DATA / "ds002748", ["T1w", "age", "sex=gender", "MADRS"])
    assert len(one) == 72 and one.columns["sex"].levels == ("M", "F") and one.columns["MADRS"].n_missing == 45
    assert set(one.table["sex"]) == {"M", "F"} and not one.notes
    one, two = (read_cohort(DATA / n, ["T1w", "age", s]) for n, s in (("ds002748", "sex=gender"), ("ixi50", "sex")))
    both = concat({"ds002748": one, "ixi50": two})
    assert len(both) == 122 and both.columns["sex"].levels == ("M", "F") and both.participants[0] == "sub-01"
    parts = both.split([0.2] * 5, seed=0, stratify=["site", "sex", "age"])
    assert all(8 <= (part.table["site"] == "ixi50").sum() <= 12 for part in parts)


@real_data
def test_real_sequences():
    cohort = read_cohort(DATA / "openms3", ["T1w", "T2w", "FLAIR", "T1ce=ce-gadolinium_T1w", "edss"])
    assert all(len(paths) == 3 and None not in paths for paths in cohort.scans.values())
    assert "ce-gadolinium" not in str(cohort.scans["T1w"]) and "ce-gadolinium" in str(cohort.scans["T1ce"][0])
