"""The commands. Exit status 0, or 2 with one line that says what is wrong, where, and what to do; 1 where a part failed."""

import itertools
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from metavoxel.data.commands import (
    CohortArg,
    FoldOption,
    PatternOption,
    SchemaOption,
    SplitOption,
    VariablesOption,
    datasets,
    schema,
    split,
)
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.commands import baselines, evaluate
from metavoxel.options import DeviceOption, SeedOption, names
from metavoxel.prepare.commands import prepare, restore
from metavoxel.progress import one_bar, say

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="One joint diffusion model of medical images and clinical facts: ask anything from anything.",
)  # fmt: skip

ModelArg = Annotated[str, typer.Argument(help="Model folder, hf://owner/name, or a packaged model: phantom.")]
ImageOption = Annotated[
    str | None, typer.Option(help="Which image of the model the scan is; default: its first.")
]
GivenOption = Annotated[
    list[str] | None,
    typer.Option("--given", help="NAME=VALUE gives a value; NAME alone takes it from the cohort's table. Repeatable."),
]
WantOption = Annotated[
    str | None, typer.Option("--want", help="Variables to answer, comma-separated; default: all others.")
]


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    if debug:
        os.environ["METAVOXEL_DEBUG"] = "1"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html.")] = Path("demo"),
    train: Annotated[bool, typer.Option("--train", help="Train the tiny preset from scratch first (minutes).")] = False,
    seed: SeedOption = 0,
) -> None:
    """Asks the packaged model about fresh phantom brains, beside the exact answers -> OUT/report.html."""
    from metavoxel.demo import run_demo

    run_demo(out, train=train, seed=seed)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="New BIDS folder.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Number of subjects.")] = 100,
    seed: SeedOption = 0,
    diagnosis: Annotated[
        bool, typer.Option("--diagnosis", help="Add a diagnosis (control, mci, dementia) and a score (mmse).")
    ] = False,
    missing: Annotated[float, typer.Option(help="Share of the facts to hide at random (0 to 1).")] = 0.0,
    shape: Annotated[str, typer.Option(help="Voxels, X,Y,Z.")] = "32,40,32",
    spacing: Annotated[float, typer.Option(help="Voxel size in mm.")] = 5.0,
) -> None:
    """Makes a BIDS cohort of brains whose true joint law, and so every exact answer, is known."""
    from metavoxel.data.phantom import write_cohort

    size = _numbers(shape, "--shape")
    with one_bar("phantom") as report:
        write_cohort(
            out, n, seed=seed, diagnosis=diagnosis, shape=(size[0], size[1], size[2]), spacing=spacing,
            missing=missing, on_progress=lambda done: report(done, n),
        )  # fmt: skip
    say(f"{n} subjects in {out}; exact posteriors in {out / 'derivatives/phantom/posterior.tsv'}")


app.command()(schema)
app.command()(split)
app.command()(datasets)
app.command()(prepare)
app.command()(restore)
app.command()(baselines)
app.command()(evaluate)


@app.command()
def train(
    cohort: CohortArg,
    out: Annotated[Path, typer.Option("-o", "--out", help="New model folder.")],
    preset: Annotated[
        str | None, typer.Option(help="tiny, small, paper or table; default: table for a cohort without scans, else tiny.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML laid over the preset.")] = None,
    init: Annotated[str | None, typer.Option(help="Model to start from: variables, network, weights, scalings.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped training in the same folder.")] = False,
    variables: VariablesOption = None,
    pattern: PatternOption = None,
    schema: SchemaOption = None,
    split: SplitOption = None,
    fold: FoldOption = None,
    cache: Annotated[Path | None, typer.Option(help="Keep resampled scans here between runs.")] = None,
    exclude: Annotated[
        str | None, typer.Option(help="People to leave out, sub-01,sub-07, or a file with one a line.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Overrides the config's seed.")] = None,
    device: DeviceOption = None,
) -> None:
    """Trains a joint model on a cohort; gaps in the table are allowed."""
    from dataclasses import replace

    from metavoxel.build import preset_for
    from metavoxel.build import train as build
    from metavoxel.config import Config, read_config
    from metavoxel.config import preset as named
    from metavoxel.data.cohort import read_cohort
    from metavoxel.data.review import read_names

    def chosen(name: str) -> Config:
        return read_config(config, name) if config else named(name)

    if preset or config:  # a slip in them is told before thousands of files are looked for
        chosen(preset or "tiny")
    data = read_cohort(cohort, names(variables), pattern, schema)
    if exclude is not None:
        data = data.exclude(read_names(exclude))
    settings = chosen(preset or preset_for(data))
    if seed is not None:
        settings = replace(settings, seed=seed)
    model = build(data, settings, out, resume=resume, init=init, cache=cache, device=device, split=split, fold=fold)
    figures = ", ".join(f"{k} {v:.3f}" for k, v in _validation(model.summary).items())
    say(f"model in {out} (validation: {figures})")


@app.command()
def predict(
    model: ModelArg,
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A scan, a BIDS folder or a table.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="CSV to write; units and levels go beside it as JSON.")],
    want: WantOption = None,
    given: GivenOption = None,
    draws: Annotated[
        int | None, typer.Option("-n", min=2, help="Draws to take spread and quantiles from, not from the law told.")
    ] = None,
    pattern: PatternOption = None,
    split: SplitOption = None,
    fold: FoldOption = None,
    seed: SeedOption = 0,
) -> None:
    """One row a scan: mean, spread and quantiles of numbers, probabilities of classes."""
    from metavoxel.checkpoint import write_json
    from metavoxel.data.splits import part_of
    from metavoxel.files import DIGITS, atomic_write
    from metavoxel.model import load

    sidecar = out.with_suffix(".json")
    if out == sidecar or out.is_dir() or not out.parent.is_dir():
        raise MetavoxelError(f"{out}: name a .csv file in a folder that is there, for the answers")
    if sidecar.exists() and not out.exists():
        raise MetavoxelError(f"{sidecar}: is there and no prediction's, and would be written over; name another -o")
    loaded = load(model)
    cohort, _ = part_of(loaded.people_of(source, pattern), split, "test", fold)
    with one_bar("predict") as report:
        table = loaded.predict(cohort, names(want), _facts(given), draws or 0, seed, report)
    with atomic_write(out) as file:
        table.to_csv(file, index=False, float_format=DIGITS)
    write_json(sidecar, _sidecar(loaded.schema, list(table.columns)))
    say(f"{len(table)} rows in {out}")


@app.command()
def sample(
    model: ModelArg,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for samples.csv and scans.")],
    given: GivenOption = None,
    want: WantOption = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of joint draws.")] = 4,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampler steps; default by kind of question.")] = None,
    method: Annotated[
        str | None, typer.Option(help="direct, replacement or repaint; default: direct if the model's training allows it.")
    ] = None,
    jump: Annotated[int | None, typer.Option(min=1, help="Of repaint: steps before each way back; default 10.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Of repaint: walks of each stretch; default 10.")] = None,
    guidance: Annotated[float, typer.Option(min=0, help="Above 1: stresses what is given (1.5 to 3).")] = 1.0,
    seed: SeedOption = 0,
) -> None:
    """Draws what is wanted given the rest: samples.csv, one NIfTI for each draw and image, and a picture."""
    from metavoxel.model import load
    from metavoxel.pictures import save_mosaic

    loaded = load(model)
    with one_bar("sample") as report:
        draws = loaded.sample(_values(given, "sample"), names(want), n, seed, steps, report,
                              method=method, jump=jump, repeats=repeats, guidance=guidance)  # type: ignore[arg-type]  # fmt: skip
    draws.save(out)
    for image in loaded.schema.images:
        if image.name in draws.values:
            save_mosaic(out / f"{image.name}.png", draws[image.name], draws.frame(), image.spacing)
        else:
            (out / f"{image.name}.png").unlink(missing_ok=True)  # of earlier draws
    say(f"{n} draws in {out}")


@app.command()
def inpaint(
    model: ModelArg,
    scan: Annotated[Path, typer.Argument(metavar="SCAN", help="The scan to complete.")],
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="On the scan's own voxels; not 0: to be filled in.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for completions, their spread and a picture.")],
    given: GivenOption = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of completions.")] = 4,
    image: ImageOption = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampler steps.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Fills in what a mask hides, several times, with the facts that go with each completion."""
    from metavoxel.inpaint import inpaint as fill
    from metavoxel.model import load
    from metavoxel.pictures import save_completions

    loaded = load(model)
    with one_bar("inpaint") as report:
        filled = fill(loaded, scan, mask, n, _values(given, "inpaint"), image, seed, steps, report)
    filled.save(out)
    save_completions(out / f"{filled.name}.png", filled)
    say(f"{n} completions in {out}")


@app.command()
def counterfactual(
    model: ModelArg,
    scan: Annotated[Path, typer.Argument(metavar="SCAN", help="The scan to change.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the changed scans, a table and a picture.")],
    changes: Annotated[
        list[str], typer.Option("--set", help="A changed fact: NAME=VALUE, or NAME=FIRST:LAST:STEP for a series.")
    ],
    given: GivenOption = None,
    image: ImageOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the path, each way.")] = 25,
) -> None:
    """The same scan under changed facts. --given: the facts as they are; the others are answered from the scan."""
    from metavoxel.counterfactual import counterfactual as change
    from metavoxel.model import load
    from metavoxel.pictures import save_series

    loaded = load(model)
    with one_bar("counterfactual") as report:
        own = _values(given, "counterfactual")
        made = change(loaded, scan, _changes(changes), own, image, steps, report)
    made.save(out)
    save_series(out / f"{made.name}.png", made)
    say(f"{len(made)} changed scans in {out}")


@app.command()
def inspect(model: ModelArg) -> None:
    """Shows a model's variables, what it was trained on, and how well it did on held-out people."""
    from metavoxel.model import load

    loaded = load(model)
    about = loaded.describe()
    summary: dict[str, Any] = about["summary"]  # type: ignore[assignment]
    table = Table("variable", "kind", "unit or levels", "known", "in training", box=None)
    for variable in loaded.schema:
        seen = summary["columns"][variable.name]
        levels = ", ".join(getattr(variable, "levels", ()))
        units = getattr(variable, "unit", "") or levels or " x ".join(map(str, getattr(variable, "shape", ())))
        spread = f"{seen['mean']} +- {seen['sd']}, {seen['min']} to {seen['max']}" if "mean" in seen else ""
        counts = ", ".join(f"{level} {count}" for level, count in seen.get("counts", {}).items())
        table.add_row(variable.name, variable.kind, units, str(seen["known"]), spread or counts)
    console = Console()
    console.print(table)
    console.print(f"people {summary['people']}, rows {summary['rows']} ({summary['validation_rows']} held out); "
                  f"{about['parameters']:,} parameters", highlight=False)  # fmt: skip
    console.print("validation: " + ", ".join(f"{k} {v:.4g}" for k, v in _validation(summary).items()), highlight=False)


STOPPED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main() -> None:
    """Entry point: turns the user's mistakes into one line and status 2."""
    try:
        status = app(standalone_mode=False)
    except TyperException as error:
        _fail(f"{error.format_message()} (see metavoxel --help)".replace("\n", " "), 2, error)
    except (KeyboardInterrupt, typer.Abort):
        status = STOPPED
    except (MetavoxelError, OSError, MemoryError) as error:
        _fail(str(error).replace("\n", " ") or type(error).__name__, 2, error)
    if status == STOPPED:  # also a Ctrl-C in a command, of which typer makes an exit
        _fail("stopped; no file is half-written, and a training goes on with --resume, a preparation by itself", STOPPED)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int, error: BaseException | None = None) -> None:
    if error is not None and os.environ.get("METAVOXEL_DEBUG"):
        raise error
    print(f"metavoxel: {message}", file=sys.stderr)
    sys.exit(status)


def _facts(given: list[str] | None) -> dict[str, object]:
    """--given NAME=VALUE and --given NAME (None: from the table)."""
    facts: dict[str, object] = {}
    for item in given or []:
        name, equals, value = item.partition("=")
        if not name or (equals and not value):
            raise MetavoxelError(f"--given {item}: write NAME=VALUE, or NAME to take it from the table")
        if name in facts:
            raise MetavoxelError(f"--given {item}: {name} is given already; give it once")
        facts[name] = value if equals else None
    return facts


def _values(given: list[str] | None, command: str) -> dict[str, object]:
    """--given NAME=VALUE, for a command without a table."""
    facts = _facts(given)
    missing = [name for name, value in facts.items() if value is None]
    if missing:
        raise MetavoxelError(f"--given {missing[0]}: {command} has no table to take it from; write {missing[0]}=VALUE")
    return facts


def _changes(settings: list[str]) -> list[dict[str, object]]:
    """--set NAME=VALUE and --set NAME=FIRST:LAST:STEP -> every combination."""
    choices: dict[str, list[object]] = {}
    for item in settings:
        name, equals, value = item.partition("=")
        if not name or not equals or not value:
            raise MetavoxelError(f"--set {item}: write NAME=VALUE, or NAME=FIRST:LAST:STEP")
        if name in choices:
            raise MetavoxelError(f"--set {item}: {name} is set already; a series is written {name}=50:90:10")
        choices[name] = _series(item, value) if value.count(":") == 2 else [value]
    return [dict(zip(choices, values)) for values in itertools.product(*choices.values())]


def _series(item: str, text: str) -> list[object]:
    """FIRST:LAST:STEP, both ends included."""
    try:
        first, last, step = (float(part) for part in text.split(":"))
        count = math.floor((last - first) / step + 1e-6) + 1
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise MetavoxelError(f"--set {item}: a series is FIRST:LAST:STEP, three numbers such as 50:90:10") from error
    if count < 1:
        raise MetavoxelError(f"--set {item}: the series is empty; its step leads away from {last:g}")
    return [f"{first + number * step:g}" for number in range(count)]


def _numbers(text: str, option: str) -> list[int]:
    try:
        x, y, z = (int(part) for part in text.split(","))
    except ValueError as error:
        raise MetavoxelError(f"{option} {text}: write three whole numbers, such as 32,40,32") from error
    return [x, y, z]


def _sidecar(schema: Any, columns: list[str]) -> dict[str, dict[str, object]]:
    """Units and levels of a prediction's columns, as BIDS writes them."""
    from metavoxel.naming import answer_columns

    told: dict[str, dict[str, object]] = {}
    for image in schema.images:
        unlike = "How unlike the training scans the scan is; usual ones are near 1"
        told |= {column: {"Description": unlike} for column in answer_columns(image)}
    for variable in schema.scalars:
        if levels := getattr(variable, "levels", ()):
            words: list[dict[str, object]] = [{"Description": f"Probability of {level}"} for level in levels]
            words.insert(0, {"Description": "Most probable level", "Levels": {level: level for level in levels}})
            told |= dict(zip(answer_columns(variable), words))
        else:
            told |= {column: {"Units": variable.unit or "arbitrary"} for column in answer_columns(variable)}
    return {column: about for column, about in told.items() if column in columns}


def _validation(summary: dict[str, Any]) -> dict[str, float]:
    return summary["validation"]


if __name__ == "__main__":
    main()
