"""A whole cohort: what is to be done, done in parallel, resumed where it stopped, and what came of it written down."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd

from metavoxel.data.cohort import Cohort
from metavoxel.data.scans import match_pattern
from metavoxel.data.table import bare_id, bare_sessions, read_sidecar
from metavoxel.data.volume import is_scan_name, scan_stem
from metavoxel.errors import MetavoxelError
from metavoxel.files import atomic_write, make_folder, only_one
from metavoxel.prepare.qc import review
from metavoxel.prepare.scan import prepare_scan
from metavoxel.prepare.task import PRIVATE, Settings, Task
from metavoxel.prepare.workers import share_out
from metavoxel.version import __version__

Progress = Callable[[int, int], None]
"""(done, total)."""
Share = Callable[[Callable[[Task], None], Sequence[Task]], Iterator[tuple[int, str | None]]]
"""Calls work(task) for each task somewhere; yields (position, None or the reason of its failure) in the order of ending."""
FAILURES = ("participant_id", "session_id", "scan", "source", "reason")


@dataclass
class Outcome:
    """What became of a cohort's scans: `done` now, `kept` from an earlier run, `failed` with their reasons,
    and how many of the finished ones were `flagged`."""

    done: list[Task] = field(default_factory=list)
    kept: list[Task] = field(default_factory=list)
    failed: list[tuple[Task, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    flagged: int = 0


def prepare_cohort(
    cohort: Cohort,
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    jobs: int = 1,
    share: Share | None = None,
    masks: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Outcome:
    """Prepare every scan of a cohort into the BIDS derivative data set `out`, which `read_cohort` reads.

    Scans that an earlier run finished, from the same files with the same settings, are kept. One that fails is listed in
    OUT/failures.tsv with the reason, and the others go on. `share`: who does the work, `jobs` processes when None;
    results are the same. `masks`: a pattern of brain masks below the cohort's folder,
    such as masks/{participant_id}_mask.nii.gz; default: those of derivatives/.
    Raises MetavoxelError when `out` holds something else, cannot be written to, or is being prepared into already.
    """
    out, settings = Path(out), settings or Settings()
    tasks = plan(cohort, out, masks)
    _claim(out, cohort)
    with only_one(make_folder(out / PRIVATE), f"preparing into {out}"):
        for leftover in out.rglob(".*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)
        _describe(out, cohort, tasks)
        outcome = Outcome(notes=_strangers(out, tasks))
        todo: list[Task] = []
        for task in tasks:
            (outcome.kept if task.is_done(settings) else todo).append(task)
        for task in todo:
            task.remove()
        write_failures(out, outcome)
        progress(len(outcome.kept), len(tasks))
        share = share or partial(share_out, jobs=jobs)
        for count, (position, reason) in enumerate(share(partial(_one, settings=settings), todo) if todo else (), start=1):
            if reason is None:
                outcome.done.append(todo[position])
            else:
                todo[position].remove()
                outcome.failed.append((todo[position], reason))
                write_failures(out, outcome)
            progress(len(outcome.kept) + count, len(tasks))
        table = review(out, [*outcome.kept, *outcome.done])
        outcome.flagged = int((table["flagged"] == "yes").sum())
    return outcome


def _one(task: Task, settings: Settings) -> None:
    prepare_scan(task, settings)


def plan(cohort: Cohort, out: Path, masks: str | None = None) -> list[Task]:
    """One task for each scan of the cohort. Raises MetavoxelError when two would have the same name."""
    by_pattern = match_pattern(cohort.root, masks) if masks else None
    derived = {} if masks else _derivatives(cohort.root)
    names, sessions = safe_ids(cohort), bare_sessions(cohort.table)
    tasks: list[Task] = []
    seen: dict[Path, Path] = {}
    for image, paths in cohort.scans.items():
        for person, session, path in zip(cohort.table["participant_id"], sessions, paths):
            if path is None:
                continue
            session = re.sub(r"[^A-Za-z0-9]", "", session)
            if by_pattern is not None:
                mask = next(iter(by_pattern.get((bare_id(person), session), {}).values()), None)
            else:
                mask = _derived_mask(derived, cohort.root, path)
            label = "_".join(re.sub(r"[^A-Za-z0-9-]", "", part) for part in image.split("_"))
            task = Task(names[person], session, label, path, mask, cohort.root, out)
            sidecar = task.sidecar
            if sidecar in seen:
                raise MetavoxelError(f"{path} and {seen[sidecar]}: both would be called {sidecar.name}; rename one")
            seen[sidecar] = path
            tasks.append(task)
    if not tasks:
        raise MetavoxelError(f"{cohort.root}: the cohort has no scans; check the folder, or give --pattern")
    return tasks


def safe_ids(cohort: Cohort) -> dict[str, str]:
    """Each person's id as BIDS can write it: sub- and no underscores or other signs that part names."""
    names = {person: "sub-" + re.sub(r"[^A-Za-z0-9-]", "", bare_id(person)) for person in cohort.participants}
    taken: dict[str, str] = {}
    for person, name in names.items():
        if name in taken or name == "sub-":
            raise MetavoxelError(f"participants {taken.get(name, '')!r} and {person!r} would both be {name}; rename one")
        taken[name] = person
    return names


def _derivatives(root: Path) -> dict[str, list[Path]]:
    """The images under derivatives/ by the folder, relative to `root`, of the scans that they belong to: looked up once,
    for a glob for each scan would take longer than all else."""
    found: dict[str, list[Path]] = {}
    for folder in ("sub-*/anat", "sub-*/ses-*/anat"):
        for path in sorted(root.glob(f"derivatives/*/{folder}/sub-*.nii*")):
            own = Path(*path.parent.relative_to(root).parts[2:])
            found.setdefault(own.as_posix(), []).append(path)
    return found


def _derived_mask(derived: dict[str, list[Path]], root: Path, scan: Path) -> Path | None:
    """A brain mask, else a segmentation, of a BIDS scan in its own space, among `_derivatives`."""
    if not scan.is_relative_to(root):
        return None
    entities = set(scan_stem(scan).split("_")[:-1])
    found: dict[str, list[Path]] = {"mask": [], "dseg": []}
    for path in derived.get(scan.parent.relative_to(root).as_posix(), ()):
        *parts, suffix = scan_stem(path).split("_")
        is_brain = suffix == "dseg" or "brain" in scan_stem(path)  # lesions have masks too
        if suffix in found and is_brain and is_scan_name(path) and entities <= set(parts) and "_space-" not in path.name:
            found[suffix].append(path)
    return next(iter(found["mask"] + found["dseg"]), None)


def _claim(out: Path, cohort: Cohort) -> None:
    """Refuse a folder that holds something else than an earlier preparation."""
    if out.exists() and not out.is_dir():
        raise MetavoxelError(f"{out}: is a file; give the name of a folder")
    if out.exists() and out.resolve() == cohort.root.resolve():
        raise MetavoxelError(f"{out}: is the cohort itself; give another folder for the prepared scans")
    if out.exists() and any(out.iterdir()) and not (out / PRIVATE).is_dir():
        raise MetavoxelError(f"{out}: holds something else already; give an empty or a new folder")


def _describe(out: Path, cohort: Cohort, tasks: list[Task]) -> None:
    """dataset_description.json and the tables, so that the result is a cohort by itself."""
    about = {
        "Name": f"{cohort.root.resolve().name}, prepared by metavoxel",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "metavoxel", "Version": __version__}],
    }
    with atomic_write(out / "dataset_description.json") as file:
        file.write(json.dumps(about, indent=2) + "\n")
    names = safe_ids(cohort)
    table = cohort.table.assign(participant_id=cohort.table["participant_id"].map(names))
    renamed = [person for person, name in names.items() if bare_id(person) != bare_id(name)]
    if renamed:
        table["source_id"] = cohort.table["participant_id"]
    with atomic_write(out / "participants.tsv") as file:
        table.to_csv(file, sep="\t", index=False, na_rep="n/a", float_format="%.15g")
    said = read_sidecar(cohort.root / "participants.tsv")
    columns: dict[str, dict[str, object]] = {}
    for name, guess in cohort.columns.items():
        columns[name] = dict(said.get(name, {}))
        if guess.is_class:
            meanings = columns[name].get("Levels")
            meanings = meanings if isinstance(meanings, dict) else {}
            columns[name]["Levels"] = {level: meanings.get(level, level) for level in guess.levels}
        elif guess.unit is not None:
            columns[name]["Units"] = guess.unit
    with atomic_write(out / "participants.json") as file:
        file.write(json.dumps(columns, indent=2) + "\n")
    schema = out / "schema.yaml"
    if not schema.exists():  # a person may have edited the one that is there
        with atomic_write(schema) as file:
            file.write(cohort.schema_yaml())


def _strangers(out: Path, tasks: list[Task]) -> list[str]:
    """What an earlier run prepared and this cohort no longer has: left as it is, but said."""
    known = {task.sidecar for task in tasks}
    extra = sorted(path for path in out.glob("sub-*/**/anat/*_desc-preproc_*.json") if path not in known)
    fix = "remove them by hand if they should not be used"
    return [f"{len(extra)} prepared scans are not in the cohort any more, e.g. {extra[0].name}; {fix}"] if extra else []


def write_failures(out: Path, outcome: Outcome) -> None:
    """OUT/failures.tsv: a row for each scan that failed, none when all went well."""
    rows = [
        (task.participant, task.session or "n/a", task.image, str(task.source), reason.replace("\t", " "))
        for task, reason in sorted(outcome.failed, key=lambda failure: failure[0].sidecar)
    ]
    with atomic_write(out / "failures.tsv") as file:
        pd.DataFrame(rows, columns=list(FAILURES)).to_csv(file, sep="\t", index=False)
