"""Trains the packaged model: one training from nothing, on phantoms that are rendered straight into memory.

    python bench/package.py OUT [-n 200000] [--config bench/packaged.yaml]

On a GPU in a quarter of an hour. OUT then holds the run, whose weights are float32; `--publish` also puts them, as float16,
where `metavoxel.load("phantom")` finds them.
"""

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from images import scans

import metavoxel as mv
from metavoxel.build import fit
from metavoxel.data import phantom
from metavoxel.files import digits_of
from metavoxel.loading import ImageStack, large_array
from metavoxel.model import PACKAGED
from metavoxel.progress import one_bar

SEED = 2027
PART = 1000
"""People that are rendered at a time."""


def rendered(file: Path, image: mv.Image, part: range, seed: int) -> int:
    """Fills rows `part` of an array of scans; with how many."""
    torch.set_num_threads(1)
    people = phantom.subjects(part.stop, seed).iloc[part.start :]
    np.load(file, mmap_mode="r+")[part.start : part.stop] = scans(people, seed, image)
    return len(part)


def cohort(file: Path, image: mv.Image, n: int, seed: int) -> ImageStack:
    """The scans of n phantoms, by a process a core."""
    with large_array(file, (n, *image.shape)):
        pass
    parts = [range(first, min(n, first + PART)) for first in range(0, n, PART)]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool, one_bar("phantoms", False) as report:
        done = 0
        for count in pool.map(rendered, *zip(*((file, image, part, seed) for part in parts))):
            done += count
            report(done, n)
    return ImageStack(np.load(file, mmap_mode="r"), np.ones(n, bool), digits_of(f"phantoms {n} {seed}"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("-n", type=int, default=200_000)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "packaged.yaml")
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    config = mv.read_config(options.config)
    image = mv.Image("T1w", config.shape, config.spacing)
    schema = mv.Schema([image, mv.Continuous("age", "years"), mv.Categorical("sex", phantom.SEXES)])
    people = phantom.subjects(options.n, SEED)[["age", "sex"]]
    with tempfile.TemporaryDirectory() as scratch:
        scans = cohort(Path(scratch) / "scans.npy", image, options.n, SEED)
        model = fit(schema, {image.name: scans}, people, options.out, config)
    if options.publish:
        model.save(PACKAGED / "phantom", half=True)


if __name__ == "__main__":
    main()
