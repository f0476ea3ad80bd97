"""The phantom, where the exact answer is known: a model's one-evaluation answers and its intervals beside the limit.

    python bench/phantom.py ours --model phantom -n 2000             # the packaged model
    python bench/phantom.py ours --model out/model -n 2000 --name tiny
    python bench/phantom.py paper --cohort COHORT --config FILE      # trains the paper's way, asks the paper's way
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from common import record

import metavoxel as mv
from metavoxel.data import phantom
from metavoxel.data.phantom import write_cohort
from metavoxel.times import SharedTimes

TEST_SEED = 77_001
"""Far from every training seed: these people are in no model's training."""


def cohort(folder: Path, n: int, image: mv.Image) -> tuple[mv.Cohort, pd.DataFrame, pd.DataFrame]:
    """Fresh people on the model's grid, their facts and their exact posteriors."""
    write_cohort(folder, n, seed=TEST_SEED, shape=image.shape, spacing=image.spacing[0])  # type: ignore[arg-type]
    rows = phantom.subjects(n, TEST_SEED)
    return mv.read_cohort(folder), rows, phantom.posterior(rows)


def judge(table: pd.DataFrame, rows: pd.DataFrame, exact: pd.DataFrame) -> dict[str, object]:
    age, sex = rows["age"].to_numpy(), rows["sex"].to_numpy()
    mae, limit = np.abs(table["age_mean"] - age).mean(), np.abs(exact["age_mean"] - age).mean()
    figures: dict[str, object] = {
        "age_mae": float(mae), "age_mae_exact": float(limit), "age_mae_ratio": float(mae / limit),
        "age_mae_constant": float(np.abs(age - age.mean()).mean()),
        "sex_accuracy": float((table["sex"] == sex).mean()), "sex_accuracy_exact": float((exact["sex"] == sex).mean()),
        "age_sd": float(table["age_sd"].mean()), "age_sd_exact": float(exact["age_sd"].mean()),
    }  # fmt: skip
    if "age_q05" in table:
        figures["age_90_interval_coverage"] = float(((table["age_q05"] <= age) & (age <= table["age_q95"])).mean())
    return figures


def ours(model: mv.MetaVoxel, n: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as scratch:
        people, rows, exact = cohort(Path(scratch) / "c", n, model.schema.images[0])
        start = time.perf_counter()
        table = model.predict(people, ["age", "sex"])
    seconds = time.perf_counter() - start
    return judge(table, rows, exact) | {"evaluations": 1, "milliseconds_a_scan": 1e3 * seconds / n}


def paper(model: mv.MetaVoxel, n: int, steps: int = 50, draws: int = 3) -> dict[str, object]:
    """Replacement, `steps` steps, mean or majority of `draws` draws (paper, "Inference")."""
    image = model.first_image()
    with tempfile.TemporaryDirectory() as scratch:
        people, rows, exact = cohort(Path(scratch) / "c", n, image)
        start = time.perf_counter()
        answers = [
            model.sample({image.name: scan}, ["age", "sex"], draws, seed=person, steps=steps, method="replacement")
            for person, scan in enumerate(people.scans[image.name])
        ]
    seconds = time.perf_counter() - start
    age, male = np.stack([answer["age"] for answer in answers]), np.stack([answer["sex"] == "M" for answer in answers])
    table = pd.DataFrame({
        "age_mean": age.mean(1), "age_sd": age.std(1, ddof=1), "sex": np.where(male.mean(1) > 0.5, "M", "F"),
    })  # fmt: skip
    return judge(table, rows, exact) | {"evaluations": steps * draws, "milliseconds_a_scan": 1e3 * seconds / n}


def paper_model(cohort: Path, config: mv.Config, cache: Path | None = None) -> mv.MetaVoxel:
    """Trained the paper's way: one shared time."""
    with tempfile.TemporaryDirectory() as scratch:
        return mv.train(cohort, replace(config, times=SharedTimes()), Path(scratch) / "m", cache=cache)


def record_model(name: str, model: mv.MetaVoxel, n: int, figures: dict[str, object]) -> None:
    trained, steps = model.summary["training_rows"], model.config.joint.steps
    record(f"phantom_{name}", f"{trained} training scans, {steps} steps; {n} fresh test scans", figures)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["ours", "paper"])
    parser.add_argument("--model", default="phantom")
    parser.add_argument("--cohort", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--name", default="packaged")
    options = parser.parse_args()
    if options.what == "ours":
        model, ask = mv.load(options.model), ours
    else:
        config = mv.read_config(options.config) if options.config else mv.preset("tiny")
        model, ask = paper_model(options.cohort, config, options.cache), paper
    record_model(options.name, model, options.n, ask(model, options.n))


if __name__ == "__main__":
    main()
