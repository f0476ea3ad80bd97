"""Who is trained on and who is asked about: one model and its test, or one for each fold. Nobody is on both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metavoxel.data.cohort import Cohort, concat, read_cohort
from metavoxel.data.marks import seen_again
from metavoxel.data.splits import part_of, read_split, same_scans
from metavoxel.data.table import bare_id
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.evaluation import Options, Side
from metavoxel.model import MetaVoxel, load

FOLD = "{fold}"
"""In the paths of a model and of baselines: one each for every fold."""


def sides_of(model: str, whole: Cohort, options: Options) -> list[Side]:
    """A model "runs/fold-{fold}" is one for each fold of the split, and so are its baselines."""
    if FOLD not in model:
        test, taken = part_of(whole, options.split, "test", options.fold)
        return [Side(model, _loaded(model, taken, options), test, _training(whole, options), options.baselines)]
    if options.split is None or options.fold is not None or options.training is not None:
        raise MetavoxelError(f"{model}: is a model for every fold; add --split FILE, without --fold and --training")
    folds = sorted(set(read_split(options.split).fold.values()))
    if not folds:
        raise MetavoxelError(f"{options.split}: has no folds; make them with metavoxel split --folds")
    sides = []
    for fold in folds:
        test, taken = part_of(whole, options.split, "test", fold)
        name, own = model.replace(FOLD, str(fold)), replace(options, fold=fold)
        baselines = options.baselines and Path(str(options.baselines).replace(FOLD, str(fold)))
        number = fold if len(folds) > 1 else None
        sides.append(Side(name, _loaded(name, taken, own), test, _training(whole, own), baselines, number))
    known = sides[0].model.schema.names
    for side in sides:
        if side.model.schema.names != known:
            names = (", ".join(names) for names in (side.model.schema.names, known))
            raise MetavoxelError(f"{side.name}: knows {next(names)}, the first fold {next(names)}; train them alike")
    return sides


def _loaded(name: str, taken: Mapping[str, Any], options: Options) -> MetaVoxel:
    """The model; not one trained with another split or fold than `taken`: its training people may be asked about."""
    model = load(name)
    own: Mapping[str, Any] | None = model.summary.get("split")  # type: ignore[assignment]
    if own and taken and options.training is None:
        file, checksum, fold = (own[key] for key in ("file", "checksum", "fold"))
        if (checksum, fold) != (taken["split"]["checksum"], taken["split"]["fold"]):
            which = file if fold is None else f"{file}, fold {fold}"
            raise MetavoxelError(f"{name}: was trained with the split {which}; people of another test may have been in its "
                                 "training: give that one, or name the training people with --training")  # fmt: skip
    return model


def refuse_seen(side: Side) -> None:
    """Raises MetavoxelError, with names, where the model has learnt from a scan, or from facts of somebody without one,
    that it is to be asked about."""
    seen: Sequence[str] = side.model.summary.get("seen", ())  # type: ignore[assignment]
    facts = [scalar.name for scalar in side.model.schema.scalars]
    if seen and (known := seen_again(side.test, facts, seen)):
        raise MetavoxelError(f"{_named(known)} in the training of {side.name}, with the same scans or facts; ask about "
                             "others, by --split or in another cohort")  # fmt: skip


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
