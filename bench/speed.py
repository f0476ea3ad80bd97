"""Network evaluations and seconds for each kind of question, for 1, 8 and 64 scans, with files read and answers made as a
user has them; and what 256 joint draws cost beside one pass of the trunk.

    python bench/speed.py            # the packaged model (the size of `tiny`), then `small`
    python bench/speed.py tiny       # the packaged model only
    python bench/speed.py paper      # one question by one evaluation and by the paper's 150, in turn

`small` and the paper's network are not trained here beyond one step: their seconds are those of trained ones, their answers
mean nothing.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import clock, record

import metavoxel as mv
from metavoxel.data.cohort import Cohort
from metavoxel.data.phantom import write_cohort
from metavoxel.data.volume import Volume, read_volume, write_volume
from metavoxel.diffusion import encode_once
from metavoxel.evaluate.sizes import sizes
from metavoxel.inpaint import inpaint
from metavoxel.methods import draw_facts
from metavoxel.question import Given

SEED = 77_005
MANY = (1, 8, 64)
DRAWS = 256
REPEATS, QUICK = 5, 10

Ask = Callable[[mv.MetaVoxel, Path, int], object]


def read(model: mv.MetaVoxel, folder: Path, n: int) -> object:
    return read_people(model, mv.read_cohort(folder).subset(range(n)))


def read_people(model: mv.MetaVoxel, people: Cohort) -> object:
    return model.predict(people, ["age", "sex"], compare=False)


def read_and_compare(model: mv.MetaVoxel, folder: Path, n: int) -> object:
    return model.predict(mv.read_cohort(folder).subset(range(n)), ["age", "sex"])


def read_as_the_paper_does(model: mv.MetaVoxel, folder: Path, n: int) -> object:
    return read_people_as_the_paper_does(model, mv.read_cohort(folder).subset(range(n)))


def read_people_as_the_paper_does(model: mv.MetaVoxel, people: Cohort) -> object:
    name = model.first_image().name
    return [model.sample({name: scan}, ["age", "sex"], 3, steps=50, method="replacement") for scan in people.scans[name]]


def draw_scans(model: mv.MetaVoxel, folder: Path, n: int) -> object:
    return model.sample({"age": 60.0, "sex": "F"}, [model.first_image().name], n)


def fill_half(model: mv.MetaVoxel, folder: Path, n: int) -> object:
    return inpaint(model, first_scan(folder, model.first_image()), folder / "half.nii.gz", n)


def first_scan(bids: Path, image: mv.Image) -> Path:
    scan = mv.read_cohort(bids).scans[image.name][0]
    assert scan is not None
    return scan


QUESTIONS: dict[str, tuple[Ask, tuple[int, ...]]] = {
    "age and sex of scans, with intervals": (read, MANY),
    "the same with surprise": (read_and_compare, MANY),
    "age and sex the paper's way": (read_as_the_paper_does, MANY[:2]),
    "scans of an age and sex": (draw_scans, MANY),
    "completions of half a scan": (fill_half, MANY),
}
SLOW = {"age and sex the paper's way", "scans of an age and sex", "completions of half a scan"}
"""Asked of `small` for one scan only: on two cores each of its images takes minutes."""


def cohort(folder: Path, image: mv.Image, n: int) -> Path:
    bids = write_cohort(folder, n, seed=SEED, shape=image.shape, spacing=image.spacing[0])  # type: ignore[arg-type]
    first = read_volume(first_scan(bids, image))
    half = np.zeros(first.shape, np.float32)
    half[: first.shape[0] // 2] = 1
    write_volume(Volume(half, first.affine), bids / "half.nii.gz")
    return bids


def evaluations(model: mv.MetaVoxel, ask: Callable[[], object]) -> dict[str, int]:
    """How often each part of the network is run."""
    counts = {"trunk": 0, "tokens": 0, "decoder": 0}

    def count(part: str) -> Callable[..., None]:
        def add(*_: object) -> None:
            counts[part] += 1

        return add

    net = model.denoiser.net
    parts = {"trunk": net.encoder, "tokens": net.tokens, "decoder": net.decoder}
    hooks = [module.register_forward_hook(count(part)) for part, module in parts.items()]
    ask()
    for hook in hooks:
        hook.remove()
    return counts


def questions(label: str, model: mv.MetaVoxel, folder: Path, slow: tuple[int, ...]) -> dict[str, object]:
    figures: dict[str, object] = {}
    for name, (ask, counts) in QUESTIONS.items():
        for part, count in evaluations(model, lambda ask=ask: ask(model, folder, 1)).items():
            figures[f"{label}: {name}, {part} passes"] = count
        for n in (size for size in counts if name not in SLOW or size in slow):
            with clock(figures, f"{label}: {name}, seconds for {n}"):
                ask(model, folder, n)
    return figures


@torch.no_grad()
def draws_beside_the_trunk(label: str, model: mv.MetaVoxel) -> dict[str, object]:
    """Medians over REPEATS, one after the other in turn."""
    image = model.first_image()
    known = {image.name: Given(torch.randn(1, *image.entry_shape))}
    encoding, drawing = [], []
    for _ in range(REPEATS + 1):  # the first warms up
        start = time.perf_counter()
        reader = encode_once(model.denoiser, model.schema, known)
        between = time.perf_counter()
        draw_facts(reader, model.schema, known, ["age", "sex"], DRAWS)
        encoding.append(between - start)
        drawing.append(time.perf_counter() - between)
    trunk, draws = (float(np.median(times[1:])) for times in (encoding, drawing))
    return {
        f"{label}: one trunk pass, milliseconds": 1e3 * trunk, f"{label}: {DRAWS} joint draws, milliseconds": 1e3 * draws,
        f"{label}: {DRAWS} joint draws, in trunk passes": draws / trunk,
    }  # fmt: skip


def beside_the_paper(model: mv.MetaVoxel, papers: mv.MetaVoxel, folder: Path, n: int) -> dict[str, object]:
    """Age and sex of n scans, read from files, by one evaluation, by the paper's 150 of the same network and by 150 of the
    paper's own: medians over REPEATS in turn, of what is soon over of QUICK in a row."""
    people = mv.read_cohort(folder).subset(range(n))
    asked = {
        "1_evaluation": (read_people, model, QUICK), "150": (read_people_as_the_paper_does, model, 1),
        "150_of_the_papers_network": (read_people_as_the_paper_does, papers, 1),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {how: [] for how in asked}
    for _ in range(REPEATS + 1):  # the first warms up
        for how, (ask, asks, times) in asked.items():
            start = time.perf_counter()
            for _ in range(times):
                ask(asks, people)
            seconds[how].append((time.perf_counter() - start) / times)
    medians = {how: float(np.median(times[1:])) for how, times in seconds.items()}
    found: dict[str, object] = {f"milliseconds_in_{how}_{n}_scans": 1e3 * median for how, median in medians.items()}
    ratio = {how: median / medians["1_evaluation"] for how, median in medians.items()}
    return found | {
        f"times_as_fast_{n}_scans": ratio["150"],
        f"times_as_fast_as_the_papers_network_{n}_scans": ratio["150_of_the_papers_network"],
    }


def small(folder: Path) -> mv.MetaVoxel:
    """The preset after one step of each stage."""
    config = mv.preset("small", encoding={"steps": 1, "batch": 2}, joint={"steps": 1, "batch": 2}, validation=0.25)
    return hardly_trained(config, folder / "small")


def papers_own(folder: Path) -> mv.MetaVoxel:
    """The paper's network as a baseline of `tiny`."""
    config = sizes("tiny", None).paper
    encoding, joint = (replace(stage, steps=1, batch=2) for stage in (config.encoding, config.joint))
    return hardly_trained(replace(config, encoding=encoding, joint=joint, validation=0.25), folder / "papers")


def hardly_trained(config: mv.Config, folder: Path) -> mv.MetaVoxel:
    bids = folder / "few"
    write_cohort(bids, 8, seed=SEED, shape=config.shape, spacing=config.spacing[0])  # type: ignore[arg-type]
    return mv.train(bids, config, folder / "model")


def main() -> None:
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        packaged = mv.load("phantom")
        folder = cohort(Path(scratch) / "tiny", packaged.first_image(), max(MANY))
        if "paper" in sys.argv[1:]:
            papers = papers_own(Path(scratch))
            for n in MANY[:2]:
                figures |= beside_the_paper(packaged, papers, folder, n)
            where = "_gpu" if torch.cuda.is_available() else "_one_thread" if torch.get_num_threads() == 1 else ""
            record(f"speed_beside_the_paper{where}", "1 and 8 phantoms, read from files", figures)
            return
        figures |= questions("tiny", packaged, folder, MANY) | draws_beside_the_trunk("tiny", packaged)
        if "tiny" not in sys.argv[1:]:
            model = small(Path(scratch))
            folder = cohort(Path(scratch) / "cohort", model.first_image(), max(MANY))
            figures |= questions("small", model, folder, MANY[:1]) | draws_beside_the_trunk("small", model)
    record("speed", "1, 8 and 64 phantoms, read from files", figures)


if __name__ == "__main__":
    main()
