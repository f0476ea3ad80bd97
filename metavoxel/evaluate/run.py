"""The evaluation: asks, draws, measures, and writes report.html, metrics.json and a model card.

What takes long (answers, drawn scans, scans on the model's grid) is kept in OUT/work, so that a stopped run goes on;
figures are made anew each time.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metavoxel.checkpoint import read_json, write_json
from metavoxel.data.cohort import Cohort, read_cohort
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.accuracy import accuracy, accuracy_sections
from metavoxel.evaluate.asking import refuse_lacking
from metavoxel.evaluate.baselines import BASELINES, OF_TABLES
from metavoxel.evaluate.baselines import RECORD as MADE
from metavoxel.evaluate.calibrated import EVERY_NUMBER, calibration, calibration_section
from metavoxel.evaluate.calibrated import LEAST_PEOPLE as LEAST_TOGETHER
from metavoxel.evaluate.calibrated import SECTION as CALIBRATION
from metavoxel.evaluate.card import card, save_card
from metavoxel.evaluate.claims import Claim, in_words, tables_of
from metavoxel.evaluate.coherence import coherence_section, contradictions, retest, surprises
from metavoxel.evaluate.compare import ANSWERS, comparison, comparison_page, save_answers
from metavoxel.evaluate.evaluation import Evaluation, Options, Side
from metavoxel.evaluate.fairness import LEAST_PEOPLE as LEAST_IN_GROUP
from metavoxel.evaluate.fairness import SECTION as GROUPS
from metavoxel.evaluate.fairness import fairness, fairness_sections, group_columns
from metavoxel.evaluate.figures import OURS, Findings
from metavoxel.evaluate.headsize import head_size_section
from metavoxel.evaluate.scans import DENSENET, Spaces, image_sections, spaces_of
from metavoxel.evaluate.sides import refuse_leak, refuse_seen, sides_of
from metavoxel.evaluate.summary import summary_section
from metavoxel.files import DIGITS, LOCK, atomic_write, checksum, make_folder, only_one
from metavoxel.model import MetaVoxel, resolve
from metavoxel.page import Report, Section, Table
from metavoxel.progress import one_bar, say
from metavoxel.surprise import LIMIT
from metavoxel.version import __version__

WORK = "work"
INPUTS = "inputs.json"


def evaluate(
    model: str | Path, cohort: Cohort | str | Path, out: str | Path, options: Options | None = None, *, quiet: bool = False
) -> Findings:
    """Evaluates a model on a cohort and writes OUT/report.html, metrics.json, model_card.md and .json.

    A model "runs/fold-{fold}" stands for one a fold of the split: each is asked about the fold that it was trained without,
    and all answers and drawn scans are judged together.

    Raises MetavoxelError where somebody is in training and in the test, naming them; where a variable is missing; where OUT
    holds something else; where a baseline's answer is none. Nothing is written then.
    """
    out, options = Path(out).expanduser(), options or Options()
    if (out / "model.json").exists():
        raise MetavoxelError(f"{out}: holds a model; choose another folder for the evaluation")
    whole = cohort if isinstance(cohort, Cohort) else read_cohort(cohort)
    sides = sides_of(str(model), whole, options)
    for side in sides:
        refuse_seen(side)
        if side.training is not None:
            refuse_leak(side.training, side.test)
    asked = np.concatenate([np.flatnonzero(whole.table["participant_id"].isin(side.test.participants)) for side in sides])
    test = whole.subset(asked)
    about = _about(sides, model, test, options)
    for side in sides:
        refuse_lacking(side.model, side.test)
    _refuse_unknown(sides[0].model, test)
    findings = Findings({**about, "options": _given(options), "torch": str(torch.__version__)})
    run = Evaluation(sides, test, out / WORK, options, findings, quiet)
    # what a slip of the pen would spoil comes before anything is written
    by, spaces = group_columns(test, options.by), spaces_of(run)
    for side in sides:
        if side.baselines:
            tables_of(side.baselines, side.model.schema, side.test)
            findings.left_out += _not_made(side, side.baselines)
    make_folder(out / WORK)
    with only_one(out / WORK, f"evaluating into {out}"):
        _claim(out, about)
        sections = _chapters(run, by, spaces)
        save_answers(run.claims, test, out / ANSWERS)
        run.findings.save(out / "metrics.json")
        save_card(out, card([side.model for side in sides], run.findings, run.claims, options.licence))
        _page(run, sections).save(out / "report.html")
    if not quiet:
        say(f"report in {out / 'report.html'}, {len(run.findings.figures)} figures in {out / 'metrics.json'}")
    return run.findings


def compare_evaluations(a: Path, b: Path, out: Path, seed: int = 0) -> None:
    """OUT/comparison.html and comparison.csv of two folders that `evaluate` wrote."""
    table, left_out = comparison(a, b, seed)
    make_folder(out)
    with atomic_write(out / "comparison.csv") as file:
        table.to_csv(file, index=False, float_format=DIGITS)
    comparison_page(table, left_out, a, b).save(out / "comparison.html")
    say(f"{len(table)} differences in {out / 'comparison.html'}")


def _chapters(run: Evaluation, by: Sequence[str], spaces: Mapping[str, Spaces]) -> list[Section]:
    found, people, seed = run.findings, run.people, run.options.seed
    words = run.cohort.kinds(by).reindex(people)
    judged = accuracy(run.claims, people, seed), calibration(run.claims, seed), fairness(run.claims, run.cohort, by, seed)
    with one_bar("judging answers", run.quiet) as report:
        for done, figures in enumerate(judged):
            report(done, len(judged))
            found.add(figures)
        report(len(judged), len(judged))
    _left_out(run, by)
    separate = run.model.denoiser.coverage.separate
    if len(run.model.schema.scalars) > 1 and separate:
        found.add(contradictions(run.sides, seed, run.work, run.quiet))
    found.add(surprises(run.surprises, LIMIT, words.reset_index(drop=True)))
    found.add(retest(run.claims, run.cohort))
    optional = [*fairness_sections(found, run.claims), head_size_section(run), coherence_section(found),
                *image_sections(run, spaces, by)]  # fmt: skip
    main = [summary_section(found, run.claims, separate), *accuracy_sections(found, run.claims)]
    return [*main, calibration_section(found, run.claims, seed), *filter(None, optional)]


def _refuse_unknown(model: MetaVoxel, test: Cohort) -> None:
    """Raises MetavoxelError where nothing that the model tells is known of anybody."""
    names = [v.name for v in model.schema.scalars]
    if not names:
        raise MetavoxelError("this model knows scans alone, so it tells nothing that can be judged; give it as a baseline")
    if all(test.table[name].isna().all() for name in names):
        raise MetavoxelError(f"{test.root}: {', '.join(names)}: known of nobody who is asked about, so there is nothing to "
                             "judge answers by; add a table of these facts")  # fmt: skip


def _left_out(run: Evaluation, by: Sequence[str]) -> None:
    """What the cohort does not allow to be measured, in words."""
    lacking = run.findings.left_out
    judged = {claim.variable.name for claim in run.claims}
    lacking += [f"{v.name}: known of nobody who was asked about." for v in run.model.schema.scalars if v.name not in judged]
    ours = [claim for claim in run.claims if claim.who == OURS]
    for name in dict.fromkeys(claim.variable.name for claim in ours if claim.is_class):
        truth = next(claim.truth for claim in ours if claim.variable.name == name)
        if len(set(truth)) == 1:
            lacking.append(f"AUC of {name}: everybody in this cohort is of one class.")
    if len(set(run.people)) == 1:
        lacking.append("Intervals: there is one person only, so nothing says how much chance is in the figures.")
    if len(run.people) == len(set(run.people)):
        lacking.append("Test-retest: nobody came twice.")
    if run.slow and run.options.scans < len(run.cohort):
        lacking.append(f"Answers without a scan: of {run.options.scans} people only (--scans), since this model draws the "
                       "scan along.")  # fmt: skip
    lacking += [*_not_together(run, ours), *_not_grouped(run, by), *_not_looked_at(run)]
    if run.options.baselines is None:
        lacking.append("Baselines: none were given; train them with metavoxel baselines and add --baselines.")


def _not_together(run: Evaluation, ours: Sequence[Claim]) -> Iterator[str]:
    """TARP, in words where it was not computed."""
    numbers: dict[str, set[str]] = {}
    for claim in ours:
        if claim.together is not None:
            numbers.setdefault(claim.given, set()).add(claim.variable.name)
    several = [given for given, names in numbers.items() if len(names) > 1]
    if not several:
        yield "TARP: fewer than two numbers are told together."
    for given in several:
        if run.findings.value(CALIBRATION, EVERY_NUMBER, "tarp_p", given=given) is None:
            yield f"TARP {in_words(given)}: all numbers are known of fewer than {LEAST_TOGETHER} people."


def _not_grouped(run: Evaluation, by: Sequence[str]) -> Iterator[str]:
    """Groups, where nobody is judged by any."""
    groups = [figure for figure in run.findings.figures if figure.section == GROUPS]
    if not by:
        yield "Groups: the cohort has no age, sex or site; name other columns with --by."
    elif not groups:
        yield f"Groups by {', '.join(by)}: each has fewer than {LEAST_IN_GROUP} people."
    elif all(figure.group.startswith(f"{figure.variable} = ") for figure in groups):
        yield f"Groups by {', '.join(by)}: people are asked nothing else; name other columns with --by."


def _not_looked_at(run: Evaluation) -> Iterator[str]:
    """What is asked of drawn scans, where it cannot be."""
    if not run.model.schema.images:
        return
    if not run.options.scans:
        yield "Drawn scans: none were asked for (--scans 0)."
        return
    without = [side.baselines for side in run.sides if side.baselines and not (side.baselines / DENSENET).is_file()]
    if run.options.baselines is None:
        yield "Drawn scans by the features of a network trained here: --baselines, which holds one, was not given."
    elif without:
        yield f"Drawn scans by the features of a network trained here: {without[0].name} holds no {DENSENET}."
    if run.options.radimagenet is None:
        yield "Drawn scans by 2.5-D features: --radimagenet was not given."
    if len(run.sides) == 1 and run.training is None:
        yield ("Copies of training scans, and what predictors read off drawn ones: the training cohort is not known; add "
               "--split or --training.")  # fmt: skip


def _not_made(side: Side, folder: Path) -> Iterator[str]:
    """Baselines that are lacking, by the record in their folder, if it has one."""
    if not (folder / MADE).exists():
        return
    record = read_json(folder / MADE)
    for name, reason in record["failed"].items():
        first_line = reason.partition("\n")[0]
        yield f"Baseline {name}{side.words}: it failed ({first_line})."
    every = BASELINES if side.model.schema.images else OF_TABLES
    if others := [name for name in every if name not in (*record["baselines"], *record["failed"])]:
        yield f"Baselines {', '.join(others)}{side.words}: not trained; metavoxel baselines --resume adds them."


def _page(run: Evaluation, sections: Sequence[Section]) -> Report:
    about: dict[str, Any] = dict(run.findings.about)
    folds, name = about["model"]["folds"], about["model"]["name"]
    who = name if folds == 1 else f"{folds} models, {name}, each asked about people it was trained without,"
    lead = f"{who} on {about['cohort']['people']} people of {about['cohort']['name']}."
    left = run.findings.left_out
    if left:
        rows = [(sentence,) for sentence in left]
        table = Table(("question and reason",), rows)
        sections = [*sections, Section("What was left out, and why", "These questions were not asked.", table=table)]
    footer = f"metavoxel {__version__}, seed {run.options.seed}. Every figure is in metrics.json beside this page."
    return Report("Is this model right?", [lead], sections, [footer])


def _about(sides: Sequence[Side], name: str | Path, test: Cohort, options: Options) -> dict[str, object]:
    weights = " ".join(checksum(resolve(side.name) / "model.safetensors") for side in sides)
    architecture = sides[0].model.config.net.architecture
    return {
        "metavoxel": __version__,
        "model": {"name": Path(name).name, "weights": weights, "architecture": architecture, "folds": len(sides)},
        "cohort": {"name": test.root.resolve().name, "people": len(test.participants), "rows": len(test),
                   "fingerprint": test.fingerprint()},
        "seed": options.seed,
    }  # fmt: skip


def _given(options: Options) -> dict[str, object]:
    """What was asked for, for the record. Files by name: where they lie says something of this machine alone."""

    def name(path: Path | None) -> str | None:
        return None if path is None else path.absolute().name

    return {"split": name(options.split), "fold": options.fold, "training": name(options.training),
            "baselines": name(options.baselines), "by": list(options.by), "scans": options.scans}  # fmt: skip


def _claim(out: Path, about: dict[str, object]) -> None:
    """Makes OUT/work belong to these inputs: what an evaluation of others left there is made anew."""
    path = out / WORK / INPUTS
    names = [entry.name for entry in (out / WORK).iterdir() if entry.name != LOCK]
    if names and not path.exists():
        raise MetavoxelError(f"{out / WORK}: holds {names[0]}, so it is no evaluation's; choose another folder")
    if path.exists() and read_json(path) != about:
        for entry in (out / WORK).iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()
    write_json(path, about)
