"""The folder of a training: nobody else's, never written over, and gone on with by the same training only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from metavoxel.checkpoint import read_json, write_json
from metavoxel.config import Config, to_dict
from metavoxel.errors import MetavoxelError
from metavoxel.files import LOCK, digits_of, make_folder, only_one
from metavoxel.loading import ImageStack
from metavoxel.schema import Schema

CACHE = "cache-"
"""How the names of folders begin in which scans are kept while a training runs."""
TRAINING, RECORD = "training", "inputs.json"


@contextmanager
def claimed(folder: Path, resume: bool) -> Iterator[Path]:
    """Holds the folder for the block, made if need be; where the block fails before it has written anything, it is gone.

    Raises MetavoxelError where it holds a model, or an unfinished training, and not `resume`; or another process trains.
    """
    _refuse_taken(folder, resume)
    new = not folder.exists()
    training = make_folder(folder / TRAINING)
    with only_one(training, f"training in {folder}"):  # what another process holds is not tidied up
        for left in folder.glob(f"{CACHE}*"):  # by a process that was killed
            shutil.rmtree(left)
        try:
            yield folder
        except BaseException:
            if not _begun(folder):
                shutil.rmtree(training)
                if new and not any(folder.iterdir()):
                    folder.rmdir()
            raise


def _refuse_taken(folder: Path, resume: bool) -> None:
    """Raises MetavoxelError where the folder holds something that this training would write over."""
    finished, begun = (folder / "model.json").exists(), _begun(folder)
    if (folder / "participants.tsv").exists() or any(folder.glob("sub-*")):
        raise MetavoxelError(f"{folder}: is a cohort's folder; choose another one for the model")
    if finished and not resume:
        raise MetavoxelError(f"{folder}: holds a trained model already; choose another folder, or remove it")
    if finished and not begun:
        raise MetavoxelError(f"{folder}: holds a trained model, and no training to go on with; choose another folder")
    if begun and not resume:
        raise MetavoxelError(f"{folder}: holds an unfinished training; add --resume to go on, or choose another folder")


def _begun(folder: Path) -> bool:
    """Whether something has been learnt there, beyond what it is to be learnt from."""
    return any(path.name not in (LOCK, RECORD) for path in (folder / TRAINING).glob("*"))


def inputs_of(
    schema: Schema, config: Config, table: pd.DataFrame, people: np.ndarray, images: Mapping[str, ImageStack],
    start: str | None, about: Mapping[str, object],
) -> dict[str, Any]:  # fmt: skip
    """All that decides what a training comes to, in short. start: the mark of the model it starts from.

    Paths and times of files are not in it: a cohort may be moved between two jobs.
    """
    files: Sequence[str] = about.get("seen", ())  # type: ignore[assignment]
    return {
        "variables": schema.to_dict()["variables"],
        "config": to_dict(config),
        "table": digits_of("\n".join([table.to_csv(index=False), *map(str, people)])),
        "scans": {name: stack.mark() for name, stack in images.items()} | {"files": digits_of("\n".join(files))},
        "split": about.get("split"),
        "model to start from": start,
    }


def settle(folder: Path, inputs: Mapping[str, Any], resume: bool) -> None:
    """Writes down what the training in a folder is of, or raises MetavoxelError where it was begun with something else."""
    _refuse_taken(folder, resume)
    path = folder / TRAINING / RECORD
    ours = json.loads(json.dumps(inputs))
    if not resume or not any((folder / TRAINING).glob("*.safetensors")):
        write_json(path, ours)
        return
    if not path.exists():
        raise MetavoxelError(f"{folder}: says nothing of what it was trained on, so it cannot go on; choose another folder")
    theirs = read_json(path)
    for key, value in ours.items():
        if theirs.get(key) != value:
            what = f"config ({_first_change(theirs.get(key), value)})" if key == "config" else key
            raise MetavoxelError(f"{folder}: was begun with another {what}; --resume goes on with the same cohort, "
                                 "split and config; for others choose another folder")  # fmt: skip


def _first_change(before: Any, now: Any, name: str = "") -> str:
    """The first setting that differs, and how."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        return _first_change(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    return f"{name} was {before}, is {now}"
