"""What is to be done to one scan, under which names, and whether it has been done already."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metavoxel.errors import MetavoxelError
from metavoxel.files import files_of
from metavoxel.prepare.strip import STRIPPERS
from metavoxel.prepare.template import SPACE

STEPS = 2
"""Raise it when a step gives another result from the same input and settings: every scan is then done again."""
REGISTRATIONS = ("rigid", "affine")
PRIVATE = ".metavoxel"
"""Folder of an output for what only this program reads."""


@dataclass(frozen=True)
class Settings:
    """How a cohort is prepared. `spacing`: of the result, mm. `seed`: of the points that registration looks at."""

    strip: str = "auto"
    registration: str = "rigid"
    spacing: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("strip", self.strip, ("auto", *STRIPPERS)), ("registration", self.registration, REGISTRATIONS)
        ):  # fmt: skip
            if value not in known:
                raise MetavoxelError(f"{name}: {value!r} is none of {', '.join(known)}; choose one of them")
        if not 0.5 <= self.spacing <= 8:
            raise MetavoxelError(f"spacing: {self.spacing:g} mm; choose from 0.5 to 8 mm")
        if self.seed < 0:
            raise MetavoxelError(f"seed: {self.seed}; choose 0 or more")


@dataclass(frozen=True)
class Task:
    """One scan: `participant` with "sub-", `session` without "ses-" or "", `image` a BIDS label; files; where to write."""

    participant: str
    session: str
    image: str
    source: Path
    mask: Path | None
    root: Path
    out: Path

    @cached_property
    def folder(self) -> Path:
        """Where the results lie."""
        parts = [self.participant, f"ses-{self.session}"] if self.session else [self.participant]
        return self.out.joinpath(*parts, "anat")

    def name(self, *entities: str, suffix: str) -> str:
        """A BIDS name: person, session, the scan's own entities, these, and the suffix with its extension."""
        own = self.image.split("_")[:-1]
        session = [f"ses-{self.session}"] if self.session else []
        return "_".join([self.participant, *session, *own, *entities, suffix])

    def source_name(self, path: Path) -> str:
        """A file as BIDS names sources: relative to the data set where it lies inside."""
        return f"bids:raw:{path.relative_to(self.root).as_posix()}" if path.is_relative_to(self.root) else path.name

    @property
    def kind(self) -> str:
        """The scan's suffix: T1w."""
        return self.image.rpartition("_")[2]

    @property
    def files(self) -> dict[str, Path]:
        """Every result but the sidecar; they are made in this order."""
        space = f"space-{SPACE}"
        return {
            "image": self.folder / self.name(space, "desc-preproc", suffix=f"{self.kind}.nii.gz"),
            "mask": self.folder / self.name(f"mod-{self.kind}", space, "desc-brain", suffix="mask.nii.gz"),
            "field": self.folder / self.name(f"mod-{self.kind}", "desc-n4", suffix="biasfield.nii.gz"),
            "transform": self.folder / self.name(f"from-{self.kind}", f"to-{SPACE}", "mode-image", suffix="xfm.txt"),
            "picture": self.out / PRIVATE / self.name(suffix=f"{self.kind}.jpg"),
            "thumbnail": self.out / PRIVATE / self.name(suffix=f"{self.kind}.npy"),
        }

    @property
    def sidecar(self) -> Path:
        """Written last: where it stands, the scan is done."""
        image = self.files["image"]
        return image.with_name(image.name.removesuffix(".nii.gz") + ".json")

    def key(self, settings: Settings) -> str:
        """16 digits that change with the inputs' size or time of change, the settings and the steps.

        An input that is not there has none: the step that reads it says so.
        """
        inputs = []
        for path in (self.source, self.mask):
            stats = [file.stat() for file in files_of(path)] if path is not None else []
            inputs.append([str(path and path.name), *([stat.st_size, stat.st_mtime_ns] for stat in stats)])
        return hashlib.sha256(json.dumps([STEPS, asdict(settings), inputs]).encode()).hexdigest()[:16]

    def is_done(self, settings: Settings) -> bool:
        """Whether all results stand there, made from these inputs with these settings."""
        record = read_record(self.sidecar)
        return bool(record) and record["Key"] == self.key(settings) and all(path.is_file() for path in self.files.values())

    def remove(self) -> None:
        """Take away what an earlier run left of this scan, its sidecar first."""
        for path in (self.sidecar, *self.files.values()):
            path.unlink(missing_ok=True)


def read_record(sidecar: Path) -> dict[str, Any]:
    """The sidecar's content; empty when there is none, or it was not written by this program."""
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and "Key" in record else {}
