"""The commands prepare and restore. Heavy imports stay inside, so that `metavoxel --help` is quick."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from metavoxel.data.commands import CohortArg, PatternOption, SchemaOption, VariablesOption
from metavoxel.errors import MetavoxelError
from metavoxel.options import SeedOption, names
from metavoxel.progress import one_bar, say


def prepare(
    cohort: CohortArg,
    out: Annotated[Path, typer.Argument(help="Folder for the prepared cohort; a stopped run there is gone on with.")],
    strip: Annotated[
        str, typer.Option(help="How brains are found: auto, none (already stripped), mask (yours), hd-bet, builtin.")
    ] = "auto",
    registration: Annotated[str, typer.Option(help="rigid (keeps the head's size) or affine.")] = "rigid",
    spacing: Annotated[float, typer.Option(help="Voxel size of the result, mm.")] = 1.0,
    variables: VariablesOption = None,
    pattern: PatternOption = None,
    schema: SchemaOption = None,
    masks: Annotated[
        str | None, typer.Option(help="Where brain masks lie: masks/{participant_id}.nii.gz; default: derivatives/.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Scans at a time, each in a process of one thread.")] = 1,
    dask: Annotated[str | None, typer.Option(help="Let the workers of this Dask scheduler do it: tcp://host:8786")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Let --jobs SLURM jobs of one core do it.")] = False,
    sbatch: Annotated[str, typer.Option(help="Of --slurm: partition=short,time=04:00:00,mem=4G")] = "",
    seed: SeedOption = 0,
) -> None:
    """Makes model-ready brains of raw scans: strips, corrects the bias field, aligns with MNI152, checks quality."""
    from metavoxel.data.cohort import read_cohort
    from metavoxel.prepare.cluster import over_dask, over_slurm
    from metavoxel.prepare.run import Share, prepare_cohort
    from metavoxel.prepare.task import PRIVATE, Settings

    if dask and slurm:
        raise MetavoxelError("--dask and --slurm: give one of them")
    share: Share | None = None
    if dask:
        share = partial(over_dask, address=dask)
    elif slurm:
        share = partial(over_slurm, jobs=jobs, sbatch=sbatch, folder=out / PRIVATE / "slurm")
    settings = Settings(strip, registration, spacing, seed)
    data = read_cohort(cohort, names(variables), pattern, schema)
    with one_bar("prepare") as report:
        outcome = prepare_cohort(data, out, settings, jobs=jobs, share=share, masks=masks, progress=report)
    for note in [*data.notes, *outcome.notes]:
        say(note)
    ready = len(outcome.done) + len(outcome.kept)
    earlier = f" ({len(outcome.kept)} from an earlier run)" if outcome.kept else ""
    if ready:
        say(f"{ready} scans in {out}{earlier}, {outcome.flagged} of them flagged; look at {out / 'qc.html'}")
    if outcome.failed:
        _, reason = outcome.failed[0]
        failed = f"{len(outcome.failed)} scans failed, the reasons are in {out / 'failures.tsv'}; the first: {reason}"
        if not ready:
            raise MetavoxelError(failed)
        say(failed)
        raise typer.Exit(1)


def restore(
    result: Annotated[Path, typer.Argument(help="An image or mask in MNI space: a prepared scan, or one made from it.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write, on the voxels of the raw scan.")],
    of: Annotated[Path | None, typer.Option(help="The prepared scan that RESULT belongs to; default: RESULT.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Whole numbers: do not interpolate, keep their values.")] = False,
) -> None:
    """Carries a result back to the voxels and the intensities of the raw scan."""
    from metavoxel.prepare.restore import restore_scan

    restore_scan(result, out, of, labels=labels)
    say(f"{out}")
