"""One scan, from its file to a brain in MNI space with everything that is needed to undo it.

Reorient to RAS; find the brain; N4 inside of it (the paper corrects before it strips; the field is wanted, and best
found, where the brain is); register the brain to the template; one interpolation from the scan's voxels to the result's;
scale so that bright brain is 1. Each step's parameters go into the sidecar, which is written last.
"""

from __future__ import annotations

import hashlib
import io
import json
from importlib.metadata import version
from typing import Any

import numpy as np

from metavoxel.data.conform import to_ras
from metavoxel.data.dicom import RAS_LPS
from metavoxel.data.volume import Volume, read_volume, write_volume
from metavoxel.errors import MetavoxelError
from metavoxel.files import atomic_write, checksum, make_folder
from metavoxel.prepare import bias, quality
from metavoxel.prepare.register import Registration, register
from metavoxel.prepare.resample import resample
from metavoxel.prepare.strip import Head, brain_mask
from metavoxel.prepare.task import PRIVATE, Settings, Task
from metavoxel.prepare.template import SPACE, SPACING, grid, load_template
from metavoxel.version import __version__

BRIGHT_PERCENTILE = 99.5  # of the brain's intensities; it becomes 1, the background stays 0


def prepare_scan(task: Task, settings: Settings) -> None:
    """Do all steps and write the results of `task.files`, then the sidecar.

    Raises MetavoxelError that names the file when the scan cannot be read, stripped or written.
    """
    scan = read_volume(task.source)
    array, affine = to_ras(scan.array, scan.affine)
    head = Head(np.ascontiguousarray(array), affine, task.source, task.mask)
    mask, way = brain_mask(head, settings.strip)
    try:
        field = bias.estimate_field(head.array, mask, affine)
    except MetavoxelError as error:
        raise MetavoxelError(f"{task.source}: {error}") from error
    corrected = head.array / bias.field_on(field, head.array.shape, affine)
    template = load_template()
    aligned = register(corrected, mask, affine, template, affine_too=settings.registration == "affine", seed=settings.seed)

    shape, target = grid(settings.spacing)
    inside = resample(mask, affine, shape, target, aligned.matrix, order=1) >= 0.5
    slope = 1 / max(float(np.percentile(corrected[mask], BRIGHT_PERCENTILE)), 1e-6)
    image = np.maximum(resample(corrected, affine, shape, target, aligned.matrix) * inside, 0) * np.float32(slope)

    coarse = grid(SPACING)
    seen = resample(corrected, affine, *coarse, aligned.matrix, order=1)
    brain = resample(mask, affine, *coarse, aligned.matrix, order=1) >= 0.5
    found = quality.measures(head.array, mask, affine, brain, template)
    sides_disagree = task.source.is_file() and quality.sides_disagree(task.source)  # DICOM has one transform only
    found |= {"registration_score": round(aligned.score, 4), "sides_disagree": sides_disagree}

    for folder in (task.folder, task.out / PRIVATE):
        make_folder(folder)
    files = task.files
    write_volume(Volume(image, target), files["image"])
    write_volume(Volume(inside.astype(np.float32), target), files["mask"])
    write_volume(field, files["field"])
    with atomic_write(files["transform"]) as text:
        text.write(itk_transform(aligned.matrix))
    with atomic_write(files["picture"], "wb") as file:
        file.write(quality.picture(seen, brain, template))
    with atomic_write(files["thumbnail"], "wb") as file:
        buffer = io.BytesIO()
        np.save(buffer, quality.thumbnail(image, target), allow_pickle=False)
        file.write(buffer.getvalue())
    record = _record(task, settings, scan, head, way, aligned, slope) | {"Quality": found}
    with atomic_write(task.sidecar) as text:
        text.write(json.dumps(record, indent=2) + "\n")


def _record(
    task: Task, settings: Settings, scan: Volume, head: Head, way: str, aligned: Registration, slope: float
) -> dict[str, Any]:
    """The sidecar: BIDS' names for derivatives first, then what restores the scan."""
    sources = {task.source_name(path): checksum(path) for path in (task.source, task.mask) if path is not None}
    voxels = hashlib.sha256(head.array.tobytes() + str(head.array.shape).encode())
    return {
        "Description": f"Bias-corrected, skull-stripped brain, {settings.registration} to {SPACE}, bright tissue at 1",
        "Sources": list(sources),
        "SpatialReference": SPACE,
        "SkullStripped": True,
        "SourceChecksums": sources,
        "VoxelsChecksum": f"sha256:{voxels.hexdigest()}",
        "Native": {"Shape": list(scan.shape), "Affine": scan.affine.tolist()},
        "Steps": {
            "Reorient": {"To": "RAS"},
            "BrainExtraction": {"Asked": settings.strip, "By": way},
            "BiasCorrection": {
                "By": "N4", "ShrinkMillimetres": bias.SHRINK_MM, "Iterations": list(bias.ITERATIONS),
                "Field": task.files["field"].name,
            },
            "Registration": {
                "Kind": settings.registration, "Seed": settings.seed, "Metric": "mutual information",
                "MatrixToNativeWorld": aligned.matrix.tolist(), "Transform": task.files["transform"].name,
            },
            "Resample": {"SpacingMillimetres": settings.spacing, "Interpolation": "cubic B-spline"},
            "Intensity": {"Slope": slope, "BrightPercentile": BRIGHT_PERCENTILE},
        },
        "Software": {"metavoxel": __version__, **{name: version(name) for name in ("SimpleITK", "nilearn", "scipy")}},
        "Checksums": {name: checksum(task.files[name]) for name in ("image", "mask", "field", "transform")},
        "Key": task.key(settings),
    }  # fmt: skip


def itk_transform(matrix: np.ndarray) -> str:
    """An ITK text file of the RAS `matrix` (4, 4) template -> scan."""
    itk = RAS_LPS @ matrix @ RAS_LPS
    numbers = " ".join(repr(float(x)) for x in (*itk[:3, :3].ravel(), *itk[:3, 3]))
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )
