"""Heads as no scanner made them: real ones under random contrast, position, shape, drift, slices, noise and field of view.

After SynthSeg (Billot et al., Medical Image Analysis 2023): a network that has seen every contrast is tied to none. Here a
tissue keeps a random share of its real texture, of either sign, so that real scans are among what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import SHARED
from torch import Tensor

from metavoxel.data.conform import closed, filled, largest_piece, to_ras
from metavoxel.data.volume import read_volume
from metavoxel.prepare.brain import SPACING_MM, normalised
from metavoxel.prepare.strip import Head, brain_mask

FINE_MM, COARSE_MM = 2.0, 3.0  # voxels of the sources; the fine ones are the cohorts' own
SHAPES = {SPACING_MM: (64, 80, 80), 4.0: (48, 64, 64)}  # of what is drawn, by its voxels' mm
IN_BRAIN, AROUND = 4, 5  # tissues; 0 is air
TISSUES = 1 + IN_BRAIN + AROUND


@dataclass(frozen=True, eq=False)
class Source:
    """One person on voxels of `spacing` mm (x, y, z): `image`, normalised; `tissue`, 0 air, 1 to 4 brain, 5 to 9 around;
    `brain`, each voxel's share."""

    image: Tensor
    tissue: Tensor
    brain: Tensor
    spacing: float = FINE_MM

    def coarse(self) -> Source:
        """The same person on voxels of 3 mm."""
        shape = [round(n * self.spacing / COARSE_MM) for n in self.image.shape]
        image, brain = F.interpolate(torch.stack([self.image, self.brain])[None], shape, mode="area")[0]
        tissue = F.interpolate(self.tissue[None, None], shape, mode="nearest-exact")[0, 0]
        return Source(image, tissue, brain, COARSE_MM)


def scan_of(cohort: str, person: str) -> Path:
    return SHARED / cohort / person / "anat" / f"{person}_T1w.nii.gz"


def read_head(person: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A whole head of ixi50, axes RAS: its array, its brain's regions (0 outside), its affine."""
    labels = SHARED / "ixi50" / "derivatives" / "dlmuse" / person / "anat" / f"{person}_desc-dlmuse_dseg.nii.gz"
    scan, regions = (read_volume(path) for path in (scan_of("ixi50", person), labels))
    array, affine = to_ras(scan.array, scan.affine)
    return array, to_ras(regions.array, regions.affine)[0].astype(int), affine


def whole(person: str) -> Source:
    """A head whose brain is known: regions of like brightness are one tissue; what is around is split by brightness."""
    from scipy import ndimage

    array, regions, _ = read_head(person)
    image = normalised(array)
    names = np.unique(regions)[1:]
    medians = ndimage.median(image, regions, names)
    counts = np.bincount(regions.ravel())[names]
    group = np.zeros(regions.max() + 1, int)
    group[names] = 1 + clusters(np.repeat(medians, counts), IN_BRAIN)[np.cumsum(counts) - 1]
    tissue = group[regions]
    head = filled(closed(largest_piece((image > 0.08) | (regions > 0)), 4))
    around = head & (regions == 0)
    tissue[around] = 1 + IN_BRAIN + clusters(image[around], AROUND)
    return _source(image, tissue, regions > 0)


def stripped(person: str) -> Source:
    """A brain of ds002748, which comes without its head."""
    path = scan_of("ds002748", person)
    scan = read_volume(path)
    array, affine = to_ras(scan.array, scan.affine)
    brain, _ = brain_mask(Head(array, affine, path, None), "none")
    image, tissue = normalised(array), np.zeros(array.shape, int)
    tissue[brain] = 1 + clusters(image[brain], IN_BRAIN)
    return _source(image, tissue, brain)


def _source(image: np.ndarray, tissue: np.ndarray, brain: np.ndarray) -> Source:
    return Source(torch.tensor(image), torch.tensor(tissue.astype(np.uint8)), torch.tensor(brain.astype(np.float32)))


def clusters(values: np.ndarray, k: int) -> np.ndarray:
    """(n,) 0 to k - 1, from dark to bright: k-means from the quantiles."""
    middles = np.quantile(values, (np.arange(k) + 0.5) / k)
    for _ in range(20):
        nearest = np.searchsorted((middles[1:] + middles[:-1]) / 2, values)
        middles = np.array([values[nearest == i].mean() if (nearest == i).any() else middles[i] for i in range(k)])
    return np.searchsorted((middles[1:] + middles[:-1]) / 2, values)


class Chance:
    """Random numbers of one draw, all from its seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def number(self, low: float, high: float) -> float:
        return self.uniform(low, high).item()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def happens(self, share: float) -> bool:
        return self.number(0, 1) < share

    def integer(self, high: int) -> int:
        return int(self.number(0, high))


def draw(source: Source, chance: Chance, spacing: float = SPACING_MM) -> tuple[Tensor, Tensor]:
    """image, normalised, and brain, each voxel's share: (1, 1, *SHAPES[spacing])."""
    image = _contrast(source, chance)
    if source.tissue.max() > IN_BRAIN and chance.happens(0.05):
        image = image * source.brain
    image = _slices(_blurred(image, chance.number(0, 2.4) / source.spacing), source.spacing, chance)
    volumes = torch.stack([image, source.brain, torch.ones_like(image)])[None]
    image, brain, inside = F.grid_sample(volumes, _places(source, chance, spacing), align_corners=True)[0]
    image = image * torch.exp(_smooth(chance, chance.number(0, 0.35), 4, image.shape))
    image = image + chance.number(0, 0.08) * chance.happens(0.7) * chance.normal(*image.shape)
    seen = _field_of_view(inside > 0.5, chance)
    image[seen] = torch.from_numpy(normalised(image[seen].numpy()))
    return (image * seen)[None, None], (brain * seen)[None, None]


def _contrast(source: Source, chance: Chance) -> Tensor:
    """The head's intensities: the real ones on another curve, or each tissue's own."""
    image, tissue = source.image, source.tissue.int()
    if chance.happens(0.4):
        image = image.clamp(0).pow(math.exp(0.35 * chance.normal().item()))
        if chance.happens(0.4):
            image = 1.2 - image
            return image if chance.happens(0.5) else image * (tissue > 0)
        return image
    counts = torch.bincount(tissue.flatten(), minlength=TISSUES).clamp(1)
    own = torch.bincount(tissue.flatten(), image.flatten(), minlength=TISSUES) / counts
    bright, spread = chance.uniform(0, 1, TISSUES), chance.uniform(0, 0.1, TISSUES)
    texture = chance.uniform(-1, 1, TISSUES)
    if chance.happens(0.3):  # from dark to bright or the other way, as in real sequences
        bright[1 : 1 + IN_BRAIN] = bright[1 : 1 + IN_BRAIN].sort(descending=chance.happens(0.5)).values
    if chance.happens(0.8):
        bright[0] = spread[0] = 0
        texture[0] = 1
    return (bright - texture * own)[tissue] + texture[tissue] * image + spread[tissue] * chance.normal(*image.shape)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """`sigma` in voxels."""
    reach = torch.arange(-3, 4)
    kernel = torch.exp(-0.5 * (reach / max(sigma, 0.1)) ** 2)
    kernel /= kernel.sum()
    for axis in range(3):
        shape, padding = [1] * 5, [0] * 3
        shape[2 + axis], padding[axis] = 7, 3
        image = F.conv3d(image[None, None], kernel.reshape(shape), padding=padding)[0, 0]
    return image


def _slices(image: Tensor, spacing: float, chance: Chance) -> Tensor:
    """Slices of 3 to 8 mm along one of the axes, in four of ten scans."""
    if not chance.happens(0.4):
        return image
    axis, thick = chance.integer(3), chance.number(3, 8) / spacing
    fewer = list(image.shape)
    fewer[axis] = round(fewer[axis] / thick)
    coarse = F.interpolate(image[None, None], fewer, mode="area")
    return F.interpolate(coarse, image.shape, mode="trilinear", align_corners=False)[0, 0]


def _places(source: Source, chance: Chance, spacing: float) -> Tensor:
    """(1, *SHAPES[spacing], 3): where to look up each voxel in the source, as grid_sample wants it."""
    angles = chance.uniform(-math.radians(30), math.radians(30), 3) * chance.uniform(0, 1) ** 0.5
    matrix = torch.eye(3)
    for axis, angle in enumerate(angles):
        turn = torch.eye(3)
        a, b = (i for i in range(3) if i != axis)
        turn[a, a] = turn[b, b] = angle.cos()
        turn[a, b], turn[b, a] = -angle.sin(), angle.sin()
        matrix = matrix @ turn
    size = torch.exp(chance.uniform(-0.12, 0.12) + chance.uniform(-0.1, 0.1, 3))
    shear = torch.eye(3) + chance.uniform(-0.1, 0.1, 3, 3) * (1 - torch.eye(3))
    mirror = torch.ones(3)
    mirror[0] = -1 if chance.happens(0.5) else 1
    if chance.happens(0.05):
        mirror[1 + chance.integer(2)] = -1
    matrix = torch.diag(mirror) @ matrix @ torch.diag(size) @ shear
    axes = [(torch.arange(n) - (n - 1) / 2) * spacing for n in SHAPES[spacing]]
    world = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ matrix.T + chance.uniform(-20, 20, 3)
    bend = torch.stack([_smooth(chance, chance.number(0, 5), 6, SHAPES[spacing]) for _ in range(3)], -1)
    half = (torch.tensor(source.image.shape) - 1) / 2 * source.spacing
    return ((world + bend) / half).flip(-1)[None]


def _smooth(chance: Chance, size: float, knots: int, shape: Sequence[int]) -> Tensor:
    """A smooth random field whose knots have standard deviation `size`."""
    field = size * chance.normal(1, 1, knots, knots, knots)
    return F.interpolate(field, shape, mode="trilinear", align_corners=True)[0, 0]


def _field_of_view(inside: Tensor, chance: Chance) -> Tensor:
    """Where the scan has voxels: sides are cut off, the neck most often."""
    seen = inside.clone()
    for axis, size in enumerate(inside.shape):
        for end in range(2):
            neck = axis == 2 and end == 0
            if chance.happens(0.4 if neck else 0.12):
                cut = round(size * chance.number(0, 0.45 if neck else 0.25))
                seen.narrow(axis, 0 if end == 0 else size - cut, cut).fill_(False)
    return seen
