"""A small 3-D U-Net that tells inside from outside: brain from head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metavoxel.nets.blocks import conv, norm


class OutlineNet(nn.Module):
    """(n, 1, x, y, z) -> logits of the same shape; each side divides by `multiple`.

    `channels`: of each level, finest first. Two convolutions a level on the way down, one on the way up (Ronneberger et al.
    2015), each normalised over groups.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.multiple = 2 ** (len(channels) - 1)
        above = (1, *channels[:-1])
        self.down = nn.ModuleList(nn.Sequential(*_layer(i, o), *_layer(o, o)) for i, o in zip(above, channels))
        self.up = nn.ModuleList(nn.Sequential(*_layer(i + o, o)) for o, i in pairwise(channels))
        self.logits = conv(3, channels[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for level in self.down[:-1]:
            skipped.append(level(x))
            x = F.max_pool3d(skipped[-1], 2)
        x = self.down[-1](x)
        for level, skip in zip(reversed(self.up), reversed(skipped)):
            x = level(torch.cat([skip, F.interpolate(x, scale_factor=2.0)], 1))
        return self.logits(x)


def _layer(inside: int, outside: int) -> tuple[nn.Module, ...]:
    return conv(3, inside, outside), norm(outside), nn.LeakyReLU(0.01, inplace=True)
