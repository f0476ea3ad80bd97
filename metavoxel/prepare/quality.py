"""What can be measured of one prepared scan, and its picture. The cohort's flags are made of these in qc.py."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from metavoxel.prepare.resample import resample
from metavoxel.prepare.template import EXTENT, ORIGIN, Template, grid

THUMBNAIL_MM = 9.8  # coarse enough to hold ten thousand in memory, fine enough to show what is amiss; symmetric about x = 0
THUMBNAIL_WHITE = 1.5  # intensity of 255; prepared brains are at most about 1
CUTS_MM = (-6.0, -20.0, 8.0)  # planes of the picture: x, y, z in the template's space
BRAIN_COLOUR, TEMPLATE_COLOUR = (255, 150, 40), (70, 150, 255)
ENLARGED = 2  # pixels of the picture for one voxel of 2 mm


def measures(
    array: np.ndarray, mask: np.ndarray, affine: np.ndarray, aligned: np.ndarray, template: Template
) -> dict[str, Any]:
    """Numbers of a scan (x, y, z) with its brain `mask`; `aligned`: the mask on the template's grid of 2 mm, bool.

    brain_volume_ml; template_overlap, see `overlap`; signal_to_noise, median of the brain over the noise's standard
    deviation; cut_cm2, area of brain on the outermost slices of the scan.
    """
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    faces = [np.take(mask, end, axis=axis).sum() * voxel.prod() / voxel[axis] for axis in range(3) for end in (0, -1)]
    return {
        "brain_volume_ml": round(float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000), 1),
        "template_overlap": round(overlap(aligned, template), 4),
        "signal_to_noise": round(float(np.median(array[mask]) / noise(array, mask)), 2),
        "cut_cm2": round(float(max(faces)) / 100, 2),
    }


def overlap(aligned: np.ndarray, template: Template) -> float:
    """Dice of an aligned brain with the template's, brought to the same volume about the template's middle.

    People's heads differ by half in volume, and rigid alignment leaves them so: as they are, a well-aligned brain of 1,280
    ml overlaps by .81, and a large one that lies back to front by .86.
    """
    from scipy import ndimage

    size = (aligned.sum() / template.mask.sum()) ** (1 / 3)
    middle = np.argwhere(template.mask).mean(axis=0)
    scaled = ndimage.affine_transform(aligned.astype(np.float32), size * np.eye(3), middle - size * middle, order=1) > 0.5
    return float(2 * (scaled & template.mask).sum() / (scaled.sum() + template.mask.sum()))


def sides_disagree(path: Path) -> bool:
    """Whether the two transforms of a NIfTI header put the same voxel axis on different sides of the body."""
    import nibabel as nib

    image = nib.load(path)
    if not isinstance(image, nib.nifti1.Nifti1Pair):
        return False
    (sform, has_sform), (qform, has_qform) = image.get_sform(coded=True), image.get_qform(coded=True)
    return bool(has_sform and has_qform and nib.aff2axcodes(sform) != nib.aff2axcodes(qform))


def noise(array: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of noise that is independent between voxels, inside of the brain.

    From the median absolute second differences along the axes, which anatomy hardly touches (Immerkaer 1996, in 3-D).
    """
    from scipy import ndimage

    inside = ndimage.binary_erosion(mask, iterations=1)
    second = np.asarray(array, dtype=np.float32)
    for axis in range(3):
        second = ndimage.correlate1d(second, [1.0, -2.0, 1.0], axis=axis)
    scale = 6.0**1.5  # standard deviation of the filter's output for noise of 1
    values = np.abs(second[inside if inside.any() else mask])
    return max(1.4826 * float(np.median(values)) / scale, 1e-6)


def thumbnail(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The prepared image at 9.8 mm, uint8, for comparisons over a cohort of thousands."""
    small = resample(image, affine, *grid(THUMBNAIL_MM), order=1)
    return np.clip(small * (255 / THUMBNAIL_WHITE), 0, 255).round().astype(np.uint8)


def picture(head: np.ndarray, brain: np.ndarray, template: Template) -> bytes:
    """JPEG of three planes: `head` on the template's 2 mm grid, outlines of `brain` (orange) and template (blue)."""
    from PIL import Image

    white = np.percentile(head[brain], 99.5) if brain.any() else head.max()
    shades = np.clip(head / max(float(white), 1e-6), 0, 1)
    tiles = []
    for axis, cut in enumerate(CUTS_MM):
        at = round((cut - ORIGIN[axis]) / (EXTENT[axis] / (head.shape[axis] - 1)))
        grey, inside, expected = (np.take(x, at, axis=axis).T[::-1] for x in (shades, brain, template.mask))
        grey, inside, expected = (np.kron(x, np.ones((ENLARGED, ENLARGED), x.dtype)) for x in (grey, inside, expected))
        tile = np.repeat((grey * 255).astype(np.uint8)[..., None], 3, axis=2)
        for shape, colour in ((expected, TEMPLATE_COLOUR), (inside, BRAIN_COLOUR)):
            tile[_outline(shape)] = colour
        tiles.append(tile)
    height = max(tile.shape[0] for tile in tiles)
    canvas = np.concatenate([np.pad(t, ((height - len(t), 0), (0, 0), (0, 0))) for t in tiles], axis=1)
    file = io.BytesIO()
    Image.fromarray(canvas).save(file, "JPEG", quality=80)
    return file.getvalue()


def _outline(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return mask & ~ndimage.binary_erosion(mask)
