"""Rigid or affine registration of a stripped brain to the template, by mutual information from many starts.

Heads come tilted by up to 40 degrees, where one start ends in a wrong optimum; so every tilt of a coarse lattice is
tried on coarse images, and the best few are followed to their optimum. All images here are made on RAS axes, so that
ITK's physical space can be the world's RAS millimetres.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from metavoxel.prepare.resample import around, resample
from metavoxel.prepare.template import SPACING, Template
from metavoxel.prepare.threads import one_itk_thread

TILTS_DEGREES = (-36.0, -18.0, 0.0, 18.0, 36.0)  # about each axis
COARSE_MM, MIDDLE_MM = 8.0, 4.0
FOLLOWED = 4  # of the starts
BINS = 32
MARGIN_MM = 8.0  # of background around the template's brain that the metric looks at: the outline tells much
PAD_MM = 40.0  # zeros around the brain, so that a start that is off still finds background and not the end of the image
FINE_SHARE = 0.25  # of the points, at 2 mm


@dataclass(frozen=True, eq=False)
class Registration:
    """`matrix` (4, 4): the template's world mm -> the scan's. `score`: mutual information at 2 mm, nats."""

    matrix: np.ndarray
    score: float


@one_itk_thread()
def register(
    array: np.ndarray, mask: np.ndarray, affine: np.ndarray, template: Template, *, affine_too: bool = False, seed: int = 0
) -> Registration:
    """Find where the template's points lie in the scan. The same input and seed give the same bits.

    array (x, y, z): the scan, mask: its brain. affine_too: let scale and shear follow after the rigid optimum.
    """
    import SimpleITK as sitk
    from scipy import ndimage

    shape, box = around(mask, affine, SPACING, PAD_MM)
    brain = resample(array * mask, affine, shape, box, order=1)
    margin = ndimage.binary_dilation(template.mask, iterations=round(MARGIN_MM / SPACING))
    centre = _centre(template.mask, template.affine)
    shift = _centre(mask, affine) - centre

    fixed, moving, where = _images(template, brain, box, margin, COARSE_MM)
    metric = _method(0, 1.0)
    metric.SetMetricFixedMask(where)
    starts = []
    for tilt in itertools.product(np.radians(TILTS_DEGREES), repeat=3):
        metric.SetInitialTransform(_rigid(centre, tilt, shift))
        starts.append((metric.MetricEvaluate(fixed, moving), tilt))
    starts.sort(key=lambda start: start[0])  # ITK minimises: the most negative is the best

    fixed, moving, where = _images(template, brain, box, margin, MIDDLE_MM)
    ends = []
    for _, tilt in starts[:FOLLOWED]:
        ends.append(_optimum(_rigid(centre, tilt, shift), fixed, moving, where, seed, 1.0, first_step=2.0))
    best = min(ends, key=lambda end: end[0])[1]

    fixed, moving, where = _images(template, brain, box, margin, SPACING)
    score, found = _optimum(best, fixed, moving, where, seed, FINE_SHARE, first_step=0.5)
    if affine_too:
        start = sitk.AffineTransform(3)
        start.SetMatrix(found.GetMatrix())
        start.SetTranslation(found.GetTranslation())
        start.SetCenter(found.GetCenter())
        score, found = _optimum(start, fixed, moving, where, seed, FINE_SHARE, first_step=0.5)
    return Registration(_matrix(found), -score)


def _images(template: Template, brain: np.ndarray, box: np.ndarray, margin: np.ndarray, spacing: float) -> tuple[Any, ...]:
    """Template, brain and the template's margin mask as ITK images of about `spacing` mm."""
    from scipy import ndimage

    every = round(spacing / SPACING)
    sigma = 0.5 * every
    smooth = (ndimage.gaussian_filter(x, sigma)[::every, ::every, ::every] for x in (template.image, brain))
    fixed, moving = (_itk(x, spacing, a[:3, 3]) for x, a in zip(smooth, (template.affine, box)))
    return fixed, moving, _itk(margin[::every, ::every, ::every].astype(np.uint8), spacing, template.affine[:3, 3])


def _itk(array: np.ndarray, spacing: float, origin: np.ndarray) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing([spacing] * 3)
    image.SetOrigin(origin.tolist())
    return image


def _centre(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def _rigid(centre: np.ndarray, tilt: Any, shift: np.ndarray) -> Any:
    import SimpleITK as sitk

    transform = sitk.Euler3DTransform()
    transform.SetCenter(centre.tolist())
    transform.SetRotation(*(float(angle) for angle in tilt))
    transform.SetTranslation(shift.tolist())
    return transform


def _method(seed: int, share: float) -> Any:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMetricSamplingStrategy(method.NONE if share == 1 else method.RANDOM)
    method.SetMetricSamplingPercentage(share, seed + 1)  # 0 would mean the time of day
    return method


def _optimum(
    start: Any, fixed: Any, moving: Any, where: Any, seed: int, share: float, *, first_step: float
) -> tuple[float, Any]:
    """ITK's metric (minus the mutual information) and transform at the end of the path from `start`."""
    method = _method(seed, share)
    method.SetMetricFixedMask(where)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=first_step, minStep=0.005, numberOfIterations=150, gradientMagnitudeTolerance=1e-7
    )
    method.SetOptimizerScalesFromPhysicalShift()  # then a step is in mm
    method.SetInitialTransform(start, inPlace=False)
    path = method.Execute(fixed, moving)  # a composite of one transform
    return method.GetMetricValue(), path.Downcast().GetNthTransform(0).Downcast()


def _matrix(transform: Any) -> np.ndarray:
    """(4, 4) of a transform about a centre."""
    linear = np.asarray(transform.GetMatrix()).reshape(3, 3)
    centre, shift = np.asarray(transform.GetCenter()), np.asarray(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre + shift - linear @ centre
    return matrix
