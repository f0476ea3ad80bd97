"""A question: what is given, what is wanted, what is ignored; the levels that follow from it, and who may be asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from metavoxel.clocks import once
from metavoxel.errors import MetavoxelError
from metavoxel.laws import Mixture
from metavoxel.noise import Noise
from metavoxel.processes import Discrete
from metavoxel.schema import Image, Schema, State, Times, Variable, full_level


class Coverage(Protocol):
    """Which combinations of levels training covered (see `times`)."""

    @property
    def separate(self) -> bool:
        """Variables at levels of their own, not one level for all."""

    @property
    def partial(self) -> float:
        """Share of images in training that were partly known."""


class Denoiser(Protocol):
    """(State, Times) -> clean predictions: E[x_0] for reals, log p(x_0) (n, levels) for classes."""

    @property
    def coverage(self) -> Coverage: ...

    def __call__(self, state: State, times: Times) -> State: ...

    def freeze(self, images: State, times: Times) -> "Denoiser":
        """A denoiser of the scalars alone, with what it takes from these images (rows, ...) computed once.

        It may then be asked about any whole number of draws a row, rows varying slowest.
        """
        ...


ScalarLaws = dict[str, Mixture | Tensor]
"""p(x_0) of numbers, log p(x_0) (n, levels) of classes."""


@runtime_checkable
class TellsLaws(Protocol):
    """A denoiser that tells the whole law of a number, not its mean alone."""

    def tell(self, state: State, times: Times) -> ScalarLaws:
        """Of every scalar, given the state."""
        ...


def known(t: float) -> float:
    """Level of a value that is conditioned on."""
    return 0.0


def tied(t: float) -> float:
    """Level of a value that is noised along with the rest: replacement (paper, Eq. 3)."""
    return t


@dataclass(frozen=True)
class Given:
    """A value (rows, *entry_shape), where it holds, and the level it is shown at when the rest is at t.

    mask (rows, *level_shape), True where known; None: everywhere. The unknown part is walked with the wanted if the
    variable is wanted too, else ignored.
    observed (rows,), False for rows that lack the value: there it is ignored; None: all have it.
    each: `value` is (rows * draws, *entry_shape), one for every draw, draws varying fastest.
    """

    value: Tensor
    mask: Tensor | None = None
    observed: Tensor | None = None
    level: Callable[[float], float] = field(default=known)
    each: bool = False


def there_of(given: Mapping[str, Given], rows: int) -> Tensor:
    """(rows,) bool: of whom anything of what is given is there; where nothing is given, of nobody."""
    found = torch.zeros(rows, dtype=torch.bool)
    for value in given.values():
        found |= torch.ones_like(found) if value.observed is None else value.observed.cpu()
    return found


def count_rows(schema: Schema, given: Mapping[str, Given], want: Sequence[str]) -> int:
    """How many rows a question is about. Raises MetavoxelError for one that makes no sense."""
    unknown = [name for name in (*given, *want) if name not in schema]
    if unknown:
        raise MetavoxelError(f"unknown variable {unknown[0]!r}; this model knows {', '.join(schema.names)}")
    whole = [name for name in want if name in given and given[name].mask is None]
    if whole or not want:
        raise MetavoxelError(f"{whole[0]!r} is both given and wanted" if whole else "nothing is wanted")
    rows = max([len(value.value) for value in given.values() if not value.each], default=1)
    for name, value in given.items():
        if len(value.value) != rows and not value.each:
            raise MetavoxelError(
                f"{name!r} is given for {len(value.value)} rows and another variable for {rows} rows; "
                "give every variable the same rows"
            )
    return rows


def device_of(denoiser: object, given: Mapping[str, Given]) -> torch.device:
    """Where a question is worked on: with its values, or with the denoiser if nothing is given."""
    return next((value.value.device for value in given.values()), getattr(denoiser, "device", torch.device("cpu")))


def laid_out(seen: Sequence[Variable], given: Mapping[str, Given], rows: Tensor, total: int) -> tuple[State, Times]:
    """What is given of these rows at level 0, everything else at 1."""
    state, times = {}, {}
    for v in seen:
        value = given.get(v.name)
        if value is None:
            kind = torch.int64 if isinstance(v.process, Discrete) else torch.float32
            state[v.name] = torch.zeros(len(rows), *v.entry_shape, dtype=kind, device=rows.device)
            times[v.name] = full_level(v, 1.0, len(rows), rows.device)
            continue
        own = rows if len(value.value) == total else torch.zeros_like(rows)
        there = torch.ones(len(value.value), *v.level_shape, dtype=torch.bool, device=rows.device)
        if value.mask is not None:
            there = there & value.mask
        if value.observed is not None:
            there = there & value.observed.reshape(-1, *(1,) * len(v.level_shape))
        state[v.name] = value.value[own]
        times[v.name] = torch.where(there[own], 0.0, 1.0)
    return state, times


class Question:
    """One question laid out for a denoiser: who is known, wanted, ignored, and the levels that follow at each t.

    Scans that are known or ignored throughout are frozen: their features are computed once, for all draws and steps.
    """

    def __init__(
        self, denoiser: Denoiser, schema: Schema, given: Mapping[str, Given], want: Sequence[str], draws: int, seed: int,
        first_row: int, first_draw: int = 0,
    ) -> None:  # fmt: skip
        self.schema, self.given, self.want, self.draws = schema, given, set(want), draws
        self.rows = count_rows(schema, given, want)
        device = device_of(denoiser, given)
        rows = torch.arange(first_row, first_row + self.rows, device=device).repeat_interleave(draws)
        self.noise = Noise(
            seed, rows * (1 << 32) + torch.arange(first_draw, first_draw + draws, device=device).repeat(self.rows)
        )
        _check_coverage(denoiser.coverage, schema, given, self.want)
        self.moving: list[Variable] = [v for v in schema if v.name in self.want]
        self.seen, self.denoiser = list(schema), denoiser
        if not any(self._moves(image) for image in schema.images):
            frozen = {v.name: self._frozen_value(v, device) for v in schema.images}
            levels = {v.name: self.level(v, 0.0)[::draws] for v in schema.images}
            self.denoiser = denoiser.freeze(frozen, levels)
            self.seen = list(schema.scalars)

    def _moves(self, v: Variable) -> bool:
        return v.name in self.want or (v.name in self.given and self.given[v.name].level is not known)

    def _shown(self, v: Variable, level: float) -> Tensor | float:
        """`level`, or (rows,) with 1 for the rows that lack the given value."""
        given = self.given.get(v.name)
        if given is None:
            return 1.0
        return level if given.observed is None else torch.where(given.observed, level, 1.0)

    def _frozen_value(self, image: Image, device: torch.device) -> Tensor:
        if image.name in self.given:
            return self.given[image.name].value
        return torch.zeros(self.rows, *image.entry_shape, device=device)

    def _each_draw(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.draws, 0)

    def level(self, v: Variable, t: float) -> Tensor:
        """(rows * draws, *level_shape): the level of each entry of v while the wanted are at t."""
        n, device = len(self.noise), self.noise.index.device
        given = self.given.get(v.name)
        free = full_level(v, t if v.name in self.want else 1.0, n, device)
        if given is None:
            return free
        level = self._shown(v, given.level(t))
        shown = full_level(v, self._each_draw(level) if isinstance(level, Tensor) else level, n, device)
        if given.mask is None:
            return shown
        return torch.where(self._each_draw(given.mask), shown, free)

    def tau(self, v: Variable, t: float) -> Tensor:
        return v.clock.tau(once(self.level(v, t)))

    def start(self, t: float) -> State:
        """Everything from its prior, then what is given in its place."""
        return self.impose({v.name: v.process.prior(self.noise, v.entry_shape) for v in self.seen}, t)

    def impose(self, state: State, t: float) -> State:
        """Puts the given values in their place, forgotten to their level (paper, Eq. 3; level 0 puts them as they are)."""
        state = dict(state)
        for v in self.seen:
            if v.name not in self.given:
                continue
            given = self.given[v.name]
            level = v.clock.tau(once(full_level(v, given.level(t), len(self.noise), self.noise.index.device)))
            value = given.value if given.each else self._each_draw(given.value)
            if given.level is not known:
                value = v.process.forward(value, torch.zeros_like(level), level, self.noise)
            state[v.name] = (
                value if given.mask is None else torch.where(self._each_draw(given.mask), value, state[v.name])
            )
        return state

    def forget(self, state: State, t: float, s: float) -> State:
        """From level t up to s > t (RePaint's jump)."""
        moved = {
            v.name: v.process.forward(state[v.name], self.tau(v, t), self.tau(v, s), self.noise) for v in self.moving
        }
        return {**state, **moved}

    def tell(self, state: State, t: float) -> ScalarLaws:
        if not isinstance(self.denoiser, TellsLaws):
            raise MetavoxelError("this model tells a number's mean only, not its law; ask for draws")
        if len(self.seen) > len(self.schema.scalars):
            raise MetavoxelError("a law is told of numbers and classes; ask for draws of an image")
        return self.denoiser.tell(state, {v.name: self.level(v, t) for v in self.seen})

    def denoise(self, state: State, t: float) -> State:
        times = {v.name: self.level(v, t) for v in self.seen}
        shown = [v.name for v in self.seen if isinstance(v, Image)]
        if not shown or self.want.intersection(shown):
            return self.denoiser(state, times)
        # scans that are noised along are read at every step, but nobody asks for them: they are not decoded
        reader = self.denoiser.freeze(*({name: part[name] for name in shown} for part in (state, times)))
        return reader(*({v.name: part[v.name] for v in self.schema.scalars} for part in (state, times)))


def _check_coverage(coverage: Coverage, schema: Schema, given: Mapping[str, Given], want: set[str]) -> None:
    """Refuses levels that training never covered: the answer would look fine and mean nothing."""
    ignored = [v.name for v in schema if v.name not in given and v.name not in want]
    ignored += [name for name, value in given.items() if value.observed is not None and not value.observed.all()]
    apart = [name for name, value in given.items() if value.level is not tied]
    if not coverage.separate and (ignored or apart):
        raise MetavoxelError(
            f"this model was trained with one shared time and cannot {'ignore' if ignored else 'condition on'} "
            f"{(ignored or apart)[0]!r} directly; draw samples by method='replacement', or train with times: mixture"
        )
    holes = [name for name, value in given.items() if value.level is known and _partly(value.mask)]
    if holes and not coverage.partial:
        raise MetavoxelError(f"training never showed part of {holes[0]!r}; train with times: mixture, partial above 0, or "
                             "draw samples by method='replacement'")  # fmt: skip


def _partly(mask: Tensor | None) -> bool:
    """Whether some row is known in part; a row known whole or not at all is an ordinary question."""
    if mask is None:
        return False
    entries = mask.flatten(1) if mask.dim() > 1 else mask[:, None]
    return bool((entries.any(1) & ~entries.all(1)).any())
