"""The commands evaluate and baselines. Heavy imports stay inside, so that `metavoxel --help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from metavoxel.data.commands import CohortArg, FoldOption, PatternOption, SchemaOption, SplitOption, VariablesOption
from metavoxel.options import DeviceOption, SeedOption, names
from metavoxel.progress import say


def baselines(
    cohort: CohortArg,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for their answers, and what was trained.")],
    preset: Annotated[str, typer.Option(help="tiny, small or paper.")] = "tiny",
    config: Annotated[Path | None, typer.Option(help="The YAML that the joint model was trained with, if any.")] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Some of densenet, vit, linear, trees, image-only, continuous-sex, paper; default: all."),
    ] = None,
    want: Annotated[
        str | None, typer.Option("--want", help="Numbers and classes to answer, comma-separated; default: age and sex.")
    ] = None,
    split: SplitOption = None,
    fold: FoldOption = None,
    most: Annotated[
        int | None,
        typer.Option(min=1, help="About how many people paper and continuous-sex are asked, slow ones; default: all."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run in the same folder.")] = False,
    variables: VariablesOption = None,
    pattern: PatternOption = None,
    schema: SchemaOption = None,
    cache: Annotated[Path | None, typer.Option(help="Keep resampled scans here between runs.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
) -> None:
    """Trains the models that a joint model is held against, on a split's part train, and answers for the rest."""
    from metavoxel.data.cohort import read_cohort
    from metavoxel.evaluate.baselines import RECORD, run_baselines

    data = read_cohort(cohort, names(variables), pattern, schema)
    failed = run_baselines(
        data, out, preset, config=config, split=split, fold=fold, only=names(only), want=names(want), most=most,
        resume=resume, cache=cache, device=device, seed=seed,
    )  # fmt: skip
    if failed:
        say(f"{', '.join(failed)} failed; the others and the reasons are in {out / RECORD}")
        raise typer.Exit(1)
    say(f"{out / RECORD}, and the answers beside it")


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder, hf://owner/name or phantom; runs/fold-{fold}: one for each fold of --split; with --compare: an "
            "evaluation."
        ),
    ],
    cohort: Annotated[str, typer.Argument(help="BIDS folder or table; with --compare: another evaluation.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for report.html, metrics.json and the model card.")],
    compare: Annotated[bool, typer.Option("--compare", help="Two evaluations side by side, with paired tests.")] = False,
    split: SplitOption = None,
    fold: FoldOption = None,
    training: Annotated[
        Path | None, typer.Option(help="The cohort that the model was trained on, if it is another one.")
    ] = None,
    baselines: Annotated[Path | None, typer.Option(help="What metavoxel baselines wrote, to stand beside.")] = None,
    by: Annotated[str | None, typer.Option(help="Columns to group people by, besides age, sex and site.")] = None,
    scans: Annotated[int, typer.Option(min=0, help="Scans to draw; 0: none.")] = 128,
    radimagenet: Annotated[Path | None, typer.Option(help="Weights of RadImageNet's ResNet-50, for a 2.5-D FID.")] = None,
    medicalnet: Annotated[Path | None, typer.Option(help="Weights of a MedicalNet, for a 3-D FID.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the training data, for the model card.")] = None,
    variables: VariablesOption = None,
    pattern: PatternOption = None,
    schema: SchemaOption = None,
    seed: SeedOption = 0,
) -> None:
    """Whether a model is right: accuracy, calibration, drawn scans, copies, groups -> OUT/report.html, metrics.json."""
    from metavoxel.data.cohort import read_cohort
    from metavoxel.evaluate.evaluation import Options
    from metavoxel.evaluate.run import compare_evaluations
    from metavoxel.evaluate.run import evaluate as judge

    if compare:
        compare_evaluations(Path(model), Path(cohort), out, seed)
        return
    options = Options(split, fold, training, baselines, names(by) or (), scans, radimagenet, medicalnet, licence, seed)
    judge(model, read_cohort(cohort, names(variables), pattern, schema), out, options)
