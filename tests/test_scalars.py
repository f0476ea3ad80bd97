"""What raw outputs say of scalars: how answers are judged and how sure they may be."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import metavoxel as mv
from metavoxel.answers import batches
from metavoxel.codecs import Standard
from metavoxel.denoiser import make_denoiser
from metavoxel.laws import Factor
from metavoxel.noise import Noise
from metavoxel.scalars import beside_facts, clean, loss, share_beside_facts, sureness, tempered
from metavoxel.schema import Observed, State, Times
from metavoxel.times import MixtureTimes
from metavoxel.validation import shares_beside_facts, surest

N = 4000
NUMBER = mv.Continuous("number", scale=Standard(0.0, 1.0))
CLASS = mv.Categorical("class", ("a", "b", "c"), marginal=(0.6, 0.3, 0.1))
NOTHING = torch.full((N,), math.inf)
WHOLE = torch.ones(N)


def numbers(trust: float) -> tuple[torch.Tensor, ...]:
    """x_0 of N(0, 1), seen with an sd of 1/2, by a network that takes it for `trust` times as sharp."""
    x0 = torch.randn(N)
    raw = torch.stack([x0 + 0.5 * torch.randn(N), torch.full((N,), 2.0 * trust)], -1)
    return raw, torch.randn(N), NOTHING, x0


def classes(trust: float) -> tuple[torch.Tensor, ...]:
    prior = torch.tensor(CLASS.marginal).log()
    said = prior + 1.5 * torch.randn(N, 3)
    x0 = torch.distributions.Categorical(logits=said).sample()
    return torch.lerp(prior.expand_as(said), said, trust), torch.zeros(N, dtype=torch.int64), NOTHING, x0


@pytest.mark.parametrize("trust", [0.6, 1.0, 3.0])
def test_held_out_people_tell_how_sure_a_network_may_be(trust: float) -> None:
    for v, (raw, x, tau, x0) in ((NUMBER, numbers(trust)), (CLASS, classes(trust))):
        found, losses = sureness(v, raw, x, tau, x0, WHOLE, N)
        assert found == pytest.approx(1 / trust, rel=0.1)
        assert losses.mean() <= loss(v, raw, x, tau, x0).mean() + 1e-6
        assert torch.allclose(losses, loss(v, tempered(v, raw, torch.full((N,), found)), x, tau, x0), atol=1e-5)


def test_a_handful_of_people_say_little_and_absent_scans_nothing() -> None:
    x0, raw = torch.full((N,), 0.3), torch.tensor([0.0, 6.0]).expand(N, 2)  # 1.8 sd off, each of them
    many, one = (sureness(NUMBER, raw[:n], x0[:n], NOTHING[:n], x0[:n], WHOLE[:n], n)[0] for n in (N, 1))
    assert many < 0.6
    assert one > 0.7
    raw, x, tau, x0 = (part[:3] for part in numbers(3.0))
    found, losses = sureness(NUMBER, raw, x, tau, x0, torch.zeros(3), 3)
    assert found == pytest.approx(1, abs=1e-3)
    assert torch.equal(losses, loss(NUMBER, raw, x, tau, x0))


def test_answers_of_a_table_are_believed_by_questions_of_few_known_facts_too() -> None:
    """A network that is right given both others, and too sure given less, may not be believed as if both were known."""
    schema = mv.Schema([mv.Continuous(name, scale=Standard(0.0, 1.0)) for name in "abc"])
    denoiser = make_denoiser(schema, mv.preset("tiny").net, MixtureTimes())
    a, b = torch.randn(2, 300)
    x0 = {"a": a, "b": b, "c": (a + b) / math.sqrt(2)}
    observed = {name: torch.ones(300, dtype=torch.bool) for name in "abc"}
    asked: list[int] = []

    def batch(rows: torch.Tensor) -> tuple[State, Observed]:
        return {name: x[rows] for name, x in x0.items()}, {name: x[rows] for name, x in observed.items()}

    class Reader:
        scan = None

        @staticmethod
        def raw(state: State, times: Times) -> State:
            known = torch.stack([times[name] <= 0 for name in "abc"]).sum(0)
            asked.extend(known.tolist())
            right, sum_of_both = known == 2, (state["a"] + state["b"]) / math.sqrt(2)
            told = torch.stack([torch.where(right, sum_of_both + 0.1 * torch.randn(len(known)), 0.0),
                                torch.where(right, 10.0, 3.0)], -1)  # fmt: skip
            return dict.fromkeys("abc", told)

    denoiser.freeze = lambda state, times: Reader  # type: ignore
    factor, losses = surest(denoiser, batch, torch.arange(300))["c"]
    assert {0, 1, 2} <= set(asked) and 0.15 < asked.count(2) / len(asked) < 0.5
    assert factor < 0.7 and len(asked) == 300 * (4096 // 300) and 0.4 < len(losses) / len(asked) < 0.8
    asked.clear()
    assert surest(denoiser, batch, torch.arange(300))["c"][0] == pytest.approx(factor, abs=0.02)


def test_what_is_believed_not_at_all_is_the_marginal_and_wholly_as_it_is() -> None:
    for v, (raw, x, tau, _) in ((NUMBER, numbers(1.0)), (CLASS, classes(1.0))):
        torch.testing.assert_close(clean(v, tempered(v, raw, WHOLE), x, tau), clean(v, raw, x, tau))
        nothing = clean(v, tempered(v, raw, 0 * WHOLE), x, tau)
        expected = torch.zeros(N) if v is NUMBER else torch.tensor(CLASS.marginal).log().expand(N, -1)
        torch.testing.assert_close(nothing, expected, atol=1e-5, rtol=0)


def test_shares_among_other_people_enter_by_bayes_rule() -> None:
    """x_0 of people of whom most are b, seen as a network says of people of whom most are a, and noised."""
    other = replace(CLASS, shares=(0.2, 0.7, 0.1))
    x0 = torch.multinomial(torch.tensor(other.shares), 50 * N, replacement=True)
    confusion = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    seen = torch.multinomial(confusion[x0], 1)[:, 0]
    tau = torch.full((50 * N,), 0.3)
    x = other.process.forward(x0, torch.zeros_like(tau), tau, Noise(0, torch.arange(len(x0))))
    told = clean(other, torch.tensor(CLASS.marginal).log() + confusion[:, seen].T.log(), x, tau).exp()
    for symbol, noised in itertools.product(range(3), range(3)):
        alike = (seen == symbol) & (x == noised)
        shares = torch.bincount(x0[alike], minlength=3) / alike.sum()
        torch.testing.assert_close(told[alike][0], shares, atol=0.03, rtol=0)
    nothing = clean(other, tempered(other, torch.randn(N, 3), 0 * WHOLE), x[:N], NOTHING).exp()
    torch.testing.assert_close(nothing[0], torch.tensor(other.shares))


def test_people_of_another_cohort_are_told_by_their_own_shares(tmp_path: Path) -> None:
    schema = mv.Schema([mv.Categorical("sex", ("F", "M")), mv.Continuous("height", "cm")])

    def table(women: int) -> pd.DataFrame:
        height = np.r_[np.linspace(150, 175, women), np.linspace(165, 190, 100 - women)]
        return pd.DataFrame({"sex": ["F"] * women + ["M"] * (100 - women), "height": height})

    config = mv.preset("table", joint={"steps": 1, "batch": 4})
    first = mv.fit(schema, {}, table(50), tmp_path / "first", config, quiet=True)
    mv.fit(schema, {}, table(90), tmp_path / "then", config, start=first, quiet=True)
    then = mv.load(tmp_path / "then")
    assert then.sample(want=["sex"], n=2000).probability("sex")["F"] == pytest.approx(0.9, abs=0.03)


def test_a_number_is_judged_by_its_gain_over_the_marginal() -> None:
    raw, x, tau, x0 = numbers(1.0)
    hint = Factor(raw[:, :1], raw[:, 1:], torch.zeros(N, 1))
    assert torch.equal(loss(NUMBER, raw, x, tau, x0), 1 - NUMBER.law.gain(x0, x, tau, hint))
    assert float(loss(NUMBER, raw, x, tau, x0).mean()) == pytest.approx(1 - 0.5 * math.log(5), abs=0.05)


def test_believed_less_several_factors_say_less() -> None:
    """Sharpness falls, means and weights stay; not at all believed, the law over people is left."""
    raw = torch.tensor([[-1.0, 1.0, 3.0, 2.0, 0.5, -0.5]])
    assert torch.equal(tempered(NUMBER, raw, torch.tensor([0.5])), torch.tensor([[-1.0, 1.0, 1.5, 1.0, 0.5, -0.5]]))
    nothing = clean(NUMBER, tempered(NUMBER, raw, torch.zeros(1)), torch.zeros(1), torch.tensor([torch.inf]))
    assert float(nothing) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("claimed", [1.0, 3.0])
def test_held_out_people_tell_how_much_a_scan_adds_to_facts(claimed: float) -> None:
    """Facts show x_0 with a precision of 4, a scan with one of 1, which the network takes for `claimed` squared."""
    x0 = torch.randn(N)
    facts, scan = x0 + 0.5 * torch.randn(N), x0 + torch.randn(N)
    both = (4 * facts + claimed**2 * scan) / (4 + claimed**2)
    without = torch.stack([facts, torch.full((N,), 2.0)], -1)
    raw = torch.stack([both, torch.full((N,), math.sqrt(4 + claimed**2))], -1)
    rest = torch.zeros(N), NOTHING, x0
    assert share_beside_facts(NUMBER, raw, without, *rest, WHOLE, N) == pytest.approx(1 / claimed**2, rel=0.2)
    right = beside_facts(NUMBER, raw, without, torch.full((N,), 1 / claimed**2))
    torch.testing.assert_close(right[:, 0], (4 * facts + scan) / 5)
    torch.testing.assert_close(right[:, 1], torch.full((N,), math.sqrt(5)))


@pytest.mark.parametrize("v", [NUMBER, CLASS])
def test_of_what_a_scan_adds_all_or_nothing_may_be_believed(v: mv.Continuous | mv.Categorical) -> None:
    raw, without = torch.rand(2, N, 2 if v is NUMBER else 3)
    torch.testing.assert_close(beside_facts(v, raw, without, WHOLE), raw)
    torch.testing.assert_close(beside_facts(v, raw, without, 0 * WHOLE), without)


def test_scans_of_other_people_are_believed_less_beside_facts(phantoms: Path) -> None:
    """The packaged model told the right scans, and each the next person's: what these add to the sex misleads. Believed not
    at all, a scan beside a fact changes nothing."""
    model = mv.load("phantom")
    cohort = mv.read_cohort(phantoms)
    (part,) = batches(model.schema, model.codecs, cohort, {"age": None, "sex": None}, model.device)
    observed = {name: value.observed for name, value in part.known.items()}
    rows = torch.arange(len(cohort)).repeat(4)  # as of many people

    def share(shift: int) -> float:
        x0 = {name: value.value for name, value in part.known.items()}
        x0["T1w"] = x0["T1w"].roll(shift, 0)

        def batch(rows: torch.Tensor) -> tuple[State, Observed]:
            return {name: x[rows] for name, x in x0.items()}, {name: there[rows] for name, there in observed.items()}

        return shares_beside_facts(model.denoiser, batch, rows)["age"]

    assert share(0) > 0.8 and share(1) < 0.3
    model.denoiser.share.fill_(0.0)
    scan = str(next(path for path in cohort.scans["T1w"] if path))
    with_scan, alone = model.posterior({"T1w": scan, "sex": "F"}), model.posterior({"sex": "F"})
    assert with_scan.mean("age") == pytest.approx(alone.mean("age"), abs=0.1)
    assert model.posterior({"T1w": scan}).mean("age") != pytest.approx(alone.mean("age"), abs=0.1)


def test_weights_from_before_shares_are_believed_in_full() -> None:
    assert torch.equal(mv.load("phantom").denoiser.share, torch.ones(2))


def test_a_model_that_knows_its_training_people_by_heart_is_not_believed(tmp_path: Path) -> None:
    """Images that say nothing of the facts, few people, many steps: others are told little more than the marginal."""
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (60, 6, 6)).astype(np.float32)
    table = pd.DataFrame({"age": rng.normal(50, 10, 60), "sex": np.where(rng.random(60) < 0.5, "M", "F")})
    joint = {"steps": 200, "batch": 32, "rate": 2e-3, "warmup": 10, "validate_every": 200}
    net = {"widths": (16, 32), "patch": 1, "token_width": 32}
    config = mv.preset("tiny", net=net, joint=joint, reading=199, augment=False, validation=0.3)
    schema = mv.Schema([mv.Image("scan", (6, 6)), mv.Continuous("age"), mv.Categorical("sex", ("F", "M"))])
    model = mv.fit(schema, {"scan": images}, table, tmp_path / "model", config, quiet=True)
    assert (model.denoiser.sureness < 0.6).all()
    again = mv.load(tmp_path / "model")
    assert torch.equal(again.denoiser.sureness, model.denoiser.sureness)
