"""An image's codec: voxels <-> the standardised numbers that its process works on."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from metavoxel.codecs import Latent
from metavoxel.image_law import law_sizes
from metavoxel.nets.autoencoder import Autoencoder
from metavoxel.schema import Image

CHUNK = 32


class ImageCodec:
    """Voxels (n, *shape) <-> entries (n, channels, *grid) with mean 0 and standard deviation 1 per channel.

    The entries are an autoencoder's latents, or without one the voxels themselves.
    """

    def __init__(self, image: Image, autoencoder: Autoencoder | None = None) -> None:
        self.image, self.autoencoder = image, autoencoder

    @torch.no_grad()
    def raw(self, voxels: Tensor) -> Tensor:
        """Entries before standardisation."""
        x = voxels[:, None].float()
        return x if self.autoencoder is None else self.autoencoder.encode(x)

    def standardise(self, raw: Tensor) -> Tensor:
        latent = self.image.fitted
        return (raw - self._per_channel(latent.mean, raw)) / self._per_channel(latent.sd, raw)

    def encode(self, voxels: Tensor) -> Tensor:
        return self.standardise(self.raw(voxels))

    @torch.no_grad()
    def decode(self, entries: Tensor) -> Tensor:
        latent = self.image.fitted
        x = entries * self._per_channel(latent.sd, entries) + self._per_channel(latent.mean, entries)
        if self.autoencoder is None:
            return x[:, 0]
        return torch.cat([self.autoencoder.decode(part)[:, 0] for part in x.split(CHUNK)])

    def fit(self, entries: Callable[[Tensor], Tensor], rows: Tensor) -> "ImageCodec":
        """The same codec, standardised by training images: entries(rows) gives (n, channels, *grid) before that."""
        total = square = torch.zeros((), dtype=torch.float64)
        for part in rows.split(CHUNK):
            raw = entries(part).double()
            total, square = total + raw.sum(0), square + (raw**2).sum(0)
        each = tuple(range(1, total.dim()))
        mean = (total / len(rows)).mean(each)
        variance = ((square / len(rows)).mean(each) - mean**2).clamp_min(1e-8)
        about_own = (square / len(rows) - (total / len(rows)) ** 2).clamp_min(0).mean(each)
        factors, neighbours = law_sizes(total.shape)
        latent = Latent(
            channels=total.shape[0],
            grid=tuple(total.shape[1:]),
            mean=tuple(mean.tolist()),
            sd=tuple(variance.sqrt().tolist()),
            marginal_variance=max(float((about_own / variance).mean()), 1e-3),
            factors=factors,
            neighbours=neighbours,
        )
        return ImageCodec(replace(self.image, latent=latent), self.autoencoder)

    def _per_channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device).reshape(-1, *(1,) * len(self.image.shape))


def affine_of(image: Image) -> np.ndarray:
    """(4, 4): the model's grid in millimetres, RAS, its centre at the origin; for scans that come from no scan."""
    spacing = np.array((*image.spacing, 1.0, 1.0, 1.0)[:3])
    shape = np.array((*image.shape, 1)[:3])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (shape - 1) / 2
    return affine
