"""From one grid to another through a world transform, in one interpolation."""

from __future__ import annotations

import numpy as np

from metavoxel.data.conform import blur_for


def resample(
    array: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, int, int],
    target_affine: np.ndarray,
    to_source: np.ndarray | None = None,
    order: int = 3,
    beyond: str = "constant",
) -> np.ndarray:
    """float32 `shape`: the scan `array` with `affine` (4, 4), looked up on the grid `target_affine`.

    `beyond` the scan: 0 (constant), or its outermost voxels (nearest).

    `to_source` (4, 4) takes the target's world mm to the scan's; identity when None. order: 0 nearest, 1 linear, 3 cubic
    B-spline. Along axes where the target is coarser, a Gaussian comes first (see `blur_for`); labels (order 0) are
    not smoothed.
    """
    from scipy import ndimage

    world = target_affine if to_source is None else to_source @ target_affine
    index = np.linalg.inv(affine) @ world
    source = np.asarray(array, dtype=np.float32)
    step = np.linalg.norm(index[:3, :3], axis=1)  # of the target, in voxels along each of the scan's axes
    sigma = blur_for(step)
    if order > 0 and sigma.max() > 0.1:
        source = ndimage.gaussian_filter(source, sigma, mode="nearest")
    return ndimage.affine_transform(
        source, index[:3, :3], index[:3, 3], output_shape=shape, output=np.float32, order=order, mode=beyond
    )


def around(mask: np.ndarray, affine: np.ndarray, spacing: float, margin: float) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of a RAS grid of `spacing` mm that holds the mask (some voxel true) and `margin` mm around it."""
    world = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    low, high = world.min(axis=0) - margin, world.max(axis=0) + margin
    x, y, z = (int(n) + 1 for n in np.ceil((high - low) / spacing))
    box = np.diag([spacing, spacing, spacing, 1.0])
    box[:3, 3] = low
    return (x, y, z), box
