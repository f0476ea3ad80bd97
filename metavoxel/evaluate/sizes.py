"""How large the baselines are, by preset: `tiny`, `table` for a CPU, `small` for a GPU, `paper` at the paper's size."""

from dataclasses import dataclass, replace
from pathlib import Path

from metavoxel.config import PRESETS, Config, Optimiser, preset, read_config


@dataclass(frozen=True)
class Sizes:
    """Settings of every baseline that has any. The grid is that of `joint`."""

    joint: Config
    """Of the joint model that the baselines are held against; image-only has it too, less the steps that only read."""
    paper: Config
    """Of the paper's network and times; continuous-sex uses it too."""
    densenet: dict[str, int]
    """init_features and growth_rate of DenseNet121."""
    vit: dict[str, int]
    """patch, width, depth and heads."""
    dedicated: Optimiser
    """Training of densenet and vit."""
    apart: bool
    """A network of its own for each answer, as in the paper; else one with an outlet for each."""


_PAPER = {key: PRESETS["paper"][key] for key in ("times", "clock", "chain", "scaling", "augment")}
_FULL = {"init_features": 64, "growth_rate": 32}


def sizes(name: str, config: Path | None = None) -> Sizes:
    """The sizes of a preset; config: a YAML file that the joint model was trained with, laid over it. If that model is the
    paper's, `paper` is it."""
    joint = read_config(config, name) if config else preset(name)
    found = _beside(name, joint)
    return replace(found, paper=joint) if joint.net.architecture == "paper" else found


def _beside(name: str, joint: Config) -> Sizes:
    """What stands beside a joint model at a preset's sizes."""
    grid = {"shape": joint.shape, "spacing": joint.spacing}
    if name in ("tiny", "table"):
        # attention on the second coarsest grid, too, would add a tenth to every one of 150 evaluations a person
        net = {"architecture": "paper", "widths": (32, 64, 96), "blocks": 1, "attending": 1}
        # full voxels would cost hours: it reads a latent, as in the paper, of a quarter of the grid (there an eighth)
        coding = {"codec": "autoencoder", "autoencoder": {"channels": (8, 16, 32), "latent_channels": 8},
                  "encoding": {"steps": 300, "batch": 8, "rate": 1e-3, "validate_every": 100}}  # fmt: skip
        slow = preset(name, **_PAPER, **coding, **grid, net=net, reading=0,
                      joint={"steps": 600, "batch": 16, "rate": 1e-3, "validate_every": 200})  # fmt: skip
        half = {"init_features": 32, "growth_rate": 16}
        return Sizes(joint, slow, half, {"patch": 8, "width": 192, "depth": 6, "heads": 6},
                     Optimiser(steps=300, batch=32, rate=1e-3, validate_every=50), apart=False)  # fmt: skip
    if name == "small":
        net = {"architecture": "paper", "widths": (128, 256, 384), "blocks": 2, "heads": 8, "context": 256}
        slow = preset(name, **_PAPER, **grid, net=net, joint={"rate": 1e-4})
        return Sizes(joint, slow, _FULL, {"patch": 8, "width": 384, "depth": 8, "heads": 6},
                     Optimiser(steps=10_000, batch=16, rate=3e-4, validate_every=500), apart=True)  # fmt: skip
    return Sizes(joint, preset(name, **grid), _FULL, {"patch": 16, "width": 768, "depth": 12, "heads": 12},
                 Optimiser(steps=100_000, batch=8, rate=1e-4, validate_every=2000), apart=True)  # fmt: skip
