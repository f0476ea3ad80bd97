"""Work shared out to processes that may die: each has one item at a time, so that a death costs that item only."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import Any

from metavoxel.errors import MetavoxelError

THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)  # fmt: skip
"""One thread a process: processes then do not fight for cores, and sums come out alike in every run."""


class _Worker:
    """A process and our end of the pipe to it; `item`, the position of what it works on."""

    def __init__(self, work: Callable[[Any], None]) -> None:
        context = get_context("spawn")  # a forked process would inherit ITK's and BLAS' locks
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs), daemon=True)
        with _one_thread():
            self.process.start()
        theirs.close()
        self.item: int | None = None

    def give(self, position: int, item: Any) -> None:
        self.item = position
        self.pipe.send(item)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def share_out(work: Callable[[Any], None], items: Sequence[Any], jobs: int) -> Iterator[tuple[int, str | None]]:
    """Call work(item) in `jobs` processes; yields (position, None or the reason of its failure) in the order of ending.

    `work` is a function of a module, or a partial of one. What it raises is the reason; so is the death of its process
    (killed for memory, a crash in C++), after which a new one goes on. Leaving the loop stops the processes.
    """
    left = iter(enumerate(items))
    workers: list[_Worker] = []
    try:
        for position, item in islice(left, jobs):
            workers.append(_Worker(work))
            workers[-1].give(position, item)
        while workers:
            ready = connection.wait([worker.pipe for worker in workers])
            for worker in [w for w in workers if w.pipe in ready]:
                assert worker.item is not None
                position = worker.item
                try:
                    reason = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    reason = _death(worker.process.exitcode)
                following = next(left, None)
                if following is None or not worker.process.is_alive():
                    worker.stop()
                    workers.remove(worker)
                if following is not None:
                    if worker not in workers:
                        worker = _Worker(work)
                        workers.append(worker)
                    worker.give(*following)
                yield position, reason
    finally:
        for worker in workers:
            worker.stop()


def attempt(work: Callable[[Any], None], item: Any) -> str | None:
    """Call work(item); None, or the reason of its failure in one line."""
    try:
        work(item)
    except (MetavoxelError, OSError) as error:
        return str(error).replace("\n", " ")
    except MemoryError:
        return "out of memory; give fewer --jobs, or a larger --spacing"
    except Exception as error:  # a cohort goes on, whatever one scan does; the reason names the error
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return None


def _death(status: int | None) -> str:
    fix = "give fewer --jobs, or look at this scan alone"
    if status == -9:
        return f"its process was killed, probably for want of memory; {fix}"
    return f"its process ended with status {status}; {fix}"


def _serve(work: Callable[[Any], None], pipe: connection.Connection) -> None:
    """The process: items in, reasons out, until the other end is closed or its parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            item = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send(attempt(work, item))
        except KeyboardInterrupt:
            return


def _end_with_parent() -> None:
    """A parent that was killed cannot stop us, and an orphan would write into a folder that another run has locked."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The environment that a process started in this block inherits: libraries read it when they are loaded."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
