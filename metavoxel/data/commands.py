"""The commands about a cohort's table: schema. Heavy imports stay inside, so that `metavoxel --help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from metavoxel.files import atomic_write
from metavoxel.options import names
from metavoxel.progress import say

CohortArg = Annotated[str, typer.Argument(help="BIDS folder, or a table (.tsv, .csv, .xlsx) of facts and scans.")]
VariablesOption = Annotated[str | None, typer.Option(help="Scans and columns to use, e.g. T1w,age,sex=gender.")]
PatternOption = Annotated[
    str | None, typer.Option(help="Where a table's scans lie: scans/{participant_id}_{modality}.nii.gz")
]
SchemaOption = Annotated[
    Path | None, typer.Option("--schema", help="What each column holds: a file of metavoxel schema, edited by you.")
]


def schema(
    cohort: CohortArg,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="YAML to write; default: it is printed.")] = None,
    variables: VariablesOption = None,
    pattern: PatternOption = None,
) -> None:
    """Says what each column is taken for, why, and how many cells are missing; edit it and give it to train --schema."""
    from metavoxel.data.cohort import read_cohort

    data = read_cohort(cohort, names(variables), pattern)
    for note in data.notes:
        say(note)
    if out is None:
        typer.echo(data.schema_yaml(), nl=False)
        return
    with atomic_write(out) as file:
        file.write(data.schema_yaml())
    say(f"{out}; edit it, then: metavoxel train {cohort} --schema {out} -o model/")
