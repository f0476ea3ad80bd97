"""What a model says of one subject. The scans are encoded once, however many questions are asked about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from metavoxel.asked import between, names_of, whole
from metavoxel.beliefs import Belief
from metavoxel.data.conform import Geometry
from metavoxel.denoiser import LearnedDenoiser
from metavoxel.diffusion import encode_once, expect, tell
from metavoxel.draws import Draws, merge
from metavoxel.errors import MetavoxelError
from metavoxel.guidance import guide
from metavoxel.latents import ImageCodec, affine_of
from metavoxel.laws import Mixture
from metavoxel.loading import Progress
from metavoxel.methods import Method, draw, walk
from metavoxel.question import Denoiser, Given, TellsLaws
from metavoxel.schema import Categorical, Continuous, Image, Schema, State

IMAGE_BATCH = 16
"""Images that are walked in memory at a time."""
SCALAR_BATCH = 4096
EDGE = 1e-4
"""Quantiles nearer to 0 or 1 say more of the shape of a law than the people of any cohort do."""


@dataclass(frozen=True)
class Posterior:
    """p(anything | what is known of one subject), as `MetaVoxel.posterior` makes it.

    known: name -> value of one row. What is neither known nor wanted is ignored: averaged over. geometry: of the scan
    that is known, if it is a file.
    """

    schema: Schema
    denoiser: LearnedDenoiser
    codecs: Mapping[str, ImageCodec]
    known: Mapping[str, Given]
    geometry: Geometry | None = None

    def given(self, **facts: object) -> "Posterior":
        """The same with these numbers and classes known as well (sex="F"); the scans are not encoded again."""
        twice = [name for name in facts if name in self.known]
        if twice:
            raise MetavoxelError(f"{twice[0]!r} is given already; ask model.posterior for another value of it")
        told = {**self.known, **encode_facts(self.schema, facts, self.denoiser.device)}
        further = Posterior(self.schema, self.denoiser, self.codecs, told, self.geometry)
        vars(further)["_reader"] = self._reader  # it holds the scans' features and depends on nothing else
        return further

    def with_image(self, name: str, value: Given, geometry: Geometry | None = None) -> "Posterior":
        """The same with an image (1, channels, *grid) known as well, wholly or outside of a hole (its mask)."""
        return Posterior(self.schema, self.denoiser, self.codecs, {**self.known, name: value}, geometry or self.geometry)

    def mean(self, name: str) -> float:
        """E[number | known] in its unit, in one evaluation."""
        return float(self._belief(name).mean[0])

    def std(self, name: str) -> float:
        """Standard deviation of p(number | known) in its unit, in one evaluation."""
        return float(self._belief(name).std[0])

    def quantile(self, name: str, q: float) -> float:
        """What the number is at most with probability q, above 0 and below 1, in one evaluation."""
        return float(self._belief(name).quantiles(torch.tensor([between("q", q, EDGE, 1 - EDGE)]))[0, 0])

    def interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """The central interval that the number is in with probability `level`, in one evaluation."""
        between("level", level, 0, 1 - 2 * EDGE)
        low, high = self._belief(name).quantiles(torch.tensor([(1 - level) / 2, (1 + level) / 2]))[0].tolist()
        return low, high

    @torch.no_grad()
    def probability(self, name: str) -> dict[str, float]:
        """p(level | known) of every level, in one evaluation."""
        variable = self.schema.scalar(name)
        if not isinstance(variable, Categorical):
            raise MetavoxelError(f"{name!r} is a number; use mean, interval or sample")
        clean = expect(self._reader, self.schema, self.known, [name])[name]
        return dict(zip(variable.levels, clean[0].double().exp().tolist()))

    @torch.no_grad()
    def sample(
        self,
        want: Sequence[str] | None = None,
        n: int = 1,
        seed: int = 0,
        steps: int | None = None,
        progress: Progress = lambda done, total: None,
        *,
        method: Method | None = None,
        jump: int | None = None,
        repeats: int | None = None,
        guidance: float = 1.0,
    ) -> Draws:
        """n joint draws of `want` (default: all that is not known). A draw depends on seed and its index, not on n (of
        images, to rounding: their batches differ).

        method: direct, replacement or repaint, with its steps, jump and repeats: see `methods.walk`. guidance: above 1
        stresses what is known, see `guidance`; for images to look at, not for numbers to report.
        """
        want = [name for name in self.schema.names if name not in self.known] if want is None else names_of(want)
        if not want:
            raise MetavoxelError("everything is given; leave out what you want to know")
        n, seed = whole("n", n, 1), whole("seed", seed, 0)
        denoiser = guide(self.denoiser, list(self.known), guidance)
        asked = walk(self.schema, self.denoiser.coverage, self.known, want, method, steps, jump, repeats,
                     laws=isinstance(denoiser, TellsLaws))  # fmt: skip
        images_move = any(asked.moves(image.name) for image in self.schema.images)
        if denoiser is self.denoiser and not images_move:  # guidance hides the scan in turn, so it needs it unencoded
            denoiser = self._reader
        batch = IMAGE_BATCH if images_move else SCALAR_BATCH
        parts = []
        for first in range(0, n, batch):
            count = min(batch, n - first)
            done = partial(_report, progress, first * asked.steps, count, n * asked.steps)
            state = draw(denoiser, self.schema, asked, count, seed, first_draw=first, on_step=done)
            wanted = {name: state[name] for name in want}
            parts.append(Draws(self.schema, self._decode(wanted), self.geometry, self._affine(want)))
        return merge(parts)

    @cached_property
    def _reader(self) -> Denoiser:
        """Answers questions about numbers and classes; holds the scans' features."""
        unknown = [v.name for v in self.schema.scalars if v.name not in self.known]
        with torch.no_grad():
            return encode_once(self.denoiser, self.schema, self.known) if unknown else self.denoiser

    @torch.no_grad()
    def _belief(self, name: str) -> Belief:
        variable = self.schema.scalar(name)
        if isinstance(variable, Categorical):
            raise MetavoxelError(f"{name!r} is a class; use probability")
        law = tell(self._reader, self.schema, self.known, [name])[name]
        assert isinstance(law, Mixture)
        return Belief(variable, law)

    def _decode(self, state: State) -> dict[str, np.ndarray]:
        """The one row's draws in human units."""
        values = {}
        for name, x in state.items():
            variable = self.schema[name]
            if isinstance(variable, Image):
                values[name] = self.codecs[name].decode(x[0]).cpu().numpy()
            else:
                values[name] = variable.drawn(x[0])
        return values

    def _affine(self, want: Sequence[str]) -> np.ndarray | None:
        image = next((self.schema.image(name) for name in want if isinstance(self.schema[name], Image)), None)
        return affine_of(image) if image else None


def encode_facts(schema: Schema, facts: Mapping[str, object], device: torch.device) -> dict[str, Given]:
    """Numbers in their unit and level names -> one row each."""
    known = {}
    for name, value in facts.items():
        variable = schema.scalar(name)
        alone = value.item() if isinstance(value, np.ndarray | Tensor) and value.ndim == 0 else value
        values, observed = variable.encode(pd.Series([alone], index=["given"], dtype=object))
        if not observed.all():
            raise MetavoxelError(f"{name}: no value given; leave it out to have it ignored")
        if isinstance(variable, Continuous):
            stranger = variable.stranger(float(variable.decode(values)[0]))
            if stranger:
                raise MetavoxelError(f"{name}: {stranger}; ask nearer to it")
        known[name] = Given(values.to(device))
    return known


def _report(progress: Progress, before: int, draws: int, total: int, step: int) -> None:
    progress(before + (step + 1) * draws, total)
