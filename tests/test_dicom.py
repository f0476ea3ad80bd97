"""DICOM folders: the same voxels and places as the NIfTI, and every folder that cannot be one scan named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from metavoxel.data.cohort import read_cohort
from metavoxel.data.volume import Volume, read_volume, write_volume
from metavoxel.errors import MetavoxelError

UID = "1.2.826.0.1.3680043.2.1125.1."


def oblique(shape: tuple[int, int, int] = (12, 10, 8)) -> Volume:
    """Whole numbers, voxels of 1.5 x 2 x 3 mm, axes turned by some degrees."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (5, -8, 12), degrees=True).as_matrix() * (1.5, 2, 3)
    affine[:3, 3] = (-40, 12, 7)
    return Volume(np.random.default_rng(0).integers(-5, 900, shape).astype(np.float32), affine)


def write_dicom(volume: Volume, folder: Path, series: str = "1", description: str = "t1 mprage") -> list[Path]:
    """One file a slice, in names whose order is not that of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    itk = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    direction = itk[:3, :3] / volume.spacing
    writer, paths = sitk.ImageFileWriter(), []
    writer.KeepOriginalImageUIDOn()
    for k in range(volume.shape[2]):
        image = sitk.GetImageFromArray(volume.array[:, :, k : k + 1].T.astype(np.int16))
        image.SetSpacing(volume.spacing.tolist())
        where = "\\".join(f"{x:.12g}" for x in itk[:3, :3] @ (0, 0, k) + itk[:3, 3])
        turned = "\\".join(f"{x:.12g}" for x in direction[:, :2].T.ravel())
        for tag, value in {
            "0008|0060": "MR", "0008|103e": description, "0020|000e": UID + series, "0020|000d": UID + "9",
            "0008|0018": f"{UID}{series}.{k + 1}", "0020|0032": where, "0020|0037": turned, "0020|0013": str(k + 1),
            "0018|0050": str(volume.spacing[2]),
        }.items():  # fmt: skip
            image.SetMetaData(tag, value)
        paths.append(folder / f"{series}_{(7 * k) % 100:03d}.dcm")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths


def test_the_same_scan_as_dicom_and_as_nifti(tmp_path):
    volume = oblique()
    write_dicom(volume, tmp_path / "dicom")
    write_volume(volume, tmp_path / "scan.nii.gz")
    one, other = read_volume(tmp_path / "dicom"), read_volume(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)


def test_a_pattern_of_folders(tmp_path):
    for person in ("01", "02"):
        write_dicom(oblique(), tmp_path / "dicom" / person / "T1w")
    write_dicom(oblique(), tmp_path / "dicom" / "02" / "FLAIR")
    (tmp_path / "dicom" / "notes.txt").write_text("not a scan")
    (tmp_path / "people.csv").write_text("participant_id,age\n01,30\n02,40\n")
    cohort = read_cohort(tmp_path / "people.csv", pattern="dicom/{participant_id}/{modality}")
    assert cohort.scans["T1w"] == [tmp_path / "dicom" / p / "T1w" for p in ("01", "02")]
    assert cohort.scans["FLAIR"] == [None, tmp_path / "dicom/02/FLAIR"]
    before = cohort.fingerprint()
    write_dicom(Volume(oblique((12, 10, 9)).array, oblique().affine), tmp_path / "dicom/02/FLAIR")
    assert cohort.fingerprint() != before
    one = read_cohort(tmp_path, pattern="dicom/{participant_id}")
    assert one.scans["image"] == [tmp_path / "dicom" / p for p in ("01", "02")]


def several(folder: Path) -> None:
    write_dicom(oblique(), folder)
    write_dicom(oblique(), folder, "2", "t2 flair")


def gap(folder: Path) -> None:
    write_dicom(oblique(), folder)[4].unlink()


def cut(folder: Path) -> None:
    path = write_dicom(oblique(), folder)[3]
    path.write_bytes(path.read_bytes()[:-100])


def another_size(folder: Path) -> None:
    paths = write_dicom(oblique(), folder)
    paths[5].write_bytes(write_dicom(oblique((9, 9, 8)), folder.with_name("other"))[5].read_bytes())


def no_series(folder: Path) -> None:
    folder.mkdir()
    (folder / "readme.txt").write_text("none here")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (several, "holds 2 DICOM series: t1 mprage (8 files), t2 flair (8 files); move each"),
        (gap, "DICOM slices are missing or unevenly spaced (6 mm between slices 4 and 5, 3 mm elsewhere)"),
        (cut, "1_021.dcm: the DICOM file is truncated; export it again"),
        (another_size, "a DICOM file is truncated or of another size"),
        (no_series, "is a folder without a DICOM series"),
    ],
)
def test_folders_that_are_no_scan(tmp_path, capfd, make, words):
    make(tmp_path / "01")
    with pytest.raises(MetavoxelError) as caught:
        read_volume(tmp_path / "01")
    assert words in str(caught.value) and str(tmp_path / "01") in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # ITK's own warnings would stand beside the one line
