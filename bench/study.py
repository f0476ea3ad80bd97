"""Whole studies, by the commands that a user would type: split, train, baselines, evaluate. Each leaves docs/reports/NAME.

    python bench/study.py packaged                  # the packaged model on 500 fresh phantoms
    python bench/study.py diagnosis                 # 2,000 phantoms with a diagnosis train, 500 are asked about
    python bench/study.py real --prepared FOLDER    # ds002748 and ixi50 in 5 folds, the packaged model trained on
    python bench/study.py sites --prepared FOLDER   # the same, each site left out once

--only: some baselines, comma-separated. --work: where everything lies; a stopped study goes on there.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import yaml
from common import record

import metavoxel as mv

REPORTS = Path(__file__).parents[1] / "docs" / "reports"
PEOPLE_SEED, ASKED_SEED = 6401, 6402
LEARNT_SEED, LEARNT = 9601, 2000
"""Some of the 20,000 people whom the packaged model has learnt from last; its report looks for copies among them."""
FOLDS = 5
FURTHER = {"reading": 100, "validation": 0.15,
           "joint": {"steps": 200, "batch": 32, "rate": 3e-4, "matrix_rate": 3e-3, "validate_every": 25}}  # fmt: skip
"""Of a model that can tell phantoms already; as in bench/real_brains.py."""
DRAWING = {"times": {"read": 0.3}, "joint": {"steps": 900}}
"""Laid over `tiny`: after its reading steps, more that ask for scans."""
LAST = DRAWING | {"joint": DRAWING["joint"] | {"validate_every": 900}}
"""The joint model is taken as it is at the end, and what it knows by heart is not believed (`scalars.sureness`)."""
MOST = 120
"""People whom the paper's inference is asked about, which takes one core some five seconds each for all four questions."""


def metavoxel(*words: object) -> None:
    """The command line, in a process of its own."""
    print("metavoxel", *words, flush=True)
    subprocess.run([sys.executable, "-m", "metavoxel.cli", *map(str, words)], check=True)


def again(out: Path) -> list[str]:
    """--resume, where a stopped run left something."""
    return ["--resume"] if out.exists() else []


def baselines(cohort: Path, out: Path, only: str, *options: object) -> None:
    chosen = ["--only", only] if only else []
    metavoxel("baselines", cohort, "-o", out, "--preset", "tiny", *chosen, *options, *again(out))


def published(name: str, report: Path, start: float, people: int) -> None:
    """The report goes to docs/reports, what it took to bench/results."""
    folder = REPORTS / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("report.html", "metrics.json", "model_card.md"):
        if (report / file).exists():
            shutil.copyfile(report / file, folder / file)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    record(f"study_{name}", f"{people} people asked about", {"evaluate_seconds": time.monotonic() - start,
                                                             "peak_memory_mb": peak})  # fmt: skip


def packaged(work: Path, only: str) -> None:
    people, learnt = work / "people", work / "learnt"
    if not people.exists():
        metavoxel("phantom", people, "-n", 500, "--seed", ASKED_SEED)
    if not learnt.exists():
        metavoxel("phantom", learnt, "-n", LEARNT, "--seed", LEARNT_SEED)
    start = time.monotonic()
    metavoxel("evaluate", "phantom", people, "-o", work / "report", "--training", learnt,
              "--licence", "none needed: drawn by metavoxel phantom")  # fmt: skip
    published("packaged", work / "report", start, 500)


def diagnosis(work: Path, only: str) -> None:
    people, split, model = work / "people", work / "split.tsv", work / "model"
    if not people.exists():
        metavoxel("phantom", people, "-n", 2500, "--seed", PEOPLE_SEED, "--diagnosis")
        metavoxel("split", people, "-o", split, "--test", 0.2, "--stratify", "age,sex,diagnosis")
    config, last = work / "drawing.yaml", work / "last.yaml"
    config.write_text(yaml.safe_dump(DRAWING))
    last.write_text(yaml.safe_dump(LAST))
    if not (model / "model.safetensors").exists():
        metavoxel("train", people, "-o", model, "--preset", "tiny", "--config", last, "--split", split, *again(model))
    baselines(people, work / "baselines", only, "--config", config, "--split", split, "--want", "age,sex,diagnosis,mmse",
              "--most", MOST)  # fmt: skip
    start = time.monotonic()
    metavoxel("evaluate", model, people, "-o", work / "report", "--split", split, "--baselines", work / "baselines",
              "--scans", 300, "--licence", "none needed: drawn by metavoxel phantom")  # fmt: skip
    published("diagnosis", work / "report", start, 500)


def real(work: Path, prepared: Path, only: str, by_site: bool) -> None:
    name = "sites" if by_site else "real"
    table, split = _people(work, prepared), work / f"{name}.tsv"
    if not split.exists():
        metavoxel("split", table, "-o", split, *(["--leave-out", "site"] if by_site else ["--test", 0, "--folds", FOLDS]))
    config = work / "further.yaml"
    config.write_text(yaml.safe_dump(FURTHER))
    for fold in range(1, 3 if by_site else FOLDS + 1):
        model = work / f"{name}-{fold}"
        if not (model / "model.safetensors").exists():
            metavoxel("train", table, "-o", model, "--config", config, "--init", "phantom", "--variables", "T1w,age,sex",
                      "--split", split, "--fold", fold, "--cache", work / "cache", *again(model))  # fmt: skip
        baselines(table, work / f"{name}-baselines-{fold}", only, "--config", config, "--split", split, "--fold", fold,
                  "--cache", work / "cache", "--variables", "T1w,age,sex")  # fmt: skip
    start = time.monotonic()
    metavoxel("evaluate", f"{work}/{name}-{{fold}}", table, "-o", work / f"report-{name}", "--split", split, "--baselines",
              f"{work}/{name}-baselines-{{fold}}", "--by", "group",
              "--licence", "CC0 (ds002748), CC BY-SA 3.0 (IXI)")  # fmt: skip
    published(name, work / f"report-{name}", start, len(pd.read_csv(table, sep="\t")))


def _people(work: Path, prepared: Path) -> Path:
    """Both cohorts as one table of paths and facts, and who of ds002748 has a depression, which no model is told."""
    table = work / "people.tsv"
    sites = {
        "ds002748": mv.read_cohort(prepared / "ds002748", ["T1w", "age", "sex=gender"]),
        "ixi50": mv.read_cohort(prepared / "ixi50", ["T1w", "age", "sex"]),
    }
    both = mv.concat(sites)
    groups = pd.read_csv(prepared / "ds002748" / "participants.tsv", sep="\t").set_index("participant_id")["group"]
    both.table.assign(
        T1w=[path and path.resolve() for path in both.scans["T1w"]], group=both.table["participant_id"].map(groups)
    ).to_csv(table, sep="\t", index=False)
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("packaged", "diagnosis", "real", "sites"))
    parser.add_argument("--work", type=Path)
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    work = options.work or Path("runs/study") / options.what
    work.mkdir(parents=True, exist_ok=True)
    if options.what in ("real", "sites"):
        real(work, options.prepared, options.only, options.what == "sites")
    else:
        {"packaged": packaged, "diagnosis": diagnosis}[options.what](work, options.only)


if __name__ == "__main__":
    main()
