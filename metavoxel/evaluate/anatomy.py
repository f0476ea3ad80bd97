"""Volumes of tissues in stripped T1-weighted brains, drawn or real, without training: the template's tissue maps are laid
over each brain, and each voxel's shares of background, CSF, grey and white matter follow from its place and brightness.

After unified segmentation (Ashburner & Friston, NeuroImage 2005), for voxels so large that most hold several tissues: a
voxel is two halves, each of one tissue, drawn by the maps' probabilities there; its brightness is their mean, plus noise.
The shares, the tissues' brightness and the noise are found in turns (EM).
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from functools import lru_cache
from hashlib import blake2b
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from scipy import ndimage

from metavoxel.data.cohort import Cohort
from metavoxel.data.conform import blur_for
from metavoxel.data.phantom_render import lateral_ventricles
from metavoxel.errors import MetavoxelError
from metavoxel.loading import Progress, load_scan
from metavoxel.schema import Image

VOLUMES = ("head_ml", "brain_ml", "grey_ml", "white_ml", "csf_ml", "ventricles_ml")
"""Millilitres. head = brain + csf: what the brain extraction left; brain = grey + white; csf holds the ventricles, of
which ventricles_ml are the lateral ones."""

TEMPLATE_MM, LOOKED_UP_MM = 2.0, 4.0
MARGIN = 8  # voxels of background around the template
PLACING_MM, PLACING_BLUR_MM = 8.0, 5.0  # the lattice and sharpness at which brain and template are compared
PLACING_STEPS, TURNS = 12, 8
UNCERTAIN_MM = 2.0  # about so far a brain's folds lie from the template's: the maps are blurred by it
GROWTH_MM = 4.0  # fluid in a ventricle makes fluid so far around it more probable
SOMEWHERE = 0.01  # of each tissue is possible anywhere
BRIGHTNESS = np.array([0.0, 0.25, 0.70, 1.0])  # usual T1-weighted background, CSF, grey, white
TRUST = (0.12, 0.4)  # in the usual ratios of CSF and grey to white: worth this share of a scan's voxels
FIRST_NOISE, LEAST_NOISE = 0.06, 0.02  # sd, in white matter's brightness
HALVES = list(combinations_with_replacement(range(4), 2))
MIXES = np.array([(np.eye(4)[one] + np.eye(4)[other]) / 2 for one, other in HALVES])  # (10, 4): shares of tissues
LOG_WAYS = np.array([0.0 if one == other else np.log(2.0) for one, other in HALVES])
FOREGROUND, SMALLEST_ML, LEAST_FIT = 0.1, 300.0, 0.5


@lru_cache(maxsize=1)
def _template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Background, CSF, grey, white (4, x, y, z) at 2 mm, sum 1; which CSF of a place would be the lateral ventricles', 0 to
    1; affine (4, 4). Source: ICBM 152 2009 (Fonov et al. 2011), inside of nilearn's wheel."""
    from nilearn import datasets

    load = (datasets.load_mni152_brain_mask, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    images = [function(resolution=int(TEMPLATE_MM)) for function in load]
    mask, grey, white = (np.pad(image.get_fdata(dtype=np.float32), MARGIN) for image in images)
    mask = mask > 0.5
    affine = images[0].affine.copy()
    affine[:3, 3] -= MARGIN * TEMPLATE_MM
    maps = np.stack([~mask, np.clip(1 - grey - white, 0, 1) * mask, grey * mask, white * mask])
    maps = maps / maps.sum(0)
    mm = np.moveaxis(np.indices(mask.shape), 0, -1) * TEMPLATE_MM + affine[:3, 3]
    to_ventricles = -lateral_ventricles(maps[1], ndimage.distance_transform_edt(mask) * TEMPLATE_MM, mm)
    elsewhere = (maps[1] > 0.5) & (to_ventricles > 2 * TEMPLATE_MM)
    to_others = ndimage.distance_transform_edt(~elsewhere) * TEMPLATE_MM
    # Ventricles grow into the white matter around them: fluid there is theirs if they are nearer than other fluid.
    ventricular = 1 / (1 + np.exp(np.clip(to_ventricles - to_others, -30, 30)))
    return maps, ventricular, affine


def _coarse(maps: np.ndarray, blur_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Blurred maps on voxels of 4 mm, quick to look things up in, and their affine."""
    every = round(LOOKED_UP_MM / TEMPLATE_MM)
    blurred = [ndimage.gaussian_filter(m, blur_mm / TEMPLATE_MM, mode="nearest") for m in maps]
    affine = _template()[2] @ np.diag([every, every, every, 1])
    return np.stack(blurred).astype(np.float32)[:, ::every, ::every, ::every].copy(), affine


@lru_cache(maxsize=8)
def _priors(spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """(5, x, y, z): what to expect in voxels of `spacing` mm, and whose fluid it would be; their affine."""
    maps, ventricular, _ = _template()
    priors, affine = _coarse(maps, float(np.hypot(spacing / 2.355, UNCERTAIN_MM)))
    own, _ = _coarse(ventricular[None], 0.0)
    return np.concatenate([priors, own]), affine


@lru_cache(maxsize=1)
def _target() -> tuple[np.ndarray, np.ndarray]:
    """(4, x, y, z): the template's brightness and its gradient, per mm; their affine."""
    image, affine = _coarse(np.tensordot(BRIGHTNESS, _template()[0], 1)[None], PLACING_BLUR_MM)
    return np.stack([image[0], *np.gradient(image[0], LOOKED_UP_MM)]), affine


def _look_up(maps: np.ndarray, affine: np.ndarray, mm: np.ndarray) -> np.ndarray:
    """(k, n): maps (k, x, y, z) at world points (n, 3)."""
    to_voxel = np.linalg.inv(affine)
    index = to_voxel[:3, :3] @ mm.T + to_voxel[:3, 3:]
    return np.stack([ndimage.map_coordinates(m, index, order=1, mode="nearest") for m in maps])


def _place(array: np.ndarray, affine: np.ndarray) -> np.ndarray | None:
    """(4, 4), the scan's world mm -> the template's: least squares of brightness over affine maps, by Gauss-Newton from the
    same middle and size. None where nothing resembles a brain."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    every = np.maximum(1, np.round(PLACING_MM / spacing)).astype(int)
    blur = blur_for(PLACING_BLUR_MM * 2.355 / spacing)
    seen = ndimage.gaussian_filter(array, blur)[:: every[0], :: every[1], :: every[2]]
    mm = (np.moveaxis(np.indices(seen.shape), 0, -1) * every) @ affine[:3, :3].T + affine[:3, 3]
    mm, seen = mm.reshape(-1, 3), seen.ravel()
    target, target_affine = _target()
    where = np.argwhere(target[0] > FOREGROUND) @ target_affine[:3, :3].T + target_affine[:3, 3]
    middle = mm[seen > FOREGROUND].mean(0)
    size = (seen > FOREGROUND).sum() * np.prod(spacing * every)
    linear = np.eye(3) * (len(where) * LOOKED_UP_MM**3 / size) ** (1 / 3)
    shift = where.mean(0)
    near = (np.abs(mm - middle) < 110).all(1)
    # in units of about a head's radius, so that moves and stretches weigh alike
    mm, seen = (mm[near] - middle) / 80, seen[near]
    linear = linear * 80
    fit = 0.0
    for _ in range(PLACING_STEPS):
        value, *gradient = _look_up(target, target_affine, mm @ linear.T + shift)
        gain = (value @ seen) / max(value @ value, 1e-9)
        if gain <= 0:
            return None
        error = seen / gain - value
        slopes = np.concatenate([gradient, (np.stack(gradient)[:, None] * mm.T).reshape(9, -1)])
        normal = slopes @ slopes.T
        step = np.linalg.solve(normal + 1e-5 * np.trace(normal) * np.eye(12) / 12, slopes @ error)
        shift, linear = shift + step[:3], linear + step[3:].reshape(3, 3)
        fit = 1 - error @ error / (((seen - seen.mean()) / gain) ** 2).sum()
    found = np.eye(4)
    found[:3, :3] = linear / 80
    found[:3, 3] = shift - found[:3, :3] @ middle
    return found if fit > LEAST_FIT and 0.2 < np.linalg.det(found[:3, :3]) < 5 else None


def _shares(
    seen: np.ndarray, priors: np.ndarray, own: np.ndarray, voxels: np.ndarray, shape: tuple[int, ...], reach: np.ndarray
) -> np.ndarray:
    """(4, n): shares of background, CSF, grey and white in each voxel of brightness `seen` (n,).

    voxels (n, 3): where they lie in `shape`; own (n,): whether fluid there is the lateral ventricles'; reach (3,): how far,
    in voxels, fluid in a ventricle makes fluid beside it more probable.
    """
    n, mean, noise = len(seen), priors, FIRST_NOISE
    brightness = BRIGHTNESS * np.average(seen, weights=priors[3] ** 4)
    usual = n * np.array([*TRUST, 0.0])
    for turn in range(TURNS):
        error = seen - (MIXES @ brightness)[:, None]
        log_p = MIXES @ np.log(mean) * 2 + LOG_WAYS[:, None] - error**2 / (2 * noise**2)
        p = np.exp(log_p - log_p.max(0))
        p /= p.sum(0)
        shares = MIXES.T @ p
        if turn == TURNS - 1:
            break
        # Brightness: weighted least squares, in which the usual ratios count as so many voxels more.
        inner, right = (MIXES.T * p.sum(1)) @ MIXES, shares @ seen
        right[1:] += usual * BRIGHTNESS[1:] * brightness[3]
        brightness = np.r_[0.0, np.linalg.solve(inner[1:, 1:] + np.diag(usual), right[1:])]
        error = seen - (MIXES @ brightness)[:, None]
        noise = max(float(np.sqrt((p * error**2).sum() / n)), LEAST_NOISE)
        # The maps follow the brain at hand: as much of each tissue as there is, and ventricles as large as they are.
        mean = priors * (shares.sum(1) / priors.sum(1))[:, None]
        mean /= mean.sum(0)
        fluid = np.zeros(shape, np.float32)
        fluid[tuple(voxels.T)] = shares[1] * own
        mean[1] += ndimage.gaussian_filter(fluid, reach, truncate=2.5)[tuple(voxels.T)] * own
        mean /= mean.sum(0)
    return shares


def _volumes(array: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """VOLUMES of one scan; empty where no brain is found."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    ml = float(np.prod(spacing)) / 1000
    head = array > 0.2 * np.percentile(array, 99.9)
    if head.sum() * ml < SMALLEST_ML:
        return {}
    array = (array / np.percentile(array[head], 95)).astype(np.float32)
    placed = _place(array, affine)
    if placed is None:
        return {}
    voxels = np.argwhere(ndimage.binary_dilation(array > FOREGROUND))
    to_template = placed @ affine
    priors, prior_affine = _priors(round(float(spacing.mean()), 3))
    *found, own = _look_up(priors, prior_affine, voxels @ to_template[:3, :3].T + to_template[:3, 3])
    expected = np.stack(found) + SOMEWHERE * np.array([1 / 3, 1, 1, 1])[:, None]
    expected /= expected.sum(0)
    shares = _shares(array[tuple(voxels.T)], expected, own, voxels, array.shape, GROWTH_MM / spacing)
    csf, grey, white = (float(share.sum()) * ml for share in shares[1:])
    parts = (csf + grey + white, grey + white, grey, white, csf, float(shares[1] @ own) * ml)
    return dict(zip(VOLUMES, parts, strict=True))


def volumes(
    voxels: Iterable[np.ndarray], affine: np.ndarray, progress: Progress = lambda done, total: None
) -> pd.DataFrame:
    """VOLUMES of each scan, a row each; NaN where no brain is found in one (under 300 ml, or unlike the template).

    voxels (n, x, y, z), or any iterable of scans (x, y, z), looked at one by one: stripped brains, background 0, any units,
    upright within some 20 degrees; affine (4, 4): voxel index -> mm, right, anterior, superior. Raises MetavoxelError on a
    scan that is not 3-D or not finite. About 0.05 CPU-seconds a scan at 5 mm.
    """
    total = len(voxels) if isinstance(voxels, Sized) else 0
    rows = []
    for row, scan in enumerate(voxels):
        array = np.asarray(scan, dtype=np.float32)
        if array.ndim != 3 or not np.isfinite(array).all():
            raise MetavoxelError(f"volumes: scan {row} of shape {array.shape} is not a 3-D array of finite numbers")
        rows.append(_volumes(array, np.asarray(affine, dtype=np.float64)))
        progress(row + 1, total)
    return pd.DataFrame(rows, columns=list(VOLUMES), dtype=float)


class Ruler:
    """`volumes` of scans on one grid; a scan is measured once, whoever asks."""

    def __init__(self, affine: np.ndarray) -> None:
        self.affine = affine
        self.known: dict[bytes, np.ndarray] = {}

    def __call__(self, scans: np.ndarray, progress: Progress = lambda done, total: None) -> pd.DataFrame:
        """scans: (n, x, y, z)."""
        keys = [blake2b(scan.tobytes(), digest_size=16).digest() for scan in scans]
        fresh = {key: row for row, key in enumerate(keys) if key not in self.known}
        found = volumes([scans[row] for row in fresh.values()], self.affine, progress).to_numpy()
        self.known |= dict(zip(fresh, found))
        return pd.DataFrame([self.known[key] for key in keys], columns=list(VOLUMES), dtype=float)


def cohort_volumes(cohort: Cohort, image: Image, progress: Progress = lambda done, total: None) -> pd.DataFrame:
    """participant_id (session_id) and VOLUMES of each row's scan, read onto the grid of `image` one by one.

    NaN where a row has no scan. Scans are stripped brains, as `metavoxel prepare` makes them.
    """
    rows = []
    for row, path in enumerate(cohort.scans[image.name]):
        scan = None if path is None else load_scan(path, image)
        rows.append({} if scan is None else _volumes(scan.array, scan.affine))
        progress(row + 1, len(cohort))
    table = cohort.table[[name for name in ("participant_id", "session_id") if name in cohort.table]].reset_index(drop=True)
    return table.join(pd.DataFrame(rows, columns=list(VOLUMES), dtype=float))
