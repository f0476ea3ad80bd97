"""Heads for the tests of preparation: MNI's brain at 4 mm, moved, with a drift and noise, stripped or inside of a skull."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from metavoxel.data.volume import Volume, write_volume
from metavoxel.prepare.resample import around, resample
from metavoxel.prepare.template import load_template


def moved(degrees: tuple[float, float, float] = (0, 0, 0), shift: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """(4, 4): turns about the middle of the template's brain, then shifts, mm."""
    template = load_template()
    middle = template.affine[:3, :3] @ np.argwhere(template.mask).mean(axis=0) + template.affine[:3, 3]
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = middle + shift - matrix[:3, :3] @ middle
    return matrix


def head(seed: int = 0, move: np.ndarray | None = None, *, whole: bool = False, spacing: float = 4.0) -> Volume:
    """A brain of 1,000 units, drifting by a fifth from one side to the other, with noise inside of it (2 %).

    `whole`: inside of a dark skull and a bright scalp, with noise around it.
    """
    template, rng = load_template(), np.random.default_rng(seed)
    move = np.eye(4) if move is None else move
    shape, box = around(template.mask, move @ template.affine, spacing, 24.0)
    back = np.linalg.inv(move)
    brain = resample(template.image, template.affine, shape, box, back, order=1) * 1000
    inside = resample(template.mask, template.affine, shape, box, back, order=1) >= 0.5
    drift = np.linspace(0.9, 1.1, shape[0])[:, None, None]
    array = brain * inside * drift
    if whole:
        depth = ndimage.distance_transform_edt(~inside) * spacing
        array += 1400 * ((depth > 8) & (depth <= 16))
        inside = np.ones_like(inside)
    array = np.abs(array + rng.normal(0, 20, shape) * inside)
    return Volume(array.astype(np.float32), box)


def brain(volume: Volume, move: np.ndarray | None = None) -> np.ndarray:
    """The true brain's voxels in `head(move=move)`."""
    template = load_template()
    back = None if move is None else np.linalg.inv(move)
    return resample(template.mask, template.affine, volume.shape, volume.affine, back, order=1) >= 0.5


def cohort(root: Path, n: int = 2, *, whole: bool = False) -> Path:
    """A BIDS folder of n such heads, tilted by a few degrees; masks of whole ones under derivatives/."""
    rows = ["participant_id\tage\tsex"]
    for i in range(1, n + 1):
        person, move = f"sub-{i:02d}", moved((4.0 * i, 2.0, -3.0), (5.0, -8.0 * i, 12.0))
        volume = head(i, move, whole=whole)
        for folder, name, array in (
            (root, "T1w", volume.array),
            (root / "derivatives" / "masks", "desc-brain_mask", brain(volume, move).astype(np.float32)),
        ):
            if folder == root or whole:
                anat = folder / person / "anat"
                anat.mkdir(parents=True)
                write_volume(Volume(array, volume.affine), anat / f"{person}_{name}.nii.gz")
        rows.append(f"{person}\t{30 + i}\t{'FM'[i % 2]}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root
