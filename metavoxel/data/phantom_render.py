"""Render phantom brains: the MNI152 template, deformed at random and grown or shrunk to given volumes.

Each tissue boundary is the zero of a smooth field in the template's space (millimetres to the surface, or log odds of
the tissue maps). A subject's field is the template's, seen through a random smooth deformation, plus ONE offset, which
is solved so that the soft volume on the output grid equals the subject's hidden number. The image therefore tells the
truth about the numbers; all else is nuisance, drawn independently of them.

Template: ICBM 2009 (Fonov et al. 2011), with grey- and white-matter probability maps, as shipped by nilearn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from metavoxel.device import place_of
from metavoxel.errors import MetavoxelError

# The hidden numbers: ICV in ml; ventricles, brain (with ventricles) and both hippocampi in % of the ICV; grey matter
# (with the hippocampi) in % of grey + white.
NUMBERS = ("icv_ml", "ventricles_percent", "brain_percent", "grey_percent", "hippocampus_percent")

_RESOLUTION = 2  # mm of the template's voxels
_MARGIN = 6  # voxels
_VENTRICLES = (0.0, -15.0, 15.0)  # MNI mm of the middle of the lateral ventricles
# Hippocampus in MNI mm: centre (+-x, y, z), semi-axes, head-down slope. The fossa around it is filled up with CSF.
_HIPPOCAMPUS, _HIPPOCAMPUS_AXES, _SLOPE_DEGREES = (27.0, -22.0, -15.0), (7.5, 18.0, 7.5), 25.0
_FOSSA = 1.25  # semi-axes of the fossa over the hippocampus's: room for the largest hippocampi
_SMALLEST_FIELD_OF_VIEW = (148.0, 185.0, 155.0)  # mm: holds the largest heads


@dataclass(frozen=True)
class Template:
    """The template, ready to be sampled.

    `fields` (6, X, Y, Z), voxels of `resolution` mm: intracranial (mm, > 0 inside), ventricle (mm), hippocampus (mm),
    sulcal CSF against tissue (log odds), grey against white (log odds), residual texture (white matter = 1).
    `origin`: MNI mm of voxel 0; `centre`: MNI mm of the middle of the head; `icv_ml`: volume of the mask.
    """

    fields: Tensor
    resolution: float
    origin: Tensor
    centre: Tensor
    icv_ml: float


@lru_cache(maxsize=4)
def template(spacing: float) -> Template:
    """Read and prepare the template for an output grid of `spacing` mm: maps are smoothed to that resolution."""
    from nilearn import datasets  # slow to import, and needed here only

    load = {"mask": datasets.load_mni152_brain_mask, "t1w": datasets.load_mni152_template}
    load |= {"grey": datasets.load_mni152_gm_template, "white": datasets.load_mni152_wm_template}
    images = {name: function(resolution=_RESOLUTION) for name, function in load.items()}
    # The brain stem reaches the template's edge: a margin ends it there.
    maps = {name: np.pad(image.get_fdata(), _MARGIN) for name, image in images.items()}
    origin = images["mask"].affine[:3, 3] - _MARGIN * _RESOLUTION
    mask = maps["mask"] > 0.5
    t1w, grey, white = (maps[name] * mask for name in ("t1w", "grey", "white"))
    csf = np.clip(1 - grey - white, 0, 1) * mask
    mm = np.moveaxis(np.indices(mask.shape), 0, -1) * _RESOLUTION + origin

    inside = _signed_distance(mask)
    ventricle = lateral_ventricles(csf, inside, mm)
    # The residual texture is what the three tissues do not explain, thalamus and pallidum above all.
    tissues = np.stack([csf, grey, white], axis=-1)[mask]
    means = np.linalg.lstsq(tissues, t1w[mask], rcond=None)[0]
    texture = np.zeros(mask.shape)
    texture[mask] = (t1w[mask] - tissues @ means) / means[2]
    # Where the template has its ventricles, a smaller ventricle leaves white matter, not sulci.
    hole = csf * _step(ventricle + 6)
    texture *= 1 - _step(ventricle + 4)
    csf, white = csf - hole, white + hole
    sigma = max(spacing / 2.355, 1.0) / _RESOLUTION
    csf, grey, white, texture = (ndimage.gaussian_filter(m, sigma) for m in (csf, grey, white, texture))
    sulci = np.log((csf + 0.02) / (grey + white + 0.02))
    cortex = np.log((grey + 0.02) / (white + 0.02))
    # Coarse output sees smooth fields: every second voxel will do, and it fits in the processor's cache.
    stride = 2 if spacing >= 2 * _RESOLUTION else 1
    fields = np.stack([inside, ventricle, _hippocampus(mm), sulci, cortex, texture]).astype(np.float32)
    corners = np.argwhere(mask)
    centre = (corners.min(0) + corners.max(0)) / 2 * _RESOLUTION + origin
    return Template(
        torch.from_numpy(fields[:, ::stride, ::stride, ::stride].copy()),
        float(_RESOLUTION * stride),
        torch.tensor(origin, dtype=torch.float32),
        torch.tensor(centre, dtype=torch.float32),
        float(mask.sum()) * _RESOLUTION**3 / 1000,
    )


def _step(mm: np.ndarray) -> np.ndarray:
    """0 to 1 over about four millimetres."""
    return 1 / (1 + np.exp(-mm))


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Millimetres to the mask's surface, positive inside, smoothed by one voxel."""
    distance = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    return ndimage.gaussian_filter(distance * _RESOLUTION, 1.0)


def lateral_ventricles(csf: np.ndarray, inside: np.ndarray, mm: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to the lateral ventricles: the piece of CSF deeper than 20 mm in their place."""
    labels, count = ndimage.label((csf > 0.5) & (inside > 20))
    large = [k for k in range(1, count + 1) if (labels == k).sum() * _RESOLUTION**3 > 5000]
    label = min(large, key=lambda k: np.linalg.norm(mm[labels == k].mean(0) - _VENTRICLES))
    return _signed_distance(labels == label)


def _hippocampus(mm: np.ndarray) -> np.ndarray:
    """Approximate signed distance (mm) to two ellipsoids, heads forward and down."""
    x, y, z = np.moveaxis(mm, -1, 0) - np.array([0, *_HIPPOCAMPUS[1:]])[:, None, None, None]
    slope = math.radians(_SLOPE_DEGREES)
    along, across = y * math.cos(slope) - z * math.sin(slope), y * math.sin(slope) + z * math.cos(slope)
    axes = _HIPPOCAMPUS_AXES
    radius = np.sqrt(((np.abs(x) - _HIPPOCAMPUS[0]) / axes[0]) ** 2 + (along / axes[1]) ** 2 + (across / axes[2]) ** 2)
    return (1 - radius) * axes[0]


@dataclass(frozen=True)
class Tissues:
    """Soft memberships on the output grid, each (n, X, Y, Z) in [0, 1]; their sum is the intracranial mask."""

    ventricles: Tensor
    hippocampus: Tensor
    csf: Tensor
    grey: Tensor  # without the hippocampus
    white: Tensor


def _solve(field: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """Membership `room * sigmoid(field + offset)`, (n, X, Y, Z), whose sum over voxels is `wanted` (n,).

    Newton's method for log(volume), nearly linear in the offset for small structures, kept inside a bracket.
    """
    low, high = torch.full_like(wanted, -60.0), torch.full_like(wanted, 60.0)
    offset = torch.zeros_like(wanted)
    flat = room.flatten(1)[:, None]
    for _ in range(30):
        member = torch.sigmoid(field.flatten(1) + offset[:, None])[..., None]
        volume = (flat @ member)[:, 0, 0]
        done = (volume - wanted).abs() < 1e-4 * wanted  # these stand still: they do not depend on the rest of the batch
        if bool(done.all()):
            break
        slope = volume - (flat @ member.square_())[:, 0, 0]
        low, high = torch.where(volume < wanted, offset, low), torch.where(volume < wanted, high, offset)
        newton = offset - (volume / wanted).log() * volume / slope
        step = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        offset = torch.where(done, offset, step)
    return room * torch.sigmoid(field + offset[:, None, None, None])


def tissues(fields: Tensor, numbers: Tensor, spacing: float) -> Tissues:
    """Partition the head: `fields` (n, 5 or more, X, Y, Z) as in Template, `numbers` (n, 5) as in NUMBERS."""
    inside, ventricle, hippocampus, sulci, cortex = fields[:, :5].unbind(1)
    icv_ml, ventricles_percent, brain_percent, grey_percent, hippocampus_percent = numbers.unbind(1)
    icv = icv_ml * 1000 / spacing**3  # in voxels
    sharp = 4 / spacing  # a boundary falls from 1 to 0 over about a voxel: partial volume
    head = _solve(inside * sharp, torch.ones_like(inside), icv)
    fossa = head * torch.sigmoid((hippocampus + (_FOSSA - 1) * _HIPPOCAMPUS_AXES[0]) * sharp)
    hippocampi = _solve(hippocampus * sharp, fossa, icv * hippocampus_percent / 100)
    ventricles = _solve(ventricle * sharp, head - fossa, icv * ventricles_percent / 100)
    rest = head - fossa - ventricles
    rim = fossa - hippocampi
    csf = _solve(2 * sulci, rest, icv * (1 - brain_percent / 100) - rim.sum((1, 2, 3)))
    solid = icv * (brain_percent - ventricles_percent) / 100
    grey = _solve(2 * cortex, rest - csf, solid * grey_percent / 100 - hippocampi.sum((1, 2, 3)))
    return Tissues(ventricles, hippocampi, csf + rim, grey, rest - csf - grey)


def _smooth(knots: Tensor, shape: tuple[int, int, int], spacing: float, length: float) -> Tensor:
    """Smooth random field (n, c, *shape) of sd 1 from standard normal `knots` (n, c, k, k, k), `length` mm apart."""
    for size in shape:
        k = knots.shape[2]
        at = (torch.arange(size, device=knots.device) - (size - 1) / 2) * spacing / length
        knot = torch.arange(k, device=knots.device) - (k - 1) / 2
        basis = torch.exp(-((at[:, None] - knot) ** 2))
        basis = basis / basis.square().sum(1, keepdim=True).sqrt()
        knots = torch.tensordot(knots, basis, dims=([2], [1]))  # the axis goes last, the next one is at 2
    return knots


@dataclass(frozen=True)
class Nuisance:
    """What differs between scans beside the hidden numbers, per subject; standard normal draws."""

    pose: Tensor  # (n, 3, 3): shift, tilt, stretch
    warp: Tensor  # (n, 3, 7, 7, 7)
    bias: Tensor  # (n, 1, 4, 4, 4)
    contrast: Tensor  # (n, 5): CSF, grey, scale, noise, depth of the bias field
    noise: Tensor  # (n, 2, X, Y, Z)

    @classmethod
    def draw(cls, seed: int, index: list[int], shape: tuple[int, int, int], device: torch.device) -> Nuisance:
        """Subject i's draws depend on (seed, i) only. They are made by numpy: the same on every device."""
        sizes = ((3, 3), (3, 7, 7, 7), (1, 4, 4, 4), (5,), (2, *shape))
        ends = np.cumsum([math.prod(size) for size in sizes])
        # The key has three parts where phantom.subjects' has two: another stream.
        rows = [np.random.default_rng([seed, i, 1]).standard_normal(ends[-1], dtype=np.float32) for i in index]
        flat = torch.from_numpy(np.stack(rows)).to(device)
        parts = flat.split([math.prod(size) for size in sizes], dim=1)
        return cls(*(part.reshape(-1, *size) for part, size in zip(parts, sizes, strict=True)))


def _positions(numbers: Tensor, nuisance: Nuisance, shape: tuple[int, int, int], spacing: float, t: Template) -> Tensor:
    """MNI mm of each voxel of each subject, (n, X, Y, Z, 3): pose, the scale given by the ICV, smooth warp."""
    device = numbers.device
    axes = [(torch.arange(size, device=device) - (size - 1) / 2) * spacing for size in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    shift, tilt, stretch = nuisance.pose.unbind(1)
    x, y, z = (tilt * math.radians(3)).unbind(1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(-1, 3, 3)
    stretch = 0.03 * (stretch - stretch.mean(1, keepdim=True))
    scale = torch.exp(stretch) * (t.icv_ml / numbers[:, :1]).pow(1 / 3)
    turn = torch.linalg.matrix_exp(skew) * scale[:, None]
    position = torch.einsum("xyzj,nij->nxyzi", grid, turn) + (t.centre.to(device) + 1.5 * shift)[:, None, None, None]
    return position + 2.5 * _smooth(nuisance.warp, shape, spacing, 35.0).movedim(1, -1)


def _intensities(parts: Tissues, texture: Tensor, nuisance: Nuisance, spacing: float) -> Tensor:
    """T1-weighted magnitudes, (n, X, Y, Z): white matter is brightest, at about 600; 0 outside the head."""
    csf, grey, scale, noise, depth = (c[:, None, None, None] for c in nuisance.contrast.unbind(1))
    liquid, solid = parts.ventricles + parts.csf, parts.grey + parts.hippocampus
    head = liquid + solid + parts.white
    signal = (0.22 + 0.03 * csf) * liquid + (0.66 + 0.02 * grey) * solid + parts.white
    signal = signal + texture * (parts.grey + parts.white)
    _, x, y, z = texture.shape
    field = _smooth(nuisance.bias, (x, y, z), spacing, 80.0)[:, 0]
    signal = signal * torch.exp(0.06 * torch.exp(0.3 * depth) * field)
    strip = (5 * (head - 0.05)).clamp(0, 1)  # a ramp: a hard threshold would turn rounding errors into voxels
    sigma = 0.025 * torch.exp(0.3 * noise)
    rician = ((signal + sigma * nuisance.noise[:, 0]).square() + (sigma * nuisance.noise[:, 1]).square()).sqrt()
    return 600 * torch.exp(0.2 * scale) * rician * strip


def render(
    rows: pd.DataFrame,
    *,
    seed: int = 0,
    shape: tuple[int, int, int] = (32, 40, 32),
    spacing: float = 5.0,
    device: str | torch.device | None = None,
    batch: int | None = None,
) -> Iterator[Tensor]:
    """Scans of `rows` (with the columns NUMBERS) in batches (n, 1, *shape), float32, white matter near 600.

    Axes are RAS, voxels `spacing` mm, the head's centre near the grid's. The nuisance of a row depends on `seed` and
    the row's index label (an integer) only, not on `batch`: the number of scans at once, by default as many as fit in
    about 1 GB (64 of 32 x 40 x 32). `device`: the GPU if there is one, unless named.
    """
    if not 0 < spacing < math.inf:
        raise MetavoxelError(f"phantom: spacing is {spacing}; pass the voxel's side in mm, for example 5")
    for size, least, axis in zip(shape, _SMALLEST_FIELD_OF_VIEW, "xyz", strict=True):
        if size * spacing < least:
            enough = math.ceil(least / spacing)
            raise MetavoxelError(
                f"phantom: {size} voxels of {spacing} mm along {axis} cut heads off; use {enough} or more"
            )
    place = place_of(device)
    step = batch or max(1, 64 * 32 * 40 * 32 // math.prod(shape))
    return (
        render_batch(rows.iloc[i : i + step], seed=seed, shape=shape, spacing=spacing, device=place)[0]
        for i in range(0, len(rows), step)
    )


@torch.inference_mode()
def render_batch(
    rows: pd.DataFrame, *, seed: int, shape: tuple[int, int, int], spacing: float, device: torch.device
) -> tuple[Tensor, Tissues]:
    """Scans (n, 1, *shape) and their tissue memberships for one batch of rows, as `render`."""
    t = template(spacing)
    numbers = torch.tensor(rows[list(NUMBERS)].to_numpy(np.float32), device=device)
    nuisance = Nuisance.draw(seed, [int(i) for i in rows.index], shape, device)
    position = _positions(numbers, nuisance, shape, spacing, t)
    extent = torch.tensor(t.fields.shape[1:], device=device) - 1
    unit = (position - t.origin.to(device)) / (t.resolution * extent) * 2 - 1
    fields = t.fields.to(device).expand(len(rows), *t.fields.shape)
    # grid_sample counts the axes backwards
    fields = F.grid_sample(fields, unit.flip(-1), padding_mode="border", align_corners=True)
    parts = tissues(fields, numbers, spacing)
    return _intensities(parts, fields[:, 5], nuisance, spacing)[:, None], parts
