"""Who is trained on and who is asked about: one model and its test, or one for each fold. Nobody is on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metavoxel.data.cohort import Cohort, concat, read_cohort
from metavoxel.data.splits import part_of, read_split, same_scans
from metavoxel.data.table import bare_id
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.evaluation import Options, Side
from metavoxel.model import load

FOLD = "{fold}"
"""In the paths of a model and of baselines: one each for every fold."""


def sides_of(model: str, whole: Cohort, options: Options) -> list[Side]:
    """A model "runs/fold-{fold}" is one for each fold of the split, and so are its baselines."""
    if FOLD not in model:
        test, _ = part_of(whole, options.split, "test", options.fold)
        return [Side(model, load(model), test, _training(whole, options), options.baselines)]
    if options.split is None or options.fold is not None or options.training is not None:
        raise MetavoxelError(f"{model}: is a model for every fold; add --split FILE, without --fold and --training")
    folds = sorted(set(read_split(options.split).fold.values()))
    if not folds:
        raise MetavoxelError(f"{options.split}: has no folds; make them with metavoxel split --folds")
    sides = []
    for fold in folds:
        test, _ = part_of(whole, options.split, "test", fold)
        name, own = model.replace(FOLD, str(fold)), replace(options, fold=fold)
        baselines = options.baselines and Path(str(options.baselines).replace(FOLD, str(fold)))
        sides.append(Side(name, load(name), test, _training(whole, own), baselines, fold if len(folds) > 1 else None))
    known = sides[0].model.schema.names
    for side in sides:
        if side.model.schema.names != known:
            names = (", ".join(names) for names in (side.model.schema.names, known))
            raise MetavoxelError(f"{side.name}: knows {next(names)}, the first fold {next(names)}; train them alike")
    return sides


def refuse_leak(training: Cohort, test: Cohort) -> None:
    """Raises MetavoxelError, with names, where somebody is in both or a scan is byte for byte in both.

    One id in two folders may be two people (sub-01 of two studies): there, only scans tell.
    """
    trained = {bare_id(person) for person in training.participants}
    both = [person for person in test.participants if bare_id(person) in trained]
    if both and training.root == test.root:
        raise MetavoxelError(f"{_named(both)} both in training and in the test; take them out of one, or use --split")
    images = [name for name in test.scans if name in training.scans]
    joined = concat({"training": _scans_only(training, images), "test": _scans_only(test, images)}, site=None)
    first = set(joined.participants[: len(training.participants)])
    for group in same_scans(joined):
        if len({person in first for person in group}) == 2:
            raise MetavoxelError(f"{' and '.join(group)} have the same scan, in training and in the test; take one out")


def _scans_only(cohort: Cohort, images: Sequence[str]) -> Cohort:
    scans = {name: cohort.scans[name] for name in images}
    return replace(cohort, table=cohort.table[["participant_id"]], columns={}, scans=scans)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more} {'is' if len(names) == 1 else 'are'}"


def _training(whole: Cohort, options: Options) -> Cohort | None:
    if options.training is not None:
        return read_cohort(options.training)
    return part_of(whole, options.split, "train", options.fold)[0] if options.split is not None else None
