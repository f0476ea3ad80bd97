"""Every test starts from the same global seed, on two threads or one, so that tests time alike wherever they run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import metavoxel as mv
from metavoxel.data.phantom import write_cohort

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many operations on small tensors: a second thread only waits, for long on a busy machine."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BIDS folder of 12 phantoms, a tenth of whose facts are hidden."""
    return write_cohort(tmp_path_factory.mktemp("phantoms") / "cohort", 12, seed=5, missing=0.1)


@pytest.fixture(scope="session")
def untrained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder after two steps of training: right in form, worthless in content."""
    folder = tmp_path_factory.mktemp("models") / "model"
    settings = {"steps": 2, "batch": 4, "validate_every": 1}
    mv.train(phantoms, mv.preset("tiny", joint=settings), folder, quiet=True)
    return folder
