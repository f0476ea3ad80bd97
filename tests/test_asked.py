"""A slip in Python gets one line, too: what is wrong, and what to write instead."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import metavoxel as mv
from metavoxel.counterfactual import counterfactual
from metavoxel.errors import MetavoxelError
from metavoxel.inpaint import inpaint

NAN = float("nan")


@pytest.fixture(scope="module")
def model(untrained: Path) -> mv.MetaVoxel:
    return mv.load(untrained)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m, scan: m.sample("sex"), "given: say what is known by name"),
        (lambda m, scan: m.sample(scan, "age"), "given: say what is known by name"),
        (lambda m, scan: m.sample({"T1w": [scan]}, "age"), "T1w: give one scan's file"),
        (lambda m, scan: m.sample({"T1w": "no.nii.gz"}, "age"), "no.nii.gz: no such file"),
        (lambda m, scan: m.sample({}, "age", n=0), "n must be a whole number of at least 1, got 0"),
        (lambda m, scan: m.sample({}, "age", n=2.5), "n must be a whole number of at least 1, got 2.5"),
        (lambda m, scan: m.sample({}, "age", n="4"), "n must be a whole number of at least 1, got '4'"),
        (lambda m, scan: m.sample({}, "age", seed=None), "seed must be a whole number of at least 0, got None"),
        (lambda m, scan: m.sample({}, "age", seed=-1), "seed must be a whole number of at least 0, got -1"),
        (lambda m, scan: m.sample({}, "age", steps=1.5), "steps must be a whole number of at least 1, got 1.5"),
        (lambda m, scan: m.sample({"sex": "F"}, "age", guidance=NAN), "guidance must be a number at least 0, got nan"),
        (lambda m, scan: m.sample({"sex": "F"}, "age", guidance=-1), "guidance must be a number at least 0, got -1"),
        (lambda m, scan: m.sample({}, "age", n=4).interval("age", 90), "level must be a number from 0 to 1, got 90"),
        (lambda m, scan: m.sample({}, "age", n=4).quantile("age", 5), "q must be a number from 0 to 1, got 5"),
        (lambda m, scan: m.predict(scan, draws=1), "draws must be a whole number of at least 2, got 1"),
        (lambda m, scan: m.predict(scan, draws=-1), "draws must be a whole number of at least 2, got -1"),
        (lambda m, scan: m.predict(scan, given="height"), "no variable 'height'"),
        (lambda m, scan: m.consistency(scan, draws=0), "draws must be a whole number of at least 2, got 0"),
        (lambda m, scan: m.surprise("T1w", np.zeros((3, 3))), "an array must be on the model's grid"),
        (lambda m, scan: m.surprise("T1w", np.full((1, *m.first_image().shape), NAN)), "NaN or infinite"),
        (lambda m, scan: m.save(scan), "cannot be made"),
        (lambda m, scan: inpaint(m, np.ones((3, 3, 3)), scan), "give a scan's file, which says where it lies"),
        (lambda m, scan: counterfactual(m, scan, {"height": 2}), "no variable 'height'"),
        (lambda m, scan: counterfactual(m, scan, {}), "no fact is changed"),
        (lambda m, scan: mv.concat([mv.read_cohort(scan)]), "concat: give each cohort a name"),
        (lambda m, scan: mv.concat({}), "concat: give each cohort a name"),
    ],
)  # fmt: skip
def test_a_slip_is_told_in_one_line(
    model: mv.MetaVoxel, scan: Path, ask: Callable[[mv.MetaVoxel, str], object], message: str
) -> None:
    with pytest.raises(MetavoxelError) as caught:
        ask(model, str(scan))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_one_name_and_one_scan_may_be_given_as_they_are(model: mv.MetaVoxel, scan: Path) -> None:
    given = {"T1w": scan, "sex": np.array("F")}
    np.testing.assert_array_equal(model.sample(given, "age", n=4)["age"], model.sample(given, ["age"], n=4)["age"])
    table = model.predict(scan, "age")
    numbers = ["age_mean", "age_sd", "age_q05", "age_q50", "age_q95"]
    assert list(table.columns) == ["participant_id", *numbers, "T1w_surprise", "warning"]
    assert np.isfinite(model.sample({}, "age", n=4).quantile("age", np.float32(0.5)))


def test_facts_of_a_table_far_from_training_are_warned_about(model: mv.MetaVoxel, tmp_path: Path, scan: Path) -> None:
    """One value for all is refused; of thousands of rows one is not a reason to answer none."""
    low, high = model.schema.scalar("age").span  # type: ignore[union-attr, misc]
    ages = [(low + high) / 2, high + 0.2 * (high - low), high + 0.3 * (high - low), NAN]
    scans = sorted(scan.parents[2].glob("sub-*/anat/*.nii.gz"))
    rows = "".join(f"sub-{i}\t{age:.4f}\t{scans[i]}\n" for i, age in enumerate(ages)).replace("nan", "n/a")
    (tmp_path / "people.tsv").write_text(f"participant_id\tage\tT1w\n{rows}")
    warning = model.predict(tmp_path / "people.tsv", "sex", given="age", compare=False)["warning"]
    assert warning.str.contains("outside of the training range").tolist() == [False, False, True, False]
    assert "without age" in warning.iloc[3]
    with pytest.raises(MetavoxelError, match="outside of the training range"):
        model.predict(scan, "sex", given={"age": ages[2]})


def test_a_home_folder_is_meant_by_a_tilde(model: mv.MetaVoxel, scan: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model.sample({"T1w": scan}, "age", n=2).save("~/draws")
    model.save("~/model")
    assert (tmp_path / "draws/samples.csv").exists() and mv.load("~/model").schema == model.schema
    assert not Path("~").exists()


def test_cohorts_may_be_called_by_numbers(phantoms: Path) -> None:
    cohort = mv.read_cohort(phantoms)
    assert set(mv.concat({1: cohort, 2: cohort}).table["site"]) == {"1", "2"}
