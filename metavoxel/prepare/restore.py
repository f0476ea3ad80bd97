"""The way back: from MNI space to the voxels and the intensities of the scan as it was taken."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from metavoxel.data.volume import Volume, read_volume, scan_stem, write_volume
from metavoxel.errors import MetavoxelError
from metavoxel.prepare.bias import field_on
from metavoxel.prepare.resample import resample
from metavoxel.prepare.task import read_record

LABELS = ("mask", "dseg")  # suffixes of images whose values are not to be interpolated


def restore_scan(
    result: str | os.PathLike[str],
    out: str | os.PathLike[str],
    of: str | os.PathLike[str] | None = None,
    *,
    labels: bool = False,
) -> Volume:
    """Write `result`, an image in MNI space on any grid, on the raw scan's own voxels; returns it.

    `of`: the prepared scan whose record tells the way, `result` itself when None. An image gets back its bias field and
    the raw scan's units; 0 where MNI space was not covered. Masks, segmentations (by their names) and `labels` keep
    their values. Raises MetavoxelError when there is no record, or a file cannot be read or written.
    """
    result, out = Path(result), Path(out)
    prepared = Path(of) if of is not None else result
    sidecar = prepared.with_name(scan_stem(prepared) + ".json")
    record = read_record(sidecar)
    if not record:
        fix = "give the prepared scan that the result belongs to with --of"
        raise MetavoxelError(f"{sidecar}: no record of how the scan was prepared; {fix}")
    volume = read_volume(result)
    labels = labels or scan_stem(result).endswith(LABELS)
    affine = np.asarray(record["Native"]["Affine"])
    x, y, z = record["Native"]["Shape"]
    to_result = np.linalg.inv(np.asarray(record["Steps"]["Registration"]["MatrixToNativeWorld"]))
    array = resample(volume.array, volume.affine, (x, y, z), affine, to_result, order=0 if labels else 3)
    if not labels:
        field = read_volume(prepared.with_name(record["Steps"]["BiasCorrection"]["Field"]))
        array *= field_on(field, (x, y, z), affine) / np.float32(record["Steps"]["Intensity"]["Slope"])
    restored = Volume(array, affine, out)
    write_volume(restored, out)
    return restored
