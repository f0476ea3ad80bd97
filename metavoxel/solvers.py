"""Rules on clean predictions. A solver says which clean value a step should aim at; the process makes the step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metavoxel.clocks import log_snr


@dataclass(frozen=True)
class Solver:
    """`order` 1: the prediction as it is. `order` 2: DPM-Solver++(2M) (Lu et al. 2022), reals only.

    `eta` 1 takes ancestral steps, 0 deterministic ones (chains are always random). `draws`: a number's clean value is
    drawn from its whole law instead of expected, as a class's is; so a single step is right, if the denoiser is, of one
    variable at a time.
    """

    order: int = 1
    eta: float = 1.0
    draws: bool = False

    def aim(self, clean: Tensor, previous: tuple[Tensor, Tensor] | None, tau_t: Tensor, tau_s: Tensor) -> Tensor:
        """The clean value to step to, for the interval tau_t -> tau_s.

        previous: (clean prediction, tau) of the interval before, None where there is none. Intervals that touch the
        data or the prior are infinite in log-SNR; there the rule falls back to first order.
        """
        if self.order == 1 or previous is None:
            return clean
        before, tau_before = previous
        h, h_before = log_snr(tau_s) - log_snr(tau_t), log_snr(tau_t) - log_snr(tau_before)
        ratio = h / (2 * h_before)
        return clean + torch.where(torch.isfinite(ratio), ratio, 0.0) * (clean - before)


ANCESTRAL = Solver(order=1, eta=1.0)
DDIM = Solver(order=1, eta=0.0)
DPM2M = Solver(order=2, eta=0.0)
BY_LAW = Solver(order=1, eta=1.0, draws=True)
