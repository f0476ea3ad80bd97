"""A model's folder is nobody else's, and a training that goes on is the one that was begun."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import metavoxel as mv
from metavoxel import build
from metavoxel.data.phantom import write_cohort
from metavoxel.errors import MetavoxelError
from metavoxel.training_folder import claimed

CONFIG = "net: {widths: [8, 8], patch: 4, token_width: 16, token_depth: 1}\nreading: 0\n"


@pytest.fixture
def begun(run, phantoms, tmp_path):
    """begin(*options) -> a folder with a training of one step, and its options."""
    (tmp_path / "c.yaml").write_text(f"{CONFIG}joint: {{steps: 1, batch: 2, validate_every: 1}}\n")
    own = tmp_path / "cohort"
    shutil.copytree(phantoms, own)
    run("split", own, "-o", tmp_path / "s.tsv", "--folds", 2, "--test", 0.25)
    options = ["--config", tmp_path / "c.yaml", "--split", tmp_path / "s.tsv", "--fold", 1]
    assert run("train", own, "-o", tmp_path / "m", *options)[0] == 0
    return tmp_path / "m", own, options


def _kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_training_goes_on_with_its_own_cohort_split_and_config_only(run, refused, begun, tmp_path):
    """Else the old weights would stand beside others' scalings, and the training people might be asked about."""
    model, cohort, options = begun
    before = _kept(model)
    another = write_cohort(tmp_path / "another", 12, seed=6, missing=0.1)
    assert "was begun with another table" in refused("train", another, "-o", model, *options, "--resume")
    assert "was begun with another" in refused("train", cohort, "-o", model, *options[:-1], 2, "--resume")
    assert "was begun with another config (seed was 0, is 7)" in refused(
        "train", cohort, "-o", model, *options, "--seed", 7, "--resume"
    )
    longer = tmp_path / "longer.yaml"
    longer.write_text((tmp_path / "c.yaml").read_text().replace("steps: 1", "steps: 3"))
    assert "config (joint.steps was 1, is 3)" in refused(
        "train", cohort, "-o", model, "--config", longer, *options[2:], "--resume"
    )
    scan = next(cohort.glob("sub-*/anat/*.nii.gz"))
    own = scan.read_bytes()
    shutil.copyfile(another / scan.relative_to(cohort), scan)
    assert "was begun with another scans" in refused("train", cohort, "-o", model, *options, "--resume")
    scan.write_bytes(own)
    assert _kept(model) == before


def test_a_cohort_may_be_moved_between_two_jobs(run, begun, tmp_path):
    model, cohort, options = begun
    before = _kept(model)
    shutil.copytree(cohort, tmp_path / "scratch/cohort", copy_function=shutil.copyfile)  # with new times
    assert run("train", tmp_path / "scratch/cohort", "-o", model, *options, "--resume")[0] == 0
    assert _kept(model) == before


def test_a_finished_model_is_kept_where_its_training_is_gone(refused, begun):
    model, cohort, options = begun
    shutil.rmtree(model / "training")
    assert "no training to go on with" in refused("train", cohort, "-o", model, *options, "--resume")
    assert "holds a trained model already" in refused("train", cohort, "-o", model, *options)


def test_what_a_killed_process_left_is_swept(run, begun):
    model, cohort, options = begun
    (model / "cache-x1").mkdir()
    (model / "cache-x1/T1w.npy").write_bytes(b"0" * 100)
    assert run("train", cohort, "-o", model, *options, "--resume")[0] == 0
    assert not list(model.glob("cache-*"))


def test_a_refused_training_leaves_no_folder(refused, phantoms, untrained, tmp_path):
    facts = tmp_path / "facts.tsv"
    shutil.copyfile(phantoms / "participants.tsv", facts)
    assert "holds no T1w" in refused("train", facts, "-o", tmp_path / "m", "--init", untrained)
    broken = tmp_path / "broken"
    shutil.copytree(phantoms, broken)
    next(broken.glob("sub-*/anat/*.nii.gz")).write_bytes(b"no scan")
    assert "_T1w.nii.gz" in refused("train", broken, "-o", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_cohorts_folder_is_no_models(refused, phantoms):
    before = sorted(phantoms.rglob("*"))
    assert "is a cohort's folder" in refused("train", phantoms, "-o", phantoms)
    assert sorted(phantoms.rglob("*")) == before


def test_arrays_are_compared_too(tmp_path):
    schema = mv.Schema((mv.Continuous("age"), mv.Categorical("sex", ("F", "M"))))
    table = pd.DataFrame({"age": [50.0, 60, 70, 80] * 3, "sex": ["F", "M"] * 6})
    config = mv.preset("tiny", joint={"steps": 1, "batch": 2, "validate_every": 1})
    mv.fit(schema, {}, table, tmp_path / "m", config, quiet=True)
    with pytest.raises(MetavoxelError, match="holds a trained model already"):
        mv.fit(schema, {}, table, tmp_path / "m", config, quiet=True)
    with pytest.raises(MetavoxelError, match="was begun with another table"):
        mv.fit(schema, {}, table.assign(age=table["age"] + 1), tmp_path / "m", config, resume=True, quiet=True)


def test_a_training_that_cannot_begin_leaves_no_folder_to_go_on_in(refused, run, phantoms, tmp_path):
    """What stops it after it has written down what it is of, too: nothing is learnt yet."""
    table = pd.read_csv(phantoms / "participants.tsv", sep="\t")[["participant_id"]]
    table["age"] = ["n/a"] * (len(table) - 2) + [60, 70]
    broken = tmp_path / "broken.csv"
    (tmp_path / "c.yaml").write_text(f"{CONFIG}joint: {{steps: 1, batch: 2, validate_every: 1}}\nvalidation: 0.9\n")
    for seed in range(9):  # until both are held out
        table.sample(frac=1, random_state=seed).to_csv(broken, index=False)
        status, error = run("train", broken, "-o", tmp_path / "m", "--config", tmp_path / "c.yaml", "--seed", seed)
        if status:
            break
        shutil.rmtree(tmp_path / "m")
    assert status == 2 and "no value in any training row" in error and not (tmp_path / "m").exists()


def test_what_another_process_trains_is_left_alone(refused, phantoms, tmp_path):
    with claimed(tmp_path / "m", resume=False):
        assert "is training in" in refused("train", phantoms, "-o", tmp_path / "m")
        assert (tmp_path / "m/training/lock").exists()
        assert "is training in" in refused("train", phantoms, "-o", tmp_path / "m")


def test_a_home_folder_is_meant_by_a_tilde(phantoms, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    table = pd.read_csv(phantoms / "participants.tsv", sep="\t")
    table.to_csv(tmp_path / "facts.csv", index=False)
    config = mv.preset("tiny", joint={"steps": 1, "batch": 2, "validate_every": 1}, reading=0)
    mv.train("~/facts.csv", config, "~/m", quiet=True)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["model.json", "model.safetensors", "training"]
    assert (tmp_path / "m/training/inputs.json").exists() and not (tmp_path / "~").exists()


def test_an_autoencoder_of_the_same_scans_is_trained_once(phantoms, tmp_path, monkeypatch):
    """Whatever facts stand beside them: the paper's model and its variants share one."""
    stages, real = [], build.optimise
    monkeypatch.setattr(build, "optimise", lambda *a, **k: (stages.append(a[5]), real(*a, **k))[1])
    few = {"steps": 2, "batch": 4, "validate_every": 1}

    def weights(name: str, variables: list[str], **changes: object) -> dict[str, torch.Tensor]:
        net = {"architecture": "paper", "widths": (8, 8), "heads": 2, "context": 8, "attending": 0}
        config = mv.preset("tiny", codec="autoencoder", autoencoder={"channels": (8, 8), "latent_channels": 2},
                           times={"kind": "shared"}, net=net, reading=0, encoding=few, joint=few, **changes)  # fmt: skip
        people = mv.read_cohort(phantoms, variables)
        model = mv.train(people, config, tmp_path / name, cache=tmp_path / "cache", quiet=True)
        return model.codecs["T1w"].autoencoder.state_dict()

    first, second = weights("a", ["T1w", "age"]), weights("b", ["T1w", "age", "sex"])
    assert stages == ["autoencoder-T1w", "joint", "joint"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    weights("c", ["T1w", "age"], seed=1)
    assert stages[3:] == ["autoencoder-T1w", "joint"]
