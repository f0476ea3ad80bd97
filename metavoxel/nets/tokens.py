"""Scalars as tokens: each carries its value, its own level and its name; they read the scan and one another.

Registers, tokens that stand for no scalar, read the scan and not the scalars: they are computed once a scan, whatever is
asked of it and how often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metavoxel.nets.blocks import Attention, LevelEmbedding, level_features, waves, zero

QUIET = 0.02
"""Spread of the first weights of names and numbers' values: loud values are soon known by heart."""
APART = 1.5
"""How far out the outermost of several factors begin, in sd over people."""

KeysValues = tuple[Tensor, Tensor]


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

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        scan: KeysValues | None,
        registers: KeysValues | None = None,
        asked: Sequence[int] | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """x (n, length, width), level the same or of one row; keys and values of the scan, and of the registers that x
        reads beside itself, of n rows or a divisor of n. Returns x after (where some are asked, of these alone), and x's
        own keys and values."""
        parts = self._parts(level)
        normed = self._modulate(x, *parts[:2])
        own = self.own.remember(normed)
        if asked is not None:
            x, normed, *parts = (part[:, asked] for part in (x, normed, *parts))
        read = own if registers is None else _beside(own, registers)
        x = x + parts[2] * self.own(normed, read)
        if self.scan is not None and scan is not None:
            x = x + parts[5] * self.scan(self._modulate(x, *parts[3:5]), scan)
        return x + parts[8] * self.mlp(self._modulate(x, *parts[6:8])), own

    def remember(self, x: Tensor, level: Tensor) -> KeysValues:
        """x's own keys and values alone, as `forward` returns them."""
        return self.own.remember(self._modulate(x, *self._parts(level)[:2]))

    def _parts(self, level: Tensor) -> Sequence[Tensor]:
        """Scale, shift and gate of its three parts."""
        return self.modulation(nn.functional.silu(level)).chunk(9, -1)

    def _modulate(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.norm(x) * (1 + scale) + shift


@dataclass(frozen=True)
class Memory:
    """What tokens read of a batch of scans: (rows, ...) each; of one row where there are no images."""

    start: Tensor
    """(rows, width): added to every token."""
    level: Tensor
    """(rows, width): of the images."""
    scan: list[KeysValues | None]
    """Of each block."""
    registers: list[KeysValues]
    """Of each block."""
    unfinished: Tensor
    """(rows, registers, width): the registers before the last block, after which only a decoder needs them."""

    def rows(self, index: Tensor) -> "Memory":
        """Only these rows."""
        scan = [None if pair is None else (pair[0][index], pair[1][index]) for pair in self.scan]
        registers = [(key[index], value[index]) for key, value in self.registers]
        return Memory(self.start[index], self.level[index], scan, registers, self.unfinished[index])


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
        factors: int,
        value_waves: int,
    ) -> None:
        super().__init__()
        self.specs, self.value_waves = tuple(specs), value_waves
        self.identity = nn.Parameter(torch.randn(len(self.specs) + registers, width) * QUIET)
        self.values = nn.ModuleList(
            nn.Embedding(spec.states, width) if spec.states else nn.Linear(1 + 2 * value_waves, width)
            for spec in self.specs
        )
        for value, spec in zip(self.values, self.specs):
            if not spec.states:
                nn.init.normal_(value.weight, std=QUIET)  # type: ignore[arg-type]
                nn.init.zeros_(value.bias)  # type: ignore[arg-type]
        self.level = LevelEmbedding(width) if self.specs else None
        self.image_level = nn.Linear(embedding, width) if embedding else None
        self.summary = nn.Linear(memory, width) if memory else None
        self.blocks = nn.ModuleList(TokenBlock(width, memory, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        number = 3 * factors if factors > 1 else 2  # means, sharpness and, of several, weights
        # not started at zero: with a bare zero head, numbers that show faintly in a scan were not learned for hours
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, spec.levels or number))
            for spec in self.specs
        )
        for spec, head in zip(self.specs, self.heads):
            if factors > 1 and not spec.levels:  # apart: where all say the same, none learns to say otherwise
                bias = head[-1].bias.data  # type: ignore[index]
                bias[:factors], bias[factors : 2 * factors] = torch.linspace(-APART, APART, factors), 1.0

    def remember(self, features: Tensor | None, embedding: Tensor | None, summary: Tensor | None) -> Memory:
        """What all questions about these scans share. features: (rows, length, memory width); all None without images."""
        rows, width = 1 if embedding is None else len(embedding), self.identity.shape[1]
        none = self.identity.new_zeros(rows, width)
        start = none if self.summary is None or summary is None else self.summary(summary)
        level = none if self.image_level is None or embedding is None else self.image_level(embedding)
        x = self.identity[len(self.specs) :] + start[:, None]
        read = [None if block.scan is None or features is None else block.scan.remember(features) for block in self.blocks]  # type: ignore[union-attr, operator]
        *layers, last = self.blocks
        registers = []
        for layer, scan in zip(layers, read):
            x, own = layer(x, level[:, None], scan)
            registers.append(own)
        registers.append(last.remember(x, level[:, None]))  # type: ignore[operator]
        return Memory(start, level, read, registers, x)

    def told(self, memory: Memory) -> Tensor:
        """What a decoder is told beside the scalars: (rows, registers, width)."""
        return self.norm(self.blocks[-1](memory.unfinished, memory.level[:, None], memory.scan[-1])[0])

    def forward(
        self, values: dict[str, Tensor], times: dict[str, Tensor], memory: Memory, *, only_asked: bool = False
    ) -> Tensor:
        """values, times: (n,) each, n a multiple of the memory's rows -> tokens (n, scalars, width).

        only_asked: tokens of what is known are needed by the others, but not any more after the last block.
        """
        if not self.specs:
            return memory.unfinished[:, :0]
        t = torch.stack([times[spec.name] for spec in self.specs], 1)
        own = torch.stack([self._value(i, values[spec.name]) for i, spec in enumerate(self.specs)], 1)
        shown = torch.where((t < 1)[..., None], own, 0.0)  # an absent value is noise: not even its number is seen
        draws = len(t) // len(memory.start)
        x = self.identity[: len(self.specs)] + shown + memory.start.repeat_interleave(draws, 0)[:, None]
        of_images = _once(memory.level)[:, None]
        level = self.level(level_features(_once(t))) + (  # type: ignore[misc]
            of_images if len(of_images) == 1 else of_images.repeat_interleave(draws, 0)
        )
        asked = (t > 0).any(0).nonzero()[:, 0].tolist() if only_asked else []
        *layers, (block, scan, registers) = zip(self.blocks, memory.scan, memory.registers)
        for layer, *read in layers:
            x, _ = layer(x, level, *read)
        if 0 < len(asked) < len(self.specs):
            x = x.index_copy(1, torch.tensor(asked, device=x.device), block(x, level, scan, registers, asked)[0])
        else:
            x, _ = block(x, level, scan, registers)
        return self.norm(x)

    def _value(self, i: int, x: Tensor) -> Tensor:
        if self.specs[i].states:
            return self.values[i](x)
        return self.values[i](torch.cat([x[:, None], waves(x, self.value_waves)], -1))

    def read(self, tokens: Tensor) -> dict[str, Tensor]:
        """Raw answers: (n, levels) for a class, (n, 2) for a number: mean and sharpness of what all else says of it."""
        with torch.autocast(tokens.device.type, enabled=False):  # an answer has more than bfloat16's three digits
            return {spec.name: self.heads[i](tokens[:, i].float()) for i, spec in enumerate(self.specs)}


def _beside(own: KeysValues, registers: KeysValues) -> KeysValues:
    """Keys and values of every draw's own tokens and of its scan's registers: (n, heads, length, width / heads)."""
    draws = len(own[0]) // len(registers[0])
    key, value = (torch.cat([one, other.repeat_interleave(draws, 0)], 2) for one, other in zip(own, registers))
    return key, value


def _once(x: Tensor) -> Tensor:
    """One row where all are alike, as the levels of many draws are: modulation is most of what a token costs."""
    return x[:1] if bool((x == x[:1]).all()) else x
