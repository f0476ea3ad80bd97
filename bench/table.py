"""docs/benchmarks.md from the JSON in results/, and the README's table of results from the reports' metrics.json.

    python bench/table.py
"""

import json
from pathlib import Path

from metavoxel.evaluate.accuracy import best_of, shown_value
from metavoxel.evaluate.figures import CONSTANT, EXACT, Findings

HERE = Path(__file__).parent
README, BENCHMARKS = HERE.parent / "README.md", HERE.parent / "docs" / "benchmarks.md"
REPORTS = {
    "packaged": "500 fresh phantoms, the packaged model",
    "diagnosis": "500 phantoms with a diagnosis, `tiny` trained on 2,000 others",
    "real": "122 real brains of two sites, 5 folds, from the packaged model on",
    "sites": "the same, each site never seen in training",
}
START, END = "<!-- from docs/reports, by bench/table.py -->", "<!-- until here -->"
TITLES = {
    "phantom_packaged": "Phantom: the packaged model",
    "phantom_tiny": "Phantom: preset `tiny`, trained from scratch",
    "phantom_paper_recipe": "Phantom: the paper's recipe (shared times, replacement, 3 x 50 steps), same scans and budget",
    "demo": "Demo",
    "demo_train": "Demo that trains `tiny` first",
    "digits": "scikit-learn's digits",
    "tabular": "Tables only: breast cancer with gaps",
    "real_brains": "Real brains, as they came",
    "real_brains_prepared": "Real brains, prepared",
    "real_brains_prepared_further": "Real brains, prepared, from the packaged model on",
    "strip": "Preparation: the built-in brain extraction",
    "prepare_accuracy": "Preparation: heads that lie askew",
    "prepare_speed_2mm": "Preparation: cost at 2 mm",
    "prepare_speed_1mm": "Preparation: cost at 1 mm",
    "joint_tables": "Joint draws of whole tables",
    "index": "Preparation: ten thousand people planned",
    "changes": "Inpainting and counterfactuals on phantoms",
    "calibration": "Calibration of the packaged model",
    "calibration_4000": "The same on 4,000 people, where chance alone leaves half the error",
    "surprise": "Scans unlike the training scans",
    "images": "Scans drawn by the packaged model",
    "law": "Clean scans by the law of images, and by the packaged network on it",
    "anatomy": "Volumes of tissues against the phantoms' truth and against DLMUSE's labels",
    "speed": "Network evaluations and seconds for each kind of question",
    "copies": "A model that has learnt its training people by heart, and one that has not",
    "study_packaged": "The report of 500 people",
    "speed_beside_the_paper": "Age and sex of a scan: one evaluation beside the paper's 150 on the same network",
    "speed_beside_the_paper_one_thread": "The same by one thread",
    "beside_facts": "A scan beside the facts, for a model of 2,000 phantoms with a diagnosis",
    "dedicated": "A dedicated DenseNet, on the scans and for the seconds of `tiny`",
}
BARS = {
    ("phantom_packaged", "age_mae_ratio"): "at most 1.05",
    ("phantom_packaged", "sex_accuracy"): "within .02 of exact",
    ("phantom_packaged", "age_90_interval_coverage"): ".86 to .94",
    ("phantom_tiny", "age_mae_ratio"): "at most 1.25",
    ("phantom_tiny", "sex_accuracy"): "within .02 of exact",
    ("digits", "label_from_image_accuracy"): "at least .96",
    ("digits", "drawn_images_recognised"): "at least .95",
    ("digits", "training_seconds"): "at most 180",
    ("tabular", "auc_metavoxel"): "within .01 of the boosted trees",
    ("images", "ventricles_slope_ratio_20_evaluations"): "within .1 of 1",
    ("images", "ventricles_spread_ratio_20_evaluations"): "within .1 of 1",
    ("changes", "hole_voxels_between_extremes"): "the expected share",
    ("demo", "seconds"): "at most 90",
    ("demo_train", "seconds"): "at most 720",
    ("demo", "peak_memory_mb"): "under 3000",
    ("calibration", "age_given_scan_rank_p"): "above .01",
    ("calibration", "age_given_nothing_rank_p"): "above .01",
    ("calibration", "age_given_sex_rank_p"): "above .01",
    ("calibration", "sex_given_scan_ece"): "at most .03",
    ("calibration", "age_given_scan_crps"): "at most 1.05 times exact",
    ("strip", "cpu_seconds_a_scan"): "at most 10",
    ("strip", "weights_mb"): "at most 5",
    ("prepare_accuracy", "share_within_1.5_mm"): "at least .98",
    ("prepare_speed_2mm", "cpu_seconds_a_scan_1_jobs"): "at most 30",
    ("prepare_speed_1mm", "cpu_seconds_a_scan_1_jobs"): "at most 90",
    ("prepare_speed_2mm", "peak_memory_mb_a_process_1_jobs"): "under 1500",
    ("prepare_speed_1mm", "peak_memory_mb_a_process_1_jobs"): "under 1500",
    ("index", "index_seconds"): "under 10",
    ("prepare_speed_2mm", "speed_up_of_2_jobs"): "at least 1.7",
    ("prepare_speed_1mm", "speed_up_of_2_jobs"): "at least 1.7",
    ("anatomy", "cpu_seconds_a_scan_phantoms_5mm"): "at most .1",
    ("study_packaged", "evaluate_seconds"): "at most 600",
    ("speed", "small: 256 joint draws, in trunk passes"): "at most 3",
}
BARS |= {(f"speed_beside_the_paper{threads}", f"times_as_fast_{scans}_scans"): "at least 50"
         for threads in ("", "_one_thread") for scans in (1, 8)}  # fmt: skip
BARS |= {("strip", f"dice_{how}"): "at least .96" for how in ("as_it_is", "inverted", "thick", "tilted")}
BARS |= {("strip", f"worst_dice_{how}"): "at least .93" for how in ("as_it_is", "inverted", "thick", "tilted")}
BARS |= {
    ("calibration", f"age_given_{question}_coverage_{share}"): f"within .02 of .{share}"
    for question in ("scan", "nothing", "sex")
    for share in (50, 80, 90, 95)
}
BARS |= {
    ("calibration", f"age_given_{question}_crowd_coverage_{share}"): f"within .02 of .{share}"
    for question in ("nothing", "sex")
    for share in (50, 80, 90, 95)
}
BARS |= {("calibration_4000", figure): bar for (name, figure), bar in BARS.items() if name == "calibration"}


def section(name: str, title: str) -> list[str]:
    path = HERE / "results" / f"{name}.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    lines = [f"## {title}", "", f"`{content['command']}`  ", f"{content['size']}. {content['machine']}.", ""]
    lines += ["| figure | measured | bar |", "|---|---|---|"]
    for key, value in content["figures"].items():
        lines.append(f"| {key.replace('_', ' ')} | {value:.4g} | {BARS.get((name, key), '')} |")
    return [*lines, ""]


def results() -> list[str]:
    """A row for each variable of each report, given the scan."""
    lines = ["| given the scan | metavoxel | best dedicated model | exact limit | constant | 90 % intervals hold |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name, title in REPORTS.items():
        path = HERE.parent / "docs" / "reports" / name / "metrics.json"
        if not path.exists():
            continue
        found = Findings.load(path)
        lines.append(f"| **[{title}](docs/reports/{name}/)** | | | | | |")
        own = [f for f in found.figures if (f.section, f.who, f.given, f.group) == ("accuracy", "model", "scan", "all")]
        for figure in own:
            if figure.metric not in ("mae", "accuracy") or (figure.metric == "mae" and figure.value != figure.value):
                continue
            v, metric = figure.variable, figure.metric
            exact = found.value("accuracy", v, metric, who=EXACT, given="scan")
            constant = found.value("accuracy", v, metric, who=CONSTANT, given="nothing")
            best = best_of(found, v, metric, "scan")
            held = found.value("calibration", v, "coverage_90", given="scan")
            beside = f"{shown_value(best)} ({best.who})" if best else "-"
            words = {"mae": f"{v}, mean error", "accuracy": f"{v}, share right"}[metric]
            lines.append(f"| {words} | {shown_value(figure)} | {beside} | {shown_value(exact)} | {shown_value(constant)} | "
                         f"{f'{held.value:.1%}' if held else ''} |")  # fmt: skip
    return lines


def readme() -> str:
    """README.md with its table made anew."""
    before, rest = README.read_text().split(START)
    return "\n".join([before + START, "", *results(), "", END + rest.split(END)[1]])


def benchmarks() -> str:
    """docs/benchmarks.md: the notes, then a section for each record."""
    lines = ["# Benchmarks", "", (HERE / "notes.md").read_text().rstrip(), ""]
    for name, title in TITLES.items():
        lines += section(name, title)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    README.write_text(readme())
    BENCHMARKS.write_text(benchmarks())


if __name__ == "__main__":
    main()
