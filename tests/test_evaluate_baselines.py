"""The models that ours is held against: trained on one part, asked about the other, each told what it says it was told."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.pipeline import make_pipeline

import metavoxel as mv
from metavoxel.config import Config, Optimiser
from metavoxel.data.cohort import Cohort, read_cohort
from metavoxel.data.phantom import write_cohort
from metavoxel.data.splits import draw_split, part_of
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate import asking, baselines
from metavoxel.evaluate.baselines import BASELINES, RECORD, run_baselines
from metavoxel.evaluate.claims import _by_row
from metavoxel.evaluate.classical import _line, linear, trees
from metavoxel.evaluate.dedicated import ask, features_of, load_dedicated, train_dedicated
from metavoxel.evaluate.evaluation import Options
from metavoxel.evaluate.replacement import draws_by_replacement
from metavoxel.evaluate.run import evaluate
from metavoxel.evaluate.scans import DRAWING
from metavoxel.evaluate.sizes import Sizes, sizes
from metavoxel.evaluate.study import Study, make_study
from metavoxel.evaluate.variants import as_numbers, images_alone
from metavoxel.question import Given

GRID = {"shape": (32, 32, 32), "spacing": 6.0}
FEW = {"steps": 2, "batch": 4, "validate_every": 1}


def config(**changes: object) -> Config:
    net = {"widths": (8, 8), "patch": 4, "token_width": 16, "token_depth": 1}
    return mv.preset("tiny", **GRID, net=net, reading=1, joint=FEW, **changes)


def small() -> Sizes:
    paper = mv.preset("paper", **GRID, codec="identity", joint=FEW,
                      net={"widths": (8, 8, 8, 8), "blocks": 1, "heads": 2, "context": 8, "attending": 0})  # fmt: skip
    densenet, vit = {"init_features": 4, "growth_rate": 2}, {"patch": 8, "width": 16, "depth": 1, "heads": 2}
    return Sizes(config(), paper, densenet, vit, Optimiser(steps=4, batch=4, validate_every=2), apart=False)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """30 people on a coarse grid, with gaps in each column."""
    folder = write_cohort(tmp_path_factory.mktemp("people") / "c", 30, seed=11, diagnosis=True, missing=0.1,
                          shape=GRID["shape"], spacing=GRID["spacing"])  # fmt: skip
    return mv.read_cohort(folder)


def study(cohort: Cohort, cache: Path, train: int = 24, want: list[str] | None = None) -> Study:
    rows = np.arange(len(cohort))
    return make_study(cohort.subset(rows[:train]), cohort.subset(rows[train:]), config(), cache, want)


@pytest.fixture(scope="module")
def made(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All baselines, after a few steps."""
    folder = tmp_path_factory.mktemp("made") / "all"
    steps = pytest.MonkeyPatch()
    steps.setattr(baselines, "by_draws", lambda *given: by_few_steps(*given))
    assert run_baselines(cohort, folder, small(), quiet=True) == {}
    steps.undo()
    return folder


def by_few_steps(*given: object) -> dict[str, np.ndarray]:
    from metavoxel.evaluate.variants import by_draws

    return by_draws(*given, steps=2)  # type: ignore[arg-type]


def test_every_baseline_answers_in_the_columns_of_predict(made: Path) -> None:
    record = json.loads((made / RECORD).read_text())
    assert set(record["baselines"]) == set(BASELINES) and record["failed"] == {}
    split = pd.read_csv(made / "split.tsv", sep="\t")
    asked = set(split["participant_id"][split["part"] == "test"])
    promised = ["participant_id", "age_mean", "sex", "sex_p_F", "sex_p_M", "warning"]
    for name, about in record["baselines"].items():
        assert about["training_people"] == 24 and about["seconds"] >= 0
        assert (about["predictions"] == {}) == (name == "image-only")
        for file in about["predictions"]:
            table = pd.read_csv(made / name / file)
            assert list(table.columns) == promised and set(table["participant_id"]) == asked
            assert np.isfinite(table["age_mean"]).all()
            assert np.allclose(table["sex_p_F"] + table["sex_p_M"], 1, atol=1e-4)
            assert ((table["sex"] == "F") == (table["sex_p_F"] >= 0.5)).all()
    told = {name: list(about["predictions"].values()) for name, about in record["baselines"].items()}
    assert told["densenet"] == told["paper"] == ["scan", "scan and other facts"]
    assert told["trees"] == ["scan", "scan and other facts", "other facts"]


def test_the_papers_model_is_evaluated_in_spite_of_gaps(
    made: Path, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot ignore a missing fact, so the rows that lack the same are asked together, without it; a scan that it is not
    told it draws along, of as many people as scans are drawn for."""
    monkeypatch.setattr("metavoxel.methods.PAPER_STEPS", 2)
    few, _ = part_of(cohort, made / "split.tsv", "test", None)
    assert few.table[["age", "sex", "diagnosis", "mmse"]].isna().to_numpy().any()
    options = Options(split=made / "split.tsv", scans=6, baselines=made)
    found = evaluate(made / "paper/model", cohort, tmp_path / "report", options, quiet=True)
    for name, metric in (("age", "mae"), ("diagnosis", "accuracy")):
        for given in ("scan and other facts", "scan", "nothing"):
            figure = found.value("accuracy", name, metric, given=given)
            assert figure is not None and np.isfinite(figure.value) and figure.n == few.table[name].notna().sum()
        assert found.value("accuracy", name, metric, given="other facts") is not None
    assert found.about["features"]["T1w"]["densenet"][0]["checksum"].startswith("sha256:")
    mmd = {who: found.value("images", "T1w", "voxels: mmd", who=who).value for who in ("model", *DRAWING)}
    assert np.isfinite(list(mmd.values())).all() and mmd["model"] == mmd["paper"] != mmd["continuous-sex"]

    some = asking.ask(mv.load(made / "paper/model"), few, tmp_path / "some", 0, lambda *_: None, unseen=2)
    known = few.table["age"].notna().to_numpy()
    assert (some.asked("age", "scan") == known).all() and (some.asked("age", "nothing") == known & (np.arange(6) < 2)).all()
    assert some.draws("age", "nothing")[:2].all() and not some.draws("age", "nothing")[2:].any()


@torch.no_grad()
def test_who_shares_a_law_gets_draws_of_their_own(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is told of some rows, in whichever blocks they are asked about."""
    monkeypatch.setattr("metavoxel.methods.PAPER_STEPS", 2)
    model = mv.load(made / "paper/model")
    age = Given(torch.zeros(4), observed=torch.tensor([True, False, True, False]))

    def asked(first: int, rows: slice) -> dict[int, np.ndarray]:
        own = Given(age.value[rows], observed=age.observed[rows])
        known, everyone = {"age": own}, torch.ones(len(own.value), dtype=torch.bool)
        parts = draws_by_replacement(model, known, ["T1w"], 2, everyone, first, seed=3)
        means = ((rows, drawn["T1w"].flatten(2).mean(2).numpy()) for rows, drawn in parts)
        return {first + int(row): x for rows, each in means for row, x in zip(rows, each)}

    whole = asked(0, slice(0, 4))
    assert sorted(whole) == [0, 1, 2, 3] and len(np.unique(np.concatenate(list(whole.values())))) == 8
    assert np.allclose(asked(1, slice(1, 2))[1], whole[1], atol=1e-5)
    assert list(draws_by_replacement(model, {"age": age}, ["T1w"], 2, torch.zeros(4, dtype=torch.bool), 0, 3)) == []


def test_the_papers_way_is_asked_of_some_people(made: Path, cohort: Cohort, tmp_path: Path) -> None:
    asked = study(cohort, tmp_path).test
    told = by_few_steps(mv.load(made / "paper/model"), asked, ["age", "sex"], [], 0, lambda *_: None, 4)
    assert np.isfinite(told["age"]).sum() == 4 and (np.isfinite(told["sex"]).all(1) == np.isfinite(told["age"])).all()


def test_a_run_goes_on_where_it_was_stopped(made: Path, cohort: Cohort, tmp_path: Path) -> None:
    """Stopped in the middle of a training, and between baselines."""
    names = ["densenet", "linear"]
    folder, seen = tmp_path / "b", []

    def stop(*_: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        from metavoxel.evaluate import dedicated

        real = dedicated.augment
        patch.setattr(dedicated, "augment", lambda *given: (stop(), real(*given))[1])
        run_baselines(cohort, folder, small(), only=names, quiet=True)
    assert run_baselines(cohort, folder, small(), only=names, resume=True, quiet=True) == {}
    for name in names:
        assert (folder / name / "predictions.csv").read_text() == (made / name / "predictions.csv").read_text()
    before = (folder / "linear" / "predictions.csv").stat().st_mtime_ns
    assert run_baselines(cohort, folder, small(), only=names, resume=True, quiet=True) == {}
    assert (folder / "linear" / "predictions.csv").stat().st_mtime_ns == before
    with pytest.raises(MetavoxelError, match="add --resume"):
        run_baselines(cohort, folder, small(), quiet=True)
    with pytest.raises(MetavoxelError, match="another want"):
        run_baselines(cohort, folder, small(), want=["age"], resume=True, quiet=True)


def test_several_processes_fill_one_folder(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of a cluster for each baseline: what the others made meanwhile stays, and nothing is made twice at once."""
    folder, real, beside = tmp_path / "b", BASELINES["linear"], []

    def meanwhile(*given: object) -> baselines.Trained:
        for name in ("trees", "linear"):
            beside.append(run_baselines(cohort, folder, small(), only=[name], resume=True, quiet=True))
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setitem(BASELINES, "linear", meanwhile)
    assert run_baselines(cohort, folder, small(), only=["linear"], quiet=True) == {}
    assert beside[0] == {} and "already; wait for it" in beside[1]["linear"]
    record = json.loads((folder / RECORD).read_text())
    assert set(record["baselines"]) == {"linear", "trees"} and record["failed"] == {}


def test_nothing_is_there_to_go_on_with(cohort: Cohort, tmp_path: Path) -> None:
    """A cluster's jobs say --resume whether or not one of them was there before."""
    assert run_baselines(cohort, tmp_path / "b", small(), only=["densenet"], resume=True, quiet=True) == {}


def test_one_that_fails_does_not_stop_the_others(cohort: Cohort, tmp_path: Path, run) -> None:
    table = tmp_path / "facts.tsv"
    cohort.table.to_csv(table, sep="\t", index=False, na_rep="n/a")
    status, error = run("baselines", table, "-o", tmp_path / "b", "--only", "vit,trees")
    assert status == 1 and "vit: " in error and "holds no scan" in error and "trees: done" in error
    record = json.loads((tmp_path / "b" / RECORD).read_text())
    assert list(record["baselines"]) == ["trees"] and "holds no scan" in record["failed"]["vit"]
    assert sizes("table").densenet == sizes("tiny").densenet  # not the paper's
    status, error = run("baselines", table, "-o", tmp_path / "all")
    assert status == 0 and "baselines: trees" in error and "failed" not in error


def test_bad_input_is_one_line(cohort: Cohort, tmp_path: Path, refused) -> None:
    for given, said in {
        ("--only", "forest"): "unknown baseline 'forest'", ("--want", "weight"): "weight is no number or class",
        ("--fold", "1"): "is of no split", ("--preset", "huge"): "unknown preset",
    }.items():  # fmt: skip
        assert said in refused("baselines", cohort.root, "-o", tmp_path / "b", *given)
    same = cohort.subset([0] * 20)
    same.table["participant_id"] = [f"sub-{i}" for i in range(20)]
    split = tmp_path / "leak.tsv"
    pd.DataFrame({"participant_id": same.participants, "part": ["train", "test"] * 10}).to_csv(split, sep="\t", index=False)
    with pytest.raises(MetavoxelError, match="sub-0 and sub-1 have the same scan, in two parts"):
        run_baselines(same, tmp_path / "b", small(), split=split, quiet=True)
    with pytest.raises(MetavoxelError, match=f"{cohort.participants[19].removeprefix('sub-')}.*leave each in one"):
        make_study(cohort.subset(range(20)), cohort.subset(range(19, 30)), config(), tmp_path)
    with pytest.raises(MetavoxelError, match="nobody is left to test on"):
        study(cohort, tmp_path, train=30)
    women = cohort.subset(np.flatnonzero(cohort.table["sex"] == "F"))
    with pytest.raises(MetavoxelError, match="sex is F for all who train"):
        study(women, tmp_path, 8, ["age", "sex"])
    assert study(women, tmp_path, 8).want == ("age",)


def test_what_is_the_same_in_all_who_train_is_said_not_to_be_asked(cohort: Cohort, tmp_path: Path, run) -> None:
    """Whether or not it differs among those who are asked."""
    parts = ["train"] * 24 + ["test"] * 6
    split = pd.DataFrame({"participant_id": cohort.participants, "part": parts})
    split.to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    said = "nobody is asked about sex: the same in all who train"
    for name, sexes in {"here": ["F"] * 24 + ["M"] * 6, "anywhere": ["F"] * 30, "differs": ["F", "M"] * 15}.items():
        table = cohort.table[["participant_id", "age", "mmse"]].assign(sex=sexes)
        table.to_csv(tmp_path / f"{name}.tsv", sep="\t", index=False, na_rep="n/a")
        options = "--split", tmp_path / "split.tsv", "--only", "trees"
        status, error = run("baselines", tmp_path / f"{name}.tsv", "-o", tmp_path / name, *options)
        assert status == 0 and (said in error) == (name != "differs") and f"age{', sex' * (name == 'differs')};" in error


def test_a_single_person_of_a_class_cannot_be_cross_validated(cohort: Cohort, tmp_path: Path) -> None:
    lone = replace(cohort, table=cohort.table.assign(sex=["M"] + ["F"] * (len(cohort) - 1)))
    with pytest.raises(MetavoxelError, match="a single person who trains is M"):
        linear(study(lone, tmp_path, want=["sex"]), told=False)


def test_rows_without_a_scan_are_not_answered(cohort: Cohort, tmp_path: Path) -> None:
    gaps = replace(cohort, scans={"T1w": [None if i % 12 == 0 else path for i, path in enumerate(cohort.scans["T1w"])]})
    asked = study(gaps, tmp_path)
    table = asked.test.table(linear(asked, told=True), "no scan")
    assert table["age_mean"].isna().tolist() == table["sex"].isna().tolist() == [True] + [False] * 5
    assert table["warning"].tolist() == ["no scan"] + [""] * 5


def test_facts_are_told_of_others_only_and_gaps_are_marked(cohort: Cohort, tmp_path: Path) -> None:
    asked = study(cohort, tmp_path)
    facts = asked.train.facts(["age", "sex"]).numpy()
    age, sex = asked.train.cohort.table["age"].to_numpy(float), asked.train.cohort.table["sex"].to_numpy()
    known = ~np.isnan(age)
    assert np.allclose(facts[known, 0], (age[known] - age[known].mean()) / age[known].std(), atol=0.02)
    assert np.array_equal(facts[:, 1] == 1, known) and (facts[~known, 0] == 0).all()
    assert np.array_equal(facts[:, 2:], np.stack([sex == "F", sex == "M", ~pd.isna(sex)], 1))
    network = train_dedicated(asked, "densenet", small().densenet, small().dedicated, tmp_path, quiet=True)[0]
    scans = asked.test.voxels(asked.test.scanned)
    told = [asked.test.facts(asked.others(name)) for name in network.targets]
    changed = [fact.clone() for fact in told]
    changed[1][:, 0] += 1  # what sex is told of age
    one, two = network.answers(scans, told), network.answers(scans, changed)
    assert np.array_equal(one["age"], two["age"]) and not np.allclose(one["sex"], two["sex"])


def test_a_saved_network_answers_as_before(cohort: Cohort, tmp_path: Path) -> None:
    asked = study(cohort, tmp_path)
    for kind, apart in (("densenet", False), ("vit", True)):
        own = getattr(small(), kind)
        networks = train_dedicated(asked, kind, own, small().dedicated, tmp_path / kind, apart, quiet=True)
        again = [load_dedicated(tmp_path / kind / f"network-{i + 1}.safetensors") for i in range(len(networks))]
        assert [network.targets for network in again] == ([("age",), ("sex",)] if apart else [("age", "sex")])
        before, after = (ask(made, asked, told=True) for made in (networks, again))
        assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)
    scans = asked.test.voxels(asked.test.scanned).numpy()
    assert features_of(again[0], scans[:, 0]).shape == (len(scans), own["width"])
    with pytest.raises(MetavoxelError, match="on the grid"):
        features_of(again[0], scans[:, 0, :8])


def test_components_of_people_lose_nothing_that_an_l2_penalty_can_use() -> None:
    """Ridge on the components against ridge on the scaled voxels and facts themselves, for people it has not seen."""
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(2, 30, 203)).astype(np.float32) * np.linspace(0.1, 3, 203, dtype=np.float32)
    truth = train[:, 0] + train[:, 201] + rng.normal(size=30)
    (inputs, components, ridge), grid = _line(mv.Continuous("age"), 200)
    assert components.fit_transform(train).dtype == np.float64  # in single, thousands of people are ill-conditioned
    for alpha in grid["alpha"]:
        ridge.set_params(alpha=alpha)
        short, long = (make_pipeline(*steps).fit(train, truth).predict(test) for steps in
                       ((inputs, components, ridge), (inputs, ridge)))  # fmt: skip
        assert np.allclose(short, long, atol=2e-3 * truth.std())


def test_facts_beside_a_scan_do_not_drown_its_finer_components() -> None:
    """Hundreds of people, in single precision: strong facts that say nothing, and voxels that say everything faintly."""
    rng = np.random.default_rng(0)
    people, voxels = 600, 1500
    hidden = rng.normal(size=(people, 200)) * np.logspace(0, -2.5, 200)
    sex = np.eye(2)[rng.integers(2, size=people)]
    inputs = np.concatenate([hidden @ rng.normal(size=(200, voxels)), sex, np.ones((people, 1))], 1).astype(np.float32)
    truth = hidden @ np.logspace(0, 1.5, 200)
    steps, _ = _line(mv.Continuous("age"), voxels)
    steps[-1].set_params(alpha=1e-3)
    single, double = (make_pipeline(*steps).fit(x[:500], truth[:500]).predict(x[500:]) for x in
                      (inputs, inputs.astype(np.float64)))  # fmt: skip
    assert np.allclose(single, double, atol=0.02 * truth.std())


def test_cohorts_of_the_ablations(cohort: Cohort) -> None:
    coded = as_numbers(cohort)
    assert coded.columns["sex"].kind == "continuous" and cohort.columns["sex"].is_class
    male = coded.table["sex"].to_numpy()
    assert np.array_equal(male == 1, cohort.table["sex"] == "M")
    assert np.array_equal(np.isnan(male), cohort.table["sex"].isna())
    alone = images_alone(cohort)
    assert not alone.columns and list(alone.table) == ["participant_id"] and alone.scans == cohort.scans


def test_presets_are_whole() -> None:
    for name in ("tiny", "small", "paper"):
        own = sizes(name)
        assert own.paper.net.architecture == "paper" and not own.paper.times.separate
        assert (own.paper.shape, own.paper.spacing) == (own.joint.shape, own.joint.spacing)
        assert own.vit["width"] % own.vit["heads"] == 0


def test_image_only_trains_as_long_on_images_as_the_joint_model(cohort: Cohort, tmp_path: Path) -> None:
    """Its config, less the steps that only read."""
    own = tmp_path / "own.yaml"
    own.write_text(f"{{shape: [32, 32, 32], spacing: 6.0, reading: 3, joint: {{steps: 5, batch: 4, validate_every: 1}}, "
                   f"net: {json.dumps(small().joint.net.__dict__)}}}")  # fmt: skip
    run_baselines(cohort, tmp_path / "b", config=own, only=["image-only"], quiet=True)
    about = json.loads((tmp_path / "b" / RECORD).read_text())["baselines"]["image-only"]
    assert (about["steps"], about["batch"]) == (2, 4)
    with pytest.raises(MetavoxelError, match="another config"):
        run_baselines(cohort, tmp_path / "b", only=["image-only"], resume=True, quiet=True)
    with pytest.raises(MetavoxelError, match="own sizes have their config"):
        run_baselines(cohort, tmp_path / "c", small(), config=own, quiet=True)
    paper = sizes("tiny", own).paper
    assert (paper.shape, paper.spacing) == ((32, 32, 32), (6.0, 6.0, 6.0))


def test_trees_use_volumes_where_they_are_measured(cohort: Cohort, tmp_path: Path) -> None:
    """Volumes that are the age itself are found; a table of other people's rows is refused."""
    asked = study(cohort, tmp_path, want=["age"])
    age = pd.Series(cohort.table["age"].to_numpy(float), cohort.table["participant_id"])

    def volumes(part: Cohort) -> pd.DataFrame:
        people = part.table["participant_id"]
        return pd.DataFrame({"participant_id": people, "brain_ml": age[people].to_numpy()})

    truth = asked.test.cohort.table["age"].to_numpy(float)
    errors = {name: np.nanmean(np.abs(found["age"] - truth)) for name, found in
              {"volumes": trees(asked, False, volumes), "table": trees(asked, True)}.items()}  # fmt: skip
    assert errors["volumes"] < 0.6 * errors["table"]
    with pytest.raises(MetavoxelError, match="rows of volumes for"):
        trees(asked, True, lambda part: volumes(part).iloc[1:])


def test_a_voxel_that_is_dark_in_training_does_not_decide(cohort: Cohort, tmp_path: Path) -> None:
    """One held-out person has a bright voxel where all who train have next to nothing."""
    asked = study(cohort, tmp_path)
    plain = linear(asked, False)["age"]
    for part, values in ((asked.train, 1e-7 * (np.arange(len(asked.train)) % 2)), (asked.test, [1.0] * len(asked.test))):
        stack = part._stacks[0]
        stack.voxels = np.array(stack.voxels)
        stack.voxels[:, 0, 0, 0] = values
    assert abs(linear(asked, False)["age"][0] - plain[0]) < 3


@pytest.mark.slow
def test_linear_beats_a_constant(tmp_path: Path) -> None:
    people = mv.read_cohort(write_cohort(tmp_path / "c", 200, seed=2))
    split = draw_split(people, 0.25)
    split.save(tmp_path / "s.tsv")
    assert run_baselines(people, tmp_path / "b", split=tmp_path / "s.tsv", only=["linear"], quiet=True) == {}
    table = pd.read_csv(tmp_path / "b" / "linear" / "predictions.csv").set_index("participant_id")
    truth = people.table.set_index("participant_id").loc[table.index]
    constant = np.abs(truth["age"] - truth["age"].median()).mean()
    assert np.abs(table["age_mean"] - truth["age"]).mean() < 0.9 * constant
    assert (table["sex"] == truth["sex"]).mean() > 0.6


def test_a_baselines_sessions_are_the_cohorts_with_and_without_prefix(tmp_path: Path) -> None:
    facts = tmp_path / "facts.csv"
    facts.write_text("participant_id,session_id,age\nsub-1,ses-a,60\nsub-1,ses-b,61\nsub-2,a,70\n")
    table = tmp_path / "predictions.csv"
    table.write_text("participant_id,session_id,age_mean\n2,ses-a,3\nsub-1,b,2\n1,a,1\n")
    assert _by_row(table, read_cohort(facts))["age_mean"].to_list() == [1, 2, 3]
    table.write_text("participant_id,session_id,age_mean\n1,a,1\nsub-1,ses-a,2\n")
    with pytest.raises(MetavoxelError, match="answers twice for 1 a; leave one row"):
        _by_row(table, read_cohort(facts))
