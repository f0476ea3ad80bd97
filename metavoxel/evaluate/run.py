"""The evaluation: asks, draws, measures, and writes report.html, metrics.json and a model card.

What takes long (answers, drawn scans, scans on the model's grid) is kept in OUT/work, so that a stopped run goes on;
figures are made anew each time.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metavoxel.checkpoint import read_json, write_json
from metavoxel.data.cohort import Cohort, concat, read_cohort
from metavoxel.data.splits import part_of, same_scans
from metavoxel.data.table import bare_id
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.accuracy import accuracy, accuracy_sections
from metavoxel.evaluate.asking import ask
from metavoxel.evaluate.calibrated import calibration, calibration_section
from metavoxel.evaluate.card import card, save_card
from metavoxel.evaluate.claims import Claim, claims
from metavoxel.evaluate.coherence import coherence_section, contradictions, retest
from metavoxel.evaluate.compare import ANSWERS, save_answers
from metavoxel.evaluate.drawing import Drawn, draw_scans
from metavoxel.evaluate.fairness import fairness, fairness_section, group_columns
from metavoxel.evaluate.figures import OURS, Findings
from metavoxel.evaluate.looks import (
    Gallery,
    See,
    as_voxels,
    copies,
    copies_section,
    copy_figures,
    images,
    images_section,
)
from metavoxel.evaluate.summary import summary_section
from metavoxel.files import checksum, make_folder, only_one
from metavoxel.loading import load_images
from metavoxel.model import MetaVoxel, load, resolve
from metavoxel.page import Report, Section, Table
from metavoxel.progress import one_bar, say
from metavoxel.schema import Image
from metavoxel.version import __version__

WORK = "work"
INPUTS = "inputs.json"
MOST_TRAINING = 2000
"""Scans that drawn ones are compared with, voxel by voxel."""


@dataclass(frozen=True)
class Options:
    """split, fold: whose part test is evaluated, and whose part train scans are compared with; training: a cohort instead.
    by: further columns to group people by. scans: how many are drawn. licence: of the training data."""

    split: Path | None = None
    fold: int | None = None
    training: Path | None = None
    baselines: Path | None = None
    by: Sequence[str] = ()
    scans: int = 128
    licence: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated, and everything that has been found out on the way."""

    model: MetaVoxel
    cohort: Cohort
    training: Cohort | None
    work: Path
    options: Options
    findings: Findings
    quiet: bool

    @cached_property
    def claims(self) -> list[Claim]:
        with one_bar("asking", self.quiet) as report:
            answers = ask(self.model, self.cohort, self.work / "answers", self.options.seed, report)
        return list(claims(answers, self.options.baselines))

    @property
    def people(self) -> np.ndarray:
        """(rows,) whose each row is."""
        return self.cohort.table["participant_id"].to_numpy()


def evaluate(
    model: str | Path, cohort: str | Path, out: str | Path, options: Options = Options(), *, quiet: bool = False
) -> Findings:
    """Evaluates a model on a cohort and writes OUT/report.html, metrics.json, model_card.md and .json.

    Raises MetavoxelError where somebody is in training and in the test, naming them; where a variable is missing; where OUT
    holds something else.
    """
    loaded, out = load(model), Path(out)
    whole = read_cohort(cohort)
    test, _ = part_of(whole, options.split, "test", options.fold)
    training = _training(whole, options)
    if training is not None:
        refuse_leak(training, test)
    make_folder(out / WORK)
    with only_one(out / WORK / "lock", f"evaluating into {out}"):
        about = _about(loaded, model, test, cohort, options)
        _claim(out, about)
        run = Evaluation(loaded, test, training, out / WORK, options, Findings(about), quiet)
        sections = _chapters(run)
        save_answers(run.claims, test, out / ANSWERS)
        run.findings.save(out / "metrics.json")
        save_card(out, card(loaded, run.findings, run.claims, options.licence))
        _page(run, sections).save(out / "report.html")
    if not quiet:
        say(f"report in {out / 'report.html'}, {len(run.findings.figures)} figures in {out / 'metrics.json'}")
    return run.findings


def _chapters(run: Evaluation) -> list[Section]:
    found, seed = run.findings, run.options.seed
    found.add(accuracy(run.claims, run.people, seed))
    found.add(calibration(run.claims, seed))
    by = group_columns(run.cohort, run.options.by)
    found.add(fairness(run.claims, run.cohort, by, seed))
    _left_out(run)
    if len(run.model.schema.scalars) > 1 and run.model.denoiser.coverage.separate:
        found.add(contradictions(run.model, run.cohort, seed))
    found.add(retest(run.claims, run.cohort))
    optional = [fairness_section(found, run.claims), coherence_section(found), *_images(run)]
    main = [summary_section(found, run.claims), *accuracy_sections(found, run.claims)]
    return [*main, calibration_section(found, run.claims, seed), *filter(None, optional)]


def _images(run: Evaluation) -> Iterator[Section]:
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
        spaces: dict[str, See] = {"voxels": as_voxels}
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


def _left_out(run: Evaluation) -> None:
    """What the cohort does not allow to be measured, in words."""
    lacking = run.findings.left_out
    ours = [claim for claim in run.claims if claim.who == OURS]
    for name in dict.fromkeys(claim.variable.name for claim in ours if claim.is_class):
        truth = next(claim.truth for claim in ours if claim.variable.name == name)
        if len(set(truth)) == 1:
            lacking.append(f"AUC of {name}: everybody in this cohort is of one class.")
    if len(set(run.people)) == 1:
        lacking.append("Intervals: there is one person only, so nothing says how much chance is in the figures.")
    if len(run.people) == len(set(run.people)):
        lacking.append("Test-retest: nobody was scanned twice.")
    if run.options.baselines is None:
        lacking.append("Baselines: none were given; train them with metavoxel baselines and add --baselines.")
    if run.training is None:
        lacking.append("Copies of training scans: the training cohort is not known; add --split or --training.")


def refuse_leak(training: Cohort, test: Cohort) -> None:
    """Raises MetavoxelError, with names, where somebody is in both or a scan is byte for byte in both.

    One id in two folders may be two people (sub-01 of two studies): there, only scans tell.
    """
    trained = {bare_id(person) for person in training.participants}
    both = [person for person in test.participants if bare_id(person) in trained]
    if both and training.root == test.root:
        raise MetavoxelError(f"{_named(both)} both in training and in the test; take them out of one, or use --split")
    images = [name for name in test.scans if name in training.scans]
    joined = concat({"training": _scans_only(training, images), "test": _scans_only(test, images)}, site=None)
    first = set(joined.participants[: len(training.participants)])
    for group in same_scans(joined):
        if len({person in first for person in group}) == 2:
            raise MetavoxelError(f"{' and '.join(group)} have the same scan, in training and in the test; take one out")


def _scans_only(cohort: Cohort, images: Sequence[str]) -> Cohort:
    scans = {name: cohort.scans[name] for name in images}
    return replace(cohort, table=cohort.table[["participant_id"]], columns={}, scans=scans)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more} {'is' if len(names) == 1 else 'are'}"


def _page(run: Evaluation, sections: Sequence[Section]) -> Report:
    about: dict[str, Any] = dict(run.findings.about)
    lead = f"{about['model']['name']} on {about['cohort']['people']} people of {about['cohort']['name']}."
    left = run.findings.left_out
    if left:
        rows = [(sentence,) for sentence in left]
        table = Table(("question and reason",), rows)
        sections = [*sections, Section("What was left out, and why", "These questions were not asked.", table=table)]
    footer = f"metavoxel {__version__}, seed {run.options.seed}. Every figure is in metrics.json beside this page."
    return Report("Is this model right?", [lead], sections, [footer])


def _about(model: MetaVoxel, name: str | Path, test: Cohort, cohort: str | Path, options: Options) -> dict[str, object]:
    weights = checksum(resolve(name) / "model.safetensors")
    return {
        "metavoxel": __version__,
        "model": {"name": Path(name).name, "weights": weights, "architecture": model.config.net.architecture},
        "cohort": {"name": Path(cohort).resolve().name, "people": len(test.participants), "rows": len(test),
                   "fingerprint": test.fingerprint()},
        "seed": options.seed,
    }  # fmt: skip


def _claim(out: Path, about: dict[str, object]) -> None:
    """Makes OUT/work belong to these inputs: what an evaluation of others left there is made anew."""
    path = out / WORK / INPUTS
    names = [entry.name for entry in (out / WORK).iterdir() if entry.name != "lock"]
    if names and not path.exists():
        raise MetavoxelError(f"{out / WORK}: holds {names[0]}, so it is no evaluation's; choose another folder")
    if path.exists() and read_json(path) != about:
        for entry in (out / WORK).iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
    write_json(path, about)


def _training(whole: Cohort, options: Options) -> Cohort | None:
    if options.training is not None:
        return read_cohort(options.training)
    return part_of(whole, options.split, "train", options.fold)[0] if options.split is not None else None
