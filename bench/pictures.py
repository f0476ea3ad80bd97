"""The README's picture: brains drawn from the packaged model at four ages.

    python bench/readme_picture.py
"""

from pathlib import Path

import numpy as np
import pandas as pd

import metavoxel as mv
from metavoxel.pictures import save_mosaic

AGES = (30, 50, 70, 90)
PER_AGE = 2


def main() -> None:
    model = mv.load("phantom")
    brains = [model.sample({"age": age}, ["T1w"], PER_AGE, seed=1)["T1w"] for age in AGES]
    facts = pd.DataFrame({"draw": range(PER_AGE * len(AGES)), "age": np.repeat(AGES, PER_AGE)})
    out = Path(__file__).parents[1] / "docs" / "images" / "brains.png"
    save_mosaic(out, np.concatenate(brains), facts, model.schema.images[0].spacing)


if __name__ == "__main__":
    main()
