"""Scalars as tokens: each carries its value, its own level and its name; they read the scan and one another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metavoxel.nets.blocks import Attention, LevelEmbedding, level_features, waves, zero

VALUE_WAVES = 8


@dataclass(frozen=True)
class TokenSpec:
    """One scalar as the network sees it: a number (states 0) or a class with this many states and levels."""

    name: str
    states: int = 0
    levels: int = 0


class TokenBlock(nn.Module):
    """Self-attention, cross-attention to the scan if there is one, and an MLP, modulated by each token's level (AdaLN)."""

    def __init__(self, width: int, memory: int | None, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.own = Attention(width, width, heads)
        self.scan = Attention(width, memory, heads) if memory else None
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = zero(nn.Linear(width, 9 * width))

    def forward(self, x: Tensor, level: Tensor, memory: tuple[Tensor, Tensor] | None) -> Tensor:
        """x (n, length, width), level the same or of one row; memory: keys and values from `scan.remember`, of n rows or a
        divisor of n."""
        parts = self.modulation(nn.functional.silu(level)).chunk(9, -1)
        normed = self._modulate(x, *parts[:2])
        x = x + parts[2] * self.own(normed, self.own.remember(normed))
        if self.scan is not None and memory is not None:
            x = x + parts[5] * self.scan(self._modulate(x, *parts[3:5]), memory)
        return x + parts[8] * self.mlp(self._modulate(x, *parts[6:8]))

    def _modulate(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.norm(x) * (1 + scale) + shift


class Tokens(nn.Module):
    """A small transformer over the scalars and a few registers (room for what the decoder should be told)."""

    def __init__(
        self,
        specs: Sequence[TokenSpec],
        width: int,
        depth: int,
        heads: int,
        registers: int,
        memory: int | None,
        embedding: int | None,
    ) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.identity = nn.Parameter(torch.randn(len(self.specs) + registers, width) * 0.02)
        self.values = nn.ModuleList(
            nn.Embedding(spec.states, width) if spec.states else nn.Linear(1 + 2 * VALUE_WAVES, width)
            for spec in self.specs
        )
        self.level = LevelEmbedding(width) if self.specs else None
        self.image_level = nn.Linear(embedding, width) if embedding else None
        self.summary = nn.Linear(memory, width) if memory else None
        self.blocks = nn.ModuleList(TokenBlock(width, memory, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        # not started at zero: with a bare zero head, numbers that show faintly in a scan were not learned for hours
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, spec.levels or 1)) for spec in self.specs
        )

    def remember(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the scan for every block: (rows, length, memory width) each."""
        return [block.scan.remember(memory) for block in self.blocks]  # type: ignore[union-attr, operator]

    def forward(
        self,
        values: dict[str, Tensor],
        times: dict[str, Tensor],
        memory: list[tuple[Tensor, Tensor]] | None,
        embedding: Tensor | None,
        summary: Tensor | None,
    ) -> Tensor:
        """values, times: (n,) each; memory, embedding, summary of n rows or a divisor of n -> tokens (n, length, width)."""
        n = len(next(iter(values.values()))) if values else len(embedding)  # type: ignore[arg-type]
        x = self.identity.expand(n, -1, -1)
        level = torch.zeros_like(x[:1])
        if self.level is not None:
            t = torch.stack([times[spec.name] for spec in self.specs], 1)
            own = torch.stack([self._value(i, values[spec.name]) for i, spec in enumerate(self.specs)], 1)
            shown = torch.where((t < 1)[..., None], own, 0.0)  # an absent value is noise: not even its number is seen
            spare = (0, 0, 0, x.shape[1] - len(self.specs))
            x = x + nn.functional.pad(shown, spare)
            level = level + nn.functional.pad(self.level(level_features(_once(t))), spare)
        if self.image_level is not None and embedding is not None:
            told = self.image_level(_once(embedding))[:, None]
            level = level + (told if len(told) == 1 else told.repeat_interleave(n // len(told), 0))
        if self.summary is not None and summary is not None:
            x = x + self.summary(summary).repeat_interleave(n // len(summary), 0)[:, None]
        for i, block in enumerate(self.blocks):
            x = block(x, level, memory[i] if memory else None)
        return self.norm(x)

    def _value(self, i: int, x: Tensor) -> Tensor:
        if self.specs[i].states:
            return self.values[i](x)
        return self.values[i](torch.cat([x[:, None], waves(x, VALUE_WAVES)], -1))

    def read(self, tokens: Tensor) -> dict[str, Tensor]:
        """Raw answers: (n,) for a number, (n, levels) for a class."""
        raw = {spec.name: self.heads[i](tokens[:, i]).float() for i, spec in enumerate(self.specs)}
        return {spec.name: raw[spec.name] if spec.levels else raw[spec.name][:, 0] for spec in self.specs}


def _once(x: Tensor) -> Tensor:
    """One row where all are alike, as the levels of many draws are: modulation is most of what a token costs."""
    return x[:1] if bool((x == x[:1]).all()) else x
