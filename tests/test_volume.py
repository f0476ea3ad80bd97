"""Scans: what is refused, what is written, and the way to the model's grid and back."""

import errno
import gzip
import itertools
import json
import os
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from metavoxel.data.conform import Conformed, Geometry, Grid, closed, conform, filled, grid_mask, restore, restore_mask
from metavoxel.data.volume import Volume, atomic_write, read_volume, write_volume
from metavoxel.errors import MetavoxelError

DATA = Path(__file__).parents[1].parent / "shared" / "data"
GRID = Grid((32, 40, 32), (5.0, 5.0, 5.0))
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared real data are not beside this checkout")


def head(shape=(60, 72, 64), spacing=2.5, marker=True) -> Volume:
    """A smooth ellipsoid of intensity 900 with a bright spot on its right, front and top; RAS."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    radius = np.linalg.norm((index - np.array([30, 36, 32])) / np.array([24, 30, 22]), axis=-1)
    array = 900 / (1 + np.exp(12 * (radius - 1)))
    if marker:
        array += 300 * np.exp(-(np.linalg.norm(index - np.array([40, 48, 40]), axis=-1) ** 2) / 18)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -70.0, -95.0, -60.0
    return Volume(np.where(array > 5, array, 0).astype(np.float32), affine)


def stored_as(volume: Volume, orientation: np.ndarray) -> Volume:
    """The same scan with permuted and flipped axes."""
    array = nib.orientations.apply_orientation(volume.array, orientation)
    return Volume(array, volume.affine @ nib.orientations.inv_ornt_aff(orientation, volume.shape))


ORIENTATIONS = [
    np.column_stack([order, flips])
    for order in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def save(path: Path, array: np.ndarray, affine=None) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2, 2, 1]) if affine is None else affine), path)
    return path


def ramp(*shape, dtype=np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(MetavoxelError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert "\n" not in message and path.name in message and ";" in message, message
    assert all(word in message for word in words), message


# --- reading


def test_missing_folder_and_wrong_suffix(tmp_path):
    refused(tmp_path / "gone.nii.gz", "no such file")
    refused(tmp_path, "is a folder")
    (tmp_path / "scan.dcm").write_bytes(b"DICM")
    refused(tmp_path / "scan.dcm", "folder of DICOM")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
def test_not_an_image(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"hello, I am a text file" * 100)
    refused(path, "not a NIfTI")
    path.write_bytes(gzip.compress(b"and I a compressed one" * 100))
    refused(path, "not a NIfTI")
    path.write_bytes(b"")
    refused(path, "empty")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_truncated(tmp_path, name, kept):
    noise = np.random.default_rng(0).normal(size=(20, 21, 22)).astype(np.float32)
    image = (nib.MGHImage if name.endswith("mgz") else nib.Nifti1Image)(noise, np.eye(4))
    nib.save(image, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * kept)])
    refused(tmp_path / name, "truncated")


def test_shapes(tmp_path):
    refused(save(tmp_path / "four.nii.gz", ramp(4, 5, 6, 3)), "4-D", "4x5x6x3")
    refused(save(tmp_path / "flat.nii.gz", ramp(4, 5)), "single slice")
    refused(save(tmp_path / "slice.nii.gz", ramp(4, 5, 1)), "single slice")
    refused(save(tmp_path / "none.nii.gz", np.zeros((4, 0, 6), np.float32)), "no voxels")
    assert read_volume(save(tmp_path / "trailing.nii.gz", ramp(4, 5, 6, 1, 1))).shape == (4, 5, 6)


def test_voxels(tmp_path):
    holes = ramp(4, 5, 6)
    holes[0, :2, 0] = np.nan, np.inf
    refused(save(tmp_path / "nan.nii.gz", holes), "2 of 120 voxels are NaN or infinite")
    refused(save(tmp_path / "blank.nii.gz", np.full((4, 5, 6), 7, np.int16)), "blank", "7")
    refused(save(tmp_path / "complex.nii.gz", ramp(4, 5, 6, dtype=np.complex64)), "complex")
    rgb = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(save(tmp_path / "rgb.nii.gz", rgb), "RGB")
    refused(save(tmp_path / "huge.nii.gz", ramp(4, 5, 6, dtype=np.float64) * 1e38), "infinite")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_integer_and_real_voxels(tmp_path, dtype):
    volume = read_volume(save(tmp_path / "a.nii.gz", ramp(4, 5, 6, dtype=dtype)))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, ramp(4, 5, 6))
    np.testing.assert_allclose(volume.spacing, 2)


@pytest.mark.parametrize(
    ("diagonal", "word"), [((0, 0, 0), "singular"), ((2, 2, 0), "singular"), ((2, 2e-3, 2), "cannot be right")]
)
def test_affine(tmp_path, diagonal, word):
    image = nib.Nifti1Image(ramp(4, 5, 6), None)
    image.header["sform_code"] = 1
    for row, value in zip(("srow_x", "srow_y", "srow_z"), np.diag(diagonal)):
        image.header[row] = [*value, 0]
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(4) + image.get_fdata().astype("f4").tobytes("F"))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[108:112] = np.float32(352).tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    refused(tmp_path / "a.nii", word)


# --- writing


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
def test_write_then_read(tmp_path, name):
    volume = stored_as(head(), ORIENTATIONS[17])
    write_volume(volume, tmp_path / name)
    again = read_volume(tmp_path / name)
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
def test_unreadable(tmp_path, monkeypatch, name):
    write_volume(Volume(np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.eye(4)), tmp_path / name)

    def locked(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(nib, "load", locked)  # not by chmod: an administrator reads everything
    refused(tmp_path / name, "no permission to read it", "change the file's permissions")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_2(tmp_path, name):
    array, affine = np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.diag([-2.0, 2, 3, 1])
    nib.Nifti2Image(array, affine).to_filename(tmp_path / name)
    read = read_volume(tmp_path / name)
    np.testing.assert_array_equal(read.array, array)
    np.testing.assert_allclose(read.affine, affine)


def test_same_scan_same_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(head(), tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_full_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.nii.gz"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(MetavoxelError, match=r"disk full while writing .*a\.nii\.gz; free space"):
        write_volume(head(), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_failures_in_the_block_leave_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a.json") as handle:
        handle.write("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(MetavoxelError, match="create it first"), atomic_write(tmp_path / "no" / "a.json"):
        pass
    with pytest.raises(MetavoxelError, match=r"name it \.nii\.gz"):
        write_volume(head(), tmp_path / "a.png")


def test_atomic_text_is_utf8(tmp_path):
    with atomic_write(tmp_path / "a.tsv") as handle:
        handle.write("größe\n")
    assert (tmp_path / "a.tsv").read_bytes() == "größe\n".encode()


# --- the model's grid


@pytest.fixture(scope="module")
def reference() -> Conformed:
    return conform(head(), GRID)


def test_a_scan_at_the_grids_spacing_is_moved_by_whole_voxels():
    """Interpolation would blur partial volumes: a coarse scan comes through voxel for voxel, and back."""
    rng = np.random.default_rng(0)
    volume = Volume((head(shape=(60, 72, 64)).array[::2, ::2, ::2] * rng.uniform(0.7, 1, (30, 36, 32))).astype(np.float32),
                    np.diag([5.0, 5.0, 5.0, 1.0]))  # fmt: skip
    conformed = conform(volume, GRID)
    native = (volume.array - conformed.geometry.offset) * conformed.geometry.slope
    assert np.isin(conformed.array[conformed.array > 0.1].round(5), native.round(5)).all()
    back = restore(conformed.array, conformed)
    np.testing.assert_allclose(back.array, volume.array, atol=1e-3)


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
def test_every_orientation_conforms_to_the_same(reference, orientation):
    volume = stored_as(head(), orientation)
    conformed = conform(volume, GRID)
    np.testing.assert_allclose(conformed.array, reference.array, atol=1e-5)
    np.testing.assert_allclose(conformed.affine, reference.affine, atol=1e-9)
    back = restore(conformed.array, conformed)
    assert back.shape == volume.shape
    np.testing.assert_array_equal(back.affine, volume.affine)
    np.testing.assert_allclose(back.array, stored_as(restore(reference.array, reference), orientation).array, atol=1e-2)


def test_right_front_top_and_centred(reference):
    assert reference.array.shape == GRID.shape and reference.array.dtype == np.float32
    bright = np.array(np.unravel_index(reference.array.argmax(), GRID.shape))
    middle = (np.array(GRID.shape) - 1) / 2
    assert (bright > middle).all(), "right, anterior and superior are the high ends of the axes"
    assert np.abs(ndimage.center_of_mass(reference.array > 0.3) - middle).max() < 0.6
    assert reference.array[0, 0, 0] == 0 and 0.9 < reference.array.max() < 1.3
    # A world point keeps its place: the marker, at (40, 48, 40) of the scan.
    world = head().affine @ [40, 48, 40, 1]
    assert np.abs(np.linalg.inv(reference.affine) @ world - [*bright, 1]).max() < 1


def test_round_trip_keeps_a_smooth_scan():
    volume = head(marker=False)
    conformed = conform(volume, Grid((64, 80, 64), (2.5, 2.5, 2.5)))
    back = restore(conformed.array, conformed)
    assert (
        np.abs(back.array - volume.array).mean() < 6 and np.corrcoef(back.array.flat, volume.array.flat)[0, 1] > 0.998
    )


def test_intensity_units_do_not_matter(reference):
    volume = head()
    shifted = conform(Volume(volume.array * 3 - 1000, volume.affine), GRID)
    np.testing.assert_allclose(shifted.array, reference.array, atol=1e-3)
    assert shifted.geometry.offset == pytest.approx(reference.geometry.offset * 3 - 1000, abs=0.1)
    back = restore(shifted.array, shifted).array
    np.testing.assert_allclose(back, restore(reference.array, reference).array * 3 - 1000, atol=1)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.9])
def test_holes_are_filled_as_scipy_fills_them(share):
    mask = np.random.default_rng(0).random((20, 24, 18)) < share
    np.testing.assert_array_equal(filled(mask), ndimage.binary_fill_holes(mask))


@pytest.mark.parametrize("shape", [(20, 24, 18), (3, 4, 5)])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_masks_are_closed_as_scipy_closes_them(share, shape):
    mask = np.random.default_rng(0).random(shape) < share
    for times in (1, 3):
        theirs = ndimage.binary_closing(np.pad(mask, times), iterations=times)
        np.testing.assert_array_equal(closed(mask, times), theirs[times:-times, times:-times, times:-times])


def test_spacing_matters_little():
    coarse = head()
    fine = Volume(ndimage.zoom(coarse.array, 2, order=1, grid_mode=True, mode="nearest"), coarse.affine.copy())
    fine.affine[:3, :3] /= 2
    fine.affine[:3, 3] -= 0.625  # zoom in grid mode keeps the outer faces of the voxels
    one, two = conform(coarse, GRID), conform(fine, GRID)
    np.testing.assert_allclose(one.affine, two.affine, atol=1)
    assert np.abs(one.array - two.array).mean() < 0.01


def test_noise_is_averaged_not_aliased():
    noise = np.random.default_rng(0).normal(size=(160, 160, 160)).astype(np.float32)
    volume = Volume(np.where(np.indices(noise.shape).min(0) > 4, 1000 + 100 * noise, 0).astype(np.float32), np.eye(4))
    array = conform(volume, Grid((16, 16, 16), (5.0, 5.0, 5.0))).array
    inner = array[4:-4, 4:-4, 4:-4]
    assert inner.std() / inner.mean() < 0.02, "0.1 in the scan; picking every fifth voxel would keep it at 0.1"


def test_outside_of_the_field_of_view():
    volume = head()
    small = conform(volume, Grid((16, 16, 16), (5.0, 5.0, 5.0)))
    back = restore(np.ones_like(small.array), small)
    inside = back.array > 100
    np.testing.assert_allclose(back.array[~inside], small.geometry.offset, rtol=1e-5)
    assert inside.sum() * 2.5**3 == pytest.approx((16 * 5) ** 3, rel=0.1)


def test_geometry_through_json(reference):
    record = json.loads(json.dumps(reference.geometry.to_dict()))
    again = Geometry.from_dict(record)
    np.testing.assert_array_equal(restore(reference.array, again).array, restore(reference.array, reference).array)
    assert again.to_dict() == reference.geometry.to_dict()


def test_sequences_share_a_centre(reference):
    darker = head(marker=False)
    darker.array[:, :36] = 0
    array = conform(stored_as(darker, ORIENTATIONS[29]), GRID, reference.centre)
    np.testing.assert_allclose(array.affine, reference.affine, atol=1e-6)
    assert np.abs(conform(darker, GRID).centre - reference.centre).max() > 5


def test_masks(reference):
    volume = head()
    box = np.zeros(volume.shape, np.float32)
    box[20:36, 30:46, 20:36] = 5
    share = grid_mask(Volume(box, volume.affine), reference)
    assert share.shape == GRID.shape and share.min() == 0 and share.max() == pytest.approx(1, abs=1e-3)
    assert share.sum() * 5**3 == pytest.approx((box > 0).sum() * 2.5**3, rel=0.02)
    back = restore_mask(share, reference).array > 0
    assert 2 * (back & (box > 0)).sum() / (back.sum() + (box > 0).sum()) > 0.9
    with pytest.raises(MetavoxelError, match="size"):
        grid_mask(Volume(box[1:], volume.affine), reference)
    with pytest.raises(MetavoxelError, match="other affine"):
        grid_mask(Volume(box, volume.affine + np.eye(4, k=3) * 30), reference)


@settings(max_examples=30, deadline=None)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    angles=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    spacing=st.tuples(*[st.floats(1.5, 3)] * 3),
    origin=st.tuples(*[st.floats(-200, 200)] * 3),
    shape=st.tuples(*[st.integers(12, 20)] * 3),
)
def test_any_affine_round_trip(orientation, angles, spacing, origin, shape):
    """A world point under the grid is the same before and after; the scan comes back on its own voxels."""
    from scipy.spatial.transform import Rotation

    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() * spacing
    affine[:3, 3] = origin
    index = np.indices(shape)
    blob = 100 * np.exp(-sum(((i - n / 2) / (n / 4)) ** 2 for i, n in zip(index, shape)))
    volume = stored_as(Volume(blob.astype(np.float32), affine), orientation)
    conformed = conform(volume, Grid((48, 48, 48), (1.5, 1.5, 1.5)))
    back = restore(conformed.array, conformed)
    assert back.shape == volume.shape
    np.testing.assert_array_equal(back.affine, volume.affine)
    assert np.abs(back.array - volume.array).max() < 20  # half a voxel of linear interpolation, twice

    def centre(array: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        return matrix[:3, :3] @ np.array(ndimage.center_of_mass(array)) + matrix[:3, 3]

    level = volume.array - conformed.geometry.offset
    np.testing.assert_allclose(
        centre(np.clip(conformed.array, 0, None), conformed.affine),
        centre(np.clip(level, 0, None), volume.affine),
        atol=1,
    )


# --- real scans


@real_data
def test_real_brains_are_centred_and_fast():
    paths = sorted((DATA / "ds002748").glob("sub-*/anat/*_T1w.nii.gz"))[:5]
    conform(read_volume(paths[0]), GRID)  # imports
    start = time.perf_counter()
    for path in paths:
        volume = read_volume(path)
        conformed = conform(volume, GRID)
        world = volume.affine @ [*ndimage.center_of_mass(volume.array > 0), 1]
        at = np.linalg.inv(conformed.affine) @ world
        assert np.abs(at[:3] - (np.array(GRID.shape) - 1) / 2).max() * 5 < 4, "mm from the grid's centre"
        back = restore(conformed.array, conformed)
        assert back.shape == volume.shape and np.corrcoef(back.array.flat, volume.array.flat)[0, 1] > 0.9
    assert (time.perf_counter() - start) / len(paths) < 0.6  # reading, conforming and restoring; 0.1 s on an idle core


@real_data
def test_real_heads_stand_upright():
    """IXI is stored posterior, superior, right; on the grid the ventricles lie near the middle, the eyes in front."""
    for person in ("sub-IXI012", "sub-IXI013"):
        scan = DATA / "ixi50" / person / "anat" / f"{person}_T1w.nii.gz"
        conformed = conform(read_volume(scan), GRID)
        labels = nib.load(DATA / "ixi50/derivatives/dlmuse" / person / "anat" / f"{person}_desc-dlmuse_dseg.nii.gz")
        muse = np.asarray(labels.dataobj)

        def place(mask, labels=labels, conformed=conformed):
            world = labels.affine @ [*ndimage.center_of_mass(mask), 1]
            return (np.linalg.inv(conformed.affine) @ world)[:3]

        right, left = place(muse == 51), place(muse == 52)
        assert right[0] > 15.5 > left[0]
        brain = grid_mask(Volume((muse > 0).astype(np.float32), labels.affine), conformed)
        assert brain.sum() * 125 > 0.97 * (muse > 0).sum() * 8, "of the brain's volume lies on the grid"
        assert conformed.array[brain > 0.9].mean() > 2 * conformed.array[brain == 0].mean()
