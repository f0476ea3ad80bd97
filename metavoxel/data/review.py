"""What `metavoxel prepare` found odd about a cohort's scans, and lists of people to leave out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from metavoxel.errors import MetavoxelError

NAMED = 3  # flagged scans that a note names; the page shows the rest


def flagged_notes(root: Path) -> list[str]:
    """How many scans ROOT/qc.tsv flags, with the first few; none where there is no such table, or no flag."""
    path = root / "qc.tsv"
    if not path.is_file():
        return []
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        flagged = table[table["flagged"] == "yes"]
        named = [f"{person} ({why})" for person, why in zip(flagged["participant_id"], flagged["reasons"])]
    except (OSError, ValueError, KeyError) as error:
        raise MetavoxelError(f"{path}: not a table of metavoxel prepare; prepare again, or remove it") from error
    if not named:
        return []
    more = f" and {len(named) - NAMED} more in qc.html" if len(named) > NAMED else ""
    return [f"{len(named)} of {len(table)} scans are flagged, and used unless left out by --exclude: "
            + ", ".join(named[:NAMED]) + more]  # fmt: skip


def read_names(text: str) -> list[str]:
    """Names from a file of one a line, or from a list with commas. Blank lines, and what follows a #, are passed over."""
    path = Path(text)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise MetavoxelError(f"--exclude {path}: cannot be read as text; write one participant a line") from error
    names = [line.partition("#")[0].strip() for line in lines]
    return [name for name in names if name]
