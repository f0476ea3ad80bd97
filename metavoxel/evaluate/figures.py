"""What an evaluation found, as one long table: the page, the model card and comparisons are written from it alone."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from metavoxel.checkpoint import read_json, write_json
from metavoxel.errors import MetavoxelError

FORMAT = 1
OURS, EXACT, CONSTANT = "model", "exact", "constant"
"""Who answered: the model; the exact posterior, where a cohort's law is known; what training says of everybody."""
EVERYBODY = "all"


@dataclass(frozen=True)
class Figure:
    """One number. who: OURS, EXACT, CONSTANT or a baseline's name. given: what the answer was told. group: the people it is
    about. low, high: a 95 % interval, where there is one. n: people, or scans."""

    section: str
    variable: str
    metric: str
    value: float
    who: str = OURS
    given: str = ""
    group: str = EVERYBODY
    low: float | None = None
    high: float | None = None
    n: int | None = None

    @property
    def has_interval(self) -> bool:
        """One person alone has none."""
        return self.low is not None and self.high is not None and math.isfinite(self.low) and math.isfinite(self.high)


@dataclass
class Findings:
    """All figures of one evaluation.

    about: model, cohort, versions and settings. left_out: what was not looked at, and why, in whole sentences.
    """

    about: Mapping[str, object]
    figures: list[Figure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, figures: Iterable[Figure]) -> None:
        self.figures += figures

    def frame(self) -> pd.DataFrame:
        """A row a figure."""
        return pd.DataFrame([asdict(figure) for figure in self.figures])

    def value(self, section: str, variable: str, metric: str, **where: str) -> Figure | None:
        """The one figure that is asked for; the other fields are as by default. None: it was not found."""
        wanted = {"section": section, "variable": variable, "metric": metric, "who": OURS, "given": "",
                  "group": EVERYBODY, **where}  # fmt: skip
        return next((f for f in self.figures if all(getattr(f, key) == value for key, value in wanted.items())), None)

    def save(self, path: Path) -> None:
        """JSON."""
        rows = [asdict(figure) for figure in self.figures]
        write_json(path, {"format": FORMAT, **self.about, "figures": rows, "left_out": self.left_out})

    @classmethod
    def load(cls, path: Path) -> "Findings":
        """Raises MetavoxelError for a file that is not an evaluation's."""
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT or "figures" not in content:
            raise MetavoxelError(f"{path}: is no metrics.json of this version of metavoxel evaluate; run it again")
        rows: list[dict[str, Any]] = content.pop("figures")
        for row in rows:
            row["value"] = math.nan if row["value"] is None else row["value"]
        left_out = content.pop("left_out")
        content.pop("format")
        return cls(content, [Figure(**row) for row in rows], left_out)
