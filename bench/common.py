"""Results as JSON beside the benchmarks, and as one table in docs/benchmarks.md."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import metavoxel as mv

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[1].parent / "shared" / "data"
IMAGES = Path(__file__).parents[1] / "docs" / "images"


def record(name: str, size: str, figures: dict[str, object]) -> None:
    """Writes results/NAME.json with the command, the machine and the size, and prints the figures."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    content = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{device}, {platform.machine()}, torch {torch.__version__}, metavoxel {mv.__version__}",
        "size": size,
        "figures": {key: round(x, 4) if isinstance(x, float) else x for key, x in figures.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(content, indent=2))


def asked(n: int) -> tuple[mv.MetaVoxel, int]:
    """The model and the number of people that the command line says: --model, default the packaged one; -n, default n."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="phantom")
    parser.add_argument("-n", type=int, default=n)
    options = parser.parse_args()
    return mv.load(options.model), options.n


@contextmanager
def clock(figures: dict[str, object], key: str) -> Iterator[None]:
    """Seconds of the block, under `key`."""
    start = time.perf_counter()
    yield
    figures[key] = time.perf_counter() - start
