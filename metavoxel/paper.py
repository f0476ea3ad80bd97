"""The paper's denoiser: one time for all variables, epsilon-prediction of reals, x_0-prediction of classes.

Inside, outputs become clean predictions at once, so that losses and samplers meet what they meet elsewhere.
"""

import torch
from torch import Tensor, nn

from metavoxel.clocks import alpha, sigma
from metavoxel.diffusion import noise_error, weighed
from metavoxel.errors import MetavoxelError
from metavoxel.nets.paper import PaperNet, PaperSettings
from metavoxel.processes import Discrete
from metavoxel.question import Coverage
from metavoxel.schema import Continuous, Scalar, Schema, State, Times

LEAST_ALPHA = 0.01
"""Just below where latent diffusion's schedule ends (clocks.ScaledLinear)."""


class PaperDenoiser(nn.Module):
    """(State, Times) -> clean predictions, from one time for all entries of a row. Scalars have as many rows as images.

    A missing value is at level 1, as everywhere, and carries no loss; but the network knows one time only and takes the
    noise in its place for the value at that time. Cohorts with many gaps are for the joint architecture.
    """

    def __init__(self, schema: Schema, settings: PaperSettings, coverage: Coverage) -> None:
        super().__init__()
        if not schema.images:
            raise MetavoxelError(
                "architecture: paper works on an image and these variables hold none; use architecture: joint"
            )
        self.schema, self.coverage = schema, coverage
        self.channels = [image.fitted.channels for image in schema.images]
        self.spans = {v.name: v.encode(v.span)[0].tolist() for v in schema.scalars if isinstance(v, Continuous) and v.span}
        outputs = [v.process.levels if isinstance(v.process, Discrete) else 1 for v in schema.scalars]
        self.net = PaperNet(settings, len(schema.images[0].shape), sum(self.channels), outputs)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, state: State, times: Times) -> State:
        return self._within(self._clean(state, times))

    def _clean(self, state: State, times: Times) -> State:
        noise, answers = self.net(*self._entering(state, times))
        clean = self._scalars(answers, state, times)
        for image, eps in zip(self.schema.images, noise.split(self.channels, 1)):
            clean[image.name] = clean_value(state[image.name], eps, image.clock.tau(times[image.name]))
        return clean

    def judge(self, state: State, times: Times, x0: State) -> State:
        """The paper's loss of every entry."""
        return weighed(self._clean(state, times), self.schema, times, x0, noise_error)

    def scalars_alone(self, state: State, times: Times) -> State:
        """`forward` without the images, which more than half of the network is for."""
        return self._within(self._scalars(self.net.answers(*self._entering(state, times)), state, times))

    def _within(self, clean: State) -> State:
        """Numbers kept within their span in training, where an expected value lies, as by `clip_sample` of MONAI's DDIM:
        near noise, alpha = .012 makes eighty spans of an error of one in it, from which a sampler does not come back."""
        return {**clean, **{name: clean[name].clamp(low, high) for name, (low, high) in self.spans.items()}}

    def _entering(self, state: State, times: Times) -> tuple[Tensor, Tensor, Tensor]:
        """Images, scalars as numbers and the one time, as the network takes them."""
        images = torch.cat([state[image.name] for image in self.schema.images], 1)
        numbers = [_as_number(v, state[v.name]) for v in self.schema.scalars]
        scalars = torch.stack(numbers, 1) if numbers else images.new_zeros(len(images), 0)
        return images, scalars, self._shared(times)

    def _scalars(self, answers: list[Tensor], state: State, times: Times) -> State:
        clean = {}
        for v, raw in zip(self.schema.scalars, answers):
            if isinstance(v.process, Discrete):
                clean[v.name] = torch.log_softmax(raw, -1)
            else:
                clean[v.name] = clean_value(state[v.name], raw[:, 0], v.clock.tau(times[v.name]))
        return clean

    def freeze(self, images: State, times: Times) -> "KeptImages":
        """The denoiser of the scalars for these images (rows, ...). Scalars enter at the first layer, so
        that only the way up to the images is saved."""
        return KeptImages(self, images, times)

    def _shared(self, times: Times) -> Tensor:
        """The one time (n,) of each row: the least level, since what is missing is at 1."""
        levels = torch.cat([times[v.name].reshape(len(times[v.name]), -1) for v in self.schema], 1)
        t = levels.amin(1)
        if ((levels > t[:, None]) & (levels < 1)).any():
            raise MetavoxelError(
                "a model with architecture: paper knows one time for all variables and was asked with several; use "
                "replacement, or a model with architecture: joint"
            )
        return t


class KeptImages:
    """A denoiser of the scalars given images that stay as they are. Asks for rows * draws answers at a time."""

    def __init__(self, denoiser: PaperDenoiser, images: State, times: Times) -> None:
        self.denoiser, self.images, self.times = denoiser, images, times
        self.coverage = denoiser.coverage
        self.device = denoiser.device

    def __call__(self, state: State, times: Times) -> State:
        rows = len(next(iter(state.values())))
        images, levels = (
            {name: x.repeat_interleave(rows // len(x), 0) for name, x in part.items()}
            for part in (self.images, self.times)
        )
        return self.denoiser.scalars_alone({**state, **images}, {**times, **levels})

    def freeze(self, images: State, times: Times) -> "KeptImages":
        return self


def clean_value(x: Tensor, eps: Tensor, tau: Tensor) -> Tensor:
    """x_0 = (x_t - sigma eps) / alpha, from Eq. 1.

    At alpha = 0 the noise says nothing of x_0. The paper's discrete schedule ends before; on a clock that does not, the
    answer goes to 0, the mean of what is standardised, as alpha goes from LEAST_ALPHA to 0.
    """
    a = alpha(tau)
    return (x - sigma(tau) * eps) * a / a.clamp_min(LEAST_ALPHA) ** 2


def _as_number(v: Scalar, x: Tensor) -> Tensor:
    """A number as it is; a class's state as one number from -1 to 1 (paper, "Model")."""
    if isinstance(v.process, Discrete):
        return 2 * x.float() / (v.process.states - 1) - 1
    return x
