"""Scans drawn for the ages and sexes of fresh phantoms, beside real ones of the same people's facts: how many evaluations
they need, whether their anatomy follows the request.

    python bench/images.py [--model phantom] [-n 400]

MMD: Gaussian kernel as wide as the median distance between real scans, unbiased, of voxels and of the anatomy's numbers
(head volume, its dark share, ventricles by a ruler calibrated on other phantoms); `floor` is real scans against others.
Slopes on age, at equal sex, beside the real ones: of the dark share, and of tissues as the report's ruler has them, brain,
grey matter and fluid as shares of the head, whose size, another in everybody, would hide them.
Curves are held against those of many more people than are drawn: of 80, chance alone moves a slope by a tenth.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import asked, clock, record
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import metavoxel as mv
from metavoxel.data import phantom
from metavoxel.data.conform import conform
from metavoxel.data.phantom_render import render
from metavoxel.data.volume import Volume
from metavoxel.demo import calibrated_ruler
from metavoxel.diffusion import sample
from metavoxel.evaluate.anatomy import Ruler
from metavoxel.evaluate.two_sample import median_distance, mmd
from metavoxel.latents import affine_of
from metavoxel.loading import grid_of
from metavoxel.methods import IMAGE_STEPS
from metavoxel.question import Given
from metavoxel.solvers import DPM2M
from metavoxel.times import images_plan

STEPS = (10, IMAGE_STEPS, 250)
COMPARED = 80
JUDGES_SEED, REAL_SEED, OTHER_SEED = 77_006, 77_007, 77_008
JUDGES_PEOPLE = OTHERS = 1500
BATCH = 16
HEAD, DARK = 0.1, 0.4
"""Brightness, of bright tissue's: above HEAD is head, below DARK is fluid."""


def scans(people: pd.DataFrame, seed: int, image: mv.Image) -> np.ndarray:
    """(people, *shape) as a model sees them."""
    made = render(people, seed=seed, shape=image.shape, spacing=image.spacing[0])  # type: ignore[arg-type]
    affine, grid = affine_of(image), grid_of(image, Path())
    return np.stack([conform(Volume(voxels, affine), grid).array for voxels in torch.cat(list(made))[:, 0].cpu().numpy()])


@torch.no_grad()
def drawn(model: mv.MetaVoxel, people: pd.DataFrame, steps: int) -> np.ndarray:
    """One scan of each person's age and sex."""
    image, parts = model.first_image(), []
    for first in range(0, len(people), BATCH):
        some = people.iloc[first : first + BATCH]
        facts = {name: Given(model.schema.scalar(name).encode(some[name])[0].to(model.device)) for name in ("age", "sex")}
        found = sample(model.denoiser, model.schema, facts, [image.name], 1, images_plan(steps), DPM2M, first_row=first)
        parts.append(model.codecs[image.name].decode(found[image.name].reshape(-1, *image.entry_shape)).cpu().numpy())
    return np.concatenate(parts)


class Judges:
    """What measures scans: a ruler of ventricles and a classifier of sex, made on people whom nobody else meets."""

    def __init__(self, made: np.ndarray, people: pd.DataFrame, image: mv.Image) -> None:
        self.tissues = Ruler(affine_of(image))
        self.ruler, _ = calibrated_ruler(made, people["ventricles_percent"].to_numpy(), image.spacing)
        self.classifier = make_pipeline(PCA(150, random_state=0), LogisticRegression(max_iter=2000))
        self.classifier.fit(made.reshape(len(made), -1), people["sex"])
        numbers = self.numbers(made)
        self.middle, self.spread = numbers.mean(0), numbers.std(0)

    def numbers(self, made: np.ndarray) -> np.ndarray:
        """(n, 3): log head volume, dark share of the head, log ventricles."""
        head = made > HEAD
        dark = (head & (made < DARK)).sum((1, 2, 3)) / head.sum((1, 2, 3))
        return np.stack([np.log(head.sum((1, 2, 3))), dark, np.log(self.ruler(made))], 1)

    def anatomy(self, made: np.ndarray) -> np.ndarray:
        return (self.numbers(made) - self.middle) / self.spread

    def ventricles_by_age(self, made: np.ndarray, ages: pd.Series) -> tuple[float, float]:
        """Of their log: slope for each year, and the spread about the line."""
        logs = self.numbers(made)[:, 2]
        line = np.polyfit(ages, logs, 1)
        return float(line[0]), float((logs - np.polyval(line, ages)).std())

    def shares(self, made: np.ndarray) -> pd.DataFrame:
        """What changes with age, a row a scan."""
        table = self.tissues(made)
        parts = {name: table[f"{name}_ml"] / table["head_ml"] for name in ("brain", "grey", "csf")}
        return pd.DataFrame({"dark": self.numbers(made)[:, 1], **parts, "ventricles": table["ventricles_ml"]})

    def sex_recognised(self, made: np.ndarray, people: pd.DataFrame) -> float:
        return float((self.classifier.predict(made.reshape(len(made), -1)) == people["sex"].to_numpy()).mean())


def age_slopes(shares: pd.DataFrame, people: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Of every column, at equal sex: its change a year and the standard error of that."""
    terms = np.stack([np.ones(len(people)), people["age"], people["sex"] == "M"], 1).astype(float)
    y = shares.to_numpy()
    found = np.linalg.lstsq(terms, y, rcond=None)[0]
    variance = ((y - terms @ found) ** 2).sum(0) / (len(y) - terms.shape[1])
    return found[1], np.sqrt(variance * np.linalg.inv(terms.T @ terms)[1, 1])


def main() -> None:
    model, n = asked(400)
    image = model.first_image()
    figures: dict[str, object] = {}
    known, people = phantom.subjects(JUDGES_PEOPLE, JUDGES_SEED), phantom.subjects(n, REAL_SEED)
    others = phantom.subjects(OTHERS, OTHER_SEED)
    judges = Judges(scans(known, JUDGES_SEED, image), known, image)
    real, other = scans(people, REAL_SEED, image), scans(others, OTHER_SEED, image)
    spaces = {"voxels": lambda made: made.reshape(len(made), -1), "anatomy": judges.anatomy}
    widths = {name: median_distance(see(real)) for name, see in spaces.items()}
    slope, spread = judges.ventricles_by_age(other, others["age"])
    figures |= {f"mmd_{name}_floor": mmd(see(other), see(real), widths[name]).value for name, see in spaces.items()}
    figures |= {"ventricles_slope_real": slope, "ventricles_spread_real": spread}
    real_slopes, _ = age_slopes(judges.shares(other), others)
    figures["sex_recognised_real"] = judges.sex_recognised(real, people)
    for steps in STEPS:
        some = people if steps == IMAGE_STEPS else people[:COMPARED]
        with clock(figures, f"seconds_a_scan_{steps}_evaluations"):
            made = drawn(model, some, steps)
        figures[f"seconds_a_scan_{steps}_evaluations"] /= len(some)  # type: ignore[operator]
        own_slope, own_spread = judges.ventricles_by_age(made, some["age"])
        figures |= {
            f"ventricles_slope_ratio_{steps}_evaluations": own_slope / slope,
            f"ventricles_spread_ratio_{steps}_evaluations": own_spread / spread,
            f"sex_recognised_{steps}_evaluations": judges.sex_recognised(made, some),
        }
        for name, see in spaces.items():
            figures[f"mmd_{name}_{steps}_evaluations"] = mmd(see(made[:COMPARED]), see(real), widths[name]).value
            if steps == IMAGE_STEPS:
                figures[f"mmd_{name}_of_all"] = mmd(see(made), see(real), widths[name]).value
        if steps == IMAGE_STEPS:
            shares = judges.shares(made)
            for part, own, error, truth in zip(shares, *age_slopes(shares, people), real_slopes):
                figures |= {f"slope_ratio_{part}": own / truth, f"slope_ratio_{part}_error": abs(error / truth)}
    size = f"{n} scans drawn for the ages and sexes of as many fresh phantoms ({COMPARED} by other numbers of evaluations)"
    record("images", f"{size}, beside {OTHERS} other people", figures)


if __name__ == "__main__":
    main()
