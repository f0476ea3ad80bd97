"""Every setting of a training run, checked when read: a misspelt key is named. Presets are starting points."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from metavoxel.codecs import STRICT, Scaling
from metavoxel.errors import MetavoxelError
from metavoxel.nets.autoencoder import AutoencoderSettings
from metavoxel.nets.joint import NetSettings
from metavoxel.nets.paper import PaperSettings
from metavoxel.times import MixtureTimes, SharedTimes

Triple = Annotated[tuple[float, ...], BeforeValidator(lambda x: (x,) * 3 if isinstance(x, int | float) else x)]


def _choice(key: str, default: str) -> Callable[[Any], str]:
    """Which of several kinds of settings these are: what they say under `key`; where they say nothing, the default."""

    def read(settings: Any) -> str:
        return settings.get(key, default) if isinstance(settings, dict) else getattr(settings, key, default)

    return read


_architecture = _choice("architecture", "joint")
Net = Annotated[
    Annotated[NetSettings, Tag("joint")] | Annotated[PaperSettings, Tag("paper")], Discriminator(_architecture)
]
TimesSettings = Annotated[
    Annotated[MixtureTimes, Tag("mixture")] | Annotated[SharedTimes, Tag("shared")],
    Discriminator(_choice("kind", "mixture")),
]


@dataclass(frozen=True, config=STRICT)
class Optimiser:
    """One stage of training: AdamW, linear warm-up, cosine decay to 0, exponential average of the weights."""

    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=32, ge=1)
    rate: float = Field(default=1e-3, gt=0)
    matrix_rate: float = Field(default=0.0, ge=0)
    """Above 0: the joint network's trunk is trained by Muon, at this rate; the rest, and the paper's network, by AdamW."""
    warmup: int = 50
    weight_decay: float = 0.01
    average: float = 0.995
    """Decay of the weights' exponential moving average."""
    clip: float = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Mixed precision on a GPU, float32 on a CPU, whose bfloat16 convolution gradients overflow (torch 2.13)."""
    validate_every: int = Field(default=200, ge=1)


@dataclass(frozen=True, config=STRICT)
class Config:
    """What `metavoxel train --config` reads. The grid applies to images; everything else to any schema."""

    shape: tuple[int, ...] = (32, 40, 32)
    spacing: Triple = (5.0, 5.0, 5.0)
    """mm."""
    codec: Literal["identity", "autoencoder"] = "identity"
    autoencoder: AutoencoderSettings = Field(default_factory=AutoencoderSettings)
    net: Net = Field(default_factory=NetSettings)
    """`architecture: joint` or `paper`, and its sizes."""
    times: TimesSettings = Field(default_factory=MixtureTimes)
    encoding: Optimiser = Field(default_factory=Optimiser)
    """Training of the autoencoder; not used with codec: identity."""
    joint: Optimiser = Field(default_factory=Optimiser)
    questions: int = Field(default=16, ge=1)
    """In training, sets of levels of the numbers and classes for each encoding of a scan: reading it is what costs.
    One with times: shared."""
    reading: int = Field(default=0, ge=0)
    """First steps of the joint training that ask for facts of known scans only (times: mixture). Nothing is decoded, so
    they cost half, and what shows faintly in a scan is found sooner than beside the loss of images."""
    mean_by_facts: bool = True
    """Images start from the mean image of people with the given facts, linear in them: what acts faintly on every voxel,
    as age on a brain, is there at once. Where a fact decides most of the image, off learns more of it (docs)."""
    augment: bool = True
    """Left-right flips, moves by whole voxels and gains of the training images."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Share of participants held out to choose the checkpoint."""
    seed: int = 0
    scaling: dict[str, Scaling] = Field(default_factory=dict)
    """Scaling of numbers by name, "*" for all that are not named; linear where nothing is said."""
    clock: Literal["cosine", "scaled_linear"] = "cosine"
    """How images and numbers forget; classes always follow the cosine. scaled_linear is for architecture: paper."""
    chain: Literal["uniform", "absorbing", "marginal"] = "marginal"
    """Markov chain of the classes."""
    ordinal: tuple[str, ...] = ()
    """Class variables whose levels are in order."""

    def __post_init__(self) -> None:
        if self.net.architecture == "paper" and self.times.separate:
            raise MetavoxelError("architecture: paper knows one time for all variables; set times: {kind: shared}")


_adapter = TypeAdapter(Config)

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "shape": (32, 40, 32),
        "spacing": 5.0,
        "net": {"widths": (16, 48, 96), "patch": 2, "token_width": 96},
        "reading": 580,
        "joint": {"steps": 730, "batch": 48, "rate": 1.5e-3, "matrix_rate": 0.015, "validate_every": 365},
    },
    "table": {  # of facts alone: a step costs a hundredth, and a dozen columns are thousands of questions
        "net": {"token_width": 96},
        "joint": {"steps": 1500, "batch": 128, "rate": 1.5e-3, "matrix_rate": 0.015, "validate_every": 250},
    },
    "small": {
        "shape": (64, 80, 64),
        "spacing": 2.5,
        "codec": "autoencoder",
        "autoencoder": {"channels": (16, 32, 64), "latent_channels": 8},
        "net": {"widths": (96, 192, 256), "patch": 1, "blocks": 2, "token_width": 192},
        "encoding": {"steps": 10_000, "batch": 8, "rate": 5e-4, "validate_every": 500},
        "joint": {"steps": 40_000, "batch": 64, "rate": 5e-4, "matrix_rate": 0.01, "average": 0.999,
                  "validate_every": 1000},
    },
    "paper": {
        "shape": (160, 192, 160),
        "spacing": 1.0,
        "codec": "autoencoder",
        "autoencoder": {"channels": (32, 64, 128, 128), "latent_channels": 4, "blocks": 2, "kl_weight": 1e-7},
        "net": {"architecture": "paper", "widths": (256, 512, 768), "blocks": 2, "heads": 8, "context": 512},
        "times": {"kind": "shared"},
        "clock": "scaled_linear",
        "chain": "uniform",
        "scaling": {"*": "range"},
        "augment": False,
        "encoding": {"steps": 100_000, "batch": 2, "rate": 1e-4, "validate_every": 2000},
        "joint": {"steps": 200_000, "batch": 32, "rate": 1e-4, "average": 0.9999,
                  "validate_every": 2000},
    },
}  # fmt: skip


def preset(name: str = "tiny", **changes: object) -> Config:
    """A preset with changes, nested as in the YAML: preset("tiny", joint={"steps": 200})."""
    if name not in PRESETS:
        raise MetavoxelError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return from_dict(_merge(PRESETS[name], changes), f"preset {name}")


def read_config(path: Path, name: str = "tiny") -> Config:
    """A YAML file's settings laid over a preset's."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MetavoxelError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise MetavoxelError(f"{path}: holds no settings; write for example 'joint: {{steps: 2000}}'")
    return from_dict(_merge(PRESETS.get(name, {}), content), str(path))


def from_dict(content: object, source: str) -> Config:
    """Checked settings; an error names `source` and the key."""
    try:
        return _adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = [".".join(map(str, first["loc"]))] if first["loc"] else []
        fix = first["msg"].removeprefix("Value error, ")
        if first["type"] == "union_tag_invalid":
            fix = "{tag!r} is unknown; choose one of {expected_tags}".format(**first["ctx"])
        raise MetavoxelError(": ".join([source, *place, fix])) from error


def to_dict(config: Config) -> dict[str, Any]:
    """JSON-ready."""
    return _adapter.dump_python(config, mode="json")


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Changes laid over a base; settings of another architecture than the base's stand alone."""
    merged = dict(base)
    for key, value in changes.items():
        own = merged.get(key)
        if isinstance(value, dict) and isinstance(own, dict):
            same = value.get("architecture", _architecture(own)) == _architecture(own)
            value = _merge(own, value) if same else value
        merged[key] = value
    return merged
