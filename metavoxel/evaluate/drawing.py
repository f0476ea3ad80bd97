"""Scans drawn for the facts of a cohort's people, kept on disk in blocks as the answers are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metavoxel.data.cohort import Cohort
from metavoxel.diffusion import sample
from metavoxel.evaluate.replacement import draws_by_replacement
from metavoxel.files import atomic_write, make_folder
from metavoxel.loading import Progress
from metavoxel.methods import IMAGE_STEPS
from metavoxel.model import MetaVoxel
from metavoxel.question import Given
from metavoxel.schema import State
from metavoxel.solvers import DPM2M
from metavoxel.times import images_plan

BLOCK = 16


@dataclass(frozen=True)
class Drawn:
    """One scan for each of the first `n` rows' facts."""

    folder: Path
    n: int

    def scans(self, name: str) -> np.ndarray:
        """(n, *shape) float16 on the model's grid; mapped, not read."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")


@torch.no_grad()
def draw_scans(
    model: MetaVoxel, cohort: Cohort, folder: Path, n: int, seed: int, progress: Progress, first_row: int = 0
) -> Drawn:
    """A scan of every image for each of the first n rows, given its known facts. first_row: of more than one cohort's rows,
    where these begin, so that no two begin from the same noise."""
    n = min(n, len(cohort))
    folder = make_folder(folder / str(n))  # another number of scans is another set
    images = model.schema.images
    facts = {v.name: v.encode(cohort.column(v.name)) for v in model.schema.scalars}
    parts = [folder / f"drawn-{first:06d}.npz" for first in range(0, n, BLOCK)]
    for number, part in enumerate(parts):
        rows = slice(number * BLOCK, min((number + 1) * BLOCK, n))
        if not part.exists() and not _joined(folder, model):
            given = {name: Given(values[rows].to(model.device), observed=known[rows].to(model.device))
                     for name, (values, known) in facts.items()}  # fmt: skip
            found = _scans(model, given, rows.stop - rows.start, seed, first_row + rows.start)
            brains = {name: model.codecs[name].decode(x) for name, x in found.items()}
            with atomic_write(part, "wb") as file:
                np.savez(file, **{name: x.cpu().numpy().astype(np.float16) for name, x in brains.items()})  # type: ignore[arg-type]
        progress(rows.stop, n)
    if not _joined(folder, model):
        for image in images:
            whole = np.concatenate([np.load(part)[image.name] for part in parts])
            with atomic_write(folder / f"{image.name}.npy", "wb") as file:
                np.save(file, whole)
        for part in parts:
            part.unlink()
    return Drawn(folder, n)


def _scans(model: MetaVoxel, given: Mapping[str, Given], rows: int, seed: int, first_row: int) -> State:
    """(rows, *entry_shape) of every image, still encoded; by the paper's inference of a model of one shared time."""
    images = {image.name: image.entry_shape for image in model.schema.images}
    if model.denoiser.coverage.separate:
        draws = 1 if given else rows  # of a model without facts: as many of its one law
        found = sample(model.denoiser, model.schema, given, list(images), draws, images_plan(IMAGE_STEPS), DPM2M, seed,
                       first_row=first_row)  # fmt: skip
        return {name: found[name].reshape(rows, *shape) for name, shape in images.items()}
    scans = {name: torch.empty(rows, *shape, device=model.device) for name, shape in images.items()}
    everyone = torch.ones(rows, dtype=torch.bool)
    for own, drawn in draws_by_replacement(model, given, list(images), 1, everyone, first_row, seed):
        for name, x in drawn.items():
            scans[name][own] = x[:, 0]
    return scans


def _joined(folder: Path, model: MetaVoxel) -> bool:
    return all((folder / f"{image.name}.npy").exists() for image in model.schema.images)
