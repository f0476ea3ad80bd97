"""Human units <-> the numbers a process works on. Fitted on training rows only, kept with the schema.

Scales take and give arrays of any shape. A missing cell is not a codec's business: `schema` masks it out first.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from scipy.special import ndtri

from metavoxel.errors import MetavoxelError

STRICT = ConfigDict(extra="forbid")
Array = npt.NDArray[np.float64]
MAX_KNOTS = 257
STEPS = (1.0, 0.5)
"""In which scores are counted."""


@dataclass(frozen=True, config=STRICT)
class Standard:
    """z = (x - mean) / sd."""

    mean: float
    sd: float
    kind: Literal["linear"] = "linear"

    @classmethod
    def fit(cls, x: Array) -> "Standard":
        return cls(float(x.mean()), _sd(x))

    @classmethod
    def over_range(cls, x: Array) -> "Standard":
        """From -1 to 1 over the training rows (paper, "Model")."""
        return cls(float(x.min() + x.max()) / 2, float(x.max() - x.min()) / 2 or 1.0)

    def encode(self, x: Array) -> Array:
        return (x - self.mean) / self.sd

    def decode(self, z: Array) -> Array:
        return z * self.sd + self.mean


@dataclass(frozen=True, config=STRICT)
class Log:
    """z = (log x - mean) / sd, for positive quantities such as volumes."""

    mean: float
    sd: float
    kind: Literal["log"] = "log"

    @classmethod
    def fit(cls, x: Array) -> "Log":
        _refuse_nonpositive(x)
        return cls(float(np.log(x).mean()), _sd(np.log(x)))

    def encode(self, x: Array) -> Array:
        _refuse_nonpositive(x)
        return (np.log(x) - self.mean) / self.sd

    def decode(self, z: Array) -> Array:
        return np.exp(z * self.sd + self.mean)


@dataclass(frozen=True, config=STRICT)
class Quantile:
    """z = Phi^-1(F(x)), F the training rows' distribution function, linear between knots. For skewed or bounded scores.

    Beyond the training rows' range the end slopes go on, so that decode(encode(x)) = x everywhere.
    """

    values: tuple[float, ...]
    scores: tuple[float, ...]
    kind: Literal["quantile"] = "quantile"

    @classmethod
    def fit(cls, x: Array) -> "Quantile":
        values, counts = np.unique(x, return_counts=True)
        scores = ndtri((np.cumsum(counts) - counts / 2) / counts.sum())  # mid-ranks, so ties get one score
        keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_KNOTS)).round().astype(int))
        if len(keep) == 1:
            return cls((float(values[0]), float(values[0]) + 1.0), (0.0, 1.0))
        return cls(tuple(values[keep].tolist()), tuple(scores[keep].tolist()))

    def encode(self, x: Array) -> Array:
        return _piecewise(x, np.array(self.values), np.array(self.scores))

    def decode(self, z: Array) -> Array:
        return _piecewise(z, np.array(self.scores), np.array(self.values))


@dataclass(frozen=True, config=STRICT)
class Latent:
    """Standardisation of what an image's process works on, and its shape. For an identity codec: the voxels themselves."""

    channels: int
    grid: tuple[int, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    marginal_variance: float = 1.0
    factors: int = 0
    """Components of the whole image in its normal law (see `image_law`)..."""
    neighbours: int = 0
    """...and of each block of it (see `neighbours`)."""


Scale = Annotated[Standard | Log | Quantile, Field(discriminator="kind")]
Scaling = Literal["linear", "range", "log", "quantile"]
FITS: dict[Scaling, Callable[[Array], Standard | Log | Quantile]] = {
    "linear": Standard.fit, "range": Standard.over_range, "log": Log.fit, "quantile": Quantile.fit,
}  # fmt: skip


def step_of(values: Array) -> float:
    """The step that all values are multiples of; 0 if there is none."""
    return next((step for step in STEPS if (values % step == 0).all()), 0.0)


def _sd(x: Array) -> float:
    """1 for a constant, whose deviations are the rounding of its mean."""
    sd = float(x.std())
    return sd if sd > 1e-12 * float(np.abs(x).max()) else 1.0


def _piecewise(x: Array, xs: Array, ys: Array) -> Array:
    segment = np.clip(np.searchsorted(xs, x, side="right") - 1, 0, len(xs) - 2)
    slope = (ys[segment + 1] - ys[segment]) / (xs[segment + 1] - xs[segment])
    return ys[segment] + slope * (x - xs[segment])


def _refuse_nonpositive(x: Array) -> None:
    if (x <= 0).any():
        raise MetavoxelError(f"log scaling needs values above 0, got {x.min():g}; use scaling: linear or quantile")
