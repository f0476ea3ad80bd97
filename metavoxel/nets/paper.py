"""The paper's network: the U-Net of latent diffusion (Rombach et al. 2022), in two or three dimensions.

Scalars enter as further input channels and by cross-attention; their outputs leave from the bottleneck. All entries share
one time. MONAI's U-Net does not hand out its bottleneck, hence this one, of `blocks`.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from metavoxel.clocks import LDM_STEPS
from metavoxel.codecs import STRICT
from metavoxel.errors import MetavoxelError
from metavoxel.nets.blocks import Attention, Grow, ResBlock, Shrink, conv, crop, norm, pad_to_multiple, zero

LONGEST_PERIOD = 10_000


@settings(frozen=True, config=STRICT)
class PaperSettings:
    """Sizes of the paper's network, which the paper does not give."""

    architecture: Literal["paper"] = "paper"
    widths: tuple[int, ...] = Field(default=(32, 64, 128), min_length=1)
    """Channels at each depth; each depth after the first halves the grid."""
    blocks: int = Field(default=1, ge=1)
    attending: int = Field(default=2, ge=0)
    """How many of the coarsest depths attend, to themselves and to the scalars. The bottleneck always does."""
    heads: int = Field(default=4, ge=1)
    context: int = Field(default=64, ge=1)
    """Width of the scalars' tokens."""

    def __post_init__(self) -> None:
        for width in self.widths[-max(1, self.attending) :]:
            if width % self.heads:
                raise MetavoxelError(f"width {width} of a depth that attends must be a multiple of heads ({self.heads})")


class SpatialTransformer(nn.Module):
    """Every entry of a grid reads the others and the scalars' tokens, if there are any; starts as the identity."""

    def __init__(self, dims: int, width: int, heads: int, context: int | None) -> None:
        super().__init__()
        self.norm, self.enter = norm(width), conv(dims, width, width, 1)
        self.own_norm, self.own = nn.LayerNorm(width), Attention(width, width, heads)
        self.cross_norm = nn.LayerNorm(width) if context else None
        self.cross = Attention(width, context, heads) if context else None
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.leave = zero(conv(dims, width, width, 1))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """x (n, width, *grid), context (n, scalars, context) -> (n, width, *grid)."""
        points = self.enter(self.norm(x)).flatten(2).transpose(1, 2)
        normed = self.own_norm(points)
        points = points + self.own(normed, self.own.remember(normed))
        if self.cross is not None and self.cross_norm is not None and context is not None:
            points = points + self.cross(self.cross_norm(points), self.cross.remember(context))
        points = points + self.mlp(self.mlp_norm(points))
        return x + self.leave(points.transpose(1, 2).reshape(x.shape))


class Layer(nn.Module):
    """A residual block told the time and, with a transformer, the scalars."""

    def __init__(self, block: ResBlock, transformer: SpatialTransformer | None) -> None:
        super().__init__()
        self.block, self.transformer = block, transformer

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        x = self.block(x, time)
        return x if self.transformer is None else self.transformer(x, context)


class ScalarHead(nn.Module):
    """A scalar's outputs: two (GroupNorm-SiLU-Conv) blocks with a skip, then the grid's average (paper, "Model")."""

    def __init__(self, dims: int, width: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(norm(width), nn.SiLU(), conv(dims, width, width))
        self.second = nn.Sequential(norm(width), nn.SiLU(), conv(dims, width, outputs))
        self.skip = conv(dims, width, outputs, 1)

    def forward(self, bottleneck: Tensor) -> Tensor:
        """(n, width, *grid) -> (n, outputs)."""
        answers = self.second(self.first(bottleneck)) + self.skip(bottleneck)
        return answers.flatten(2).float().mean(-1)


class PaperNet(nn.Module):
    """channels: of the images together; outputs: how many numbers each scalar is answered with. Any grid goes."""

    def __init__(self, settings: PaperSettings, dims: int, channels: int, outputs: Sequence[int]) -> None:
        super().__init__()
        s, time = settings, 4 * settings.widths[0]
        self.factor = 2 ** (len(s.widths) - 1)
        self.frequencies = s.widths[0] // 2
        context = s.context if outputs else None
        self.time = nn.Sequential(nn.Linear(2 * self.frequencies, time), nn.SiLU(), nn.Linear(time, time))
        self.tokens = nn.ModuleList(nn.Linear(1, s.context) for _ in outputs)

        def layer(inside: int, width: int, attends: bool) -> Layer:
            transformer = SpatialTransformer(dims, width, s.heads, context) if attends else None
            return Layer(ResBlock(dims, inside, width, time), transformer)

        self.stem = conv(dims, channels + len(outputs), s.widths[0])
        self.downs, self.shrinks = nn.ModuleList(), nn.ModuleList()
        skips = [s.widths[0]]
        attends = [depth >= len(s.widths) - s.attending for depth in range(len(s.widths))]
        for depth, width in enumerate(s.widths):
            if depth:
                self.shrinks.append(Shrink(dims, skips[-1], skips[-1], 2))
                skips.append(skips[-1])
            insides = [skips[-1], *(width,) * (s.blocks - 1)]
            self.downs.append(nn.ModuleList(layer(inside, width, attends[depth]) for inside in insides))
            skips += [width] * s.blocks
        coarsest = s.widths[-1]
        self.middle = nn.ModuleList([layer(coarsest, coarsest, True), layer(coarsest, coarsest, False)])
        self.heads = nn.ModuleList(ScalarHead(dims, coarsest, count) for count in outputs)
        self.ups, self.grows = nn.ModuleList(), nn.ModuleList()
        inside = coarsest
        for depth, width in reversed(list(enumerate(s.widths))):
            layers = nn.ModuleList()
            for _ in range(s.blocks + 1):
                layers.append(layer(inside + skips.pop(), width, attends[depth]))
                inside = width
            self.ups.append(layers)
            if depth:
                self.grows.append(Grow(dims, width, width, 2))
        self.norm, self.head = norm(s.widths[0]), zero(conv(dims, s.widths[0], channels))

    def trunk_matrices(self) -> list[Tensor]:
        """What Muon may train: nothing. The paper's network is AdamW's."""
        return []

    def forward(self, images: Tensor, scalars: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """images (n, channels, *grid), scalars (n, count) about -1 to 1, t (n,) in [0, 1] -> raw outputs: of the images,
        (n, channels, *grid), and of each scalar, (n, its outputs)."""
        time, context = self._told(scalars, t)
        x, skips = self._down(images, scalars, time, context)
        answers = [head(x) for head in self.heads]
        for number, layers in enumerate(self.ups):
            if number:
                x = self.grows[number - 1](x)
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(torch.cat([x, skips.pop()], 1), time, context)
        raw = self.head(F.silu(self.norm(x))).float()
        return crop(raw, images.shape[2:]), answers

    def answers(self, images: Tensor, scalars: Tensor, t: Tensor) -> list[Tensor]:
        """The scalars' raw outputs alone, which leave from the bottleneck: less than half the work of `forward`."""
        x, _ = self._down(images, scalars, *self._told(scalars, t))
        return [head(x) for head in self.heads]

    def _told(self, scalars: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embedding of the time, and the scalars' tokens, if there are any."""
        context = None
        if self.tokens:
            context = torch.stack([token(scalars[:, i, None]) for i, token in enumerate(self.tokens)], 1)
        return self.time(self._waves(t)), context

    def _down(
        self, images: Tensor, scalars: Tensor, time: Tensor, context: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The bottleneck, and what goes round it."""
        x = pad_to_multiple(images, self.factor)
        maps = scalars.reshape(*scalars.shape, *(1,) * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
        x = self.stem(torch.cat([x, maps], 1))
        skips = [x]
        for depth, layers in enumerate(self.downs):
            if depth:
                x = self.shrinks[depth - 1](x)
                skips.append(x)
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(x, time, context)
                skips.append(x)
        for layer in self.middle:
            x = layer(x, time, context)
        return x, skips

    def _waves(self, t: Tensor) -> Tensor:
        """(n,) -> (n, 2 frequencies): sines and cosines of the index t LDM_STEPS (Ho et al. 2020)."""
        powers = torch.arange(self.frequencies, device=t.device) / self.frequencies
        angles = t[:, None] * LDM_STEPS * torch.exp(-math.log(LONGEST_PERIOD) * powers)
        return torch.cat([angles.cos(), angles.sin()], 1)
