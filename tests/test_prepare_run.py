"""A cohort prepared: what comes out, what fails and why, what is done again, and who may write."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from heads import brain, cohort, head, moved

import metavoxel as mv
from metavoxel.data.volume import read_volume, write_volume
from metavoxel.errors import MetavoxelError
from metavoxel.files import only_one
from metavoxel.prepare import bias, register
from metavoxel.prepare import run as cohorts
from metavoxel.prepare.restore import restore_scan
from metavoxel.prepare.task import Settings, read_record

SPACE = "space-MNI152NLin2009aSym"
COARSE = Settings(spacing=4.0)


def inline(work, items, jobs):
    """`share_out` without processes, for scans whose errors are the user's."""
    for position, item in enumerate(items):
        try:
            work(item)
            yield position, None
        except MetavoxelError as error:
            yield position, str(error)


@pytest.fixture(scope="module")
def quick():
    """Fewer starts and rounds, in this process: the heads here are tilted by little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohorts, "share_out", inline)
        patch.setattr(register, "TILTS_DEGREES", (0.0,))
        patch.setattr(register, "FOLLOWED", 1)
        patch.setattr(bias, "ITERATIONS", (10, 10))
        yield


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return cohort(tmp_path_factory.mktemp("raw") / "bids", 2)


@pytest.fixture(scope="module")
def prepared(raw, quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    outcome = cohorts.prepare_cohort(mv.read_cohort(raw), out, COARSE)
    assert len(outcome.done) == 2 and not outcome.failed
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


def scan_of(out: Path, person: str = "sub-01") -> Path:
    return out / person / "anat" / f"{person}_{SPACE}_desc-preproc_T1w.nii.gz"


def failures(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "failures.tsv", sep="\t", dtype=str)


# --- what comes out


def test_the_result_is_a_cohort(raw, prepared):
    before, after = mv.read_cohort(raw), mv.read_cohort(prepared)
    pd.testing.assert_frame_equal(before.table, after.table)
    assert list(after.scans) == ["T1w"] and all(after.scans["T1w"]) and not after.notes
    assert {n: (g.kind, g.levels, g.unit) for n, g in before.columns.items()} == {
        n: (g.kind, g.levels, g.unit) for n, g in after.columns.items()
    }
    about = json.loads((prepared / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative" and about["GeneratedBy"][0]["Name"] == "metavoxel"
    assert failures(prepared).empty


def test_images_masks_and_records(prepared):
    image, mask = read_volume(scan_of(prepared)), read_volume(
        prepared / "sub-01/anat" / f"sub-01_mod-T1w_{SPACE}_desc-brain_mask.nii.gz"
    )
    assert image.shape == mask.shape == (50, 59, 48) and (image.affine == mask.affine).all()
    assert not image.array[mask.array == 0].any() and image.array.min() == 0
    np.testing.assert_allclose(np.percentile(image.array[mask.array > 0], 99.5), 1, atol=0.08)
    record = read_record(scan_of(prepared).with_name(f"sub-01_{SPACE}_desc-preproc_T1w.json"))
    assert record["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"] and record["SkullStripped"]
    assert record["Steps"]["BrainExtraction"] == {"Asked": "auto", "By": "none"}
    from_file = np.asarray(record["Steps"]["Registration"]["MatrixToNativeWorld"])
    points = np.array([[0.0, -18, 8, 1], [40, 0, 20, 1], [-30, -60, -10, 1]]).T
    truth = moved((4.0, 2.0, -3.0), (5.0, -8.0, 12.0))
    assert np.linalg.norm(((from_file - truth) @ points)[:3], axis=0).max() < 1.5


def test_a_result_trains_and_exclude_leaves_out(run, prepared, tmp_path):
    more = tmp_path / "more"  # people enough to train on
    shutil.copytree(prepared, more)
    for person in ("sub-03", "sub-04", "sub-05"):
        scan_of(more, person).parent.mkdir(parents=True)
        shutil.copy(scan_of(more), scan_of(more, person))
    rows = [f"sub-{i:02d}\t{30 + 7 * i}\t{'FM'[i % 2]}\n" for i in range(1, 6)]
    (more / "participants.tsv").write_text("participant_id\tage\tsex\n" + "".join(rows))
    table = (more / "qc.tsv").read_text().replace("\tno\tn/a\t", "\tyes\tis odd\t", 1)
    (more / "qc.tsv").write_text(table)
    config = tmp_path / "c.yaml"
    config.write_text("joint: {steps: 2, batch: 2, validate_every: 1}\n")
    status, error = run("train", more, "-o", tmp_path / "m", "--config", config, "--exclude", "sub-05")
    assert status == 0, error
    assert "1 of 2 scans are flagged, and used unless left out by --exclude: sub-01 (is odd)" in error
    assert "1 rows left out by --exclude: sub-05" in error and "4 people, 4 rows" in error
    assert "no such row" in run("train", prepared, "-o", tmp_path / "n", "--exclude", "sub-1")[1]
    data = mv.read_cohort(prepared).exclude(["sub-01"])
    assert data.participants == ["sub-02"] and "1 rows left out by --exclude: sub-01" in data.notes
    assert "leaves nobody" in run("train", prepared, "-o", tmp_path / "n", "--exclude", "01,02")[1]


# --- and back


def test_round_trip_to_the_raw_scan(raw, prepared, tmp_path):
    source = read_volume(raw / "sub-01/anat/sub-01_T1w.nii.gz")
    back = restore_scan(scan_of(prepared), tmp_path / "back.nii.gz")
    written = read_volume(tmp_path / "back.nii.gz")
    assert back.shape == source.shape == written.shape
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-4)
    inside = brain(source, moved((4.0, 2.0, -3.0), (5.0, -8.0, 12.0)))
    difference = (back.array - source.array)[inside]
    assert abs(difference.mean()) < 10  # of 1,000; edges and noise are smoothed twice, the level is kept
    assert np.corrcoef(back.array[inside], source.array[inside])[0, 1] > 0.95
    mask = prepared / "sub-01/anat" / f"sub-01_mod-T1w_{SPACE}_desc-brain_mask.nii.gz"
    labels = restore_scan(mask, tmp_path / "mask.nii.gz", scan_of(prepared)).array
    assert set(np.unique(labels)) == {0, 1}
    assert 2 * (labels > 0)[inside].sum() / (labels.sum() + inside.sum()) > 0.97


def test_restore_without_a_record(refused, prepared, tmp_path):
    stray = tmp_path / "stray.nii.gz"
    write_volume(read_volume(scan_of(prepared)), stray)
    assert "give the prepared scan" in refused("restore", stray, "-o", tmp_path / "x.nii.gz")


# --- resuming


def test_only_what_changed_is_done_again(raw, quick, tmp_path):
    out, data = tmp_path / "out", mv.read_cohort(raw)
    cohorts.prepare_cohort(data, out, COARSE)
    first = contents(out)
    again = cohorts.prepare_cohort(data, out, COARSE)
    assert len(again.kept) == 2 and not again.done and contents(out) == first
    scan_of(out).unlink()
    again = cohorts.prepare_cohort(data, out, COARSE)
    assert [task.participant for task in again.done] == ["sub-01"] and contents(out) == first
    (out / "sub-02/anat" / f".sub-02_{SPACE}_desc-preproc_T1w.nii.gz.77-ab.tmp").write_bytes(b"half")
    scan_of(out, "sub-02").with_name(f"sub-02_{SPACE}_desc-preproc_T1w.json").unlink()
    again = cohorts.prepare_cohort(data, out, COARSE)
    assert [task.participant for task in again.done] == ["sub-02"] and contents(out) == first
    other = cohorts.prepare_cohort(data, out, Settings(spacing=5.0))
    assert len(other.done) == 2 and read_volume(scan_of(out)).shape == (40, 47, 38)


def test_a_scan_that_fails_later_leaves_no_old_result(quick, tmp_path):
    raw, out = cohort(tmp_path / "bids", 2), tmp_path / "out"
    cohorts.prepare_cohort(mv.read_cohort(raw), out, COARSE)
    path = raw / "sub-02/anat/sub-02_T1w.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])
    outcome = cohorts.prepare_cohort(mv.read_cohort(raw), out, COARSE)
    assert [t.participant for t in outcome.kept] == ["sub-01"] and len(outcome.failed) == 1
    assert not list((out / "sub-02").rglob("*.*")) and scan_of(out).is_file()
    assert "truncated" in failures(out)["reason"][0] and failures(out)["participant_id"][0] == "sub-02"
    (raw / "sub-02/anat/sub-02_T1w.nii.gz").unlink()
    gone = cohorts.prepare_cohort(mv.read_cohort(raw), out, COARSE)
    assert failures(out).empty and not gone.failed
    for path in (raw / "sub-01/anat").iterdir():
        path.unlink()
    write_volume(head(3), raw / "sub-02/anat/sub-02_T1w.nii.gz")
    notes = cohorts.prepare_cohort(mv.read_cohort(raw), out, COARSE).notes
    assert len(notes) == 1 and "not in the cohort any more" in notes[0] and "sub-01" in notes[0]


# --- bad input

BAD = {
    "truncated": (lambda p, good: p.write_bytes(good[:4000]), "truncated or corrupt"),
    "empty": (lambda p, good: p.write_bytes(b""), "0 bytes"),
    "wrong magic": (lambda p, good: p.write_bytes(gzip.compress(b"GIF89a" * 999)), "not a NIfTI"),
    "4-D": (lambda p, good: save(p, np.random.default_rng(0).random((9, 9, 9, 3))), "4-D"),
    "2-D": (lambda p, good: save(p, np.random.default_rng(0).random((9, 9))), "single slice"),
    "one slice": (lambda p, good: save(p, np.random.default_rng(0).random((9, 9, 1))), "single slice"),
    "NaN": (lambda p, good: save(p, np.full((9, 9, 9), np.nan)), "729 of 729 voxels are NaN"),
    "all zero": (lambda p, good: save(p, np.zeros((9, 9, 9))), "blank, all voxels are 0"),
    "singular affine": (lambda p, good: save(p, ramp(), np.diag([2.0, 0, 2, 1])), "affine is singular"),
    "affine of NaN": (lambda p, good: save(p, ramp(), np.full((4, 4), np.nan)), "missing or not finite"),
    "no affine": (lambda p, good: placed(p, 0, (2, 2, 2)), "affine is missing"),
    "voxels of no size": (lambda p, good: placed(p, 1, (0, 2, 2)), "0 x 2 x 2 mm, zero or negative"),
    "voxels of negative size": (lambda p, good: placed(p, 1, (2, -2, 2)), "2 x -2 x 2 mm, zero or negative"),
    "voxels of 900 mm": (lambda p, good: save(p, ramp(), np.diag([900.0, 2, 2, 1])), "cannot be right"),
    "overflowing scale": (lambda p, good: rescaled(p, 3e38), "infinite"),
    "huge and hollow": (lambda p, good: hollow(p), "too small for its size in voxels"),
    "a loop of links": (lambda p, good: p.symlink_to(p), "no such file"),
    "a folder": (lambda p, good: p.mkdir(), "is a folder"),
    "a speck": (lambda p, good: save(p, np.pad(ramp() + 1, 9)), "the brain mask"),
}


def ramp() -> np.ndarray:
    return np.arange(729, dtype=np.float32).reshape(9, 9, 9)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    image = nib.Nifti1Image(array.astype(np.float32), None)
    image.header["sform_code"] = 1
    for name, row in zip(("srow_x", "srow_y", "srow_z"), np.diag([2.0, 2, 2, 1]) if affine is None else affine):
        image.header[name] = row
    path.write_bytes(gzip.compress(image.to_bytes()))


def placed(path: Path, code: int, size: tuple[float, ...]) -> None:
    """Placed by its qform, or by nothing."""
    content = bytearray(nib.Nifti1Image(ramp(), None).to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header["sform_code"], header["qform_code"], header["pixdim"][1:4] = 0, code, size
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)))


def rescaled(path: Path, slope: float) -> None:
    image = nib.Nifti1Image(np.arange(-100, 116).reshape(6, 6, 6).astype(np.int8), np.eye(4))
    image.header.set_slope_inter(slope, 0)
    content = bytearray(image.to_bytes())
    content[112:116] = np.float32(slope).tobytes()  # scl_slope: nibabel writes it when it scales by itself
    path.write_bytes(gzip.compress(bytes(content)))


def hollow(path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header["vox_offset"] = 352
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))


def test_every_bad_scan_has_its_line(run, quick, tmp_path):
    root, out = tmp_path / "bids", tmp_path / "out"
    write_volume(head(1), tmp_path / "good.nii.gz")
    good = (tmp_path / "good.nii.gz").read_bytes()
    rows = ["participant_id\tage"]
    for i, (make, _) in enumerate(BAD.values()):
        anat = root / f"sub-{i:02d}" / "anat"
        anat.mkdir(parents=True)
        make(anat / f"sub-{i:02d}_T1w.nii.gz", good)
        rows.append(f"sub-{i:02d}\t{30 + i}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    status, error = run("prepare", root, out, "--strip", "none", "--spacing", 4)
    assert status == 2 and f"{len(BAD)} scans failed" in error  # none is left: not a result with gaps, but no result
    table = failures(out).set_index("participant_id")
    for i, (kind, (_, words)) in enumerate(BAD.items()):
        reason = table["reason"][f"sub-{i:02d}"]
        assert words in reason and f"sub-{i:02d}_T1w.nii.gz" in reason and ";" in reason, (kind, reason)


def test_one_bad_scan_does_not_stop_the_others(run, quick, tmp_path):
    root, out = cohort(tmp_path / "bids", 2, whole=True), tmp_path / "out"
    lesion = root / "derivatives/lesions/sub-02/anat/sub-02_label-lesion_mask.nii.gz"
    lesion.parent.mkdir(parents=True)
    mask = root / "derivatives/masks/sub-02/anat/sub-02_desc-brain_mask.nii.gz"
    mask.rename(lesion)  # a mask, but not of the brain
    status, error = run("prepare", root, out, "--strip", "mask", "--spacing", 4)
    assert status == 1 and "1 scans failed" in error and "1 scans in" in error, error
    assert "no brain mask for it" in failures(out)["reason"][0]
    assert read_record(next((out / "sub-01").rglob("*.json")))["Steps"]["BrainExtraction"]["By"] == "mask"


def test_the_table_is_checked_before_the_work(refused, tmp_path):
    root = cohort(tmp_path / "bids", 2)
    table = (root / "participants.tsv").read_text() + "".join(f"sub-{i}\t{i}\tF\n" for i in range(40, 46))
    for wrong, words in (("640", "640"), ("45 years", "45 years"), ("15000", "days")):
        (root / "participants.tsv").write_text(table.replace("\t31\t", f"\t{wrong}\t"))
        said = refused("prepare", root, tmp_path / "out")
        assert words in said and "sub-01" in said
    (root / "participants.tsv").write_text(table + table.splitlines()[1] + "\n")
    assert "sub-01 occurs twice" in refused("prepare", root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ids_that_names_cannot_hold(quick, tmp_path):
    for person, seed in (("A_1", 1), ("B 2", 2)):
        write_volume(head(seed), tmp_path / f"{person}.nii.gz")
    (tmp_path / "people.csv").write_text("participant_id,age\nA_1,30\nB 2,40\n")
    data = mv.read_cohort(tmp_path / "people.csv", pattern="{participant_id}.nii.gz")
    cohorts.prepare_cohort(data, tmp_path / "out", COARSE)
    after = mv.read_cohort(tmp_path / "out")
    assert after.participants == ["sub-A1", "sub-B2"] and all(after.scans["image"])
    assert after.table["source_id"].tolist() == ["A_1", "B 2"] and after.column("age").tolist() == [30, 40]
    (tmp_path / "people.csv").write_text("participant_id,age\nA_1,30\nA1,40\n")
    with pytest.raises(MetavoxelError, match="'A_1' and 'A1' would both be sub-A1"):
        cohorts.plan(mv.read_cohort(tmp_path / "people.csv", pattern="{participant_id}.nii.gz"), tmp_path / "o")


# --- where it is written


def test_outputs_that_cannot_be(refused, raw, tmp_path):
    assert "is the cohort itself" in refused("prepare", raw, raw)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    assert "holds something else" in refused("prepare", raw, full)
    assert "is a file" in refused("prepare", raw, full / "thesis.txt")
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]
    if Path("/proc/1").is_dir():
        assert "cannot be made" in refused("prepare", raw, "/proc/metavoxel/out")
    assert "none of auto, none, mask, hd-bet" in refused("prepare", raw, tmp_path / "o", "--strip", "bet")
    assert "0.5 to 8 mm" in refused("prepare", raw, tmp_path / "o", "--spacing", 20)


def test_two_runs_on_one_output(refused, raw, tmp_path):
    (tmp_path / "out/.metavoxel").mkdir(parents=True)
    with only_one(tmp_path / "out/.metavoxel", "preparing"):
        said = refused("prepare", raw, tmp_path / "out")
    assert f"process {os.getpid()} on" in said and "is preparing into" in said


def test_a_full_disk_is_said(refused, raw, quick, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("metavoxel.files.os.replace", full)
    assert "disk full" in refused("prepare", raw, tmp_path / "out")
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob("*.tmp"))


# --- processes


@pytest.mark.slow
def test_killed_runs_end_alike(tmp_path):
    """Kill -9 at random moments, resume, and compare every byte with a run that nobody disturbed."""
    raw = cohort(tmp_path / "bids", 4)
    environment = {**os.environ, "PYTHONPATH": str(Path(mv.__file__).parents[1])}

    def command(out: str, jobs: int) -> list[str]:
        arguments = ["prepare", raw, tmp_path / out, "--spacing", 4, "--jobs", jobs]
        return [sys.executable, "-m", "metavoxel.cli", *map(str, arguments)]

    start = time.monotonic()
    subprocess.run(command("calm", 1), env=environment, check=True, capture_output=True)
    long = time.monotonic() - start
    rng = np.random.default_rng(0)
    for _ in range(20):
        process = subprocess.Popen(command("killed", 2), env=environment, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=rng.uniform(0, 0.6 * long))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    time.sleep(1)
    subprocess.run(command("killed", 2), env=environment, check=True, capture_output=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "calm")
