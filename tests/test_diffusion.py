"""`sample` and `expect` against the oracle's exact posterior; what is refused; draws by seed and index."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import oracle
import pytest
import torch
from oracle import CLASSES, GRID, MEANS, SIGMA, STAGES, WEIGHTS, Oracle
from torch import Tensor

from metavoxel.diffusion import expect, joint_loss, sample, weighed
from metavoxel.errors import MetavoxelError
from metavoxel.noise import Noise
from metavoxel.question import Given, tied
from metavoxel.schema import State, Times, full_level
from metavoxel.solvers import ANCESTRAL, DDIM, DPM2M, Solver
from metavoxel.times import MixtureTimes, SharedTimes, even_plan, repaint_plan

CHAINS = ("uniform", "absorbing", "marginal")
SOLVERS = {"ancestral": ANCESTRAL, "ddim": DDIM, "2m": DPM2M}
SCALARS = ["diagnosis", "stage", "score"]
EVERYTHING = [*SCALARS, "scan"]
LEFT = torch.tensor([True, False, False]).expand(1, 1, *GRID)

# Allowed beyond Monte-Carlo error at 200 steps: probabilities, means in posterior sd, sd as a ratio.
ALLOWED = (0.01, 0.03, 0.04)

ROWS = oracle.draw(2, seed=7)


def half(rows: State) -> Given:
    """The scan's left column known."""
    return Given(rows["scan"], mask=LEFT.expand(len(rows["scan"]), -1, -1, -1))


QUESTIONS: dict[str, Callable[[State], tuple[dict[str, Given], list[str]]]] = {
    "nothing": lambda rows: ({}, EVERYTHING),
    "scalars": lambda rows: ({"stage": Given(rows["stage"]), "score": Given(rows["score"])}, ["diagnosis", "scan"]),
    "image": lambda rows: ({"scan": Given(rows["scan"])}, SCALARS),
    "half an image": lambda rows: ({"scan": half(rows)}, EVERYTHING),
}


def errors(draws: State, exact: oracle.Posterior) -> tuple[Tensor, Tensor, Tensor]:
    """Draws (rows, n, ...) against the truth: probabilities off by, means off by (posterior sd), sd ratio - 1."""
    off, shift, spread = [torch.zeros(1)], [torch.zeros(1)], [torch.zeros(1)]
    for name, x in draws.items():
        if name in exact.probabilities:
            p = exact.probabilities[name]
            off.append((torch.nn.functional.one_hot(x, p.shape[1]).double().mean(1) - p).flatten())
        else:
            mean, sd = exact.mean[name], exact.sd[name]
            free = sd > 1e-3  # a known voxel has none
            shift.append(((x.double().mean(1) - mean) / sd)[free])
            spread.append((x.double().std(1) / sd - 1)[free])
            assert torch.allclose(x.double().mean(1)[~free], mean[~free], atol=1e-5)
    return torch.cat(off), torch.cat(shift), torch.cat(spread)


COMBINATIONS = [
    # every chain meets every solver and every question; the rest of the combinations are slow
    pytest.param(chain, solver, question, marks=[] if (c + s + q) % 3 == 0 else pytest.mark.slow)
    for c, chain in enumerate(CHAINS)
    for s, solver in enumerate(SOLVERS)
    for q, question in enumerate(QUESTIONS)
]


@pytest.mark.parametrize(("chain", "solver", "question"), COMBINATIONS)
def test_draws_follow_the_exact_posterior(chain: str, solver: str, question: str) -> None:
    given, want = QUESTIONS[question](ROWS)
    denoiser, n = Oracle(chain), 1000 * (1 if given else 2)
    draws = sample(denoiser, denoiser.schema, given, want, n, even_plan(200), SOLVERS[solver], seed=5)
    off, shift, spread = errors(draws, denoiser.ask(given))
    sigmas = 4 / math.sqrt(n)
    assert off.abs().max() < 0.5 * sigmas + ALLOWED[0]
    assert shift.abs().max() < sigmas + ALLOWED[1]
    assert spread.abs().max() < sigmas / math.sqrt(2) + ALLOWED[2]


def test_the_joint_law_is_drawn_and_not_the_margins_alone() -> None:
    denoiser, n = Oracle("marginal"), 4000
    draws = {name: x[0] for name, x in sample(denoiser, denoiser.schema, {}, EVERYTHING, n, even_plan(200)).items()}
    pair = torch.bincount(draws["diagnosis"] * STAGES + draws["stage"], minlength=CLASSES * STAGES).double() / n
    assert ((pair - WEIGHTS.flatten()).abs() < 4 * (WEIGHTS.flatten() / n).sqrt() + ALLOWED[0]).all()
    z = torch.cat([draws["score"][:, None], draws["scan"].flatten(1)], 1).double()
    within = z - MEANS[draws["diagnosis"], draws["stage"]]
    scale = SIGMA.diagonal().sqrt()
    difference = (torch.cov(within.T) - SIGMA) / scale / scale[:, None]
    assert difference.abs().max() < 4 * math.sqrt(2 / n) + 0.04


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_one_evaluation_is_the_exact_posterior(question: str, chain: str) -> None:
    given, want = QUESTIONS[question](oracle.draw(5, seed=2))
    denoiser = Oracle(chain)
    answers, exact = expect(denoiser, denoiser.schema, given, want), denoiser.ask(given)
    assert list(answers) == want
    for name, answer in answers.items():
        truth = exact.probabilities[name].log() if name in exact.probabilities else exact.mean[name]
        torch.testing.assert_close(answer, truth.float(), atol=1e-5, rtol=1e-5)


def test_the_exact_posterior_is_that_of_brute_force() -> None:
    """The oracle itself: draws of the law that fall near a question have the posterior it states."""
    rows = oracle.draw(400_000, seed=1)
    near = ((rows["score"] - 0.4).abs() < 0.02) & (rows["stage"] == 1)
    exact = Oracle().ask({"score": Given(torch.tensor([0.4])), "stage": Given(torch.tensor([1]))})
    frequency = torch.bincount(rows["diagnosis"][near], minlength=CLASSES) / near.sum()
    assert (frequency - exact.probabilities["diagnosis"][0]).abs().max() < 4 * 0.5 / math.sqrt(near.sum())
    scan = rows["scan"][near]
    assert ((scan.mean(0) - exact.mean["scan"][0]) / exact.sd["scan"][0]).abs().max() < 4 / math.sqrt(near.sum())
    assert (scan.std(0) / exact.sd["scan"][0] - 1).abs().max() < 4 / math.sqrt(2 * near.sum())


@pytest.mark.parametrize(
    ("steps", "repeats", "left"), [(100, 10, 0.6), pytest.param(200, 20, 0.4, marks=pytest.mark.slow)]
)
def test_replacement_is_biased_and_jumps_repair_most_of_it(steps: int, repeats: int, left: float) -> None:
    denoiser, n, rows = Oracle("marginal"), 400, oracle.draw(3, seed=7)
    tied_scan = {"scan": Given(rows["scan"], level=tied)}
    exact = denoiser.ask(tied_scan)

    def worst(plan: list[tuple[float, float]]) -> list[float]:
        draws = sample(denoiser, denoiser.schema, tied_scan, SCALARS, n, plan, seed=1)
        return [float(error.abs().max()) for error in errors(draws, exact)]

    biased, repaired = worst(even_plan(200)), worst(repaint_plan(steps, jump=10, repeats=repeats))
    assert biased[0] > 0.2 and biased[1] > 0.7 and biased[2] > 0.3
    assert repaired[0] < left * biased[0] and repaired[1] < left * biased[1] and repaired[2] < left * biased[2]


def test_part_of_an_image_that_is_not_wanted_is_ignored_where_unknown() -> None:
    denoiser, rows = Oracle("uniform"), oracle.draw(4, seed=3)
    given, hidden = half(rows), torch.where(half(rows).mask, rows["scan"], 1e3)  # type: ignore[arg-type]
    exact = denoiser.ask({"scan": given})
    answer = expect(denoiser, denoiser.schema, {"scan": Given(hidden, mask=given.mask)}, ["diagnosis"])
    torch.testing.assert_close(answer["diagnosis"].exp().double(), exact.probabilities["diagnosis"], atol=1e-5, rtol=0)
    draws = sample(denoiser, denoiser.schema, {"scan": given}, SCALARS, 2000, even_plan(100))
    off, shift, _ = errors(draws, exact)
    assert off.abs().max() < 2 / math.sqrt(2000) + 0.02 and shift.abs().max() < 4 / math.sqrt(2000) + 0.05


def test_a_given_value_that_some_rows_lack_is_ignored_there() -> None:
    denoiser, rows = Oracle("absorbing"), oracle.draw(4, seed=3)
    has_stage, has_scan = torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])
    given = {"stage": Given(rows["stage"], observed=has_stage), "scan": Given(rows["scan"], observed=has_scan)}
    exact, answer = denoiser.ask(given), expect(denoiser, denoiser.schema, given, ["diagnosis", "score"])
    torch.testing.assert_close(answer["score"], exact.mean["score"].float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(answer["diagnosis"].exp(), exact.probabilities["diagnosis"].float(), atol=1e-5, rtol=0)
    draws = sample(denoiser, denoiser.schema, given, ["diagnosis", "score"], 1000, even_plan(100))
    off, shift, _ = errors(draws, exact)
    assert off.abs().max() < 2 / math.sqrt(1000) + 0.02 and shift.abs().max() < 4 / math.sqrt(1000) + 0.05


def test_given_values_come_back_as_they_were() -> None:
    denoiser, given = Oracle(), {"scan": half(ROWS), "stage": Given(ROWS["stage"])}
    draws = sample(denoiser, denoiser.schema, given, ["diagnosis", "score", "scan"], 3, even_plan(4))
    known = draws["scan"][..., LEFT[0, 0]]
    assert torch.equal(known, ROWS["scan"][:, None].expand(-1, 3, -1, -1, -1)[..., LEFT[0, 0]])
    assert "stage" not in draws
    assert {name: tuple(x.shape) for name, x in draws.items()} == {
        "diagnosis": (2, 3), "score": (2, 3), "scan": (2, 3, 1, *GRID),
    }  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_draw_depends_on_seed_row_and_place_only(question: str, solver: Solver) -> None:
    rows = oracle.draw(3, seed=4)
    denoiser, plan = Oracle("absorbing"), repaint_plan(6, jump=3, repeats=2)

    def ask(rows: State, n: int, **place: int) -> State:
        given, want = QUESTIONS[question](rows)
        return sample(denoiser, denoiser.schema, given, want, n, plan, solver, **place)

    together = ask(rows, 4, seed=9)
    for row in range(len(next(iter(together.values())))):
        one = {name: x[row : row + 1] for name, x in rows.items()}
        for place in range(4):
            alone = ask(one, 1, seed=9, first_row=row, first_draw=place)
            for name, x in alone.items():
                torch.testing.assert_close(x[0, 0], together[name][row, place], atol=1e-5, rtol=1e-5)
    other = ask(rows, 4, seed=10)
    reals = [name for name in together if name in ("score", "scan")]
    assert all((other[name] - together[name]).abs().amax() > 1e-3 for name in reals)
    again = ask(rows, 4, seed=9)
    assert all(torch.equal(again[name], together[name]) for name in together)


def test_rows_and_draws_are_independent() -> None:
    denoiser = Oracle()
    same = {"stage": Given(torch.ones(60, dtype=torch.int64))}
    draws = sample(denoiser, denoiser.schema, same, ["score"], 60, even_plan(10))["score"]
    z = (draws - draws.mean()) / draws.std()
    assert (z @ z.T / 60 - torch.diag((z**2).mean(1))).abs().max() < 5 / math.sqrt(60)
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 4 / 60 and abs((z[1:] * z[:-1]).mean()) < 4 / 60


@pytest.mark.parametrize("want", [["diagnosis"], EVERYTHING[:3]])
def test_a_model_of_one_shared_time_refuses_separate_levels(want: list[str]) -> None:
    denoiser = Oracle(coverage=SharedTimes())
    with pytest.raises(MetavoxelError, match=r"shared time.*'(stage|scan)'.*train with times: mixture"):
        sample(denoiser, denoiser.schema, {"scan": Given(ROWS["scan"])}, want, 1, even_plan(2))
    with pytest.raises(MetavoxelError, match="train with times: mixture"):
        expect(denoiser, denoiser.schema, {}, ["diagnosis"])


def test_a_model_of_one_shared_time_answers_by_replacement() -> None:
    denoiser = Oracle(coverage=SharedTimes())
    given = {"scan": Given(ROWS["scan"], level=tied)}
    assert sample(denoiser, denoiser.schema, given, SCALARS, 2, even_plan(3))["score"].shape == (2, 2)
    assert sample(denoiser, denoiser.schema, {}, EVERYTHING, 2, even_plan(3))["score"].shape == (1, 2)
    lacking = {"scan": Given(ROWS["scan"], level=tied, observed=torch.tensor([True, False]))}
    with pytest.raises(MetavoxelError, match="cannot ignore 'scan'"):
        sample(denoiser, denoiser.schema, lacking, SCALARS, 2, even_plan(3))


def test_part_of_an_image_is_refused_unless_training_showed_parts() -> None:
    denoiser = Oracle(coverage=MixtureTimes(partial=0.0))
    with pytest.raises(MetavoxelError, match=r"part of 'scan'.*partial above 0"):
        sample(denoiser, denoiser.schema, {"scan": half(ROWS)}, EVERYTHING, 1, even_plan(2))
    whole = Given(ROWS["scan"], mask=torch.ones(2, 1, *GRID, dtype=torch.bool))
    assert sample(denoiser, denoiser.schema, {"scan": whole}, SCALARS, 1, even_plan(2))["score"].shape == (2, 1)


@pytest.mark.parametrize(
    ("given", "want", "message"),
    [
        ({"weight": Given(torch.zeros(1))}, ["score"], "unknown variable 'weight'; this model knows diagnosis, stage"),
        ({}, ["weight"], "unknown variable 'weight'"),
        ({"score": Given(torch.zeros(1))}, ["score"], "'score' is both given and wanted"),
        ({"score": Given(torch.zeros(1))}, [], "nothing is wanted"),
        (
            {"score": Given(torch.zeros(2)), "stage": Given(torch.zeros(3).long())},
            ["diagnosis"],
            "given for 2 rows and another variable for 3",
        ),
    ],
)
def test_questions_that_make_no_sense_are_refused(given: dict[str, Given], want: list[str], message: str) -> None:
    denoiser = Oracle()
    with pytest.raises(MetavoxelError, match=message):
        sample(denoiser, denoiser.schema, given, want, 1, even_plan(2))


def judged(denoiser: Callable[[State, Times], State]) -> SimpleNamespace:
    """By its clean predictions."""
    schema = oracle.schema("marginal")
    return SimpleNamespace(judge=lambda state, times, x0: weighed(denoiser(state, times), schema, times, x0))


def test_the_exact_denoiser_has_the_least_loss_and_ignorance_a_loss_of_one() -> None:
    schema, n = oracle.schema("marginal"), 4000
    x0, noise = oracle.draw(n, seed=6), Noise(0, torch.arange(n))
    observed = {v.name: torch.ones(n, dtype=torch.bool) for v in schema}
    absent = {v.name: full_level(v, 1.0, n) for v in schema}
    parts = joint_loss(judged(Oracle("marginal")), schema, x0, observed, absent, noise).parts
    for name, variance in (("score", x0["score"].var()), ("scan", x0["scan"].var(0).mean())):
        assert parts[name] == pytest.approx(float(variance), rel=0.1)  # this law's variance, over N(0, 1)'s
    assert parts["diagnosis"] == pytest.approx(1, abs=0.03) and parts["stage"] == pytest.approx(1, abs=0.03)

    times = MixtureTimes().draw(schema, observed, noise)
    best = joint_loss(judged(Oracle("marginal")), schema, x0, observed, times, Noise(1, torch.arange(n)))

    def blunt(state: State, levels: State) -> State:
        clean = Oracle("marginal")(state, levels)
        return {name: torch.log_softmax(0.7 * x, -1) if x.dim() == 2 else 0.9 * x for name, x in clean.items()}

    worse = joint_loss(judged(blunt), schema, x0, observed, times, Noise(1, torch.arange(n)))
    assert all(best.parts[name] < worse.parts[name] for name in EVERYTHING)
    assert best.total == pytest.approx(float(sum(best.parts.values())))


def test_missing_and_known_entries_carry_no_loss() -> None:
    schema, n, denoiser = oracle.schema(), 50, Oracle()
    x0 = oracle.draw(n)
    observed = {v.name: torch.arange(n) % 2 == 0 for v in schema}
    times = MixtureTimes().draw(schema, observed, Noise(0, torch.arange(n)))
    loss = joint_loss(judged(denoiser), schema, x0, observed, times, Noise(1, torch.arange(n)))
    garbage = {"diagnosis": 2, "stage": 3, "score": 1e6, "scan": -1e6}
    wrong = {name: x.clone() for name, x in x0.items()}
    for name, x in wrong.items():
        x[~observed[name]] = garbage[name]  # type: ignore[call-overload]
    for name, part in joint_loss(judged(denoiser), schema, wrong, observed, times, Noise(1, torch.arange(n))).parts.items():
        assert part == pytest.approx(float(loss.parts[name]), rel=1e-5)
    known = {v.name: full_level(v, 0.0, n) for v in schema}
    everyone = {v.name: torch.ones(n, dtype=torch.bool) for v in schema}
    assert joint_loss(judged(denoiser), schema, x0, everyone, known, Noise(1, torch.arange(n))).total == 0
