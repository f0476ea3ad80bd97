"""One subject, many questions: the scan is encoded once, and every answer is the one that a fresh question gets."""

from pathlib import Path

import numpy as np
import pytest
import torch

import metavoxel as mv
from metavoxel.denoiser import FrozenScan


@pytest.fixture(scope="module")
def model(untrained: Path) -> mv.MetaVoxel:
    return mv.load(untrained)


def _count_encodings(model: mv.MetaVoxel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    encoder = model.denoiser.net.encoder
    monkeypatch.setattr(encoder, "forward", lambda *x, forward=encoder.forward: (calls.append(1), forward(*x))[1])
    return calls


@pytest.mark.parametrize(("share", "encodings"), [(1.0, 1), (0.5, 2)])
def test_five_questions_encode_the_scan_once(model, scan, monkeypatch, share, encodings):
    """And, where not all that it adds to facts is believed, what is seen of nobody, once."""
    monkeypatch.setitem(model.denoiser._buffers, "share", torch.full((2,), share))
    calls = _count_encodings(model, monkeypatch)
    posterior = model.posterior({"T1w": scan})
    posterior.mean("age"), posterior.probability("sex")
    posterior.sample(["age"], n=8), posterior.sample(["age", "sex"], n=8)
    posterior.given(sex="F").sample(["age"], n=8)
    assert len(calls) == encodings


def test_answers_are_those_of_a_fresh_question(model, scan):
    posterior = model.posterior({"T1w": scan})
    posterior.mean("age")
    for given in ({}, {"sex": "F"}):
        fresh = model.sample({"T1w": scan, **given}, ["age"], n=8, seed=3)
        again = posterior.given(**given).sample(["age"], n=8, seed=3)
        np.testing.assert_array_equal(fresh["age"], again["age"])
    row = model.predict(str(scan), ["age", "sex"]).iloc[0]
    assert posterior.mean("age") == pytest.approx(row["age_mean"], rel=1e-4)
    assert posterior.probability("sex")["F"] == pytest.approx(row["sex_p_F"], abs=1e-5)
    assert sum(posterior.probability("sex").values()) == pytest.approx(1)


def test_mean_spread_and_interval_are_those_of_predict_and_of_draws(model, scan):
    posterior = model.posterior({"T1w": scan})
    told = posterior.mean("age"), posterior.std("age"), *posterior.interval("age"), posterior.quantile("age", 0.5)
    names = ["age_mean", "age_sd", "age_q05", "age_q95", "age_q50"]
    row, drawn = (model.predict(str(scan), ["age"], draws=n).iloc[0][names].tolist() for n in (0, 4000))
    assert told == pytest.approx(row, rel=1e-4)
    sd = posterior.std("age")
    assert drawn == pytest.approx(row, abs=0.1 * sd)
    draws = posterior.sample(["age"], n=4000)
    assert told[:2] == pytest.approx((draws.mean("age"), draws.std("age")), abs=0.06 * sd)
    assert told[2:4] == pytest.approx(draws.interval("age"), abs=0.15 * sd)


def test_an_interval_is_one_evaluation_of_any_allowed_level(model, scan, monkeypatch):
    posterior = model.posterior({"T1w": scan})
    asked, tell = [], FrozenScan.tell
    monkeypatch.setattr(FrozenScan, "tell", lambda *arguments: asked.append(1) or tell(*arguments))
    low, high = posterior.interval("age", 0.9998)
    assert low < posterior.quantile("age", 0.5) < high and len(asked) == 2
    assert posterior.interval("age", 0)[0] == pytest.approx(posterior.quantile("age", 0.5), abs=1e-3)


def test_guidance_by_nothing_changes_nothing(model):
    plain, guided = (model.posterior().sample(["age"], n=5, seed=5, guidance=scale)["age"] for scale in (1.0, 2.0))
    np.testing.assert_array_equal(plain, guided)


def test_a_row_without_a_scan_is_told_the_law_over_people(model, scan):
    """And does not change what others are told."""
    cohort = model.people_of(str(scan))
    both = mv.concat({"a": cohort, "b": cohort})
    both.scans["T1w"][1] = None
    table, alone = model.predict(both, ["age"]), model.predict(cohort, ["age"])
    numbers = ["age_mean", "age_sd", "age_q05", "age_q50", "age_q95"]
    assert table.loc[0, numbers].tolist() == pytest.approx(alone.loc[0, numbers].tolist(), rel=1e-4)
    nobody = model.posterior()
    assert table.loc[1, ["age_mean", "age_sd"]].tolist() == pytest.approx([nobody.mean("age"), nobody.std("age")], rel=1e-4)


def test_facts_alone_and_images_wanted(model):
    told = model.posterior({"age": 60}).given(sex="M")
    assert told.sample(n=2, steps=2)["T1w"].shape == (2, *model.schema.image("T1w").shape)
    assert model.posterior().sample(["age", "sex"], n=3).frame().shape == (3, 3)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda p: p.given(sex="F").given(sex="M"), "'sex' is given already"),
        (lambda p: p.given(sex="X"), "sex"),
        (lambda p: p.given(age=None), "age: no value given"),
        (lambda p: p.given(T1w=3), "T1w"),
        (lambda p: p.mean("sex"), "use probability"),
        (lambda p: p.probability("age"), "use mean"),
        (lambda p: p.interval("sex"), "use probability"),
        (lambda p: p.interval("age", 1), "level must be"),
        (lambda p: p.quantile("age", 0), "q must be"),
        (lambda p: p.given(age=50).mean("age"), "both given and wanted"),
        (lambda p: p.sample(["age"], n=0), "n must be a whole number of at least 1"),
        (lambda p: p.sample([]), "everything is given"),
        (lambda p: p.sample(["weight"]), "weight"),
    ],
)
def test_wrong_questions_get_one_line(model, ask, message):
    with pytest.raises(mv.MetavoxelError, match=message) as error:
        ask(model.posterior({}))
    assert "\n" not in str(error.value)
