"""Drawn scans and real ones, brought together on one grid and looked at through several kinds of features."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import pandas as pd

from metavoxel.data.cohort import Cohort
from metavoxel.evaluate.anatomy import Ruler
from metavoxel.evaluate.drawing import Drawn, draw_scans
from metavoxel.evaluate.evaluation import Evaluation
from metavoxel.evaluate.features import medicalnet, radimagenet, trained
from metavoxel.evaluate.looks import Gallery, See, as_voxels, copies, copies_section, copy_figures, images, images_section
from metavoxel.evaluate.matching import curves, matches, matching_section
from metavoxel.files import checksum
from metavoxel.loading import load_images
from metavoxel.model import load
from metavoxel.page import Section
from metavoxel.progress import one_bar
from metavoxel.schema import Image

MOST_TRAINING = 2000
"""Scans that drawn ones are compared with, voxel by voxel."""
DENSENET = "densenet/network-1.safetensors"
IMAGE_ONLY = "image-only/model"
Spaces = Mapping[str, See]


def image_sections(run: Evaluation, spaces: Mapping[str, Spaces]) -> Iterator[Section]:
    """A section on each image variable's looks, and one on copies where the training people are known. spaces: what each
    image's scans are compared by; without any, nothing is drawn."""
    found, seed, model = run.findings, run.options.seed, run.model
    if not spaces:
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
        own = spaces[image.name]
        found.add(images(gallery, own, seed, _beside(run, image, drawn.n)))
        yield images_section(found, gallery, list(own), [v.name for v in model.schema.scalars])
        if audits := copies(gallery, own, seed):
            found.add(copy_figures(image.name, audits))
            yield copies_section(gallery, audits)
            yield _matching(run, image, gallery)


def scans_of(run: Evaluation, cohort: Cohort, image: Image) -> tuple[np.ndarray, pd.DataFrame]:
    """(n, *shape) of the rows that have a scan, and these rows; on disk, read once."""
    with one_bar(f"reading {image.name}", run.quiet) as report:
        stack = load_images(cohort, image, run.work / "scans", report)
    rows = np.flatnonzero(stack.present.numpy())
    voxels = stack.voxels if len(rows) == len(stack) else stack.voxels[rows]
    return voxels, cohort.table.iloc[rows].reset_index(drop=True)


def _matching(run: Evaluation, image: Image, gallery: Gallery) -> Section:
    """What was asked for against what is seen, where training people are known."""
    assert gallery.training is not None and gallery.training_rows is not None
    names = [v.name for v in run.model.schema.scalars if v.name in gallery.training_rows]
    drawn, real = (gallery.made, gallery.made_rows[names]), (gallery.real, gallery.real_rows[names])
    found = run.findings
    found.add(matches(image.name, names, drawn, real, (gallery.training, gallery.training_rows[names])))
    tables = None
    if "age" in names and image.name in run.rulers:
        measure = run.rulers[image.name]
        made, seen = (pd.concat([measure(scans), rows], axis=1) for scans, rows in (drawn, real))
        tables = made, seen
        found.add(curves(image.name, made, seen, run.options.seed))
    return matching_section(found, image.name, tables)


def _beside(run: Evaluation, image: Image, n: int) -> dict[str, np.ndarray]:
    """Scans (n, *shape) that a model of images alone draws, if it was trained beside the baselines on the same grid."""
    folder = run.options.baselines and run.options.baselines / IMAGE_ONLY
    if not folder or not (folder / "model.safetensors").is_file():
        return {}
    other = load(folder)
    if image.name not in other.schema.names or other.schema.image(image.name).shape != image.shape:
        run.findings.left_out.append(f"Looks of {image.name} beside the image-only baseline: its grid is another one.")
        return {}
    kept = run.work / f"drawn-image-only-{checksum(folder / 'model.safetensors')[:8]}"
    with one_bar("drawing, image-only", run.quiet) as report:
        drawn = draw_scans(other, run.cohort, kept, n, run.options.seed, report)
    return {"image-only": drawn.scans(image.name)}


def _gallery(run: Evaluation, image: Image, drawn: Drawn) -> Gallery:
    real, rows = scans_of(run, run.cohort, image)
    training, learned = (None, None) if run.training is None else scans_of(run, run.training, image)
    if training is not None and learned is not None and run.training is not None:
        if len(training) > MOST_TRAINING:
            said = f"Copies: {MOST_TRAINING} of {len(training)} training scans were compared, at random."
            run.findings.left_out.append(said)
            some = np.sort(np.random.default_rng(run.options.seed).permutation(len(training))[:MOST_TRAINING])
            training, learned = training[some], learned.iloc[some].reset_index(drop=True)
        if run.training.root != run.cohort.root:  # sub-01 of two studies are two people
            learned = learned.assign(participant_id=f"{run.training.root.name}/" + learned["participant_id"])
    made = run.cohort.table.iloc[: drawn.n].reset_index(drop=True)
    return Gallery(image.name, image.spacing, drawn.scans(image.name), made, real, rows, training, learned)


def spaces_of(run: Evaluation) -> dict[str, Spaces]:
    """What each image's scans are compared by; nothing where none are drawn, as for the models of several folds."""
    images = run.model.schema.images if run.options.scans and len(run.models) == 1 else ()
    return {image.name: _spaces(run, image) for image in images}


def _spaces(run: Evaluation, image: Image) -> Spaces:
    """Voxels and, where they can be had, tissue volumes and networks' features."""
    spaces: dict[str, See] = {"voxels": as_voxels}
    if image.name in run.rulers:
        spaces["anatomy"] = partial(_anatomy, run.rulers[image.name])
    options = run.options
    network = options.baselines / DENSENET if options.baselines is not None else None
    if network is not None and network.is_file():
        spaces["densenet"] = trained(network).features
    if options.radimagenet is not None:
        spaces["radimagenet"] = radimagenet(options.radimagenet).features
    if options.medicalnet is not None:
        spaces["medicalnet"] = medicalnet(options.medicalnet).features
    return spaces


def _anatomy(measure: Ruler, scans: np.ndarray) -> dict[str, np.ndarray]:
    """log millilitres of every tissue; of a scan in which no brain is found, those of a speck: as unlike as can be."""
    found = measure(scans).to_numpy()
    return {"whole": np.log(np.maximum(np.nan_to_num(found), 1.0))}
