"""The commands as a user types them: what they write, and one line and status 2 for each kind of wrong input."""

import errno
import gzip
import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import metavoxel as mv
from metavoxel.config import read_config


def _scan(phantoms: Path, number: int = 1) -> Path:
    return phantoms / f"sub-{number:04d}/anat/sub-{number:04d}_T1w.nii.gz"


def test_predict_writes_the_promised_columns(run, untrained, phantoms, tmp_path):
    out = tmp_path / "answers.csv"
    status, error = run("predict", untrained, phantoms, "--want", "age,sex", "-n", 8, "-o", out)
    assert status == 0, error
    table = pd.read_csv(out)
    assert list(table.columns) == [
        "participant_id", "age_mean", "age_sd", "age_q05", "age_q50", "age_q95", "sex", "sex_p_F", "sex_p_M",
        "T1w_surprise", "warning",
    ]  # fmt: skip
    assert len(table) == 12
    assert np.allclose(table["sex_p_F"] + table["sex_p_M"], 1, atol=1e-5)
    assert (table["age_q05"] <= table["age_q50"]).all()
    assert json.loads(out.with_suffix(".json").read_text())["age_mean"] == {"Units": "years"}
    assert "unlike" in json.loads(out.with_suffix(".json").read_text())["T1w_surprise"]["Description"]


def test_predict_one_scan_equals_its_row_in_the_cohort(run, untrained, phantoms, tmp_path):
    one, many = tmp_path / "one.csv", tmp_path / "many.csv"
    assert run("predict", untrained, _scan(phantoms), "--want", "age", "-o", one)[0] == 0
    assert run("predict", untrained, phantoms, "--want", "age", "-o", many)[0] == 0
    assert pd.read_csv(one)["age_mean"][0] == pytest.approx(pd.read_csv(many)["age_mean"][0], abs=1e-3)


def test_predict_is_deterministic_and_takes_facts(run, untrained, phantoms, tmp_path):
    first, second, given = (tmp_path / f"{name}.csv" for name in "abc")
    for out in (first, second):
        assert run("predict", untrained, phantoms, "--want", "age", "-n", 4, "-o", out)[0] == 0
    assert first.read_bytes() == second.read_bytes()
    assert run("predict", untrained, phantoms, "--want", "age", "--given", "sex", "-o", given)[0] == 0
    warnings = pd.read_csv(given)["warning"].fillna("")
    missing = pd.read_csv(phantoms / "participants.tsv", sep="\t")["sex"].isna()
    assert (warnings.str.contains("without sex") == missing).all()


def test_sample_writes_table_scans_and_picture(run, untrained, phantoms, tmp_path):
    out = tmp_path / "draws"
    assert run("sample", untrained, "--given", "age=70", "-n", 2, "--steps", 2, "-o", out)[0] == 0
    assert list(pd.read_csv(out / "samples.csv").columns) == ["draw", "sex"]
    volume = nib.load(out / "draw-0001_T1w.nii.gz")
    assert volume.shape == (32, 40, 32)
    assert np.allclose(volume.header.get_zooms(), 5)
    assert (out / "T1w.png").read_bytes().startswith(b"\x89PNG")
    scalars = tmp_path / "scalars"
    assert run("sample", untrained, "--given", f"T1w={_scan(phantoms)}", "-n", 5, "-o", scalars)[0] == 0
    assert len(pd.read_csv(scalars / "samples.csv")) == 5


def test_earlier_draws_in_the_folder_are_not_taken_for_these(run, untrained, tmp_path):
    """Nothing else is touched."""
    (tmp_path / "draw-mine.nii.gz").touch()
    for n, want in ((3, "T1w,age"), (2, "T1w,age"), (2, "age")):
        status, _ = run("sample", untrained, "--given", "sex=F", "--want", want, "-n", n, "--steps", 1, "-o", tmp_path)
        there = sorted(path.name for path in tmp_path.iterdir())
        drawn = [f"draw-{i:04d}_T1w.nii.gz" for i in range(n)] if "T1w" in want else []
        assert status == 0 and there == sorted([*drawn, *(["T1w.png"] if drawn else []), "draw-mine.nii.gz", "samples.csv"])


def test_phantom_and_inspect(run, untrained, tmp_path, capsys):
    assert run("phantom", tmp_path / "c", "-n", 2, "--diagnosis")[0] == 0
    assert (tmp_path / "c/derivatives/phantom/posterior.tsv").exists()
    assert run("inspect", untrained)[0] == 0


def test_train_resumes_and_never_overwrites(run, refused, phantoms, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("joint: {steps: 2, batch: 4, validate_every: 1}\n")
    out = tmp_path / "m"
    assert run("train", phantoms, "-o", out, "--config", config)[0] == 0
    before = (out / "model.safetensors").read_bytes()
    assert "holds a trained model" in refused("train", phantoms, "-o", out, "--config", config)
    assert run("train", phantoms, "-o", out, "--config", config, "--resume")[0] == 0
    assert (out / "model.safetensors").read_bytes() == before


def test_train_fine_tunes(run, phantoms, untrained, tmp_path):
    config = tmp_path / "c.yaml"
    settings = "net: {widths: [8, 8]}\njoint: {steps: 1, batch: 4, validate_every: 1, rate: 1.0e-9, matrix_rate: 0}\n"
    config.write_text(settings)  # the model's own network is kept: its weights fit no other
    assert run("train", phantoms, "-o", tmp_path / "m", "--config", config, "--init", untrained)[0] == 0
    assert "holds no T1w" in run("train", _tables_only(phantoms, tmp_path), "-o", tmp_path / "n", "--init", untrained)[1]


def test_the_default_preset_is_for_scans_or_for_a_table(run, phantoms, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("net: {token_width: 16}\njoint: {batch: 4, steps: 1}\n")
    for cohort, preset in ((phantoms, "tiny"), (_tables_only(phantoms, tmp_path), "table")):
        assert run("train", cohort, "-o", tmp_path / preset, "--config", config)[0] == 0
        assert mv.load(tmp_path / preset).config == read_config(config, preset)


def _tables_only(phantoms: Path, tmp_path: Path) -> Path:
    shutil.copy(phantoms / "participants.tsv", tmp_path / "facts.tsv")
    return tmp_path / "facts.tsv"


WRONG_SCANS = {
    "not a NIfTI": lambda path, good: path.write_bytes(b"hello" * 100),
    "truncated": lambda path, good: path.write_bytes(good.read_bytes()[:3000]),
    "4-D": lambda path, good: nib.save(nib.Nifti1Image(np.random.default_rng(0).random((9, 9, 9, 3)), np.eye(4)), path),
    "NaN": lambda path, good: nib.save(nib.Nifti1Image(np.full((9, 9, 9), np.nan, np.float32), np.eye(4)), path),
    "empty file": lambda path, good: path.write_bytes(b""),
    "empty gzip": lambda path, good: path.write_bytes(gzip.compress(b"")),
    "missing": lambda path, good: None,
}


@pytest.mark.parametrize("kind", WRONG_SCANS)
def test_wrong_scan_is_named(refused, untrained, phantoms, tmp_path, kind):
    scan = tmp_path / "odd_T1w.nii.gz"
    WRONG_SCANS[kind](scan, _scan(phantoms))
    out = tmp_path / "x.csv"
    assert "odd_T1w.nii.gz" in refused("predict", untrained, scan, "-o", out)
    assert "odd_T1w.nii.gz" in refused("sample", untrained, "--given", f"T1w={scan}", "-o", tmp_path / "d")
    assert not out.exists()


def test_wrong_scan_in_a_cohort_is_named_by_train(refused, phantoms, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(phantoms, copy)
    _scan(copy, 7).write_bytes(_scan(phantoms, 7).read_bytes()[:2000])
    assert "sub-0007_T1w.nii.gz" in refused("train", copy, "-o", tmp_path / "m")
    assert not (tmp_path / "m/model.json").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(age=t["age"] * 365.25), "days"),
        (lambda t: t.assign(sex=t["sex"].where(t.index != 3, "X")), "X"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "sub-0001"),
        (lambda t: t.drop(columns="participant_id"), "participant_id"),
        (lambda t: t.assign(participant_id=[f"sub-x{i}" for i in range(len(t))]), "sub-x0"),
    ],
    ids=["age in days", "unknown level", "duplicate participant", "missing column", "no overlap"],
)
def test_wrong_table_is_named(refused, phantoms, tmp_path, change, words):
    copy = tmp_path / "copy"
    shutil.copytree(phantoms, copy)
    table = change(pd.read_csv(copy / "participants.tsv", sep="\t"))
    table.to_csv(copy / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    assert words in refused("train", copy, "-o", tmp_path / "m")


def test_other_wrong_arguments(refused, untrained, phantoms, tmp_path):
    out = tmp_path / "x.csv"
    assert "no such model" in refused("predict", tmp_path / "nothing", phantoms, "-o", out)
    assert "model.json" in refused("inspect", phantoms)
    assert "knows T1w, age, sex" in refused("predict", untrained, phantoms, "--want", "height", "-o", out)
    assert "unknown level 'Q'" in refused("sample", untrained, "--given", "sex=Q", "-o", tmp_path / "d")
    assert "not a number" in refused("sample", untrained, "--given", "age=old", "-o", tmp_path / "d")
    assert "age=VALUE" in refused("sample", untrained, "--given", "age", "-o", tmp_path / "d")
    assert "unknown preset" in refused("train", phantoms, "-o", tmp_path / "m", "--preset", "huge")
    assert "unknown preset" in refused("train", tmp_path / "not looked for yet", "-o", tmp_path / "m", "--preset", "huge")
    assert "no such file" in refused("train", tmp_path / "none", "-o", tmp_path / "m")
    (tmp_path / "empty").mkdir()
    assert "participants.tsv" in refused("train", tmp_path / "empty", "-o", tmp_path / "m")
    config = tmp_path / "c.yaml"
    config.write_text("joint: {stepz: 2}\n")
    assert "joint.stepz" in refused("train", phantoms, "-o", tmp_path / "m", "--config", config)
    assert "not an empty folder" in refused("phantom", phantoms)
    assert "--help" in refused("predict", untrained)
    assert "Missing option '-o' / '--out'" in refused("predict", untrained, phantoms)
    assert "'--seed'" in refused("split", phantoms, "-o", tmp_path / "s.tsv", "--seed", -1)
    assert "50:90:10" in refused("counterfactual", untrained, "x.nii", "--set", "age=50:inf:5", "-o", tmp_path / "d")
    pattern = "--pattern", "/{participant_id}"
    assert "starts from the cohort's folder" in refused("predict", untrained, phantoms, "-o", out, *pattern)
    assert "device gpu: there is none here" in refused("train", phantoms, "-o", tmp_path / "m", "--device", "gpu")


def test_answers_are_not_written_over_something_else(refused, untrained, phantoms, tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    assert "mine.json: is there" in refused("predict", untrained, phantoms, "-o", tmp_path / "mine.csv")
    assert "name a .csv" in refused("predict", untrained, phantoms, "-o", tmp_path / "mine.json")
    assert "name a .csv" in refused("predict", untrained, phantoms, "-o", tmp_path / "none" / "x.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_a_command_that_is_stopped_says_so(run, untrained, tmp_path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("metavoxel.model.load", stop)
    status, error = run("sample", untrained, "--want", "age", "-o", tmp_path / "d")
    assert status == 130
    assert "metavoxel: stopped; no file is half-written" in error


def test_facts_that_cannot_be_meant(refused, untrained, phantoms, scan, tmp_path):
    out = tmp_path / "out"
    far = r"age: 500 is outside of the training range, \d+.* to \d+.* years; ask nearer to it"
    assert re.search(far, refused("sample", untrained, "--given", "age=500", "-o", out))
    assert re.search(far, refused("predict", untrained, phantoms, "--given", "age=500", "-o", tmp_path / "t.csv"))
    assert re.search(far, refused("counterfactual", untrained, scan, "--set", "age=500", "-o", out))
    twice = refused("sample", untrained, "--given", "age=50", "--given", "age=60", "-o", out)
    assert twice == "metavoxel: --given age=60: age is given already; give it once"
    assert "unknown level 'X'" in refused("sample", untrained, "--given", "sex=X", "-o", out)
    assert "both given and wanted" in refused("sample", untrained, "--given", "age=50", "--want", "age", "-o", out)
    assert not out.exists() and not (tmp_path / "t.csv").exists()


def test_a_refusal_stands_alone(run, untrained, tmp_path):
    _, error = run("sample", untrained, "--given", "age=500", "-o", tmp_path / "out")
    assert len(error.splitlines()) == 1, error


def test_broken_model_folders(refused, untrained, tmp_path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(untrained, tmp_path / name))

    bare = copy("bare")
    (bare / "model.safetensors").unlink()
    assert "model.safetensors: no such file" in refused("inspect", bare)
    cut = copy("cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1000])
    assert "truncated" in refused("inspect", cut)
    newer = copy("newer")
    about = json.loads((newer / "model.json").read_text())
    (newer / "model.json").write_text(json.dumps({**about, "format": 99, "metavoxel": "9.0"}))
    assert "upgrade" in refused("inspect", newer)
    other = copy("other")
    for part in ("schema", "config", "summary"):
        (newer / "model.json").write_text(json.dumps({key: value for key, value in about.items() if key != part}))
        assert f"lacks its {part}" in refused("inspect", newer)
    about["config"]["net"]["token_width"] = 64
    (other / "model.json").write_text(json.dumps(about))
    assert "do not belong together" in refused("inspect", other)
    garbled = copy("garbled")
    (garbled / "model.json").write_text("{")
    assert "not valid JSON" in refused("inspect", garbled)


def test_full_disk_leaves_nothing_behind(refused, untrained, phantoms, tmp_path):
    out = Path("/dev/full")
    if out.exists():
        assert refused("predict", untrained, _scan(phantoms), "-o", "/dev/full/x.csv")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    assert "blocked" in refused("sample", untrained, "--given", "age=70", "--steps", 1, "-o", blocked)
    assert blocked.read_text() == "a file where a folder should be"


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot be asked for space")
def test_a_disk_too_small_for_the_scans_is_said_before_they_are_read(refused, phantoms, tmp_path, monkeypatch):
    """Unasked, the system would end the process without a word when the mapped file outgrows the disk."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    said = refused("train", phantoms, "-o", tmp_path / "m", "--cache", tmp_path / "cache")
    assert "disk full while writing" in said and "T1w" in said
    assert not list((tmp_path / "cache").iterdir())


def test_hub_model_offline_says_what_to_do(refused, tmp_path):
    assert "hf://" in refused("predict", "hf://nobody/nothing", "x.nii.gz", "-o", tmp_path / "x.csv")
