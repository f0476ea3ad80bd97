"""Volumes of tissues, found without training, of phantoms (whose volumes are known) and of ixi50's brains (whose DLMUSE
labels are given; the built-in extraction strips them): correlation, slope and mean ratio, found against known.

    python bench/anatomy.py [-n PHANTOMS]

r and slope are of volumes in ml, but of the ventricles' logs. `ruler` is the demo's ridge regression, fitted to other
phantoms' known ventricles; both are of the ventricles in % of the head.
"""

import argparse
import time

import numpy as np
import pandas as pd
import torch
from common import SHARED, record
from random_heads import read_head

import metavoxel as mv
from metavoxel.data import phantom
from metavoxel.data.conform import Grid, conform
from metavoxel.data.phantom_render import render
from metavoxel.data.volume import Volume
from metavoxel.demo import calibrated_ruler
from metavoxel.evaluate.anatomy import VOLUMES, volumes
from metavoxel.latents import affine_of
from metavoxel.prepare.brain import find_brain

SEED = 77_009
COARSE, FINE = Grid((32, 40, 32), (5.0, 5.0, 5.0)), Grid((80, 100, 80), (2.0, 2.0, 2.0))
FLUID, LATERAL = [1, 4, 11, 46, 49, 50, 51, 52], [51, 52]
WHITE = [40, 41, *range(81, 96)]
"""MUSE's labels; 1 is CSF around the brain. What is neither fluid nor white is called grey, the brain stem too."""


def affine(grid: Grid) -> np.ndarray:
    return affine_of(mv.Image("T1w", grid.shape, grid.spacing))


def phantoms(n: int) -> tuple[np.ndarray, pd.DataFrame, pd.Series]:
    """Scans as a model sees them, their true volumes, and ventricles in % of the head."""
    people = phantom.subjects(n, SEED)
    made = torch.cat(list(render(people, seed=SEED, device="cpu")))[:, 0].numpy()
    scans = np.stack([conform(Volume(voxels, affine(COARSE)), COARSE).array for voxels in made])
    icv, percent = people["icv_ml"], people["ventricles_percent"]
    brain = icv * (people["brain_percent"] - percent) / 100
    grey = brain * people["grey_percent"] / 100
    parts = (icv, brain, grey, brain - grey, icv - brain, icv * percent / 100)
    return scans, pd.DataFrame(dict(zip(VOLUMES, parts, strict=True))), percent


def brains() -> tuple[dict[str, list[np.ndarray]], pd.DataFrame]:
    """ixi50 on both grids, stripped, and the volumes of its labels."""
    scans: dict[str, list[np.ndarray]] = {"5mm": [], "2mm": []}
    rows = []
    for folder in sorted((SHARED / "ixi50").glob("sub-*")):
        array, labels, place = read_head(folder.name)
        stripped = Volume(array * (find_brain(array, place) > 0.5), place)
        for name, grid in (("5mm", COARSE), ("2mm", FINE)):
            scans[name].append(conform(stripped, grid).array.astype(np.float16))
        ml = np.bincount(labels.ravel(), minlength=256) * abs(np.linalg.det(place[:3, :3])) / 1000
        head, fluid, white = ml[1:].sum(), ml[FLUID].sum(), ml[WHITE].sum()
        parts = (head, head - fluid, head - fluid - white, white, fluid, ml[LATERAL].sum())
        rows.append(dict(zip(VOLUMES, parts, strict=True)))
    return scans, pd.DataFrame(rows)


def compared(found: pd.DataFrame, truth: pd.DataFrame, label: str) -> dict[str, object]:
    figures: dict[str, object] = {}
    for name in VOLUMES:
        x, y = truth[name].to_numpy(), found[name].to_numpy()
        ratio = float(y.mean() / x.mean())
        if name == "ventricles_ml":
            x, y = np.log(x), np.log(y)
        part = f"{name.removesuffix('_ml')}_{label}"
        figures[f"r_{part}"] = float(np.corrcoef(x, y)[0, 1])
        figures[f"slope_{part}"], figures[f"mean_ratio_{part}"] = float(np.polyfit(x, y, 1)[0]), ratio
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=200)
    n = parser.parse_args().n
    scans, truth, percent = phantoms(n)
    real, labels = brains()
    volumes(scans[:1], affine(COARSE))  # the first reads the template
    volumes(real["2mm"][:1], affine(FINE))
    figures: dict[str, object] = {}
    found = {}
    jobs = (("phantoms_5mm", scans, COARSE), ("ixi50_5mm", real["5mm"], COARSE), ("ixi50_2mm", real["2mm"], FINE))
    for label, voxels, grid in jobs:
        start = time.process_time()
        found[label] = volumes(voxels, affine(grid))
        figures[f"cpu_seconds_a_scan_{label}"] = (time.process_time() - start) / len(voxels)
        figures |= compared(found[label], truth if label.startswith("phantoms") else labels, label)
    _, ruled = calibrated_ruler(scans, percent.to_numpy(), COARSE.spacing)
    ours = 100 * found["phantoms_5mm"]["ventricles_ml"] / found["phantoms_5mm"]["head_ml"]
    for name, measured in (("ruler", ruled), ("volumes", ours.to_numpy())):
        figures[f"r_log_ventricles_percent_phantoms_{name}"] = float(np.corrcoef(np.log(measured), np.log(percent))[0, 1])
    record("anatomy", f"{n} phantoms, {len(labels)} brains of ixi50", figures)


if __name__ == "__main__":
    main()
