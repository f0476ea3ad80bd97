"""What the report says of drawn scans: whether they are told from real ones, and whether they are copies."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from metavoxel.data.cohort import read_cohort
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate import looks, scans
from metavoxel.evaluate.copies import Audit, Fold, audit
from metavoxel.evaluate.evaluation import Evaluation, Options, Side
from metavoxel.evaluate.features import Extractor
from metavoxel.evaluate.figures import OURS, Findings
from metavoxel.evaluate.groups import groups_section, looks_of_groups
from metavoxel.evaluate.looks import (
    COPIES,
    REAL,
    SECTION,
    Gallery,
    Looked,
    Space,
    as_voxels,
    copies_of_folds,
    copies_section,
    images_section,
    look,
)
from metavoxel.evaluate.scans import Spaces
from metavoxel.schema import Image

GRID = (6, 7, 6)
WAYS = np.random.default_rng(1).normal(0, 0.03, (12, *GRID))


def heads(seed: int, n: int, spread: float = 1.0) -> np.ndarray:
    """Scans of people who differ in a dozen ways."""
    rng = np.random.default_rng(seed)
    return np.float32(0.5 + np.tensordot(spread * rng.normal(size=(n, 12)), WAYS, 1) + rng.normal(0, 0.01, (n, *GRID)))


def gallery(made: np.ndarray, real: np.ndarray, training: np.ndarray | None = None) -> Gallery:
    def rows(who: str, scans: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame({"participant_id": [f"{who}-{i}" for i in range(len(scans))], "age": 50.0})

    learned = None if training is None else rows("train", training)
    return Gallery("T1w", (5, 5, 5), made, rows("made", made), real, rows("real", real), training, learned)


def looked_at(own: Gallery, spaces: Spaces, others: Mapping[str, np.ndarray] | None = None) -> tuple[Looked, Findings]:
    looked = look(own, spaces, 0, others or {}, lambda done, total: None)
    return looked, Findings({}, looked.figures)


def flat(scans: np.ndarray) -> dict[str, np.ndarray]:
    """Voxels without a look at how alike scans are, which takes long."""
    return as_voxels(scans)


def conclusion(own: Gallery, others: Mapping[str, np.ndarray] | None = None) -> str:
    spaces = {"voxels": Space(flat)}
    return images_section(looked_at(own, spaces, others)[1], own, spaces, ["age"]).conclusion


def test_the_page_says_whether_scans_are_told_from_real_ones_and_who_is_nearer() -> None:
    real, training = heads(1, 60), heads(2, 60)
    good = conclusion(gallery(heads(3, 40), real, training))
    assert good == "Drawn T1w scans are not told from real ones beyond chance, by voxels."
    others = {"image-only": heads(4, 40, 0.5), "paper": heads(5, 40)}
    said = conclusion(gallery(heads(3, 40, 0.5), real, training), others)
    assert "are told from real ones by voxels. Beside those of image-only they are as near, within errors, by" in said
    assert said.endswith("Beside those of paper they are farther by voxels.")
    assert "are nearer by voxels" in conclusion(gallery(heads(3, 40), real, training), others)
    site = conclusion(gallery(heads(3, 40), real + np.float32(0.1), training))  # the floor is no nearer than drawn ones
    assert site.endswith("by voxels; so are real scans of other people by voxels.")


def test_figures_have_errors_and_as_many_scans_as_are_said() -> None:
    own, spaces = gallery(heads(3, 40), heads(1, 60)), {"voxels": Space(as_voxels)}  # the floor is one half of 60
    findings = looked_at(own, spaces)[1]
    page = images_section(findings, own, spaces, ["age"])
    assert page.table is not None and page.table.header[0] == "30 scans each"
    for metric in ("fid", "kid", "mmd", "ms_ssim"):
        figure = findings.value(SECTION, "T1w", f"voxels: {metric}")
        error = findings.value(SECTION, "T1w", f"voxels: {metric}_error")
        assert figure is not None and error is not None and figure.n == 30
        assert figure.high == pytest.approx(figure.value + 1.96 * error.value)
        row = next(row for row in page.table.rows if row[0] == f"voxels: {metric}".replace("_", "-"))
        assert row[1] == f"{figure.value:.3g} ± {error.value:.1g}" and "±" in row[2]


def test_a_scan_is_looked_at_once() -> None:
    """In a space of one row a scan; of planes, training scans are looked at only where they are the floor."""
    seen = {"whole": 0, "planes": 0}

    def see(name: str, scans: np.ndarray) -> dict[str, np.ndarray]:
        seen[name] += len(scans)
        flat = as_voxels(scans)["whole"]
        return {"whole": flat} if name == "whole" else {"x": np.repeat(flat, 3, 0), "y": np.repeat(flat[:, :9], 2, 0)}

    own = gallery(heads(3, 20), heads(1, 30), heads(2, 50))
    looked, findings = looked_at(own, {name: Space(partial(see, name)) for name in seen}, {"paper": heads(5, 20)})
    assert seen == {"whole": 20 + 30 + 50 + 20, "planes": 20 + 30 + 20 + 20} and list(looked.audits) == ["whole"]
    assert findings.value(COPIES, "T1w", "whole: ratio") is not None
    assert all(findings.value(SECTION, "T1w", "planes: fid", who=who) is not None for who in (OURS, REAL, "paper"))


def measure(scans: np.ndarray) -> dict[str, np.ndarray]:
    """Logs of volumes that differ little beside what they are; of an empty scan, those of a speck."""
    flat = scans.reshape(len(scans), -1)
    logs = np.stack([7 + 0.1 * flat[:, :50].mean(1), 3 + flat[:, 50:].mean(1)], axis=1)
    return {"whole": np.where(flat.any(1)[:, None], logs, 0.0)}


def test_measures_are_compared_in_sds_of_the_real_ones() -> None:
    """Whatever the unit of each, and although no brain is found in one scan."""
    own = gallery(heads(3, 60), heads(1, 80), heads(2, 80))
    own.real[3] = 0.0
    whats = {"one": measure, "other": lambda scans: {"whole": measure(scans)["whole"] * [100, 1]}}
    looked, found = looked_at(own, {name: Space(see, measures=True) for name, see in whats.items()})
    assert looked.audits["one"].figures == pytest.approx(looked.audits["other"].figures)
    for metric in ("fid", "kid", "kid_error", "mmd", "density", "wasserstein"):
        one, other = (found.value(SECTION, "T1w", f"{name}: {metric}") for name in whats)
        assert one is not None and other is not None and one.value == pytest.approx(other.value)
    kid = found.value(SECTION, "T1w", "one: kid")
    assert kid is not None and kid.low is not None and kid.low < 0 < kid.high < 2
    wide = gallery(heads(3, 60, 3.0), own.real, own.training)
    apart, near = (looked_at(each, {"one": Space(measure, measures=True)})[1].value(SECTION, "T1w", "one: mmd_p")
                   for each in (wide, own))  # fmt: skip
    assert apart is not None and near is not None and apart.value < 0.01 < near.value


def test_a_space_that_cannot_be_used_does_not_cost_the_others() -> None:
    spaces = {"constant": Space(lambda scans: {"whole": np.ones((len(scans), 3))}), "voxels": Space(flat)}
    own = gallery(heads(3, 20), heads(1, 30), heads(2, 50))
    looked, findings = looked_at(own, spaces)
    assert looked.left_out == ["Looks of T1w by constant: more than half of the scans have the same features; look at what "
                               "made them."]  # fmt: skip
    assert "by voxels" in images_section(findings, own, spaces, ["age"]).conclusion


def copies_said(made: np.ndarray, measures: bool = False) -> tuple[str, int]:
    own = gallery(made, heads(1, 80), heads(2, 80))
    spaces = {"voxels": Space(flat, measures)}
    page = copies_section(own, looked_at(own, spaces)[0].audits, spaces)
    return page.conclusion, len(page.pictures)


def test_copies_are_counted_beside_real_people() -> None:
    planted = heads(3, 100)
    planted[:20] = heads(2, 80)[:20]
    said, pictures = copies_said(planted)
    assert "22 near copies were found (22.0%), more than among real people" in said and pictures == 1
    assert "Nothing says" not in said
    few = heads(3, 100)
    few[0] = heads(2, 80)[0]
    said, pictures = copies_said(few)
    assert said.startswith("Nothing says that drawn scans copy training people; 3 near copies were found (3.0%), within ")
    assert said.endswith("chance no more than among real people (1.2%).") and pictures
    said, pictures = copies_said(few, measures=True)  # as volumes alone may be shared by two people
    assert said.endswith("no near copy was found.") and not pictures


def test_the_smallest_p_is_corrected_for_as_many_spaces() -> None:
    made, real, training = heads(3, 40), heads(1, 40), heads(2, 40)
    found = audit(made.reshape(40, -1), training.reshape(40, -1), real.reshape(40, -1))
    one = Audit({**found.figures, "nearer_training_p": 0.006}, found.threshold, found.near[:0], found.held_out_near)
    own = gallery(made, real, training)
    for names, words in ((["a"], "than chance allows"), (["a", "b"], "Nothing says")):
        spaces = {name: Space(flat) for name in names}
        assert words in copies_section(own, dict.fromkeys(names, one), spaces).conclusion


def test_what_a_network_is_stands_in_the_record_and_below_the_table() -> None:
    network = Extractor("densenet trained here", "sha256:abc", "Not to compare across papers.", flat)
    spaces = {"densenet": Space(network.features, networks=[network])}
    own = gallery(heads(3, 20), heads(1, 30), heads(2, 50))
    page = images_section(looked_at(own, spaces)[1], own, spaces, ["age"])
    assert page.note.endswith("Not to compare across papers.")
    record = {"name": "densenet trained here", "checksum": "sha256:abc", "remark": "Not to compare across papers."}
    assert spaces["densenet"].record == [record]


def test_a_drawn_scan_stands_beside_the_scan_of_its_own_person(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of those for whom scans were drawn has no scan of their own."""
    seen: list[np.ndarray] = []
    monkeypatch.setattr(looks, "mosaic", lambda scans, *_, **__: seen.append(scans) or b"")
    made, real = heads(1, 14), heads(2, 13)
    own = gallery(made, real)
    people = pd.Series([f"sub-{i:02d}" for i in range(14)])
    own = replace(own, made_rows=own.made_rows.assign(participant_id=people),
                  real_rows=own.real_rows.assign(participant_id=people.drop(1).to_numpy()))  # fmt: skip
    images_section(looked_at(own, {"voxels": Space(flat)})[1], own, {"voxels": Space(flat)}, ["age"])
    assert np.array_equal(seen[0][:4], [made[0], real[0], made[2], real[1]])


def test_no_more_scans_are_read_than_memory_is_meant_for(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of 12 people one has no scan."""
    whole = read_cohort(phantoms)
    lost = whole.participants[3]
    cohort = replace(whole, scans={"T1w": [path if lost not in str(path) else None for path in whole.scans["T1w"]]})
    run = Evaluation([], cohort, tmp_path / "work", Options(), Findings({}), quiet=True)
    image = Image("T1w", (8, 10, 8), (20, 20, 20))
    every, _ = scans.scans_of(run, cohort, image, "training scans")
    assert len(every) == 11 and not run.findings.left_out
    monkeypatch.setattr(scans, "MOST_SCANS", 5)
    some, rows = scans.scans_of(run, cohort, image, "training scans")
    people = [who for who in cohort.participants if who != lost]
    assert len(some) == len(set(rows["participant_id"])) == 5 and isinstance(some, np.memmap)
    assert np.array_equal(some, every[[people.index(who) for who in rows["participant_id"]]])
    assert run.findings.left_out == ["5 of 11 training scans were compared with drawn ones, at random."]
    assert len(scans.scans_of(run, cohort, image)[0]) == 11


def test_fine_voxels_are_compared_by_means_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    few = heads(1, 3)[:, :5, :6, :4]
    assert np.array_equal(as_voxels(few)["whole"], few.reshape(3, -1))
    monkeypatch.setattr(looks, "MOST_VOXELS", 3 * 3 * 2)
    told = as_voxels(few)["whole"].reshape(3, 3, 3, 2)
    assert told[0, 0, 1, 1] == pytest.approx(few[0, :2, 2:4, 2:].mean(), abs=1e-6)
    assert told[1, 2, 0, 0] == pytest.approx(few[1, 4:, :2, :2].mean(), abs=1e-6)  # a block over the edge


def test_networks_of_volumes_are_refused_for_flat_images_and_broken_draws_are_told(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cohort = read_cohort(phantoms)
    schema = SimpleNamespace(images=[Image("T1w", (8, 10))], scalars=[])
    side = Side("m", SimpleNamespace(schema=schema), cohort, None, None)  # type: ignore[arg-type]
    run = Evaluation([side], cohort, tmp_path, Options(radimagenet=Path("net.pt")), Findings({}), quiet=True)
    with pytest.raises(MetavoxelError, match="look at volumes, and T1w is an image in two dimensions; leave them out"):
        scans.spaces_of(run)
    made = heads(1, 40)
    made[3, 0, 0, 0] = np.nan
    monkeypatch.setattr(scans, "_draw", lambda *_: ({"T1w": made}, cohort.table))
    monkeypatch.setattr(scans, "_gallery", lambda *_: gallery(made, heads(2, 90)))
    assert list(scans.image_sections(run, {"T1w": {"voxels": Space(flat)}}, [])) == []
    assert run.findings.left_out == ["Looks of T1w: 1 of 40 drawn scans hold values that are not numbers, so that the "
                                     "others would say nothing of the model."]  # fmt: skip


def test_the_model_draws_for_its_own_cohort_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only baselines know classes as numbers: a number that looks like a class here turns no other into one."""
    drawn: list[object] = []
    monkeypatch.setattr(scans, "_draw", lambda run, models, tests, folder: drawn.append(tests) or ({}, None))
    run = SimpleNamespace(options=Options(), findings=Findings({}), sides=[SimpleNamespace(model="m", test="cohort")],
                          model=SimpleNamespace(schema=SimpleNamespace(images=())))  # fmt: skip
    assert list(scans.image_sections(run, {"T1w": {}}, [])) == [] and drawn == [["cohort"]]  # type: ignore[arg-type]


def test_copies_are_looked_for_by_each_folds_own_network() -> None:
    """The second fold's network sees that its model has copied; the first one's sees nothing at all."""
    real, made = heads(1, 60), heads(2, 40)
    learnt, held = np.arange(30), np.arange(30, 60)
    folds = [Fold(np.arange(20), learnt, held), Fold(np.arange(20, 40), held, learnt)]
    made[25:30] = real[40:45]
    blind = Extractor("a", "", "", lambda scans: {"whole": np.random.default_rng(len(scans)).normal(size=(len(scans), 4))})
    seeing = Extractor("b", "", "", flat)
    planes = Space(lambda scans: {"x": scans.reshape(len(scans), -1)})
    spaces = {"net": Space(flat, networks=[blind, seeing]), "voxels": Space(flat), "planes": planes}
    audits = copies_of_folds(gallery(made, real), spaces, folds, 0)
    assert set(audits) == {"net", "voxels"}
    near = audits["net"].near
    copied = near[near["distance"] < 1e-3]
    assert set(zip(copied["made"], copied["training"])) == set(zip(range(25, 30), range(40, 45)))


def test_a_group_that_is_drawn_worse_is_named() -> None:
    """Women's scans are of the real law, men's all alike; of three people with a rare label nothing is said."""
    n = 120
    women = np.arange(n) % 2 == 0
    made = np.where(women[:, None, None, None], heads(31, n), heads(32, n, spread=0.3))
    own = gallery(made, heads(33, n))
    people = [*own.made_rows["participant_id"], *own.real_rows["participant_id"]]
    words = pd.DataFrame({"sex": np.where([*women, *women], "F", "M"), "site": "one"}, index=people)
    words.loc[people[:3] + people[n : n + 3], "site"] = "other"
    network = Extractor("densenet trained here", "sha256:abc", "", flat)
    spaces = {"voxels": Space(as_voxels), "net": Space(flat, networks=[network])}
    found = Findings({}, list(looks_of_groups(own, spaces, words, 0)))
    assert {f.group for f in found.figures} == {"sex = F", "sex = M", "site = one"}
    assert {f.metric for f in found.figures} == {"voxels: mmd", "voxels: mmd_floor", "voxels: mmd_p"}
    told = {(f.group, f.metric): f.value for f in found.figures}
    assert told["sex = M", "voxels: mmd"] > 5 * abs(told["sex = M", "voxels: mmd_floor"])
    section = groups_section(found, "T1w")
    assert section is not None and "sex = M (by voxels)" in section.conclusion and "sex = F" not in section.conclusion
    assert groups_section(Findings({}), "T1w") is None
