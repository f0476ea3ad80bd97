"""What a model is about: its variables, their units and levels, and how each becomes a tensor with a process and a clock.

schema = Schema((Image("T1w", shape=(32, 40, 32), spacing=(5, 5, 5)), Continuous("age", unit="years"),
                 Categorical("sex", levels=("F", "M"))))
schema = schema.fit(table)          # scalings from the training rows
Schema.from_yaml(schema.to_yaml()) == schema
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from metavoxel.cells import codes_of, floats_of
from metavoxel.clocks import Clock, Cosine, alpha, sigma
from metavoxel.codecs import FITS, STRICT, Array, Latent, Scale, Scaling, step_of
from metavoxel.errors import MetavoxelError
from metavoxel.laws import Law
from metavoxel.naming import check_names
from metavoxel.processes import (
    Discrete,
    Gaussian,
    absorbing_chain,
    birth_death_chain,
    marginal_chain,
    uniform_chain,
)

State = dict[str, Tensor]
"""Variable name -> values: images (n, channels, *grid), numbers (n,), level indices (n,) int64."""
Times = dict[str, Tensor]
"""Variable name -> level t in [0, 1] of each entry: images (n, 1, *grid), scalars (n,)."""
Observed = dict[str, Tensor]
"""Variable name -> (n,) bool, False where the table's cell or the scan is missing."""

CLOCK = Cosine()


class _Scalar:
    entry_shape: tuple[int, ...] = ()
    level_shape: tuple[int, ...] = ()
    clock: Clock = CLOCK
    name: str

    def unfitted(self) -> MetavoxelError:
        return MetavoxelError(f"variable {self.name!r} has no scaling yet; call schema.fit(training_table) first")


@dataclass(frozen=True, config=STRICT)
class Continuous(_Scalar):
    """A number with a unit, such as age in years. Works on standard-normal-like scores."""

    name: str
    unit: str = ""
    scaling: Scaling = "linear"
    scale: Scale | None = None
    span: tuple[float, float] | None = None
    """Lowest and highest value in training."""
    law: Law = Law()
    """Of the scores in training."""
    step: float | None = None
    """Draws are multiples of it, as the values in training are; 0: any number. Found by `fit` unless it is given."""
    clock: Clock = CLOCK
    kind: Literal["continuous"] = "continuous"

    @property
    def process(self) -> Gaussian:
        return Gaussian()

    def baseline_loss(self, tau: Tensor) -> Tensor | float:
        """Loss of a predictor that knows only mean 0 and variance 1: 1 at every level."""
        return 1.0

    def fit(self, column: pd.Series) -> "Continuous":
        values = self.known(column)
        if len(values) == 0:
            raise MetavoxelError(f"variable {self.name!r} has no value in any training row; drop it from the schema")
        fitted = replace(self, scale=FITS[self.scaling](values)).among(column)
        return fitted if self.step is None else replace(fitted, step=self.step)

    def among(self, column: pd.Series) -> "Continuous":
        """The same scaling, for people with these values in `unit`."""
        values = self.known(column)
        if self.scale is None or len(values) == 0:
            return self
        span, law = (float(values.min()), float(values.max())), Law.of(self.scale.encode(values))
        return replace(self, span=span, law=law, step=step_of(values))

    def stranger(self, value: float) -> str | None:
        """Why a value is too far from the training rows' to be asked about, by more than a quarter of their span."""
        low, high = self.span or (value, value)
        if low - (high - low) / 4 <= value <= high + (high - low) / 4:
            return None
        return f"{value:g} is outside of the training range, {low:g} to {high:g} {self.unit}".rstrip()

    def encode(self, column: Sequence[object] | pd.Series) -> tuple[Tensor, Tensor]:
        """Values (n) in `unit` -> scores (n,) float32 and observed (n,) bool."""
        if self.scale is None:
            raise self.unfitted()
        values = floats_of(column, self.name)
        known = np.isfinite(values)
        scores = np.zeros(len(values))
        scores[known] = self.scale.encode(values[known])
        return torch.from_numpy(scores).float(), torch.from_numpy(known)

    def decode(self, scores: Tensor) -> Array:
        """Scores of any shape -> values in `unit`."""
        if self.scale is None:
            raise self.unfitted()
        return self.scale.decode(scores.detach().cpu().double().numpy())

    def drawn(self, scores: Tensor) -> Array:
        """The same of draws, which are recorded as finely as the values in training: a score of 28, not of 27.83."""
        values = self.decode(scores)
        return np.rint(values / self.step) * self.step if self.step else values

    def known(self, column: Sequence[object] | pd.Series) -> Array:
        """The values that are not missing."""
        values = floats_of(column, self.name)
        return values[np.isfinite(values)]


@dataclass(frozen=True, config=STRICT)
class Categorical(_Scalar):
    """One of a few named levels, such as a diagnosis."""

    name: str
    levels: tuple[str, ...]
    chain: Literal["uniform", "absorbing", "marginal"] = "marginal"
    marginal: tuple[float, ...] | None = None
    """Shares of the levels in the training that set the chain."""
    shares: tuple[float, ...] | None = None
    """The same among the people of a training that went on from that one."""
    kind: Literal["categorical"] = "categorical"

    def __post_init__(self) -> None:
        repeated = [level for level in self.levels if self.levels.count(level) > 1]
        if len(self.levels) < 2 or repeated:
            wrong = f"lists {repeated[0]!r} twice" if repeated else "needs at least two levels; drop it from the schema"
            raise MetavoxelError(f"variable {self.name!r} {wrong}")

    @cached_property
    def process(self) -> Discrete:
        if self.chain == "uniform":
            return uniform_chain(len(self.levels))
        if self.chain == "absorbing":
            return absorbing_chain(len(self.levels))
        return marginal_chain(self.origin)

    def baseline_loss(self, tau: Tensor) -> Tensor | float:
        """Loss at level 1 of a predictor that knows only the law over people: its entropy in nats."""
        return max(-sum(p * math.log(p) for p in self.law), 0.05)  # a nearly constant column must not drown others

    @property
    def origin(self) -> tuple[float, ...]:
        """Share of every level among the people of the first training."""
        if self.marginal is None:
            raise self.unfitted()
        return self.marginal

    @property
    def law(self) -> tuple[float, ...]:
        """The same of the last training."""
        return self.shares or self.origin

    def fit(self, column: pd.Series) -> "Categorical":
        shares = self._shares(column)
        if shares is None:
            raise MetavoxelError(f"variable {self.name!r} has no value in any training row; drop it from the schema")
        return replace(self, marginal=shares)

    def among(self, column: pd.Series) -> "Categorical":
        """The same chain, for these people."""
        shares = self._shares(column)
        return self if shares is None else replace(self, shares=shares)

    def _shares(self, column: pd.Series) -> tuple[float, ...] | None:
        codes, known = self.encode(column)
        if not known.any():
            return None
        counts = np.bincount(codes[known].numpy(), minlength=len(self.levels)) + 0.5  # no level is impossible
        return tuple((counts / counts.sum()).tolist())

    def encode(self, column: Sequence[object] | pd.Series) -> tuple[Tensor, Tensor]:
        """Level names (n) -> indices (n,) int64 and observed (n,) bool."""
        codes, known = codes_of(column, self.levels, self.name)
        return torch.from_numpy(codes), torch.from_numpy(known)

    def decode(self, codes: Tensor) -> np.ndarray:
        """Indices of any shape -> level names."""
        return np.array(self.levels, dtype=object)[codes.cpu().numpy()]

    drawn = decode


@dataclass(frozen=True, config=STRICT)
class Ordinal(Categorical):
    """One of a few levels in order, lowest first, such as a CDR score. Forgets through neighbouring levels."""

    chain: Literal["birth_death"] = "birth_death"  # type: ignore[assignment]
    kind: Literal["ordinal"] = "ordinal"  # type: ignore[assignment]

    @cached_property
    def process(self) -> Discrete:
        return birth_death_chain(len(self.levels))


@dataclass(frozen=True, config=STRICT)
class Image:
    """A 2-D or 3-D scan on the model's grid (RAS axes; spacing in mm), seen through an autoencoder or as it is."""

    name: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...] = ()
    codec: Literal["identity", "autoencoder"] = "identity"
    latent: Latent | None = None
    clock: Clock = CLOCK
    kind: Literal["image"] = "image"

    def __post_init__(self) -> None:
        if len(self.shape) not in (2, 3):
            raise MetavoxelError(f"image {self.name!r}: shape {self.shape} must have 2 or 3 axes")
        if self.spacing and len(self.spacing) != len(self.shape):
            raise MetavoxelError(f"image {self.name!r}: spacing {self.spacing} must have one number for each axis")
        if min(self.shape) < 1 or min(self.spacing, default=1) <= 0:
            raise MetavoxelError(f"image {self.name!r}: shape {self.shape} and spacing {self.spacing} must be positive")

    @property
    def process(self) -> Gaussian:
        return Gaussian()

    @property
    def fitted(self) -> Latent:
        if self.latent is None:
            raise MetavoxelError(f"image {self.name!r} has no scaling yet; train the model first")
        return self.latent

    @property
    def entry_shape(self) -> tuple[int, ...]:
        return (self.fitted.channels, *self.fitted.grid)

    @property
    def level_shape(self) -> tuple[int, ...]:
        return (1, *self.fitted.grid)

    def baseline_loss(self, tau: Tensor) -> Tensor | float:
        """Loss of a predictor that knows only each entry's mean and the entries' average variance about it, m: the
        posterior variance over sigma^2, m / (alpha^2 m + sigma^2). Scans share most of their anatomy, so m is well
        below 1, and a constant would let the noisiest levels of the image drown the rest."""
        m = self.fitted.marginal_variance
        return m / (alpha(tau) ** 2 * m + sigma(tau) ** 2)


Scalar = Continuous | Categorical | Ordinal
Variable = Image | Scalar


class _Fields:
    """Adapters built once: pydantic checks every field and names the misspelt one."""

    variable: TypeAdapter[Variable] = TypeAdapter(
        Annotated[Image | Continuous | Categorical | Ordinal, Field(discriminator="kind")]
    )


class Schema:
    """The ordered variables of one model. Iterates over the variables; `schema["age"]` finds one by name."""

    def __init__(self, variables: Sequence[Variable]) -> None:
        self.variables = tuple(variables)
        check_names(self.variables)
        if len({image.shape for image in self.images}) > 1:
            shapes = ", ".join(f"{image.name} {image.shape}" for image in self.images)
            raise MetavoxelError(f"images of one schema share one grid, got {shapes}; prepare them on the same grid")

    def __iter__(self) -> Iterator[Variable]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Variable:
        for variable in self.variables:
            if variable.name == name:
                return variable
        raise MetavoxelError(f"no variable {name!r} in this model; it knows {', '.join(self.names)}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.variables == other.variables

    def __repr__(self) -> str:
        return f"Schema({', '.join(f'{v.name}: {v.kind}' for v in self)})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variable.name for variable in self.variables)

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(variable for variable in self.variables if isinstance(variable, Image))

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        return tuple(variable for variable in self.variables if not isinstance(variable, Image))

    def image(self, name: str) -> Image:
        """The image variable of that name."""
        variable = self[name]
        if not isinstance(variable, Image):
            raise MetavoxelError(f"{name!r} is not an image of this model; its images: {[i.name for i in self.images]}")
        return variable

    def scalar(self, name: str) -> Scalar:
        """The number or class of that name."""
        variable = self[name]
        if isinstance(variable, Image):
            raise MetavoxelError(
                f"{name!r} is an image; this asks for a number or a class: "
                f"{', '.join(scalar.name for scalar in self.scalars)}"
            )
        return variable

    def fit(self, table: pd.DataFrame) -> "Schema":
        """Scalings and marginals of the numbers and classes from training rows; images are left as they are."""
        return Schema([v if isinstance(v, Image) else v.fit(_column(table, v.name)) for v in self])

    def among(self, table: pd.DataFrame) -> "Schema":
        """The same scalings and chains, but the laws of numbers and classes of these rows."""
        return Schema([v if isinstance(v, Image) else v.among(_column(table, v.name)) for v in self])

    def with_latents(self, latents: dict[str, Latent]) -> "Schema":
        """The same schema with the images' standardisation set."""
        return Schema([replace(v, latent=latents[v.name]) if v.name in latents else v for v in self])  # type: ignore[arg-type]

    def encode(self, table: pd.DataFrame) -> tuple[State, Observed]:
        """The table's numbers and classes as tensors of as many rows, and which cells are known."""
        pairs = {v.name: v.encode(_column(table, v.name)) for v in self.scalars}
        return {name: x for name, (x, _) in pairs.items()}, {name: known for name, (_, known) in pairs.items()}

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {"variables": [_Fields.variable.dump_python(v, mode="json", exclude_none=True) for v in self]}

    @classmethod
    def from_dict(cls, content: object, source: str = "schema") -> "Schema":
        """The inverse of `to_dict`; an error names `source` and the field that is wrong."""
        entries = content.get("variables") if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise MetavoxelError(f"{source}: needs a list under 'variables'")
        variables = []
        for position, entry in enumerate(entries):
            try:
                variables.append(_Fields.variable.validate_python(entry))
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"])
                raise MetavoxelError(f"{source}: variable {position + 1}, {place}: {first['msg']}") from error
        return cls(variables)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str | Path) -> "Schema":
        """From YAML text, or from the file at a Path."""
        source = str(text) if isinstance(text, Path) else "schema"
        try:
            content = yaml.safe_load(text.read_text(encoding="utf-8") if isinstance(text, Path) else text)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise MetavoxelError(f"{source}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
        return cls.from_dict(content, source)


def full_level(variable: Variable, t: Tensor | float, n: int, device: torch.device | str = "cpu") -> Tensor:
    """One level t, a number or (n,), for every entry of a variable: (n, *level_shape)."""
    level = torch.as_tensor(t, dtype=torch.float32, device=device).expand(n)
    return level.reshape(n, *(1,) * len(variable.level_shape)).expand(n, *variable.level_shape)


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table.columns:
        raise MetavoxelError(f"the table has no column {name!r}; it has {', '.join(map(str, table.columns))}")
    return table[name]
