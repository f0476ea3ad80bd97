"""The trained model as a person uses it: load, save, sample, predict. Only here do files meet tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from metavoxel import checkpoint
from metavoxel.config import Config, from_dict, to_dict
from metavoxel.data.cohort import Cohort, read_cohort
from metavoxel.data.prepare import Geometry
from metavoxel.denoiser import LearnedDenoiser, make_denoiser
from metavoxel.diffusion import Given, encode_once, expect, sample
from metavoxel.draws import QUANTILES, Draws
from metavoxel.errors import MetavoxelError
from metavoxel.latents import ImageCodec
from metavoxel.loading import Progress, load_scan
from metavoxel.nets.autoencoder import Autoencoder
from metavoxel.posterior import SCALAR_STEPS, Posterior, encode_facts
from metavoxel.schema import Categorical, Continuous, Image, Schema
from metavoxel.solvers import ANCESTRAL
from metavoxel.times import even_plan
from metavoxel.version import __version__

FORMAT = 1
BATCH = 16
"""Scans in memory at a time."""
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
    ) -> Draws:
        """n joint draws of `want` (default: all that is not given) for one subject: see `posterior`.

        What is neither given nor wanted is ignored: averaged over. A draw depends on seed and its index, not on n.
        """
        return self.posterior(given).sample(want, n, seed, steps, progress)

    @torch.no_grad()
    def posterior(self, given: Mapping[str, object] | None = None) -> Posterior:
        """p(anything | given) of one subject, to be asked as often as you like: its scans are encoded once.

        given: numbers in their unit, level names, scans as paths or as arrays on the model's grid (*shape).
        """
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
        draws: int = 64,
        seed: int = 0,
        progress: Progress = lambda done, total: None,
    ) -> pd.DataFrame:
        """One row for each row of the cohort: mean, spread and quantiles of numbers, probabilities of classes.

        Means and probabilities come from one evaluation a scan; spread and quantiles from `draws` draws that reuse it.
        given: facts to condition on beside the scans - names (taken from the table) or name -> one value for all. Without
        images in the schema, default: everything that is not wanted. Missing cells and scans are ignored, and `warning`
        says so.
        """
        cohort = cohort if isinstance(cohort, Cohort) else read_cohort(cohort)
        if len(cohort) == 0:
            raise MetavoxelError(f"{cohort.root}: the cohort is empty; there is nothing to predict")
        facts = dict.fromkeys(given) if not isinstance(given, Mapping) else dict(given)
        images = [image for image in self.schema.images if image.name in cohort.scans]
        if self.schema.images and not images and not facts:
            raise MetavoxelError(f"{cohort.root}: holds no {' or '.join(i.name for i in self.schema.images)} scan")
        wanted = [s.name for s in self.schema.scalars if s.name not in facts] if want is None else list(want)
        if not self.schema.images and not facts:
            facts = {s.name: None for s in self.schema.scalars if s.name not in wanted}
        for name in wanted:
            self.schema.scalar(name)
        columns = {name: self._fact_column(cohort, name, value) for name, value in facts.items()}
        encoded = {name: self.schema.scalar(name).encode(column) for name, column in columns.items()}
        tables = []
        for first in range(0, len(cohort), BATCH):
            rows = np.arange(first, min(first + BATCH, len(cohort)))
            known = {
                name: Given(values[rows].to(self.device), observed=observed[rows].to(self.device))
                for name, (values, observed) in encoded.items()
            }
            for image in images:
                known[image.name] = self._scans(image, [cohort.scans[image.name][row] for row in rows])
            tables.append(self._answers(known, wanted, draws, seed, first, len(rows)))
            progress(len(tables) * BATCH, len(cohort))
        table = pd.concat(tables, ignore_index=True)
        identity = cohort.table[[c for c in ("participant_id", "session_id") if c in cohort.table]].reset_index(
            drop=True
        )
        return pd.concat([identity, table], axis=1)

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
            "summary": self.summary,
        }

    def save(self, folder: str | Path, half: bool = False) -> Path:
        """model.json and model.safetensors in `folder`; half: weights in float16, half the size."""
        folder = Path(folder)
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
        if isinstance(value, str | Path):
            conformed = load_scan(Path(value), image)
            array, geometry = conformed.array, conformed.geometry
        else:
            array, geometry = np.asarray(value, dtype=np.float32), None
            if array.shape != image.shape:
                raise MetavoxelError(
                    f"{image.name}: an array must be on the model's grid {image.shape}, got {array.shape}; "
                    "give the scan's file to have it resampled"
                )
        voxels = torch.from_numpy(np.ascontiguousarray(array)).float()[None].to(self.device)
        if not torch.isfinite(voxels).all():
            raise MetavoxelError(f"{image.name}: the array holds NaN or infinite voxels; mask or fill them first")
        return self.codecs[image.name].encode(voxels), geometry

    def _scans(self, image: Image, paths: Sequence[Path | None]) -> Given:
        arrays = [np.zeros(image.shape, np.float32) if p is None else load_scan(p, image).array for p in paths]
        voxels = torch.from_numpy(np.stack(arrays)).float().to(self.device)
        present = torch.tensor([path is not None for path in paths], device=self.device)
        return Given(self.codecs[image.name].encode(voxels), observed=present)

    def _fact_column(self, cohort: Cohort, name: str, value: object) -> pd.Series:
        self.schema.scalar(name)
        if value is not None:
            return pd.Series([value] * len(cohort), index=["--given"] * len(cohort), dtype=object)
        return cohort.column(name)

    def _answers(
        self, known: Mapping[str, Given], want: Sequence[str], draws: int, seed: int, first: int, rows: int
    ) -> pd.DataFrame:
        """One row a subject, in the columns that `predict` promises."""
        denoiser = encode_once(self.denoiser, self.schema, known)
        clean = expect(denoiser, self.schema, known, want)
        numbers = [name for name in want if isinstance(self.schema[name], Continuous)]
        drawn: dict[str, np.ndarray] = {}
        if numbers and draws:
            plan = even_plan(SCALAR_STEPS)
            state = sample(denoiser, self.schema, known, want, draws, plan, ANCESTRAL, seed, first_row=first)
            drawn = {name: self.schema[name].decode(state[name]) for name in numbers}  # type: ignore[union-attr]
        answer: dict[str, object] = {}
        for name in want:
            variable = self.schema.scalar(name)
            if isinstance(variable, Categorical):
                p = clean[name].double().exp().expand(rows, -1).cpu().numpy()
                answer[name] = np.array(variable.levels, dtype=object)[p.argmax(1)]
                answer |= {f"{name}_p_{level}": p[:, j] for j, level in enumerate(variable.levels)}
                continue
            # only a linear scale carries a mean of scores over to a mean of values
            linear = variable.scale is not None and variable.scale.kind == "linear"
            answer[f"{name}_mean"] = variable.decode(clean[name]) if linear or not draws else drawn[name].mean(1)
            if draws:
                answer[f"{name}_sd"] = drawn[name].std(1, ddof=1)
                answer |= {f"{name}_{q}": np.quantile(drawn[name], level, 1) for q, level in QUANTILES.items()}
        table = pd.DataFrame({key: np.broadcast_to(np.asarray(value), (rows,)) for key, value in answer.items()})
        return table.assign(warning=_warnings(known, rows))


def load(source: str | Path, device: str | None = None) -> MetaVoxel:
    """A model from a folder, `hf://owner/name`, or the name of a packaged one (`phantom`)."""
    folder = resolve(source)
    content = checkpoint.read_json(folder / "model.json")
    if not isinstance(content, dict) or content.get("format", 0) > FORMAT or "schema" not in content:
        written = content.get("metavoxel", "another version") if isinstance(content, dict) else "another program"
        raise MetavoxelError(f"{folder / 'model.json'}: written by metavoxel {written}, in a format this version "
                             f"({__version__}) does not know; upgrade metavoxel")  # fmt: skip
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
    model._weights().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model


def resolve(source: str | Path) -> Path:
    """Where a model's files are; a model from the hub is fetched first."""
    name = str(source)
    if name.startswith("hf://"):
        return _fetch(name.removeprefix("hf://"))
    folder = Path(source)
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


def _warnings(known: Mapping[str, Given], rows: int) -> list[str]:
    """What of the given was missing in each row, in words."""
    missing: list[list[str]] = [[] for _ in range(rows)]
    for name, given in known.items():
        if given.observed is not None:
            for row in (~given.observed).nonzero()[:, 0].tolist():
                missing[row].append(name)
    return [f"answered without {' and '.join(names)}, which is missing" if names else "" for names in missing]
