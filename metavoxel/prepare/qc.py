"""Which scans of a prepared cohort a person should look at, and why, in plain words: qc.tsv and qc.html.

Nothing is thrown out here: a flag is a reason to look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metavoxel.files import atomic_write
from metavoxel.prepare.qc_page import write_page
from metavoxel.prepare.task import Task, read_record

VOLUME_ML = (800.0, 2000.0)  # of adults' brains, cerebrospinal fluid in part included
LEAST_OVERLAP = 0.89  # 121 of 122 aligned adults reached .90 to .95, one with neck left on .887; nodding heads .87 to .89
MOST_CUT_CM2 = 2.0
LEAST_SIGNAL_TO_NOISE = 5.0
LEAST_SCANS = 10  # fewer have no spread to stand out from
OUTLYING = 5.0  # robust standard deviations
MIRRORED = 4.0
WORSE = {"brain_volume_ml": 0, "template_overlap": -1, "registration_score": -1, "signal_to_noise": -1}
"""Measure -> which way is worse; 0: both."""
MEASURES = ("brain_volume_ml", "template_overlap", "registration_score", "signal_to_noise", "cut_cm2")
COLUMNS = [
    "participant_id", "session_id", "scan", "flagged", "reasons", *MEASURES, "outlier_score", "stripped_by", "file",
]  # fmt: skip


def review(out: Path, tasks: Sequence[Task]) -> pd.DataFrame:
    """Write OUT/qc.tsv and OUT/qc.html about the finished `tasks`; returns the table, flagged scans first."""
    ordered = sorted(tasks, key=lambda task: task.sidecar)
    records = {task: read_record(task.sidecar) for task in ordered}
    unusual, mirrored = _against_cohort(ordered)
    twins = _twins(records)
    qualities = {task: record["Quality"] for task, record in records.items()}
    odd = _standing_out(ordered, qualities)
    rows = []
    for task in ordered:
        found = qualities[task]
        reasons = [
            *_plain_reasons(found),
            *(f"{name.replace('_', ' ')} of {found[name]:g} stands out from the cohort" for name in odd[task]),
            *([f"the image is unlike the cohort's ({unusual[task]:.1f} deviations)"] if unusual[task] > OUTLYING else []),
            *(["left and right seem to be swapped, judged by the cohort's asymmetry"] if mirrored[task] else []),
            *([f"the same voxels as {', '.join(twins[task])}"] if task in twins else []),
        ]
        rows.append({
            "participant_id": task.participant, "session_id": task.session or "n/a", "scan": task.image,
            "flagged": "yes" if reasons else "no", "reasons": "; ".join(reasons) or "n/a",
            **{name: found[name] for name in MEASURES}, "outlier_score": round(unusual[task], 2),
            "stripped_by": records[task]["Steps"]["BrainExtraction"]["By"],
            "file": task.files["image"].relative_to(out).as_posix(),
        })  # fmt: skip
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values("flagged", ascending=False, kind="stable")
    with atomic_write(out / "qc.tsv") as file:
        table.to_csv(file, sep="\t", index=False)
    pictures = {task.files["image"].relative_to(out).as_posix(): task.files["picture"] for task in ordered}
    write_page(out / "qc.html", table, pictures)
    return table


def _plain_reasons(found: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a scan whatever the others are like."""
    low, high = VOLUME_ML
    volume = found["brain_volume_ml"]
    if not low <= volume <= high:
        yield f"a brain of {volume:.0f} ml (adults: {low:.0f} to {high:.0f}); is the outline right?"
    if found["template_overlap"] < LEAST_OVERLAP:
        yield f"overlaps the template by {found['template_overlap']:.2f} only; is it aligned?"
    if found["cut_cm2"] > MOST_CUT_CM2:
        yield f"the field of view ends inside of the brain ({found['cut_cm2']:.0f} cm2 of it on one side)"
    if found["signal_to_noise"] < LEAST_SIGNAL_TO_NOISE:
        yield f"noisy: signal to noise {found['signal_to_noise']:.1f}"
    if found["sides_disagree"]:
        yield "the header's sform and qform disagree about the axes; check left and right"


def _standing_out(tasks: Sequence[Task], qualities: dict[Task, dict[str, Any]]) -> dict[Task, list[str]]:
    """For each scan, the measures in which it is worse (brain volume: other) than its kind, by robust deviations."""
    odd: dict[Task, list[str]] = {task: [] for task in tasks}
    for group in _kinds(tasks):
        for name, worse in WORSE.items():
            for task, z in zip(group, robust_z(np.array([qualities[task][name] for task in group], dtype=float))):
                if (z * worse if worse else abs(z)) > OUTLYING:
                    odd[task].append(name)
    return odd


def _kinds(tasks: Sequence[Task]) -> list[list[Task]]:
    """The scans of each kind of which there are enough to compare them."""
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        groups[task.kind].append(task)
    return [group for group in groups.values() if len(group) >= LEAST_SCANS]


def robust_z(values: np.ndarray) -> np.ndarray:
    """(n,): distances from the median in standard deviations, both estimated so that outliers do not matter."""
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    return (values - middle) / max(float(spread), 1e-3 * abs(float(middle)), 1e-9)


def _twins(records: dict[Task, dict[str, Any]]) -> dict[Task, list[str]]:
    """Scans whose voxels are the same to the bit, however they were compressed or oriented, and their twins' names."""
    same: dict[str, list[Task]] = defaultdict(list)
    for task, record in records.items():
        same[record["VoxelsChecksum"]].append(task)
    names = {task: task.name(suffix=task.kind) for task in records}
    return {task: [names[t] for t in group if t is not task] for group in same.values() if len(group) > 1 for task in group}


def _against_cohort(tasks: Sequence[Task]) -> tuple[dict[Task, float], dict[Task, bool]]:
    """For each scan, how far it is from the median image of its kind (robust deviations), and whether it seems mirrored.

    0 and False where there are fewer than ten to compare with.
    """
    unusual, mirrored = dict.fromkeys(tasks, 0.0), dict.fromkeys(tasks, False)
    for group in _kinds(tasks):
        images = np.stack([np.load(task.files["thumbnail"], allow_pickle=False) for task in group])
        distance = np.log(_distances(images))
        swapped = _mirrored(images)
        for task, z, swap in zip(group, robust_z(distance), swapped):
            unusual[task], mirrored[task] = float(z), bool(swap)
    return unusual, mirrored


def _distances(images: np.ndarray) -> np.ndarray:
    """(n,): root mean square difference of each thumbnail (n, x, y, z) from their median, over the median's brain."""
    middle = np.median(images, axis=0).astype(np.float32)
    brain = middle > 0
    return np.array([np.sqrt(np.mean((image[brain] - middle[brain]) ** 2)) for image in images]) + 1e-3


def _mirrored(images: np.ndarray) -> np.ndarray:
    """(n,) bool: whose left-right asymmetry is far more like the mirror image of the others' mean asymmetry.

    Brains are twisted the same way in most people (right frontal and left occipital lobes reach further).
    """
    halves = images[:, : images.shape[1] // 2].astype(np.float32) - images[:, : images.shape[1] // 2 : -1]
    flat = halves.reshape(len(images), -1)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6
    total = flat.sum(axis=0)
    others = total - flat
    likeness = (flat * others).sum(axis=1) / (np.linalg.norm(others, axis=1) + 1e-6)
    return (likeness < 0) & (robust_z(likeness) < -MIRRORED)
