"""Drawn scans and real ones, brought together on one grid and looked at through several kinds of features."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from metavoxel.data.cohort import Cohort
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.anatomy import Ruler
from metavoxel.evaluate.copies import Fold
from metavoxel.evaluate.drawing import draw_scans
from metavoxel.evaluate.evaluation import Evaluation
from metavoxel.evaluate.features import WHOLE, medicalnet, radimagenet, trained
from metavoxel.evaluate.groups import groups_section, looks_of_groups
from metavoxel.evaluate.looks import SECTION as LOOKS
from metavoxel.evaluate.looks import (
    Gallery,
    See,
    Space,
    as_voxels,
    copies_of_folds,
    copies_section,
    copy_figures,
    images_section,
    look,
)
from metavoxel.evaluate.matching import ageing_section, curves, matches, reading_section
from metavoxel.evaluate.requests import Sample, unreadable
from metavoxel.evaluate.variants import as_known
from metavoxel.files import checksum
from metavoxel.loading import load_images
from metavoxel.model import MetaVoxel, load
from metavoxel.page import Section
from metavoxel.progress import one_bar
from metavoxel.schema import Image

MOST_SCANS = 2000
"""Of training people, and of those asked about, that drawn scans are compared with: their features are held in memory."""
DENSENET = "densenet/network-1.safetensors"
DRAWING = ("image-only", "paper", "continuous-sex")
"""The baselines that draw scans."""
Spaces = Mapping[str, Space]


def image_sections(run: Evaluation, spaces: Mapping[str, Spaces], by: Sequence[str]) -> Iterator[Section]:
    """A section on each image variable's looks, one on those of groups, and one on copies where the training people are
    known. spaces: what each image's scans are compared by; without any, nothing is drawn. by: columns to group by."""
    found, seed, model = run.findings, run.options.seed, run.model
    if not spaces:
        return
    drawn, rows = _draw(run, [side.model for side in run.sides], [side.test for side in run.sides], "drawn")
    networks: dict[str, object] = {}
    found.about = {**found.about, "features": networks}
    for image in model.schema.images:
        gallery = _gallery(run, image, drawn[image.name], rows)
        if not gallery.enough:
            found.left_out.append(f"Looks of {image.name}: too few scans to compare.")
            continue
        if broken := sum(not np.isfinite(scan).all() for scan in gallery.made):
            found.left_out.append(f"Looks of {image.name}: {broken} of {len(gallery.made)} drawn scans hold values that "
                                  "are not numbers, so that the others would say nothing of the model.")  # fmt: skip
            continue
        own, others = spaces[image.name], _beside(run, image)
        _measure(run, image, gallery, others)
        with one_bar(f"comparing {image.name}", run.quiet) as report:
            looked = look(gallery, own, seed, others, report)
        found.add(looked.figures)
        found.left_out += looked.left_out
        networks[image.name] = {name: space.record for name, space in own.items() if space.networks}
        if looked.figures:
            yield images_section(found, gallery, own, [v.name for v in model.schema.scalars])
            seen = {name: space for name, space in own.items() if found.value(LOOKS, image.name, f"{name}: mmd_p")}
            found.add(looks_of_groups(gallery, seen, run.cohort.kinds(by), seed))
            if section := groups_section(found, image.name):
                yield section
        if looked.audits:
            yield copies_section(gallery, looked.audits, own)
        elif len(run.sides) > 1:
            yield from _copies_of_folds(run, gallery, own)
        yield from _matching(run, image, gallery)


def scans_of(run: Evaluation, cohort: Cohort, image: Image, some: str = "") -> tuple[np.ndarray, pd.DataFrame]:
    """(n, *shape) of the rows that have a scan, and these rows; read once, mapped from disk. some: what they are, where no
    more than MOST_SCANS are wanted, at random."""
    there = np.flatnonzero([path is not None for path in cohort.scans[image.name]])
    if some and len(there) > MOST_SCANS:
        run.findings.left_out.append(f"{MOST_SCANS} of {len(there)} {some} were compared with drawn ones, at random.")
        there = np.sort(np.random.default_rng(run.options.seed).permutation(there)[:MOST_SCANS])
    own = cohort.subset(there)
    with one_bar(f"reading {image.name}", run.quiet) as report:
        return load_images(own, image, run.work / "scans", report).voxels, own.table


def _draw(
    run: Evaluation, models: Sequence[MetaVoxel], tests: Sequence[Cohort], folder: str, whose: str = ""
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Of every image a scan (n, *shape) for the first people of every fold, by its model, and these people's rows. tests:
    of each fold, as its model knows it."""
    parts, rows, first = [], [], 0
    for model, test, side in zip(models, tests, run.sides):
        n = run.share(side)
        with one_bar(f"drawing{whose}{side.words}", run.quiet) as report:
            own = run.work / f"{folder}{side.suffix}"
            parts.append(draw_scans(model, test, own, n, run.options.seed, report, first))
        rows.append(side.test.table.iloc[: parts[-1].n])
        first += len(side.test)
    names = [image.name for image in models[0].schema.images]
    scans = {name: [part.scans(name) for part in parts] for name in names}
    joined = {name: each[0] if len(each) == 1 else np.concatenate(each) for name, each in scans.items()}
    return joined, pd.concat(rows, ignore_index=True)


def _matching(run: Evaluation, image: Image, gallery: Gallery) -> Iterator[Section]:
    """What was asked for against what is seen: by predictors where training people are known, and by volumes over age."""
    names = [v.name for v in run.model.schema.scalars if v.name in gallery.real_rows]
    columns = ["participant_id", *names]
    drawn, real = (gallery.made, gallery.made_rows[columns]), (gallery.real, gallery.real_rows[columns])
    found, samples = run.findings, _samples(run, gallery, drawn, real)
    if samples:
        told = [name for name in names if all(name in training for _, _, (_, training) in samples)]
        lacking: dict[str, str] = {}
        for parts in samples:
            facts = (rows for _, rows in parts)
            lacking |= unreadable(dict(zip(("drawn people", "test's people", "training people"), facts)), told)
        found.left_out += [f"{name} read from drawn {image.name} scans: {why}." for name, why in lacking.items()]
        told = [name for name in told if name not in lacking]
        if told:
            with one_bar(f"reading drawn {image.name}", run.quiet) as report:
                found.add(matches(image.name, told, samples, run.options.seed, report))
            yield reading_section(found, image.name)
    if "age" in names and image.name in run.rulers:
        measure = run.rulers[image.name]
        made, seen = (pd.concat([measure(scans), rows], axis=1) for scans, rows in (drawn, real))
        try:
            found.add(curves(image.name, made, seen, run.options.seed))
            yield ageing_section(found, image.name, made, seen)
        except MetavoxelError as error:  # too few for a line: nothing is wrong with the rest
            found.left_out.append(f"Volumes of {image.name} over age: {error}.")


def _samples(run: Evaluation, gallery: Gallery, drawn: Sample, real: Sample) -> list[tuple[Sample, Sample, Sample]]:
    """Of each model what it drew, real scans of its test, and those of its training; none where these are not known."""
    if gallery.training is not None and gallery.training_rows is not None:
        return [(drawn, real, (gallery.training, gallery.training_rows))]
    if len(run.sides) == 1:
        return []

    def some(sample: Sample, rows: np.ndarray) -> Sample:
        return sample[0][rows], sample[1].iloc[rows].reset_index(drop=True)

    return [(some(drawn, fold.made), some(real, fold.held_out), some(real, fold.training)) for fold in _folds(run, gallery)]


def _folds(run: Evaluation, gallery: Gallery) -> list[Fold]:
    """Each model's drawn scans, and the real ones of people that it has learnt from, and of its own fold."""
    people, folds, first = gallery.real_rows["participant_id"], [], 0
    for side in run.sides:
        drawn = np.arange(first, first + run.share(side))
        learnt = () if side.training is None else side.training.participants
        folds.append(Fold(drawn, *(np.flatnonzero(people.isin(part)) for part in (learnt, side.test.participants))))
        first += len(drawn)
    return folds


def _beside(run: Evaluation, image: Image) -> dict[str, np.ndarray]:
    """Scans (n, *shape) that baselines draw for the same people, those that can and are of the same grid."""
    found = {}
    for name in DRAWING:
        folders = [side.baselines / name / "model" for side in run.sides if side.baselines is not None]
        if not folders or not all((folder / "model.safetensors").is_file() for folder in folders):
            continue
        others = [load(folder) for folder in folders]
        if any(image.name not in o.schema.names or o.schema.image(image.name).shape != image.shape for o in others):
            run.findings.left_out.append(f"Looks of {image.name} beside the {name} baseline: its grid is another one.")
            continue
        weights = checksum(folders[0] / "model.safetensors").removeprefix("sha256:")[:8]
        tests = [as_known(side.test, other) for side, other in zip(run.sides, others)]
        found[name] = _draw(run, others, tests, f"drawn-{name}-{weights}", f", {name}")[0][image.name]
    return found


def _copies_of_folds(run: Evaluation, gallery: Gallery, spaces: Spaces) -> Iterator[Section]:
    try:
        audits = copies_of_folds(gallery, spaces, _folds(run, gallery), run.options.seed)
    except MetavoxelError as error:  # too few for this question: nothing is wrong with the rest
        run.findings.left_out.append(f"Copies of {gallery.name}: {error}.")
        return
    run.findings.add(copy_figures(gallery.name, audits))
    yield copies_section(replace(gallery, training=gallery.real), audits, spaces)


def _measure(run: Evaluation, image: Image, gallery: Gallery, others: Mapping[str, np.ndarray]) -> None:
    """The tissues of all that will be asked about, under a bar of its own: of thousands of scans it takes minutes."""
    for scans in (gallery.made, gallery.real, gallery.training, *others.values()):
        if image.name in run.rulers and scans is not None:
            run.measured(image.name, scans)


def _gallery(run: Evaluation, image: Image, made: np.ndarray, made_rows: pd.DataFrame) -> Gallery:
    real, rows = scans_of(run, run.cohort, image, "scans of people asked about")
    training, learned = None, None
    if run.training is not None:
        training, learned = scans_of(run, run.training, image, "training scans")
        if run.training.root != run.cohort.root:  # sub-01 of two studies are two people
            learned = learned.assign(participant_id=f"{run.training.root.name}/" + learned["participant_id"])
    return Gallery(image.name, image.spacing, made, made_rows, real, rows, training, learned)


def spaces_of(run: Evaluation) -> dict[str, Spaces]:
    """What each image's scans are compared by; nothing where none are drawn."""
    images, options = run.model.schema.images if run.options.scans else (), run.options
    if not images and (options.radimagenet or options.medicalnet):
        raise MetavoxelError("--radimagenet and --medicalnet look at drawn scans, of which there are none; leave them out")
    flat = [image.name for image in images if len(image.shape) == 2]
    if flat and (options.radimagenet or options.medicalnet):
        raise MetavoxelError(f"--radimagenet and --medicalnet look at volumes, and {flat[0]} is an image in two dimensions"
                             "; leave them out")  # fmt: skip
    return {image.name: _spaces(run, image) for image in images}


def _spaces(run: Evaluation, image: Image) -> Spaces:
    """Voxels and, where they can be had, tissue volumes and networks' features."""
    spaces = {"voxels": Space(as_voxels)}
    if image.name in run.rulers:
        spaces["anatomy"] = Space(partial(_anatomy, run.rulers[image.name]), measures=True)
    options = run.options
    files = [side.baselines / DENSENET for side in run.sides if side.baselines is not None]
    if files and all(file.is_file() for file in files):
        networks = [trained(file, run.model.device) for file in files]
        spaces["densenet"] = Space(partial(_by_each, [network.features for network in networks]), networks=networks)
    for name, file, network_of in (("radimagenet", options.radimagenet, radimagenet),
                                   ("medicalnet", options.medicalnet, medicalnet)):  # fmt: skip
        if file is not None:
            network = network_of(file, run.model.device)
            spaces[name] = Space(network.features, networks=[network])
    return spaces


def _by_each(networks: Sequence[See], scans: np.ndarray) -> dict[str, np.ndarray]:
    """Features by every fold's network: as with planes, figures are means over them."""
    if len(networks) == 1:
        return dict(networks[0](scans))
    return {f"fold {number}": x for number, see in enumerate(networks, start=1) for x in see(scans).values()}


def _anatomy(measure: Ruler, scans: np.ndarray) -> dict[str, np.ndarray]:
    """log millilitres of every tissue; of a scan in which no brain is found, those of a speck: as unlike as can be."""
    found = measure(scans).to_numpy()
    return {WHOLE: np.log(np.maximum(np.nan_to_num(found), 1.0))}
