"""Scans read into one array on disk."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest

from metavoxel.data.cohort import read_cohort
from metavoxel.loading import large_array, load_images
from metavoxel.schema import Image


def test_two_that_fill_the_same_cache_do_not_disturb_each_other(tmp_path):
    file, meet = tmp_path / "T1w.npy", Barrier(2, timeout=30)

    def fill(_: int) -> None:
        with large_array(file, (3, 4)) as array:
            meet.wait()
            array[:] = np.arange(12).reshape(3, 4)
            meet.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, range(2)))
    assert np.array_equal(np.load(file), np.arange(12).reshape(3, 4)) and list(tmp_path.iterdir()) == [file]


def test_an_array_that_is_not_finished_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), large_array(tmp_path / "T1w.npy", (3, 4)):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_scans_are_read_once_whatever_facts_stand_beside_them(phantoms, scan, tmp_path):
    """A copy of one scan elsewhere is another file, and so are the same scans in another order."""
    image, cohort = Image("T1w", (8, 10, 8), (20, 20, 20)), read_cohort(phantoms)
    first = load_images(cohort, image, tmp_path)
    other = load_images(replace(cohort, table=cohort.table.assign(age=50.0)), image, tmp_path)
    assert other.key == first.key and len(list(tmp_path.iterdir())) == 1
    back = load_images(cohort.subset(range(len(cohort))[::-1]), image, tmp_path)
    assert back.key != first.key and np.array_equal(back.voxels[::-1], first.voxels)
    shutil.copyfile(scan, tmp_path / scan.name)
    paths = [tmp_path / scan.name if path == scan else path for path in cohort.scans["T1w"]]
    assert load_images(replace(cohort, scans={"T1w": paths}), image, tmp_path).key != first.key
