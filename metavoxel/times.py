"""Who is noised how much: training rules draw a level for every entry; a plan is the list of moves a sampler makes.

A model answers only the questions whose levels its training covered, so a rule also says what it covers.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from metavoxel.codecs import STRICT
from metavoxel.noise import Noise
from metavoxel.schema import Image, Observed, Schema, Times, full_level

FACTS_LOG_SNR, IMAGES_LOG_SNR = (-2.0, 3.5), (-6.0, 4.0)
"""log(alpha / sigma) at the second and at the last level, of numbers and of images that are walked."""

Plan = Sequence[tuple[float, float]]
"""Moves (t, s) in [0, 1]: downwards (s < t) denoises, upwards forgets again."""


@dataclass(frozen=True, config=STRICT)
class SharedTimes:
    """One t for all variables of a row (paper, "one shared time index"). Covers tied levels only.

    Values that are missing are at 1 here too, which a network that is told one time cannot see (see `paper`).
    """

    kind: Literal["shared"] = "shared"
    separate: ClassVar[bool] = False
    partial: ClassVar[float] = 0.0

    def draw(self, schema: Schema, observed: Observed, noise: Noise) -> Times:
        """Levels for len(noise) rows; a missing variable is at 1."""
        t = noise.uniform()
        times = {v.name: full_level(v, t, len(noise), t.device) for v in schema}
        return _hide_missing(times, observed)


@dataclass(frozen=True, config=STRICT)
class MixtureTimes:
    """Every row asks for one variable; the others are known (0), absent (1) or anywhere between.

    Uniform levels alone starve the corners where questions are asked ("given the scan"), hence the point masses.
    """

    read: float = Field(default=0.6, ge=0, le=1)
    """Share of rows that ask for a number or a class; the rest ask for an image. (Where a schema has both.)"""
    image_given: float = Field(default=0.85, ge=0, le=1)
    """Share of the images not asked for that are known..."""
    scalar_given: float = Field(default=0.4, ge=0, le=1)
    """...and of the numbers and classes, in rows that ask for another; rows that ask for an image use `image_given`."""
    nearly: float = Field(default=0.3, ge=0, le=1)
    """Share of the known that are shown at a level below 0.15: the clean corner alone overfits first."""
    plain: float = Field(default=0.5, ge=0, le=1)
    """Share of rows that ask for a number or a class whose other numbers and classes are known or absent, none between,
    each row with a share of its own. Of a dozen columns hardly a row would be so by chance, and every question is."""
    tied: float = Field(default=0.15, ge=0, le=1)
    """Share of rows with one level for all variables, as in plain generation."""
    partial: float = Field(default=0.15, ge=0, le=1)
    """Share of images with a region to fill in: known outside a box, half-space or ball, at their level inside."""
    kind: Literal["mixture"] = "mixture"
    separate: ClassVar[bool] = True

    def reading(self) -> "MixtureTimes":
        """The part of the mixture that asks for facts of known scans."""
        return replace(self, read=1.0, image_given=1.0, nearly=0.0, tied=0.0, partial=0.0)

    def draw(self, schema: Schema, observed: Observed, noise: Noise) -> Times:
        """Levels for len(noise) rows; a missing variable is at 1."""
        n = len(noise)
        shared, is_tied = noise.uniform(), noise.uniform() < self.tied
        is_plain, share = noise.uniform() < self.plain, noise.uniform()
        asked = self._asked(schema, noise)
        images = torch.tensor([isinstance(v, Image) for v in schema], device=asked.device)
        asks_image = images[asked]
        is_plain &= ~asks_image
        times = {}
        for position, variable in enumerate(schema):
            is_image = isinstance(variable, Image)
            kind, spread = noise.uniform(), noise.uniform()
            # who asks for an image mostly has the facts; who asks for a fact has some of the others
            given = torch.where(asks_image | is_image, self.image_given, self.scalar_given)
            known = torch.where(noise.uniform() < self.nearly, 0.15 * spread, 0.0)
            unknown = torch.where(noise.uniform() < 0.6, 1.0, spread)
            if not is_image:
                given = torch.where(is_plain, share, given)
                known = torch.where(is_plain, 0.0, known)
                unknown = torch.where(is_plain, 1.0, unknown)
            level = torch.where(kind < given, known, unknown)
            # an image asked for is at any level, since it is generated, but mostly near noise, where thousands of voxels
            # settle what no single one shows: the size of a head; a scalar is mostly asked in one evaluation
            level = torch.where(asked == position, 1 - spread**1.5 if is_image else unknown, level)
            level = torch.where(is_tied, shared, level)
            times[variable.name] = full_level(variable, level, n, level.device)
            if is_image and self.partial:
                inside = _regions(variable.level_shape[1:], noise)
                part = (noise.uniform() < self.partial) & ~is_tied
                hole = torch.where(level > 0.15, level, spread)
                filled = torch.where(inside, full_level(variable, hole, n, level.device), 0.0)
                times[variable.name] = torch.where(_like(part, filled), filled, times[variable.name])
        return _hide_missing(times, observed)

    def _asked(self, schema: Schema, noise: Noise) -> Tensor:
        """(n,) the position of the variable that each row asks for."""
        images = [i for i, v in enumerate(schema) if isinstance(v, Image)]
        scalars = [i for i, v in enumerate(schema) if not isinstance(v, Image)]
        reads = noise.uniform() < self.read
        image, scalar = (
            torch.tensor(group or images or scalars, device=reads.device)[
                noise.integers(len(group or images or scalars))
            ]
            for group in (images or scalars, scalars or images)
        )
        return torch.where(reads, scalar, image)


TimesRule = SharedTimes | MixtureTimes


def _hide_missing(times: Times, observed: Observed) -> Times:
    return {name: torch.where(_like(observed[name], t), t, 1.0) if name in observed else t for name, t in times.items()}


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """(n,) shaped to broadcast against x (n, ...)."""
    return rows.reshape(-1, *(1,) * (x.dim() - 1))


def _regions(grid: tuple[int, ...], noise: Noise) -> Tensor:
    """(n, 1, *grid) bool: a half-space, a box or a ball in each row."""
    n, dims = len(noise), len(grid)
    axes = [torch.linspace(-1, 1, size, device=noise.index.device) for size in grid]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]  # (1, dims, *grid)
    spread = (n, dims, *(1,) * dims)
    centre = (noise.uniform(dims) * 1.4 - 0.7).reshape(spread)
    size = (0.2 + 0.7 * noise.uniform(dims)).reshape(spread)
    normal = noise.normal(dims).reshape(spread)
    half = ((points - 0.5 * centre) * normal).sum(1) > 0
    box = ((points - centre).abs() < size).all(1)
    ball = ((points - centre) ** 2).sum(1) < size[:, 0] ** 2
    kind = _like(noise.integers(3), half)
    region = torch.where(kind == 0, half, torch.where(kind == 1, box, ball))
    nothing = ~region.flatten(1).any(1)  # on a coarse grid a region may fall between the entries: then all of it
    return (region | _like(nothing, region))[:, None]


def even_plan(steps: int, start: float = 1.0) -> list[tuple[float, float]]:
    """`steps` equal moves from `start` down to 0."""
    edges = [start * (1 - k / steps) for k in range(steps + 1)]
    return list(pairwise(edges))


def images_plan(steps: int) -> list[tuple[float, float]]:
    """From 1 to 0 in steps that are even in log(alpha / sigma) between IMAGES_LOG_SNR. A head's size is told where
    thousands of voxels together show through noise a hundred times their own spread; and the fine detail that a last step
    would leave out from further up is lost: draws are then more alike than they should be."""
    return _even_in_log_snr(steps, *IMAGES_LOG_SNR)


def facts_plan(steps: int) -> list[tuple[float, float]]:
    """From 1 to 0 in steps that are even in log(alpha / sigma) between FACTS_LOG_SNR, for numbers of which a denoiser tells
    the mean only: the first step tells little, the last takes what is left. What is told of a number is often a tenth to a
    half of its sd over people.

    On normal laws, by the 2M solver in 15 steps, spreads of .2, .45, .7 and 1 come out right within half a per cent, .1
    comes out 4 % too small (in 10 steps 1.5 % too large, 5 % too small)."""
    return _even_in_log_snr(steps, *FACTS_LOG_SNR)


def _even_in_log_snr(steps: int, low: float, high: float) -> list[tuple[float, float]]:
    if steps < 3:
        return even_plan(steps)
    between = (low + (high - low) * k / (steps - 2) for k in range(steps - 1))
    edges = [1.0, *(math.atan(math.exp(-ratio)) * 2 / math.pi for ratio in between), 0.0]
    return list(pairwise(edges))


def repaint_plan(steps: int, jump: int = 10, repeats: int = 10) -> list[tuple[float, float]]:
    """RePaint's resampling (Lugmayr et al. 2022): after every `jump` moves down, go back up and down again, so that each
    stretch is walked `repeats` times."""
    down = even_plan(steps)
    plan: list[tuple[float, float]] = []
    for first in range(0, steps, jump):
        stretch = down[first : first + jump]
        up = (stretch[-1][1], stretch[0][0])
        for repeat in range(repeats):
            plan += stretch if repeat == 0 else [up, *stretch]
    return plan
