"""Makes the packaged model of a finished run's last averaged weights, in float16.

    python bench/package.py MODEL [BEFORE]

BEFORE: the model that the run started from; the network is then the mean of both, which kept what each of them had learnt
better (Wortsman et al. 2022: robust fine-tuning). The images' law is the run's.

The last and not the best by held-out people: a run that goes on from another under a new seed holds out people whom the
first run trained on. For the same reason `bench/heads.py` comes next, which takes what held-out people say from fresh ones.
"""

import json
import sys
from pathlib import Path

from torch import Tensor

import metavoxel as mv
from metavoxel.checkpoint import read_tensors
from metavoxel.model import PACKAGED


def averaged(run: Path) -> dict[str, Tensor]:
    """The last averaged weights of a run's joint stage, which nobody held out has judged."""
    tensors, _ = read_tensors(run / "training" / "joint.safetensors")
    return {name.removeprefix("average/"): x for name, x in tensors.items() if name.startswith("average/")}


def main() -> None:
    run = Path(sys.argv[1])
    model, mine = mv.load(run), averaged(run)
    if len(sys.argv) > 2:
        before = mv.load(sys.argv[2]).denoiser.net.state_dict()
        mine |= {f"net.{name}": (mine[f"net.{name}"] + x) / 2 for name, x in before.items()}
    model.denoiser.load_state_dict(mine)
    last = json.loads((run / "training" / "metrics.jsonl").read_text().splitlines()[-1])
    judged = {name.removeprefix("validation_"): x for name, x in last.items() if name.startswith("validation_")}
    model.summary["validation"] = {**judged, "step": last["step"]}
    model.save(PACKAGED / "phantom", half=True)


if __name__ == "__main__":
    main()
