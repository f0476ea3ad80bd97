"""Seconds and memory of `metavoxel demo`, the whole process.

    python bench/demo.py
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import record


def run_demo(out: Path, *options: str) -> dict[str, object]:
    """Runs the command in a process of its own; its figures."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "metavoxel.cli", "demo", "--out", str(out), *options], check=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_memory_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        record("demo", "200 fresh subjects", run_demo(Path(folder) / "demo"))


if __name__ == "__main__":
    main()
