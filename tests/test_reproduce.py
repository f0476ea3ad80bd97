"""The commands of docs/how-to/reproduce-the-paper.md as they are written there, with fewer people and steps."""

import shlex
from pathlib import Path

import pandas as pd
import pytest

from metavoxel.config import PRESETS, Optimiser
from metavoxel.evaluate import baselines
from metavoxel.evaluate.figures import Findings
from metavoxel.evaluate.sizes import sizes

PAGE = Path(__file__).parents[1] / "docs/how-to/reproduce-the-paper.md"
FEW = {"steps": 4, "batch": 8, "validate_every": 2}


def commands(page: str) -> list[list[str]]:
    """The words of each command under the last heading."""
    block = page.split("## The same on phantoms")[1].split("```")[1]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("metavoxel ")]


def few_steps(patch: pytest.MonkeyPatch) -> None:
    tiny, ours = sizes("tiny"), {**PRESETS["tiny"], "reading": 2, "joint": FEW}
    optimiser = Optimiser(**FEW)
    patch.setitem(PRESETS, "tiny", ours)
    less = {"joint": FEW, "encoding": {"steps": 2, "batch": 8, "validate_every": 1}}
    small = sizes("tiny")
    patch.setattr(baselines, "sizes", lambda name, config: type(tiny)(
        small.joint, with_steps(tiny.paper, less), {"init_features": 4, "growth_rate": 2},
        {"patch": 8, "width": 16, "depth": 1, "heads": 2}, optimiser, apart=False,
    ))  # fmt: skip


def with_steps(config, less):
    from metavoxel.config import from_dict, to_dict

    content = to_dict(config)
    for stage, settings in less.items():
        content[stage] |= settings
    return from_dict(content, "fewer steps")


@pytest.mark.slow
def test_the_recipe_gives_both_of_the_papers_tables(run, monkeypatch, tmp_path):
    few_steps(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for words in commands(PAGE.read_text()):
        words = ["30" if word == "600" else word for word in words]
        words += ["--scans", "6"] if words[0] == "evaluate" and "--compare" not in words else []
        status, error = run(*words)
        assert status == 0, f"{' '.join(words)}: {error}"
    found = Findings.load(Path("report-ours/metrics.json"))
    for who in ("model", "densenet", "vit", "linear", "paper", "continuous-sex", "trees", "exact"):  # Table 1
        assert found.value("accuracy", "age", "mae", who=who, given="scan") is not None, who
        assert found.value("accuracy", "sex", "accuracy", who=who, given="scan") is not None, who
    for who in ("model", "image-only", "paper", "continuous-sex"):
        assert found.value("images", "T1w", "voxels: mmd", who=who) is not None, who
    for given in ("nothing", "other facts", "scan", "scan and other facts"):  # Table 2
        assert found.value("accuracy", "age", "mae", given=given) is not None, given
    theirs = Findings.load(Path("report-paper/metrics.json"))
    assert theirs.value("images", "T1w", "voxels: fid") is not None
    for given in ("nothing", "other facts", "scan", "scan and other facts"):
        assert theirs.value("accuracy", "age", "mae", given=given) is not None, given
    beside = pd.read_csv("side-by-side/comparison.csv")
    assert {"age", "sex"} == set(beside["variable"])
    assert {"nothing", "other facts", "scan", "scan and other facts"} == set(beside["given"])
