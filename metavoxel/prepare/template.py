"""The MNI152 brain that scans are brought to: nilearn's, skull-stripped and symmetric, which comes inside its wheel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SPACE = "MNI152NLin2009aSym"
"""Its name in BIDS."""
SPACING = 2.0
ORIGIN = (-98.0, -134.0, -72.0)
EXTENT = (196.0, 232.0, 188.0)
"""World mm of the first voxel, and from there to the last voxel, of nilearn's template at 1 mm."""


@dataclass(frozen=True, eq=False)
class Template:
    """`image` (99, 117, 95) float32, 0 outside of the brain; `mask`, bool; `affine` (4, 4), voxel index -> RAS mm."""

    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray


@lru_cache(maxsize=1)
def load_template() -> Template:
    """At 2 mm. Source: nilearn, ICBM 152 nonlinear symmetric 2009a (Fonov et al. 2011)."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_template

    scan = load_mni152_template(resolution=int(SPACING))
    mask = load_mni152_brain_mask(resolution=int(SPACING)).get_fdata() > 0
    return Template(scan.get_fdata(dtype=np.float32) * mask, mask, scan.affine)


def grid(spacing: float) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the template's box in voxels of `spacing` mm, axes right, anterior, superior."""
    x, y, z = (int(length / spacing + 1e-6) + 1 for length in EXTENT)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = ORIGIN
    return (x, y, z), affine
