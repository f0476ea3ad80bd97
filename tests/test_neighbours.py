"""What neighbours share: against full covariance matrices, and against what is lost without it."""

import pytest
import torch
from normal import expected
from torch import Tensor

from metavoxel.clocks import Cosine
from metavoxel.facts import Told
from metavoxel.image_law import ImageLaw, law_sizes
from metavoxel.neighbours import SHIFTS, SIDE, Neighbours, Tiling, components, fitted, shares

SHAPE = (2, 9, 6)


@pytest.mark.parametrize("grid", [(9,), (16, 5), (3, 8, 11)])
@pytest.mark.parametrize("shift", SHIFTS)
def test_folding_loses_nothing(grid: tuple[int, ...], shift: int) -> None:
    tiling, x = Tiling(grid, shift), torch.randn(3, 2, *grid)
    folded = tiling.fold(x)
    assert folded.shape == (3, len(tiling), 2 * SIDE ** len(grid))
    assert torch.equal(tiling.unfold(folded), x)


def test_a_block_holds_neighbours() -> None:
    """Numbers of rows and columns, folded, span no more than a block's side."""
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(17.0), indexing="ij")
    for shift in SHIFTS:
        for numbers in (rows, columns):
            folded = Tiling((20, 17), shift).fold(numbers[None] + 1)
            inside = torch.where(folded > 0, folded, torch.nan)
            for block in inside:
                seen = block[~block.isnan()]
                assert len(seen) and seen.max() - seen.min() < SIDE


def test_shares_are_one_in_all_and_least_at_the_seams() -> None:
    both = shares([Tiling((32, 20), shift) for shift in SHIFTS])
    assert torch.allclose(both.sum(0), torch.ones(32, 20))
    assert both[0, 8, 2] == 0.25 and both[0, 4, 2] == pytest.approx(2.5 / 3)


def a_law(seed: int = 0) -> ImageLaw:
    rng = torch.Generator().manual_seed(seed)
    law = ImageLaw(SHAPE, 1, factors=2, neighbours=3)
    mean, slopes, factors = (torch.randn(*size, *SHAPE, generator=rng) for size in ((), (1,), (2,)))
    law.set(mean, torch.full(SHAPE, 9.0), slopes, factors, torch.full(SHAPE, 4.0))
    law.local.copy_(torch.randn(law.local.shape, generator=rng))
    law.local_rest.copy_(0.3 + torch.rand(law.local_rest.shape, generator=rng))
    return law


def by_hand(law: ImageLaw, which: int, x: Tensor, tau: Tensor) -> Tensor:
    """E[x_0 | x_t] of each row by the covariance of all entries, of one tiling: components of a block hang together, and
    those of different blocks do not. Nothing is told of the fact, whose variance is 1."""
    tiling = law.tilings[which]
    block = tiling.fold(torch.ones(SHAPE)) * torch.arange(len(tiling))[:, None]
    same = tiling.unfold(block[None])[0].flatten()
    common = torch.cat([law.slopes, law.factors]).flatten(1).double()
    own = law.local[which].flatten(1).double()
    covariance = common.T @ common + (own.T @ own) * (same[:, None] == same)
    covariance = covariance + torch.diag(law.local_rest[which].flatten().double())
    mean, levels = law.mean.flatten().double(), tau.expand_as(x).flatten(1)
    found = [expected(mean, covariance, seen, level) for seen, level in zip(x.flatten(1), levels)]
    return torch.stack(found).float().reshape(x.shape)


@pytest.mark.parametrize("alike", [True, False])
def test_the_clean_image_is_that_of_bayes_rule(alike: bool) -> None:
    """Entries known, noised and absent; the two tilings' answers are weighed by how far their seams are."""
    law, rng = a_law(), torch.Generator().manual_seed(1)
    t = torch.rand(1 if alike else 2, 1, *SHAPE[1:], generator=rng).expand(2, -1, -1, -1).clone()
    t[..., 0, :], t[..., 1, :] = 0.0, 1.0
    x, tau = torch.randn(2, *SHAPE, generator=rng), Cosine().tau(t)
    nothing = Told(torch.zeros(2, 1), torch.ones(2, 1))
    clean = law.given([nothing]).expect(x, tau).mean
    both = [by_hand(law, k, x, tau) for k in range(2)]
    blended = sum(share * answer for share, answer in zip(shares(law.tilings), both))
    torch.testing.assert_close(clean, blended, atol=5e-4, rtol=5e-4)
    torch.testing.assert_close(clean[..., 0, :], x[..., 0, :], atol=1e-5, rtol=1e-5)
    assert (both[0] - both[1]).abs().max() > 0.1, "two tilings are two laws"


@pytest.mark.parametrize(("rows", "entries"), [(400, 12), (30, 50)])
def test_components_are_those_of_the_covariance(rows: int, entries: int) -> None:
    """Whichever side is smaller; less what chance adds, which noise alone is all of."""
    rng = torch.Generator().manual_seed(0)
    strong = torch.randn(rows, 1, generator=rng) * 5 * torch.randn(1, entries, generator=rng)
    found = components(strong + torch.randn(rows, entries, generator=rng), 2)
    covariance = strong.T @ strong / rows
    assert float((found[:1].T @ found[:1] - covariance).norm() / covariance.norm()) < 0.15
    alone = components(torch.randn(rows, entries, generator=rng), 2)
    assert float((alone**2).sum()) < 0.25 * entries


def test_a_block_that_never_varies_has_no_components() -> None:
    off = torch.zeros(40, 1, 16, 16)
    off[..., :8, :8] = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loadings, rest = fitted(off, Tiling((16, 16)), 2, floor=0.01)
    assert Neighbours(Tiling((16, 16)), loadings, rest, loadings[:0]).live.tolist() == [0]
    assert (rest[:, 8:] == 0.01).all()


def test_what_strays_together_does_not_outvote_the_whole_image() -> None:
    """A common part spans the image; what it leaves is the same over 4 x 4 entries. One half tells the common part of the
    other; taken as independent, entries count sixteen times, and it is told worse."""
    rng, n, parts = torch.Generator().manual_seed(3), 1500, 6

    def grown(x: Tensor) -> Tensor:
        return x.repeat_interleave(4, -2).repeat_interleave(4, -1)

    factor, rest = torch.randn(1, parts, parts, generator=rng), 3 * torch.randn(n, parts, parts, generator=rng)
    common = grown(torch.randn(n, 1, 1, generator=rng) * factor)[:, None]
    images = common + grown(rest)[:, None]
    images = images + 0.3 * torch.randn(images.shape, generator=rng)
    size = images.shape[-1]
    hidden = torch.arange(size).expand(size, size) >= size // 2
    level = torch.where(hidden, torch.inf, 0.0)[None, None]

    def error(neighbours: int) -> float:
        law = ImageLaw((1, size, size), 0, 1, neighbours)
        law.fit(lambda who: images[who], torch.arange(1000), torch.zeros(1000, 0))
        law.doubt.fill_(1.0)  # it makes up for the same, but by one number for the whole image
        told = law.given([]).expect(images[1000:], level).mean - law.mean
        return float(((told - common[1000:])[..., hidden] ** 2).mean())

    constant = float((common[1000:][..., hidden] ** 2).mean())
    assert error(24) < 0.8 * error(0) < 0.8 * constant


def test_a_law_that_is_changed_is_not_the_one_kept() -> None:
    law, x, tau = a_law(), torch.randn(2, *SHAPE), torch.full((1, 1, 1, 1), 0.3)

    def clean() -> Tensor:
        return law.given([Told(torch.zeros(2, 1), torch.ones(2, 1))]).expect(x, tau).mean

    before, other = clean(), a_law(1)
    law.load_state_dict(other.state_dict())
    assert not torch.allclose(clean(), before)
    law.local.mul_(2)
    other.local.mul_(2)
    assert torch.equal(clean(), other.given([Told(torch.zeros(2, 1), torch.ones(2, 1))]).expect(x, tau).mean)


def test_small_grids_have_no_blocks_and_large_ones_no_more_than_memory_holds() -> None:
    assert law_sizes((1, 32, 40, 32)) == (32, 24)
    assert law_sizes((1, 8, 8))[1] == law_sizes((1, 32, 40, 15))[1] == 0
    assert law_sizes((1, 160, 192, 160))[1] == 1


def test_of_few_people_or_of_sameness_there_are_few_components_or_none() -> None:
    off = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    assert components(off, 0).shape == (0, 8) and components(off[:2], 5).shape == (2, 8)
    assert components(off[:1] * 0, 5).abs().max() == 0
