"""Small changes that leave every fact true: a batch at a time, driven by the step's own noise so that runs can resume."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metavoxel.noise import Noise

MAX_SHIFT = 0.06
"""Of half the grid's width, to each side."""
MAX_ANGLE = math.radians(6)


def augment(images: Tensor, noise: Noise) -> Tensor:
    """(n, 1, *grid), background 0 -> the same people flipped left to right, moved a little, at another contrast.

    Moves are rigid on a cubic grid: size is a fact (intracranial volume tells sex), so nothing is scaled.
    """
    n, dims = len(images), images.dim() - 2
    flipped = torch.where((noise.uniform() < 0.5).reshape(-1, *(1,) * (dims + 1)), images, images.flip(2))
    moved = F.grid_sample(flipped, _rigid(n, dims, images.shape, noise), align_corners=False, padding_mode="zeros")
    gain, gamma = (torch.exp(0.08 * noise.normal(1)).reshape(-1, *(1,) * (dims + 1)) for _ in range(2))
    return moved.sign() * moved.abs() ** gamma * gain


def _rigid(n: int, dims: int, shape: torch.Size, noise: Noise) -> Tensor:
    """Sampling grid of a random rotation and shift; angles are kept true on grids that are not cubes."""
    matrix = torch.eye(dims, device=noise.index.device).expand(n, -1, -1)
    for first in range(dims):
        for second in range(first + 1, dims):
            angle = (2 * noise.uniform() - 1) * MAX_ANGLE
            turn = torch.eye(dims, device=angle.device).repeat(n, 1, 1)
            turn[:, first, first] = turn[:, second, second] = angle.cos()
            turn[:, first, second], turn[:, second, first] = -angle.sin(), angle.sin()
            matrix = matrix @ turn
    size = torch.tensor(
        shape[:1:-1], dtype=matrix.dtype, device=matrix.device
    )  # torch orders coordinates last axis first
    matrix = matrix * size[None, None] / size[None, :, None]
    shift = (2 * noise.uniform(dims, 1) - 1) * MAX_SHIFT
    return F.affine_grid(torch.cat([matrix, shift], -1), list(shape), align_corners=False)
