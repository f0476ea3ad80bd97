"""The image codec: MONAI's KL autoencoder of latent diffusion (Rombach et al. 2022) in two or three dimensions."""

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from metavoxel.codecs import STRICT
from metavoxel.errors import MetavoxelError
from metavoxel.nets.blocks import crop, pad_to_multiple

GROUPS = 8


@settings(frozen=True, config=STRICT)
class AutoencoderSettings:
    """Sizes of the autoencoder; every depth after the first halves the grid."""

    channels: tuple[int, ...] = Field(default=(16, 32, 64), min_length=1)
    latent_channels: int = Field(default=8, ge=1)
    blocks: int = Field(default=1, ge=1)
    kl_weight: float = 1e-5

    def __post_init__(self) -> None:
        for width in self.channels:
            if width < 1 or width % GROUPS:
                raise MetavoxelError(f"channels of {width} must be a multiple of {GROUPS}, in which they are normalised")

    @property
    def factor(self) -> int:
        return 2 ** (len(self.channels) - 1)

    def latent_grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The latents' grid for images of `shape`, which is padded to a multiple of `factor`."""
        return tuple(-(-size // self.factor) for size in shape)


class Autoencoder(nn.Module):
    """Images (n, 1, *shape) <-> latents (n, channels, *latent_grid). Any shape: it is padded inside."""

    def __init__(self, settings: AutoencoderSettings, shape: tuple[int, ...]) -> None:
        super().__init__()
        from monai.networks.nets.autoencoderkl import AutoencoderKL  # 3 s to import

        self.settings, self.shape = settings, shape
        self.kl = AutoencoderKL(
            spatial_dims=len(shape),
            in_channels=1,
            out_channels=1,
            num_res_blocks=(settings.blocks,) * len(settings.channels),
            channels=settings.channels,
            attention_levels=(False,) * len(settings.channels),
            latent_channels=settings.latent_channels,
            norm_num_groups=GROUPS,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        if len(shape) == 3:  # on a CPU a training step takes a quarter less
            self.kl.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def encode(self, x: Tensor) -> Tensor:
        """The posterior's mean."""
        return self.kl.encode(pad_to_multiple(x, self.settings.factor))[0]

    def decode(self, z: Tensor) -> Tensor:
        return crop(self.kl.decode(z), self.shape)

    def loss(self, x: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, float]]:
        """L1 + KL to N(0, 1), both as means over voxels or entries; noise: (n, channels, *latent_grid), N(0, 1)."""
        mean, sd = self.kl.encode(pad_to_multiple(x, self.settings.factor))
        rebuilt = self.decode(mean + sd * noise)
        l1 = (rebuilt - x).abs().mean()
        kl = 0.5 * (mean**2 + sd**2 - 2 * torch.log(sd) - 1).mean()
        return l1 + self.settings.kl_weight * kl, {"l1": l1.item(), "kl": kl.item()}
