"""Guidance against the oracle: at scale w the answer is p(x) p(given | x)^w, and scale 1 is the model itself."""

import oracle
import pytest
import torch
from oracle import WEIGHTS, Oracle

from metavoxel.diffusion import expect, sample
from metavoxel.errors import MetavoxelError
from metavoxel.guidance import guide
from metavoxel.question import Given
from metavoxel.solvers import DDIM
from metavoxel.times import SharedTimes, even_plan

ROWS = oracle.draw(3, seed=5)
SCAN = {"scan": Given(ROWS["scan"])}


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 3.0])
def test_classes_are_those_of_the_sharpened_likelihood(scale: float) -> None:
    denoiser = Oracle()
    plain = expect(denoiser, denoiser.schema, SCAN, ["diagnosis"])["diagnosis"].double()
    prior = WEIGHTS.sum(1).log()
    guided = expect(guide(denoiser, SCAN, scale), denoiser.schema, SCAN, ["diagnosis"])["diagnosis"].double()
    assert torch.allclose(guided, torch.log_softmax(prior + scale * (plain - prior), -1), atol=1e-4)


def test_only_the_named_guide() -> None:
    """Guided by the stage alone, p(diagnosis) p(scan | diagnosis) p(stage | diagnosis, scan)^2."""
    denoiser, given = Oracle(), {**SCAN, "stage": Given(ROWS["stage"])}
    both, scan = (expect(denoiser, denoiser.schema, known, ["diagnosis"])["diagnosis"] for known in (given, SCAN))
    guided = expect(guide(denoiser, ["stage"], 2.0), denoiser.schema, given, ["diagnosis"])["diagnosis"]
    assert torch.allclose(guided, torch.log_softmax(2 * both - scan, -1), atol=1e-4)


def test_guided_draws_show_the_condition_more_clearly() -> None:
    """Scans drawn for a class are told to be of that class more often, and vary less, as the scale grows."""
    denoiser, sure, spread = Oracle(), [], []
    for scale in (1.0, 2.0, 4.0):
        given = {"diagnosis": Given(torch.tensor([2]))}
        drawn = sample(guide(denoiser, given, scale), denoiser.schema, given, ["scan"], 500, even_plan(20), DDIM)["scan"][0]
        told = expect(denoiser, denoiser.schema, {"scan": Given(drawn)}, ["diagnosis"])["diagnosis"]
        sure.append(float(told[:, 2].exp().mean()))
        spread.append(float(drawn.std(0).mean()))
    assert sure == sorted(sure) and sure[-1] > sure[0] + 0.1
    assert spread == sorted(spread, reverse=True)


def test_scale_one_and_nothing_given_are_the_model_itself() -> None:
    denoiser = Oracle()
    assert guide(denoiser, SCAN, 1.0) is denoiser and guide(denoiser, (), 3.0) is denoiser


def test_senseless_guidance_is_refused() -> None:
    with pytest.raises(MetavoxelError, match="must be a number at least 0"):
        guide(Oracle(), SCAN, -1.0)
    with pytest.raises(MetavoxelError, match="times: mixture"):
        guide(Oracle(coverage=SharedTimes()), SCAN, 2.0)
