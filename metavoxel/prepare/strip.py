"""Which voxels are brain: a few ways, in one table. A new way is one more entry of `STRIPPERS`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metavoxel.data.conform import filled, largest_piece, lie_together, to_ras
from metavoxel.data.volume import Volume, read_volume, write_volume
from metavoxel.errors import MetavoxelError
from metavoxel.prepare.brain import find_brain
from metavoxel.prepare.resample import resample

BACKGROUND_SHARE = 0.3  # of voxels that hold one and the same value, in a stripped scan; noise does not
STRIPPED_ML = (300.0, 2300.0)  # what is left of a stripped head, newborns' included; a whole head is above 3500
SMALLEST_ML = 100.0  # less is no brain
HD_BET_WEIGHTS = Path("hd-bet_params/release_2.0.0/fold_all/checkpoint_final.pth")  # below the home folder


@dataclass(frozen=True, eq=False)
class Head:
    """A scan as read: `array` (x, y, z), axes nearest to RAS; its `affine` and file; `mask`, a user's mask or None."""

    array: np.ndarray
    affine: np.ndarray
    source: Path
    mask: Path | None

    @property
    def voxel_ml(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000)


class Stripper(NamedTuple):
    """`fits`: whether `auto` can take this way. `mask`: bool, the head's shape; raises MetavoxelError."""

    fits: Callable[[Head], bool]
    mask: Callable[[Head], np.ndarray]


def brain_mask(head: Head, how: str) -> tuple[np.ndarray, str]:
    """The brain's voxels, one piece without holes, and which way found them. `how`: auto, or a key of `STRIPPERS`.

    Raises MetavoxelError when the way cannot be taken, or finds less than 100 ml.
    """
    way = how if how != "auto" else next(name for name, one in STRIPPERS.items() if one.fits(head))
    mask = _one_piece(STRIPPERS[way].mask(head))
    size = mask.sum() * head.voxel_ml
    if size < SMALLEST_ML:
        raise MetavoxelError(f"{head.source}: the brain mask ({way}) holds {size:.0f} ml; look at the scan and its mask")
    return mask, way


def is_stripped(head: Head) -> bool:
    """Whether the scan holds a brain on a constant background and nothing else."""
    foreground = _foreground(head)
    size = _one_piece(foreground).sum() * head.voxel_ml
    return bool(foreground.mean() <= 1 - BACKGROUND_SHARE and STRIPPED_ML[0] <= size <= STRIPPED_ML[1])


def _foreground(head: Head) -> np.ndarray:
    """What differs from the commonest value."""
    values, counts = np.unique(head.array, return_counts=True)
    return head.array != values[counts.argmax()]


def _one_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected part, holes filled."""
    return filled(largest_piece(mask))


def _users_mask(head: Head) -> np.ndarray:
    """The user's mask (any value above 0 is brain), on the head's voxels."""
    if head.mask is None:
        where = "derivatives/*/sub-ID/anat/ (sub-ID_desc-brain_mask.nii.gz or ..._dseg.nii.gz)"
        raise MetavoxelError(f"{head.source}: no brain mask for it in {where}; add it there, or give --masks PATTERN")
    volume = read_volume(head.mask)
    array, affine = to_ras(volume.array > 0, volume.affine)
    if array.shape == head.array.shape and lie_together(array.shape, affine, head.affine, 0.1):
        return array
    return resample(array.astype(np.float32), affine, head.array.shape, head.affine, order=0) > 0.5


def _hd_bet_is_ready(head: Head) -> bool:
    return shutil.which("hd-bet") is not None and (Path.home() / HD_BET_WEIGHTS).is_file()


def _hd_bet_mask(head: Head) -> np.ndarray:
    """The mask by the program HD-BET 2 (Isensee et al. 2019), on the CPU."""
    program = shutil.which("hd-bet")
    if program is None:
        fix = "install HD-BET in an environment of its own (pip install hd-bet) and put hd-bet on PATH"
        raise MetavoxelError(f"{head.source}: the program hd-bet is not on PATH; {fix}")
    weights = Path.home() / HD_BET_WEIGHTS
    if not weights.is_file():
        fix = "run hd-bet once with a network, or unpack Zenodo record 14445620 there"
        raise MetavoxelError(f"{head.source}: hd-bet has no weights at {weights}; {fix}")
    with tempfile.TemporaryDirectory() as folder:
        scan, out = Path(folder) / "scan.nii.gz", Path(folder) / "out.nii.gz"
        write_volume(Volume(head.array, head.affine), scan)
        files = ["-i", str(scan), "-o", str(out)]
        options = ["-device", "cpu", "--disable_tta", "--save_bet_mask", "--no_bet_image"]
        done = subprocess.run([program, *files, *options], capture_output=True, text=True, check=False)
        mask = out.with_name("out_bet.nii.gz")
        if done.returncode != 0 or not mask.is_file():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it says nothing"]
            raise MetavoxelError(f"{head.source}: hd-bet failed with status {done.returncode} ({last[0]}); run it by hand")
        return read_volume(mask).array > 0


def _builtin_mask(head: Head) -> np.ndarray:
    """By the network that comes with the package."""
    try:
        return find_brain(head.array, head.affine) > 0.5
    except MetavoxelError as error:
        raise MetavoxelError(f"{head.source}: {error}") from error


STRIPPERS: dict[str, Stripper] = {
    "none": Stripper(is_stripped, _foreground),
    "mask": Stripper(lambda head: head.mask is not None, _users_mask),
    "hd-bet": Stripper(_hd_bet_is_ready, _hd_bet_mask),
    "builtin": Stripper(lambda head: True, _builtin_mask),
}
"""In the order in which `auto` tries them; the last one always fits."""
