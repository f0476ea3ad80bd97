"""Preparation of raw scans: how fast, in how much memory, and how surely heads that lie askew are aligned.

    python bench/prepare.py speed [-n SCANS] [--spacing MM]
    python bench/prepare.py accuracy [-n TRIALS]
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from common import SHARED, record
from scipy.spatial.transform import Rotation

import metavoxel as mv
from metavoxel.data.conform import to_ras
from metavoxel.data.volume import Volume, read_volume, write_volume
from metavoxel.files import make_folder
from metavoxel.prepare.bias import estimate_field, field_on
from metavoxel.prepare.register import register
from metavoxel.prepare.resample import around, resample
from metavoxel.prepare.run import plan
from metavoxel.prepare.scan import prepare_scan
from metavoxel.prepare.strip import Head, brain_mask
from metavoxel.prepare.task import Settings, Task
from metavoxel.prepare.template import load_template
from metavoxel.prepare.workers import share_out

HEADS = 5  # of each cohort, moved about in turn
MOST_DEGREES, MOST_MM = 25.0, 30.0
CLOSE_MM = 1.5


def tasks(cohort: str, out: Path, n: int) -> list[Task]:
    return plan(mv.read_cohort(SHARED / cohort, ["T1w"]), out)[:n]


def measured(task: Task, settings: Settings) -> None:
    """One scan, leaving its CPU seconds and the process' peak memory (MB) beside it."""
    import resource

    load_template()
    start = time.process_time()
    prepare_scan(task, settings)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (task.out / f"{task.participant}.cost").write_text(f"{seconds} {peak}")


def speed(n: int, spacing: float) -> None:
    cohort = "ds002748" if spacing >= 2 else "ds002748_fullres"
    figures: dict[str, object] = {}
    walls = {}
    with tempfile.TemporaryDirectory() as folder:
        for jobs in (1, 2):
            todo = tasks(cohort, make_folder(Path(folder) / str(jobs)), n)
            start = time.perf_counter()
            failed = [why for _, why in share_out(partial(measured, settings=Settings(spacing=spacing)), todo, jobs) if why]
            walls[jobs] = time.perf_counter() - start
            assert not failed, failed
            figures[f"wall_seconds_a_scan_{jobs}_jobs"] = walls[jobs] / len(todo)
            costs = np.array([(task.out / f"{task.participant}.cost").read_text().split() for task in todo], float)
            figures[f"cpu_seconds_a_scan_{jobs}_jobs"] = float(costs[:, 0].mean())
            figures[f"peak_memory_mb_a_process_{jobs}_jobs"] = float(costs[:, 1].max())
    figures["speed_up_of_2_jobs"] = walls[1] / walls[2]
    record(f"prepare_speed_{spacing:g}mm", f"{len(todo)} scans of {cohort} to {spacing:g} mm", figures)


def corrected(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A real brain without its drift: array, mask, affine."""
    scan = read_volume(task.source)
    array, affine = to_ras(scan.array, scan.affine)
    mask, _ = brain_mask(Head(array, affine, task.source, task.mask), "auto")
    return array / field_on(estimate_field(array, mask, affine), array.shape, affine), mask, affine


def still(task: Task) -> None:
    """A brain where it lies: saved for the trials with where the template was found in it."""
    array, mask, affine = corrected(task)
    found = register(array, mask, affine, load_template())
    write_volume(Volume(array * mask, affine), task.out / f"{task.participant}.nii.gz")
    write_volume(Volume(mask.astype(np.float32), affine), task.out / f"{task.participant}_mask.nii.gz")
    np.savetxt(task.out / f"{task.participant}.txt", found.matrix)


def trial(number: int, folder: Path, people: list[str]) -> None:
    """One random move of one brain onto new voxels; leaves degrees, mm and the mean error over the brain, mm."""
    rng = np.random.default_rng(number)
    person = people[number % len(people)]
    brain, mask = (read_volume(folder / f"{person}{end}.nii.gz") for end in ("", "_mask"))
    middle = brain.affine @ np.r_[np.argwhere(mask.array > 0).mean(axis=0), 1]
    axis, way = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    degrees, shift = rng.uniform(0, MOST_DEGREES), MOST_MM * rng.uniform() ** (1 / 3)
    move = np.eye(4)
    move[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * axis).as_matrix()
    move[:3, 3] = middle[:3] - move[:3, :3] @ middle[:3] + shift * way
    shape, box = around(mask.array > 0, move @ brain.affine, 2.0, 10.0)
    back = np.linalg.inv(move)
    array, inside = (resample(v.array, v.affine, shape, box, back, order=o) for v, o in ((brain, 3), (mask, 1)))
    template = load_template()
    found = register(array, inside >= 0.5, box, template)
    voxels = np.argwhere(template.mask)[::20]
    points = template.affine @ np.c_[voxels, np.ones(len(voxels))].T
    there = found.matrix @ points - move @ np.loadtxt(folder / f"{person}.txt") @ points
    error = np.linalg.norm(there[:3], axis=0).mean()
    (folder / f"trial-{number}").write_text(f"{degrees} {shift} {error}")


def accuracy(n: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        heads = [task for cohort in ("ds002748", "ixi50") for task in tasks(cohort, folder, HEADS)]
        people = [task.participant for task in heads]
        for work, items in ((still, heads), (partial(trial, folder=folder, people=people), range(n))):
            failed = [why for _, why in share_out(work, items, 2) if why]
            assert not failed, failed
        found = np.array([(folder / f"trial-{i}").read_text().split() for i in range(n)], float)
    errors = found[:, 2]
    size = f"{n} random moves up to {MOST_DEGREES:g} degrees and {MOST_MM:g} mm of {len(heads)} real brains"
    record("prepare_accuracy", size, {
        "share_within_1.5_mm": float((errors <= CLOSE_MM).mean()), "median_error_mm": float(np.median(errors)),
        "error_mm_95_percent": float(np.percentile(errors, 95)), "worst_error_mm": float(errors.max()),
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("speed", "accuracy"))
    parser.add_argument("-n", type=int, default=None)
    parser.add_argument("--spacing", type=float, default=2.0)
    options = parser.parse_args()
    if options.what == "speed":
        speed(options.n or 4, options.spacing)
    else:
        accuracy(options.n or 100)


if __name__ == "__main__":
    main()
