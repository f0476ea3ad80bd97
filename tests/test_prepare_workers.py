"""Processes that die cost one item each, and never outlive the run that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import metavoxel as mv
from metavoxel.errors import MetavoxelError
from metavoxel.prepare.workers import share_out


def half_of_them_die(item: int) -> None:
    if item == 1:
        raise MetavoxelError("one; mend it")
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 3:
        os._exit(7)
    if item == 4:
        raise KeyError("four")


def test_each_death_costs_one_item():
    reasons = dict(share_out(half_of_them_die, range(6), 2))
    assert reasons[0] is None and reasons[5] is None
    assert reasons[1] == "one; mend it" and "killed" in reasons[2] and "status 7" in reasons[3]
    assert reasons[4] == "KeyError: 'four'"
    assert list(share_out(half_of_them_die, [], 2)) == []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_long(item: Path) -> None:
    item.write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {os.environ['ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS']}")
    time.sleep(60)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_children_end_with_a_killed_parent(tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from metavoxel.prepare.workers import share_out; from test_prepare_workers import wait_for_long\n"
        "if __name__ == '__main__': list(share_out(wait_for_long, [Path(sys.argv[2])], 1))\n"
    )
    (tmp_path / "parent.py").write_text(code)
    note = tmp_path / "note"
    paths = os.pathsep.join([str(Path(mv.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, tmp_path / "parent.py", Path(__file__).parent, note]
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 60
    while not (note.exists() and len(note.read_text().split()) == 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    child, *threads = note.read_text().split()
    assert threads == ["1", "1"] and alive(int(child))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while alive(int(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(child))
