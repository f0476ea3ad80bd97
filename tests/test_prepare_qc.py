"""Which scans are flagged, and why, and the page that shows them."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from metavoxel.data.review import flagged_notes, read_names
from metavoxel.errors import MetavoxelError
from metavoxel.prepare.qc import review, robust_z
from metavoxel.prepare.task import PRIVATE, Task

FINE = {"brain_volume_ml": 1400.0, "template_overlap": 0.94, "registration_score": 0.45, "signal_to_noise": 40.0,
        "cut_cm2": 0.0, "sides_disagree": False}  # fmt: skip
N = 24


@pytest.fixture
def finished(tmp_path):
    """finished(changes) -> OUT and the tasks of N scans as preparation leaves them, some with other figures or images."""

    def make(changes: dict[int, dict] | None = None, images: dict[int, object] | None = None, n: int = N):
        out, tasks = tmp_path / "out", []
        for i in range(n):
            rng = np.random.default_rng(i)
            task = Task(f"sub-{i:02d}", "", "T1w", tmp_path / "x.nii.gz", None, tmp_path, out)
            quality = FINE | {name: FINE[name] * rng.uniform(0.97, 1.03) for name in list(FINE)[:4]}
            own = (changes or {}).get(i, {})
            record = {"Key": "k", "VoxelsChecksum": own.pop("voxels", f"sha256:{i}"), "Quality": quality | own,
                      "Steps": {"BrainExtraction": {"By": "none"}}}  # fmt: skip
            task.folder.mkdir(parents=True)
            (out / PRIVATE).mkdir(exist_ok=True)
            task.sidecar.write_text(json.dumps(record))
            task.files["picture"].write_bytes(b"jpeg of " + task.participant.encode())
            image = person(rng)
            np.save(task.files["thumbnail"], (images or {}).get(i, lambda x: x)(image))
            tasks.append(task)
        return out, tasks

    return make


def person(rng: np.random.Generator) -> np.ndarray:
    """A ball with the same lobes in everyone, one on the right in front, one on the left behind."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (21, 24, 20)), indexing="ij")
    ball = (x**2 + y**2 + z**2 < 0.7) * 100.0
    lobes = 15 * np.exp(-8 * ((x - 0.4) ** 2 + (y - 0.4) ** 2)) + 15 * np.exp(-8 * ((x + 0.4) ** 2 + (y + 0.4) ** 2))
    texture = ndimage.gaussian_filter(rng.normal(0, 20, ball.shape), 1)
    return np.clip(ball + (lobes + texture) * (ball > 0), 0, 255).astype(np.uint8)


def flagged(table: pd.DataFrame) -> dict[str, str]:
    rows = table[table["flagged"] == "yes"]
    return dict(zip(rows["participant_id"], rows["reasons"]))


def test_a_good_cohort_has_no_flags(finished):
    assert flagged(review(*finished())) == {}


def test_each_fault_is_flagged_with_its_reason(finished):
    out, tasks = finished(
        {
            1: {"brain_volume_ml": 300.0},
            2: {"template_overlap": 0.6},
            3: {"cut_cm2": 12.0},
            4: {"signal_to_noise": 2.0},
            5: {"sides_disagree": True},
            6: {"voxels": "same"},
            7: {"voxels": "same"},
            8: {"registration_score": 0.2},
        },
        {9: lambda image: np.roll(image, 5, axis=1), 10: lambda image: image[::-1]},
    )
    found = flagged(review(out, tasks))
    expected = {
        "sub-01": "a brain of 300 ml", "sub-02": "overlaps the template by 0.60", "sub-03": "12 cm2 of it on one side",
        "sub-04": "noisy: signal to noise 2.0", "sub-05": "sform and qform disagree", "sub-06": "same voxels as sub-07_T1w",
        "sub-07": "same voxels as sub-06_T1w", "sub-08": "registration score of 0.2 stands out",
        "sub-09": "unlike the cohort's", "sub-10": "left and right seem to be swapped",
    }  # fmt: skip
    assert found.keys() == expected.keys(), found
    for who, words in expected.items():
        assert words in found[who]
    table = pd.read_csv(out / "qc.tsv", sep="\t", keep_default_na=False)
    assert table["flagged"].tolist() == ["yes"] * 10 + ["no"] * (N - 10)
    assert table["participant_id"].is_unique and all((out / file).suffix == ".gz" for file in table["file"])


def test_few_scans_are_not_compared(finished):
    assert flagged(review(*finished({2: {"registration_score": 0.2}}, {3: lambda x: x[::-1]}, n=6))) == {}


def test_robust_deviations():
    values = np.random.default_rng(0).normal(5, 2, 2000)
    values[:100] = 1e6
    z = robust_z(values)
    np.testing.assert_allclose(z[100:].std(), 1, atol=0.15)
    assert z[0] > 1000 and not robust_z(np.ones(5)).any()


def test_the_page_holds_every_scan_and_needs_nothing_else(finished):
    out, tasks = finished({3: {"cut_cm2": 12.0}, 20: {"brain_volume_ml": 300.0}})
    review(out, tasks)
    page = (out / "qc.html").read_text(encoding="utf-8")
    names = re.findall(r'<article class="(\w+)".*?data-name="([^"]+)"', page)
    assert len(names) == N and [kind for kind, _ in names[:3]] == ["flagged", "flagged", "fine"]
    assert {name for kind, name in names if kind == "flagged"} == {"sub-03 T1w", "sub-20 T1w"}
    assert page.count("data:image/jpeg;base64,") == N
    assert not re.search(r'(src|href)="(?!data:)', page) and "http" not in page
    assert f"{N} prepared scans, 2 to look at" in page


def test_readers_of_a_cohort_are_told(finished, tmp_path):
    out, tasks = finished({i: {"cut_cm2": 12.0} for i in range(4)})
    review(out, tasks)
    (note,) = flagged_notes(out)
    assert note.startswith(f"4 of {N} scans are flagged") and "sub-00 (the field of view" in note
    assert "and 1 more in qc.html" in note and "sub-03" not in note
    assert flagged_notes(tmp_path) == []
    (tmp_path / "qc.tsv").write_text("nonsense\n1\n")
    with pytest.raises(MetavoxelError, match=r"qc.tsv: not a table of metavoxel prepare"):
        flagged_notes(tmp_path)


def test_lists_of_names(tmp_path):
    assert read_names("sub-01, sub-02 ses-1,") == ["sub-01", "sub-02 ses-1"]
    (tmp_path / "out.txt").write_text("sub-01  # moved\n\n# nobody\nsub-02\n")
    assert read_names(str(tmp_path / "out.txt")) == ["sub-01", "sub-02"]
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MetavoxelError, match="cannot be read as text"):
        read_names(str(Path(tmp_path / "bad.txt")))
