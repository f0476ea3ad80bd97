"""The demo: a model asked about fresh phantom people, beside the exact answers -> report.html and metrics.json.

Phantoms are the one place where the right answer is known: their joint law is written down, so the exact posterior is
the limit that no model beats.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import ndimage

from metavoxel.checkpoint import write_json
from metavoxel.config import preset
from metavoxel.data import phantom
from metavoxel.data.cohort import read_cohort
from metavoxel.errors import MetavoxelError
from metavoxel.loading import load_scan
from metavoxel.methods import IMAGE_STEPS
from metavoxel.model import MetaVoxel, load
from metavoxel.progress import Bars
from metavoxel.report import BRAIN, READ, Figures, Story, demo_report, summary_rows
from metavoxel.version import __version__

SCAN = "T1w"
AGES = (30.0, 50.0, 70.0, 90.0)
BRAINS_PER_AGE = 4
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

Report = Callable[[int, int], None]
"""(done, total)."""


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
    out, clock = Path(out), Clock()
    with clock.stage("total"):
        loaded = None if train else _phantom_model(load(model), model)
        claim(out, replace_model=train)
        if loaded is None:
            with clock.stage("training"):
                loaded = _train(out / "model", seed, quiet)
        with Bars(quiet) as clock.bars:
            story = _ask(loaded, out / "cohort", seed, subjects, clock)
            with clock.stage("report"):
                figures = {
                    "metavoxel": __version__, "seed": seed, "subjects": subjects,
                    "model": "tiny, trained here" if train else str(model), **measure(story),
                    "evaluations": {"read": 1, "brain": IMAGE_STEPS},
                }  # fmt: skip
                demo_report(story, figures).save(out / "report.html")
    # apart, since these differ from run to run
    figures["seconds"] = {"per_answer": _plain(story.seconds), "stages": _plain(clock.seconds), "device": story.device}
    write_json(out / "metrics.json", figures)
    if not quiet:
        _print(figures, out / "report.html")
    return figures


def claim(out: Path, replace_model: bool) -> None:
    """Makes `out` ready: new, empty, or cleared of an earlier demo. What no demo wrote is never removed."""
    try:
        names = sorted(path.name for path in out.iterdir()) if out.exists() else []
        foreign = [name for name in names if name not in (*MADE_HERE, "model", MARKER)]
        if names and (foreign or MARKER not in names):
            raise MetavoxelError(f"{out}: holds {(foreign or names)[0]}, so it is not a demo's; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        (out / MARKER).write_text("Made by metavoxel demo, which replaces what it wrote here when it runs again.\n")
        for name in (*MADE_HERE, *(["model"] if replace_model else [])):
            if (out / name).is_dir():
                shutil.rmtree(out / name)
            else:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise MetavoxelError(f"{out}: cannot be used ({error.strerror}); choose another --out") from error


@dataclass
class Clock:
    """How long each stage took, shown as it goes on once there are bars."""

    seconds: dict[str, float] = field(default_factory=dict)
    bars: Progress | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[Report]:
        bars, start = self.bars, time.perf_counter()
        task = bars.add_task(name, total=None, note="") if bars else None
        totals = [1]

        def report(done: int, total: int) -> None:
            totals[0] = total
            if bars and task is not None:
                bars.update(task, completed=min(done, total), total=total)

        yield report
        report(totals[0], totals[0])
        self.seconds[name] = time.perf_counter() - start


def _phantom_model(model: MetaVoxel, name: str) -> MetaVoxel:
    names = set(model.schema.names)
    if not {SCAN, "age", "sex"} <= names or len(model.schema.image(SCAN).shape) != 3:
        known = ", ".join(model.schema.names)
        raise MetavoxelError(f"{name}: the demo needs a model of a 3-D {SCAN}, age and sex; this one knows {known}")
    return model


def _train(folder: Path, seed: int, quiet: bool) -> MetaVoxel:
    """The tiny preset on a phantom cohort of its own, which is not kept."""
    from metavoxel.build import train

    config = preset("tiny", seed=seed)
    with tempfile.TemporaryDirectory(prefix="metavoxel-") as scratch:
        cohort = Path(scratch) / "cohort"
        with Bars(quiet) as bars, Clock(bars=bars).stage("phantoms to train on") as report:
            _write_phantoms(cohort, TRAINING_SUBJECTS, TRAINING_PEOPLE + seed, config.shape, config.spacing, report)
        return train(cohort, config, folder, quiet=quiet)


def _write_phantoms(
    folder: Path, n: int, seed: int, shape: Sequence[int], spacing: Sequence[float], report: Report
) -> None:
    x, y, z = shape
    if len(set(spacing)) > 1:
        raise MetavoxelError(f"phantoms have cubic voxels, but this model's are {tuple(spacing)} mm")
    phantom.write_cohort(
        folder, n, seed=seed, shape=(x, y, z), spacing=spacing[0], on_progress=lambda done: report(done, n)
    )


def _ask(model: MetaVoxel, folder: Path, seed: int, subjects: int, clock: Clock) -> Story:
    """All questions and answers."""
    image = model.schema.image(SCAN)
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str, answers: int) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = (time.perf_counter() - start) / answers

    with clock.stage("phantom people") as report:
        _write_phantoms(folder, subjects, FRESH_PEOPLE + seed, image.shape, image.spacing, report)
        people = phantom.subjects(subjects, FRESH_PEOPLE + seed)
        exact = phantom.posterior(people)
        cohort = read_cohort(folder)
        paths = [path for path in cohort.scans[SCAN] if path is not None]
    with clock.stage("age and sex from scans") as report:
        with timed("reading a scan", subjects):
            scans = np.stack([load_scan(path, image).array for path in paths])
        model.predict(cohort.subset([0]), ["age", "sex"], compare=False)  # the first answer warms up
        with timed(READ, subjects):
            said = model.predict(cohort, ["age", "sex"], compare=False, progress=report)
    with clock.stage("one person, four questions"):
        person = _telling_person(people, exact)
        sex, scan = {"sex": people["sex"].iloc[person]}, {SCAN: paths[person]}
        asked: dict[str, dict[str, Any]] = {"nothing": {}, "sex": sex, "scan": scan, "scan and sex": {**scan, **sex}}
        with timed(f"{ONE_PERSON_DRAWS} draws of one person's age", len(asked)):
            questions = {name: model.sample(given, ["age"], ONE_PERSON_DRAWS, seed)["age"] for name, given in asked.items()}
        row = people.iloc[[person]]
        flat = np.full(len(phantom.AGE_EDGES) - 1, 1 / np.ptp(phantom.AGES))  # the law's ages, whatever the sex
        densities = {"nothing": flat, "sex": flat}
        for name, told in (("scan", []), ("scan and sex", ["sex"])):
            mass = phantom.posterior_mass(row, told)[0].sum((1, 2))
            densities[name] = mass / np.diff(phantom.AGE_EDGES)
    with clock.stage("brains of given ages") as report:
        by_age = {}
        with timed(BRAIN, len(AGES) * BRAINS_PER_AGE):
            for number, age in enumerate(AGES):
                # the same seed for every age: the same noise
                by_age[age] = model.sample({"age": age}, [SCAN], BRAINS_PER_AGE, seed)[SCAN]
                report(number + 1, len(AGES))
    with clock.stage("whole people") as report:
        facts = model.sample({}, ["age", "sex"], JOINT_FACTS, seed)
        joint = model.sample({}, [SCAN, "age", "sex"], JOINT_BRAINS, seed + MAX_SEED, progress=report)
    with clock.stage("measuring brains"):
        ruler, measured = calibrated_ruler(scans, people["ventricles_percent"].to_numpy(), image.spacing)
        law = law_of_ventricles()
        made = np.stack([ruler(brains) for brains in by_age.values()])
        ventricles = {"scans": measured, "joint": ruler(joint[SCAN]), "by_age": made}
    threads = torch.get_num_threads()
    device = "a GPU" if model.device.type == "cuda" else f"{threads} processor thread{'s' * (threads > 1)}"
    return Story(
        people=people, scans=scans, spacing=image.spacing, said=said, exact=exact, by_age=by_age, joint=joint.frame(),
        joint_brains=joint[SCAN], facts=facts.frame(), person=person, questions=questions,
        densities=densities, ventricles=ventricles, law=law, seconds=seconds, device=device,
    )  # fmt: skip


def _telling_person(people: pd.DataFrame, exact: pd.DataFrame) -> int:
    """Of the half of people who are neither easiest nor hardest: whose age the sex changes most."""
    width = (exact["age_q95"] - exact["age_q05"]).to_numpy()
    middle = width.argsort()[len(width) // 4 : len(width) - len(width) // 4]
    moved = np.abs(phantom.posterior(people, ["sex"])["age_mean"].to_numpy() - exact["age_mean"].to_numpy())
    return int(middle[moved[middle].argmax()])


Ruler = Callable[[np.ndarray], np.ndarray]
"""Images (n, *shape), bright tissue near 1 -> ventricles (n,), % of the intracranial volume."""


def calibrated_ruler(scans: np.ndarray, percent: np.ndarray, spacing: Sequence[float]) -> tuple[Ruler, np.ndarray]:
    """A measure of the ventricles in images, for brains whose true ones nobody knows.

    Ridge regression of their log on the voxels deep inside the head, fitted to people (n,) whose ventricles are known.
    Also its values (n,) for these people, each from a fit to other people.
    """
    deep = ndimage.distance_transform_edt((scans > 0.08).mean(0) > 0.5, sampling=spacing) > 20  # mm
    voxels, logs = scans[:, deep].astype(np.float64), np.log(percent)

    def fitted(rows: np.ndarray) -> Ruler:
        x, y = voxels[rows].mean(0), logs[rows].mean()
        inner = (voxels[rows] - x) @ (voxels[rows] - x).T
        # in the space of people, which are far fewer than voxels; the ridge: a share of their mean squared length
        ridge = 0.1 * np.trace(inner) / len(inner) + 1e-9
        weights = (voxels[rows] - x).T @ np.linalg.solve(inner + ridge * np.eye(len(inner)), logs[rows] - y)
        return lambda images: np.exp((images[:, deep] - x) @ weights + y)

    fold = np.arange(len(scans)) % min(5, len(scans))
    held_out = np.empty(len(scans))
    for k in np.unique(fold):
        held_out[fold == k] = fitted(fold != k)(scans[fold == k])
    return fitted(np.ones(len(scans), dtype=bool)), held_out


def law_of_ventricles() -> pd.DataFrame:
    """age; low, mean, high: 5 %, mean and 95 % of the law's ventricles (% of the intracranial volume), smoothed."""
    law = phantom.subjects(3000, LAW_PEOPLE)
    ages = np.linspace(*phantom.AGES, 36)
    near = [law["ventricles_percent"][(law["age"] - age).abs() < 4].to_numpy() for age in ages]
    curves = {
        "low": [np.quantile(x, 0.05) for x in near], "mean": [x.mean() for x in near],
        "high": [np.quantile(x, 0.95) for x in near],
    }  # fmt: skip
    smooth = {name: np.exp(np.polyval(np.polyfit(ages, np.log(y), 3), ages)) for name, y in curves.items()}
    return pd.DataFrame({"age": ages, **smooth})


def measure(story: Story) -> Figures:
    """The numbers of the report; the same for the same seed."""
    age, male = story.age, story.male
    low, high = phantom.AGES
    constant = {
        "age_mean": (low + high) / 2, "age_sd": (high - low) / 12**0.5, "age_q05": low + 0.05 * (high - low),
        "age_q95": high - 0.05 * (high - low), "sex_p_M": 0.5,
    }  # fmt: skip
    answers = {"model": story.said, "exact": story.exact, "constant": pd.DataFrame(constant, index=story.people.index)}
    ages = {who: _age_figures(age, table) for who, table in answers.items()}
    ages["model"]["over_exact"] = ages["model"]["mae"] / ages["exact"]["mae"]
    sexes: Figures = {who: _sex_figures(male, table["sex_p_M"].to_numpy()) for who, table in answers.items()}
    sexes["mean_difference"] = np.abs(story.said["sex_p_M"].to_numpy() - story.exact["sex_p_M"].to_numpy()).mean()
    centres, width = (phantom.AGE_EDGES[1:] + phantom.AGE_EDGES[:-1]) / 2, np.diff(phantom.AGE_EDGES)
    one: Figures = {"age": age[story.person], "sex": story.people["sex"].iloc[story.person]}
    for name, draws in story.questions.items():
        mass = story.densities[name] * width
        mean = mass @ centres
        one[name] = {
            "model": {"mean": draws.mean(), "sd": draws.std(ddof=1)},
            "exact": {"mean": mean, "sd": (mass @ (centres - mean) ** 2 + width[0] ** 2 / 12) ** 0.5},
        }
    law, joint = story.law, story.joint["age"]
    bounds = [np.interp(joint, law["age"], law[side]) for side in ("low", "high")]
    inside = (bounds[0] <= story.ventricles["joint"]) & (story.ventricles["joint"] <= bounds[1])
    return _plain({
        "age": ages, "sex": sexes, "one_person": one,
        "drawn_people": {
            "age_mean": story.facts["age"].mean(), "age_sd": story.facts["age"].std(),
            "share_men": (story.facts["sex"] == "M").mean(), "n": len(story.facts),
        },
        "ventricles_percent": {
            "generated": {f"{a:g}": x.mean() for a, x in zip(story.by_age, story.ventricles["by_age"])},
            "law": {f"{a:g}": np.interp(a, law["age"], law["mean"]) for a in story.by_age},
            "joint_inside": int(inside.sum()), "joint": len(inside),
            "ruler_correlation": np.corrcoef(story.ventricles["scans"], story.people["ventricles_percent"])[0, 1],
        },
    })  # fmt: skip


def _age_figures(age: np.ndarray, table: pd.DataFrame) -> Figures:
    error = np.abs(table["age_mean"].to_numpy() - age)
    low, high = table["age_q05"].to_numpy(), table["age_q95"].to_numpy()
    return {
        "mae": error.mean(), "mae_standard_error": error.std(ddof=1) / len(age) ** 0.5, "sd": table["age_sd"].mean(),
        "interval90_coverage": ((low <= age) & (age <= high)).mean(), "interval90_width": (high - low).mean(),
    }  # fmt: skip


def _sex_figures(male: np.ndarray, p: np.ndarray) -> Figures:
    """Share correct (a tie counts half), and Spiegelhalter's z: within 1.96 in 95 % of runs if p means what it says."""
    spread = np.sqrt(np.sum((1 - 2 * p) ** 2 * p * (1 - p)))
    z = np.sum((male - p) * (1 - 2 * p)) / spread if spread > 0 else 0.0
    return {"accuracy": np.where(p == 0.5, 0.5, (p > 0.5) == male).mean(), "calibration_z": z}


def _plain(value: Any) -> Any:
    """As JSON takes it: numbers rounded; what is not finite is None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float | np.floating):
        return round(float(value), 4) if np.isfinite(value) else None
    return value


def _print(f: Figures, report: Path) -> None:
    console = Console()
    table = Table("", "model", "exact", "constant", box=None)
    for row in summary_rows(f):
        table.add_row(*row)
    console.print(table)
    passes = f["evaluations"]
    counts = {READ: passes["read"], BRAIN: passes["brain"]}
    answers = Table("", "seconds per answer", "network evaluations", box=None)
    for kind, count in counts.items():
        answers.add_row(kind, f"{f['seconds']['per_answer'][kind]:.3f}", str(count))
    console.print(answers)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
