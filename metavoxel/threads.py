"""How many threads libraries may use.

ITK and torch get one where a scan must come out alike wherever it is prepared: their sums depend on how many share the
work. NumPy's BLAS gets one where scans are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any


@contextmanager
def one_itk_thread() -> Iterator[None]:
    """In the block, or the function that this decorates, ITK works on one thread."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """The same for torch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """In the block, NumPy's matrix products run on one thread, those of all Python threads.

    BLAS's own threads wait by spinning, and take the cores from torch's for a while after the last product: a scan that was
    read by two of them was answered in 43 ms instead of 22. Blocks of several Python threads may overlap.
    """
    global _inside, _limit
    with _lock:
        if not _inside:
            _limit = _libraries().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _limit.restore_original_limits()


_lock, _inside = Lock(), 0
_limit: Any = None


@cache
def _libraries() -> Any:
    """Found once: it takes some milliseconds."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()
