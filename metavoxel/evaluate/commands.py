"""The command baselines. Heavy imports stay inside, so that `metavoxel --help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from metavoxel.data.commands import CohortArg, FoldOption, PatternOption, SchemaOption, SplitOption, VariablesOption
from metavoxel.options import names
from metavoxel.progress import say


def baselines(
    cohort: CohortArg,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for their answers, and what was trained.")],
    preset: Annotated[str, typer.Option(help="tiny, small or paper.")] = "tiny",
    only: Annotated[
        str | None,
        typer.Option(help="Some of densenet, vit, linear, trees, image-only, continuous-sex, paper; default: all."),
    ] = None,
    want: Annotated[
        str | None, typer.Option("--want", help="Numbers and classes to answer, comma-separated; default: age and sex.")
    ] = None,
    split: SplitOption = None,
    fold: FoldOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run in the same folder.")] = False,
    variables: VariablesOption = None,
    pattern: PatternOption = None,
    schema: SchemaOption = None,
    cache: Annotated[Path | None, typer.Option(help="Keep resampled scans here between runs.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine, same result.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one.")] = None,
) -> None:
    """Trains the models that a joint model is held against, on a split's part train, and answers for the rest."""
    from metavoxel.data.cohort import read_cohort
    from metavoxel.evaluate.baselines import RECORD, run_baselines

    data = read_cohort(cohort, names(variables), pattern, schema)
    failed = run_baselines(
        data, out, preset, split=split, fold=fold, only=names(only), want=names(want), resume=resume, cache=cache,
        device=device, seed=seed,
    )  # fmt: skip
    if failed:
        say(f"{', '.join(failed)} failed; the others and the reasons are in {out / RECORD}")
        raise typer.Exit(1)
    say(f"{out / RECORD}, and the answers beside it")
