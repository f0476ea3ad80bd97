"""Schema and codecs: round trips, missing cells, and errors that name what is wrong."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from metavoxel.codecs import Log, Quantile, Standard
from metavoxel.errors import MetavoxelError
from metavoxel.schema import Categorical, Continuous, Image, Latent, Ordinal, Schema, full_level

TABLE = pd.DataFrame(
    {
        "age": [20.0, 35.0, 50.0, np.nan, 80.0],
        "volume": [900.0, 1100.0, 1300.0, 1500.0, 1250.0],
        "score": [0.0, 0.0, 3.0, 30.0, 7.0],
        "sex": ["F", "M", None, "F", "M"],
        "cdr": ["0", "0.5", "1", "2", "0"],
    }
)
SCHEMA = Schema(
    (
        Image("T1w", (5, 7, 3), spacing=(1.5, 2, 2.5), codec="autoencoder"),
        Continuous("age", unit="years"),
        Continuous("volume", unit="ml", scaling="log"),
        Continuous("score", scaling="quantile"),
        Categorical("sex", ("F", "M"), chain="absorbing"),
        Ordinal("cdr", ("0", "0.5", "1", "2")),
    )
)
FITTED = SCHEMA.fit(TABLE).with_latents({"T1w": Latent(2, (3, 4, 2), (0.1, -0.2), (1.0, 2.5), 0.7)})


@pytest.mark.parametrize("schema", [SCHEMA, FITTED], ids=["unfitted", "fitted"])
def test_yaml_and_dict_round_trip(schema: Schema, tmp_path: Path) -> None:
    [getattr(v, "process", None) for v in schema if schema is FITTED]  # what is computed on the way is not written
    assert Schema.from_yaml(schema.to_yaml()) == schema
    assert Schema.from_dict(schema.to_dict()) == schema
    (tmp_path / "schema.yaml").write_text(schema.to_yaml())
    again = Schema.from_yaml(tmp_path / "schema.yaml")
    assert again == schema and [type(v) for v in again] == [type(v) for v in schema]
    assert again["cdr"].levels == ("0", "0.5", "1", "2")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variables: [{kind: continuous, name: age, unti: years}]", r"variable 1.*unti"),
        ("variables: [{kind: continous, name: age}]", r"variable 1.*continous"),
        ("variables: [{kind: image, name: T1w}]", r"variable 1.*shape"),
        ("variables: [{name: age}]", r"variable 1.*kind"),
        ("variables: [{kind: categorical, name: sex, levels: [F, M], chain: unifrom}]", r"chain.*uniform"),
        ("variables: [{kind: image, name: T1w, shape: [4]}]", r"'T1w'.*2 or 3 axes"),
        ("variables: [{kind: image, name: T1w, shape: [4, 0]}]", r"'T1w'.*positive"),
        ("variables: [{kind: image, name: T1w, shape: [4, 4], spacing: [1]}]", r"'T1w'.*one number for each axis"),
        ("variables: []", "needs variables"),
        ("variables: [{kind: continuous, name: a}, {kind: continuous, name: a}]", r"repeated: \['a'\]"),
        ("variables: [{kind: categorical, name: sex, levels: [F]}]", r"'sex'.*at least two"),
        ("variables: [{kind: ordinal, name: cdr, levels: [a, b, a]}]", r"'cdr'.*'a' twice"),
        ("variabels: []", "'variables'"),
        ("just words", "'variables'"),
        ("variables: [", "cannot be read as YAML"),
    ],
)
def test_what_is_wrong_in_a_schema_file_is_named(text: str, message: str) -> None:
    with pytest.raises(MetavoxelError, match=message):
        Schema.from_yaml(text)


def test_a_schema_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MetavoxelError, match=r"none\.yaml"):
        Schema.from_yaml(tmp_path / "none.yaml")


def test_images_share_one_grid() -> None:
    with pytest.raises(MetavoxelError, match=r"share one grid.*T1w \(4, 4\), T2w \(4, 5\)"):
        Schema([Image("T1w", (4, 4)), Image("T2w", (4, 5))])


def test_variables_are_found_by_name_and_kind() -> None:
    assert SCHEMA.names == ("T1w", "age", "volume", "score", "sex", "cdr") and len(SCHEMA) == 6
    assert "age" in SCHEMA and "weight" not in SCHEMA
    assert SCHEMA.image("T1w") is SCHEMA.images[0] and SCHEMA.scalar("sex") is SCHEMA.scalars[3]
    for call, message in (
        (lambda: SCHEMA["weight"], "no variable 'weight'.*knows T1w, age"),
        (lambda: SCHEMA.image("age"), "'age' is not an image"),
        (lambda: SCHEMA.scalar("T1w"), "'T1w' is an image"),
    ):
        with pytest.raises(MetavoxelError, match=message):
            call()


def test_missing_cells_are_not_observed() -> None:
    numbers = ["61.5", "n/a", np.nan, None, "", pd.NA, 40]
    scores, known = FITTED["age"].encode(numbers)  # type: ignore[union-attr]
    assert known.tolist() == [True, False, False, False, False, False, True]
    assert torch.isfinite(scores).all() and scores.dtype == torch.float32
    codes, known = FITTED["sex"].encode(["F", "n/a", np.nan, None, "", pd.NA, "M "])  # type: ignore[union-attr]
    assert known.tolist() == [True, False, False, False, False, False, True]
    assert codes[0] == 0 and codes[-1] == 1 and codes.dtype == torch.int64
    state, observed = FITTED.encode(TABLE)
    assert observed["age"].tolist() == [True, True, True, False, True] and "T1w" not in state
    assert observed["sex"].tolist() == [True, True, False, True, True]


def test_a_cell_that_cannot_be_right_names_column_and_row() -> None:
    column = pd.Series(["F", "X"], index=["sub-1", "sub-2"])
    with pytest.raises(MetavoxelError, match="sex: row sub-2 holds unknown level 'X'; known levels: F, M"):
        FITTED["sex"].encode(column)  # type: ignore[union-attr]
    with pytest.raises(MetavoxelError, match="age: row 1 holds 'old', which is not a number"):
        FITTED["age"].encode(["3", "old"])  # type: ignore[union-attr]
    with pytest.raises(MetavoxelError, match="age: row 0 holds 'inf'"):
        FITTED["age"].encode([math.inf])  # type: ignore[union-attr]
    with pytest.raises(MetavoxelError, match="log scaling needs values above 0, got -1"):
        FITTED["volume"].encode([100.0, -1.0])  # type: ignore[union-attr]
    with pytest.raises(MetavoxelError, match="no column 'cdr'; it has age"):
        FITTED.encode(TABLE.drop(columns="cdr"))
    with pytest.raises(MetavoxelError, match="'age' has no value in any training row"):
        SCHEMA.fit(TABLE.assign(age=np.nan))
    with pytest.raises(MetavoxelError, match="'sex' has no value in any training row"):
        SCHEMA.fit(TABLE.assign(sex=None))


def test_unfitted_variables_refuse_use() -> None:
    for name in ("age", "volume", "score"):
        with pytest.raises(MetavoxelError, match=f"'{name}' has no scaling yet; call schema.fit"):
            SCHEMA[name].encode([1.0])  # type: ignore[union-attr]
        with pytest.raises(MetavoxelError, match=f"'{name}' has no scaling yet"):
            SCHEMA[name].decode(torch.zeros(1))  # type: ignore[union-attr]
    with pytest.raises(MetavoxelError, match="'sex' has no scaling yet"):
        _ = Categorical("sex", ("F", "M")).process
    with pytest.raises(MetavoxelError, match="'T1w' has no scaling yet; train the model first"):
        _ = SCHEMA["T1w"].entry_shape


def test_draws_are_recorded_as_finely_as_the_values_in_training() -> None:
    scores = torch.linspace(-3, 3, 50)
    for values, step in (([28.0, 30, 21], 1.0), ([0.5, 4, 11], 0.5), ([61.2, 70, 43], 0.0)):
        score = Continuous("score").fit(pd.Series([*values, None]))
        assert score.step == step
        exact, drawn = score.decode(scores), score.drawn(scores)
        assert np.abs(drawn - exact).max() <= step / 2 + 1e-9 and (not step or (drawn % step == 0).all())
    whole = Continuous("score").fit(pd.Series([28, 30, 21]))
    assert whole.among(pd.Series([61.2])).step == 0  # people whose values are finer
    assert Continuous("score", step=0.0).fit(pd.Series([28, 30])).step == 0  # who edits the schema has the last word
    assert FITTED["sex"].drawn(torch.tensor([1, 0])).tolist() == ["M", "F"]


def test_levels_keep_their_order_and_read_numbers_as_names() -> None:
    cdr = FITTED["cdr"]
    assert isinstance(cdr, Ordinal)
    codes, known = cdr.encode(pd.Series([2, 0.5, 0, 1.0, np.nan, np.float32(0.5)], dtype=object))
    assert codes[known].tolist() == [3, 1, 0, 2, 1] and known.tolist() == [True] * 4 + [False, True]
    assert cdr.decode(codes).tolist() == ["2", "0.5", "0", "1", "0", "0.5"]
    assert cdr.encode(pd.Series([0.0, 0.5, 2.0]))[0].tolist() == [0, 1, 3]
    reverse = Ordinal("x", ("severe", "mild", "none"))
    assert reverse.encode(["none", "severe"])[0].tolist() == [2, 0]
    matrix = reverse.process.chain.matrix(torch.tensor(0.1))
    assert matrix[0, 1] > matrix[0, 2]  # neighbours are confused first
    assert Categorical("sex", ("F", "M")).fit(pd.Series(["F", "F", "F"])).marginal == pytest.approx((7 / 8, 1 / 8))


def test_other_people_change_a_class_law_and_leave_its_chain() -> None:
    people = pd.DataFrame({"sex": ["F", "F"], "cdr": [None, None]})
    others = Schema([FITTED.scalar("sex"), FITTED.scalar("cdr")]).among(people)
    sex, cdr, before = others["sex"], others["cdr"], FITTED["sex"]
    assert isinstance(sex, Categorical) and isinstance(before, Categorical)
    assert sex.law == pytest.approx((5 / 6, 1 / 6)) and sex.origin == before.law == before.origin
    tau = torch.tensor(0.4)
    assert torch.equal(sex.process.chain.matrix(tau), before.process.chain.matrix(tau))
    assert float(sex.baseline_loss(tau)) < float(before.baseline_loss(tau))
    assert cdr == FITTED["cdr"]  # nobody's is known
    assert Schema.from_yaml(others.to_yaml()) == others


def test_shapes_and_levels() -> None:
    image = FITTED.image("T1w")
    assert image.entry_shape == (2, 3, 4, 2) and image.level_shape == (1, 3, 4, 2)
    level = full_level(image, torch.tensor([0.0, 0.5]), 2)
    assert level.shape == (2, 1, 3, 4, 2) and (level[0] == 0).all() and (level[1] == 0.5).all()
    assert full_level(FITTED["age"], 0.3, 4).tolist() == pytest.approx([0.3] * 4)


NUMBERS = st.lists(st.floats(-1e4, 1e4).map(lambda x: round(x, 3)), min_size=1, max_size=60)


@given(NUMBERS, NUMBERS)
@example([5461.938] * 3, [0.0])  # its mean is off by a rounding
def test_linear_scaling_round_trips(train: list[float], x: list[float]) -> None:
    scale = Standard.fit(np.array(train))
    tolerance = 1e-9 * (1 + abs(scale.mean))
    np.testing.assert_allclose(scale.decode(scale.encode(np.array(x))), x, rtol=1e-9, atol=tolerance)
    z = scale.encode(np.array(train))
    assert abs(z.mean()) < 1e-6 and (
        z.std() == pytest.approx(1, abs=1e-6) or np.ptp(train) < 1e-9 * (1 + max(map(abs, train)))
    )


@given(NUMBERS, NUMBERS)
def test_log_scaling_round_trips(train: list[float], x: list[float]) -> None:
    scale = Log.fit(np.abs(train) + 0.1)
    values = np.abs(x) + 0.1
    np.testing.assert_allclose(scale.decode(scale.encode(values)), values, rtol=1e-8)
    assert (scale.decode(np.linspace(-5, 5, 11)) > 0).all()


@given(NUMBERS, NUMBERS)
def test_quantile_scaling_round_trips_and_goes_on_beyond_the_training_range(train: list[float], x: list[float]) -> None:
    scale = Quantile.fit(np.array(train))
    everywhere = np.array([*x, min(train) - 1000, max(train) + 1000])
    size = 1 + max(np.abs(everywhere))
    np.testing.assert_allclose(scale.decode(scale.encode(everywhere)), everywhere, rtol=1e-6, atol=1e-6 * size)
    ordered = np.unique(everywhere)
    assert (np.diff(scale.encode(ordered)) > 0).all()


def test_quantile_scores_are_normal_and_ties_share_one() -> None:
    skewed = np.random.default_rng(0).gamma(1.0, 3.0, 5000)
    z = Quantile.fit(skewed).encode(skewed)
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02 and abs((z**3).mean()) < 0.1
    tied = Quantile.fit(np.array([0.0, 0, 0, 5, 9]))
    assert tied.encode(np.array([0.0])) == pytest.approx(-0.5244, abs=1e-3)  # middle of its share: Phi^-1(0.3)
    assert np.isfinite(Quantile.fit(np.array([4.0, 4.0])).encode(np.array([4.0, 7.0]))).all()


def test_baseline_losses_are_those_of_the_marginal() -> None:
    tau = torch.tensor([0.1, math.inf])
    sex = replace(FITTED["sex"], marginal=(0.5, 0.5))  # type: ignore[type-var]
    assert sex.baseline_loss(tau) == pytest.approx(math.log(2))  # type: ignore[union-attr]
    assert replace(sex, marginal=(1 - 1e-9, 1e-9)).baseline_loss(tau) == 0.05  # type: ignore[union-attr]
    assert FITTED["age"].baseline_loss(tau) == 1
    # An image whose entries are independent N(mean, 0.7): the posterior variance over sigma^2.
    image = FITTED.image("T1w").baseline_loss(tau)
    a2 = math.exp(-0.1)
    posterior = 1 / (1 / 0.7 + a2 / (1 - a2))
    assert image[0] == pytest.approx(posterior / (1 - a2), rel=1e-4) and image[1] == pytest.approx(0.7)  # type: ignore[index]


@pytest.mark.parametrize("name", ["draw", "warning", "truth", "a/b", "../x", "a:b", "", " age", ".age", "a\nb", "a,b"])
def test_a_name_that_no_answer_can_stand_under_is_refused(name):
    """It would be another column's, or no file's."""
    with pytest.raises(MetavoxelError, match="call it something else"):
        Schema([Continuous(name), Continuous("age" if name != "age" else "b")])


def test_a_class_is_not_told_in_a_numbers_column():
    """A class has its bare name; a number has only columns with a suffix, so thickness and thickness_sd go together."""
    both = [Continuous("thickness"), Continuous("thickness_sd")]
    assert Schema(both).names == ("thickness", "thickness_sd")
    with pytest.raises(MetavoxelError, match="'age_mean' would be told in the column 'age_mean', as 'age' is"):
        Schema([Categorical("age_mean", ("low", "high")), Continuous("age")])
    with pytest.raises(MetavoxelError, match="'sex_p_F' would be told in the column 'sex_p_F', as 'sex' is; call"):
        Schema([Categorical("sex", ("F", "M")), Categorical("sex_p_F", ("low", "high"))])


def test_such_a_column_can_be_renamed(refused, run, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("participant_id,warning,gm/wm\n" + "".join(f"{i},{i % 7},{i % 5}\n" for i in range(40)))
    says = refused("train", table, "-o", tmp_path / "m")
    assert "'warning' is a column that answers have besides" in says and not (tmp_path / "m").exists()
    assert "'gm/wm' holds '/'" in refused("train", table, "-o", tmp_path / "m", "--variables", "gm/wm")
    (tmp_path / "c.yaml").write_text("joint: {steps: 1, batch: 2, validate_every: 1}\n")
    renamed = ["--variables", "alarm=warning,ratio=gm/wm", "--config", tmp_path / "c.yaml"]
    assert run("train", table, "-o", tmp_path / "m", *renamed)[0] == 0
