"""Training levels cover the questions that are asked; plans walk where they should."""

from itertools import pairwise

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metavoxel.noise import Noise
from metavoxel.schema import Continuous, Image, Latent, Observed, Schema, Times
from metavoxel.times import MixtureTimes, SharedTimes, even_plan, facts_plan, images_plan, repaint_plan

N = 4000


def everyone(schema: Schema, n: int = N) -> Observed:
    return {v.name: torch.ones(n, dtype=torch.bool) for v in schema}


def draw(rule: SharedTimes | MixtureTimes, schema: Schema, observed: Observed | None = None, n: int = N) -> Times:
    return rule.draw(schema, observed or everyone(schema, n), Noise(0, torch.arange(n)))


def flat(times: Times, n: int = N) -> torch.Tensor:
    return torch.cat([t.reshape(n, -1) for t in times.values()], 1)


def test_mixture_covers_both_ends_and_everything_between() -> None:
    schema = oracle.schema()
    times = draw(MixtureTimes(), schema)
    for v in schema:
        t = times[v.name]
        assert t.shape == (N, *v.level_shape) and t.dtype == torch.float32 and (t >= 0).all() and (t <= 1).all()
        entry = t.reshape(N, -1)[:, 0]
        between = entry[(entry > 0) & (entry < 1)]
        assert (entry == 0).float().mean() > 0.1 and (entry == 1).float().mean() > 0.02
        assert torch.histc(between, 10, 0, 1).min() > 0.02 * len(between)
        assert ((entry > 0) & (entry < 0.15)).float().mean() > 0.05


def test_mixture_covers_the_questions_of_the_library() -> None:
    times = draw(MixtureTimes(), oracle.schema())
    scan, scalars = times["scan"].flatten(1), torch.stack([times[k] for k in ("diagnosis", "stage", "score")], 1)
    known, absent, between = (scan == 0).all(1), (scan == 1).all(1), ((scan > 0) & (scan < 1)).all(1)
    some, none = (scalars == 0).any(1), (scalars == 1).all(1)
    questions = {
        "a scalar from the scan alone": known & none,
        "a scalar from the scan and another": known & some & (scalars == 1).any(1),
        "a scalar from scalars": absent & some & (scalars == 1).any(1),
        "draws of scalars given the scan": known & ((scalars > 0) & (scalars < 1)).any(1),
        "a scan from scalars": between & some,
        "a scan alone": between & none,
    }
    for question, rows in questions.items():
        assert rows.float().mean() > 0.01, question
    levels = flat(times)
    tied = (levels == levels[:, :1]).all(1) & (levels[:, 0] > 0) & (levels[:, 0] < 1)
    assert 0.12 < tied.float().mean() < 0.18


def test_of_many_columns_any_number_is_known() -> None:
    """Draws ask for each column given those before, whole: with levels of their own for each hardly a row asked so."""
    times = flat(draw(MixtureTimes(tied=0.0), Schema([Continuous(f"column {i}") for i in range(12)])))
    known = (times == 0).sum(1)[((times == 0) | (times == 1)).all(1)]
    assert 0.45 < len(known) / N < 0.55
    assert known.bincount(minlength=13)[:12].min() > 0.05 * len(known) and known.max() == 11


def test_mixture_shows_parts_of_images() -> None:
    times = draw(MixtureTimes(partial=0.3), oracle.schema())
    scan = times["scan"].flatten(1)
    known = (scan == 0).sum(1)
    part = (known > 0) & (known < scan.shape[1])
    assert part.float().mean() > 0.08
    for row in scan[part]:
        assert len(row[row > 0].unique()) == 1  # one level in the hole
    assert (scan[part].amax(1) == 1).any() and (scan[part].amax(1) < 1).any()
    whole = draw(MixtureTimes(partial=0.0), oracle.schema())["scan"].flatten(1)
    assert (whole == whole[:, :1]).all()


@settings(max_examples=25, deadline=None)
@given(grid=st.lists(st.integers(1, 5), min_size=2, max_size=3), partial=st.floats(0, 1))
def test_every_row_asks_for_something_on_any_grid(grid: list[int], partial: float) -> None:
    latent = Latent(1, tuple(grid), (0.0,), (1.0,))
    alone = Schema([Image("scan", tuple(grid), latent=latent)])
    rule = MixtureTimes(image_given=1.0, scalar_given=1.0, partial=partial)
    assert (flat(draw(rule, alone, n=500), 500).amax(1) > 0).all()
    pair = Schema([Image("t1w", tuple(grid), latent=latent), Image("t2w", tuple(grid), latent=latent)])
    assert (flat(draw(rule, pair, n=500), 500).amax(1) > 0).all()


@pytest.mark.parametrize("read", [0.0, 0.6, 1.0])
def test_one_variable_is_asked_and_never_all_known(read: float) -> None:
    rule = MixtureTimes(read=read, image_given=1.0, scalar_given=1.0, nearly=0.0, plain=0.0, tied=0.0, partial=0.0)
    times = draw(rule, oracle.schema())
    unknown = torch.stack([t.reshape(N, -1).amax(1) > 0 for t in times.values()], 1)
    assert (unknown.sum(1) == 1).all()
    share = unknown.float().mean(0)
    assert (share[:3] - read / 3).abs().max() < 0.04 and abs(share[3] - (1 - read)) < 0.04
    for schema in (Schema(oracle.schema().scalars), Schema(oracle.schema().images)):
        assert (flat(draw(rule, schema)).amax(1) > 0).all()


def test_reading_asks_facts_of_known_scans_only() -> None:
    times = draw(MixtureTimes(partial=1.0, tied=0.5).reading(), oracle.schema())
    assert (times["scan"] == 0).all()
    facts = torch.stack([t for name, t in times.items() if name != "scan"], 1)
    assert (facts.amax(1) > 0).all() and (facts == 0).any() and (facts == 1).any()


@pytest.mark.parametrize("rule", [MixtureTimes(), MixtureTimes(partial=1.0), SharedTimes()])
def test_what_is_missing_is_at_level_one(rule: MixtureTimes | SharedTimes) -> None:
    schema = oracle.schema()
    observed = {v.name: torch.arange(N) % (i + 2) > 0 for i, v in enumerate(schema)}
    for name, t in draw(rule, schema, observed).items():
        assert (t[~observed[name]] == 1).all() and (t[observed[name]] < 1).any()


def test_shared_times_tie_everything() -> None:
    levels = flat(draw(SharedTimes(), oracle.schema()))
    assert (levels == levels[:, :1]).all()
    assert torch.histc(levels[:, 0], 10, 0, 1).min() > 0.08 * N
    assert not SharedTimes().separate and not SharedTimes().partial and MixtureTimes().separate


def test_levels_of_a_row_do_not_depend_on_the_batch() -> None:
    schema = oracle.schema()
    together = draw(MixtureTimes(), schema, n=50)
    alone = MixtureTimes().draw(schema, everyone(schema, 1), Noise(0, torch.tensor([31])))
    assert all(torch.equal(t[0], together[name][31]) for name, t in alone.items())


def test_images_that_are_asked_for_are_shown_near_noise() -> None:
    """Where a head's size is settled: a third of the levels are above .8, and none is starved."""
    levels = draw(MixtureTimes(read=0.0, tied=0.0, partial=0.0), oracle.schema())["scan"].flatten(1)[:, 0]
    assert float((levels > 0.8).float().mean()) == pytest.approx(0.2 ** (2 / 3), abs=0.03)
    assert float((levels < 0.2).float().mean()) > 0.1


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_plans_walk_from_noise_to_data_without_a_gap(steps: int) -> None:
    for plan in (images_plan(steps), facts_plan(steps)):
        assert len(plan) == steps and plan[0][0] == 1 and plan[-1][1] == 0
        assert all(before[1] == after[0] for before, after in pairwise(plan)) and all(t > s for t, s in plan)


@given(st.integers(1, 60), st.floats(0.05, 1))
def test_even_plan_walks_from_start_to_zero(steps: int, start: float) -> None:
    plan = even_plan(steps, start)
    assert len(plan) == steps and plan[0][0] == start and plan[-1][1] == 0
    assert all(a[1] == b[0] for a, b in pairwise(plan)) and all(s < t for t, s in plan)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5))
def test_repaint_goes_back_up_and_walks_each_stretch_again(steps: int, jump: int, repeats: int) -> None:
    plan = repaint_plan(steps, jump, repeats)
    assert plan[0][0] == 1 and plan[-1][1] == 0 and all(a[1] == b[0] for a, b in pairwise(plan))
    down, up = [move for move in plan if move[1] < move[0]], [move for move in plan if move[1] > move[0]]
    assert sorted(down) == sorted(even_plan(steps) * repeats)
    stretches = -(-steps // jump)
    assert len(up) == stretches * (repeats - 1)
    assert all(round((s - t) * steps) <= jump for t, s in up)
