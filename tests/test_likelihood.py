"""Likelihoods against the closed form of the oracle's law."""

import oracle
import pytest
import torch
from oracle import MEANS, SIGMA, WEIGHTS, Oracle
from torch import Tensor

from metavoxel.errors import MetavoxelError
from metavoxel.likelihood import log_likelihood
from metavoxel.question import Given
from metavoxel.times import SharedTimes

ROWS = oracle.draw(8, seed=13)
KNOWN = {"diagnosis": Given(ROWS["diagnosis"]), "stage": Given(ROWS["stage"])}


def log_density(x: Tensor, entries: slice, pairs: Tensor) -> Tensor:
    """log p(x) of some entries of z (n, d) under weights (n, pairs) of class and stage."""
    means, sigma = MEANS.flatten(0, 1)[:, entries], SIGMA[entries, entries]
    law = torch.distributions.MultivariateNormal(means, sigma)
    return torch.logsumexp(pairs.log() + law.log_prob(x.double()[:, None]), 1)


def everyone(n: int) -> Tensor:
    return WEIGHTS.flatten().expand(n, -1)


def test_a_number_has_the_exact_log_density() -> None:
    exact = log_density(ROWS["score"][:, None], slice(0, 1), everyone(8))
    got = log_likelihood(Oracle(), oracle.schema(), {}, "score", ROWS["score"], levels=400)
    assert torch.allclose(got.double(), exact, atol=0.1)


def test_given_a_scan_its_features_are_used_for_all_levels() -> None:
    joint = log_density(torch.cat([ROWS["score"][:, None], ROWS["scan"].flatten(1)], 1), slice(0, None), everyone(8))
    scan = log_density(ROWS["scan"].flatten(1), slice(1, None), everyone(8))
    got = log_likelihood(Oracle(), oracle.schema(), {"scan": Given(ROWS["scan"])}, "score", ROWS["score"], levels=800)
    assert torch.allclose(got.double(), joint - scan, atol=0.3)
    assert float(got.mean()) == pytest.approx(float((joint - scan).mean()), abs=0.1)


@pytest.mark.parametrize("given", [{}, KNOWN], ids=["nothing", "facts"])
def test_an_image_has_the_exact_log_density(given: dict[str, Given]) -> None:
    pair = torch.nn.functional.one_hot(ROWS["diagnosis"] * 4 + ROWS["stage"], 12).double()
    exact = log_density(ROWS["scan"].flatten(1), slice(1, None), pair if given else everyone(8))
    got = log_likelihood(Oracle(), oracle.schema(), given, "scan", ROWS["scan"], levels=1600)
    assert float(got.mean()) == pytest.approx(float(exact.mean()), abs=0.2)
    assert torch.corrcoef(torch.stack([got.double(), exact]))[0, 1] > 0.95


def test_a_class_has_its_log_probability() -> None:
    got = log_likelihood(Oracle(), oracle.schema(), {}, "diagnosis", ROWS["diagnosis"])
    assert torch.allclose(got.double(), WEIGHTS.sum(1).log()[ROWS["diagnosis"]], atol=1e-5)


def test_what_cannot_be_asked() -> None:
    with pytest.raises(MetavoxelError, match="is given"):
        log_likelihood(Oracle(), oracle.schema(), KNOWN, "stage", ROWS["stage"])
    with pytest.raises(MetavoxelError, match="separate levels"):
        log_likelihood(Oracle(coverage=SharedTimes()), oracle.schema(), {}, "score", ROWS["score"])
