"""By how much people differ may hang on their facts."""

import torch
from normal import expected
from test_image_law import FACTORS, SHAPE, a_law, facts_schema, some_facts

from metavoxel.clocks import Cosine
from metavoxel.facts import side_by_side, told
from metavoxel.image_law import ImageLaw
from metavoxel.spreads import spreads_of, stretch_of


def test_the_clean_image_is_that_of_bayes_rule_among_people_who_differ_by_more() -> None:
    """Each row against the covariance of all entries, stretched by what its facts say."""
    law, rng = a_law(), torch.Generator().manual_seed(3)
    law.spreads.copy_(0.3 * torch.randn(3, *SHAPE, generator=rng))
    facts = told(facts_schema().scalars, *some_facts(0.0), 2)
    stretch = stretch_of(law.spreads, side_by_side(facts, 2, "cpu")).flatten(1).double()
    assert float(stretch.min()) < 0.8 and float(stretch.max()) > 1.25
    t = torch.rand(2, *SHAPE, generator=rng)
    t[:, 0, 0], t[:, 0, 1] = 0.0, 1.0
    x, tau = torch.randn(2, *SHAPE, generator=rng), Cosine().tau(t)
    own = law.given(facts)
    found = own.expect(x, tau)
    b, rest = law.factors.flatten(1).double(), law.rest.flatten().double()
    covariance = b.T @ b + torch.diag(rest)
    for row in range(2):
        mean = (law.mean + torch.tensordot(side_by_side(facts, 2, "cpu")[row], law.slopes, dims=1)).flatten().double()
        stretched = stretch[row][:, None] * covariance * stretch[row]
        exact = expected(mean, stretched, x[row].flatten(), tau[row].flatten()).float().reshape(SHAPE)
        torch.testing.assert_close(found.mean[row], exact, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(own.variance[row].flatten(), stretched.diagonal().float(), atol=1e-4, rtol=1e-4)


def test_where_the_old_differ_by_more_is_found() -> None:
    n, rng = 4000, torch.Generator().manual_seed(4)
    facts = torch.randn(n, 2, generator=rng)
    truth = torch.zeros(2, 1, 12, 12)
    truth[0, :, :, :6] = 0.25
    off = torch.randn(n, 1, 12, 12, generator=rng) * torch.tensordot(facts, truth, dims=1).exp()
    found = spreads_of(off, facts)
    inside = found[0, :, :, 1:5]
    assert abs(float(inside.mean()) - 0.25) < 0.05 and float(inside.std()) < 0.05
    assert float(found[0, :, :, 8:].abs().max()) < 0.05 and float(found[1].abs().max()) < 0.05
    assert float((stretch_of(found, torch.tensor([[50.0, 0.0]])) - 2).abs().min()) < 1e-5  # no further than twice


def test_who_differ_alike_share_a_row() -> None:
    """One solve then serves all of them."""
    apart = torch.tensor([[-1.0], [1.0]])
    assert stretch_of(torch.zeros(1, *SHAPE), apart).shape == (1, *SHAPE)
    assert stretch_of(torch.ones(1, *SHAPE), apart[:1].expand(5, 1)).shape == (1, *SHAPE)
    assert stretch_of(torch.ones(1, *SHAPE), apart).shape == (2, *SHAPE)


def test_chance_among_few_people_is_not_believed() -> None:
    """Sixty people who all differ alike: the mean law of a fit keeps its spreads near 0, a plain regression does not."""
    rng = torch.Generator().manual_seed(5)
    facts, images = torch.randn(60, 1, generator=rng), torch.randn(60, 1, 8, 8, generator=rng)
    law = ImageLaw((1, 8, 8), 1, FACTORS)
    law.fit(lambda rows: images[rows], torch.arange(60), facts)
    off = images - images.mean(0)
    plain = torch.tensordot(facts[:, 0] / facts.square().sum(), off.square(), dims=1) / (2 * off.square().mean(0))
    assert float(law.spreads.square().mean()) < 0.1 * float(plain.square().mean())
