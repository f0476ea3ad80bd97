"""The trained model as a person uses it: load, save, sample, predict. Only here do files meet tensors."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from metavoxel import checkpoint
from metavoxel.answers import batches, tabulate
from metavoxel.asked import names_of, whole
from metavoxel.config import Config, from_dict, to_dict
from metavoxel.consistency import contradictions
from metavoxel.data.cohort import Cohort, read_cohort
from metavoxel.data.conform import Geometry
from metavoxel.data.volume import is_scan_name
from metavoxel.denoiser import LearnedDenoiser, make_denoiser
from metavoxel.device import place_of
from metavoxel.draws import Draws
from metavoxel.errors import MetavoxelError
from metavoxel.files import make_folder
from metavoxel.latents import ImageCodec
from metavoxel.loading import Progress, load_scan
from metavoxel.methods import Method
from metavoxel.nets.autoencoder import Autoencoder
from metavoxel.posterior import Posterior, encode_facts
from metavoxel.question import Given
from metavoxel.schema import Image, Schema
from metavoxel.surprise import Usual, features
from metavoxel.version import __version__

FORMAT = 1
PACKAGED = Path(__file__).parent / "packaged"


class MetaVoxel:
    """A joint model of images and facts. `sample` draws anything given anything; `predict` tabulates a cohort."""

    def __init__(
        self,
        schema: Schema,
        denoiser: LearnedDenoiser,
        codecs: Mapping[str, ImageCodec],
        config: Config,
        summary: Mapping[str, object],
    ) -> None:
        self.schema, self.denoiser, self.codecs = schema, denoiser.eval(), dict(codecs)
        self.config, self.summary = config, dict(summary)

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def sample(
        self,
        given: Mapping[str, object] | None = None,
        want: Sequence[str] | None = None,
        n: int = 1,
        seed: int = 0,
        steps: int | None = None,
        progress: Progress = lambda done, total: None,
        *,
        method: Method | None = None,
        jump: int | None = None,
        repeats: int | None = None,
        guidance: float = 1.0,
    ) -> Draws:
        """n joint draws of `want` (default: all that is not given) for one subject: see `posterior`, `Posterior.sample`.

        What is neither given nor wanted is averaged over. A draw depends on seed and its index, not on n.
        """
        posterior = self.posterior(given)
        return posterior.sample(want, n, seed, steps, progress, method=method, jump=jump, repeats=repeats,
                                guidance=guidance)  # fmt: skip

    @torch.no_grad()
    def posterior(self, given: Mapping[str, object] | None = None) -> Posterior:
        """p(anything | given) of one subject, to be asked as often as you like: its scans are encoded once.

        given: numbers in their unit, level names, scans as paths or as arrays on the model's grid (*shape).
        """
        if not isinstance(given, Mapping | None):
            raise MetavoxelError("given: say what is known by name, such as {'T1w': 'scan.nii.gz', 'age': 70}")
        known: dict[str, Given] = {}
        geometry: Geometry | None = None
        for name, value in (given or {}).items():
            variable = self.schema[name]
            if isinstance(variable, Image):
                entries, place = self._image(variable, value)
                known[name], geometry = Given(entries), geometry or place
            else:
                known |= encode_facts(self.schema, {name: value}, self.device)
        return Posterior(self.schema, self.denoiser, self.codecs, known, geometry)

    @torch.no_grad()
    def predict(
        self,
        cohort: Cohort | str | Path,
        want: Sequence[str] | None = None,
        given: Sequence[str] | Mapping[str, object] = (),
        draws: int = 0,
        seed: int = 0,
        progress: Progress = lambda done, total: None,
        *,
        compare: bool = True,
    ) -> pd.DataFrame:
        """One row for each row of the cohort: mean, spread and quantiles of numbers, probabilities of classes.

        cohort: read already, or a BIDS folder, a table, or one scan. All of it comes from one evaluation a scan; with
        `draws`, spread and quantiles from as many joint draws of what is wanted, which reuse it.
        given: facts to condition on beside the scans - names (taken from the table) or name -> one value for all. Without
        images in the schema, default: everything that is not wanted. Missing cells and scans are ignored, and `warning`
        says so; also of scans unlike those in training, whose `NAME_surprise` (see `surprise`) is above the limit.
        compare: whether scans are compared so, which takes an image's evaluation at a few levels.
        """
        if draws != 0:  # one draw has no spread
            whole("draws", draws, 2)
        whole("seed", seed, 0)
        cohort = self.people_of(cohort)
        facts = _facts(given)
        wanted = [s.name for s in self.schema.scalars if s.name not in facts] if want is None else names_of(want)
        for name in wanted:
            self.schema.scalar(name)
        if not self.schema.images and not facts:
            facts = {s.name: None for s in self.schema.scalars if s.name not in wanted}
        tables, usual = [], self.usual if compare else {}
        for batch in batches(self.schema, self.codecs, cohort, facts, self.device):
            tables.append(tabulate(self.schema, self.denoiser, usual, batch, wanted, draws, seed))
            progress(batch.first + batch.rows, len(cohort))
        identity = cohort.table[[c for c in ("participant_id", "session_id") if c in cohort.table]]
        return pd.concat([identity.reset_index(drop=True), pd.concat(tables, ignore_index=True)], axis=1)

    @torch.no_grad()
    def consistency(
        self,
        cohort: Cohort | str | Path,
        given: Sequence[str] | Mapping[str, object] = (),
        draws: int = 256,
        seed: int = 0,
        progress: Progress = lambda done, total: None,
    ) -> pd.DataFrame:
        """How far the model contradicts itself: p(age | scan) against p(age | scan, sex) averaged over p(sex | scan).

        One row for each ordered pair of numbers and classes that is not given, over the cohort's scans: `variable`,
        `through`, and the `gap` between the two ways, its mean and its 95th percentile over rows - of a class, the total
        variation of the probabilities; of a number, the means' difference in sd of its draws. 0 is consistent; what
        `draws` random draws leave is about .5 / sqrt(draws).
        """
        whole("draws", draws, 2)
        whole("seed", seed, 0)
        cohort = self.people_of(cohort)
        facts = _facts(given)
        free = [s.name for s in self.schema.scalars if s.name not in facts]
        if len(free) < 2:
            raise MetavoxelError("consistency compares numbers and classes with one another; leave at least two not given")
        asked = (batch.known for batch in batches(self.schema, self.codecs, cohort, facts, self.device))
        people = len(cohort)
        return contradictions(self.schema, self.denoiser, asked, free, draws, seed, lambda done: progress(done, people))

    def surprise(self, name: str, voxels: np.ndarray) -> np.ndarray:
        """How unlike the training people's the images (n, *shape) on the model's grid are: (n,), near 1 for usual ones.

        Above `surprise.LIMIT` (2.4), answers about the image mean little.
        """
        image = self.schema.image(name)
        if name not in self.usual:
            raise MetavoxelError(f"this model was saved before scans were compared with its training people's {name}; "
                                 "train it again, or use --init for a few steps")  # fmt: skip
        entries = self.codecs[name].encode(self._on_device(image, voxels, (len(voxels), *image.shape)))
        return self.usual[name].surprise(features(self.denoiser, image, entries)).cpu().numpy()

    @cached_property
    def usual(self) -> dict[str, Usual]:
        """Of each image, what is usual: kept in the summary."""
        kept: Mapping[str, dict[str, list[float]]] = self.summary.get("usual", {})  # type: ignore[assignment]
        return {name: Usual.from_dict(content) for name, content in kept.items()}

    def people_of(self, source: Cohort | str | Path, pattern: str | None = None) -> Cohort:
        """A cohort, read unless it is one: a BIDS folder, a table (pattern: where its scans lie), or one scan, which
        is of the model's first image."""
        if isinstance(source, Cohort):
            return source
        return read_cohort(source, [self.first_image().name] if is_scan_name(source) else None, pattern)

    def first_image(self) -> Image:
        """The image that a scan is taken for when nobody says which."""
        if not self.schema.images:
            raise MetavoxelError("this model has no image; it answers questions about the table only")
        return self.schema.images[0]

    def describe(self) -> dict[str, object]:
        """What `metavoxel inspect` shows."""
        parameters = sum(p.numel() for p in self._weights().parameters())
        return {
            "variables": self.schema.to_dict()["variables"],
            "architecture": self.config.net.architecture,
            "times": to_dict(self.config)["times"],
            "parameters": parameters,
            "summary": {name: value for name, value in self.summary.items() if name != "seen"},
        }

    def mark(self) -> str:
        """Digits that change with any weight."""
        return checkpoint.weights_mark(self._weights())

    def save(self, folder: str | Path, half: bool = False) -> Path:
        """model.json and model.safetensors in `folder`; half: weights in float16, half the size."""
        folder = make_folder(folder)
        tensors = self._weights().state_dict()
        if half:
            tensors = {k: t.half() if t.is_floating_point() else t for k, t in tensors.items()}
        checkpoint.write_tensors(folder / "model.safetensors", tensors)
        content = {
            "format": FORMAT, "metavoxel": __version__, "schema": self.schema.to_dict(),
            "config": to_dict(self.config), "summary": self.summary,
        }  # fmt: skip
        checkpoint.write_json(folder / "model.json", content)
        return folder

    def _weights(self) -> nn.ModuleDict:
        coders = {name: codec.autoencoder for name, codec in self.codecs.items() if codec.autoencoder is not None}
        return nn.ModuleDict({"denoiser": self.denoiser, "autoencoders": nn.ModuleDict(coders)})

    def _image(self, image: Image, value: object) -> tuple[Tensor, Geometry | None]:
        """A scan (path, or array on the model's grid) as entries (1, channels, *grid), and where it came from."""
        geometry = None
        if isinstance(value, str | Path):
            conformed = load_scan(Path(value), image)
            value, geometry = conformed.array, conformed.geometry
        return self.codecs[image.name].encode(self._on_device(image, value, image.shape)[None]), geometry

    def _on_device(self, image: Image, array: object, shape: tuple[int, ...]) -> Tensor:
        """Voxels on the model's grid, of this shape, as a tensor."""
        try:
            voxels = np.asarray(array, dtype=np.float32, order="C")
        except (TypeError, ValueError) as error:
            raise MetavoxelError(f"{image.name}: give one scan's file, or its voxels on the model's grid") from error
        if voxels.shape != shape:
            raise MetavoxelError(
                f"{image.name}: an array must be on the model's grid {shape}, got {voxels.shape}; "
                "give the scan's file to have it resampled"
            )
        if not np.isfinite(voxels).all():
            raise MetavoxelError(f"{image.name}: the array holds NaN or infinite voxels; mask or fill them first")
        return torch.from_numpy(voxels).to(self.device)


def _facts(given: str | Sequence[str] | Mapping[str, object]) -> dict[str, object]:
    """Names (None: from the table), or name -> one value for all."""
    return dict(given) if isinstance(given, Mapping) else dict.fromkeys(names_of(given))


def load(source: str | Path, device: str | None = None) -> MetaVoxel:
    """A model from a folder, `hf://owner/name`, or the name of a packaged one (`phantom`)."""
    folder = resolve(source)
    content = _described(folder / "model.json")
    schema = Schema.from_dict(content["schema"], str(folder / "model.json"))
    config = from_dict(content["config"], str(folder / "model.json"))
    denoiser = make_denoiser(schema, config.net, config.times)
    codecs = {
        image.name: ImageCodec(
            image, Autoencoder(config.autoencoder, image.shape).eval() if image.codec == "autoencoder" else None
        )
        for image in schema.images
    }
    model = MetaVoxel(schema, denoiser, codecs, config, content["summary"])
    tensors, _ = checkpoint.read_tensors(folder / "model.safetensors")
    checkpoint.load_weights(model._weights(), tensors, folder / "model.safetensors")
    model._weights().to(place_of(device))
    return model


def _described(path: Path) -> dict[str, Any]:
    """What model.json says. Raises MetavoxelError where that is of a later format, or not whole."""
    content = checkpoint.read_json(path)
    if not isinstance(content, dict) or content.get("format") not in range(FORMAT + 1):
        written = content.get("metavoxel", "another version") if isinstance(content, dict) else "another program"
        raise MetavoxelError(f"{path}: written by metavoxel {written}, in a format this version ({__version__}) does not "
                             "know; upgrade metavoxel")  # fmt: skip
    for part in ("schema", "config", "summary"):
        if not isinstance(content.get(part), dict):
            raise MetavoxelError(f"{path}: lacks its {part}; copy or train it again")
    return content


def resolve(source: str | Path) -> Path:
    """Where a model's files are; a model from the hub is fetched first."""
    name = str(source)
    if name.startswith("hf://"):
        return _fetch(name.removeprefix("hf://"))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if (PACKAGED / name / "model.json").is_file():
        return PACKAGED / name
    packaged = ", ".join(sorted(path.parent.name for path in PACKAGED.glob("*/model.json"))) or "none"
    raise MetavoxelError(f"{name}: no such model; give a folder, hf://owner/name, or a packaged model ({packaged})")


def _fetch(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MetavoxelError("hf:// needs the hub extra: pip install 'metavoxel[hub]'") from error
    try:
        return Path(snapshot_download(repository, allow_patterns=["model.json", "model.safetensors"]))
    except Exception as error:  # the hub's client raises a dozen kinds, all of which mean "not to be had now"
        reason = str(error).splitlines()[0]
        raise MetavoxelError(f"hf://{repository}: could not be fetched ({reason}); offline, copy model.json and "
                             "model.safetensors to a folder and give that") from error  # fmt: skip
