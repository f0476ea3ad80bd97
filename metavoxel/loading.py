"""From scans on disk to one memory-mapped array on the model's grid: read once, constant memory, reused on resume."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metavoxel.data.cohort import Cohort
from metavoxel.data.conform import Conformed, Grid, conform
from metavoxel.data.volume import read_volume
from metavoxel.errors import MetavoxelError
from metavoxel.files import digits_of, make_folder, temporary_beside, write_error
from metavoxel.schema import Image

WORKERS = 2
GLIMPSED = 64
Progress = Callable[[int, int], None]
"""(done, total)."""


def load_scan(path: Path, image: Image) -> Conformed:
    """One scan on the model's grid."""
    return conform(read_volume(path), grid_of(image, path))


def grid_of(image: Image, path: Path) -> Grid:
    """The model's grid for a scan at `path`."""
    if len(image.shape) != 3:
        raise MetavoxelError(f"{path}: {image.name!r} is a 2-D image; give it as an array on the model's grid")
    return Grid(_triple(image.shape), _triple(image.spacing))


class ImageStack:
    """Images (rows, *shape) float16 on disk or in memory, and which rows have one."""

    def __init__(self, voxels: np.ndarray, present: np.ndarray, key: str) -> None:
        self.voxels, self.present, self.key = voxels, torch.from_numpy(present), key

    def __len__(self) -> int:
        return len(self.voxels)

    def rows(self, index: Tensor, place: torch.device | str = "cpu") -> Tensor:
        """(n, *shape) float32; zeros where missing."""
        return torch.from_numpy(np.ascontiguousarray(self.voxels[index.cpu().numpy()])).to(place).float()

    def mark(self) -> str:
        """Digits that tell these images from others by a few of them, wherever their files are."""
        some = np.linspace(0, len(self) - 1, min(len(self), GLIMPSED)).astype(int)
        seen = self.present.numpy().tobytes() + np.ascontiguousarray(self.voxels[some]).tobytes()
        return digits_of(seen)

    @classmethod
    def from_array(cls, voxels: np.ndarray) -> "ImageStack":
        """voxels (rows, *shape); a row that is all NaN has no image."""
        present = np.isfinite(voxels).reshape(len(voxels), -1).all(1)
        clean = np.where(present.reshape(-1, *(1,) * (voxels.ndim - 1)), voxels, 0).astype(np.float16)
        return cls(clean, present, digits_of(clean.tobytes()))


def load_images(cohort: Cohort, image: Image, cache: Path, progress: Progress = lambda done, total: None) -> ImageStack:
    """Every row's scan, conformed; kept under `cache` so that the same scans on the same grid are read once, whatever facts
    stand beside them."""
    grid = json.dumps([image.name, image.shape, image.spacing])
    key = digits_of(f"{cohort.stats_of(image.name)} {grid}")
    paths = cohort.scans[image.name]
    present = np.array([path is not None for path in paths])
    file = cache / f"{image.name}-{key}.npy"
    if not file.exists():
        _fill(file, paths, image, progress)
    return ImageStack(np.load(file, mmap_mode="r"), present, key)


@contextmanager
def large_array(path: Path, shape: tuple[int, ...]) -> Iterator[np.memmap]:
    """A new float16 array on disk, mapped into memory: what is assigned to it is written there. It becomes the file `path`
    only if the block ends well; processes that make the same file do not disturb each other.

    All its space is taken at once: where a mapped file outgrows the disk later, the system ends the process without a word.
    Raises MetavoxelError when there is not enough.
    """
    temporary = temporary_beside(path)
    try:
        array = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        yield array
        array.flush()
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _fill(file: Path, paths: list[Path | None], image: Image, progress: Progress) -> None:
    make_folder(file.parent)
    with large_array(file, (len(paths), *image.shape)) as stack, ThreadPoolExecutor(WORKERS) as pool:
        arrays = pool.map(lambda path: None if path is None else load_scan(path, image).array, paths)
        for row, array in enumerate(arrays):
            stack[row] = 0 if array is None else array
            progress(row + 1, len(paths))


def _triple(values: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    x, y, z = values
    return x, y, z
