"""The documents' examples run as they stand, on a small phantom cohort and with few steps of training."""

import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from metavoxel import config
from metavoxel.data.phantom import write_cohort
from metavoxel.data.volume import Volume, read_volume, write_volume

DOCS = Path(__file__).parents[1] / "docs"
FEW = {"steps": 2, "batch": 4, "validate_every": 1}


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_the_tables_are_those_of_the_recorded_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """README and docs/benchmarks.md say what bench/results and docs/reports hold."""
    monkeypatch.syspath_prepend(str(DOCS.parent / "bench"))
    table = importlib.import_module("table")
    assert table.README.read_text() == table.readme()
    assert table.BENCHMARKS.read_text() == table.benchmarks()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What docs/questions.md says there is: bids/, ms/, scan.nii.gz and lesion.nii.gz."""
    write_cohort(tmp_path / "bids", 8, seed=3)
    shutil.copytree(tmp_path / "bids", tmp_path / "ms")
    for path in sorted((tmp_path / "ms").glob("sub-*/anat/*_T1w.nii.gz")):
        scan = read_volume(path)
        flair = np.where(scan.array > 0, scan.array.max() - scan.array, 0)
        write_volume(Volume(flair, scan.affine), path.with_name(path.name.replace("T1w", "FLAIR")))
    write_cohort(tmp_path / "one", 1, seed=4)
    scan = read_volume(next((tmp_path / "one").glob("sub-*/anat/*.nii.gz")))
    mask = np.zeros(scan.array.shape, np.float32)
    mask[10:14, 18:23, 14:18] = 1
    write_volume(scan, tmp_path / "scan.nii.gz")
    write_volume(Volume(mask, scan.affine), tmp_path / "lesion.nii.gz")
    net = {"widths": (8, 8), "patch": 4, "token_width": 16, "token_depth": 1}
    monkeypatch.setitem(config.PRESETS, "tiny", {**config.PRESETS["tiny"], "net": net, "reading": 1, "joint": FEW})
    for steps in ("IMAGE_STEPS", "PAPER_STEPS"):
        monkeypatch.setattr("metavoxel.methods." + steps, 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_questions_page_runs(folder: Path) -> None:
    names: dict[str, object] = {}
    for number, block in enumerate(blocks("questions.md"), start=1):
        exec(compile(block, f"docs/questions.md, block {number}", "exec"), names)
    assert len(names["table"]) == 8  # type: ignore[arg-type]
    assert {path.name for path in (folder / "anyone").iterdir()} >= {"samples.csv"}
    assert any((folder / "filled").glob("*.nii.gz")) and any((folder / "older").glob("*.nii.gz"))
    assert names["flair"]["FLAIR"].shape == (2, 32, 40, 32)  # type: ignore[index]


def test_every_wanted_row_has_its_example() -> None:
    page = (DOCS / "questions.md").read_text()
    for said in ("shared", "mv.train(cohort, preset", 'method="replacement"', 'method="repaint"', ".probability(", "n=256",
                 "inpaint(", 'want=["FLAIR"]', "it is ignored", "guidance="):  # fmt: skip
        assert said in page, said
