"""What metrics of images see: features of a network trained here, or of two networks that others publish.

Published weights are read from a file that the user got by hand. Only numbers are taken from it, never code; its checksum
goes into every record.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import resnet
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from metavoxel.errors import MetavoxelError
from metavoxel.evaluate.dedicated import CHUNK, features_of, load_dedicated
from metavoxel.files import checksum

WHOLE = "whole"
PLANES = ("sagittal", "coronal", "axial")
"""The axis along which a plane's slices follow one another: x, y, z of a scan in RAS."""
CENTRE = 0.4
"""Share of the slices of each plane, about its middle, that are looked at (MAISI's own command)."""
SLICES = 64
"""In memory at a time."""
MEAN = (0.406, 0.456, 0.485)
"""Of the channels, taken off slices (MAISI)."""
KERAS_EPSILON = 1.001e-5
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""The numbers of RadImageNet's own PyTorch release, a sequence of torchvision's ResNet-50."""
DEPTHS: dict[tuple[str, tuple[int, ...]], int] = {
    ("plain", (1, 1, 1, 1)): 10, ("plain", (2, 2, 2, 2)): 18, ("plain", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50, ("bottleneck", (3, 4, 23, 3)): 101, ("bottleneck", (3, 8, 36, 3)): 152,
    ("bottleneck", (3, 24, 36, 3)): 200,
}  # fmt: skip
"""Kind and number of blocks -> depth of a MedicalNet."""
ACROSS = ("FID compares across papers where the scans' grid, preparation and number are the same; MMD does not, since its "
          "kernel's width is this cohort's own")  # fmt: skip
RADIMAGENET_FROM = "https://huggingface.co/MONAI/checkpoints (RadImageNet-ResNet50_notop.pth)"
MEDICALNET_FROM = "https://huggingface.co/TencentMedicalNet (resnet_10_23dataset.pth, resnet_50_23dataset.pth)"


@dataclass(frozen=True)
class Extractor:
    """Scans -> features. `checksum`: of the weights; `remark`: one sentence on what figures by these features are worth."""

    name: str
    checksum: str
    remark: str
    see: Callable[[np.ndarray], dict[str, np.ndarray]]

    def features(self, voxels: np.ndarray) -> dict[str, np.ndarray]:
        """Scans (n, *shape), background 0 -> float32 features: one row a scan under "whole", or for each of PLANES (m, d),
        one row a slice. Few scans are in memory as features are made; what is given may be memory-mapped."""
        return self.see(voxels)


def trained(file: str | Path, device: str | torch.device = "cpu") -> Extractor:
    """The penultimate features of a network of `metavoxel baselines`: DIR/densenet/network-1.safetensors."""
    path = Path(file)
    network = load_dedicated(path, device)
    remark = "Features of a network trained on this cohort: figures compare models here, never across papers."
    see = partial(_in_parts, partial(features_of, network))
    return Extractor(f"{network.kind} trained here", checksum(path), remark, see)


def radimagenet(file: str | Path, device: str | torch.device = "cpu", centre: float = CENTRE) -> Extractor:
    """ResNet-50 trained on 1.35 million radiological images (Mei et al. 2022), slice by slice in three planes. A figure is
    computed for each plane over all slices, and averaged: as MAISI does it, and so the paper.

    file: the release converted from Keras, which MAISI uses, or RadImageNet's own for PyTorch; .pth, .pt or .safetensors.
    """
    path = Path(file)
    state = read_state(path, "RadImageNet's ResNet-50", RADIMAGENET_FROM)
    # MONAI's stem has a stride of 1 where nothing is said
    network = resnet.resnet50(
        spatial_dims=2, n_input_channels=3, conv1_t_stride=2, feed_forward=False, bias_downsample=False
    )
    if any(name.startswith("backbone.") for name in state):
        state = {_from_sequence(name): tensor for name, tensor in state.items()}
    elif "conv1.bias" in state:
        _as_keras_has_it(network)
        state = _without_biases(path, state)
    _fill(network, state, path, "RadImageNet's ResNet-50")
    remark = f"RadImageNet features: {ACROSS}."
    see = partial(_slices, network.to(device).eval(), centre)
    return Extractor("radimagenet", checksum(path), remark, see)


def medicalnet(file: str | Path, device: str | torch.device = "cpu") -> Extractor:
    """3-D ResNet of MedicalNet (Chen et al. 2019), of any published depth, its last layer averaged over the grid."""
    path = Path(file)
    state = read_state(path, "MedicalNet's ResNet", MEDICALNET_FROM)
    depth = _depth(state, path)
    has_bias, shortcut = resnet.get_medicalnet_pretrained_resnet_args(depth)
    network = getattr(resnet, f"resnet{depth}")(spatial_dims=3, n_input_channels=1, conv1_t_stride=2, feed_forward=False,
                                                shortcut_type=shortcut, bias_downsample=has_bias)  # fmt: skip
    _widen_view(network)
    _fill(network, state, path, "MedicalNet's ResNet")
    remark = f"MedicalNet features: {ACROSS}."
    see = partial(_in_parts, partial(_volumes, network.to(device).eval()))
    return Extractor(f"medicalnet {depth}", checksum(path), remark, see)


def read_state(path: Path, what: str, source: str) -> dict[str, Tensor]:
    """A state dict by name, without what training in parallel put in front. No code in the file is run."""
    if not path.is_file():
        raise MetavoxelError(f"{path}: no such file; download {what} by hand from {source} and give its path")
    try:
        read = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        fix = "save its state_dict() with the program that made it"
        raise MetavoxelError(f"{path}: holds more than weights, which could run code and is not read; {fix}") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise MetavoxelError(f"{path}: truncated or no weights file; download it again from {source}") from error
    state: Any = read.get("state_dict", read) if isinstance(read, Mapping) else {}
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise MetavoxelError(f"{path}: holds no state dict of {what}; download it from {source}")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Exactly the weights that the network has; a classifier on top of them is left out."""
    own = network.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith(("fc.", "conv_seg."))}
    counted = {name for name in own if name.endswith("num_batches_tracked")}  # of no use in an answer; Keras has none
    missing = sorted(own.keys() - state.keys() - counted)
    strange = sorted(state.keys() - own.keys())
    if missing or strange:
        wrong = f"lacks {missing[0]}" if missing else f"has {strange[0]}, which the network has not"
        counts = f"{len(missing)} missing, {len(strange)} strange"
        raise MetavoxelError(f"{path}: is not {what}: it {wrong} ({counts}); give that network's state dict")
    for name in own.keys() - counted:
        if own[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
            raise MetavoxelError(f"{path}: is not {what}: {name} has the shape {shapes}; give that network's state dict")
    network.load_state_dict({**own, **state})


def _from_sequence(name: str) -> str:
    """backbone.4.0.conv1.weight -> layer1.0.conv1.weight."""
    number, _, rest = name.removeprefix("backbone.").partition(".")
    return f"{CHILDREN.get(number, number)}.{rest}"


def _as_keras_has_it(network: nn.Module) -> None:
    """Keras' ResNet-50 strides in the first convolution of a block, torchvision's in the second."""
    for module in network.modules():
        if isinstance(module, resnet.ResNetBottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = KERAS_EPSILON


def _without_biases(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keras' convolutions have a bias b, each before a normalisation with mean m: (x + b) - m = x - (m - b)."""
    folded = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    for name, bias in list(folded.items()):
        owner, _, kind = name.rpartition(".")
        if kind != "bias" or f"{owner}.running_mean" in state:
            continue
        after = f"{owner[:-1]}1" if owner.endswith("downsample.0") else owner.replace("conv", "bn")
        mean = folded.get(f"{after}.running_mean")
        if mean is None or mean.shape != bias.shape:
            raise MetavoxelError(f"{path}: is not RadImageNet's ResNet-50: no normalisation follows {owner}")
        folded[f"{after}.running_mean"] = mean - bias
        del folded[name]
    return folded


def _depth(state: Mapping[str, Tensor], path: Path) -> int:
    blocks = {tuple(name.split(".")[:2]) for name in state if name.startswith("layer")}
    kind = "bottleneck" if "layer1.0.conv3.weight" in state else "plain"
    counts = tuple(sum(layer == f"layer{i}" for layer, _ in blocks) for i in (1, 2, 3, 4))
    if (kind, counts) not in DEPTHS:
        raise MetavoxelError(f"{path}: is not MedicalNet's ResNet: it has {counts} blocks in its four layers")
    return DEPTHS[kind, counts]


def _widen_view(network: resnet.ResNet) -> None:
    """MedicalNet's last two layers keep the grid and space out their kernels instead; MONAI's do not."""
    for layer, spaced in ((network.layer3, 2), (network.layer4, 4)):
        for module in layer.modules():
            if isinstance(module, nn.Conv3d):
                module.stride = (1, 1, 1)
                if module.kernel_size == (3, 3, 3):
                    module.dilation = module.padding = (spaced,) * 3
            elif isinstance(shortcut := getattr(module, "downsample", None), partial):
                shortcut.keywords["stride"] = 1


def _in_parts(see: Callable[[np.ndarray], np.ndarray], voxels: np.ndarray) -> dict[str, np.ndarray]:
    parts = [see(np.asarray(voxels[first : first + CHUNK])) for first in range(0, len(voxels), CHUNK)]
    return {WHOLE: np.concatenate(parts)}


@torch.no_grad()
def _volumes(network: nn.Module, voxels: np.ndarray) -> np.ndarray:
    """(n, *shape) -> (n, d), each scan with mean 0 and sd 1 (MedicalNet)."""
    found = []
    for scan in torch.from_numpy(np.ascontiguousarray(voxels, np.float32)):
        normal = (scan - scan.mean()) / (scan.std() + 1e-5)
        found.append(network(normal[None, None].to(next(network.parameters()).device)).cpu())
    return torch.cat(found).numpy()


@torch.no_grad()
def _slices(network: nn.Module, centre: float, voxels: np.ndarray) -> dict[str, np.ndarray]:
    """(n, x, y, z) -> for each plane (n slices, d)."""
    found: dict[str, list[Tensor]] = {plane: [] for plane in PLANES}
    device = next(network.parameters()).device
    for scan in voxels:
        for axis, plane in enumerate(PLANES):
            for part in _grey(scan, axis, centre).split(SLICES):
                found[plane].append(network(part.to(device)).cpu())
    return {plane: torch.cat(parts).numpy() for plane, parts in found.items()}


def _grey(scan: np.ndarray, axis: int, centre: float) -> Tensor:
    """(slices, 3, height, width): the middle slices along an axis, from 0 to 1 over all of them, less MEAN."""
    size = scan.shape[axis]
    first, last = int((1 - centre) / 2 * size), int((1 + centre) / 2 * size)
    slices = torch.from_numpy(np.ascontiguousarray(np.moveaxis(scan, axis, 0)[first:last], np.float32))
    low, high = slices.min(), slices.max()
    return ((slices - low) / (high - low + 1e-10))[:, None] - torch.tensor(MEAN).reshape(1, 3, 1, 1)
