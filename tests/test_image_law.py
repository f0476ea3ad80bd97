"""The normal law of whole images, against Bayes' rule written out with full covariance matrices."""

import numpy as np
import pandas as pd
import pytest
import torch
from normal import expected
from torch import Tensor

import metavoxel as mv
from metavoxel.clocks import Cosine
from metavoxel.facts import facts_of, told
from metavoxel.image_law import FEATURES, ImageLaw
from metavoxel.noise import Noise
from metavoxel.schema import State, Times

SHAPE, FACTORS = (1, 4, 5), 2
SIZE = 20


def a_law(seed: int = 0) -> ImageLaw:
    rng = torch.Generator().manual_seed(seed)
    mean, slopes, factors = (torch.randn(*size, *SHAPE, generator=rng) for size in ((), (3,), (FACTORS,)))
    rest = 0.1 + torch.rand(SHAPE, generator=rng)
    law = ImageLaw(SHAPE, 3, FACTORS)
    law.set(mean, rest + (factors**2).sum(0) + (slopes**2).sum(0), slopes, factors, rest)
    return law


def some_facts(level: float) -> tuple[State, Times]:
    values = {"age": torch.tensor([-0.4, 1.3]), "sex": torch.tensor([0, 1])}
    return values, {name: torch.full((2,), level) for name in values}


def by_hand(law: ImageLaw, state: State, times: Times, x: Tensor, tau: Tensor) -> Tensor:
    """E[x_0 | x_t, facts] of each row, by the covariance of all entries."""
    found = []
    facts = told(facts_schema().scalars, state, times, len(x))
    b = torch.cat([law.slopes, law.factors]).flatten(1).double()
    for row in range(len(x)):
        prior = torch.eye(len(b), dtype=torch.float64)
        prior[0, 0] = facts[0].variance[row, 0]
        p = facts[1].chances[row].double()  # type: ignore[index]
        prior[1:3, 1:3] = torch.diag(p) - torch.outer(p, p)
        centre = torch.cat([facts[0].mean[row], facts[1].mean[row], torch.zeros(FACTORS)]).double()
        mean = law.mean.flatten().double() + centre @ b
        covariance = b.T @ prior @ b + torch.diag(law.rest.flatten().double())
        found.append(expected(mean, covariance, x[row].flatten(), tau[row].flatten()))
    return torch.stack(found).float().reshape(x.shape)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("alike", [True, False])
def test_the_clean_image_is_that_of_bayes_rule(level: float, alike: bool) -> None:
    """Facts known, noised and absent; entries known, noised, absent, alike in all rows or not."""
    law, rng = a_law(), torch.Generator().manual_seed(1)
    t = torch.rand(1 if alike else 2, *SHAPE, generator=rng).expand(2, *SHAPE).clone()
    t[:, 0, 0], t[:, 0, 1] = 0.0, 1.0
    x, tau = torch.randn(2, *SHAPE, generator=rng), Cosine().tau(t)
    state, times = some_facts(level)
    clean = law.given(told(facts_schema().scalars, state, times, 2)).expect(x, tau).mean
    torch.testing.assert_close(clean, by_hand(law, state, times, x, tau), atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(clean[:, :, 0], x[:, :, 0], atol=1e-5, rtol=1e-5)


def test_a_fit_finds_slopes_factors_and_rest() -> None:
    truth, n = a_law(), 4000
    rng = torch.Generator().manual_seed(2)
    age, sex = torch.randn(n, generator=rng), (torch.rand(n, generator=rng) < 0.25).long()
    facts = torch.stack([age, (sex == 0).float() - 0.75, (sex == 1).float() - 0.25], 1)
    common = torch.randn(n, FACTORS, generator=rng)
    images = (truth.mean + torch.tensordot(facts, truth.slopes, dims=1) + torch.tensordot(common, truth.factors, dims=1)
              + truth.rest.sqrt() * torch.randn(n, *SHAPE, generator=rng))  # fmt: skip
    law = ImageLaw(SHAPE, 3, FACTORS)
    law.fit(lambda rows: images[rows], torch.arange(n), facts)
    who = told(facts_schema().scalars, *some_facts(0.0), 2)
    mine, its = (x.given(who).mean for x in (law, truth))
    assert float((mine - its).norm() / its.norm()) < 0.05
    assert float(law.doubt) < 2  # nothing is left in common
    ours, theirs = (x.factors.flatten(1).T @ x.factors.flatten(1) + torch.diag(x.rest.flatten()) for x in (law, truth))
    assert float((ours - theirs).norm() / theirs.norm()) < 0.1


def test_known_entries_are_doubted_where_components_leave_more_in_common_than_blocks_say() -> None:
    """Images whose neighbours are alike over half of the grid: four components leave much of that."""
    n, size = 1500, 12
    places = torch.cartesian_prod(torch.arange(size), torch.arange(size)).double()
    covariance = torch.exp(-torch.cdist(places, places) / 5) + 0.1 * torch.eye(size**2)
    rng = torch.Generator().manual_seed(0)
    images = (torch.randn(n, size**2, generator=rng, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T).float()
    images = images.reshape(n, 1, size, size)
    law = ImageLaw((1, size, size), 0, 4)
    law.fit(lambda rows: images[rows], torch.arange(1000), torch.zeros(n, 0))
    doubt = float(law.doubt)
    assert doubt > 3
    others, tau = images[1000:], torch.zeros(1, 1, size, size)
    tau[..., : size // 2] = torch.inf
    errors = {}
    for tried in (1.0, doubt):
        law.doubt.fill_(tried)
        told_of = law.given([]).expect(others, tau).mean - others
        assert told_of[..., size // 2 :].abs().max() < 1e-5
        errors[tried] = float((told_of[..., : size // 2] ** 2).mean())
    assert errors[doubt] < 0.97 * errors[1.0]


def test_few_people_make_few_factors() -> None:
    images = torch.randn(30, *SHAPE, generator=torch.Generator().manual_seed(0))
    law = ImageLaw(SHAPE, 0, FACTORS)
    law.fit(lambda rows: images[rows], torch.arange(30), torch.zeros(30, 0))
    assert (law.factors[1:] == 0).all() and (law.rest > 0).all()
    # noise has no common part: what chance alone lines up is taken off
    assert float((law.factors**2).sum()) < 0.15 * float(law.variance.sum())


def test_told_is_nothing_where_absent_and_all_where_known() -> None:
    schema = facts_schema()
    values = {"age": torch.tensor([1.5, 1.5, 1.5]), "sex": torch.tensor([1, 1, 1])}
    times = {name: torch.tensor([0.0, 0.5, 1.0]) for name in values}
    age, sex = told(schema.scalars, values, times, 3)
    known, between, absent = torch.cat([age.mean, sex.mean], 1)
    assert torch.allclose(known, torch.tensor([1.5, -0.75, 0.75]), atol=1e-5)
    assert torch.allclose(absent, torch.zeros(3), atol=1e-6)
    assert 0 < between[0] < 1.5 and 0 < between[2] < 0.75 and abs(between[1:].sum()) < 1e-6


def test_a_law_of_older_people_is_about_their_own_mean() -> None:
    """A schema that people of 20 to 50 set, half of them men; images of people of 60 to 90, a fifth of them men."""
    n, rng = 2000, np.random.default_rng(0)
    variables = mv.Schema([mv.Continuous("age"), mv.Categorical("sex", ("F", "M"))])
    first = pd.DataFrame({"age": rng.uniform(20, 50, n), "sex": rng.choice(["F", "M"], n)})
    people = pd.DataFrame({"age": rng.uniform(60, 90, n), "sex": rng.choice(["F", "M"], n, p=[0.8, 0.2])})
    schema = variables.fit(first).among(people)
    pixel = torch.from_numpy(0.02 * people["age"].to_numpy() + 0.5 * (people["sex"] == "M").to_numpy()).float()
    images = pixel[:, None, None, None].expand(n, *SHAPE) + 0.1 * torch.randn(n, *SHAPE)
    facts, _ = schema.encode(people)
    state = facts_of(schema.scalars, facts, {name: torch.zeros(n) for name in facts}, n)
    assert state.mean(0).abs().max() < 1e-3
    law = ImageLaw(SHAPE, 3)
    law.fit(lambda rows: images[rows], torch.arange(n), state)
    asked, _ = schema.encode(pd.DataFrame({"age": [65.0, 65.0, 85.0], "sex": ["F", "M", "F"]}))
    for level, right in ((0.0, [1.3, 1.8, 1.7]), (1.0, [float(pixel.mean())] * 3)):
        told_of = told(schema.scalars, asked, {name: torch.full((3,), level) for name in asked}, 3)
        means = law.given(told_of).mean.flatten(1).mean(1)
        assert torch.allclose(means.expand(3), torch.tensor(right), atol=0.03), level


def test_the_spread_about_the_mean_is_what_the_facts_leave_open() -> None:
    """Images made linearly from facts: at every level of the facts, the spread left is the one that a regression on the
    noised facts leaves."""
    n, rng = 200_000, torch.Generator().manual_seed(0)
    schema = facts_schema()
    age, sex = torch.randn(n, generator=rng), (torch.rand(n, generator=rng) < 0.25).long()
    image = 0.6 * age + 1.5 * sex + 0.3 * torch.randn(n, generator=rng)
    marginal = ImageLaw((1, 1), 3)
    slopes = torch.tensor([0.6, -0.75, 0.75]).reshape(3, 1, 1)
    mean, variance = (x.reshape(1, 1) for x in (image.mean(), image.var()))
    marginal.set(mean, variance, slopes, torch.zeros(0, 1, 1), torch.full((1, 1), 0.09))
    noise = Noise(0, torch.arange(n))
    for level in (0.0, 0.4, 1.0):
        times = {"age": torch.full((n,), level), "sex": torch.full((n,), level)}
        clean = {"age": age, "sex": sex}
        state = {v.name: v.process.forward(clean[v.name], torch.zeros(()), v.clock.tau(times[v.name]), noise)
                 for v in schema.scalars}  # fmt: skip
        law = marginal.given(told(schema.scalars, state, times, n))
        mean, variance = law.mean, law.variance
        left = (image - mean[:, 0, 0]) ** 2
        assert float(left.mean()) == pytest.approx(float(variance.mean()), rel=0.02), level
        for kind in (0, 1):  # and for each answer of its own, not on average only
            some = state["sex"] == kind
            assert float(left[some].mean()) == pytest.approx(float(variance[some].mean()), rel=0.03), (level, kind)


def test_the_ends_of_what_was_seen_in_training_are_kept_and_shown() -> None:
    """An entry expected beyond them says so; where nothing is seen, the noise that stands there is not."""
    images = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))
    law = ImageLaw(SHAPE, 0)
    law.fit(lambda rows: images[rows], torch.arange(40), torch.zeros(40, 0))
    assert torch.equal(law.low, images.amin(0)) and torch.equal(law.high, images.amax(0))
    who, tau = law.given([]), Cosine().tau(torch.tensor(0.3)).expand(1, *SHAPE)
    below, above = ((who.expect(x * torch.ones(1, *SHAPE), tau).features()).chunk(FEATURES, 1) for x in (-3.0, 3.0))
    for shown, near_low, near_high in ((below, -1, 1), (above, 1, -1)):
        assert (shown[0].sign() == near_low).all() and (shown[2].sign() == near_high).all()
    far_below = torch.full((1, *SHAPE), -50.0)
    assert torch.equal(who.expect(far_below, tau).corrected(far_below), images.min().expand(1, *SHAPE))
    known = who.expect(far_below, torch.zeros(1, *SHAPE)).corrected(far_below)
    assert torch.allclose(known, far_below)  # what is known stays as it is
    nothing = torch.full((1, *SHAPE), torch.inf)
    unseen = [who.expect(torch.full((1, *SHAPE), value), nothing).features() for value in (0.0, 5.0)]
    assert torch.equal(*unseen)


def facts_schema() -> mv.Schema:
    scale = mv.Continuous("age").fit(pd.Series([0.0, 1.0, 2.0]))
    return mv.Schema([scale, mv.Categorical("sex", ("F", "M"), marginal=(0.75, 0.25))])
