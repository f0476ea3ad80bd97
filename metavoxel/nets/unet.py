"""The image trunk: a U-Net cut in two. The encoder depends on images and their levels only; the decoder reads tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metavoxel.nets.blocks import Attention, Grow, ResBlock, Shrink, conv, crop, norm, pad_to_multiple, waves, zero

POSITION_WAVES = 4
LAYOUT = 5


@dataclass(frozen=True)
class Features:
    """What the encoder leaves for the tokens and the decoder."""

    grid: tuple[int, ...]
    skips: list[Tensor]
    """One (rows, width, *grid) for each block on the way down; the last is the coarsest."""
    embedding: Tensor
    """(rows, embedding): the images' levels."""
    memory: Tensor
    """(rows, length, memory width): the coarsest grid's features, and every depth's average."""
    summary: Tensor
    """(rows, memory width): the averages and the coarse layout in one vector. Attention takes thousands of steps to find
    them, and most of what a scan says of a person is there: volumes are averages, and where they are is layout."""

    def rows(self, index: Tensor) -> "Features":
        """Only these rows."""
        skips = [skip[index] for skip in self.skips]
        return Features(self.grid, skips, self.embedding[index], self.memory[index], self.summary[index])


class Layout(nn.Module):
    """What is where, on a grid of LAYOUT entries to a side whatever the image's: (rows, width, *grid) -> (rows, width)."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        few = max(8, width // 4)
        self.pool = nn.AdaptiveAvgPool3d(LAYOUT) if dims == 3 else nn.AdaptiveAvgPool2d(LAYOUT)
        self.squeeze, self.mix = conv(dims, width, few, 1), nn.Linear(few * LAYOUT**dims, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.pool(self.squeeze(x)).flatten(1))


class Encoder(nn.Module):
    """Images with their level maps (rows, channels, *grid) -> Features."""

    def __init__(
        self, dims: int, channels: int, widths: Sequence[int], blocks: int, patch: int, embedding: int
    ) -> None:
        super().__init__()
        self.factor = patch * 2 ** (len(widths) - 1)
        self.stem = Shrink(dims, channels, widths[0], patch) if patch > 1 else conv(dims, channels, widths[0])
        self.depths = nn.ModuleList()
        self.downs = nn.ModuleList()
        for above, width in zip((widths[0], *widths), widths):
            self.downs.append(nn.Identity() if not self.depths else Shrink(dims, above, width, 2))
            self.depths.append(nn.ModuleList(ResBlock(dims, width, width, embedding) for _ in range(blocks)))
        self.mix = SpatialAttention(widths[-1])
        self.position = nn.Linear(2 * POSITION_WAVES * dims, widths[-1])
        self.averages = nn.ModuleList(nn.Linear(width, widths[-1]) for width in widths)
        self.layout = Layout(dims, widths[-1])
        self.summary = nn.LayerNorm(widths[-1])

    def forward(self, x: Tensor, embedding: Tensor) -> Features:
        grid = tuple(x.shape[2:])
        x = self.stem(pad_to_multiple(x, self.factor))
        skips, averages = [], []
        for down, depth, average in zip(self.downs, self.depths, self.averages):
            x = down(x)
            for block in depth:  # type: ignore[attr-defined]
                x = block(x, embedding)
                skips.append(x)
            averages.append(average(x.flatten(2).mean(-1)))
        coarse = self.mix(x)
        skips[-1] = coarse
        tokens = coarse.flatten(2).transpose(1, 2) + self.position(_positions(coarse))
        averaged = torch.stack(averages, 1)
        return Features(grid, skips, embedding, torch.cat([tokens, averaged], 1),
                        self.summary(averaged.sum(1) + self.layout(coarse)))  # fmt: skip


class Decoder(nn.Module):
    """Features and tokens -> one value for each entry of the images (rows, channels, *grid)."""

    def __init__(
        self, dims: int, channels: int, widths: Sequence[int], blocks: int, patch: int, embedding: int, tokens: int
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.reads = Attention(widths[-1], tokens, heads=max(1, widths[-1] // 32))
        self.reads_norm = norm(widths[-1])
        self.pooled = nn.Linear(tokens, embedding)
        self.depths, self.ups = nn.ModuleList(), nn.ModuleList()
        for width, above in zip(reversed(widths), (*reversed(widths[:-1]), None)):
            self.depths.append(nn.ModuleList(ResBlock(dims, 2 * width, width, embedding) for _ in range(blocks)))
            self.ups.append(Grow(dims, width, above, 2) if above else nn.Identity())
        self.norm = norm(widths[0])
        self.head = zero(Grow(dims, widths[0], channels, patch) if patch > 1 else conv(dims, widths[0], channels))

    def forward(self, features: Features, tokens: Tensor) -> Tensor:
        """tokens: (rows, length, width)."""
        embedding = features.embedding + self.pooled(tokens.mean(1))
        skips = list(features.skips)
        x = skips[-1]
        query = self.reads_norm(x).flatten(2).transpose(1, 2)
        x = x + self.reads(query, self.reads.remember(tokens)).transpose(1, 2).reshape(x.shape)
        for depth, up in zip(self.depths, self.ups):
            for block in depth:  # type: ignore[attr-defined]
                x = block(torch.cat([x, skips.pop()], 1), embedding)
            x = up(x)
        return crop(self.head(nn.functional.silu(self.norm(x))), features.grid)


class SpatialAttention(nn.Module):
    """Self-attention over the positions of a coarse grid, with a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = norm(width), Attention(width, width, heads=max(1, width // 32))
        zero(self.attention.out)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, width, *grid), same out."""
        points = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.attention(points, self.attention.remember(points)).transpose(1, 2).reshape(x.shape)


def _positions(x: Tensor) -> Tensor:
    """(length, features) of the grid's coordinates, each from -1 to 1."""
    axes = [torch.linspace(-1, 1, size, device=x.device, dtype=x.dtype) for size in x.shape[2:]]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    return waves(points, POSITION_WAVES).flatten(-2)
