"""E[x_0 | x_t] of a normal law of any covariance, entry by entry at its own level: what shorter ways are held against."""

import torch
from torch import Tensor

from metavoxel.clocks import alpha, sigma


def expected(mean: Tensor, covariance: Tensor, x: Tensor, tau: Tensor) -> Tensor:
    """Of one image: mean, x, tau (n,), inf where nothing is seen; covariance (n, n). In double precision."""
    seen = torch.isfinite(tau)
    a, noise = alpha(tau)[seen].double(), sigma(tau)[seen].double()
    total = a[:, None] * covariance[seen][:, seen] * a + torch.diag(noise**2)
    off = x.double()[seen] - a * mean[seen]
    return mean + covariance[:, seen] * a @ torch.linalg.solve(total, off)
