"""Inpainting and counterfactuals on phantoms, where the truth is known.

    python bench/changes.py [--model phantom] [-n 20]

Inpainting: the left half of the head is held out. Error of the completions' mean inside it, beside the mean brain and the
mirrored right half; whether the completions' intervals hold the true voxels; the age told from the half that is left.
Counterfactuals: age set to 30 and to 80, beside the true ones (the same person and the same scanner noise at that age):
ventricles by a ruler calibrated on other phantoms, the dark share of the head (what the brain leaves of it), how far the
voxels move where the true ones do not.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from common import asked, clock, record
from images import Judges, scans

import metavoxel as mv
from metavoxel.counterfactual import counterfactual
from metavoxel.data import phantom
from metavoxel.data.volume import Volume, write_volume
from metavoxel.inpaint import inpaint
from metavoxel.latents import affine_of

SEED, JUDGES_SEED, JUDGES_PEOPLE = 77_002, 77_003, 600
AGES = (30.0, 80.0)
DRAWS = 8


def fill(model: mv.MetaVoxel, brains: np.ndarray, folder: Path, mean: np.ndarray, ages: np.ndarray) -> dict[str, object]:
    image = model.schema.images[0]
    affine, left = affine_of(image), image.shape[0] // 2
    mask = np.zeros(image.shape, np.float32)
    mask[:left] = 1
    write_volume(Volume(mask, affine), folder / "mask.nii.gz")
    errors: dict[str, list[float]] = {"completions": [], "mean_brain": [], "mirrored_half": [], "age": []}
    inside: list[float] = []
    for number, (brain, age) in enumerate(zip(brains, ages, strict=True)):
        write_volume(Volume(brain, affine), folder / "scan.nii.gz")
        made = inpaint(model, folder / "scan.nii.gz", folder / "mask.nii.gz", DRAWS, seed=number)
        draws = np.stack([made.completion(i).array for i in range(DRAWS)])[:, :left]
        truth, head = brain[:left], mean[:left] > 0.1
        guesses = {"completions": draws.mean(0), "mean_brain": mean[:left], "mirrored_half": brain[::-1][:left]}
        for name, guess in guesses.items():
            errors[name].append(float(np.sqrt(((guess - truth)[head] ** 2).mean())))
        # of DRAWS exchangeable draws, the truth lies between the extremes with probability (DRAWS - 1) / (DRAWS + 1)
        inside.append(float(((draws.min(0) <= truth) & (truth <= draws.max(0)))[head].mean()))
        errors["age"].append(abs(float(made.draws.mean("age")) - age))
    figures: dict[str, object] = {f"hole_rmse_{name}": float(np.mean(x)) for name, x in errors.items() if name != "age"}
    figures |= {"hole_voxels_between_extremes": float(np.mean(inside)), "expected_share": (DRAWS - 1) / (DRAWS + 1)}
    return figures | {"age_mae_from_half_a_scan": float(np.mean(errors["age"]))}


def age_to(
    model: mv.MetaVoxel, people: pd.DataFrame, brains: np.ndarray, folder: Path, judges: Judges
) -> dict[str, object]:
    image, figures = model.first_image(), {}
    made = []
    for brain, (_, person) in zip(brains, people.iterrows(), strict=True):
        write_volume(Volume(brain, affine_of(image)), folder / "scan.nii.gz")
        own = {"age": person["age"], "sex": person["sex"]}
        answer = counterfactual(model, folder / "scan.nii.gz", [{"age": age} for age in AGES], own)
        made.append([answer.volume(number).array for number in range(len(AGES))])
    for number, age in enumerate(AGES):
        far = (np.abs(people["age"] - age) > 15).to_numpy()
        moved, still = np.stack([m[number] for m in made])[far], brains[far]
        truth = scans(phantom.changed(people, age=age), SEED, image)[far]
        alike = np.abs(truth - still) < 0.05
        for which, name in {1: "dark_share", 2: "log_ventricles"}.items():
            found, exact, before = (judges.numbers(x)[:, which] for x in (moved, truth, still))
            figures |= {
                f"{name}_error_at_{age:.0f}": float(np.abs(found - exact).mean()),
                f"{name}_error_at_{age:.0f}_unchanged_scan": float(np.abs(before - exact).mean()),
                f"{name}_right_direction_at_{age:.0f}": float((np.sign(found - before) == np.sign(exact - before)).mean()),
            }
        figures |= {
            f"moved_where_truth_does_not_at_{age:.0f}": float(np.abs(moved - still)[alike].mean()),
            f"moved_where_truth_does_at_{age:.0f}": float(np.abs(moved - still)[~alike].mean()),
            f"truth_moved_there_at_{age:.0f}": float(np.abs(truth - still)[~alike].mean()),
        }
    return figures


def main() -> None:
    model, n = asked(20)
    image = model.schema.images[0]
    people = phantom.subjects(n, SEED)
    brains = scans(people, SEED, image)
    others = phantom.subjects(JUDGES_PEOPLE, JUDGES_SEED)
    known = scans(others, JUDGES_SEED, image)
    mean, judges = known.mean(0), Judges(known, others, image)
    ages = people["age"].to_numpy()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, clock(figures, "seconds"):
        figures |= fill(model, brains, Path(folder), mean, ages)
        figures["age_mae_constant"] = float(np.abs(ages - np.mean(phantom.AGES)).mean())
        figures |= age_to(model, people, brains, Path(folder), judges)
    record("changes", f"{n} fresh phantoms, {DRAWS} completions each", figures)


if __name__ == "__main__":
    main()
