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
from scipy.stats import binom, chisquare

import metavoxel as mv
from metavoxel.answers import batches
from metavoxel.data import phantom
from metavoxel.diffusion import encode_once, expect
from metavoxel.methods import SCALAR_STEPS, draw_facts

DRAWS = 79
BINS = 20
"""Of the rank histograms: each holds (DRAWS + 1) / BINS ranks."""
QUESTIONS = {"scan": ("scan", []), "nothing": (None, []), "sex": (None, ["sex"])}
INTERVALS = (50, 80, 90, 95)


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


def crps(drawn: np.ndarray, truth: np.ndarray) -> float:
    """Mean over people, years; the fair estimate from draws."""
    ordered = np.sort(drawn, 1)
    n = drawn.shape[1]
    spread = 2 * (ordered * (2 * np.arange(1, n + 1) - n - 1)).sum(1) / (n * (n - 1))
    return float((np.abs(drawn - truth[:, None]).mean(1) - spread / 2).mean())


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


def ranks(drawn: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(BINS,) how many people's true age has each rank among its draws: even where the draws are right."""
    return np.bincount((drawn < truth[:, None]).sum(1) * BINS // (DRAWS + 1), minlength=BINS)


def judge(drawn: np.ndarray, truth: np.ndarray, question: str) -> dict[str, object]:
    figures: dict[str, object] = {}
    for share in INTERVALS:
        low, high = np.percentile(drawn, [50 - share / 2, 50 + share / 2], axis=1)
        figures[f"age_given_{question}_coverage_{share}"] = float(((low <= truth) & (truth <= high)).mean())
    figures[f"age_given_{question}_rank_p"] = float(chisquare(ranks(drawn, truth)).pvalue)
    return figures | {f"age_given_{question}_crps": crps(drawn, truth)}


def told_male(model: mv.MetaVoxel, people: mv.Cohort) -> np.ndarray:
    """(people,) p(male | scan), in one evaluation each."""
    answers = []
    for batch in batches(model.schema, model.codecs, people, {}, model.device):
        answers.append(expect(model.denoiser, model.schema, batch.known, ["sex"])["sex"].exp()[:, 1])
    return torch.cat(answers).numpy()


def tenths(p: np.ndarray, male: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each tenth of the probability scale that somebody is in: mean probability, share of men, share of people."""
    which = np.minimum((p * 10).astype(int), 9)
    bins = [(p[which == b].mean(), male[which == b].mean(), (which == b).mean()) for b in sorted(set(which))]
    told, found, share = np.array(bins).T
    return told, found, share


def ece(p: np.ndarray, male: np.ndarray) -> float:
    """Expected calibration error over the tenths (Naeini et al. 2015)."""
    told, found, share = tenths(p, male)
    return float((np.abs(told - found) * share).sum())


def picture(drawn: dict[str, np.ndarray], truth: np.ndarray, p: np.ndarray, male: np.ndarray, path: Path) -> None:
    """Rank histograms of every question with the band that 95 % of even counts stay in, and p(male) against frequency."""
    figure = Figure(figsize=(12, 2.6), layout="constrained")
    axes = figure.subplots(1, len(drawn) + 1)
    low, high = binom.ppf([0.025, 0.975], len(truth), 1 / BINS)
    for axis, (question, ages) in zip(axes, drawn.items()):
        axis.axhspan(low, high, color="0.88")
        axis.bar(np.arange(BINS) + 0.5, ranks(ages, truth), width=0.9, color="#3b6ea5")
        axis.set(title=f"age given {question.replace('_', ' ')}", xlabel="rank of the true age", xticks=[], ylim=(0, None))
    told, found, share = tenths(p, male)
    axes[-1].plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes[-1].scatter(told, found, s=400 * share, color="#3b6ea5")
    axes[-1].set(title="sex given scan", xlabel="p(male)", ylabel="share of men")
    figure.savefig(path, dpi=110)


@torch.no_grad()
def main() -> None:
    model, n = asked(1000)
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, clock(figures, "seconds"):
        people, rows, exact = cohort(Path(folder) / "c", n, model.schema.images[0])
        truth = rows["age"].to_numpy()
        drawn = {}
        for question, (scan, facts) in QUESTIONS.items():
            drawn[question] = ages(model, people, scan, facts)
            figures |= judge(drawn[question], truth, question)
            if scan:
                figures[f"age_given_{question}_crps_exact"] = exact_crps(rows, facts)
        p, male = told_male(model, people), (rows["sex"] == "M").to_numpy()
        figures["sex_given_scan_ece"] = ece(p, male)
        figures["sex_given_scan_ece_exact"] = ece(exact["sex_p_M"].to_numpy(), male)  # chance alone: it is right
        for _, gap in model.consistency(people.subset(range(min(200, len(people))))).iterrows():
            figures[f"contradiction_{gap['variable']}_through_{gap['through']}"] = gap["gap"]
    picture(drawn, truth, p, male, IMAGES / "calibration.png")
    record("calibration", f"{n} fresh phantoms, {DRAWS} draws each, {SCALAR_STEPS} steps", figures)


if __name__ == "__main__":
    main()
