"""Drawn scans of each group of people beside real scans of the same group: is anybody drawn worse than others?"""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from metavoxel.evaluate.features import WHOLE
from metavoxel.evaluate.figures import Figure, Findings
from metavoxel.evaluate.looks import TOLD_P, Gallery, Space
from metavoxel.evaluate.scores import holm
from metavoxel.evaluate.two_sample import median_distance, mmd, told_apart
from metavoxel.page import Section, Table

SECTION = "images by group"
LEAST_SCANS = 16
"""Of a smaller group nothing could be shown."""


def looks_of_groups(gallery: Gallery, spaces: Mapping[str, Space], words: pd.DataFrame, seed: int) -> Iterator[Figure]:
    """metric "anatomy: mmd" and "anatomy: mmd_p" of each group "sex = F" with LEAST_SCANS drawn and as many real scans, by
    voxels and by what is measured: networks say the same of all together, and take minutes. "anatomy: mmd_floor": of one
    half of the group's real scans, at random, against the other.

    words: a row a person, a column for each way of grouping them. The kernel's width is that of all real scans, so that
    groups' figures compare.
    """
    for name, space in spaces.items():
        if space.networks:
            continue
        real = space.see(np.asarray(gallery.real))
        scale = space.scale(real)
        made, real_ones = (scale(seen)[WHOLE] for seen in (space.see(np.asarray(gallery.made)), real))
        width = median_distance(real_ones, seed)
        for column in words:
            of_made, of_real = (words[column].reindex(rows["participant_id"]).to_numpy()
                                for rows in (gallery.made_rows, gallery.real_rows))  # fmt: skip
            for value in sorted(set(of_real), key=str):
                x, y = made[of_made == value], real_ones[of_real == value]
                if min(len(x), len(y)) >= LEAST_SCANS:
                    one, half = np.array_split(y[np.random.default_rng(seed).permutation(len(y))], 2)
                    found = {"mmd": mmd(x, y, width, seed).value, "mmd_floor": mmd(one, half, width, seed).value,
                             "mmd_p": told_apart(x, y, seed)}  # fmt: skip
                    for metric, figure in found.items():
                        group = f"{column} = {value}"
                        yield Figure(SECTION, gallery.name, f"{name}: {metric}", figure, group=group, n=len(x))


def groups_section(findings: Findings, image: str) -> Section | None:
    """Of what `looks_of_groups` found; None where no group is large enough."""
    own = [f for f in findings.figures if f.section == SECTION and f.variable == image]
    tests = [f for f in own if f.metric.endswith("_p")]
    if not tests:
        return None
    told: dict[str, list[str]] = {}
    for figure, p in zip(tests, holm([f.value for f in tests])):
        if p < TOLD_P:
            told.setdefault(figure.group, []).append(figure.metric.split(":")[0])
    said = "; ".join(f"{group} (by {', '.join(spaces)})" for group, spaces in told.items())
    conclusion = (f"Drawn scans are told from real ones of the same group among {said}." if told else
                  "In no group are drawn scans told from real ones of the same group.")  # fmt: skip
    spaces = list(dict.fromkeys(f.metric.split(":")[0] for f in tests))
    values = {(f.group, f.metric): f for f in own}
    rows = []
    for group in dict.fromkeys(f.group for f in tests):
        cells = [[values[group, f"{space}: {metric}"] for metric in ("mmd", "mmd_floor", "mmd_p")] for space in spaces]
        rows.append((group, str(cells[0][0].n), *(f"{far.value:.3g} ({floor.value:.3g}; {p.value:.2g})"
                                                  for far, floor, p in cells)))  # fmt: skip
    return Section(
        f"Are {image} scans of every group drawn as well?", conclusion,
        table=Table(("group", "drawn scans", *(f"MMD by {space} (floor; p)" for space in spaces)), rows),
        note=f"Scans drawn for a group's people beside real ones of that group; under {LEAST_SCANS} of them are too few. "
        "MMD: 0 if they are of one law, larger the less alike they are; floor: one half of the real scans against the "
        "other; p: how often sets mixed at random are as far apart. The sentence above goes by p that are corrected for "
        f"all groups and spaces (Holm), below {TOLD_P:g}.",
    )  # fmt: skip
