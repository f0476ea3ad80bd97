"""The demo's report: what the demo says, each conclusion computed from the run's numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from metavoxel import pictures
from metavoxel.data import phantom
from metavoxel.page import Picture, Report, Section, Table

Figures = dict[str, Any]
SHOWN_PER_AGE = 3
"""Generated brains in the picture."""
READ = "age and sex of a scan, with intervals"
BRAIN = "a brain of a given age"


@dataclass
class Story:
    """What the demo asked and what was answered. n people, in the rows of `people`, `said` and `exact`."""

    people: pd.DataFrame
    """Age, sex and the hidden anatomical numbers."""
    scans: np.ndarray
    """(n, *shape) on the model's grid."""
    spacing: tuple[float, ...]
    said: pd.DataFrame
    exact: pd.DataFrame
    by_age: dict[float, np.ndarray]
    """Age given -> brains (k, *shape)."""
    joint: pd.DataFrame
    """Age and sex of the brains drawn with them."""
    joint_brains: np.ndarray
    facts: pd.DataFrame
    """Age and sex drawn without an image."""
    person: int
    """Row of the one person who is asked about in several ways."""
    questions: dict[str, np.ndarray]
    """What was given -> draws of age, years."""
    densities: dict[str, np.ndarray]
    """What was given -> exact density of age, per year, between phantom.AGE_EDGES."""
    ventricles: dict[str, np.ndarray]
    """% of the head, as measured in `scans`, in `by_age` (ages, k) and in the `joint` brains."""
    law: pd.DataFrame
    """age; low, mean, high: 5 %, mean and 95 % of the law's ventricles."""
    seconds: dict[str, float]
    """Kind of question -> seconds per answer."""
    device: str

    @property
    def age(self) -> np.ndarray:
        return self.people["age"].to_numpy()

    @property
    def male(self) -> np.ndarray:
        return self.people["sex"].to_numpy() == "M"


def demo_report(story: Story, figures: Figures) -> Report:
    """The demo's page. figures: as in metrics.json."""
    f = figures
    grid = f"{' x '.join(map(str, story.scans.shape[1:]))} voxels of {story.spacing[0]:g} mm"
    lead = (
        "metavoxel learns the joint distribution of brain scans, ages and sexes once, and then answers any of them "
        f"from any others. Here it is asked about {f['subjects']} people whom it has never seen. They are phantoms: "
        "computed brains in which age and sex act on five volumes as they do in people. Their law is written down, "
        "so the exact answer to every question is known. It stands beside the model's; no method can do better."
    )
    footer = (
        f"metavoxel {f['metavoxel']}; model: {f['model']}; {grid}; seed {f['seed']}; {f['subjects']} phantom "
        "people. The same seed gives the same figures; they are in metrics.json beside this page.",
        "Phantoms test whether the answers follow from the data. They do not show how well the model does on real "
        "scans: real brains vary in more ways, and a model for them must be trained on them.",
    )
    chapters = (_summary, _age, _sex, _brains, _joint, _one_person, _time)
    return Report("One model, asked many ways", [lead], [chapter(story, f) for chapter in chapters], footer)


def summary_rows(f: Figures) -> list[tuple[str, ...]]:
    """What, model, exact, constant."""
    who = ("model", "exact", "constant")
    age, sex = f["age"], f["sex"]
    errors = (f"{age[w]['mae']:.2f} ± {age[w]['mae_standard_error']:.2f}" for w in who)
    return [
        ("Age: mean absolute error, years", *errors),
        ("Age: 90 % intervals that hold the truth", *(percent(age[w]["interval90_coverage"], 1) for w in who)),
        ("Age: mean width of these intervals, years", *(f"{age[w]['interval90_width']:.1f}" for w in who)),
        ("Sex: correct", *(percent(sex[w]["accuracy"], 1) for w in who)),
    ]


def _summary(story: Story, f: Figures) -> Section:
    age, sex = f["age"], f["sex"]
    ratio = age["model"]["over_exact"]
    limit = "as close as the exact answer" if ratio < 1.005 else f"{percent(ratio - 1)} more than the exact answer"
    useless = ": no better than without the scan" if age["model"]["mae"] >= age["constant"]["mae"] else ""
    return Section(
        "In short",
        f"From a scan the model tells age with a mean error of {age['model']['mae']:.1f} years, {limit} "
        f"({age['exact']['mae']:.1f} years){useless}, and sex correctly in {percent(sex['model']['accuracy'])} of "
        f"people (exact answer: {percent(sex['exact']['accuracy'])}).",
        table=Table(("", "model", "exact answer", "constant"), summary_rows(f)),
        note="Exact answer: the posterior given the anatomy that was put into the scan. Constant: the population's "
        "distribution, whoever is asked about. Mean ± standard error over people.",
    )


def _age(story: Story, f: Figures) -> Section:
    n, cover = f["subjects"], f["age"]["model"]["interval90_coverage"]
    low, high = (float(x) / n for x in stats.binom.interval(0.95, n, 0.9))
    verdict = "as 90 % intervals should"
    if cover < low or cover > high:
        verdict = "too few: they are too narrow" if cover < low else "too many: they are too wide"
    width = {who: f["age"][who]["interval90_width"] for who in ("model", "exact")}
    panels = (story.said, "Model", pictures.MODEL), (story.exact, "Exact posterior", pictures.EXACT)
    return Section(
        "How old is this brain?",
        f"The model's 90 % intervals hold {percent(cover)} of the true ages, {verdict} (with {n} people, "
        f"{percent(low)} to {percent(high)} is chance); they are {width['model']:.0f} years wide on average, the "
        f"exact ones {width['exact']:.0f}.",
        [
            Picture(pictures.predicted_age(story.age, table, title, colour, phantom.AGES), f"{title}: age and truth")
            for table, title, colour in panels
        ],
        note="A dot is a person, a line the central 90 % of what is believed about their age. The exact answer is "
        "not the true age either: people of one age differ in anatomy, and people of different ages can look alike.",
    )  # fmt: skip


def _sex(story: Story, f: Figures) -> Section:
    z, chance = f["sex"]["model"]["calibration_z"], f["sex"]["exact"]["calibration_z"]
    faith = "can be taken at face value" if abs(z) < 1.96 else f"are {'overconfident' if z > 0 else 'too timid'}"
    if abs(z) >= 1.96 and chance * z > 0 and abs(chance) >= 1.96:
        faith = "are off by more than chance allows on these people, but so are the exact ones"
    said = {"model": story.said["sex_p_M"].to_numpy(), "exact": story.exact["sex_p_M"].to_numpy()}
    bins = pd.concat([_fifths(story.male, p).assign(who=who) for who, p in said.items()])
    return Section(
        "A woman's or a man's?",
        f"The model's probabilities {faith} (Spiegelhalter's z = {z:.1f}, within 2 if right; exact answer: "
        f"{chance:.1f}). They differ from the exact ones by {f['sex']['mean_difference']:.2f} on average.",
        [
            Picture(pictures.sex_against_exact(story.male, said["model"], said["exact"]), "Model against exact"),
            Picture(pictures.reliability(bins), "Share of men against the probability that was said"),
        ],
        note="Right: people grouped by the probability that was said for them, in fifths; bars are 90 % intervals of "
        "the share of men.",
    )  # fmt: skip


def _fifths(male: np.ndarray, p: np.ndarray) -> pd.DataFrame:
    """By fifths of the probability scale: said, share, low and high (Wilson's 90 % interval)."""
    rows = []
    for k in range(5):
        own = np.minimum((p * 5).astype(int), 4) == k
        if own.any():
            interval = stats.binomtest(int(male[own].sum()), int(own.sum())).proportion_ci(0.9, "wilson")
            rows.append((p[own].mean(), male[own].mean(), interval.low, interval.high))
    return pd.DataFrame(rows, columns=["said", "share", "low", "high"])


def _brains(story: Story, f: Figures) -> Section:
    panels = []
    for age, brains in story.by_age.items():
        nearest = int(np.abs(story.age - age).argmin())
        images = np.concatenate([story.scans[nearest][None], brains[:SHOWN_PER_AGE]])
        captions = [f"phantom, {story.age[nearest]:.0f}", *[f"generated at {age:g}"] * SHOWN_PER_AGE]
        png = pictures.mosaic(images, captions, story.spacing, columns=1, planes="ca", window=(0, 1), width=3.2, size=14)
        panels.append(Picture(png, f"Brains at {age:g} years"))
    made, law = (
        ", ".join("none" if x is None else f"{x:.1f}" for x in f["ventricles_percent"][who].values())
        for who in ("generated", "law")
    )
    return Section(
        f"What does a brain look like at {_listed([f'{age:g}' for age in story.by_age])}?",
        f"Asked for brains of these ages, the model draws ventricles of {made} % of the head on average; the "
        f"population's means are {law} %.",
        panels,
        note=f"Top: the phantom person nearest in age. Below: {SHOWN_PER_AGE} brains generated from the age alone; "
        "each row starts from the same noise, so what changes along a row is what age does. Coronal and axial slices "
        f"through the middle; left is the person's left. Averages are over {len(brains)} brains of each age.",
        columns=4,
    )


def _joint(story: Story, f: Figures) -> Section:
    drawn, ventricles = f["drawn_people"], f["ventricles_percent"]
    ages = np.repeat(list(story.by_age), story.ventricles["by_age"].shape[1])
    generated = {
        "age given": (ages, story.ventricles["by_age"].ravel()),
        "age drawn too": (story.joint["age"].to_numpy(), story.ventricles["joint"]),
    }
    density = story.densities["nothing"]
    captions = [f"{sex}, {age:.0f} years" for sex, age in zip(story.joint["sex"], story.joint["age"])]
    r = ventricles["ruler_correlation"]
    trust = "" if r is None else f"; for people who are not in the fit it correlates {r:.2f} with the truth"
    facts, men = story.facts["age"].to_numpy(), story.facts["sex"].to_numpy() == "M"
    halves = []  # two pictures, so that a phone can show one under the other
    for part in (slice(0, None, 2), slice(1, None, 2)):
        brains = story.joint_brains[part]
        halves.append(
            pictures.mosaic(brains, captions[part], story.spacing, columns=2, planes="ca", window=(0, 1), width=5.2)
        )
    return Section(
        "Whole people from nothing",
        f"Told nothing, the model draws people of {drawn['age_mean']:.0f} ± {drawn['age_sd']:.0f} years, "
        f"{percent(drawn['share_men'])} of them men (law: 55 ± 20 years, 50 %); {ventricles['joint_inside']} of "
        f"{len(captions)} brains drawn together with an age have ventricles in the range that holds 90 % of the law "
        "at that age.",
        [
            Picture(pictures.age_and_sex(facts, men, phantom.AGE_EDGES, density, phantom.AGES), "Drawn ages by sex"),
            Picture(
                pictures.ventricles_by_age((story.age, story.ventricles["scans"]), generated, story.law),
                "Ventricle size against age, generated and true",
            ),
            *(Picture(png, "Generated brains with their age and sex") for png in halves),
        ],
        note=f"Histogram: {len(facts)} draws of age and sex. Brains: {len(captions)} draws of scan, age and sex "
        "together. Ventricles are measured in the images, by a regression on the voxels deep inside the head that is "
        f"fitted to the phantom scans{trust}.",
    )


def _one_person(story: Story, f: Figures) -> Section:
    one, bins = f["one_person"], np.arange(0, 130, pictures.AGE_BIN)
    tallest = [np.histogram(x, bins)[0].max() / len(x) / pictures.AGE_BIN for x in story.questions.values()]
    top = 1.4 * max(*tallest, *(density.max() for density in story.densities.values()))
    panels, rows = [], []
    for name, draws in story.questions.items():
        png = pictures.age_densities(
            f"Given: {name}", draws, phantom.AGE_EDGES, story.densities[name], one["age"], top, phantom.AGES
        )
        panels.append(Picture(png, f"Age given {name}: the model's draws and the exact density"))
        rows.append((name, *(f"{one[name][who]['mean']:.1f} ± {one[name][who]['sd']:.1f}" for who in one[name])))
    nothing, _, scan, both = (row[1:] for row in rows)
    return Section(
        "One person, four questions",
        f"Told nothing about a {'woman' if one['sex'] == 'F' else 'man'} of {one['age']:.0f}, the model says "
        f"{nothing[0]} years (exact: {nothing[1]}); shown the scan, {scan[0]} (exact: {scan[1]}); with the sex as "
        f"well, {both[0]} (exact: {both[1]}).",
        panels,
        Table(("given", "model, years", "exact, years"), rows),
        note=f"Mean ± standard deviation; {len(story.questions['scan'])} draws for each question, from one model. The "
        "person is, of the half that is neither easiest nor hardest, the one whose exact answer the sex changes most. "
        "Sex alone says nothing about age, and rightly so: in this population women and men are equally old.",
    )


def _time(story: Story, f: Figures) -> Section:
    seconds, evaluations = story.seconds, f["evaluations"]
    read, brain = (pictures.duration(seconds[kind]) for kind in (READ, BRAIN))
    return Section(
        "How long does an answer take?",
        f"On {story.device}, age and sex from a scan take {read}, and a new brain of a given age takes {brain}.",
        [Picture(pictures.seconds_per_answer(seconds), "Seconds per answer")],
        note=f"Means, intervals and probabilities take {evaluations['read']} evaluation of the network's reading half. "
        f"A brain needs {evaluations['brain']} of the whole network. Answers about scans include reading them from disk.",
        columns=1,
    )


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1]
