"""Scans read into one array on disk."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from metavoxel.loading import large_array


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
