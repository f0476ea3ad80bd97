"""DICOM: a folder that holds the files of one series, as one volume. GDCM sorts the slices by their place in space."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from metavoxel.errors import MetavoxelError

UNEVEN = 0.02  # of the distance between slices, by which one may lie off before slices are taken to be missing
DESCRIPTION, POSITION = "0008|103e", "0020|0032"  # tags: SeriesDescription, ImagePositionPatient
FRAMES, ROWS, COLUMNS, BITS = "0028|0008", "0028|0010", "0028|0011", "0028|0100"
RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns NIfTI's world, right, anterior, superior, into that of DICOM and ITK, left, posterior, superior, and back."""
PIXELS = b"\xe0\x7f\x10\x00"  # the tag before the voxels, as most files write it


def read_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The voxels (x, y, z) float32 and the affine (4, 4), voxel index -> RAS+ world mm, of the folder's only series.

    Raises MetavoxelError, naming the folder, when it holds no series, several, one whose files cannot be read, voxels
    that are not single numbers, or slices that do not follow one another at one distance.
    """
    import SimpleITK as sitk

    with _quiet():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        if not series:
            raise MetavoxelError(f"{folder}: is a folder without a DICOM series; give a .nii.gz file or a folder of one")
        files = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in series}
        if len(series) > 1:
            named = ", ".join(f"{_description(names[0])} ({len(names)} files)" for names in files.values())
            fix = "move each into a folder of its own, and let the pattern name it: dicom/{participant_id}/{modality}"
            raise MetavoxelError(f"{folder}: holds {len(series)} DICOM series: {named}; {fix}")
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(files[series[0]])
        reader.MetaDataDictionaryArrayUpdateOn()
        reader.SetOutputPixelType(sitk.sitkUnknown)
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise MetavoxelError(f"{folder}: a DICOM file is truncated or of another size; export it again") from error
        headers = [
            {tag: reader.GetMetaData(i, tag) for tag in reader.GetMetaDataKeys(i)} for i in range(len(files[series[0]]))
        ]
        for file, header in zip(files[series[0]], headers):
            _check_whole(Path(file), header)
        if len(headers) > 1:
            _check_places(folder, [header[POSITION] for header in headers if POSITION in header], len(headers))
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise MetavoxelError(f"{folder}: voxels are RGB, not single real numbers; export the series without colours")
    return sitk.GetArrayFromImage(image).T.astype(np.float32, order="C"), _affine(image)


def _affine(image: Any) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return RAS_LPS @ affine


def _check_whole(file: Path, header: dict[str, str]) -> None:
    """Refuse a file that ends within its uncompressed voxels: GDCM fills them up with zeros and says nothing."""
    length = int(header.get(FRAMES, 1)) * int(header[ROWS]) * int(header[COLUMNS]) * int(header[BITS]) // 8
    content = file.read_bytes()
    for kind in (b"OW\0\0", b"OB\0\0", b""):  # explicit, or implicit
        _, found, voxels = content.partition(PIXELS + kind + length.to_bytes(4, "little"))
        if found and len(voxels) < length:
            raise MetavoxelError(f"{file}: the DICOM file is truncated; export it again")


def _check_places(folder: Path, positions: list[str], n: int) -> None:
    """Refuse what GDCM only warns about: a stack with a slice missing would be squeezed together."""
    if len(positions) < n:
        lost = n - len(positions)
        raise MetavoxelError(f"{folder}: {lost} of {n} DICOM files do not say where they lie; export them again")
    places = np.array([[float(x) for x in position.split("\\")] for position in positions])
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    usual = float(np.median(steps))
    odd = np.flatnonzero(np.abs(steps - usual) > UNEVEN * max(usual, 1e-6))
    if usual == 0 or odd.size:
        at = int(odd[0]) if odd.size else 0
        gap = f"{steps[at]:.3g} mm between slices {at + 1} and {at + 2}, {usual:.3g} mm elsewhere"
        raise MetavoxelError(f"{folder}: DICOM slices are missing or unevenly spaced ({gap}); export the series again")


def _description(file: str) -> str:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader.GetMetaData(DESCRIPTION).strip() if reader.HasMetaDataKey(DESCRIPTION) else Path(file).name


@contextmanager
def _quiet() -> Iterator[None]:
    """Without ITK's warnings on standard error: what matters of them is refused in words."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
