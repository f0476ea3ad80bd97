"""Scans unlike the training people's, told from usual ones by their surprise: AUC for each kind of damage.

    python bench/surprise.py [--model phantom] [-n 100]

Every scan is written as NIfTI and read by `predict`, as a user's would be: what preparation undoes is no damage.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from common import asked, clock, record
from scipy.ndimage import binary_dilation
from sklearn.metrics import roc_auc_score

import metavoxel as mv
from metavoxel.data.phantom import write_cohort
from metavoxel.data.volume import Volume, read_volume, write_volume
from metavoxel.surprise import LIMIT

SEED = 77_004


def unstripped(x: np.ndarray) -> np.ndarray:
    """A dark skull and a bright scalp around the brain."""
    head = x > 0.05 * np.percentile(x, 99)
    skull, scalp = binary_dilation(head, iterations=1), binary_dilation(head, iterations=2)
    return np.where(head, x, np.where(skull, 0.1, np.where(scalp, 1.2, 0)) * np.percentile(x, 99))


def t2(x: np.ndarray) -> np.ndarray:
    """Fluid bright, white matter dark."""
    top = np.percentile(x, 99)
    return np.where(x > 0.05 * top, 1.1 * top - x, 0).clip(0)


def noisy(x: np.ndarray) -> np.ndarray:
    return np.abs(x + np.random.default_rng(0).normal(0, 0.15 * np.percentile(x, 99), x.shape))


def voxels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Volume], Volume]:
    return lambda scan: Volume(np.ascontiguousarray(change(scan.array)), scan.affine)


DAMAGE: dict[str, Callable[[Volume], Volume]] = {
    "upside_down": voxels(lambda x: x[:, :, ::-1]),
    "front_to_back": voxels(lambda x: x[:, ::-1]),
    "not_stripped": voxels(unstripped),
    "t2_contrast": voxels(t2),
    "noise": voxels(noisy),
    "five_times_as_bright": voxels(lambda x: 5 * x),
    "five_times_as_large": lambda scan: Volume(scan.array, scan.affine @ np.diag([5, 5, 5, 1])),
}


def scores(model: mv.MetaVoxel, folder: Path, change: Callable[[Volume], Volume]) -> pd.DataFrame:
    """`predict` of the cohort's scans after the change; the files are left as they were."""
    kept = {path: read_volume(path) for path in folder.glob("sub-*/anat/*.nii.gz")}
    for path, scan in kept.items():
        write_volume(change(scan), path)
    table = model.predict(folder)
    for path, scan in kept.items():
        write_volume(scan, path)
    return table


def main() -> None:
    model, n = asked(100)
    image = model.first_image()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch, clock(figures, "seconds"):
        folder = write_cohort(Path(scratch) / "c", n, seed=SEED, shape=image.shape, spacing=image.spacing[0])  # type: ignore[arg-type]
        column = f"{image.name}_surprise"
        usual = scores(model, folder, lambda x: x)
        figures["warned_of_usual_scans"] = float((usual[column] > LIMIT).mean())
        for kind, change in DAMAGE.items():
            table = scores(model, folder, change)
            both = np.concatenate([usual[column], table[column]])
            figures[f"auc_{kind}"] = float(roc_auc_score(np.repeat([0, 1], n), both))
            figures[f"warned_{kind}"] = float((table[column] > LIMIT).mean())
            if "age_mean" in table:
                figures[f"age_moved_{kind}"] = float((table["age_mean"] - usual["age_mean"]).abs().mean())
    record("surprise", f"{n} fresh phantoms for each kind", figures)


if __name__ == "__main__":
    main()
