"""Pictures are whole PNG files, show what they are given and leave matplotlib alone."""

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from metavoxel import pictures
from metavoxel.errors import MetavoxelError


def _pixels(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png), format="png")[..., :3]


@pytest.mark.parametrize("shape, spacing", [((8, 8), (1.0, 1.0)), ((6, 8, 5), (2.0, 2.0, 4.0))])
@pytest.mark.parametrize("count", [1, 14])
def test_save_mosaic(tmp_path, shape, spacing, count):
    images = np.random.default_rng(0).random((count, *shape)).astype(np.float32)
    facts = pd.DataFrame({"draw": range(count), "age": np.linspace(20, 90, count), "sex": "F"})
    pictures.save_mosaic(tmp_path / "a.png", images, facts, spacing)
    pictures.save_mosaic(tmp_path / "b.png", images, facts[["draw"]], spacing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    assert imread(tmp_path / "a.png").std() > 0.05


def test_mosaic_keeps_millimetres_and_directions():
    image = np.zeros((4, 8))  # x, y
    image[0, -1] = 1  # left, front
    tile = _pixels(pictures.mosaic(image[None], [""], (2.0, 1.0), width=2.0))
    dark = (tile.max(-1) < 0.2).nonzero()
    assert np.ptp(dark[0]) == pytest.approx(np.ptp(dark[1]), rel=0.1)  # 8 mm by 8 mm
    bright = (tile.min(-1) > 0.8) & (np.indices(tile.shape[:2])[1] < 20)
    inner = bright[dark[0].min() : dark[0].max(), dark[1].min() :]
    rows = inner.nonzero()[0]
    assert len(rows) and rows.mean() < len(inner) / 3  # front is up, left is left


def test_mosaic_of_flat_and_of_undefined_images():
    for value in (0.0, 1.0, np.nan):
        pictures.mosaic(np.full((2, 4, 5, 6), value), ["", "b"], (1, 1, 1), note="note")


def test_captions_are_short():
    caption = pictures._caption({"draw": 3, **{f"a_long_name_{k}": 1.23456789 for k in range(20)}})
    assert caption.count("\n") == 2 and caption.endswith("...") and "1.235" in caption
    assert pictures._caption({"draw": 3}) == "draw 3"


def test_mosaic_refuses_what_it_cannot_show(tmp_path):
    with pytest.raises(MetavoxelError, match="2-D or 3-D"):
        pictures.save_mosaic(tmp_path / "a.png", np.zeros((2, 4)), pd.DataFrame({"draw": [0, 1]}), (1, 1))
    with pytest.raises(MetavoxelError, match="3 rows"):
        pictures.save_mosaic(tmp_path / "a.png", np.zeros((2, 4, 4)), pd.DataFrame({"draw": range(3)}), (1, 1))
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_left_alone():
    before = dict(mpl.rcParams)
    pictures.seconds_per_answer({"a": 0.01, "b": 2.0})
    assert dict(mpl.rcParams) == before


def test_duration():
    assert [pictures.duration(s) for s in (0.0123, 0.5, 1.23, 75.2)] == ["12 ms", "0.5 s", "1.2 s", "75 s"]
