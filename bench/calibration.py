"""Whether a model's distributions are right, on fresh phantoms whose exact posterior is known.

    python bench/calibration.py [--model phantom] [-n 1000]

Coverage of intervals, rank histograms (simulation-based calibration, Talts et al. 2018), CRPS beside the exact posterior's,
expected calibration error of the sex, for several questions; and how far the model contradicts itself.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import IMAGES, asked, clock, record
from matplotlib.figure import Figure
from phantom import cohort
from scipy.stats import binom

import metavoxel as mv
from metavoxel.answers import batches
from metavoxel.data import phantom
from metavoxel.diffusion import encode_once, expect
from metavoxel.evaluate.calibration import BINS, INTERVALS, ece, number_calibration, rank_histogram, reliability
from metavoxel.methods import draw_facts

PEOPLE = 1000
DRAWS = 319
"""Of each person: by 79, chance alone moves the mean CRPS by a third of a per cent."""
QUESTIONS = {"scan": ("scan", []), "nothing": (None, []), "sex": (None, ["sex"])}
CROWD, CROWD_SEED = 200_000, 777
"""Further people, asked about without a scan, which is cheap: of 1,000, chance alone moves a coverage by 1.6 points."""


def ages(model: mv.MetaVoxel, people: mv.Cohort, scan: str | None, facts: list[str]) -> np.ndarray:
    """(people, DRAWS) years."""
    image = model.schema.images[0].name
    drawn = []
    for batch in batches(model.schema, model.codecs, people, dict.fromkeys(facts), model.device):
        known = {name: value for name, value in batch.known.items() if name != image or scan}
        if not known:  # one row would answer for all; every person gets draws of their own
            state = draw_facts(model.denoiser, model.schema, {}, ["age"], DRAWS * batch.rows, seed=batch.first)
            drawn.append(state["age"].reshape(batch.rows, DRAWS))
            continue
        reader = encode_once(model.denoiser, model.schema, known)
        state = draw_facts(reader, model.schema, known, ["age"], DRAWS, first_row=batch.first)
        drawn.append(state["age"])
    return model.schema["age"].decode(torch.cat(drawn))  # type: ignore[union-attr, return-value]


def crowd_coverage(model: mv.MetaVoxel, by: list[str]) -> dict[str, float]:
    """Of CROWD people's ages, the share within central intervals of draws given these facts."""
    people = phantom.subjects(CROWD, CROWD_SEED)
    inside = dict.fromkeys(INTERVALS, 0)
    for values, own in people.groupby(by) if by else [((), people)]:
        drawn = model.sample(dict(zip(by, values)), ["age"], CROWD // 2)
        for share in INTERVALS:
            low, high = drawn.interval("age", share / 100)
            inside[share] += int(own["age"].between(low, high).sum())
    return {f"crowd_coverage_{share}": count / CROWD for share, count in inside.items()}


def exact_crps(rows: pd.DataFrame, given: list[str]) -> float:
    """Of the exact posterior given the anatomy."""
    width = np.diff(phantom.AGE_EDGES)[0]
    parts = []
    for first in range(0, len(rows), 256):
        some = rows.iloc[first : first + 256]
        below = phantom.posterior_mass(some, given).sum((2, 3)).cumsum(1)
        over = phantom.AGE_EDGES[None, 1:] >= some["age"].to_numpy()[:, None]
        parts.append(((below - over) ** 2).sum(1) * width)
    return float(np.concatenate(parts).mean())


def told_male(model: mv.MetaVoxel, people: mv.Cohort) -> np.ndarray:
    """(people,) p(male | scan), in one evaluation each."""
    answers = []
    for batch in batches(model.schema, model.codecs, people, {}, model.device):
        answers.append(expect(model.denoiser, model.schema, batch.known, ["sex"])["sex"].exp()[:, 1])
    return torch.cat(answers).cpu().numpy()


def both(male: np.ndarray) -> np.ndarray:
    """(people, 2): p(female), p(male)."""
    return np.stack([1 - male, male], 1)


def picture(drawn: dict[str, np.ndarray], truth: np.ndarray, p: np.ndarray, male: np.ndarray, path: Path) -> None:
    """Rank histograms of every question with the band that 95 % of even counts stay in, and p(male) against frequency."""
    figure = Figure(figsize=(12, 2.6), layout="constrained")
    axes = figure.subplots(1, len(drawn) + 1)
    low, high = binom.ppf([0.025, 0.975], len(truth), 1 / BINS)
    for axis, (question, ages) in zip(axes, drawn.items()):
        axis.axhspan(low, high, color="0.88")
        axis.bar(np.arange(BINS) + 0.5, rank_histogram(truth, ages), width=0.9, color="#3b6ea5")
        axis.set(title=f"age given {question.replace('_', ' ')}", xlabel="rank of the true age", xticks=[], ylim=(0, None))
    told, found, share = reliability(male, p)
    axes[-1].plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes[-1].scatter(told, found, s=400 * share, color="#3b6ea5")
    axes[-1].set(title="sex given scan", xlabel="p(male)", ylabel="share of men")
    figure.savefig(path, dpi=110)


@torch.no_grad()
def main() -> None:
    model, n = asked(PEOPLE)
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, clock(figures, "seconds"):
        people, rows, exact = cohort(Path(folder) / "c", n, model.schema.images[0])
        truth = rows["age"].to_numpy()
        drawn = {}
        for question, (scan, facts) in QUESTIONS.items():
            drawn[question] = ages(model, people, scan, facts)
            judged = number_calibration(truth, drawn[question])
            figures |= {f"age_given_{question}_{name}": figure for name, figure in judged.items()}
            if scan:
                figures[f"age_given_{question}_crps_exact"] = exact_crps(rows, facts)
            else:
                figures |= {f"age_given_{question}_{name}": held for name, held in crowd_coverage(model, facts).items()}
        p, male = told_male(model, people), (rows["sex"] == "M").to_numpy()
        figures["sex_given_scan_ece"] = ece(male, both(p))
        figures["sex_given_scan_ece_exact"] = ece(male, both(exact["sex_p_M"].to_numpy()))  # chance alone: it is right
        for _, gap in model.consistency(people.subset(range(min(200, len(people))))).iterrows():
            figures[f"contradiction_{gap['variable']}_through_{gap['through']}"] = gap["gap"]
    if n == PEOPLE:
        picture(drawn, truth, p, male, IMAGES / "calibration.png")
    record("calibration" if n == PEOPLE else f"calibration_{n}", f"{n} fresh phantoms, {DRAWS} draws each", figures)


if __name__ == "__main__":
    main()
