"""A cohort's answers as a table. The next batch of scans is read from disk while the network looks at this one."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from metavoxel.beliefs import Belief
from metavoxel.data.cohort import Cohort
from metavoxel.denoiser import LearnedDenoiser
from metavoxel.diffusion import encode_once, tell
from metavoxel.draws import quantiles
from metavoxel.errors import MetavoxelError
from metavoxel.latents import ImageCodec
from metavoxel.laws import Mixture
from metavoxel.loading import load_scan
from metavoxel.methods import draw_facts
from metavoxel.naming import QUANTILES, answer_columns
from metavoxel.posterior import encode_facts
from metavoxel.question import Given
from metavoxel.schema import Categorical, Continuous, Image, Schema
from metavoxel.surprise import LIMIT, Usual, features

BATCH = 16
"""Scans in memory at a time, twice over: those asked about, and the next."""


@dataclass(frozen=True)
class Batch:
    """What is known of `rows` rows of a cohort, from row `first` on."""

    first: int
    rows: int
    known: dict[str, Given]


def batches(
    schema: Schema,
    codecs: Mapping[str, ImageCodec],
    cohort: Cohort,
    facts: Mapping[str, object],
    device: torch.device,
) -> Iterator[Batch]:
    """The cohort's scans and facts as given values. facts: name -> one value for all, or None: the table's column.

    A missing scan or cell is not observed in its row. Scans come one batch ahead, on a thread.
    """
    if len(cohort) == 0:
        raise MetavoxelError(f"{cohort.root}: the cohort is empty; there is nothing to answer")
    images = [image for image in schema.images if image.name in cohort.scans]
    if schema.images and not images and not facts:
        raise MetavoxelError(f"{cohort.root}: holds no {' or '.join(i.name for i in schema.images)} scan")
    columns = {name: _fact_column(schema, cohort, name, value) for name, value in facts.items()}
    encoded = {name: schema.scalar(name).encode(column) for name, column in columns.items()}

    def read(first: int) -> dict[str, Tensor]:
        return {image.name: _voxels(image, cohort.scans[image.name][first : first + BATCH]) for image in images}

    starts = range(0, len(cohort), BATCH)
    with ThreadPoolExecutor(1) as reader:
        voxels, ahead = read(0), None
        for first, after in zip(starts, chain(starts[1:], [None])):
            voxels = voxels if ahead is None else ahead.result()
            ahead = None if after is None else reader.submit(read, after)
            rows = slice(first, first + BATCH)
            known = {
                name: Given(values[rows].to(device), observed=observed[rows].to(device))
                for name, (values, observed) in encoded.items()
            }
            for image in images:
                present = torch.tensor([path is not None for path in cohort.scans[image.name][rows]], device=device)
                known[image.name] = Given(codecs[image.name].encode(voxels[image.name].to(device)), observed=present)
            yield Batch(first, min(BATCH, len(cohort) - first), known)


def tabulate(
    schema: Schema,
    denoiser: LearnedDenoiser,
    usual: Mapping[str, Usual],
    batch: Batch,
    want: Sequence[str],
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """One row for each of the batch, in the columns that `predict` promises. usual: of the images that are compared."""
    known, rows = batch.known, batch.rows
    reader = encode_once(denoiser, schema, known)
    told = tell(reader, schema, known, want)
    numbers = [name for name in want if isinstance(schema[name], Continuous)]
    drawn: dict[str, np.ndarray] = {}
    if numbers and draws:
        state = draw_facts(reader, schema, known, want, draws, seed, first_row=batch.first)
        drawn = {name: schema[name].drawn(state[name]) for name in numbers}  # type: ignore[union-attr]
    answer: dict[str, object] = {}
    for name, law in told.items():
        variable = schema.scalar(name)
        if isinstance(variable, Categorical):
            assert isinstance(law, Tensor)
            p = law.double().exp().expand(rows, -1).cpu().numpy()
            answer |= dict(zip(answer_columns(variable), (np.array(variable.levels, dtype=object)[p.argmax(1)], *p.T)))
            continue
        assert isinstance(law, Mixture)
        number = Belief(variable, law)
        sd = drawn[name].std(1, ddof=1) if draws else number.std
        levels = torch.tensor(list(QUANTILES.values()))
        found = quantiles(drawn[name], levels.numpy(), 1) if draws else number.quantiles(levels).T
        answer |= dict(zip(answer_columns(variable), (number.mean, sd, *found)))
    surprises = {image.name: surprise_of(denoiser, image, usual[image.name], known[image.name])
                 for image in schema.images if image.name in usual and image.name in known}  # fmt: skip
    answer |= {f"{name}_surprise": score for name, score in surprises.items()}
    answer["warning"] = _warnings(schema, known, surprises, rows)
    return pd.DataFrame({key: np.broadcast_to(np.asarray(value), (rows,)) for key, value in answer.items()})


def surprise_of(denoiser: LearnedDenoiser, image: Image, usual: Usual, scans: Given) -> np.ndarray:
    """How unlike the training people's each scan is, (rows,); NaN where there is none."""
    score = usual.surprise(features(denoiser, image, scans.value))
    present = torch.ones_like(score, dtype=torch.bool) if scans.observed is None else scans.observed
    return torch.where(present, score, torch.nan).cpu().numpy()


def _voxels(image: Image, paths: Sequence[Path | None]) -> Tensor:
    """(rows, *shape) on the model's grid; zeros where there is no scan."""
    arrays = [np.zeros(image.shape, np.float32) if path is None else load_scan(path, image).array for path in paths]
    return torch.from_numpy(np.stack(arrays)).float()


def _fact_column(schema: Schema, cohort: Cohort, name: str, value: object) -> pd.Series:
    schema.scalar(name)
    if value is not None:
        encode_facts(schema, {name: value}, torch.device("cpu"))  # refuses what cannot be meant
        return pd.Series([value] * len(cohort), index=["--given"] * len(cohort), dtype=object)
    return cohort.column(name)


def _warnings(schema: Schema, known: Mapping[str, Given], surprises: Mapping[str, np.ndarray], rows: int) -> list[str]:
    """What of the given was missing in each row or far from the training rows', and which scans are, in words."""
    missing: list[list[str]] = [[] for _ in range(rows)]
    for name, given in known.items():
        if given.observed is not None:
            for row in (~given.observed).nonzero()[:, 0].tolist():
                missing[row].append(name)
    words = [[f"answered without {' and '.join(names)}, which is missing"] if names else [] for names in missing]
    for name, given in known.items():
        variable = schema[name]
        if isinstance(variable, Continuous) and given.observed is not None:
            values = variable.decode(given.value)
            for row in given.observed.nonzero()[:, 0].tolist():
                if stranger := variable.stranger(float(values[row])):
                    words[row].append(f"{name} {stranger}: the answers mean little")
    for name, scores in surprises.items():
        for row in np.flatnonzero(scores > LIMIT):
            words[row].append(f"{name} is unlike the training scans (surprise {scores[row]:.1f}, usual 1): check its "
                              "contrast, orientation, stripping and noise before trusting the answers")  # fmt: skip
    return ["; ".join(parts) for parts in words]
