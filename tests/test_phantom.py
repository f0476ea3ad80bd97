"""The phantom's law, its exact posterior against calibration and brute force, and the truth of the rendered volumes."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from metavoxel.data import phantom
from metavoxel.data.phantom_render import render, render_batch
from metavoxel.errors import MetavoxelError

VOLUMES = Path(__file__).parents[1].parent / "shared" / "data" / "ixi_volumes.tsv"
NUMBERS = list(phantom.NUMBERS)


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    return phantom.subjects(5000, seed=101, diagnosis=True)


def test_a_row_depends_on_seed_and_place_only() -> None:
    few, many = phantom.subjects(3, seed=4), phantom.subjects(50, seed=4)
    pd.testing.assert_frame_equal(few, many.head(3))
    assert not np.allclose(few["icv_ml"], phantom.subjects(3, seed=5)["icv_ml"])
    # Asking for a diagnosis changes neither age nor sex.
    pd.testing.assert_frame_equal(few.iloc[:, :3], phantom.subjects(3, seed=4, diagnosis=True).iloc[:, :3])


def test_ages_are_uniform_and_sexes_half_and_half(people: pd.DataFrame) -> None:
    assert stats.kstest(people["age"], stats.uniform(20, 70).cdf).pvalue > 0.001
    assert stats.binomtest(int((people["sex"] == "F").sum()), len(people)).pvalue > 0.001


def test_the_law_has_the_moments_it_is_built_from() -> None:
    rows = phantom.subjects(40_000, seed=2)
    for sex, (mean, sd) in {"F": (1297, 111), "M": (1499, 121)}.items():
        icv = rows.loc[rows["sex"] == sex, "icv_ml"]
        assert icv.mean() == pytest.approx(mean, abs=4) and icv.std() == pytest.approx(sd, abs=4)
    for age, ventricles, spread, brain in ((45, 1.31, 0.49, 88.1), (55, 1.44, 0.60, 87.4), (75, 2.65, 1.22, 84.6)):
        near = rows[(rows["age"] - age).abs() < 2]
        assert near["ventricles_percent"].mean() == pytest.approx(ventricles, rel=0.05)
        assert near["ventricles_percent"].std() == pytest.approx(spread, rel=0.12)
        assert near["brain_percent"].mean() == pytest.approx(brain, abs=0.2)
        assert near["brain_percent"].std() == pytest.approx(1.9, rel=0.1)


@pytest.mark.skipif(not VOLUMES.exists(), reason=f"no {VOLUMES.name} beside the project")
def test_the_law_resembles_real_people() -> None:
    table = pd.read_csv(VOLUMES, sep="\t")
    icv, tissue = table["icv_mm3"], table["grey_mm3"] + table["white_mm3"]
    real = pd.DataFrame(
        {
            "icv_ml": icv / 1000,
            "ventricles_percent": 100 * table["ventricles_mm3"] / icv,
            "brain_percent": 100 * table["brain_mm3"] / icv,
            "grey_percent": 100 * table["grey_mm3"] / tissue,
            "hippocampus_percent": 100 * (table["hippocampus_left_mm3"] + table["hippocampus_right_mm3"]) / icv,
        }
    )
    ours = phantom.subjects(20_000, seed=3)
    for low, high in ((40, 50), (50, 60), (60, 70), (70, 86)):
        a, b = (t[part.between(low, high)] for t, part in ((real, table["age"]), (ours[NUMBERS], ours["age"])))
        # Within a quarter of a standard deviation plus three standard errors of the real mean.
        assert ((a.mean() - b.mean()).abs() < (0.25 + 3 / np.sqrt(len(a))) * a.std()).all()


def test_posterior_of_age_is_calibrated(people: pd.DataFrame) -> None:
    answer = phantom.posterior(people)
    for q in (5, 50, 95):
        below = int((people["age"] < answer[f"age_q{q:02d}"]).sum())
        assert stats.binomtest(below, len(people), q / 100).pvalue > 0.001
    score = (people["age"] - answer["age_mean"]) / answer["age_sd"]
    assert abs(score.mean()) < 0.05 and score.std() == pytest.approx(1, abs=0.04)


def test_probability_integral_transform_is_uniform(people: pd.DataFrame) -> None:
    mass = np.concatenate(
        [phantom.posterior_mass(part).sum((2, 3)) for part in (people.iloc[i : i + 250] for i in range(0, 5000, 250))]
    )
    cumulative = np.pad(mass.cumsum(1), ((0, 0), (1, 0)))
    pit = [np.interp(age, phantom.AGE_EDGES, row) for age, row in zip(people["age"], cumulative, strict=True)]
    assert stats.kstest(pit, "uniform").pvalue > 0.001


@pytest.mark.parametrize(("name", "level"), [("sex", "F"), ("diagnosis", "dementia")])
def test_probabilities_are_reliable(people: pd.DataFrame, name: str, level: str) -> None:
    p = phantom.posterior(people)[f"{name}_p_{level}"]
    hit = people[name] == level
    for _, group in p.groupby(np.minimum((p * 10).astype(int), 9)):
        error = hit[group.index].mean() - group.mean()
        assert abs(error) < 4 * np.sqrt((group * (1 - group)).sum()) / len(group) + 1e-9


def test_posterior_agrees_with_brute_force() -> None:
    # Weighting by a small Gaussian window instead of a density: needs nothing of the law but `subjects`.
    pool = phantom.subjects(150_000, seed=8, diagnosis=True)
    logs = np.log(pool[NUMBERS].assign(brain_percent=100 - pool["brain_percent"]))
    sd = logs.std().to_numpy()
    typical = pool.iloc[np.square((logs - logs.mean()) / sd).sum(axis=1).argsort().to_numpy()[:5]]
    answer = phantom.posterior(typical)
    for i, (_, row) in zip(typical.index, answer.iterrows(), strict=True):
        weight = np.exp(-0.5 * np.square((logs - logs.loc[i]) / sd / 0.25).sum(axis=1)).drop(i)
        others = pool.drop(i)
        assert np.average(others["age"], weights=weight) == pytest.approx(row["age_mean"], abs=2.5)
        assert np.average(others["sex"] == "F", weights=weight) == pytest.approx(row["sex_p_F"], abs=0.08)
        dementia = np.average(others["diagnosis"] == "dementia", weights=weight)
        assert dementia == pytest.approx(row["diagnosis_p_dementia"], abs=0.05)


def test_given_facts_leave_the_answer_and_sharpen_it(people: pd.DataFrame) -> None:
    rows = people.head(400)
    free, known = phantom.posterior(rows), phantom.posterior(rows, given=["sex"])
    assert list(known) == [c for c in free if not c.startswith("sex")]
    # Total probability: the mean over the sexes of what each sex would answer.
    by_sex = {s: phantom.posterior(rows.assign(sex=s), given=["sex"])["age_mean"] for s in "FM"}
    np.testing.assert_allclose(free["age_mean"], sum(free[f"sex_p_{s}"] * by_sex[s] for s in "FM"), rtol=1e-9)
    assert list(phantom.posterior(rows, given=["age", "sex"])) == [
        "participant_id",
        "diagnosis",
        *(f"diagnosis_p_{level}" for level in phantom.DIAGNOSES),
        *(f"mmse_{what}" for what in ("mean", "sd", "q05", "q50", "q95")),
    ]


@pytest.mark.parametrize(("shape", "spacing"), [((32, 40, 32), 5.0), ((40, 50, 41), 4.0)])
def test_images_show_the_hidden_numbers(shape: tuple[int, int, int], spacing: float) -> None:
    rows = phantom.subjects(8, seed=1, diagnosis=True)
    _, parts = render_batch(rows, seed=1, shape=shape, spacing=spacing, device=torch.device("cpu"))
    ml = {name: part.sum((1, 2, 3)).numpy() * spacing**3 / 1000 for name, part in vars(parts).items()}
    icv, grey = sum(ml.values()), ml["grey"] + ml["hippocampus"]
    shown = [icv, ml["ventricles"] / icv * 100, (1 - ml["csf"] / icv) * 100]
    shown += [grey / (grey + ml["white"]) * 100, ml["hippocampus"] / icv * 100]
    np.testing.assert_allclose(np.stack(shown, axis=1), rows[NUMBERS], rtol=0.005)
    assert all(part.min() >= 0 and part.max() <= 1 for part in vars(parts).values())


def test_a_scan_does_not_depend_on_its_batch() -> None:
    rows = phantom.subjects(5, seed=6)
    together = torch.cat(list(render(rows, seed=6, batch=5, device="cpu")))
    alone = torch.cat(list(render(rows.iloc[[3]], seed=6, device="cpu")))
    torch.testing.assert_close(together[3:4], alone, rtol=1e-4, atol=0.1)
    assert together.shape == (5, 1, 32, 40, 32)
    # Skull-stripped, and the head does not touch the border of the grid.
    assert together[:, :, 0].max() == 0 and together[:, :, :, 0].max() == 0 and together.amax((1, 2, 3, 4)).min() > 100


def test_cohort_is_bids_and_centred(tmp_path: Path) -> None:
    done: list[int] = []
    out = phantom.write_cohort(tmp_path / "bids", 6, seed=3, diagnosis=True, missing=0.3, on_progress=done.append)
    table = pd.read_csv(out / "participants.tsv", sep="\t")
    assert list(table) == ["participant_id", "age", "sex", "diagnosis", "mmse"] and done == [6]
    assert table["participant_id"].notna().all() and 0 < table.isna().to_numpy().sum() < 24
    sidecar = json.loads((out / "participants.json").read_text())
    assert sidecar["age"]["Units"] == "years" and sidecar["sex"]["Levels"] == {"F": "female", "M": "male"}
    truth = pd.read_csv(out / "derivatives" / "phantom" / "posterior.tsv", sep="\t")
    rows = phantom.subjects(6, seed=3, diagnosis=True)
    np.testing.assert_allclose(truth[NUMBERS], rows[NUMBERS], rtol=1e-4)
    assert list(phantom.posterior(rows)) == [c for c in truth if c not in NUMBERS]
    image = nib.load(out / "sub-0002" / "anat" / "sub-0002_T1w.nii.gz")
    assert image.shape == (32, 40, 32) and nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(image.header.get_zooms(), 5)
    voxels = np.argwhere(image.get_fdata() > 0)
    middle = nib.affines.apply_affine(image.affine, (voxels.min(0) + voxels.max(0)) / 2)
    assert np.abs(middle).max() < 15  # mm from the grid's centre
    assert not list(tmp_path.glob(".bids*"))


def test_mistakes_are_told(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").touch()
    rows = phantom.subjects(2)
    for message, call in {
        "not an empty folder": lambda: phantom.write_cohort(tmp_path / "full", 1),
        "at least one subject": lambda: phantom.write_cohort(tmp_path / "a", 0),
        "share of cells": lambda: phantom.write_cohort(tmp_path / "a", 1, missing=1.0),
        "cut heads off": lambda: phantom.write_cohort(tmp_path / "a", 1, shape=(20, 40, 32)),
        "spacing is": lambda: phantom.write_cohort(tmp_path / "a", 1, spacing=0.0),
        "cannot write": lambda: phantom.write_cohort(tmp_path / "full" / "note.txt" / "a", 1),
        "not in this law": lambda: phantom.posterior(rows, given=["diagnosis"]),
        "no column": lambda: phantom.posterior(rows.drop(columns="icv_ml")),
        "without a value": lambda: phantom.posterior(rows.assign(age=np.nan), given=["age"]),
        "its levels are": lambda: phantom.posterior(rows.assign(sex="f"), given=["sex"]),
    }.items():
        with pytest.raises(MetavoxelError, match=message):
            call()
    assert not (tmp_path / "a").exists()


def test_changed_people_keep_their_standing() -> None:
    people = phantom.subjects(200, 3, diagnosis=True)
    numbers = NUMBERS
    older = phantom.changed(people, age=85.0)
    assert np.allclose(phantom.changed(people, age=people["age"])[numbers], people[numbers])
    assert np.allclose(phantom.changed(older, age=people["age"])[numbers], people[numbers])
    assert (older["age"] == 85).all() and (older["sex"] == people["sex"]).all()
    young = people["age"] < 60
    assert (older["ventricles_percent"] > people["ventricles_percent"])[young].all()
    assert (older["brain_percent"] < people["brain_percent"])[young].all()
    assert np.allclose(older["icv_ml"], people["icv_ml"])
    men = phantom.changed(people, sex="M")
    assert (men["icv_ml"] > people["icv_ml"])[people["sex"] == "F"].all()
    with pytest.raises(MetavoxelError, match="levels are F, M"):
        phantom.changed(people, sex="X")
