"""Layers shared by trunk and tokens, in two or three dimensions."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 8


class Conv3d(nn.Conv3d):
    """PyTorch's, which leaves oneDNN aside where a batch holds one item: on a CPU that takes three to ten times as long."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        single = len(input) == 1 and input.device.type == "cpu" and input.dtype is weight.dtype is torch.float32
        if single and torch.backends.mkldnn.is_available():
            rest = self.padding, self.stride, self.dilation, self.groups
            return torch.mkldnn_convolution(input, weight, bias, *rest)  # type: ignore[arg-type]
        return super()._conv_forward(input, weight, bias)


def conv(dims: int, inside: int, outside: int, kernel: int = 3) -> nn.Module:
    """A convolution over `dims` axes that keeps the grid."""
    if dims == 2:
        return nn.Conv2d(inside, outside, kernel, padding=kernel // 2)
    layer = Conv3d(inside, outside, kernel, padding=kernel // 2)
    # an entry's channels side by side in memory: on a CPU a training step of `tiny` takes a fifth less
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return layer


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution of kernel 1 on (n, inside, entries) -> (n, outside, entries), as a matrix product: on a CPU the
    library's own convolution of a few channels at full resolution takes ten times as long."""
    assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
    return torch.baddbmm(layer.bias[None, :, None], layer.weight.flatten(1).expand(len(x), -1, -1), x)


class Shrink(nn.Module):
    """Takes `factor` entries to a side together: (n, inside, *grid) -> (n, outside, *grid / factor).

    A strided convolution whose kernel is its stride, written as a rearrangement and a matrix product: on a CPU the
    library's own is several times slower.
    """

    def __init__(self, dims: int, inside: int, outside: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.mix = conv(dims, inside * factor**dims, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, channels, *grid = x.shape
        f, dims = self.factor, len(grid)
        x = x.reshape(n, channels, *(part for size in grid for part in (size // f, f)))
        inner = [3 + 2 * axis for axis in range(dims)]
        x = x.permute(0, 1, *inner, *(axis - 1 for axis in inner))
        return self.mix(x.reshape(n, channels * f**dims, *(size // f for size in grid)))


class Grow(nn.Module):
    """The inverse arrangement: (n, inside, *grid) -> (n, outside, *grid * factor)."""

    def __init__(self, dims: int, inside: int, outside: int, factor: int) -> None:
        super().__init__()
        self.factor, self.outside = factor, outside
        self.mix = conv(dims, inside, outside * factor**dims, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, *grid = x.shape
        f, dims = self.factor, len(grid)
        x = self.mix(x).reshape(n, self.outside, *(f,) * dims, *grid)
        order = [part for axis in range(dims) for part in (2 + dims + axis, 2 + axis)]
        return x.permute(0, 1, *order).reshape(n, self.outside, *(size * f for size in grid))


def zero(layer: nn.Module) -> nn.Module:
    """Starts a layer at 0, so that its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class FullPrecisionNorm(nn.GroupNorm):
    """Group normalisation in float32: in bfloat16 the variance of a nearly constant map (an absent image) is garbage."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with the largest number of groups up to 8 that divides the channels."""
    return FullPrecisionNorm(math.gcd(8, channels), channels)


def waves(x: Tensor, frequencies: int = FREQUENCIES) -> Tensor:
    """(...) -> (..., 2 * frequencies): cos and sin of pi k x / 2, k = 1, 2, ..."""
    angles = x[..., None] * (math.pi / 2) * torch.arange(1, frequencies + 1, device=x.device)
    return torch.cat([angles.cos(), angles.sin()], -1)


def level_features(t: Tensor) -> Tensor:
    """(...) -> (..., 2 * FREQUENCIES + 2): waves of t, and whether the entry is known (t = 0) or absent (t = 1)."""
    ends = torch.stack([t <= 0, t >= 1], -1).to(t.dtype)
    return torch.cat([waves(t), ends], -1)


LEVEL_FEATURES = 2 * FREQUENCIES + 2


class LevelEmbedding(nn.Sequential):
    """Level features -> width."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(LEVEL_FEATURES, width), nn.SiLU(), nn.Linear(width, width))


class ResBlock(nn.Module):
    """Two convolutions with a skip, scaled and shifted by an embedding (n, embedding)."""

    def __init__(self, dims: int, inside: int, outside: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(inside), conv(dims, inside, outside)
        self.norm2, self.conv2 = norm(outside), zero(conv(dims, outside, outside))
        self.film = zero(nn.Linear(embedding, 2 * outside))
        self.skip = nn.Identity() if inside == outside else conv(dims, inside, outside, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(n, inside, *grid) -> (n, outside, *grid)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(F.silu(embedding)).reshape(len(x), -1, *(1,) * (x.dim() - 2)).chunk(2, 1)
        return self.skip(x) + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


class Attention(nn.Module):
    """Multi-head attention of queries over a memory whose keys and values may be computed beforehand."""

    def __init__(self, width: int, memory: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(memory, 2 * width)
        self.out = nn.Linear(width, width)

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, length, memory) -> keys and values (rows, heads, length, width / heads)."""
        key, value = self.key_value(memory).chunk(2, -1)
        return self._split(key), self._split(value)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        """x (rows * draws, length, width): the draws of a row share its memory, so they are asked as one long query."""
        rows = len(memory[0])
        query = self._split(self.query(x).reshape(rows, -1, x.shape[-1]))
        answer = F.scaled_dot_product_attention(query, *memory)
        return self.out(answer.transpose(1, 2).reshape(x.shape))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def pad_to_multiple(x: Tensor, factor: int) -> Tensor:
    """Repeats the far edge of every grid axis until `factor` divides it: any grid goes through any depth."""
    missing = [(-size) % factor for size in x.shape[2:]]
    if not any(missing):
        return x
    pads = [amount for size in reversed(missing) for amount in (0, size)]
    return F.pad(x, pads, mode="replicate")


def crop(x: Tensor, grid: Sequence[int]) -> Tensor:
    """The first `grid` entries of every grid axis: undoes `pad_to_multiple`."""
    return x[(slice(None), slice(None), *(slice(size) for size in grid))]
