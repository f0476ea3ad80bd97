"""What lies under a mask: completions of a scan, on its own grid, that go on from what surrounds the hole.

Every entry of the image has its own level: known outside of the mask, wanted inside. The model's completion is coarser
than the scan; at the mask's border it is lifted to the scan's own values, and the lift fades inwards as a membrane does
(Perez et al. 2003, "Poisson image editing", with the model's gradients), so there is no seam.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.linalg import cg
from torch import Tensor

from metavoxel.data.conform import Conformed, conform, grid_mask, restore
from metavoxel.data.volume import Volume, read_volume, write_volume
from metavoxel.draws import Draws
from metavoxel.errors import MetavoxelError
from metavoxel.files import make_folder, remove_others
from metavoxel.loading import Progress, grid_of
from metavoxel.model import MetaVoxel
from metavoxel.question import Given
from metavoxel.schema import Image

HEAD = 0.2
"""From the background's brightness to the brain's: above this is head."""
LEAST_LEFT = 0.01
"""Share of the head, less its outermost voxels, that a mask must leave: nobody can tell of a rim how bright a brain is."""


@dataclass(frozen=True)
class Inpainting:
    """n completions of one scan. Outside of `hole` each is the scan itself, voxel for voxel."""

    scan: Volume
    hole: np.ndarray
    """(x, y, z) bool, on the scan's own voxels."""
    draws: Draws
    """The completions on the model's grid, and the facts that were not given."""
    name: str

    def __len__(self) -> int:
        return len(self.draws)

    def completion(self, draw: int) -> Volume:
        """One completed scan, on its own voxels and in its own intensity units."""
        return self._with_hole(self.scan.array, self._fillings[draw])

    def std(self) -> Volume:
        """Standard deviation over the completions of every voxel, in the scan's units; 0 outside of the hole."""
        return self._with_hole(np.zeros_like(self.scan.array), self._fillings.std(0, ddof=min(1, len(self) - 1)))

    def save(self, folder: str | Path) -> list[Path]:
        """samples.csv, completion-0000_NAME.nii.gz and so on, and NAME_sd.nii.gz, instead of earlier ones in the folder;
        returns the files."""
        folder = make_folder(folder)
        files = [self.draws.save_facts(folder)]
        for draw in range(len(self)):
            files.append(folder / f"completion-{draw:04d}_{self.name}.nii.gz")
            write_volume(self.completion(draw), files[-1])
        if len(self) > 1:
            files.append(folder / f"{self.name}_sd.nii.gz")
            write_volume(self.std(), files[-1])
        remove_others(folder, files, "completion-[0-9][0-9][0-9][0-9]_*.nii.gz", f"{self.name}_sd.nii.gz")
        return files

    @cached_property
    def _fillings(self) -> np.ndarray:
        """(completions, voxels of the hole): all that differs from the scan."""
        assert self.draws.geometry is not None
        made = (restore(array.astype(np.float32), self.draws.geometry).array for array in self.draws[self.name])
        return np.stack([seamless(self.scan.array, array, self.hole)[self.hole] for array in made])

    def _with_hole(self, around: np.ndarray, inside: np.ndarray) -> Volume:
        array = around.copy()
        array[self.hole] = inside
        return Volume(array, self.scan.affine)


def inpaint(
    model: MetaVoxel,
    scan: str | Path,
    mask: str | Path,
    n: int = 4,
    given: Mapping[str, object] | None = None,
    name: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Inpainting:
    """n joint draws of what the mask hides and of the facts that are not `given`.

    mask: on the scan's own voxels, any value but 0 is to be filled in. name: which image of the model the scan is
    (default: its first). Raises MetavoxelError for a mask on another grid, an empty one, one that lies outside of the
    model's field of view, and one that leaves nothing of the head.
    """
    image = model.schema.image(name) if name else model.first_image()
    if given and image.name in given:
        raise MetavoxelError(f"{image.name} is the scan to be filled in and cannot be given as well; leave out one")
    volume, drawn = read_volume(scan), read_mask(mask)
    conformed = conform(without(volume, drawn), grid_of(image, Path(scan)))
    hole = grid_mask(drawn, conformed) > 0
    _check(hole, conformed, Path(mask))
    entries = model.codecs[image.name].encode(torch.from_numpy(conformed.array).float()[None].to(model.device))
    known = ~on_entries(torch.from_numpy(hole), image).to(model.device)
    told = model.posterior(given).with_image(image.name, Given(entries, mask=known), conformed.geometry)
    wanted = [v.name for v in model.schema if v.name not in told.known and not isinstance(v, Image)]
    draws = told.sample([image.name, *wanted], n, seed, steps, progress)
    return Inpainting(volume, drawn.array != 0, draws, image.name)


def read_mask(path: str | Path) -> Volume:
    """A mask's file; one that is blank has no hole to fill."""
    try:
        return read_volume(path)
    except MetavoxelError as error:
        if "blank" in str(error):
            raise MetavoxelError(f"{path}: the mask is the same everywhere; draw what is to be filled in") from error
        raise


def without(scan: Volume, mask: Volume) -> Volume:
    """The scan with the head's ordinary values, scattered, where the mask hides head, so that a lesion has no say in where
    and how bright the brain is. (All of one value, they would make the brightest voxels rarer, and the rest of the scan
    brighter than scans in training.) What is dark there stays dark: a mask wider than the head must not move its middle."""
    hidden = mask.array != 0
    if hidden.shape != scan.shape:  # grid_mask will say so
        return scan
    rest = scan.array[~hidden]
    if not len(rest) or rest.min() == rest.max():
        raise _nothing_left(mask.path)
    dark, brain = np.median(rest[rest <= rest.mean()]), np.median(rest[rest > rest.mean()])
    head = scan.array > dark + HEAD * (brain - dark)
    filled, lost = scan.array.copy(), hidden & head
    shares = (np.arange(lost.sum()) + 0.5) / max(1, lost.sum())
    filled[lost] = np.random.default_rng(0).permutation(np.quantile(scan.array[head & ~hidden], shares))
    return Volume(filled, scan.affine)


def on_entries(hole: Tensor, image: Image) -> Tensor:
    """A hole on the model's voxels (*shape) bool -> (1, 1, *grid) bool: entries whose voxels the hole touches.

    A latent sees its neighbours through the autoencoder, so there the hole is one entry wider.
    """
    touched = hole[None, None].float()
    dims = hole.dim()
    pool = torch.nn.functional.adaptive_max_pool3d if dims == 3 else torch.nn.functional.adaptive_max_pool2d
    widen = torch.nn.functional.max_pool3d if dims == 3 else torch.nn.functional.max_pool2d
    if image.codec == "autoencoder":
        touched = widen(pool(touched, image.fitted.grid), 3, stride=1, padding=1)
    return touched > 0


def seamless(scan: np.ndarray, made: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """`made` inside the hole and `scan` outside, (x, y, z), with the step between them at the border spread inwards.

    The lift added to `made` is harmonic inside the hole and equals scan - made on the voxels around it.
    """
    if not hole.any():
        return scan.copy()
    box = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in ndimage.find_objects(hole.astype(np.uint8))[0])
    inside, step = hole[box], (scan - made)[box].astype(np.float64)
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(inside.sum())
    rows, columns, border = [], [], np.zeros(inside.sum())
    degree = np.zeros(inside.sum())
    for axis in range(inside.ndim):
        first = tuple(slice(None, -1) if a == axis else slice(None) for a in range(inside.ndim))
        second = tuple(slice(1, None) if a == axis else slice(None) for a in range(inside.ndim))
        for one, other in ((first, second), (second, first)):
            here, there = number[one], number[other]
            both, edge = (here >= 0) & (there >= 0), (here >= 0) & (there < 0)
            rows.append(here[both])
            columns.append(there[both])
            np.add.at(degree, here[here >= 0], 1)
            np.add.at(border, here[edge], step[other][edge])
    i, j, count = np.concatenate(rows), np.concatenate(columns), len(degree)
    laplacian = coo_array((np.full(len(i), -1.0), (i, j)), shape=(count, count)).tocsr()
    laplacian.setdiag(degree)
    lift, _ = cg(laplacian, border, rtol=1e-4, maxiter=2000)
    filled = scan.copy()
    filled[hole] = made[hole] + lift.astype(np.float32)
    return filled


def _check(hole: np.ndarray, conformed: Conformed, mask: Path) -> None:
    head = conformed.array > 0.1
    if not hole.any():
        raise MetavoxelError(f"{mask}: the mask lies outside of the model's field of view; nothing can be filled in")
    if ndimage.binary_erosion(head & ~hole).sum() < LEAST_LEFT * head.sum():
        raise _nothing_left(mask)


def _nothing_left(mask: Path | None) -> MetavoxelError:
    return MetavoxelError(f"{mask}: the mask leaves nothing of the head; mask only what is to be filled in")
