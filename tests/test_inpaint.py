"""Filling in a hole: exact outside of it, no seam at its border, one line for a mask that cannot be meant."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

import metavoxel as mv
from metavoxel.data.conform import Grid, conform
from metavoxel.data.volume import Volume, read_volume, write_volume
from metavoxel.inpaint import inpaint, on_entries, seamless, without
from metavoxel.schema import Latent


@pytest.fixture(scope="module")
def model(untrained: Path) -> mv.MetaVoxel:
    return mv.load(untrained)


@pytest.fixture
def masked(scan: Path, tmp_path: Path):
    def make(*box: slice, affine: np.ndarray | None = None, shape: tuple[int, ...] | None = None) -> Path:
        volume = read_volume(scan)
        array = np.zeros(shape or volume.shape, np.uint8)
        array[box] = 1
        nib.save(nib.Nifti1Image(array, volume.affine if affine is None else affine), tmp_path / "mask.nii.gz")
        return tmp_path / "mask.nii.gz"

    return make


BOX = (slice(6, 14), slice(12, 24), slice(10, 20))


def test_seamless_undoes_any_offset_and_any_harmonic_lift() -> None:
    rng = np.random.default_rng(0)
    scan, hole = rng.normal(size=(12, 14, 10)).astype(np.float32), np.zeros((12, 14, 10), bool)
    hole[3:9, 2:12, 0:7] = True  # touches the edge of the volume
    x, y, z = np.meshgrid(*map(np.arange, scan.shape), indexing="ij")
    np.testing.assert_allclose(seamless(scan, scan + 5, hole), scan, atol=2e-3)
    hole[..., 0] = False
    slope = (0.3 * x - 0.2 * y + 0.1 * z).astype(np.float32)
    np.testing.assert_allclose(seamless(scan, scan + slope, hole), scan, atol=5e-3)
    assert np.array_equal(seamless(scan, scan + 5, np.zeros_like(hole)), scan)


def test_completion_is_the_scan_outside_and_continuous_at_the_border(model, scan, masked) -> None:
    mask = masked(*BOX)
    filled = inpaint(model, scan, mask, n=2, steps=2)
    original, hole = read_volume(scan), filled.hole
    for draw in range(2):
        made = filled.completion(draw)
        assert np.array_equal(made.array[~hole], original.array[~hole])
        assert np.allclose(made.affine, original.affine)
        assert not np.array_equal(made.array[hole], original.array[hole])
    sd = filled.std().array
    assert (sd[~hole] == 0).all() and sd[hole].mean() > 0
    two = np.stack([filled.completion(draw).array for draw in range(2)])
    np.testing.assert_allclose(sd, two.std(0, ddof=1), atol=1e-2)
    assert set(filled.draws.values) == {"T1w", "age", "sex"}


def test_what_is_under_the_mask_is_never_seen(model, scan, masked, tmp_path) -> None:
    mask = masked(*BOX)
    volume = read_volume(scan)
    array = volume.array.copy()
    array[BOX] = np.random.default_rng(0).uniform(0, 3000, array[BOX].shape)
    write_volume(Volume(array, volume.affine), tmp_path / "lesion.nii.gz")
    healthy, lesioned = (inpaint(model, path, mask, n=1, steps=2, seed=1) for path in (scan, tmp_path / "lesion.nii.gz"))
    np.testing.assert_array_equal(healthy.draws["T1w"], lesioned.draws["T1w"])
    np.testing.assert_allclose(healthy.completion(0).array, lesioned.completion(0).array, atol=0.05)


def test_a_latent_that_sees_the_hole_is_wanted() -> None:
    latent = Latent(channels=2, grid=(4, 4, 4), mean=(0.0, 0.0), sd=(1.0, 1.0), marginal_variance=1.0)
    image = mv.Image("T1w", (16, 16, 16), codec="autoencoder", latent=latent)
    hole = torch.zeros(16, 16, 16, dtype=torch.bool)
    hole[0, 0, 0] = True
    assert on_entries(hole, image)[0, 0].nonzero().tolist() == [[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]


def test_command_writes_completions_their_spread_and_a_picture(run, untrained, scan, masked, tmp_path) -> None:
    out = tmp_path / "out"
    status, error = run("inpaint", untrained, scan, masked(*BOX), "--given", "sex=F", "-n", 2, "--steps", 2, "-o", out)
    assert status == 0, error
    names = {path.name for path in out.iterdir()}
    assert names == {"samples.csv", "completion-0000_T1w.nii.gz", "completion-0001_T1w.nii.gz", "T1w_sd.nii.gz", "T1w.png"}
    assert list(pd.read_csv(out / "samples.csv").columns) == ["draw", "age"]
    assert read_volume(out / "completion-0000_T1w.nii.gz").shape == read_volume(scan).shape
    assert run("inpaint", untrained, scan, masked(*BOX), "-n", 1, "--steps", 1, "-o", out)[0] == 0
    assert {path.name for path in out.iterdir()} == {"samples.csv", "completion-0000_T1w.nii.gz", "T1w.png"}


def test_masks_that_cannot_be_meant(refused, untrained, scan, masked, tmp_path) -> None:
    def told(mask: Path) -> str:
        return refused("inpaint", untrained, scan, mask, "-o", tmp_path / "out")

    assert "the same everywhere" in told(masked(slice(0, 0)))
    assert "differs from the scan's" in told(masked(slice(2, 4), shape=(10, 10, 10)))
    assert "lies elsewhere" in told(masked(*BOX, affine=np.diag([5.0, 5.0, 5.0, 1.0])))
    assert "leaves nothing of the head" in told(masked(slice(0, 31)))
    assert "no such file" in told(tmp_path / "none.nii.gz")
    brain = read_volume(scan)
    tissue = (brain.array > 0.3 * brain.array.max()).astype(np.float32)
    write_volume(Volume(tissue, brain.affine), tmp_path / "brain.nii.gz")
    assert "leaves nothing of the head" in told(tmp_path / "brain.nii.gz")
    given = "--given", f"T1w={scan}"
    assert "cannot be given as well" in refused("inpaint", untrained, scan, masked(*BOX), "-o", tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


def test_a_mask_wider_than_the_head_does_not_move_the_brain(scan) -> None:
    volume = read_volume(scan)
    half = np.zeros(volume.shape, np.float32)
    half[: volume.shape[0] // 2] = 1
    grid = Grid((32, 40, 32), (5.0, 5.0, 5.0))
    whole = conform(volume, grid).centre
    shift = conform(without(volume, Volume(half, volume.affine)), grid).centre - whole
    assert np.abs(shift).max() < 6, "a mask over half the field of view moved the middle of the head"
