"""The slow drift of intensity across a scan, by N4 (Tustison et al. 2010)."""

from __future__ import annotations

import numpy as np

from metavoxel.data.volume import Volume
from metavoxel.errors import MetavoxelError
from metavoxel.prepare.resample import resample
from metavoxel.prepare.threads import one_itk_thread

SHRINK_MM = 4.0  # the drift is smooth: at this spacing N4 takes seconds, and finds the same
ITERATIONS = (50, 50, 50)
MIN_VOXELS = 8  # along each axis after shrinking; cubic splines need some room


@one_itk_thread()
def estimate_field(array: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> Volume:
    """The field that multiplies the true intensities, geometric mean 1 over the mask, on a grid of about 4 mm.

    array, mask (x, y, z): a scan and its brain. Deterministic. Raises MetavoxelError when the scan is too small.
    """
    import SimpleITK as sitk

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    factor = np.maximum(1, np.round(SHRINK_MM / spacing)).astype(int)
    coarse, inside = _shrunk(array * mask, factor), _shrunk(mask.astype(np.float32), factor)
    usable = (inside > 0.5) & (coarse > 0)
    if min(coarse.shape) < MIN_VOXELS or not usable.any():
        size = " x ".join(f"{n * mm:.0f}" for n, mm in zip(array.shape, spacing))
        raise MetavoxelError(f"a field of view of {size} mm is too small for bias correction; give a scan of a whole brain")
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations(ITERATIONS)
    image = sitk.GetImageFromArray(coarse / np.maximum(inside, 0.5))
    image.SetSpacing((spacing * factor)[::-1].tolist())
    where = sitk.GetImageFromArray(usable.astype(np.uint8))
    where.CopyInformation(image)
    corrector.Execute(image, where)
    log = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    to_scan = np.diag([*factor.astype(float), 1.0])
    to_scan[:3, 3] = (factor - 1) / 2
    return Volume(np.exp(log - log[usable].mean()).astype(np.float32), affine @ to_scan)


def field_on(field: Volume, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """The field on a scan's own voxels, float32 `shape`, linear in between and constant beyond its grid."""
    return resample(field.array, field.affine, shape, affine, order=1, beyond="nearest")


def _shrunk(array: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Means over blocks of `factor` voxels; what does not fill a block at the far ends is left out."""
    x, y, z = (n // f for n, f in zip(array.shape, factor))
    a, b, c = factor
    blocks = array[: x * a, : y * b, : z * c].astype(np.float32).reshape(x, a, y, b, z, c)
    return blocks.mean(axis=(1, 3, 5))
