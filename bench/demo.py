"""Seconds and memory of `metavoxel demo` and `metavoxel demo --train`, whole processes.

    python bench/demo.py [--train]
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import record


def main() -> None:
    train = "--train" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "metavoxel.cli", "demo", "--out", str(Path(folder) / "demo")]
        subprocess.run(command + ["--train"] * train, check=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    record("demo_train" if train else "demo", "200 fresh subjects", {"seconds": seconds, "peak_memory_mb": peak})


if __name__ == "__main__":
    main()
