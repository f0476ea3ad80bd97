"""The built-in brain extraction on heads that it was not trained on, as they are and made harder.

    python bench/strip.py
"""

import time

import numpy as np
from common import record
from random_heads import read_head
from scipy.spatial.transform import Rotation

from metavoxel.checkpoint import read_tensors
from metavoxel.prepare.brain import WEIGHTS, load_net
from metavoxel.prepare.resample import resample
from metavoxel.prepare.strip import Head, brain_mask

SLICE_MM, TILT_DEGREES = 5.0, 20.0
Scan = tuple[np.ndarray, np.ndarray, np.ndarray]  # array, brain, affine


def as_it_is(scan: Scan, rng: np.random.Generator) -> Scan:
    return scan


def inverted(scan: Scan, rng: np.random.Generator) -> Scan:
    """Bright where it was dark, on a random curve; in one of two the air stays dark."""
    array, brain, affine = scan
    share = np.clip(array / np.percentile(array, 99.5), 0, 1)
    turned = (1 - share) ** np.exp(rng.normal(0, 0.35))
    return 1000 * turned * (share > 0.05 if rng.random() < 0.5 else 1), brain, affine


def thick(scan: Scan, rng: np.random.Generator) -> Scan:
    """Slices of 5 mm along a random axis, thick and not just far apart."""
    array, brain, affine = scan
    axis = rng.integers(3)
    step = np.ones(3)
    step[axis] = SLICE_MM / np.linalg.norm(affine[:3, axis])
    shape = np.ones(3, int) * array.shape
    shape[axis] = int((shape[axis] - 1) / step[axis]) + 1
    x, y, z = shape.tolist()
    coarse = affine @ np.diag([*step, 1.0])
    slices, inside = (resample(volume, affine, (x, y, z), coarse, order=1) for volume in (array, brain))
    return slices, inside > 0.5, coarse


def tilted(scan: Scan, rng: np.random.Generator) -> Scan:
    """Turned by 20 degrees about a random axis, on the same voxels."""
    array, brain, affine = scan
    axis = rng.normal(size=3)
    middle = affine @ np.r_[(np.array(array.shape) - 1) / 2, 1]
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_rotvec(np.radians(TILT_DEGREES) * axis / np.linalg.norm(axis)).as_matrix()
    turn[:3, 3] = middle[:3] - turn[:3, :3] @ middle[:3]
    moved, inside = (resample(x, affine, array.shape, affine, turn, order=1) for x in (array, brain))
    return moved, inside > 0.5, affine


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Dice."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def main() -> None:
    _, about = read_tensors(WEIGHTS)
    load_net()
    figures: dict[str, object] = {}
    seconds = []
    for made in (as_it_is, inverted, thick, tilted):
        found = []
        for number, person in enumerate(about["held_out"]):
            array, regions, affine = read_head(person)
            array, brain, affine = made((array, regions > 0, affine), np.random.default_rng(number))
            start = time.process_time()
            mask, _ = brain_mask(Head(array, affine, WEIGHTS, None), "builtin")
            seconds.append(time.process_time() - start)
            found.append(overlap(mask, brain))
        figures |= {f"dice_{made.__name__}": float(np.mean(found)), f"worst_dice_{made.__name__}": min(found)}
    figures |= {"cpu_seconds_a_scan": float(np.mean(seconds)), "weights_mb": WEIGHTS.stat().st_size / 1e6}
    record("strip", f"{len(about['held_out'])} held-out heads of ixi50", figures)


if __name__ == "__main__":
    main()
