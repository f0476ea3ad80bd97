"""The built-in brain extraction: on a synthetic head, on a real one that it was not trained on, and on what is no head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from heads import brain, head

from metavoxel.checkpoint import read_tensors
from metavoxel.data.conform import to_ras
from metavoxel.data.volume import read_volume
from metavoxel.errors import MetavoxelError
from metavoxel.nets.outline import OutlineNet
from metavoxel.prepare.brain import SPACING_MM, WEIGHTS, _working_grid, find_brain, normalised
from metavoxel.prepare.resample import resample
from metavoxel.prepare.strip import Head, brain_mask

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "ixi50"
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared real data are not beside this checkout")


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Dice."""
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def real_head(person: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Array, brain and affine, axes RAS."""
    scan = read_volume(DATA / person / "anat" / f"{person}_T1w.nii.gz")
    labels = read_volume(DATA / "derivatives" / "dlmuse" / person / "anat" / f"{person}_desc-dlmuse_dseg.nii.gz")
    array, affine = to_ras(scan.array, scan.affine)
    return array, to_ras(labels.array > 0, labels.affine)[0], affine


def held_out() -> list[str]:
    return read_tensors(WEIGHTS)[1]["held_out"]


# --- the network


def test_the_network_keeps_the_grid():
    net = OutlineNet((4, 8, 8))
    assert net.multiple == 4
    assert net(torch.randn(2, 1, 8, 12, 16)).shape == (2, 1, 8, 12, 16)


def test_the_weights_are_small():
    assert WEIGHTS.stat().st_size <= 5e6


@pytest.mark.parametrize("units", [lambda x: 40 * x, lambda x: 1000 - 3 * x[::-1, ::-1, ::-1]])
def test_units_do_not_matter(units):
    array = head(whole=True).array
    seen = normalised(units(array))
    assert seen.dtype == np.float32 and seen.min() >= -0.5 and seen.max() <= 1.5
    np.testing.assert_allclose(np.percentile(seen, (1, 99)), (0, 1), atol=1e-3)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.9, 5.0), (4.0, 4.0, 4.0)])
def test_the_working_grid_lies_inside_of_the_scan(spacing):
    turned = np.diag([*spacing, 1.0])
    turned[:3, :3] = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] @ turned[:3, :3]
    turned[:3, 3] = 10, 20, 30
    shape = tuple(int(180 / mm) for mm in spacing)
    small, grid = _working_grid(shape, turned)
    np.testing.assert_allclose(np.linalg.norm(grid[:3, :3], axis=0), SPACING_MM)
    to_scan = np.linalg.inv(turned) @ grid
    first, last = to_scan[:3, 3], (to_scan @ [*np.array(small) - 1, 1])[:3]
    assert (first >= -1e-6).all() and (last <= np.array(shape) - 1 + 1e-6).all()
    np.testing.assert_allclose(first, np.array(shape) - 1 - last, atol=1e-6)  # in the middle
    assert (first * spacing < SPACING_MM).all()


def test_what_is_no_head_is_refused(tmp_path):
    source = tmp_path / "sub-01_T1w.nii.gz"
    for shape, mm in (((20, 20, 20), 2.0), ((64, 64, 64), 10.0)):
        scan = Head(np.ones(shape, np.float32), np.diag([mm, mm, mm, 1]), source, None)
        with pytest.raises(MetavoxelError, match=r"sub-01_T1w.nii.gz: a field of view of .* mm is no head's"):
            brain_mask(scan, "builtin")


# --- what it finds


def test_a_synthetic_head(tmp_path, monkeypatch):
    """MNI's brain in a skull and a scalp, as no scan looks: found roughly, and by `auto` where nothing else is at hand."""
    monkeypatch.setenv("PATH", str(tmp_path))
    volume = head(1, whole=True)
    mask, way = brain_mask(Head(volume.array, volume.affine, tmp_path / "x.nii.gz", None), "auto")
    assert way == "builtin"
    assert overlap(mask, brain(volume)) > 0.85


def test_the_same_bits_on_any_number_of_threads():
    volume = head(1, whole=True)
    found = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        found.append(find_brain(volume.array, volume.affine))
        assert torch.get_num_threads() == threads
    assert found[0].tobytes() == found[1].tobytes()


def test_left_and_right_are_alike():
    volume = head(1, whole=True)
    one, other = (find_brain(array, volume.affine) > 0.5 for array in (volume.array, volume.array[::-1]))
    assert overlap(one, other[::-1]) > 0.98  # not 1: the padding's odd voxel is on the right in both


@real_data
def test_a_real_head(tmp_path):
    """One that was held out, as it is and on other voxels."""
    array, truth, affine = real_head(held_out()[0])
    mask, _ = brain_mask(Head(array, affine, tmp_path / "x.nii.gz", None), "builtin")
    assert overlap(mask, truth) > 0.95
    step = np.array([0.6, 1.0, 2.5])
    x, y, z = (int(n) for n in (np.array(array.shape) - 1) / step)
    other = affine @ np.diag([*step, 1.0])
    seen, expected = (resample(volume, affine, (x, y, z), other, order=1) for volume in (array, truth))
    mask, _ = brain_mask(Head(seen, other, tmp_path / "x.nii.gz", None), "builtin")
    assert overlap(mask, expected > 0.5) > 0.95


@real_data
@pytest.mark.slow
def test_ten_real_heads(tmp_path):
    """Those that were held out; harder ones are in bench/strip.py."""
    found = []
    for person in held_out():
        array, truth, affine = real_head(person)
        found.append(overlap(brain_mask(Head(array, affine, tmp_path / "x.nii.gz", None), "builtin")[0], truth))
    assert len(found) == 10 and np.mean(found) >= 0.96 and min(found) >= 0.93
