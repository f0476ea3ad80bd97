"""What comes true on average of what is expected of images."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import metavoxel as mv
from metavoxel.clocks import alpha, log_snr, sigma
from metavoxel.denoiser import JointDenoiser
from metavoxel.recalibration import CLOSEST, Recalibration, even_tau

ROWS, GRID = 600, (48, 48)
ENDS = torch.tensor([[-1.0, -1.0], [2.0, 2.0]])


def bias(expected: Tensor, tau: Tensor, known: float) -> Tensor:
    """Of two channels, the second off by twice as much; less at lower levels, other where a part is known."""
    size = torch.exp(-tau).neg().add(1) * (0.2 - 0.3 * known)
    return size * torch.sin(2 * expected) * torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)


SLOPES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, -0.5]]).T[..., None].repeat(1, 1, 5)
"""Of three facts (facts, channels, entries): the last two, of a class, move images against each other."""


def off(known: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What was expected, at which levels, of people with which facts, what came true; known: the share of entries at level
    0. The first fact adds to what is expected above .5, the class takes from it at all."""
    rng = torch.Generator().manual_seed(seed)
    tau = even_tau(torch.rand(ROWS, 1, 1, 1, generator=rng)).expand(ROWS, 1, *GRID)
    tau = torch.where(torch.rand(ROWS, 1, *GRID, generator=rng) < known, 0.0, tau)
    expected = -1 + 3 * torch.rand(ROWS, 2, *GRID, generator=rng)
    noise = 0.1 * torch.randn(expected.shape, generator=rng)
    facts = torch.cat([torch.randn(ROWS, 1, generator=rng), torch.zeros(ROWS, 2)], 1)
    facts[:, 1] = (torch.rand(ROWS, generator=rng) < 0.5).float() - 0.5
    facts[:, 2] = -facts[:, 1]
    return expected, tau, facts, expected + bias(expected, tau, known) + by_facts(expected, facts) + noise


def by_facts(expected: Tensor, facts: Tensor) -> Tensor:
    age, level = (facts[:, k].reshape(-1, 1, 1, 1) for k in (0, 1))
    return 0.05 * age * (expected > 0.5) - 0.1 * level


def test_a_shift_is_found_for_every_expectation_level_and_channel() -> None:
    recalibration = Recalibration(2, 3)
    recalibration.clear(ENDS, SLOPES)
    recalibration.settle(sum((recalibration.counts(*off(known, 1)) for known in (0.0, 0.5)), torch.zeros(())))
    for known in (0.0, 0.5):
        expected, tau, facts, _ = off(known, 2)
        wanted = torch.where(tau > 0, expected + bias(expected, tau, known) + by_facts(expected, facts), expected)
        found = recalibration(expected, tau, facts)
        assert torch.equal(found[(tau <= 0).expand_as(found)], expected[(tau <= 0).expand_as(found)])
        error, before = ((x - wanted).pow(2).mean().sqrt() for x in (found, expected))
        assert error < 0.15 * before


def test_levels_are_met_evenly_and_one_for_a_whole_image_serves_it() -> None:
    tau = even_tau(torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(log_snr(tau), torch.tensor([-CLOSEST, 0.0, CLOSEST]), atol=1e-3, rtol=0)
    recalibration = Recalibration(2, 3)
    recalibration.clear(ENDS, SLOPES)
    recalibration.settle(recalibration.counts(*off(0.0, 1)))
    expected = off(0.0, 2)[0]
    once = torch.full((1, 1, 1, 1), 0.7)
    facts = torch.ones(ROWS, 3)
    assert torch.equal(recalibration(expected, once, facts), recalibration(expected, once.expand(ROWS, 1, *GRID), facts))
    for tau_at_an_end in (0.0, math.inf):
        assert recalibration(expected, torch.full((1, 1, 1, 1), tau_at_an_end), facts).isfinite().all()


def test_what_few_people_share_is_not_taken_for_what_all_do() -> None:
    """A brightness of one's own puts all of a person's entries off together."""
    rng = torch.Generator().manual_seed(0)
    for people, least, most in ((4, 0.0, 0.6), (400, 0.85, 1.15)):
        own = 0.3 * torch.randn(people, 1, 1, 1, generator=rng)
        expected = -1 + 3 * torch.rand(people, 1, *GRID, generator=rng)
        recalibration, tau, facts = Recalibration(1, 0), torch.ones(people, 1, *GRID), torch.zeros(people, 0)
        recalibration.clear(ENDS[:, :1], torch.zeros(0, 5))
        recalibration.settle(recalibration.counts(expected, tau, facts, expected + own))
        chance = recalibration(expected, tau, facts) - expected
        assert chance.abs().mean() < 0.5 * max(0.04, float(own.mean().abs()))  # nothing is off on average
        recalibration.settle(recalibration.counts(expected, tau, facts, expected + own - own.mean() + 0.2))
        assert least <= (recalibration(expected, tau, facts) - expected).mean() / 0.2 < most
    recalibration.settle(recalibration.counts(expected[:1], tau[:1], facts[:1], expected[:1] + 0.2))
    assert not recalibration.shift.any()  # one person says nothing of others


@pytest.mark.parametrize(("people", "most"), [(2, 1.0), (5, 1.0), (14, 0.95), (200, 0.4), (600, 0.2)])
def test_what_is_put_right_is_nearer_to_the_truth_than_nothing(people: int, most: float) -> None:
    """A brightness of one's own puts all of a person's entries off together: of few people, chance is never put right."""
    off = []
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        own, facts = 0.3 * torch.randn(people, 1, 1, 1, generator=rng), torch.randn(people, 1, generator=rng)
        expected, tau = -1 + 3 * torch.rand(people, 1, 16, 16, generator=rng), torch.ones(people, 1, 16, 16)
        recalibration = Recalibration(1, 1)
        recalibration.clear(ENDS[:, :1], torch.ones(1, 5))
        true = expected + own + 0.1 + 0.1 * facts.reshape(-1, 1, 1, 1)
        recalibration.settle(recalibration.counts(expected, tau, facts, true))
        shift, more = (recalibration(expected, tau, facts * 0 + fact) - expected for fact in (0, 1))
        off.append([shift.mean() - 0.1, (more - shift).mean() - 0.1])
    error = torch.tensor(off).square().mean(0).sqrt() / 0.1
    assert (error <= most).all(), error  # 1: nothing is put right


def test_what_was_never_met_and_what_is_not_fitted_stays() -> None:
    for facts in (torch.ones(1, 3), torch.ones(1, 0)):
        recalibration = Recalibration(1, facts.shape[1])
        expected = torch.linspace(-2, 2, 50).reshape(1, 1, 50)
        assert torch.equal(recalibration(expected, torch.ones(1, 1, 1), facts), expected)
        recalibration.clear(ENDS[:, :1], torch.zeros(facts.shape[1], 5))
        nothing = torch.zeros(1, 1, 0)
        recalibration.settle(recalibration.counts(nothing, nothing, facts, nothing))
        assert torch.equal(recalibration(expected, torch.ones(1, 1, 1), facts), expected)


def two_toned(n: int, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Discs of a size of their own, bright on black: between the two is nothing."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16] - 7.5
    radius = rng.uniform(3, 7, n)[:, None, None]
    return (np.hypot(x, y) < radius).astype(np.float32), pd.DataFrame({"age": rng.normal(50, 10, n)})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> mv.MetaVoxel:
    images, table = two_toned(1200, 0)
    joint = {"steps": 60, "batch": 32, "rate": 2e-3, "warmup": 10, "validate_every": 60}
    net = {"widths": (16, 32), "patch": 1, "token_width": 32}
    config = mv.preset("tiny", net=net, joint=joint, reading=0, augment=False, validation=0.5, times={"read": 0.2})
    schema = mv.Schema([mv.Image("scan", (16, 16)), mv.Continuous("age")])
    return mv.fit(schema, {"scan": images}, table, tmp_path_factory.mktemp("discs") / "model", config, quiet=True)


def test_others_images_are_told_better_and_without_bias(model: mv.MetaVoxel) -> None:
    images, table = two_toned(400, 1)
    denoiser, image = model.denoiser, model.first_image()
    assert isinstance(denoiser, JointDenoiser)
    x0 = model.codecs["scan"].encode(torch.from_numpy(images))
    age = model.schema.scalar("age").encode(table["age"])[0]
    t = torch.full((400,), 0.6)
    tau = image.clock.tau(t).reshape(-1, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=torch.manual_seed(0))
    noised = alpha(tau) * x0 + sigma(tau) * noise
    levels = {"scan": t.reshape(-1, 1, 1, 1).expand(-1, 1, 16, 16), "age": torch.zeros(400)}

    def asked() -> tuple[float, float]:
        """Squared error, and the root mean square of its mean among what is expected alike."""
        with torch.no_grad():
            found = denoiser({"scan": noised, "age": age}, levels)["scan"]
        alike = [(x0 - found)[(found > low) & (found <= low + 0.1)] for low in torch.linspace(-1.5, 1.5, 31)]
        counts = torch.tensor([float(len(part)) for part in alike])
        means = torch.stack([part.mean() if len(part) else torch.zeros(()) for part in alike])
        return float((found - x0).pow(2).mean()), float(((means**2 * counts).sum() / counts.sum()).sqrt())

    error, partial = asked()
    kept = {name: x.clone() for name, x in denoiser.state_dict().items()}
    denoiser.forget_held_out()
    before, partial_before = asked()
    denoiser.load_state_dict(kept)
    assert error < 0.9 * before and partial < 0.7 * partial_before


def test_it_is_kept_with_the_model(model: mv.MetaVoxel, tmp_path: Path) -> None:
    model.save(tmp_path / "again")
    again = mv.load(tmp_path / "again").denoiser
    assert isinstance(again, JointDenoiser) and isinstance(model.denoiser, JointDenoiser)
    assert torch.equal(again.recalibration("scan").shift, model.denoiser.recalibration("scan").shift)
