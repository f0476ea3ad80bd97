"""A model card (Mitchell et al. 2019): who the model was trained on, what it is for, where it ends, its figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metavoxel.checkpoint import write_json
from metavoxel.evaluate.claims import Claim, main_claims
from metavoxel.evaluate.figures import Findings
from metavoxel.files import atomic_write
from metavoxel.model import MetaVoxel
from metavoxel.schema import Image

INTENDED = (
    "Research on groups: what follows from a scan or from facts in a population like the one it was trained on, with the "
    "uncertainty that is left. Not for decisions about one person, and not a medical device."
)
LIMITS = (
    "Answers hold for people like those in training.",
    "What is missing is taken to be missing at random.",
)
LIMITS_OF_SCANS = (
    "Scans must be prepared as the training scans were; a high surprise says that one was not.",
    "A drawn scan is a sample of the model's law, not a measurement of anybody.",
)


def card(
    models: Sequence[MetaVoxel], findings: Findings, claims: list[Claim], licence: str | None
) -> dict[str, Any]:
    """models: the one that was judged, or one for each fold. licence: of the training data, as its holder says; None: said
    to be unknown."""
    main, trained = main_claims(claims), [_training(model) for model in models]
    shown = [figure for figure in findings.figures if figure.section in ("accuracy", "calibration")
             and figure.who == "model" and figure.given == main[0].given]  # fmt: skip
    return {
        "model": findings.about["model"],
        "variables": [_variable(v) for v in models[0].schema],
        "training": {**(trained[0] if len(models) == 1 else {"folds": trained}),
                     "licence": licence or "not stated; ask whoever trained the model before passing it on"},
        "evaluation": findings.about["cohort"],
        "intended_use": INTENDED,
        "limits": [*LIMITS, *(LIMITS_OF_SCANS if models[0].schema.images else ())],
        "not_evaluated": findings.left_out,
        "figures": {f"{f.variable}: {f.metric} given {f.given}": f.value for f in shown},
    }  # fmt: skip


def _training(model: MetaVoxel) -> dict[str, Any]:
    """Who the model was trained on. Models of before say nothing of their cohort."""
    summary: dict[str, Any] = model.summary
    return {"cohort": summary.get("cohort", "not recorded"), "people": summary["people"], "rows": summary["rows"],
            "demographics": summary["columns"]}  # fmt: skip


def save_card(folder: Path, content: dict[str, Any]) -> None:
    """model_card.md and model_card.json in the folder."""
    write_json(folder / "model_card.json", content)
    training = content["training"]
    lines = [f"# Model card: {content['model']['name']}", "", "## Variables", ""]
    lines += [f"- {words}" for words in content["variables"]]
    folds = training.get("folds")
    lines += ["", "## Trained on", ""]
    if folds:
        lines += [f"{len(folds)} models, each without the people of a fold, about whom it was then asked.", ""]
    for number, part in enumerate(folds or [training], start=1):
        lines += [f"{f'Fold {number}: ' if folds else ''}{part['people']} people, {part['rows']} rows; cohort: "
                  f"{_cohort(part['cohort'])}.", ""]  # fmt: skip
        lines += [*(f"- {name}: {_demographic(seen)}" for name, seen in part["demographics"].items()), ""]
    lines += [f"Licence: {training['licence']}."]
    lines += ["", "## Intended use", "", content["intended_use"], "", "## Limits", ""]
    lines += [f"- {limit}" for limit in content["limits"]]
    if content["not_evaluated"]:
        lines += ["", "## Not evaluated", "", *(f"- {sentence}" for sentence in content["not_evaluated"])]
    cohort = content["evaluation"]
    lines += ["", f"## Figures, on {cohort['people']} people of {cohort['name']}", "", "| figure | value |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value:.3g} |" for name, value in content["figures"].items() if value == value]
    with atomic_write(folder / "model_card.md") as file:
        file.write("\n".join(lines) + "\n")


def _cohort(known: dict[str, str] | str) -> str:
    return known if isinstance(known, str) else f"{known['name']}, fingerprint {known['fingerprint']}"


def _variable(v: object) -> str:
    name, kind = v.name, v.kind  # type: ignore[attr-defined]
    if isinstance(v, Image):
        return f"{name}: scan, {' x '.join(map(str, v.shape))} voxels of {' x '.join(f'{mm:g}' for mm in v.spacing)} mm"
    more = getattr(v, "unit", "") or ", ".join(getattr(v, "levels", ()))
    return f"{name}: {kind}{f' ({more})' if more else ''}"


def _demographic(seen: dict[str, Any]) -> str:
    if "mean" in seen:
        return f"{seen['mean']:.4g} ± {seen['sd']:.3g}, {seen['min']:.4g} to {seen['max']:.4g} ({seen['known']} known)"
    if "counts" in seen:
        return ", ".join(f"{level} {count}" for level, count in seen["counts"].items())
    return f"{seen['known']} scans"
