"""Encode once, ask many: the trunk sees the images alone, tokens read it, the decoder reads the tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from metavoxel.clocks import once
from metavoxel.codecs import STRICT
from metavoxel.errors import MetavoxelError
from metavoxel.nets.blocks import LevelEmbedding, conv, level_features, pointwise, zero
from metavoxel.nets.tokens import Memory, Tokens, TokenSpec
from metavoxel.nets.unet import Decoder, Encoder, Features

HINTS, FINISH = 8, 32
"""Numbers that the decoder leaves of each entry for the last layers to read, and how wide these are."""
ENTRIES = 8192
"""Of an image that the last layers work on at a time: what lies between them then stays in a processor's cache."""


@settings(frozen=True, config=STRICT)
class NetSettings:
    """Sizes of the joint network."""

    architecture: Literal["joint"] = "joint"
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels at each depth of the trunk; each depth halves the grid."""
    blocks: int = Field(default=1, ge=1)
    patch: int = Field(default=2, ge=1)
    """Voxels to a side that the first layer takes together."""
    token_width: int = 128
    token_depth: int = Field(default=3, ge=1)
    heads: int = 4
    registers: int = Field(default=4, ge=1)
    factors: int | None = Field(default=None, ge=1)
    """Normal factors in what is said of a number: several may tell humps and skewed laws. Default: 4 in tables; 1 beside
    images, where more were not tried."""
    value_waves: int = Field(default=0, ge=0)
    """Waves of a number's value, of up to a quarter of so many periods an sd, that its token carries beside the value. What
    a few hundred people say of one another is told worse with them: each is known by heart."""

    def __post_init__(self) -> None:
        if self.token_width % self.heads:
            raise MetavoxelError(f"token_width {self.token_width} must be a multiple of heads ({self.heads})")


@dataclass(frozen=True)
class Scan:
    """Features of a batch of scans, with what the tokens read of them."""

    features: Features
    memory: Memory
    shown: Tensor
    """(rows,): how much of the images is seen, from 0, nothing, to 1."""

    def rows(self, index: Tensor) -> "Scan":
        """Only these scans."""
        return Scan(self.features.rows(index), self.memory.rows(index), self.shown[index])


class Finish(nn.Module):
    """The last word on every entry by itself, from what the decoder says of it beside what was expected of it: an edge of
    what is possible is sharper than a coarse grid can tell."""

    def __init__(self, dims: int, expected: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.look, self.head = conv(dims, HINTS + expected, FINISH, 1), zero(conv(dims, FINISH, channels, 1))

    def forward(self, decoded: Tensor, expected: Tensor) -> Tensor:
        """decoded (rows, channels + HINTS, *grid), expected (rows, ..., *grid) -> raw (rows, channels, *grid)."""
        raw, hints = decoded.split([self.channels, HINTS], 1)
        seen = torch.cat([hints, expected], 1).flatten(2)
        said = [pointwise(self.head, nn.functional.silu(pointwise(self.look, part))) for part in seen.split(ENTRIES, 2)]
        return raw + torch.cat(said, 2).reshape(raw.shape)


class JointNet(nn.Module):
    """Raw outputs for every variable; `denoiser` turns them into clean predictions.

    images: name -> channels, all on one grid of `dims` axes. Any grid goes: it is padded inside. expected: numbers that say
    what was expected of each entry (see `finish`).
    """

    def __init__(
        self, settings: NetSettings, dims: int, images: dict[str, int], scalars: Sequence[TokenSpec], expected: int
    ) -> None:
        super().__init__()
        self.images = dict(images)
        s, trunk = settings, bool(images)
        embedding = 4 * s.widths[0]
        if trunk:
            seen = 2 * sum(images.values()) + 2 * len(images)
            shape = (s.widths, s.blocks, s.patch, embedding)
            self.levels = nn.ModuleList(LevelEmbedding(embedding) for _ in images)
            self.encoder = Encoder(dims, seen, *shape)
            channels = sum(images.values())
            self.decoder = Decoder(dims, channels + HINTS, *shape, tokens=s.token_width)
            self.last = Finish(dims, expected * channels, channels)
        self.tokens = Tokens(
            scalars, s.token_width, s.token_depth, s.heads, s.registers,
            memory=s.widths[-1] if trunk else None, embedding=embedding if trunk else None,
            factors=s.factors or (1 if trunk else 4), value_waves=s.value_waves,
        )  # fmt: skip

    def trunk_matrices(self) -> list[Tensor]:
        """The weights that carry the images' features, for `muon`: convolutions and linear layers of encoder and decoder.

        What carries levels and tokens into the trunk is left out: trained so, it made long runs diverge.
        """
        if not self.images:
            return []
        layers = [*self.encoder.named_modules(), *self.decoder.named_modules()]
        kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
        told = ("film", "pooled", "position")
        return [x.weight for name, x in layers if isinstance(x, kinds) and name.rsplit(".")[-1] not in told]

    def encode(self, images: dict[str, Tensor], times: dict[str, Tensor]) -> Scan:
        """images (rows, 2 channels, *grid): the entries and their deviations; times (rows, 1, *grid) -> Scan."""
        maps, seen = [], []
        embedding = torch.zeros(())
        for level, name in zip(self.levels, self.images):
            t = once(times[name])
            shown = torch.where(t < 1, images[name], 0.0)  # an absent image is noise: it is not even seen
            voxels = shown[:, :1]
            maps += [shown, t.expand_as(voxels), (t <= 0).to(t.dtype).expand_as(voxels)]
            thinned = _thinned(t)
            seen.append(1 - thinned.mean(1))
            summary = level(level_features(thinned).mean(1))
            embedding = summary if embedding.dim() == 0 else embedding + summary
        features = self.encoder(torch.cat(maps, 1), embedding)
        memory = self.tokens.remember(features.memory, features.embedding, features.summary)
        return Scan(features, memory, torch.stack(seen).mean(0))

    def attend(
        self, scalars: dict[str, Tensor], times: dict[str, Tensor], scan: Scan | None, *, only_asked: bool = False
    ) -> Tensor:
        """Scalars (n,) and their levels (n,), n a multiple of the scan's rows -> tokens (n, scalars, width); only_asked:
        those of what is known mean nothing."""
        memory = scan.memory if scan is not None else self.tokens.remember(None, None, None)
        return self.tokens(scalars, times, memory, only_asked=only_asked)

    def decode(self, scan: Scan, tokens: Tensor) -> Tensor:
        """tokens: of as many rows as the scan, or of none -> what `finish` reads of every entry of all images."""
        return self.decoder(scan.features, torch.cat([tokens, self.tokens.told(scan.memory)], 1)).float()

    def finish(self, decoded: Tensor, expected: Sequence[Tensor]) -> dict[str, Tensor]:
        """expected: of each image (rows, expected * channels, *grid) -> one raw value for every entry of every image:
        (rows, channels, *grid)."""
        raw = self.last(decoded, torch.cat(list(expected), 1)).float()
        return dict(zip(self.images, raw.split(list(self.images.values()), 1)))


def _thinned(t: Tensor) -> Tensor:
    """A level map (rows, 1, *grid) -> (rows, points): every few entries; most maps hold one or two levels."""
    for axis, size in enumerate(t.shape[2:], start=2):
        t = t.index_select(axis, torch.arange(0, size, max(1, size // 8), device=t.device))
    return t.flatten(1)
