"""Drawn scans and real ones, brought together on one grid and looked at through several kinds of features."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from metavoxel.data.cohort import Cohort
from metavoxel.evaluate import anatomy
from metavoxel.evaluate.drawing import Drawn, draw_scans
from metavoxel.evaluate.evaluation import Evaluation
from metavoxel.evaluate.features import medicalnet, radimagenet, trained
from metavoxel.evaluate.looks import Gallery, See, as_voxels, copies, copies_section, copy_figures, images, images_section
from metavoxel.latents import affine_of
from metavoxel.loading import load_images
from metavoxel.page import Section
from metavoxel.progress import one_bar
from metavoxel.schema import Image

MOST_TRAINING = 2000
"""Scans that drawn ones are compared with, voxel by voxel."""
DENSENET = "densenet/network-1.safetensors"


def image_sections(run: Evaluation) -> Iterator[Section]:
    """A section on each image variable's looks, and one on copies where the training people are known."""
    found, seed, model = run.findings, run.options.seed, run.model
    if not model.schema.images or run.options.scans == 0:
        return
    if not model.denoiser.coverage.separate:
        found.left_out.append("Drawn scans: a model of one shared time draws them only by the paper's long way.")
        return
    with one_bar("drawing", run.quiet) as report:
        drawn = draw_scans(model, run.cohort, run.work / "drawn", run.options.scans, seed, report)
    for image in model.schema.images:
        gallery = _gallery(run, image, drawn)
        if not gallery.enough:
            found.left_out.append(f"Looks of {image.name}: too few scans to compare.")
            continue
        spaces = _spaces(run, image)
        found.add(images(gallery, spaces, seed))
        yield images_section(found, gallery, list(spaces))
        if audits := copies(gallery, spaces, seed):
            found.add(copy_figures(image.name, audits))
            yield copies_section(gallery, audits)


def _gallery(run: Evaluation, image: Image, drawn: Drawn) -> Gallery:
    real, people = _scans(run, run.cohort, image)
    training, whose = (None, None) if run.training is None else _scans(run, run.training, image)
    if training is not None and len(training) > MOST_TRAINING:
        run.findings.left_out.append(f"Copies: {MOST_TRAINING} of {len(training)} training scans were compared, at random.")
        some = np.sort(np.random.default_rng(run.options.seed).permutation(len(training))[:MOST_TRAINING])
        training, whose = training[some], whose[some] if whose is not None else None
    if whose is not None and run.training is not None and run.training.root != run.cohort.root:
        whose = np.array([f"{run.training.root.name}/{person}" for person in whose])  # sub-01 of two studies are two people
    captions = [
        ", ".join(f"{v.name} {_word(cell)}" for v in run.model.schema.scalars if not pd.isna(cell := row[v.name]))
        for row in run.cohort.table.iloc[: drawn.n].to_dict("records")
    ]
    return Gallery(image.name, image.spacing, drawn.scans(image.name), captions, real, people, training, whose)


def _scans(run: Evaluation, cohort: Cohort, image: Image) -> tuple[np.ndarray, np.ndarray]:
    """(n, *shape) of the rows that have a scan, and whose they are; on disk, read once."""
    with one_bar(f"reading {image.name}", run.quiet) as report:
        stack = load_images(cohort, image, run.work / "scans", report)
    rows = np.flatnonzero(stack.present.numpy())
    voxels = stack.voxels if len(rows) == len(stack) else stack.voxels[rows]
    return voxels, cohort.table["participant_id"].to_numpy()[rows]


def _word(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _spaces(run: Evaluation, image: Image) -> dict[str, See]:
    """What scans are compared by: voxels and, where they can be had, tissue volumes and networks' features."""
    spaces: dict[str, See] = {"voxels": as_voxels}
    if len(image.shape) == 3:
        spaces["anatomy"] = partial(_anatomy, image)
    options = run.options
    network = options.baselines / DENSENET if options.baselines is not None else None
    if network is not None and network.is_file():
        spaces["densenet"] = trained(network).features
    if options.radimagenet is not None:
        spaces["radimagenet"] = radimagenet(options.radimagenet).features
    if options.medicalnet is not None:
        spaces["medicalnet"] = medicalnet(options.medicalnet).features
    return spaces


def _anatomy(image: Image, scans: np.ndarray) -> dict[str, np.ndarray]:
    """log millilitres of every tissue; of a scan in which no brain is found, those of a speck: as unlike as can be."""
    found = anatomy.volumes(scans, affine_of(image)).to_numpy()
    return {"whole": np.log(np.maximum(np.nan_to_num(found), 1.0))}
