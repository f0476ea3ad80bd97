"""The demo: a model asked about fresh phantom people, beside the exact answers -> report.html and metrics.json.

Phantoms are the one place where the right answer is known: their joint law is written down, so the exact posterior is
the limit that no model beats. Every conclusion of the report is computed from the run's own numbers.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table as TerminalTable
from scipy import ndimage, stats

from metavoxel import pictures
from metavoxel.checkpoint import write_json
from metavoxel.config import preset
from metavoxel.data import phantom
from metavoxel.data.cohort import Cohort, read_cohort
from metavoxel.draws import Draws
from metavoxel.errors import MetavoxelError
from metavoxel.loading import load_scan
from metavoxel.model import IMAGE_STEPS, SCALAR_STEPS, MetaVoxel, load
from metavoxel.report import Picture, Report, Section, Table
from metavoxel.training import progress_bar
from metavoxel.version import __version__

SCAN = "T1w"
DRAWS = 64
"""Draws a subject, for the intervals."""
AGES = (30.0, 50.0, 70.0, 90.0)
BRAINS_PER_AGE, SHOWN_PER_AGE = 6, 3
JOINT_BRAINS = 12
JOINT_FACTS = 1000
"""Draws of age and sex without an image: a histogram needs many, and they are cheap."""
ONE_PERSON_DRAWS = 256
TRAINING_SUBJECTS = 3000
# A phantom is a function of (seed, index). Cohorts made by hand have small seeds; these streams lie far from those and
# from each other, so nobody in the demo was in a training. Below 2**32: numpy would split a larger seed in two.
MAX_SEED = 1 << 29
FRESH_PEOPLE, TRAINING_PEOPLE, LAW_PEOPLE = 1 << 31, 1 << 30, (1 << 32) - 1
MARKER = ".metavoxel-demo"
MADE_HERE = ("report.html", "metrics.json", "cohort")

Figures = dict[str, Any]


@dataclass
class Story:
    """What the model was asked and what it said. n people, in the rows of `people`."""

    people: pd.DataFrame
    """Age, sex and the hidden anatomical numbers."""
    scans: np.ndarray
    """(n, *shape) on the model's grid."""
    said: pd.DataFrame
    exact: pd.DataFrame
    by_age: dict[float, np.ndarray]
    """Age given -> brains (BRAINS_PER_AGE, *shape)."""
    joint: Draws
    facts: Draws
    person: int
    """Row of the one person who is asked about in several ways."""
    questions: dict[str, np.ndarray]
    """What was given -> draws of age, years (ONE_PERSON_DRAWS,)."""
    seconds: dict[str, float]
    """Kind of question -> seconds per answer."""

    @property
    def age(self) -> np.ndarray:
        return self.people["age"].to_numpy()

    @property
    def male(self) -> np.ndarray:
        return self.people["sex"].to_numpy() == "M"


def run_demo(
    out: Path, *, train: bool, seed: int, model: str = "phantom", subjects: int = 200, quiet: bool = False
) -> Figures:
    """Writes OUT/report.html, OUT/metrics.json and the cohort they are about; returns the figures of metrics.json.

    train: train the tiny preset on fresh phantoms first, in OUT/model, and ask that. An earlier demo in OUT is replaced
    (its model only by another training). Raises MetavoxelError if OUT holds anything else.
    """
    if subjects < 2:
        raise MetavoxelError(f"the demo needs at least 2 subjects, got {subjects}")
    if not 0 <= seed < MAX_SEED:
        raise MetavoxelError(f"--seed {seed}: give a whole number from 0 to {MAX_SEED - 1}")
    out, start = Path(out), time.perf_counter()
    loaded = None if train else _phantom_model(load(model), model)
    claim(out, replace_model=train)
    stages: dict[str, float] = {}
    if loaded is None:
        loaded = _train(out, seed, quiet)
        stages["training"] = time.perf_counter() - start
    with progress_bar(quiet) as bars:

        @contextmanager
        def stage(name: str) -> Iterator[Callable[[int, int], None]]:
            task, begin = bars.add_task(name, total=None, note=""), time.perf_counter()
            yield lambda done, total: bars.update(task, completed=min(done, total), total=total)
            stages[name] = time.perf_counter() - begin

        story = _ask(loaded, out / "cohort", seed, subjects, stage)
        with stage("report"):
            figures: Figures = {
                "metavoxel": __version__, "seed": seed, "subjects": subjects, "draws": DRAWS, "steps": SCALAR_STEPS,
                "model": "tiny, trained here" if train else str(model), **measure(story),
                "evaluations": {"mean and probabilities": 1, "with intervals": 1 + SCALAR_STEPS, "brain": IMAGE_STEPS},
                "seconds_per_answer": story.seconds,
            }  # fmt: skip
            write_report(out / "report.html", story, figures, loaded)
    stages["total"] = time.perf_counter() - start
    figures["seconds"] = {name: round(value, 2) for name, value in stages.items()}
    write_json(out / "metrics.json", figures)
    if not quiet:
        _print(figures, out / "report.html")
    return figures


def claim(out: Path, replace_model: bool) -> None:
    """Makes `out` ready: new, empty, or emptied of an earlier demo. Nothing that is not a demo's is ever removed."""
    try:
        names = sorted(path.name for path in out.iterdir()) if out.exists() else []
        foreign = [name for name in names if name not in (*MADE_HERE, "model", MARKER)]
        if names and (foreign or MARKER not in names):
            raise MetavoxelError(f"{out}: holds {(foreign or names)[0]}, which is no earlier demo; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).write_text("Made by metavoxel demo, which may replace what is in this folder.\n")
        for name in (*MADE_HERE, *(["model"] if replace_model else [])):
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise MetavoxelError(f"{out}: cannot be used ({error.strerror}); choose another --out") from error


def _phantom_model(model: MetaVoxel, name: str) -> MetaVoxel:
    wanted = {SCAN, "age", "sex"}
    if not wanted <= set(model.schema.names) or len(model.schema.image(SCAN).shape) != 3:
        raise MetavoxelError(f"{name}: the demo needs a model of 3-D {SCAN}, age and sex; this one knows "
                             f"{', '.join(model.schema.names)}")  # fmt: skip
    return model


def _train(out: Path, seed: int, quiet: bool) -> MetaVoxel:
    """The tiny preset on a phantom cohort of its own, which is not kept."""
    from metavoxel.build import train

    config = preset("tiny", seed=seed)
    with tempfile.TemporaryDirectory(prefix="metavoxel-") as scratch:
        with progress_bar(quiet) as bars:
            task = bars.add_task("training phantoms", total=TRAINING_SUBJECTS, note="")
            people = _write_phantoms(Path(scratch) / "cohort", TRAINING_SUBJECTS, TRAINING_PEOPLE + seed, config.shape,
                                     config.spacing, lambda done: bars.update(task, completed=done))  # fmt: skip
        return train(people, config, out / "model", quiet=quiet)


def _write_phantoms(
    folder: Path, n: int, seed: int, shape: tuple[int, ...], spacing: tuple[float, ...], report: Callable[[int], None]
) -> Path:
    x, y, z = shape
    if len(set(spacing)) > 1:
        raise MetavoxelError(f"phantoms have cubic voxels, but this model's are {spacing} mm")
    return phantom.write_cohort(folder, n, seed=seed, shape=(x, y, z), spacing=spacing[0], on_progress=report)


def _ask(model: MetaVoxel, folder: Path, seed: int, subjects: int, stage: Callable[..., Any]) -> Story:
    image = model.schema.image(SCAN)
    with stage("phantom people") as report:
        _write_phantoms(folder, subjects, FRESH_PEOPLE + seed, image.shape, image.spacing, lambda done: report(done, subjects))
        people = phantom.subjects(subjects, FRESH_PEOPLE + seed)
        exact = phantom.posterior(people)
        cohort = read_cohort(folder)
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str, answers: int) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        seconds[name] = (time.perf_counter() - begin) / answers

    with stage("age and sex from scans") as report:
        paths = [path for path in cohort.scans[SCAN] if path is not None]
        with timed("reading a scan", subjects):
            scans = np.stack([load_scan(path, image).array for path in paths])
        with timed(f"age and sex of a scan, {DRAWS} draws for intervals", subjects):
            said = model.predict(cohort, ["age", "sex"], draws=DRAWS, seed=seed, progress=report)
        with timed("age and sex of a scan, one evaluation", subjects):  # second: the first also warms up
            model.predict(cohort, ["age", "sex"], draws=0, seed=seed)
    with stage("one person, four questions"):
        # the person whose exact interval has the middle width: neither the easiest nor the hardest
        person = int((exact["age_q95"] - exact["age_q05"]).argsort().iloc[subjects // 2])
        sex = {"sex": people["sex"].iloc[person]}
        scan = {SCAN: paths[person]}
        asked: dict[str, dict[str, object]] = {"nothing": {}, "sex": {**sex}, "scan": {**scan}, "scan and sex": {**scan, **sex}}
        questions = {}
        for name, given in asked.items():
            with timed(f"{ONE_PERSON_DRAWS} draws of one person's age", 1):
                questions[name] = model.sample(given, ["age"], ONE_PERSON_DRAWS, seed)["age"]
    with stage("brains by age") as report:
        by_age = {}
        with timed("a brain of a given age", len(AGES) * BRAINS_PER_AGE):
            for number, age in enumerate(AGES):
                by_age[age] = model.sample({"age": age}, [SCAN], BRAINS_PER_AGE, seed)[SCAN]
                report(number + 1, len(AGES))
    with stage("whole people") as report:
        facts = model.sample({}, ["age", "sex"], JOINT_FACTS, seed)
        with timed("a brain with its age and sex", JOINT_BRAINS):
            joint = model.sample({}, [SCAN, "age", "sex"], JOINT_BRAINS, seed + MAX_SEED, progress=report)
    return Story(people, scans, said, exact, by_age, joint, facts, person, questions, seconds)


def measure(story: Story) -> Figures:
    """The numbers of the report, rounded; the same for the same seed."""
    age, male = story.age, story.male
    middle = sum(phantom.AGES) / 2
    constant = pd.DataFrame({"age_mean": middle, "age_sd": np.ptp(phantom.AGES) / 12**0.5,
                             "age_q05": np.quantile(phantom.AGES, 0.05), "age_q95": np.quantile(phantom.AGES, 0.95)},
                            index=range(len(age)))  # fmt: skip
    answers = {"model": story.said, "exact": story.exact, "constant": constant}
    errors = {who: np.abs(table["age_mean"].to_numpy() - age) for who, table in answers.items()}
    figures: Figures = {
        "age": {
            who: {
                "mae": errors[who].mean(), "mae_standard_error": errors[who].std(ddof=1) / len(age) ** 0.5,
                "interval90_coverage": np.mean((table["age_q05"] <= age) & (age <= table["age_q95"])),
                "interval90_width": np.mean(table["age_q95"] - table["age_q05"]), "sd": table["age_sd"].mean(),
            }
            for who, table in answers.items()
        },
        "sex": {who: _sex_figures(male, table["sex_p_M"].to_numpy()) for who, table in list(answers.items())[:2]},
        "one_person": {
            "age": age[story.person], "sex": story.people["sex"].iloc[story.person],
            **{name: {"mean": draws.mean(), "sd": draws.std(ddof=1)} for name, draws in story.questions.items()},
        },
        "drawn_people": {
            "age_mean": story.facts["age"].mean(), "age_sd": story.facts["age"].std(ddof=1),
            "share_men": np.mean(story.facts["sex"] == "M"),
        },
    }  # fmt: skip
    figures["age"]["model"]["over_exact"] = errors["model"].mean() / errors["exact"].mean()
    figures["sex"]["mean_difference"] = np.abs(story.said["sex_p_M"] - story.exact["sex_p_M"]).mean()
    return _plain(figures)


def _sex_figures(male: np.ndarray, p: np.ndarray) -> Figures:
    """Accuracy, and Spiegelhalter's z: within 1.96 in 95 % of runs if the probabilities can be taken at face value."""
    spread = np.sqrt(np.sum((1 - 2 * p) ** 2 * p * (1 - p)))
    return {"accuracy": np.mean((p > 0.5) == male), "calibration_z": np.sum((male - p) * (1 - 2 * p)) / max(spread, 1e-9)}
