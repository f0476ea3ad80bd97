"""Between a scan's own grid and the model's: `conform` goes there, `restore` comes back.

Both are separable: one small matrix per axis holds the anti-aliasing and the interpolation, so a scan is resampled by
three matrix products. Rotation is not corrected; the model's axes are the scan's own, in the order and direction
nearest to RAS.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from metavoxel.data.volume import Volume
from metavoxel.errors import MetavoxelError

HEAD_MM = 130.0  # a brain is about so high; what is further below the top of the head is face and neck
FOREGROUND_STEP_MM = 3.0  # the foreground is looked for on every voxel of about this spacing: fast, and fine enough
CLOSED = 3  # voxels of that spacing; half as wide as the gaps in a head that are closed
UNSEEN = 1e-8  # a share of a voxel's weight that float32 does not hold
BRIGHT_PERCENTILE = 99.5  # of the foreground; it becomes 1


@dataclass(frozen=True)
class Grid:
    """The model's grid, axes right, anterior, superior: `shape` in voxels, `spacing` in mm."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Geometry:
    """What `conform` did to a scan, enough to undo it.

    `grid_affine` (4, 4): index on the grid -> the scan's world, mm. `source_affine`, `source_shape`: the scan as
    stored.
    Intensity on the grid = (the scan's - `offset`) * `slope`.
    """

    grid_shape: tuple[int, int, int]
    grid_affine: np.ndarray
    source_shape: tuple[int, int, int]
    source_affine: np.ndarray
    offset: float
    slope: float

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Geometry:
        """The inverse of `to_dict`, also after a passage through JSON."""
        x, y, z = record["grid_shape"]
        i, j, k = record["source_shape"]
        return cls(
            grid_shape=(x, y, z),
            grid_affine=np.asarray(record["grid_affine"], dtype=np.float64),
            source_shape=(i, j, k),
            source_affine=np.asarray(record["source_affine"], dtype=np.float64),
            offset=record["offset"],
            slope=record["slope"],
        )


@dataclass(frozen=True, eq=False)
class Conformed:
    """A scan on the model's grid: `array` float32, grid's shape, background 0, bright tissue about 1, not clipped."""

    array: np.ndarray
    geometry: Geometry

    @property
    def affine(self) -> np.ndarray:
        """(4, 4): index on the grid -> the scan's world, mm."""
        return self.geometry.grid_affine

    @property
    def centre(self) -> np.ndarray:
        """(3,): the middle of the grid in the scan's world, mm."""
        middle = (np.asarray(self.array.shape) - 1) / 2
        return self.affine[:3, :3] @ middle + self.affine[:3, 3]


def conform(volume: Volume, grid: Grid, centre: np.ndarray | None = None) -> Conformed:
    """Bring a scan onto the model's grid, centred on the brain, with the background at 0 and bright tissue at 1.

    The offset is the median of the background, the slope takes the 99.5th percentile of the foreground to 1; brighter
    voxels stay above 1. Parts of the grid outside of the scan are 0. Parts of the scan outside of the grid are lost.
    The centre is that of the foreground's top 130 mm: within 2 mm of the brain's own where the scan is skull-stripped;
    in a whole head it lies some 9 mm in front of the brain's. Along axes where the scan has the grid's own spacing it is
    moved by whole voxels: interpolation would blur it, and blur looks like atrophy. Sequences of one session that are
    aligned in the world are given the `centre` (3,), world mm, of the first, so that they stay aligned.
    """
    array, affine = to_ras(volume.array, volume.affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    found, offset, bright = _landmarks(array, spacing)
    middle = found if centre is None else np.linalg.solve(affine[:3, :3], centre - affine[:3, 3])
    slope = 1.0 / (bright - offset)
    step = np.asarray(grid.spacing) / spacing
    corner = middle - step * (np.asarray(grid.shape) - 1) / 2
    to_scan = np.eye(4)
    to_scan[:3, :3] = np.diag(step)
    to_scan[:3, 3] = np.where(np.isclose(step, 1, atol=1e-4), np.round(corner), corner)
    geometry = Geometry(grid.shape, affine @ to_scan, volume.shape, volume.affine, offset, slope)
    return Conformed(_resample(array - np.float32(offset), to_scan, grid.shape) * np.float32(slope), geometry)


def restore(array: np.ndarray, record: Conformed | Geometry) -> Volume:
    """The inverse of `conform`: an array on the grid, back on the scan's own voxels and in its own intensity units.

    Voxels outside of the grid's field of view get the scan's background (0 for a skull-stripped scan).
    """
    geometry = record.geometry if isinstance(record, Conformed) else record
    native = _to_source(array, geometry) / np.float32(geometry.slope) + np.float32(geometry.offset)
    return Volume(native, geometry.source_affine)


def restore_change(array: np.ndarray, geometry: Geometry) -> Volume:
    """A difference between two arrays on the grid, on the scan's own voxels and in its units; 0 outside of the grid."""
    return Volume(_to_source(array, geometry) / np.float32(geometry.slope), geometry.source_affine)


def grid_mask(mask: Volume, record: Conformed | Geometry) -> np.ndarray:
    """A mask drawn on a scan (any value but 0 is inside), on the model's grid: each voxel's share inside, 0 to 1.

    Raises MetavoxelError when the mask does not lie on the scan's own voxels.
    """
    geometry = record.geometry if isinstance(record, Conformed) else record
    name, fix = mask.path or "the mask", "draw the mask on the scan, or resample it to the scan"
    if mask.shape != geometry.source_shape:
        raise MetavoxelError(f"{name}: size {mask.shape} differs from the scan's {geometry.source_shape}; {fix}")
    if not lie_together(mask.shape, mask.affine, geometry.source_affine, 0.5 * mask.spacing.min()):
        raise MetavoxelError(f"{name}: lies elsewhere than the scan (other affine); {fix}")
    array, affine = to_ras((mask.array != 0).astype(np.float32), mask.affine)
    return _resample(array, np.linalg.inv(affine) @ geometry.grid_affine, geometry.grid_shape)


def restore_mask(mask: np.ndarray, record: Conformed | Geometry) -> Volume:
    """A mask on the model's grid, back on the scan's own voxels, as 0 and 1."""
    geometry = record.geometry if isinstance(record, Conformed) else record
    return Volume((_to_source(mask, geometry) >= 0.5).astype(np.float32), geometry.source_affine)


def _to_source(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Resample from the grid to the scan's stored voxels; 0 outside of the grid's field of view."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    if array.shape != geometry.grid_shape:
        raise ValueError(f"array has shape {array.shape}, the grid {geometry.grid_shape}")
    stored = io_orientation(geometry.source_affine)
    ras_shape = np.empty(3, dtype=int)
    ras_shape[stored[:, 0].astype(int)] = geometry.source_shape
    _, ras_affine = to_ras(np.broadcast_to(np.float32(0), geometry.source_shape), geometry.source_affine)
    to_grid = np.linalg.inv(geometry.grid_affine) @ ras_affine
    ras = _resample(np.asarray(array, dtype=np.float32), to_grid, tuple(ras_shape.tolist()))
    return np.ascontiguousarray(apply_orientation(ras, ornt_transform(axcodes2ornt("RAS"), stored)))


def to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip axes, no interpolation, so that they run nearest to right, anterior, superior."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    stored = io_orientation(affine)
    return apply_orientation(array, stored), affine @ inv_ornt_aff(stored, array.shape)


def lie_together(shape: tuple[int, ...], one: np.ndarray, other: np.ndarray, within_mm: float) -> bool:
    """Whether two affines (4, 4) put an array of this shape at the same place of the world."""
    corners = np.array([[0, 0, 0, 1], [*shape, 1]]).T
    return np.allclose(one @ corners, other @ corners, atol=within_mm)


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask (x, y, z), bool; none of one that is empty."""
    from scipy import ndimage

    labels, n = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]) if n else mask


def filled(mask: np.ndarray) -> np.ndarray:
    """A mask (x, y, z) without its holes. `binary_fill_holes` takes four times as long."""
    from scipy import ndimage

    pieces, _ = ndimage.label(~np.pad(mask, 1))
    return pieces[1:-1, 1:-1, 1:-1] != pieces[0, 0, 0]


def closed(mask: np.ndarray, times: int) -> np.ndarray:
    """A mask (x, y, z), grown and shrunk `times` times by the six neighbours of a voxel. In one piece, a shift a neighbour:
    `binary_closing` takes fifteen times as long. What is shifted over an end of a line falls on the margin."""
    margin = times + 1
    wide = np.pad(mask, margin)
    steps = [stride // wide.itemsize for stride in wide.strides]
    line = wide.ravel()
    for meet in [np.logical_or] * times + [np.logical_and] * times:
        before = line.copy()
        for step in steps:
            meet(line[step:], before[:-step], out=line[step:])
            meet(line[:-step], before[step:], out=line[:-step])
    inner = slice(margin, -margin)
    return line.reshape(wide.shape)[inner, inner, inner]


def blur_for(step: np.ndarray | float) -> np.ndarray:
    """Standard deviation, in input voxels, of the Gaussian that makes the input's point spread, taken as one voxel at half
    maximum, that of an output whose voxels are `step` as large (Cardoso et al., MICCAI 2015); 0 where it is finer."""
    return np.sqrt(np.maximum(np.square(step) - 1, 0) / (8 * np.log(2)))


def _resample(array: np.ndarray, to_input: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resample along the axes. `to_input` (4, 4): output index -> input index; its 3 x 3 part is diagonal.

    Products of sparse matrices: most weights are 0, and the threads of a dense one go on spinning after it, in the way of a
    network that answers one scan while the next is read.
    """
    from scipy.sparse import csr_array

    for axis, n in enumerate(shape):
        weights = csr_array(_weights(array.shape[axis], n, to_input[axis, axis], to_input[axis, 3]))
        lines = np.moveaxis(array, axis, 0)
        array = np.moveaxis((weights @ lines.reshape(len(lines), -1)).reshape(n, *lines.shape[1:]), 0, axis)
    return np.ascontiguousarray(array)


def _weights(n_in: int, n_out: int, step: float, start: float) -> np.ndarray:
    """(n_out, n_in) float32: the value at input coordinate `start + step * j`, for each output index j.

    Linear interpolation, after a Gaussian where the output is coarser (step > 1; see `blur_for`). Each row sums to 1,
    or to 0 when it lies outside of the input's outermost voxels.
    """
    x = start + step * np.arange(n_out)
    inside = (x >= -0.5) & (x <= n_in - 0.5)
    x = np.clip(x, 0, n_in - 1)
    index = np.arange(n_in)
    linear = np.clip(1 - np.abs(x[:, None] - index), 0, None) * inside[:, None]
    if step <= 1:
        return linear.astype(np.float32)
    blur = np.exp(-0.5 * ((index[:, None] - index) / blur_for(step)) ** 2)
    blur[blur < UNSEEN] = 0
    return (linear @ (blur / blur.sum(axis=1, keepdims=True))).astype(np.float32)


def _landmarks(array: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Centre of the brain (3,) in voxels, intensity of the background, intensity of bright tissue; for a RAS array."""
    step = np.maximum(1, np.round(FOREGROUND_STEP_MM / spacing)).astype(int)
    coarse = array[:: step[0], :: step[1], :: step[2]]
    if coarse.min() == coarse.max():  # something tiny in an empty field
        coarse, step = array, np.ones(3, dtype=int)
    threshold = _otsu(coarse)
    head = largest_piece(coarse > threshold)
    offset = float(np.median(coarse[coarse <= threshold]))
    bright = float(np.percentile(coarse[head], BRIGHT_PERCENTILE))
    # Skull, sinuses and ventricles are dark: close them, so that the centre is that of the head and not of its fat.
    head = filled(closed(head, CLOSED))
    top = np.flatnonzero(head.any(axis=(0, 1)))[-1]
    head[:, :, : max(0, top + 1 - round(HEAD_MM / (spacing[2] * step[2])))] = False
    return np.argwhere(head).mean(axis=0) * step, offset, bright


def _otsu(values: np.ndarray) -> float:
    """The threshold with the largest variance between the classes (Otsu 1979), free of the brightest half percent."""
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    if high <= low:
        high = float(values.max())
    counts, edges = np.histogram(np.clip(values, low, high), bins=256, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    mass = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass[:-1] / below - (mass[-1] - mass[:-1]) / above) ** 2
    return float(edges[1 + np.nanargmax(between)])
