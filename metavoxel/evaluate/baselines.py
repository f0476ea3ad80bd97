"""The models that a joint model is held against, trained on the same people and asked about the same others.

Each writes OUT/NAME/predictions.csv, its answers from the scan, and further tables where it was told facts.
OUT/baselines.json says what was trained, for how long, on how many people, and what every table was told.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from metavoxel.build import train
from metavoxel.checkpoint import read_json, write_json
from metavoxel.config import Config, to_dict
from metavoxel.data.cohort import Cohort
from metavoxel.data.splits import draw_split, part_of
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.anatomy import cohort_volumes
from metavoxel.evaluate.asking import BOTH, OTHERS, SCAN
from metavoxel.evaluate.claims import PREDICTIONS
from metavoxel.evaluate.classical import Volumes, linear, trees
from metavoxel.evaluate.dedicated import ask, train_dedicated
from metavoxel.evaluate.replacement import PAPER_DRAWS
from metavoxel.evaluate.sizes import Sizes, sizes
from metavoxel.evaluate.study import Study, make_study
from metavoxel.evaluate.variants import as_numbers, by_draws, images_alone
from metavoxel.files import DIGITS, atomic_write, make_folder, only_one
from metavoxel.model import MetaVoxel
from metavoxel.progress import one_bar, say

RECORD = "baselines.json"


@dataclass(frozen=True)
class Trained:
    """What a baseline answers for the test part, by what it was told; and what was trained."""

    answers: dict[str, dict[str, np.ndarray]]
    about: dict[str, object]
    lacking: str = "no scan, so no answer"


@dataclass(frozen=True)
class Setting:
    """What every baseline is made from."""

    study: Study
    sizes: Sizes
    cache: Path
    volumes: Volumes | None = None
    most: int | None = None
    device: str | None = None
    resume: bool = False
    quiet: bool = True

    @property
    def told(self) -> list[str]:
        """The questions to one that reads scans and facts."""
        return [SCAN, BOTH] if len(self.study.schema.scalars) > 1 else [SCAN]


def run_baselines(
    cohort: Cohort,
    out: str | Path,
    preset: str | Sizes = "tiny",
    *,
    config: str | Path | None = None,
    split: str | Path | None = None,
    fold: int | None = None,
    only: Sequence[str] | None = None,
    want: Sequence[str] | None = None,
    volumes: Volumes | None = None,
    most: int | None = None,
    resume: bool = False,
    cache: str | Path | None = None,
    device: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, str]:
    """Trains the baselines (`only` those named; by default all, of a table OF_TABLES) and writes their answers into the
    folder `out`. Returns the names of those that failed, with the reason: one that fails does not stop the others.

    split, fold: as for `train`, and its other part is answered; without a split one is drawn and kept as out/split.tsv.
    config: a file of settings laid over those of the preset named, which the joint model was trained with.
    want: default age and sex. volumes: measures a cohort's anatomy, for trees; default: `cohort_volumes` of its first 3-D
    image. most: of how many test people those are asked whose every answer takes 150 evaluations (paper, continuous-sex);
    default: all. resume: go on with a stopped run of the same people and preset; what is finished is kept. Raises
    MetavoxelError where the study itself makes no sense.
    """
    if unknown := [name for name in only or () if name not in BASELINES]:
        raise MetavoxelError(f"unknown baseline {unknown[0]!r}; choose from {', '.join(BASELINES)}")
    folder = Path(out).expanduser()
    if (folder / RECORD).exists() and not resume:
        raise MetavoxelError(f"{folder}: holds baselines already; add --resume to go on, or choose another folder")
    if config is not None and not isinstance(preset, str):
        raise MetavoxelError("config is laid over a preset by name; own sizes have their config in `joint`")
    chosen = sizes(preset, None if config is None else Path(config)) if isinstance(preset, str) else preset
    if split is None and fold is None:
        split = make_folder(folder) / "split.tsv"
        if not split.exists():
            draw_split(cohort, seed=seed).save(split)
    train_part, taken = part_of(cohort, split, "train", fold)
    test_part, _ = part_of(cohort, split, "test", fold)
    with nullcontext(cache) if cache else tempfile.TemporaryDirectory(dir=make_folder(folder), prefix="cache-") as scratch:
        study = make_study(train_part, test_part, chosen.joint, Path(scratch), want, seed, quiet)
        names = list(only or (BASELINES if study.schema.images else OF_TABLES))
        image = next((image for image in study.schema.images if len(image.shape) == 3), None)
        if volumes is None and image is not None:
            volumes = partial(cohort_volumes, image=image)
        setting = Setting(study, chosen, Path(scratch), volumes, most, device, resume, quiet)
        named = preset if isinstance(preset, str) else "own sizes"
        record = _record(folder, cohort, study, taken, named, None if config is None else to_dict(chosen.joint))
        if not quiet:
            people = f"{len(train_part.participants)} people train, {len(test_part.participants)} are asked about"
            say(f"{people}: {', '.join(study.want)}; baselines: {', '.join(names)}")
        return _run(names, setting, folder, record)


def _run(names: Sequence[str], setting: Setting, folder: Path, record: dict) -> dict[str, str]:
    failed: dict[str, str] = {}
    for name in names:
        if name in _latest(folder, record)["baselines"]:
            continue
        start, before = time.monotonic(), (folder / name).exists()
        done: dict[str, object] = {}
        try:
            with only_one(make_folder(folder / name), f"making {folder / name}"):
                trained = BASELINES[name](setting, folder / name)
                files = _write(trained, setting.study, folder / name)
        except Exception as error:  # the others go on, whatever one does; the reason names the error
            if os.environ.get("METAVOXEL_DEBUG"):
                raise
            failed[name] = str(error) if isinstance(error, MetavoxelError) else f"{type(error).__name__}: {error}"
        else:
            part = setting.study.train
            done[name] = {
                "predictions": files, "seconds": round(time.monotonic() - start, 1), "resumed": before,
                "training_rows": len(part), "training_people": len(part.cohort.participants), **trained.about,
            }  # fmt: skip
        record = _latest(folder, record)
        finished = {**record["baselines"], **done}
        reasons = {key: reason for key, reason in {**record["failed"], **failed}.items() if key not in finished}
        write_json(folder / RECORD, {**record, "baselines": finished, "failed": reasons})
        if not setting.quiet:
            say(f"{name}: {failed[name].splitlines()[0] if name in failed else 'done'}")
    return failed


def _latest(folder: Path, record: dict) -> dict:
    """The record as it lies there: another process may have made another baseline into the same folder since."""
    return read_json(folder / RECORD) if (folder / RECORD).exists() else record


def _record(
    folder: Path, cohort: Cohort, study: Study, taken: dict[str, object], preset: str, config: dict[str, object] | None
) -> dict:
    """What is known of earlier runs into this folder, which must be of the same study."""
    about = {
        "cohort": cohort.fingerprint(), **taken, "preset": preset, "config": config,
        "want": list(study.want), "seed": study.seed,
        "training_people": len(study.train.cohort.participants), "test_people": len(study.test.cohort.participants),
        "test_rows": len(study.test),
    }  # fmt: skip
    if not (folder / RECORD).exists():
        return {"study": about, "baselines": {}, "failed": {}}
    record = read_json(folder / RECORD)
    if changed := [key for key in about if record["study"].get(key) != about[key]]:
        raise MetavoxelError(f"{folder / RECORD}: was made with another {changed[0]}; use the same one, or another folder")
    return record


def _write(trained: Trained, study: Study, folder: Path) -> dict[str, str]:
    """File -> what its answers were told."""
    files: dict[str, str] = {}
    for told, answers in trained.answers.items():
        name = PREDICTIONS[told]
        with atomic_write(folder / name) as file:
            study.test.table(answers, trained.lacking).to_csv(file, index=False, float_format=DIGITS)
        files[name] = told
    return files


def _dedicated(kind: str) -> Callable[[Setting, Path], Trained]:
    def make(s: Setting, folder: Path) -> Trained:
        networks = train_dedicated(s.study, kind, getattr(s.sizes, kind), s.sizes.dedicated, folder, s.sizes.apart,
                                   resume=s.resume, device=s.device, quiet=s.quiet)  # fmt: skip
        settings = s.sizes.dedicated
        about: dict[str, object] = {
            "networks": len(networks), "parameters": sum(p.numel() for network in networks for p in network.parameters()),
            "steps": settings.steps * len(networks), "batch": settings.batch,
        }  # fmt: skip
        return Trained({told: ask(networks, s.study, told == BOTH) for told in s.told}, about)

    return make


def _linear(s: Setting, folder: Path) -> Trained:
    return Trained({told: linear(s.study, told == BOTH) for told in s.told}, {})


def _trees(s: Setting, folder: Path) -> Trained:
    if s.volumes is None:
        return Trained({OTHERS: trees(s.study, True)}, {"volumes": False})
    answers = {SCAN: trees(s.study, False, s.volumes)}
    if BOTH in s.told:
        answers |= {BOTH: trees(s.study, True, s.volumes), OTHERS: trees(s.study, True)}
    return Trained(answers, {"volumes": True})


def _image_only(s: Setting, folder: Path) -> Trained:
    config = s.sizes.joint
    with_images = replace(config.joint, steps=max(1, config.joint.steps - config.reading))
    _, about = _joint(s, folder, images_alone(s.study.train.cohort), replace(config, joint=with_images))
    return Trained({}, about)


def _paper(s: Setting, folder: Path) -> Trained:
    return _asked_by_draws(s, *_joint(s, folder, s.study.train.cohort, s.sizes.paper))


def _continuous_sex(s: Setting, folder: Path) -> Trained:
    return _asked_by_draws(s, *_joint(s, folder, as_numbers(s.study.train.cohort), s.sizes.paper))


def _joint(s: Setting, folder: Path, cohort: Cohort, config: Config) -> tuple[MetaVoxel, dict[str, object]]:
    model = train(cohort, config, folder / "model", resume=s.resume, cache=s.cache, device=s.device, quiet=s.quiet)
    return model, {"model": "model", "parameters": model.describe()["parameters"], "steps": config.joint.steps,
                   "batch": config.joint.batch}  # fmt: skip


def _asked_by_draws(s: Setting, model: MetaVoxel, about: dict[str, object]) -> Trained:
    """One question for all that is wanted from the scan, and one for each from the scan and the others."""
    answers: dict[str, dict[str, np.ndarray]] = {told: {} for told in s.told}
    for told in s.told:
        for want in [list(s.study.want)] if told == SCAN else [[name] for name in s.study.want]:
            given = s.study.others(want[0]) if told == BOTH else []
            with one_bar(f"{', '.join(want)} from {told}", s.quiet) as report:
                answers[told] |= by_draws(model, s.study.test, want, given, s.study.seed, report, s.most)
    return Trained(answers, {**about, "draws": PAPER_DRAWS, "most": s.most}, "no scan, or not asked, so no answer")


BASELINES: dict[str, Callable[[Setting, Path], Trained]] = {
    "densenet": _dedicated("densenet"), "vit": _dedicated("vit"), "linear": _linear, "trees": _trees,
    "image-only": _image_only, "continuous-sex": _continuous_sex, "paper": _paper,
}  # fmt: skip
OF_TABLES = ("trees",)
"""Those that need no scan."""
