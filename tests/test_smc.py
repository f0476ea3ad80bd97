"""The particle filter against the oracle's exact posterior and evidence: right in the limit, where replacement is not."""

import math

import oracle
import pytest
import torch
from oracle import CLASSES, GRID, MEANS, SIGMA, STAGES, WEIGHTS, Oracle
from test_denoiser import MIXED, SETTINGS, values, waken
from test_diffusion import EVERYTHING, SCALARS, errors, half
from torch import Tensor
from torch.nn.functional import one_hot

from metavoxel.denoiser import JointDenoiser
from metavoxel.diffusion import sample
from metavoxel.errors import MetavoxelError
from metavoxel.noise import Noise
from metavoxel.question import Given, tied
from metavoxel.schema import State
from metavoxel.smc import _resample, smc
from metavoxel.solvers import DDIM
from metavoxel.times import SharedTimes, even_plan

PLAN = even_plan(60)
ROWS = oracle.draw(3, seed=11)
QUESTIONS = {
    "image": ("marginal", lambda rows: {"scan": Given(rows["scan"])}),
    "number and ordinal": ("uniform", lambda rows: {"score": Given(rows["score"]), "stage": Given(rows["stage"])}),
    "half an image and class": (
        "absorbing", lambda rows: {"scan": half(rows), "diagnosis": Given(rows["diagnosis"])}
    ),
    "ordinal": ("marginal", lambda rows: {"stage": Given(rows["stage"])}),
}  # fmt: skip


def log_evidence(given: dict[str, Given], rows: State) -> Tensor:
    """Exact log p(given) in closed form, (rows,)."""
    z = torch.cat([rows["score"][:, None], rows["scan"].flatten(1)], 1).double()
    seen = torch.zeros(len(SIGMA), dtype=torch.bool)
    if "score" in given:
        seen[0] = True
    if "scan" in given:
        seen[1:] = True if given["scan"].mask is None else given["scan"].mask[0].flatten()
    pair = WEIGHTS.log().expand(len(z), CLASSES, STAGES)
    for name, count, axis in (("diagnosis", CLASSES, 2), ("stage", STAGES, 1)):
        if name in given:
            pair = pair + one_hot(given[name].value, count).double().log().unsqueeze(axis)
    if seen.any():
        law = torch.distributions.MultivariateNormal(MEANS[..., seen], SIGMA[seen][:, seen])
        pair = pair + law.log_prob(z[:, None, None, seen])
    return pair.flatten(1).logsumexp(1)


def off(draws: State, exact: oracle.Posterior) -> float:
    """Root mean square over all answers of the error of probabilities, and of means and spreads in posterior sd."""
    return float(torch.cat(errors(draws, exact)).square().mean().sqrt())


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_error_falls_with_the_particles_and_beats_replacement(question: str) -> None:
    chain, ask = QUESTIONS[question]
    denoiser, given = Oracle(chain, SharedTimes()), ask(ROWS)
    want = [name for name in EVERYTHING if name not in given or given[name].mask is not None]
    exact, few, many = denoiser.ask(given), 24, 1536
    coarse = smc(denoiser, denoiser.schema, given, want, few, PLAN, seed=1)
    fine = smc(denoiser, denoiser.schema, given, want, many, PLAN, seed=1)
    known = {name: Given(x.value, x.mask, x.observed, tied) for name, x in given.items()}
    replaced = sample(denoiser, denoiser.schema, known, want, many, PLAN, DDIM, seed=1)
    assert off(fine.draws, exact) < 0.35 * off(coarse.draws, exact)
    assert off(fine.draws, exact) < 0.7 * off(replaced, exact)
    assert off(fine.draws, exact) < 0.08
    truth = log_evidence(given, ROWS)
    assert (fine.log_evidence - truth).abs().max() < 0.1
    assert (fine.log_evidence - truth).square().mean() < 0.3 * (coarse.log_evidence - truth).square().mean()


@pytest.mark.parametrize("chain", ["uniform", "absorbing", "marginal"])
def test_evidence_of_a_class_is_its_probability(chain: str) -> None:
    denoiser, given = Oracle(chain), {"diagnosis": Given(torch.arange(CLASSES))}
    found = smc(denoiser, denoiser.schema, given, SCALARS[1:], 3000, even_plan(30)).log_evidence.exp()
    torch.testing.assert_close(found, WEIGHTS.sum(1), atol=0.04, rtol=0)


def test_nothing_given_is_plain_sampling() -> None:
    denoiser, n = Oracle(), 1000
    found = smc(denoiser, denoiser.schema, {}, EVERYTHING, n, PLAN)
    assert found.log_evidence.abs().max() < 1e-9 and (found.ess - n).abs().max() < 1e-6
    assert off(found.draws, denoiser.ask({})) < 2 / math.sqrt(n)


def test_a_value_that_some_rows_lack_says_nothing_there() -> None:
    denoiser, n = Oracle("uniform"), 1000
    given = {"stage": Given(ROWS["stage"], observed=torch.tensor([True, False, True]))}
    found = smc(denoiser, denoiser.schema, given, ["diagnosis", "score"], n, PLAN)
    assert abs(float(found.log_evidence[1])) < 1e-9 and (found.log_evidence[[0, 2]] < -0.5).all()
    assert off(found.draws, denoiser.ask(given)) < 3 / math.sqrt(n)


def test_what_is_known_of_an_image_comes_back_as_it_was() -> None:
    denoiser, given = Oracle(), {"scan": half(ROWS)}
    scan = smc(denoiser, denoiser.schema, given, ["scan"], 5, even_plan(4)).draws["scan"]
    assert scan.shape == (3, 5, 1, *GRID)
    assert torch.equal(scan[..., 0], ROWS["scan"][:, None, ..., 0].expand(-1, 5, -1, -1))
    assert not torch.equal(scan[..., 1], ROWS["scan"][:, None, ..., 1].expand(-1, 5, -1, -1))


def test_draws_depend_on_seed_and_row_only() -> None:
    denoiser, plan = Oracle("absorbing"), even_plan(8)

    def ask(rows: State, **options: int) -> dict[str, Tensor]:
        given = {"scan": half(rows), "stage": Given(rows["stage"])}
        found = smc(denoiser, denoiser.schema, given, ["score", "diagnosis"], 20, plan, **options)
        return {**found.draws, "evidence": found.log_evidence}

    together, again, other = ask(ROWS, seed=4), ask(ROWS, seed=4), ask(ROWS, seed=5)
    last = ask({name: x[2:] for name, x in ROWS.items()}, seed=4, first_row=2)
    for name, x in together.items():
        assert torch.equal(x, again[name])
        torch.testing.assert_close(x[2:], last[name])
    assert not torch.equal(together["score"], other["score"])


def test_the_chosen_are_as_many_as_their_weight_says() -> None:
    weight = torch.randn(5, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    chosen = _resample(weight, Noise(0, torch.arange(5)))
    share = torch.softmax(weight, 1) * 200
    counts = one_hot(chosen, 200).sum(1)
    assert ((counts - share).abs() < 1 + 1e-9).all() and (counts.sum(1) == 200).all()
    assert torch.equal(_resample(torch.zeros(1, 64).double(), Noise(0, torch.zeros(1)))[0], torch.arange(64))


def test_a_network_is_filtered_too() -> None:
    denoiser = waken(JointDenoiser(MIXED, SETTINGS, SharedTimes()))
    rows = values(MIXED, 2)
    given = {name: Given(rows[name]) for name in ("scan", "sex")}
    found = smc(denoiser, MIXED, given, ["age", "other"], 6, even_plan(3))
    assert found.draws["age"].shape == (2, 6) and found.draws["other"].shape == (2, 6, 1, 6, 5, 7)
    assert found.ess.shape == (3, 2)
    assert torch.isfinite(found.log_evidence).all() and (found.ess >= 1 - 1e-9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"particles": 0}, "particles must be a whole number of at least 1"),
        ({"plan": [(1.0, 0.5), (0.5, 0.7), (0.7, 0.0)]}, "never back; give a plan such as even_plan"),
        ({"plan": even_plan(4, start=0.5)}, "from 1 down to 0"),
        ({"plan": []}, "from 1 down to 0"),
        ({"want": ["scan"]}, "'scan' is both given and wanted"),
        ({"want": []}, "nothing is wanted"),
    ],
)
def test_questions_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    question = {"given": {"scan": Given(ROWS["scan"])}, "want": ["score"], "particles": 2, "plan": even_plan(2)}
    with pytest.raises(MetavoxelError, match=message) as error:
        smc(Oracle(), oracle.schema(), **{**question, **change})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
