"""The evaluation: asks, draws, measures, and writes report.html, metrics.json and a model card.

What takes long (answers, drawn scans, scans on the model's grid) is kept in OUT/work, so that a stopped run goes on;
figures are made anew each time.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metavoxel.checkpoint import read_json, write_json
from metavoxel.data.cohort import Cohort, concat, read_cohort
from metavoxel.data.splits import part_of, same_scans
from metavoxel.data.table import bare_id
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.accuracy import accuracy, accuracy_sections
from metavoxel.evaluate.calibrated import calibration, calibration_section
from metavoxel.evaluate.card import card, save_card
from metavoxel.evaluate.coherence import coherence_section, contradictions, retest
from metavoxel.evaluate.compare import ANSWERS, comparison, comparison_page, save_answers
from metavoxel.evaluate.evaluation import Evaluation, Options
from metavoxel.evaluate.fairness import fairness, fairness_section, group_columns
from metavoxel.evaluate.figures import OURS, Findings
from metavoxel.evaluate.scans import image_sections
from metavoxel.evaluate.summary import summary_section
from metavoxel.files import atomic_write, checksum, make_folder, only_one
from metavoxel.model import MetaVoxel, load, resolve
from metavoxel.page import Report, Section, Table
from metavoxel.progress import say
from metavoxel.version import __version__

WORK = "work"
INPUTS = "inputs.json"


def evaluate(
    model: str | Path, cohort: str | Path, out: str | Path, options: Options | None = None, *, quiet: bool = False
) -> Findings:
    """Evaluates a model on a cohort and writes OUT/report.html, metrics.json, model_card.md and .json.

    Raises MetavoxelError where somebody is in training and in the test, naming them; where a variable is missing; where OUT
    holds something else.
    """
    loaded, out, options = load(model), Path(out), options or Options()
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


def compare_evaluations(a: Path, b: Path, out: Path, seed: int = 0) -> None:
    """OUT/comparison.html and comparison.csv of two folders that `evaluate` wrote."""
    table = comparison(a, b, seed)
    make_folder(out)
    with atomic_write(out / "comparison.csv") as file:
        table.to_csv(file, index=False, float_format="%.6g")
    comparison_page(table, a, b).save(out / "comparison.html")
    say(f"{len(table)} differences in {out / 'comparison.html'}")


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
    optional = [fairness_section(found, run.claims), coherence_section(found), *image_sections(run)]
    main = [summary_section(found, run.claims), *accuracy_sections(found, run.claims)]
    return [*main, calibration_section(found, run.claims, seed), *filter(None, optional)]


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
