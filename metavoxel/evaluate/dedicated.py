"""Networks that can do nothing but tell facts from a scan: a 3-D DenseNet121 and a ViT (paper, "Baselines").

The other facts are joined to the features of the scan. Each answer is trained with them and without, from the same
features, so one network serves both questions; a fact that is missing in the table looks as one that is not told.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import DenseNet121
from torch import Tensor, nn

from metavoxel.augment import augment
from metavoxel.checkpoint import load_weights, read_tensors, write_tensors
from metavoxel.config import Optimiser
from metavoxel.data.shares import held_out
from metavoxel.device import place_of
from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.study import Part, Study
from metavoxel.nets.blocks import pad_to_multiple
from metavoxel.noise import Noise
from metavoxel.schema import Categorical, Scalar, Schema
from metavoxel.training import optimise

HIDDEN = 64
CHUNK = 32
"""Scans in memory at a time when nothing is learned."""


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) in as many dimensions as the scan; its class token is the features.

    Of PyTorch's own blocks: MONAI's ViT has the same ones, but needs a further package.
    """

    def __init__(self, channels: int, shape: Sequence[int], patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patch = patch
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[len(shape)]
        self.embed = convolution(channels, width, patch, stride=patch)
        count = int(np.prod([-(-size // patch) for size in shape]))
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, count + 1, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, scans: Tensor) -> Tensor:
        """(n, channels, *shape) -> (n, width)."""
        tokens = self.embed(pad_to_multiple(scans, self.patch)).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([self.first.expand(len(tokens), -1, -1), tokens], 1) + self.places)[:, 0]


class Dedicated(nn.Module):
    """Scans and, if told, the other facts -> an answer for each target.

    kind: densenet or vit; sizes: see `sizes.Sizes`. schema: of the scans and of all facts, fitted.
    """

    def __init__(self, kind: str, sizes: Mapping[str, int], schema: Schema, targets: Sequence[str]) -> None:
        super().__init__()
        self.kind, self.sizes, self.schema, self.targets = kind, dict(sizes), schema, tuple(targets)
        shape = schema.images[0].shape
        if kind == "vit":
            self.trunk: nn.Module = ViT(len(schema.images), shape, **self.sizes)
            width = self.sizes["width"]
        else:
            self.trunk = DenseNet121(len(shape), len(schema.images), 1, **self.sizes)  # type: ignore[arg-type]
            width = self.trunk.class_layers.out.in_features  # type: ignore[assignment, union-attr]
            self.trunk.class_layers.out = nn.Identity()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width + _width(schema, name), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, _outputs(v)))
            for name, v in zip(self.targets, self.wanted)
        )

    @property
    def wanted(self) -> list[Scalar]:
        return [self.schema.scalar(name) for name in self.targets]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def features(self, scans: Tensor) -> Tensor:
        """(n, images, *shape) -> (n, width): what every answer is read from."""
        return self.trunk(scans)

    def read(self, features: Tensor, facts: Sequence[Tensor] | None = None) -> list[Tensor]:
        """For each target a score (n, 1) or logits (n, levels). facts: of each target, (n, widths); None: none are told."""
        answers = []
        for number, (head, name) in enumerate(zip(self.heads, self.targets)):
            told = features.new_zeros(len(features), _width(self.schema, name)) if facts is None else facts[number]
            answers.append(head(torch.cat([features, told.to(features.dtype)], 1)).float())
        return answers

    @torch.no_grad()
    def answers(self, scans: Tensor, facts: Sequence[Tensor] | None = None) -> dict[str, np.ndarray]:
        """Means in the number's unit (n,), probabilities of the levels (n, levels), of scans (n, images, *shape)."""
        parts = [
            self.read(self.features(part.to(self.device)), facts and [fact[rows].to(self.device) for fact in facts])
            for rows, part in ((slice(i, i + CHUNK), scans[i : i + CHUNK]) for i in range(0, len(scans), CHUNK))
        ]
        found = {}
        for v, raw in zip(self.wanted, (torch.cat(own) for own in zip(*parts))):
            found[v.name] = raw.softmax(1).cpu().numpy() if isinstance(v, Categorical) else v.decode(raw[:, 0])
        return found

    def save(self, path: Path) -> None:
        """Weights, and all that is needed to build the network again."""
        about = {"kind": self.kind, "sizes": self.sizes, "schema": self.schema.to_dict(), "targets": self.targets}
        write_tensors(path, self.state_dict(), about)


def load_dedicated(path: Path, device: str | torch.device = "cpu") -> Dedicated:
    """A network that `train_dedicated` saved."""
    tensors, about = read_tensors(path)
    if not {"kind", "sizes", "schema", "targets"} <= about.keys():
        raise MetavoxelError(f"{path}: is no network of metavoxel baselines; give the one in DIR/densenet")
    network = Dedicated(about["kind"], about["sizes"], Schema.from_dict(about["schema"], str(path)), about["targets"])
    load_weights(network, tensors, path)
    return network.to(device).eval()


@torch.no_grad()
def features_of(network: Dedicated, scans: np.ndarray) -> np.ndarray:
    """Features (n, width) float32 of scans (n, *shape), or (n, images, *shape), on the network's grid."""
    shape = network.schema.images[0].shape
    scans = scans[:, None] if scans.ndim == len(shape) + 1 else scans
    if scans.shape[1:] != (len(network.schema.images), *shape):
        names = ", ".join(image.name for image in network.schema.images)
        raise MetavoxelError(f"scans of shape {scans.shape[2:]} for a network of {names} on the grid {shape}; conform them")
    parts = torch.from_numpy(np.ascontiguousarray(scans, np.float32)).split(CHUNK)
    return torch.cat([network.features(part.to(network.device)).float().cpu() for part in parts]).numpy()


def train_dedicated(
    study: Study, kind: str, sizes: Mapping[str, int], settings: Optimiser, folder: Path, apart: bool = False,
    *, resume: bool = False, device: str | None = None, quiet: bool = False,
) -> list[Dedicated]:  # fmt: skip
    """Trains one network for all that is wanted, or one for each (`apart`), saved as folder/network-N.safetensors.

    Same augmentation as the joint model's; the checkpoint is chosen on held-out people of the training part.
    """
    networks: list[Dedicated] = []
    rows = study.learners
    for number, targets in enumerate([[name] for name in study.want] if apart else [list(study.want)], start=1):
        torch.manual_seed(study.seed)
        network = Dedicated(kind, sizes, study.schema, targets).to(place_of(device))
        _fit(network, study, rows, settings, folder / "training", f"{kind}-{number}", resume=resume, quiet=quiet)
        network.save(folder / f"network-{number}.safetensors")
        networks.append(network)
    return networks


def ask(networks: Sequence[Dedicated], study: Study, told: bool) -> dict[str, np.ndarray]:
    """Their answers for the people of the test part, from the scan and, if `told`, from the other facts; NaN where there
    is no scan."""
    part, found = study.test, {}
    rows = part.scanned
    for network in networks:
        facts = _facts(network, study, part) if told else None
        chunks = [
            network.answers(part.voxels(own), facts and [fact[own] for fact in facts]) for own in rows.split(CHUNK)
        ]
        for name in network.targets:
            values = np.concatenate([chunk[name] for chunk in chunks]) if chunks else np.zeros(0)
            found[name] = np.full((len(part), *values.shape[1:]), np.nan)
            found[name][rows.numpy()] = values
    return found


def _fit(
    network: Dedicated, study: Study, rows: Tensor, settings: Optimiser, folder: Path, stage: str, *, resume: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Trains on these rows of the training part, less those that choose the checkpoint."""
    part, place = study.train, network.device
    out = torch.from_numpy(held_out(part.people[rows.numpy()], study.validation, study.seed))
    training, validation = rows[~out], rows[out]
    targets = [part.target(name) for name in network.targets]
    facts = _facts(network, study, part)

    def losses(features: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Of each target, the mean of what is known, with the others told and not told."""
        rows = rows.cpu()
        told = network.read(features, [fact[rows].to(place) for fact in facts])
        parts = {}
        for v, (values, known), *answers in zip(network.wanted, targets, told, network.read(features)):
            here = known[rows].to(place)
            truth = values[rows].to(place)[here]
            errors = [_error(v, answer[here], truth) for answer in answers]
            parts[v.name] = torch.stack(errors).mean() if len(truth) else features.sum() * 0
        return parts

    def step(module: nn.Module, k: int) -> tuple[Tensor, dict[str, float]]:
        noise = Noise(study.seed, torch.arange(settings.batch, device=place) + k * settings.batch)
        rows = training[noise.integers(len(training)).cpu()]
        parts = losses(network.features(augment(part.voxels(rows).to(place), noise)), rows)
        return torch.stack(list(parts.values())).sum(), {name: loss.item() for name, loss in parts.items()}

    def validate(module: nn.Module) -> dict[str, float]:
        features = torch.cat([network.features(part.voxels(rows).to(place)) for rows in validation.split(CHUNK)])
        parts = {name: loss.item() for name, loss in losses(features, validation).items()}
        return {"loss": sum(parts.values()), **parts}

    optimise(network, step, validate, settings, folder, stage, resume=resume, quiet=quiet)


def _error(v: Scalar, answer: Tensor, truth: Tensor) -> Tensor:
    """Squared error of scores or cross-entropy (paper, Table 1), 1 for an answer that knows the marginal only."""
    if isinstance(v, Categorical):
        return F.cross_entropy(answer, truth) / v.baseline_loss(torch.zeros(()))
    return F.mse_loss(answer[:, 0], truth)


def _facts(network: Dedicated, study: Study, part: Part) -> list[Tensor]:
    return [part.facts(study.others(name)) for name in network.targets]


def _width(schema: Schema, target: str) -> int:
    """Of `Part.facts` of all scalars but the target."""
    others: list[Any] = [v for v in schema.scalars if v.name != target]
    return sum(_outputs(v) + 1 for v in others)


def _outputs(v: Scalar) -> int:
    return len(v.levels) if isinstance(v, Categorical) else 1
