"""Volumes of tissues against phantoms and real segmentations whose volumes are known, and against the template itself."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

import metavoxel as mv
from metavoxel.data import phantom
from metavoxel.data.conform import Grid, conform, to_ras
from metavoxel.data.phantom_render import render
from metavoxel.data.volume import Volume, read_volume
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.anatomy import BRIGHTNESS, VOLUMES, _template, cohort_volumes, volumes
from metavoxel.latents import affine_of
from metavoxel.loading import load_scan
from metavoxel.prepare.resample import resample

IXI = Path(__file__).parents[1].parent / "shared" / "data" / "ixi50"
IMAGE = mv.Image("T1w", (32, 40, 32), (5.0, 5.0, 5.0))
AFFINE = affine_of(IMAGE)


@pytest.fixture(scope="module")
def people() -> pd.DataFrame:
    return phantom.subjects(40, 21)


@pytest.fixture(scope="module")
def scans(people: pd.DataFrame) -> np.ndarray:
    return torch.cat(list(render(people, seed=21, device="cpu")))[:, 0].numpy()


@pytest.fixture(scope="module")
def found(scans: np.ndarray) -> pd.DataFrame:
    return volumes(scans, AFFINE)


def phantom_truth(people: pd.DataFrame) -> pd.DataFrame:
    icv, brain = people["icv_ml"], people["brain_percent"] / 100
    ventricles = people["ventricles_percent"] / 100
    tissue = icv * (brain - ventricles)
    grey = tissue * people["grey_percent"] / 100
    parts = [icv, tissue, grey, tissue - grey, icv - tissue, icv * ventricles]
    return pd.DataFrame(dict(zip(VOLUMES, parts, strict=True)))


def check(found: pd.DataFrame, truth: pd.DataFrame, least: dict[str, float], bias: float) -> None:
    for name, r in least.items():
        x, y = (np.log(table[name].to_numpy()) for table in (truth, found))
        assert np.corrcoef(x, y)[0, 1] > r, name
        assert abs(y.mean() - x.mean()) < bias and 0.5 < np.polyfit(x, y, 1)[0] < 1.3, name


def test_phantoms_are_measured(people: pd.DataFrame, found: pd.DataFrame) -> None:
    least = {"head_ml": 0.99, "brain_ml": 0.97, "grey_ml": 0.94, "white_ml": 0.9, "csf_ml": 0.85, "ventricles_ml": 0.97}
    check(found, phantom_truth(people), least, bias=0.3)
    np.testing.assert_allclose(found["brain_ml"], found["grey_ml"] + found["white_ml"])
    np.testing.assert_allclose(found["head_ml"], found["brain_ml"] + found["csf_ml"])
    assert (found["ventricles_ml"] < found["csf_ml"]).all()


@pytest.mark.skipif(not IXI.exists(), reason="no ixi50 beside the project")
def test_real_brains_agree_with_their_segmentation() -> None:
    """MUSE labels: 1 CSF; 4, 11, 46, 49 to 52 ventricles; 51, 52 the lateral ones; the rest is brain."""
    grid, rows, truth = Grid(IMAGE.shape, IMAGE.spacing), [], []  # type: ignore[arg-type]
    for folder in sorted(IXI.glob("sub-*"))[::3]:
        name = folder.name
        scan = read_volume(folder / "anat" / f"{name}_T1w.nii.gz")
        labels = read_volume(IXI / "derivatives" / "dlmuse" / name / "anat" / f"{name}_desc-dlmuse_dseg.nii.gz")
        (array, affine), (regions, _) = (to_ras(v.array, v.affine) for v in (scan, labels))
        made = conform(Volume(array * (regions > 0), affine), grid)
        rows.append(volumes([made.array], made.affine).iloc[0])
        ml = np.bincount(regions.astype(int).ravel(), minlength=256) * abs(np.linalg.det(affine[:3, :3])) / 1000
        head, csf, lateral = ml[1:].sum(), ml[[1, 4, 11, 46, 49, 50, 51, 52]].sum(), ml[51:53].sum()
        truth.append({"head_ml": head, "brain_ml": head - csf, "csf_ml": csf, "ventricles_ml": lateral})
    least = {"head_ml": 0.97, "brain_ml": 0.97, "csf_ml": 0.7, "ventricles_ml": 0.95}
    check(pd.DataFrame(rows), pd.DataFrame(truth), least, bias=1.0)


def test_a_made_brain_keeps_its_volumes_wherever_it_lies_and_however_large() -> None:
    maps, _, affine = _template()
    tissue = np.eye(4, dtype=np.float32)[maps.argmax(0)]  # a brain whose every point is of one tissue
    truth = tissue.sum((0, 1, 2))[1:] * abs(np.linalg.det(affine[:3, :3])) / 1000
    grid = affine_of(mv.Image("T1w", (56, 72, 56), (4.0, 4.0, 4.0)))
    for scale, angle in ((1.0, 0.0), (0.85, np.radians(8))):
        world = np.eye(4)  # the scan's mm -> the template's
        world[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        world[:3, :3] /= scale
        world[:3, 3] = (0, -18, 5)
        scan = resample(tissue @ BRIGHTNESS, affine, (56, 72, 56), grid, world, order=1)
        got = volumes([scan], grid).iloc[0]
        np.testing.assert_allclose(got[["csf_ml", "grey_ml", "white_ml"]], truth * scale**3, rtol=0.2)
        assert got["head_ml"] == pytest.approx(truth.sum() * scale**3, rel=0.03)
        if scale == 1:
            upright = got
    # the volumes of the same brain, smaller and turned, are the same but for the scale
    np.testing.assert_allclose(got / upright, scale**3, rtol=0.1)


def test_units_directions_and_streams_do_not_matter(scans: np.ndarray, found: pd.DataFrame) -> None:
    few = found.head(3)
    pd.testing.assert_frame_equal(volumes((scan * 0.001 for scan in scans[:3]), AFFINE), few, rtol=1e-3)
    left = AFFINE @ np.array([[-1, 0, 0, 31], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    pd.testing.assert_frame_equal(volumes(scans[:3, ::-1], left), few, rtol=5e-3)


def test_what_is_no_brain_has_no_volumes() -> None:
    rng, ball = np.random.default_rng(0), np.indices(IMAGE.shape).T - (np.array(IMAGE.shape) - 1) / 2
    noise = np.abs(rng.standard_normal(IMAGE.shape))
    small = (np.linalg.norm(ball, axis=-1) < 5).T.astype(float)
    assert volumes([np.zeros(IMAGE.shape), noise, small], AFFINE).isna().all(axis=None)
    for wrong in (np.full(IMAGE.shape, np.nan), np.zeros((32, 40))):
        with pytest.raises(MetavoxelError, match="scan 1 of shape"):
            volumes([np.zeros(IMAGE.shape), wrong], AFFINE)


def test_a_cohort_is_measured_scan_by_scan(tmp_path: Path, scans: np.ndarray) -> None:
    for i in range(2):
        folder = tmp_path / f"sub-{i}" / "anat"
        folder.mkdir(parents=True)
        nib.save(nib.Nifti1Image(scans[i], AFFINE), folder / f"sub-{i}_T1w.nii.gz")
    pd.DataFrame({"participant_id": ["sub-0", "sub-1", "sub-2"], "age": [30, 40, 50]}).to_csv(
        tmp_path / "participants.tsv", sep="\t", index=False
    )
    seen: list[int] = []
    table = cohort_volumes(mv.read_cohort(tmp_path), IMAGE, lambda done, total: seen.append(done))
    assert list(table) == ["participant_id", *VOLUMES] and seen == [1, 2, 3]
    assert list(table["participant_id"]) == ["sub-0", "sub-1", "sub-2"] and table.loc[2, list(VOLUMES)].isna().all()
    one = load_scan(tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii.gz", IMAGE)
    np.testing.assert_allclose(table.loc[1, list(VOLUMES)].astype(float), volumes([one.array], one.affine).iloc[0])
