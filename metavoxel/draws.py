"""Draws in human units: what a question's answer is. Summaries, tables and files come from here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from metavoxel.asked import between
from metavoxel.data.conform import Geometry, restore
from metavoxel.data.volume import Volume, write_volume
from metavoxel.errors import MetavoxelError
from metavoxel.files import atomic_write, make_folder, remove_others
from metavoxel.schema import Categorical, Image, Schema


@dataclass(frozen=True)
class Draws:
    """n joint draws of the wanted variables for one question. `draws["age"]` is (n,), `draws["T1w"]` is (n, *shape).

    Numbers are in their unit, classes are level names, images are on the model's grid with the background at 0 and
    bright tissue near 1.
    """

    schema: Schema
    values: Mapping[str, np.ndarray]
    geometry: Geometry | None = None
    """Of the scan that the question was asked about: images are written on its grid."""
    affine: np.ndarray | None = None
    """Model's grid -> mm, for images that come from no scan."""

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.values:
            raise MetavoxelError(f"{name!r} was not drawn; the draws hold {', '.join(self.values)}")
        return self.values[name]

    def mean(self, name: str) -> np.ndarray:
        """Of a number: (); of an image: the voxel-wise mean (*shape)."""
        return self._reals(name).mean(0)

    def std(self, name: str) -> np.ndarray:
        """Standard deviation over the draws, of a number () or voxel by voxel (*shape)."""
        return self._reals(name).std(0, ddof=1)

    def quantile(self, name: str, q: float) -> np.ndarray:
        """Of a number, or voxel by voxel; see `quantiles`. q: from 0 to 1."""
        return quantiles(self._reals(name), between("q", q, 0, 1), 0)

    def interval(self, name: str, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """The central interval that a further draw is in with probability `level`, from 0 to 1."""
        between("level", level, 0, 1)
        return self.quantile(name, (1 - level) / 2), self.quantile(name, (1 + level) / 2)

    def probability(self, name: str) -> dict[str, float]:
        """Each level's share of the draws."""
        variable = self.schema[name]
        if not isinstance(variable, Categorical):
            raise MetavoxelError(f"{name!r} is not a class; use mean, std or interval")
        return {level: float((self[name] == level).mean()) for level in variable.levels}

    def frame(self) -> pd.DataFrame:
        """One row a draw: `draw` and the numbers and classes."""
        scalars = {name: values for name, values in self.values.items() if values.ndim == 1}
        return pd.DataFrame({"draw": np.arange(len(self)), **scalars})

    def volume(self, name: str, draw: int) -> Volume:
        """One draw of a 3-D image, on the grid of the scan asked about if there is one."""
        array = self[name][draw].astype(np.float32)
        if self.geometry is not None:
            return restore(array, self.geometry)
        return Volume(array, self.affine if self.affine is not None else np.eye(4))

    def save(self, folder: str | Path) -> list[Path]:
        """samples.csv, and one NIfTI for each draw and image, instead of earlier draws in the folder; returns the files."""
        folder = make_folder(folder)
        files = [self.save_facts(folder)]
        for name in self.values:
            if isinstance(self.schema[name], Image):
                for draw in range(len(self)):
                    files.append(folder / f"draw-{draw:04d}_{name}.nii.gz")
                    write_volume(self.volume(name, draw), files[-1])
        remove_others(folder, files, "draw-[0-9][0-9][0-9][0-9]_*.nii.gz")
        return files

    def save_facts(self, folder: Path) -> Path:
        """samples.csv in an existing folder."""
        with atomic_write(folder / "samples.csv") as file:
            self.frame().to_csv(file, index=False)
        return folder / "samples.csv"

    def _reals(self, name: str) -> np.ndarray:
        if isinstance(self.schema[name], Categorical):
            raise MetavoxelError(f"{name!r} is a class; use probability")
        return self[name]


def quantiles(drawn: np.ndarray, q: float | np.ndarray, axis: int) -> np.ndarray:
    """What a further draw is below with probability q; of several, the answer's first axis. The k-th of n draws stands at
    k / (n + 1) (Weibull 1939). NumPy's own rule puts it at (k - 1) / (n - 1), and 90 % intervals of 64 exact draws hold
    87 %."""
    return np.quantile(drawn, q, axis, method="weibull")


def merge(parts: list[Draws]) -> Draws:
    """Draws of one question that were made in parts."""
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    return Draws(parts[0].schema, values, parts[0].geometry, parts[0].affine)
