"""Changed facts, same person: nothing changes where nothing is asked to, and the way up is the way down."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

import metavoxel as mv
from metavoxel.counterfactual import _Path, counterfactual, own_facts
from metavoxel.data.volume import read_volume


@pytest.fixture(scope="module")
def model(untrained: Path) -> mv.MetaVoxel:
    model = mv.load(untrained)
    torch.manual_seed(0)
    with torch.no_grad():  # heads that start at zero would make every change nothing
        for parameter in model.denoiser.net.decoder.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


OWN = {"age": 50.0, "sex": "F"}


def test_unchanged_facts_leave_the_scan_and_changed_ones_do_not(model, scan) -> None:
    made = counterfactual(model, scan, [{"age": 50.0}, {"age": 85.0}, {"sex": "M"}], OWN, steps=4)
    original = read_volume(scan).array
    assert np.array_equal(made.volume(0).array, original)
    for number in (1, 2):
        assert np.abs(made.volume(number).array - original).max() > 1e-3
    again = counterfactual(model, scan, [{"age": 85.0}], OWN, steps=4)
    np.testing.assert_allclose(made.deltas[1], again.deltas[0], atol=1e-6)
    assert list(made.frame()["age"]) == [50.0, 85.0, 50.0] and made.frame()["mean_change"][0] == 0


@torch.no_grad()
def test_decoding_undoes_encoding(model, scan) -> None:
    """The scan's own facts lead back to the scan, up to what lies below the nearest level."""
    image = model.schema.image("T1w")
    entries = model._image(image, scan)[0]
    path = _Path(model, image, 12)
    code = path.encode(entries, OWN, lambda done: None)
    back = path.decode(code, OWN, lambda done: None)
    other = path.decode(torch.randn_like(code), OWN, lambda done: None)
    error = (back - entries).square().mean()
    assert error < 0.05 * (other - entries).square().mean()


def test_own_facts_are_answered_from_the_scan(model, scan) -> None:
    posterior = model.posterior({"T1w": scan, "sex": "M"})
    assert own_facts(posterior) == {"age": pytest.approx(posterior.mean("age"), abs=1e-3)}
    made = counterfactual(model, scan, [{"age": 80}], {"sex": "M"}, steps=2)
    assert made.own["sex"] == "M" and made.own["age"] == own_facts(posterior)["age"]


def test_command_writes_a_series(run, untrained, scan, tmp_path) -> None:
    out = tmp_path / "out"
    status, error = run("counterfactual", untrained, scan, "--set", "age=50:70:10", "--set", "sex=M",
                        "--steps", 3, "-o", out)  # fmt: skip
    assert status == 0, error
    table = pd.read_csv(out / "counterfactuals.csv")
    assert list(table["age"]) == [50, 60, 70] and set(table["sex"]) == {"M"}
    series = nib.load(out / "series_T1w.nii.gz")
    assert series.shape == (*read_volume(scan).shape, 3)
    one = read_volume(out / "age-60_sex-M_T1w.nii.gz")
    np.testing.assert_array_equal(one.array, series.get_fdata(dtype=np.float32)[..., 1])
    assert (out / "T1w.png").stat().st_size > 1000


def test_changes_that_cannot_be_meant(refused, untrained, scan, tmp_path) -> None:
    def told(*options: str) -> str:
        return refused("counterfactual", untrained, scan, "-o", tmp_path / "out", *options)

    assert "--set age: write NAME=VALUE" in told("--set", "age")
    assert "unknown level 'X'" in told("--set", "sex=X")
    assert "weight" in told("--set", "weight=3")
    assert "not a number" in told("--set", "age=old")
    assert "three numbers" in told("--set", "age=50:70:0")
    assert "leads away" in told("--set", "age=50:40:10")
    assert "set already" in told("--set", "age=50", "--set", "age=60")
    assert "no table to take it from" in told("--set", "age=50", "--given", "sex")
    assert not (tmp_path / "out").exists()
