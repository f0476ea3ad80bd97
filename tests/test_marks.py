"""Rows are known again by marks, under any name of a scan, and by chance alone no one is."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from metavoxel.data.cohort import Cohort, read_cohort
from metavoxel.data.marks import marks_of, seen_again

FACTS = ["age", "score"]


def table(tmp_path: Path, seed: int, people: int = 200, digits: int = 2, first: int = 1) -> Cohort:
    rng = np.random.default_rng(seed)
    ids = [f"sub-{number:03d}" for number in range(first, first + people)]
    ages, scores = (np.round(rng.uniform(50, 90, people), digits) for _ in FACTS)
    path = tmp_path / f"{seed}.csv"
    pd.DataFrame({"participant_id": ids, "age": ages, "score": scores}).to_csv(path, index=False)
    return read_cohort(path)


def test_rows_are_known_again_by_id_and_facts(tmp_path):
    own = table(tmp_path, 0)
    seen = marks_of(own, FACTS)
    assert len(seen) == len(own) and seen_again(own, FACTS, seen) == own.participants
    bare = own.table.assign(participant_id=own.table["participant_id"].str.removeprefix("sub-"))
    bare.to_csv(tmp_path / "bare.csv", index=False)
    assert len(seen_again(read_cohort(tmp_path / "bare.csv"), FACTS, seen)) == len(own)
    half = own.subset(range(100, 200))
    assert seen_again(half, FACTS, marks_of(own.subset(range(100)), FACTS)) == []
    mixed = own.subset(range(80, 200))
    assert seen_again(mixed, FACTS, marks_of(own.subset(range(100)), FACTS)) == own.participants[80:100]


def test_another_study_that_counts_from_one_is_not_taken_for_this_one(tmp_path):
    """Also where whole years make some pairs of an id and its facts alike."""
    ages = ["age"]
    for digits in (0, 1):
        seen = marks_of(table(tmp_path, 1, digits=digits), ages)
        for seed in range(2, 12):
            assert seen_again(table(tmp_path, seed, digits=digits), ages, seen) == []


def test_scans_are_known_again_by_their_bytes(phantoms, tmp_path):
    cohort = read_cohort(phantoms)
    seen = marks_of(cohort, [])
    assert len(seen) == len(cohort)
    scan = next(phantoms.glob("sub-*/anat/*.nii.gz"))
    shutil.copyfile(scan, tmp_path / "sub-other_T1w.nii.gz")
    assert seen_again(read_cohort(tmp_path / "sub-other_T1w.nii.gz"), [], seen) == ["sub-other"]
    assert seen_again(cohort, [], seen[:0]) == []
