"""From a cohort to a model: schema, autoencoders, latents, then the joint network."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.progress import track
from torch import Tensor, nn

from metavoxel.augment import augment
from metavoxel.checkpoint import load_weights, read_tensors, weights_mark, write_tensors
from metavoxel.config import Config, from_dict, to_dict
from metavoxel.config import preset as preset_config
from metavoxel.data.cohort import Cohort, read_cohort
from metavoxel.data.marks import marks_of
from metavoxel.data.shares import held_out
from metavoxel.data.splits import part_of
from metavoxel.denoiser import JointDenoiser, LearnedDenoiser, make_denoiser
from metavoxel.device import place_of
from metavoxel.diffusion import joint_loss
from metavoxel.errors import MetavoxelError
from metavoxel.facts import facts_of
from metavoxel.files import digits_of
from metavoxel.image_law import evenly
from metavoxel.latents import ImageCodec
from metavoxel.loading import ImageStack, large_array, load_images
from metavoxel.model import MetaVoxel, load
from metavoxel.nets.autoencoder import Autoencoder
from metavoxel.noise import Noise, several
from metavoxel.progress import one_bar, say
from metavoxel.schema import Continuous, Image, Observed, Schema, State, Times, full_level
from metavoxel.surprise import usual
from metavoxel.times import MixtureTimes, TimesRule
from metavoxel.training import optimise
from metavoxel.training_folder import CACHE, claimed, inputs_of, settle
from metavoxel.validation import CHUNK, believe, held_out_figures, recalibrate
from metavoxel.variables import infer_schema, left_out

MAX_USUAL = 256
MAX_FITTED = 20_000
"""Rows at most that images are standardised by and their laws fitted to."""
FACTS_ROWS, FACTS_WEIGHT = 512, 0.25
"""Of a step's questions about people without a scan."""
AUTOENCODING = ("autoencoder", "encoding", "augment", "seed")
"""The settings that an autoencoder hangs on."""
VARIANTS = 4
"""Latents are cached for the image as it is and for this many less one augmented copies."""


def preset_for(cohort: Cohort) -> str:
    """The preset of who names none."""
    return "tiny" if cohort.scans else "table"


def train(
    cohort: Cohort | str | Path,
    preset: str | Config | None = None,
    out: str | Path = "model",
    *,
    resume: bool = False,
    init: str | Path | None = None,
    cache: str | Path | None = None,
    device: str | None = None,
    quiet: bool = False,
    split: str | Path | None = None,
    fold: int | None = None,
) -> MetaVoxel:
    """Trains on a cohort and saves the model in the folder `out`.

    preset: its name, or settings; default `preset_for` the cohort.
    resume: go on from what a stopped run left in `out`. init: a model to start from: its variables, network, weights and
    scalings. cache: where scans on the model's grid are kept between runs (default: in `out`, while training).
    split: a file of `metavoxel split`: only its part train is used, without the fold `fold`; the summary records it,
    the cohort's name and a fingerprint of the rows, and their marks (`data.marks`), so that nobody is asked about them by
    mistake.
    """
    whole = cohort if isinstance(cohort, Cohort) else read_cohort(cohort)
    cohort, taken = part_of(whole, split, "train", fold)
    config = preset if isinstance(preset, Config) else preset_config(preset or preset_for(cohort))
    start = load(init, device=device) if init is not None else None
    schema = start.schema if start else infer_schema(cohort, config)
    for image in schema.images:
        if image.name not in cohort.scans:
            raise MetavoxelError(f"{cohort.root}: holds no {image.name} scan, which the model to start from needs")
    if not quiet:
        unused = [f"left out: {'; '.join(lost)}"] if not start and (lost := left_out(cohort)) else []
        for line in (*cohort.notes, *unused, f"{len(cohort.participants)} people, {len(cohort)} rows: {schema}"):
            say(line)
    with claimed(Path(out).expanduser(), resume) as folder, _scratch(folder, cache) as scratch:
        stacks = {}
        for image in schema.images:
            with one_bar(f"reading {image.name}", quiet) as report:
                stacks[image.name] = load_images(cohort, image, scratch, report)
        columns = {scalar.name: cohort.column(scalar.name) for scalar in schema.scalars}
        table = pd.DataFrame({name: column.to_numpy() for name, column in columns.items()},
                             index=pd.Index(cohort.table["participant_id"], name=None))  # fmt: skip
        people = cohort.table["participant_id"].to_numpy()
        own = marks_of(cohort, list(columns))
        before = start.summary.get("seen", ()) if start else ()
        seen = sorted({*own, *before})  # type: ignore[misc]
        digits = digits_of("\n".join([cohort.table.to_csv(index=False), *own]))  # the same wherever the cohort lies
        source = {"name": cohort.root.resolve().name, "fingerprint": digits}
        return fit(schema, stacks, table, folder, config, people, resume=resume, start=start, device=device, quiet=quiet,
                   cache=scratch, about={**taken, "cohort": source, "seen": seen})  # fmt: skip


@contextmanager
def _scratch(folder: Path, cache: str | Path | None) -> Iterator[Path]:
    """Where scans are kept on the model's grid: for good, or while training."""
    if cache:
        yield Path(cache)
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=CACHE) as scratch:
        yield Path(scratch)


def fit(
    schema: Schema,
    images: Mapping[str, ImageStack | np.ndarray],
    table: pd.DataFrame,
    out: str | Path,
    config: Config,
    people: np.ndarray | None = None,
    *,
    resume: bool = False,
    start: MetaVoxel | None = None,
    cache: Path | None = None,
    device: str | None = None,
    quiet: bool = False,
    about: Mapping[str, object] | None = None,
) -> MetaVoxel:
    """Trains on arrays: images name -> (rows, *shape), all NaN where missing; table with as many rows.

    start: a model whose variables, scalings, networks and weights to start from. Spans and laws are the new cohort's.
    people: (rows,) who each row is, so that nobody is in both training and validation; default: all different.
    about: what the summary says besides.
    """
    torch.manual_seed(config.seed)
    if start:  # weights fit their own network only
        kept = {"net": start.config.net, "autoencoder": start.config.autoencoder}
        config = from_dict({**vars(config), **kept}, "settings for the model to start from")
    place = place_of(device)
    stacks = {name: x if isinstance(x, ImageStack) else ImageStack.from_array(x) for name, x in images.items()}
    people = np.arange(len(table)) if people is None else people
    out_of_training = torch.from_numpy(held_out(people, config.validation, config.seed))
    training, validation = torch.nonzero(~out_of_training)[:, 0], torch.nonzero(out_of_training)[:, 0]
    rows = table.iloc[training.numpy()]
    folder, mark = Path(out).expanduser(), start.mark() if start else None
    settle(folder, inputs_of(schema, config, table, people, stacks, mark, about or {}), resume)
    schema = start.schema.among(rows) if start else schema.fit(rows)
    scalars, known = schema.encode(table)
    absent = {name: 1.0 - there.float() for name, there in known.items()}
    facts = facts_of(schema.scalars, scalars, absent, len(table)) * config.mean_by_facts
    sources = {}
    for image in schema.images:
        stack = stacks[image.name]
        own = stack.present[training]
        if not own.any():
            raise MetavoxelError(f"no training row has a {image.name} scan; drop it from the variables")
        autoencoder = start.codecs[image.name].autoencoder if start else None
        if image.codec == "autoencoder" and autoencoder is None:
            autoencoder = _train_autoencoder(
                image, stack, training[own], validation, config, folder, cache, place, resume, quiet
            )
        codec = ImageCodec(image, autoencoder)
        latents = None if autoencoder is None else _encode_all(codec, stack, config, cache, place, quiet)
        sources[image.name] = _Source(codec, stack, latents, config.augment)
        if not start:
            sources[image.name].fit(evenly(training[own], MAX_FITTED))
    codecs = {name: source.codec for name, source in sources.items()}
    schema = schema.with_latents({name: codec.image.fitted for name, codec in codecs.items()})
    data = _Data(schema, sources, scalars, known, place)
    denoiser = make_denoiser(schema, config.net, config.times).to(place)
    if start:
        denoiser.load_state_dict(start.denoiser.state_dict())
        if isinstance(denoiser, JointDenoiser):
            denoiser.forget_held_out()  # found anew of the new people
    if isinstance(denoiser, JointDenoiser):
        for name, source in sources.items():
            denoiser.law(name).fit(source.clean, evenly(training[source.stack.present[training]], MAX_FITTED), facts)

    reading = config.reading if schema.images and schema.scalars else 0

    def step(module: nn.Module, k: int) -> tuple[Tensor, dict[str, float]]:
        noise = Noise(config.seed, torch.arange(config.joint.batch, device=place) + k * config.joint.batch)
        rows = training[noise.integers(len(training)).cpu()]
        x0, observed = data.batch(rows, noise)
        assert isinstance(module, LearnedDenoiser)
        rule = config.times.reading() if k < reading and isinstance(config.times, MixtureTimes) else config.times
        loss = joint_loss(module, schema, *_questions(schema, x0, observed, config, rule, noise))
        total = loss.total
        if rule.separate and schema.images and schema.scalars and isinstance(module, JointDenoiser):
            x0, observed, times, noise = _without_images(data, training, rule, config.seed + 2 + k)
            alone = module.freeze(*({image.name: part[image.name] for image in schema.images} for part in (x0, times)))
            told_alone = joint_loss(alone, Schema(schema.scalars), x0, observed, times, noise)
            total = total + FACTS_WEIGHT * told_alone.total
        return total, {name: part.item() for name, part in loss.parts.items()}

    def validate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, LearnedDenoiser)
        return held_out_figures(module, data.batch, validation, config.times)

    trunk = denoiser.net.trunk_matrices()
    figures = optimise(denoiser, step, validate, config.joint, folder / "training", "joint", trunk, earliest=reading,
                       resume=resume, quiet=quiet)  # fmt: skip
    if isinstance(denoiser, JointDenoiser) and isinstance(config.times, MixtureTimes):
        recalibrate(denoiser, data.batch, validation, config.times)
        believe(denoiser, data.batch, validation)
    summary = {
        "rows": len(table), "people": len(set(people)), "training_rows": len(training),
        "validation_rows": len(validation), "validation": figures, "columns": _describe(schema, table, stacks),
        "usual": _usual(denoiser, sources, validation, place), **(about or {}),
    }  # fmt: skip
    model = MetaVoxel(schema, denoiser, codecs, config, summary)
    model.save(folder)
    return model


def _questions(
    schema: Schema, x0: State, observed: Observed, config: Config, rule: TimesRule, noise: Noise
) -> tuple[State, Observed, Times, Noise]:
    """Several questions about each row: `config.questions` sets of levels for its scalars, one for its images. One where
    the levels are shared: a second set would not be the images'."""
    n = config.questions if schema.images and schema.scalars and rule.separate else 1
    many = Noise(config.seed + 1, several(noise.index, n))
    scans = {image.name for image in schema.images}

    def repeat(part: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value if name in scans else value.repeat_interleave(n, 0) for name, value in part.items()}

    everywhere = {name: known.repeat_interleave(n, 0) for name, known in observed.items()}
    times = rule.draw(schema, everywhere, many)
    times |= {image.name: times[image.name][::n] for image in schema.images}
    return repeat(x0), repeat(observed), times, many


def _without_images(data: "_Data", rows: Tensor, rule: TimesRule, seed: int) -> tuple[State, Observed, Times, Noise]:
    """Questions about people who have no scan, a table's price: a mixture asks them of one row in forty, too seldom to
    learn how facts hang together without a scan. One row of images, absent, serves all."""
    schema, noise = data.schema, Noise(seed, torch.arange(FACTS_ROWS, device=data.place))
    x0, observed = data.facts(rows[noise.integers(len(rows)).cpu()])
    times = rule.draw(Schema(schema.scalars), observed, noise)
    for image in schema.images:
        x0[image.name] = torch.zeros(1, *image.entry_shape, device=data.place)
        observed[image.name] = torch.zeros(1, dtype=torch.bool, device=data.place)
        times[image.name] = full_level(image, 1.0, 1, data.place)
    return x0, observed, times, noise


class _Source:
    """A row's image as entries: augmented at every visit, or drawn from variants encoded beforehand."""

    def __init__(self, codec: ImageCodec, stack: ImageStack, latents: np.ndarray | None, augmented: bool) -> None:
        self.codec, self.stack, self.latents, self.augmented = codec, stack, latents, augmented

    def fit(self, rows: Tensor) -> None:
        """Standardises the codec by these images."""
        self.codec = self.codec.fit(self._raw, rows)

    def clean(self, rows: Tensor) -> Tensor:
        """(n, channels, *grid) standardised, as they are, on the CPU."""
        return self.codec.standardise(self._raw(rows))

    def _raw(self, rows: Tensor) -> Tensor:
        if self.latents is not None:
            return torch.from_numpy(self.latents[0][rows.numpy()]).float()
        return self.stack.rows(rows)[:, None]

    def entries(self, rows: Tensor, noise: Noise | None, place: torch.device) -> Tensor:
        """(n, channels, *grid) standardised; with noise, of a randomly changed image."""
        change = noise is not None and self.augmented
        if self.latents is not None:
            variant = noise.integers(len(self.latents)).cpu() if change and noise else torch.zeros_like(rows)
            raw = torch.from_numpy(self.latents[variant.numpy(), rows.numpy()]).float().to(place)
            return self.codec.standardise(raw)
        voxels = self.stack.rows(rows, place)
        return self.codec.encode(augment(voxels[:, None], noise)[:, 0] if change and noise else voxels)


class _Data:
    """The whole cohort, a batch at a time."""

    def __init__(
        self, schema: Schema, sources: Mapping[str, _Source], scalars: State, known: Observed, place: torch.device
    ) -> None:
        self.schema, self.sources, self.place = schema, sources, place
        self.scalars, self.known = scalars, known

    def batch(self, rows: Tensor, noise: Noise | None = None) -> tuple[State, Observed]:
        rows = rows.cpu()
        x0 = {name: source.entries(rows, noise, self.place) for name, source in self.sources.items()}
        observed = {name: source.stack.present[rows].to(self.place) for name, source in self.sources.items()}
        values, known = self.facts(rows)
        return x0 | values, observed | known

    def facts(self, rows: Tensor) -> tuple[State, Observed]:
        """Numbers and classes of these rows."""
        x0 = {name: values[rows].to(self.place) for name, values in self.scalars.items()}
        return x0, {name: known[rows].to(self.place) for name, known in self.known.items()}


def _usual(
    denoiser: LearnedDenoiser, sources: Mapping[str, _Source], held_out: Tensor, place: torch.device
) -> dict[str, dict[str, object]]:
    """Of every image, what is usual of it in people not trained on (see `surprise`)."""
    if not isinstance(denoiser, JointDenoiser) or not denoiser.coverage.separate:
        return {}
    found = {}
    for image in denoiser.schema.images:
        source = sources[image.name]
        rows = held_out[source.stack.present[held_out]][:MAX_USUAL]
        if len(rows):
            parts = (source.entries(part, None, place) for part in rows.split(CHUNK))
            found[image.name] = usual(denoiser, image, parts).to_dict()
    return found


def _train_autoencoder(
    image: Image, stack: ImageStack, training: Tensor, validation: Tensor, config: Config, folder: Path,
    cache: Path | None, place: torch.device, resume: bool, quiet: bool,
) -> Autoencoder:  # fmt: skip
    """Of the same scans and settings it is trained once, whatever facts stand beside them: `cache` keeps it."""
    autoencoder = Autoencoder(config.autoencoder, image.shape).to(place)
    settings = {key: value for key, value in to_dict(config).items() if key in AUTOENCODING}
    key = digits_of(f"{stack.mark()} {image.shape} {training.tolist()} {validation.tolist()} {settings}")
    kept = cache / f"autoencoder-{key}.safetensors" if cache else None
    if kept is not None and kept.exists():
        load_weights(autoencoder, read_tensors(kept)[0], kept)
        return autoencoder.eval()
    held_out = validation[stack.present[validation]][:CHUNK]
    grid = config.autoencoder.latent_grid(image.shape)

    def step(module: nn.Module, k: int) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(module, Autoencoder)
        noise = Noise(config.seed, torch.arange(config.encoding.batch, device=place) + k * config.encoding.batch)
        voxels = stack.rows(training[noise.integers(len(training)).cpu()], place)[:, None]
        x = augment(voxels, noise) if config.augment else voxels
        return module.loss(x, noise.normal(config.autoencoder.latent_channels, *grid))

    def validate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, Autoencoder)
        rows = held_out if len(held_out) else training[:CHUNK]
        errors = []
        for part in rows.split(config.encoding.batch):
            x = stack.rows(part, place)[:, None]
            errors.append((module.decode(module.encode(x)) - x).abs().mean((1, 2, 3, *range(4, x.dim()))))
        return {"loss": torch.cat(errors).mean().item()}

    stage = f"autoencoder-{image.name}"
    optimise(autoencoder, step, validate, config.encoding, folder / "training", stage, resume=resume, quiet=quiet)
    if kept is not None:
        write_tensors(kept, autoencoder.state_dict())
    return autoencoder


def _encode_all(
    codec: ImageCodec, stack: ImageStack, config: Config, cache: Path | None, place: torch.device, quiet: bool
) -> np.ndarray:
    """Raw latents (variants, rows, channels, *grid) float16, kept by a hash of images and autoencoder."""
    assert codec.autoencoder is not None
    key = digits_of(f"{stack.key} {weights_mark(codec.autoencoder)}")
    variants = VARIANTS if config.augment else 1
    file = cache / f"latents-{key}-{variants}.npy" if cache else None
    if file is not None and file.exists():
        return np.load(file, mmap_mode="r")
    s = config.autoencoder
    shape = (variants, len(stack), s.latent_channels, *s.latent_grid(codec.image.shape))
    with nullcontext(np.zeros(shape, np.float16)) if file is None else large_array(file, shape) as latents:
        for part in track(torch.arange(len(stack)).split(CHUNK), f"encoding {codec.image.name}", disable=quiet):
            for variant in range(variants):
                voxels = stack.rows(part, place)
                if variant:
                    noise = Noise(config.seed + variant, part.to(place))
                    voxels = augment(voxels[:, None], noise)[:, 0]
                latents[variant, part.numpy()] = codec.raw(voxels).cpu().numpy()
    return latents


def _describe(schema: Schema, table: pd.DataFrame, stacks: Mapping[str, ImageStack]) -> dict[str, dict[str, object]]:
    """What the model has seen of each variable: counts, ranges, shares."""
    summary: dict[str, dict[str, object]] = {}
    for v in schema:
        if isinstance(v, Image):
            summary[v.name] = {"known": int(stacks[v.name].present.sum())}
            continue
        cells = table[v.name].dropna()
        if isinstance(v, Continuous):
            numbers = pd.to_numeric(cells)
            figures = {"mean": numbers.mean(), "sd": numbers.std(), "min": numbers.min(), "max": numbers.max()}
            summary[v.name] = {"known": len(cells), **{key: round(float(x), 4) for key, x in figures.items()}}
        else:
            counts = v.encode(cells)[0].bincount(minlength=len(v.levels)).tolist()
            summary[v.name] = {"known": len(cells), "counts": dict(zip(v.levels, counts))}
    return summary
