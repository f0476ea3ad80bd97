"""How far long work has come, and how long it will go on: bars on standard error, so that results can be piped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(quiet: bool) -> Progress:
    """Done, elapsed and left, with a note."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("{task.fields[note]}"), disable=quiet, console=Console(stderr=True),
    )  # fmt: skip


@contextmanager
def one_bar(label: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yields report(done, total). Nothing is shown before the first report: a refusal stands alone."""
    bars = progress_bar(quiet)
    task = bars.add_task(label, total=None, note="")

    def report(done: int, total: int) -> None:
        bars.update(task, completed=min(done, total), total=total)
        bars.start()

    try:
        yield report
    finally:
        if bars.live.is_started:  # rich ends a bar by a line, and one that never began, too
            bars.stop()


def say(line: str) -> None:
    """A line for the person, beside the results."""
    Console(stderr=True).print(line, highlight=False, soft_wrap=True, markup=False)
