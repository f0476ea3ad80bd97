"""How far long work has come, and how long it will go on: bars on standard error, so that results can be piped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich import progress as rich
from rich.console import Console

EVERY = 60
"""Seconds between lines, where there is no terminal to draw bars on."""

LOOKED_BACK = 600
"""Seconds of which the time left is told; by rich's 30 there is none where one step takes longer."""


class Bars(rich.Progress):
    """Done, elapsed and left, with a note. In a file, such as a cluster's log, bars show only as they end: there, a line a
    minute."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(
            rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(), rich.TimeElapsedColumn(),
            rich.TextColumn("left"), rich.TimeRemainingColumn(), rich.TextColumn("{task.fields[note]}"),
            disable=quiet, console=Console(stderr=True), speed_estimate_period=LOOKED_BACK,
        )  # fmt: skip
        self._said = monotonic()

    def update(self, task_id: rich.TaskID, **changes: Any) -> None:
        """As rich's; says where the task is if that is due."""
        super().update(task_id, **changes)
        if self.disable or self.console.is_terminal or monotonic() - self._said < EVERY:
            return
        self._said = monotonic()
        self.console.print(self.make_tasks_table([task for task in self.tasks if task.id == task_id]))


@contextmanager
def one_bar(label: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yields report(done, total). Nothing is shown before the first report: a refusal stands alone."""
    bars = Bars(quiet)
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
