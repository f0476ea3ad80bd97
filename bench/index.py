"""Ten thousand people: what it takes to index their cohort and to plan its preparation, before any scan is read.

    python bench/index.py [-n PEOPLE]
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from common import clock, record

from metavoxel.data.cohort import read_cohort
from metavoxel.prepare.run import plan
from metavoxel.prepare.task import Settings


def dummies(root: Path, n: int) -> None:
    """A BIDS folder of n people with an empty file in the place of each scan."""
    rows = ["participant_id\tage\tsex\tsite"]
    for i in range(n):
        person = f"sub-{i:05d}"
        (root / person / "anat").mkdir(parents=True)
        (root / person / "anat" / f"{person}_T1w.nii.gz").touch()
        rows.append(f"{person}\t{20 + i % 60}\t{'FM'[i % 2]}\t{'ABC'[i % 3]}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")


def main(n: int) -> None:
    figures: dict[str, object] = {}
    opened: list[str] = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "bids"
        dummies(root, n)
        start = time.process_time()
        before, opened[:] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
        with clock(figures, "index_seconds"):
            cohort = read_cohort(root)
        with clock(figures, "plan_seconds"):
            tasks = plan(cohort, Path(folder) / "out")
        with clock(figures, "what_is_done_seconds"):
            done = sum(task.is_done(Settings()) for task in tasks)
        figures["cpu_seconds"] = time.process_time() - start
        figures["files_opened"] = sum(name.startswith(folder) for name in opened)
        figures["files_opened_that_are_scans"] = sum(name.endswith(".nii.gz") for name in opened)
        figures["memory_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert len(tasks) == n and done == 0
    record("index", f"{n} people with one scan each", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=10_000)
    main(parser.parse_args().n)
