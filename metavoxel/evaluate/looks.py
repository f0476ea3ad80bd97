"""Do drawn scans look like real ones, and are they copies of the training people's? Every figure stands beside what real
scans of other people score."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from metavoxel.evaluate.copies import Audit, audit
from metavoxel.evaluate.figures import OURS, Figure, Findings
from metavoxel.evaluate.two_sample import LEAST_SCANS, against_floor
from metavoxel.loading import Progress
from metavoxel.page import Picture, Section, Table
from metavoxel.pictures import CAPTION, in_words, mosaic

SECTION, COPIES = "images", "copies"
REAL = "real scans"
"""Who is told as the floor: real scans of other people in the generated ones' place."""
SHOWN = 4
SHOWN_FIGURES = ("fid", "kid", "mmd", "precision", "recall", "density", "coverage", "wasserstein", "ms_ssim")
LEAST_P = 0.01

See = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Scans (n, *shape) -> features (m, d) of each plane, or of the whole under one name; figures are means over them."""


@dataclass(frozen=True)
class Gallery:
    """Scans of one image variable on the model's grid, (n, *shape), and the tables' rows that they belong to.

    `made` for the facts of the first rows of the test, `real` of the test, `training` of training people (None: unknown).
    """

    name: str
    spacing: Sequence[float]
    made: np.ndarray
    made_rows: pd.DataFrame
    real: np.ndarray
    real_rows: pd.DataFrame
    training: np.ndarray | None
    training_rows: pd.DataFrame | None

    @property
    def enough(self) -> bool:
        return min(len(self.made), len(self.real) // (1 if self.training is not None else 2)) >= LEAST_SCANS


def as_voxels(scans: np.ndarray) -> dict[str, np.ndarray]:
    """The scans themselves as features."""
    return {"whole": np.asarray(scans, np.float32).reshape(len(scans), -1)}


def images(
    gallery: Gallery,
    spaces: Mapping[str, See],
    seed: int,
    others: Mapping[str, np.ndarray],
    progress: Progress,
) -> Iterator[Figure]:
    """Each distance in each space of features, metric "SPACE: fid". The floor is training people against the test's, or one
    half of the test, at random, against the other. others: who -> scans (n, *shape) that other models drew."""
    rng = np.random.default_rng(seed)
    real, other = gallery.real, gallery.training
    if other is None:  # halves at random: people may lie ordered by fold, and so by site
        halves = np.array_split(rng.permutation(len(real)), 2)
        real, other = (real[np.sort(half)] for half in halves)
    size = min(len(gallery.made), len(other))
    some = np.sort(rng.permutation(len(other))[:size])
    progress(0, len(spaces))
    for number, (space, see) in enumerate(spaces.items(), start=1):
        made, true, floor = (see(np.asarray(scans)) for scans in (gallery.made, real, other[some]))
        shown = (list(gallery.made), list(other[some])) if see is as_voxels else None
        found = [against_floor(made[plane], true[plane], floor[plane], shown, seed) for plane in made]
        told = {OURS: [each["made"] for each in found], REAL: [each["floor"] for each in found]}
        for who, scans in others.items():
            seen, shown = see(np.asarray(scans)), (list(scans), list(other[some])) if see is as_voxels else None
            told[who] = [against_floor(seen[plane], true[plane], floor[plane], shown, seed)["made"] for plane in made]
        for who, planes in told.items():
            for metric in planes[0]:
                value = float(np.mean([plane[metric] for plane in planes]))
                yield Figure(SECTION, gallery.name, f"{space}: {metric}", value, who, n=size)
        progress(number, len(spaces))


def copies(gallery: Gallery, spaces: Mapping[str, See], seed: int, progress: Progress) -> dict[str, Audit]:
    """`copies.audit` in each space that has one row a scan; nothing where the training people are not known."""
    if gallery.training is None or gallery.training_rows is None:
        return {}
    people = (rows["participant_id"].to_numpy() for rows in (gallery.training_rows, gallery.real_rows))
    of_training, of_real = people
    found = {}
    progress(0, len(spaces))
    for number, (space, see) in enumerate(spaces.items(), start=1):
        made, training, real = (see(np.asarray(x)) for x in (gallery.made, gallery.training, gallery.real))
        if "whole" in made:
            found[space] = audit(made["whole"], training["whole"], real["whole"], of_training, of_real, seed)
        progress(number, len(spaces))
    return found


def copy_figures(name: str, found: Mapping[str, Audit]) -> Iterator[Figure]:
    """metric "SPACE: ratio" and so on, see `copies.Audit`."""
    for space, one in found.items():
        for metric, value in one.figures.items():
            yield Figure(COPIES, name, f"{space}: {metric}", value)


def images_section(findings: Findings, gallery: Gallery, spaces: Sequence[str], names: Sequence[str]) -> Section:
    """How near drawn scans come to real ones, in every space of features. names: of the facts that were asked for."""
    told = dict.fromkeys(figure.who for figure in findings.figures if figure.section == SECTION)
    whose = [OURS, *(who for who in told if who not in (OURS, REAL)), REAL]
    rows = []
    for space in spaces:
        for metric in SHOWN_FIGURES:
            cells = [findings.value(SECTION, gallery.name, f"{space}: {metric}", who=who) for who in whose]
            if cells[0] is not None:
                values = (f"{cell.value:.3g}" if cell else "" for cell in cells)
                rows.append((f"{space}: {metric.replace('_', '-')}", *values))
    pairs = [scan for pair in zip(gallery.made[:SHOWN], gallery.real[:SHOWN]) for scan in pair]
    asked = [f"drawn: {_in_words(row, names)}" for row in gallery.made_rows[:SHOWN].to_dict("records")]
    captions = [words for caption in asked for words in (textwrap.fill(caption, CAPTION), "the person who is so")]
    png = mosaic(np.stack(pairs).astype(np.float32), captions, gallery.spacing, columns=2, window=(0, 1))
    recall = findings.value(SECTION, gallery.name, f"{spaces[0]}: coverage")
    floor = findings.value(SECTION, gallery.name, f"{spaces[0]}: coverage", who=REAL)
    assert recall is not None and floor is not None
    return Section(
        f"Do drawn {gallery.name} scans look real?",
        f"{recall.value:.0%} of real scans have a drawn one among their nearest neighbours, by {spaces[0]}; of other "
        f"people's real scans {floor.value:.0%} have.",
        [Picture(png, f"Drawn {gallery.name} scans beside the real ones of the same facts")],
        Table((f"{len(gallery.made)} drawn scans", "drawn", *whose[1:-1], "real (floor)"), rows), columns=1,
        note="Floor: real scans of other people in the drawn ones' place; no figure is zero for so few. Figures by "
        "features of a network trained here do not compare across papers.",
    )  # fmt: skip


def _in_words(row: Mapping[Any, Any], names: Sequence[str]) -> str:
    return in_words({name: row[name] for name in names if not pd.isna(row[name])})


def copies_section(gallery: Gallery, found: Mapping[str, Audit]) -> Section:
    """Whether drawn scans are nearer to training people than to people never seen."""
    rows, near = [], 0
    worst = min(one.figures["nearer_training_p"] for one in found.values())
    for space, one in found.items():
        f = one.figures
        near += len(one.near)
        rows.append((space, f"{f['ratio']:.3f}", f"{f['nearer_training']:.1%} ({f['nearer_training_expected']:.1%})",
                     f"{f['nearer_training_p']:.2g}", f"{f['authenticity']:.1%} ({f['authenticity_floor']:.1%})",
                     f"{f['membership_auc']:.3f}", f"{f['near_copies']:.1%} ({f['near_copies_floor']:.1%})"))  # fmt: skip
    header = ("by", "distance ratio", "nearer to training", "p", "authentic", "membership AUC", "near copies")
    verdict = "Drawn scans are nearer to training people than chance allows" if worst < LEAST_P else (
        "Nothing says that drawn scans copy training people")  # fmt: skip
    counted = f"{near} near {'copy was' if near == 1 else 'copies were'} found"
    return Section(
        f"Are drawn {gallery.name} scans copies?", f"{verdict}; {counted}.", _near(gallery, found),
        Table(header, rows), columns=1,
        note="In brackets: what is expected if training made no difference, or what people held out score in the drawn "
        f"scans' place. A near copy is nearer than {next(iter(found.values())).threshold.basis}. Membership AUC: how well "
        "the nearest drawn scan tells who was in training; .5 is not at all.",
    )  # fmt: skip


def _near(gallery: Gallery, found: Mapping[str, Audit]) -> list[Picture]:
    """The nearest copies beside whom they copy; no picture without any."""
    near = pd.concat([one.near for one in found.values()]).drop_duplicates(["made", "training"])[:SHOWN]
    if near.empty or gallery.training is None:
        return []
    pairs: list[Any] = []
    for pair in near.to_dict("records"):
        pairs += [gallery.made[int(pair["made"])], gallery.training[int(pair["training"])]]
    captions = ["drawn", "a training person"] * len(near)
    png = mosaic(np.stack(pairs).astype(np.float32), captions, gallery.spacing, columns=2, window=(0, 1))
    return [Picture(png, "Near copies beside the training scans")]
