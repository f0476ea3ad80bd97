"""Scans on disk: an array with its geometry. Read with the checks that spare a crash later, written atomically.

Affines map voxel indices to world millimetres, RAS+ (x to the right, y to the front, z to the top), as nibabel's do.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metavoxel.data.dicom import read_series
from metavoxel.errors import MetavoxelError
from metavoxel.files import atomic_write

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
GZIP_BEST = 1032  # bytes that one byte of a gzip file can stand for, at most
SPACING_LIMITS_MM = (0.01, 50.0)  # outside of these a header is in other units, or broken


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D scan: `array` (x, y, z) float32; `affine` (4, 4), voxel index -> RAS+ world, mm; `path`, its file."""

    array: np.ndarray
    affine: np.ndarray
    path: Path | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each stored axis."""
        x, y, z = self.array.shape
        return x, y, z

    @property
    def spacing(self) -> np.ndarray:
        """Distance between neighbouring voxels along each stored axis, (3,), mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def is_scan_name(name: str | Path) -> bool:
    """Whether a file of this name is read by `read_volume`."""
    return str(name).lower().endswith(SUFFIXES)


def scan_stem(path: Path) -> str:
    """The file's name without `.nii.gz`, `.nii`, `.mgz` or `.mgh`."""
    name = path.name
    return next((name[: -len(s)] for s in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(s)), name)


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Read one 3-D scan (.nii, .nii.gz, .mgz, .mgh, or a folder of one DICOM series); trailing axes of length one are
    dropped.

    Raises MetavoxelError, naming the file, if it is missing, empty, not an image, truncated, of a voxel type that is
    not a real number, not 3-D, constant, holds NaN or infinite voxels, or has an affine that places no voxel.
    """
    if not isinstance(path, str | os.PathLike):
        raise MetavoxelError(f"give a scan's file, which says where it lies, not its voxels (got {type(path).__name__})")
    path = Path(path).expanduser()
    array, affine = read_series(path) if path.is_dir() else _read_file(path)
    array = np.ascontiguousarray(array.reshape(_squeezed(path, array.shape)))
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        fix = "set them to the background's value and save it again"
        raise MetavoxelError(f"{path}: {bad} of {array.size} voxels are NaN or infinite; {fix}")
    if array.min() == array.max():
        raise MetavoxelError(f"{path}: blank, all voxels are {array.flat[0]:g}; export it again or leave it out")
    return Volume(array, _checked_affine(path, affine), path)


def write_volume(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Write a scan as float32 NIfTI (or MGH by its suffix), atomically: a failure leaves the old file, or none.

    Raises MetavoxelError on another suffix, a full disk or a folder that cannot be written to.
    """
    from nibabel.freesurfer.mghformat import MGHImage

    path = Path(path)
    if not is_scan_name(path.name):
        raise MetavoxelError(f"{path}: cannot write this kind of file; name it .nii.gz, .nii or .mgz")
    array = np.asarray(volume.array, dtype=np.float32)
    is_mgh = path.name.lower().endswith((".mgz", ".mgh"))
    _write(MGHImage(array, volume.affine).to_bytes() if is_mgh else _nifti(array, volume.affine), path)


def write_series(volumes: Sequence[Volume], path: str | os.PathLike[str]) -> None:
    """Write scans of one grid as a 4-D float32 NIfTI, atomically; the last axis runs over the scans."""
    arrays = np.stack([volume.array for volume in volumes], axis=-1).astype(np.float32)
    _write(_nifti(arrays, volumes[0].affine), Path(path))


def _nifti(array: np.ndarray, affine: np.ndarray) -> bytes:
    from nibabel.nifti1 import Nifti1Image

    image = Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def _write(content: bytes, path: Path) -> None:
    if path.name.lower().endswith("gz"):
        content = gzip.compress(content, compresslevel=1, mtime=0)  # no time stamp: the same scan gives the same bytes
    with atomic_write(path, "wb") as handle:
        handle.write(content)


def _read_file(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Voxels float32 and affine as stored; of a file that can hold what its header promises."""
    image = _open(path)
    dtype = image.get_data_dtype()
    if dtype.kind not in "biuf":
        kind = "complex" if dtype.kind == "c" else "RGB" if dtype.fields else str(dtype)
        raise MetavoxelError(f"{path}: voxels are {kind}, not single real numbers; save one channel (or the magnitude)")
    shape = _squeezed(path, image.shape)
    _check_size(path, int(np.prod(shape, dtype=object)) * dtype.itemsize)
    _check_placed(path, image)
    with _reading(path), np.errstate(over="ignore", invalid="ignore"):
        return image.get_fdata(dtype=np.float32, caching="unchanged"), image.affine


def _open(path: Path) -> Any:
    """nibabel's image of the header, with the errors of a person's mistakes put into words."""
    import nibabel as nib

    if not path.exists():
        raise MetavoxelError(f"{path}: no such file; check the path")
    if not is_scan_name(path):
        raise MetavoxelError(f"{path}: not a scan; give a .nii, .nii.gz or .mgz file, or a folder of DICOM files")
    if path.stat().st_size == 0:
        raise MetavoxelError(f"{path}: the file is empty (0 bytes); copy or download it again")
    with _reading(path):
        image = nib.load(path)
    return image


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what nibabel and gzip raise on a broken file into one line."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    truncated = f"{path}: the file is truncated or corrupt; copy or download it again"
    try:
        yield
    except (EOFError, zlib.error, MemoryError) as error:  # MemoryError: a broken header asks for terabytes
        raise MetavoxelError(truncated) from error
    except PermissionError as error:
        raise MetavoxelError(f"{path}: no permission to read it; change the file's permissions") from error
    except (ImageFileError, HeaderDataError, gzip.BadGzipFile, KeyError) as error:  # KeyError: no such voxel type
        cut = any(isinstance(e, (EOFError, zlib.error)) for e in (error.__cause__, error.__context__))
        fix = "convert it to NIfTI or download it again"
        raise MetavoxelError(truncated if cut else f"{path}: not a NIfTI or MGH image inside; {fix}") from error
    except (OSError, ValueError) as error:  # "Expected 1000 bytes, got 700"; a shape that does not fit the bytes
        raise MetavoxelError(truncated) from error


def _check_placed(path: Path, image: Any) -> None:
    """Refuse a NIfTI header that says nothing of the voxels' place, or a size that nibabel would quietly mend."""
    from nibabel.nifti1 import Nifti1Header

    if not isinstance(image.header, Nifti1Header):
        return
    with _reading(path), image.file_map["image"].get_prepare_fileobj("rb") as file:
        stored = type(image.header).from_fileobj(file, check=False)
    fix = "repair the header (it maps voxels to millimetres), or convert the scan again"
    if stored["sform_code"] <= 0 and stored["qform_code"] <= 0:
        raise MetavoxelError(f"{path}: the affine is missing (sform and qform codes are 0); {fix}")
    if stored["sform_code"] <= 0 and min(stored["pixdim"][1:4]) <= 0:
        voxel = " x ".join(f"{size:g}" for size in stored["pixdim"][1:4])
        raise MetavoxelError(f"{path}: voxels of {voxel} mm, zero or negative, cannot be right; {fix}")


def _check_size(path: Path, promised: int) -> None:
    """Refuse a file that cannot hold the bytes its header promises, before memory is taken for them."""
    compressed = path.name.lower().endswith("gz")
    most = path.stat().st_size * (GZIP_BEST if compressed else 1)
    if promised > most:
        raise MetavoxelError(f"{path}: the file is truncated or corrupt (too small for its size in voxels); "
                             "copy or download it again")  # fmt: skip


def _squeezed(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without trailing singleton axes; refuses what is not a 3-D volume."""
    size = "x".join(map(str, shape))
    if 0 in shape or not shape:
        raise MetavoxelError(f"{path}: has no voxels (size {size or 0}); export it again or leave it out")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        fix = "save one volume of the series"
        raise MetavoxelError(f"{path}: {len(shape)}-D (size {size}), expected one 3-D volume; {fix}")
    if len(shape) < 3 or 1 in shape:
        raise MetavoxelError(f"{path}: a single slice (size {size}), expected a 3-D volume; stack the slices first")
    return shape


def _checked_affine(path: Path, affine: np.ndarray | None) -> np.ndarray:
    """The affine as float64; refuses one that is not finite, not invertible, or not in millimetres."""
    fix = "repair the header's sform or qform (it maps voxels to millimetres)"
    if affine is None or not np.isfinite(affine).all():
        raise MetavoxelError(f"{path}: the affine is missing or not finite; {fix}")
    matrix = np.asarray(affine, dtype=np.float64)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    # The determinant of the unit columns is free of scale: 1 for orthogonal axes, 0 when they span no volume.
    if not spacing.all() or abs(np.linalg.det(matrix[:3, :3] / spacing)) < 1e-3:
        raise MetavoxelError(f"{path}: the affine is singular, it gives the voxels no place in space; {fix}")
    low, high = SPACING_LIMITS_MM
    if spacing.min() < low or spacing.max() > high:
        voxel = " x ".join(f"{s:g}" for s in spacing)
        raise MetavoxelError(f"{path}: voxels of {voxel} mm cannot be right; {fix}")
    return matrix
