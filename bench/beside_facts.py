"""What a scan adds to the facts told beside it, as much of it believed as held-out people bear out, and all of it.

    python bench/beside_facts.py [--work runs/study/diagnosis]

Of the model that `bench/study.py diagnosis` trains, asked about its 500 people; beside the exact answers.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import record

import metavoxel as mv
from metavoxel.data.splits import part_of
from metavoxel.evaluate.accuracy import common, losses
from metavoxel.evaluate.asking import BOTH, OTHERS, SCAN, ask
from metavoxel.evaluate.claims import Claim, claims
from metavoxel.evaluate.figures import EXACT, OURS
from metavoxel.evaluate.scores import compare
from metavoxel.progress import one_bar

Asked = dict[tuple[str, str, str], Claim]


def asked(model: mv.MetaVoxel, cohort: mv.Cohort) -> Asked:
    """By who answered, about what, given what."""
    with tempfile.TemporaryDirectory() as folder, one_bar("asking") as report:
        answers = ask(model, cohort, Path(folder), 0, report)
        return {(claim.who, claim.variable.name, claim.given): claim for claim in claims(answers, None)}


def less(name: str, one: Claim, other: Claim, people: np.ndarray) -> dict[str, float]:
    """Mean loss of one less the other's on the rows of both, under `name`, with its 95 % interval and p."""
    one, other = common(one, other)
    found = compare(_mean, one.truth, losses(one), losses(other), people[one.rows])["loss"]
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_p": found.p}


def _mean(truth: np.ndarray, loss: np.ndarray) -> dict[str, float]:
    return {"loss": float(loss.mean())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("runs/study/diagnosis"))
    options = parser.parse_args()
    model = mv.load(options.work / "model")
    cohort, _ = part_of(mv.read_cohort(options.work / "people"), options.work / "split.tsv", "test", None)
    people = cohort.table["participant_id"].to_numpy()
    shares = model.denoiser.share.tolist()
    told = asked(model, cohort)
    model.denoiser.share.fill_(1.0)
    before = asked(model, cohort)
    figures: dict[str, object] = {}
    for v, share in zip(model.schema.scalars, shares):
        loss = "wrong" if told[OURS, v.name, SCAN].is_class else "error"
        figures[f"{v.name}_share_believed"] = share
        for given in (SCAN, OTHERS, BOTH):
            for who, claim in (("", told[OURS, v.name, given]), ("exact_", told[EXACT, v.name, given])):
                figures[f"{v.name}_{who}{loss}_given_{given.replace(' ', '_')}"] = float(losses(claim).mean())
        both = told[OURS, v.name, BOTH]
        figures[f"{v.name}_{loss}_given_both_all_believed"] = float(losses(before[OURS, v.name, BOTH]).mean())
        figures |= less(f"{v.name}_less_facts_alone", both, told[OURS, v.name, OTHERS], people)
        figures |= less(f"{v.name}_less_all_believed", both, before[OURS, v.name, BOTH], people)
    record("beside_facts", f"{len(cohort)} people asked about, 2,000 trained on", figures)


if __name__ == "__main__":
    main()
