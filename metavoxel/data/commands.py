"""The commands schema, split and datasets. Heavy imports stay inside, so that `metavoxel --help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from metavoxel.errors import MetavoxelError
from metavoxel.files import atomic_write
from metavoxel.options import SeedOption, names
from metavoxel.progress import one_bar, say

CohortArg = Annotated[str, typer.Argument(help="BIDS folder, or a table (.tsv, .csv, .xlsx) of facts and scans.")]
VariablesOption = Annotated[str | None, typer.Option(help="Scans and columns to use, e.g. T1w,age,sex=gender.")]
PatternOption = Annotated[
    str | None, typer.Option(help="Where a table's scans lie: scans/{participant_id}_{modality}.nii.gz")
]
SchemaOption = Annotated[
    Path | None, typer.Option("--schema", help="What each column holds: a file of metavoxel schema, edited by you.")
]
SplitOption = Annotated[Path | None, typer.Option("--split", help="Who is in which part: a file of metavoxel split.")]
FoldOption = Annotated[
    int | None, typer.Option("--fold", help="Of --split: the fold that training leaves out, and predict answers.")
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
    text = data.schema_yaml()
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.is_file() and out.read_bytes() != text.encode():
        raise MetavoxelError(f"{out}: is there already and may have been edited; remove it, or name another -o")
    with atomic_write(out) as file:
        file.write(text)
    say(f"{out}; edit it, then: metavoxel train {cohort} --schema {out} -o model/")


def split(
    cohort: CohortArg,
    out: Annotated[Path, typer.Option("-o", "--out", help="Table to write, .tsv; how it was drawn goes beside it.")],
    test: Annotated[float, typer.Option(help="Share of the people for testing; 0: none.")] = 0.2,
    folds: Annotated[int, typer.Option(help="Parts of the others, for cross-validation; 0: none.")] = 0,
    seed: SeedOption = 0,
    stratify: Annotated[
        str | None, typer.Option(help="Columns to spread evenly, comma-separated; default: age, sex and site.")
    ] = None,
    site: Annotated[
        str | None, typer.Option("--leave-out", help="A fold for each value of this column instead, such as site.")
    ] = None,
    variables: VariablesOption = None,
    pattern: PatternOption = None,
) -> None:
    """Deals people into training, testing and folds, alike in age, sex and site; train --split uses it."""
    from metavoxel.data.cohort import read_cohort
    from metavoxel.data.splits import draw_split, leave_out

    data = read_cohort(cohort, names(variables), pattern)
    drawn = draw_split(data, test, folds, seed, names(stratify)) if site is None else leave_out(data, site)
    drawn.save(out)
    for group in drawn.about["SameScans"]:
        say(f"{' and '.join(group)} have the same scan, byte for byte; they are kept in one part")
    counted = ", ".join(f"{part} {count}" for part, count in drawn.about["People"].items())
    evenly = "" if site else f"; spread evenly: {', '.join(drawn.about['StratifiedBy']) or 'nothing'}"
    say(f"{out}: {counted}{evenly}")


def datasets(
    name: Annotated[str | None, typer.Argument(help="ixi, or an accession of OpenNeuro; without it: a list.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the data; default: NAME.")] = None,
    images: Annotated[str | None, typer.Option(help="Kinds of scan, comma-separated: T1w,FLAIR; default: all.")] = None,
    accept: Annotated[bool, typer.Option("--accept-licence", help="You have read the licence and keep to it.")] = False,
) -> None:
    """Lists cohorts with open licences, and downloads one; a stopped download is gone on with."""
    from metavoxel.data.datasets import CATALOGUE, download, find

    if name is None:
        for listed in CATALOGUE:
            typer.echo(f"{listed.name:10} {listed.people:>9} people  {listed.licence:14} {listed.what}  {listed.page}")
        typer.echo("Any other data set of OpenNeuro: metavoxel datasets ds000001")
        return
    dataset = find(name)
    say(f"{dataset.name}: {dataset.what}; licence: {dataset.licence}; {dataset.page}")
    if not accept:
        fix = f"read its licence, {dataset.licence}, and add --accept-licence"
        raise MetavoxelError(f"{name}: nothing is downloaded yet; {fix}")
    folder = out or Path(name)
    with one_bar(f"{name}, MB") as report:
        files = download(dataset, folder, names(images), report)
    pattern = " --pattern 'IXI-T1/{participant_id}-T1.nii.gz'" if dataset.name == "ixi" else ""
    say(f"{len(files)} files in {folder}; next: metavoxel prepare {folder} prepared/{pattern}")
