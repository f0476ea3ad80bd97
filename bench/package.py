"""Trains the packaged model's successor: one training from nothing, on phantoms that are rendered straight into memory.

    python bench/package.py OUT [-n 160000] [--config bench/packaged.yaml]

Ten minutes of a GPU. `bench/distil.py` then teaches it to read a little better still.
"""

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from images import scans

import metavoxel as mv
from metavoxel.build import fit
from metavoxel.data import phantom
from metavoxel.files import digits_of, make_folder
from metavoxel.loading import ImageStack, large_array
from metavoxel.progress import one_bar

SEED = 2027
PART = 1000
"""People that are rendered at a time."""


def rendered(file: Path, image: mv.Image, part: range, seed: int) -> None:
    """Fills rows `part` of an array of scans."""
    torch.set_num_threads(1)
    people = phantom.subjects(part.stop, seed).iloc[part.start :]
    np.load(file, mmap_mode="r+")[part.start : part.stop] = scans(people, seed, image)


def cohort(file: Path, image: mv.Image, n: int, seed: int) -> ImageStack:
    """The scans of n phantoms, by a process a core; kept in `file`."""
    parts = [range(first, min(n, first + PART)) for first in range(0, n, PART)]
    if not file.exists():
        make_folder(file.parent)
        with large_array(file, (n, *image.shape)) as stack, one_bar("phantoms") as report:
            work = partial(rendered, Path(str(stack.filename)), image, seed=seed)
            with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
                for number, _ in enumerate(pool.map(work, parts), start=1):
                    report(min(n, number * PART), n)
    return ImageStack(np.load(file, mmap_mode="r"), np.ones(n, bool), digits_of(f"phantoms {n} {seed}"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("-n", type=int, default=160_000)
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "packaged.yaml")
    options = parser.parse_args()
    config = mv.read_config(options.config)
    image = mv.Image("T1w", config.shape, config.spacing)
    schema = mv.Schema([image, mv.Continuous("age", "years"), mv.Categorical("sex", phantom.SEXES)])
    people = phantom.subjects(options.n, SEED)[["age", "sex"]]
    with tempfile.TemporaryDirectory() as scratch:
        stack = cohort(Path(scratch) / "scans.npy", image, options.n, SEED)
        fit(schema, {image.name: stack}, people, options.out, config)


if __name__ == "__main__":
    main()
