"""Every test starts from the same global seed, on two threads or one, so that tests time alike wherever they run."""

from collections.abc import Iterator

import pytest
import torch

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
