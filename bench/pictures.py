"""The pictures of the README and the docs, all made by the packaged model: brains drawn at four ages, a phantom's hole
filled in, and the same phantom at other ages. (docs/images/calibration.png is made by calibration.py.)

    python bench/pictures.py
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from common import IMAGES
from scipy import ndimage

import metavoxel as mv
from metavoxel.counterfactual import counterfactual
from metavoxel.data import phantom
from metavoxel.data.phantom import write_cohort
from metavoxel.data.volume import Volume, read_volume, write_volume
from metavoxel.inpaint import inpaint
from metavoxel.pictures import save_completions, save_mosaic, save_series

AGES = (30, 50, 70, 90)
PER_AGE = 2
SEED = 77_009
RADIUS_MM = 25.0


def drawn(model: mv.MetaVoxel) -> None:
    brains = [model.sample({"age": age}, ["T1w"], PER_AGE, seed=1)["T1w"] for age in AGES]
    facts = pd.DataFrame({"draw": range(PER_AGE * len(AGES)), "age": np.repeat(AGES, PER_AGE)})
    save_mosaic(IMAGES / "brains.png", np.concatenate(brains), facts, model.first_image().spacing)


def filled(model: mv.MetaVoxel, scan: Path) -> None:
    """A ball about the head's centre of mass, moved towards one side, is filled in."""
    volume = read_volume(scan)
    centre = np.array(ndimage.center_of_mass(volume.array > 0)) + np.array([20, 0, 10]) / volume.spacing
    apart = (np.indices(volume.shape) - centre[:, None, None, None]) * volume.spacing[:, None, None, None]
    mask = scan.parent / "hole.nii.gz"
    write_volume(Volume((np.sqrt((apart**2).sum(0)) < RADIUS_MM).astype(np.float32), volume.affine), mask)
    save_completions(IMAGES / "inpainting.png", inpaint(model, scan, mask, 8))


def main() -> None:
    model = mv.load("phantom")
    image = model.first_image()
    drawn(model)
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_cohort(Path(scratch) / "c", 8, seed=SEED, shape=image.shape, spacing=image.spacing[0])  # type: ignore[arg-type]
        people = phantom.subjects(8, SEED)
        who = int((people["age"] - 50).abs().argmin())
        scan = mv.read_cohort(folder).scans[image.name][who]
        assert scan is not None
        filled(model, scan)
        own = {"age": float(people["age"][who]), "sex": str(people["sex"][who])}
        save_series(IMAGES / "older.png", counterfactual(model, scan, [{"age": age} for age in (30, 50, 70, 90)], own))


if __name__ == "__main__":
    main()
