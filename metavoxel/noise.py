"""Counter-based randomness: the numbers of draw i are a function of (seed, i, call, entry) and of nothing else.

A generator that is advanced as it is used gives other numbers when the batch size changes. Hashing a counter
(splitmix64, Steele et al. 2014) does not, and runs as a few integer operations on any device.
"""

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_M1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_M2 = -7723592293110705685  # 0x94D049BB133111EB
_LOW32 = (1 << 32) - 1


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts int64 arithmetically; the hash wants zeros shifted in


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


def several(rows: Tensor, n: int) -> Tensor:
    """(rows * n,) indices of n streams of its own for each of these (rows,), one row's side by side."""
    return (rows[:, None] * n + torch.arange(n, device=rows.device)).flatten()


class Noise:
    """A stream of random numbers for the draws `index` (n,), int64. Every call continues each draw's own stream."""

    def __init__(self, seed: int, index: Tensor) -> None:
        self.index = index.long()
        self._key = _mix(_mix(self.index * _GOLDEN + seed % (1 << 62)) + _GOLDEN)
        self._calls = 0

    def __len__(self) -> int:
        return len(self.index)

    def _bits(self, count: int) -> Tensor:
        self._calls += 1
        key = _mix(self._key + self._calls)
        entry = torch.arange(1, count + 1, device=key.device)
        return _mix(key[:, None] + entry * _GOLDEN)

    def every(self, step: int) -> "Noise":
        """A stream for the first of each `step` draws: numbers that a group of draws shares."""
        shared = Noise(0, self.index[::step])
        shared._key, shared._calls = self._key[::step], self._calls
        return shared

    def uniform(self, *shape: int) -> Tensor:
        """(n, *shape) on the open interval (0, 1)."""
        bits = self._bits(math.prod(shape))
        # 23 bits and a half fit float32 exactly; with 24, adding the half rounds the largest up to 1
        return ((_shift(bits, 41).float() + 0.5) / (1 << 23)).reshape(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """(n, *shape) standard normal; Box-Muller makes two from one 64-bit hash."""
        count = math.prod(shape)
        bits = self._bits((count + 1) // 2)
        radius = torch.sqrt(-2 * torch.log((_shift(bits, 32).float() + 0.5) / (1 << 32)))
        angle = (bits & _LOW32).float() * (2 * math.pi / (1 << 32))
        pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
        return pairs.flatten(1)[:, :count].reshape(-1, *shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """(n, *shape) whole numbers in 0..high-1."""
        return (self.uniform(*shape) * high).long().clamp_(max=high - 1)

    def choice(self, probabilities: Tensor) -> Tensor:
        """(n,) states drawn from each row of `probabilities` (n, states), by inverting the distribution function."""
        cumulative = probabilities.cumsum(-1)
        return (self.uniform(1) * cumulative[:, -1:] >= cumulative).sum(-1).clamp_(max=probabilities.shape[-1] - 1)
