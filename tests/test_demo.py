"""The demo end to end with a tiny untrained model, its figures, its folder and its page."""

import base64
import json
import re

import numpy as np
import pandas as pd
import pytest

from metavoxel import demo
from metavoxel.config import preset
from metavoxel.data import phantom
from metavoxel.errors import MetavoxelError
from metavoxel.page import Picture, Report, Section, Table


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model that has hardly been trained."""
    from metavoxel.build import train

    root = tmp_path_factory.mktemp("demo")
    phantom.write_cohort(root / "cohort", 8, seed=3)
    stage = {"steps": 1, "batch": 2, "validate_every": 1, "warmup": 1}
    net = {"widths": (8, 16), "token_width": 16, "token_depth": 1, "heads": 2}
    train(root / "cohort", preset("tiny", joint=stage, net=net, augment=False), root / "model", quiet=True)
    return str(root / "model")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, count in {"BRAINS_PER_AGE": 2, "JOINT_BRAINS": 3, "JOINT_FACTS": 50}.items():
        monkeypatch.setattr(demo, name, count)
    monkeypatch.setattr(demo, "ONE_PERSON_DRAWS", 16)
    for name in ("IMAGE_STEPS", "PAPER_STEPS"):
        monkeypatch.setattr("metavoxel.methods." + name, 3)


def test_demo_end_to_end(model, tmp_path, capsys):
    out = tmp_path / "demo"
    figures = demo.run_demo(out, train=False, seed=1, model=model, subjects=6)
    assert "report.html" in capsys.readouterr().out
    assert json.loads((out / "metrics.json").read_text()) == figures
    assert figures["subjects"] == 6 and figures["seed"] == 1
    assert figures["age"]["exact"]["mae"] < figures["age"]["constant"]["mae"] + 10
    assert len(pd.read_csv(out / "cohort" / "participants.tsv", sep="\t")) == 6
    page = (out / "report.html").read_text()
    assert page.count("<img") == page.count("data:image/png;base64,") == 17
    assert "http" not in page and "nan" not in re.sub(r"base64,[^\"]*", "", page)
    # again, in place of the first: all but the time is the same
    again = demo.run_demo(out, train=False, seed=1, model=model, subjects=6, quiet=True)
    assert {**figures, "seconds": 0} == {**again, "seconds": 0}


def test_demo_trains_first(monkeypatch, tmp_path):
    stage = {"steps": 1, "batch": 2, "validate_every": 1, "warmup": 1}
    net = {"widths": (8, 16), "token_width": 16, "token_depth": 1, "heads": 2}
    monkeypatch.setattr(demo, "preset", lambda name, seed: preset(name, seed=seed, joint=stage, net=net, augment=False))
    monkeypatch.setattr(demo, "TRAINING_SUBJECTS", 4)
    monkeypatch.setattr(demo, "AGES", (30.0,))
    figures = demo.run_demo(tmp_path, train=True, seed=0, subjects=3, quiet=True)
    assert figures["seconds"]["stages"]["training"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {*demo.MADE_HERE, "model", demo.MARKER}
    demo.claim(tmp_path, replace_model=False)
    assert (tmp_path / "model" / "model.json").exists() and not (tmp_path / "report.html").exists()


def test_a_foreign_folder_is_refused(tmp_path, model):
    (tmp_path / "report.html").write_text("mine")  # the name of one of ours, in a folder that is not
    with pytest.raises(MetavoxelError, match="choose another --out"):
        demo.run_demo(tmp_path, train=False, seed=0, model=model, subjects=2, quiet=True)
    assert (tmp_path / "report.html").read_text() == "mine"
    demo.claim(tmp_path / "demo", replace_model=True)
    (tmp_path / "demo" / "thesis.tex").write_text("mine")
    with pytest.raises(MetavoxelError, match=r"thesis\.tex"):
        demo.claim(tmp_path / "demo", replace_model=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MetavoxelError, match="cannot be used"):
        demo.claim(tmp_path / "file", replace_model=False)


def test_wrong_questions_are_refused(tmp_path, model):
    for settings, message in (
        ({"subjects": 1}, "at least 2"),
        ({"seed": -1}, "--seed"),
        ({"model": "none"}, "no such"),
    ):
        with pytest.raises(MetavoxelError, match=message):
            demo.run_demo(tmp_path / "out", **{"train": False, "seed": 0, "model": model, **settings})
    assert not (tmp_path / "out").exists()


def test_people_are_new():
    """The streams of the demo, of its training and of a hand-made cohort share nobody."""
    seeds = (demo.FRESH_PEOPLE, demo.TRAINING_PEOPLE, demo.LAW_PEOPLE, 0, demo.MAX_SEED - 1)
    ages = np.concatenate([phantom.subjects(20, seed)["icv_ml"] for seed in seeds])
    assert len(np.unique(ages)) == 20 * len(seeds)
    assert demo.TRAINING_PEOPLE + demo.MAX_SEED < demo.FRESH_PEOPLE
    assert demo.FRESH_PEOPLE + demo.MAX_SEED < demo.LAW_PEOPLE < 1 << 32


def test_ruler_measures_ventricles():
    """On images whose inside darkens with the number to be measured."""
    rng = np.random.default_rng(0)
    percent = rng.uniform(1, 4, 40)
    scans = np.zeros((40, 16, 16, 16), np.float32)
    scans[:, 2:14, 2:14, 2:14] = 0.9 + rng.normal(0, 0.02, (40, 12, 12, 12))
    scans[:, 6:10, 6:10, 6:10] -= 0.2 * np.log(percent)[:, None, None, None]
    ruler, held_out = demo.calibrated_ruler(scans[:30], percent[:30], (10.0, 10.0, 10.0))
    assert np.corrcoef(held_out, percent[:30])[0, 1] > 0.95
    assert np.abs(ruler(scans[30:]) - percent[30:]).mean() < 0.3


def test_calibration_z_tells_overconfidence():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 4000)
    male = rng.random(4000) < p
    logit = np.log(p / (1 - p))
    assert abs(demo._sex_figures(male, p)["calibration_z"]) < 3
    assert demo._sex_figures(male, 1 / (1 + np.exp(-2 * logit)))["calibration_z"] > 3
    assert demo._sex_figures(male, 1 / (1 + np.exp(-0.5 * logit)))["calibration_z"] < -3


def test_page_escapes_and_embeds(tmp_path):
    nasty = "<script>alert('x')</script> & \"q\""
    section = Section(nasty, nasty, [Picture(b"\x89PNG", nasty, nasty)], Table((nasty,), [(nasty,)]), nasty)
    Report(nasty, [nasty], [section], [nasty]).save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and page.count("&lt;script&gt;") == 11
    assert f'src="data:image/png;base64,{base64.b64encode(bytes([0x89]) + b"PNG").decode()}"' in page
    with pytest.raises(MetavoxelError, match="there is no folder"):
        Report("t", [], []).save(tmp_path / "none" / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
