"""Where the brain is in a whole head, by our own small network: `--strip builtin`.

How it was made, and for whom: packaged/brain/README.md.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from metavoxel.errors import MetavoxelError
from metavoxel.prepare.resample import resample
from metavoxel.prepare.threads import one_torch_thread

WEIGHTS = Path(__file__).parents[1] / "packaged" / "brain" / "brain.safetensors"
SPACING_MM = 3.0  # of the grid that the network looks at; the outline it draws is smooth, and finer than a voxel of it
DARK_PERCENTILE, BRIGHT_PERCENTILE = 1.0, 99.0  # of the scan on that grid; they become 0 and 1
BRIGHTEST = 1.5
MOST_VOXELS = 160**3  # a field of view of 48 cm to each side


def find_brain(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Probability of brain, float32, of each voxel of the scan (x, y, z), axes nearest to RAS. The same bits every time.

    Raises MetavoxelError when the field of view is no head's.
    """
    shape, grid = _working_grid(array.shape, affine)
    seen = normalised(resample(array, affine, shape, grid, order=1))
    return resample(_probability(seen), grid, array.shape, affine, order=1, beyond="nearest")


def normalised(array: np.ndarray) -> np.ndarray:
    """Dark at 0, bright at 1, whatever the scan's units; beyond that, clipped at -0.5 and 1.5."""
    dark, bright = np.percentile(array, (DARK_PERCENTILE, BRIGHT_PERCENTILE))
    return np.clip((array - dark) / max(float(bright - dark), 1e-6), BRIGHTEST - 2, BRIGHTEST).astype(np.float32)


def _working_grid(shape: tuple[int, ...], affine: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the grid of 3 mm along the scan's own axes, inside of its field of view and centred in it."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    length = (np.asarray(shape) - 1) * spacing
    x, y, z = (int(mm // SPACING_MM) + 1 for mm in length)
    if x * y * z > MOST_VOXELS or min(x, y, z) < 16:
        size = " x ".join(f"{mm:.0f}" for mm in length)
        raise MetavoxelError(f"a field of view of {size} mm is no head's; check the voxel size in its header")
    to_scan = np.eye(4)
    to_scan[:3, :3] = np.diag(SPACING_MM / spacing)
    to_scan[:3, 3] = (length - (np.array([x, y, z]) - 1) * SPACING_MM) / 2 / spacing
    return (x, y, z), affine @ to_scan


@one_torch_thread()
def _probability(seen: np.ndarray) -> np.ndarray:
    """The network's answer, averaged over the head and its mirror image; `seen` (x, y, z), normalised."""
    import torch
    import torch.nn.functional as F

    net = load_net()
    missing = [-n % net.multiple for n in seen.shape]
    padding = [side for extra in reversed(missing) for side in (extra // 2, extra - extra // 2)]
    x, y, z = (slice(extra // 2, extra // 2 + n) for extra, n in zip(missing, seen.shape))
    with torch.inference_mode():
        head = F.pad(torch.from_numpy(seen)[None, None], padding)
        both = torch.cat([net(head), net(head.flip(2)).flip(2)])
        return both.sigmoid().mean(0)[0, x, y, z].numpy()


@lru_cache(maxsize=1)
def load_net(weights: Path = WEIGHTS) -> Any:
    """The network with its weights, ready to be asked."""
    from metavoxel.checkpoint import load_weights, read_tensors
    from metavoxel.nets.outline import OutlineNet

    tensors, about = read_tensors(weights)
    net = OutlineNet(about["channels"])
    load_weights(net, tensors, weights)
    return net.eval()
