"""Every test starts from the same global seed, on one thread: tests run side by side, and two threads that share a busy
core wait for each other most of the time. On the CPU, unless CUDA_VISIBLE_DEVICES names a GPU: some compare answers to the
last digit."""

import os
import sys
from pathlib import Path

import pytest
import torch

import metavoxel as mv
from metavoxel.cli import main
from metavoxel.data.phantom import write_cohort

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BIDS folder of 12 phantoms, a tenth of whose facts are hidden."""
    return write_cohort(tmp_path_factory.mktemp("phantoms") / "cohort", 12, seed=5, missing=0.1)


@pytest.fixture(scope="session")
def scan(phantoms: Path) -> Path:
    """One of them."""
    return next(phantoms.glob("sub-*/anat/*.nii.gz"))


@pytest.fixture(scope="session")
def untrained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder after two steps of training: right in form, worthless in content."""
    folder = tmp_path_factory.mktemp("models") / "model"
    settings = {"steps": 2, "batch": 4, "validate_every": 1}
    mv.train(phantoms, mv.preset("tiny", joint=settings), folder, quiet=True)
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit status, standard error)."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["metavoxel", *map(str, arguments)])
        monkeypatch.delenv("METAVOXEL_DEBUG", raising=False)
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


@pytest.fixture
def refused(run):
    """refused(*arguments) -> the one line; checks status 2 and that it is one line without a traceback."""

    def call(*arguments: object) -> str:
        status, error = run(*arguments)
        lines = [line for line in error.splitlines() if line.startswith("metavoxel: ")]
        assert status == 2, error
        assert len(lines) == 1
        assert "Traceback" not in error
        return lines[0]

    return call
