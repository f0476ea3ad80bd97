"""An image's codec: voxels <-> the standardised numbers that its process works on."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from metavoxel.nets.autoencoder import Autoencoder
from metavoxel.schema import Image, Latent

CHUNK = 32
RIDGE = 10.0
"""Pseudo-people of the average kind, against chance in small cohorts."""


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

    def fit(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple["ImageCodec", list[Tensor]]:
        """The same codec, standardised by raw entries (n, channels, *grid) of training images, seen once, each with its
        facts (n, facts); then of every standardised entry the mean, the variance, its slopes on the facts (facts, ...), by
        ridge regression, and the variance that they leave: (channels, *grid) each."""
        count, total, square = 0, None, None
        cross = inner = told = torch.zeros(())
        for raw, facts in batches:
            raw, facts = raw.double(), facts.double()
            count += len(raw)
            cross = cross + torch.tensordot(facts.T, raw, dims=1)
            inner, told = inner + facts.T @ facts, told + facts.sum(0)
            total = raw.sum(0) if total is None else total + raw.sum(0)
            square = (raw**2).sum(0) if square is None else square + (raw**2).sum(0)
        assert total is not None and square is not None, "fit needs at least one batch"
        spatial = tuple(range(1, total.dim()))
        mean = (total / count).mean(spatial)
        sd = ((square / count).mean(spatial) - mean**2).clamp_min(1e-8).sqrt()
        each = (-1, *(1,) * len(spatial))
        entry_mean = (total / count - mean.reshape(each)) / sd.reshape(each)
        entry_variance = (square / count - (total / count) ** 2).clamp_min(0) / sd.reshape(each) ** 2
        cross = cross - torch.tensordot(told[:, None], (total / count)[None], dims=1)
        inner = inner - told[:, None] * told / count
        ridge = RIDGE * torch.eye(len(told), dtype=torch.float64)
        slopes = torch.linalg.solve(inner + ridge, cross.flatten(1)).reshape(cross.shape) / sd.reshape(each)
        explained = (slopes * torch.tensordot(inner / count, slopes, dims=1)).sum(0)
        latent = Latent(
            channels=total.shape[0],
            grid=tuple(total.shape[1:]),
            mean=tuple(mean.tolist()),
            sd=tuple(sd.tolist()),
            marginal_variance=max(float(entry_variance.mean()), 1e-3),
        )
        codec = ImageCodec(replace(self.image, latent=latent), self.autoencoder)
        return codec, [x.float() for x in (entry_mean, entry_variance, slopes, entry_variance - explained)]

    def _per_channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device).reshape(-1, *(1,) * len(self.image.shape))


def affine_of(image: Image) -> np.ndarray:
    """(4, 4): the model's grid in millimetres, RAS, its centre at the origin; for scans that come from no scan."""
    spacing = np.array((*image.spacing, 1.0, 1.0, 1.0)[:3])
    shape = np.array((*image.shape, 1)[:3])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (shape - 1) / 2
    return affine
