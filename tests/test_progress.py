import pytest

from metavoxel import progress


def lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What was said on standard error, which no terminal shows here."""
    return capfd.readouterr().err.splitlines()


def test_a_file_is_told_how_far_long_work_has_come(capfd, monkeypatch):
    """A cluster's log would hold nothing until the work is done."""
    clock = iter(range(1000))
    monkeypatch.setattr(progress, "monotonic", lambda: 10.0 * next(clock))
    with progress.one_bar("asking") as report:
        for done in range(1, 41):
            report(done, 40)
    said = lines(capfd)
    assert len(said) > 3 and "left" in said[0]
    assert all("asking" in line and "/40" in line for line in said) and "40/40" in said[-1]


def test_short_work_says_only_that_it_is_done(capfd):
    with progress.one_bar("asking") as report:
        for done in range(1, 41):
            report(done, 40)
    assert len(lines(capfd)) == 1


def test_nothing_is_said_where_nothing_was_done_or_all_should_be_quiet(capfd, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0)
    with progress.one_bar("asking"):
        pass
    with progress.one_bar("asking", quiet=True) as report:
        report(1, 2)
    assert lines(capfd) == []


def test_the_time_left_is_told_of_slow_steps():
    bars = progress.Bars(quiet=False)
    clock = iter(range(100))
    bars.get_time = lambda: 60.0 * next(clock)
    task = bars.add_task("training", total=10, note="")
    for done in range(4):
        bars.update(task, completed=done)
    assert bars.tasks[0].time_remaining is not None
