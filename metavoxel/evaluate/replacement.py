"""The paper's inference, replacement, for models of one shared time (paper, "Inference")."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from metavoxel.methods import draw, walk
from metavoxel.model import MetaVoxel
from metavoxel.question import Given, there_of
from metavoxel.schema import State

PAPER_DRAWS = 3
"""Of which a prediction is the mean or the majority."""


def draws_by_replacement(
    model: MetaVoxel, known: Mapping[str, Given], want: Sequence[str], n: int, asked: Tensor, first: int, seed: int,
    steps: int | None = None,
) -> Iterator[tuple[np.ndarray, State]]:  # fmt: skip
    """n draws for each row where `asked` (rows,) bool: which m rows, and (m, n, *entry_shape) of each wanted, encoded.

    Such a model cannot ignore a gap, it draws what is missing along: rows that lack the same are asked together.
    first: the number of the first row, so that rows begin from noise of their own.
    """
    there = torch.stack([asked, *(asked if g.observed is None else g.observed.cpu() for g in known.values())], 1)
    for pattern in torch.unique(there[asked], dim=0) if asked.any() else ():
        own = (there == pattern).all(1).nonzero()[:, 0]
        alike = {name: Given(g.value[own.to(g.value.device)])
                 for (name, g), has in zip(known.items(), pattern[1:].tolist()) if has}  # fmt: skip
        plan, row = walk(model.schema, model.denoiser.coverage, alike, want, "replacement", steps), first + int(own[0])
        if alike:
            drawn = draw(model.denoiser, model.schema, plan, n, seed, first_row=row)
        else:  # one law for all of them
            drawn = draw(model.denoiser, model.schema, plan, n * len(own), seed, first_draw=n * row)
        yield own.numpy(), {name: drawn[name].reshape(len(own), n, *drawn[name].shape[2:]) for name in want}


def facts_by_replacement(
    model: MetaVoxel, known: Mapping[str, Given], want: Sequence[str], asked: Tensor, first: int, seed: int,
    steps: int | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:  # fmt: skip
    """PAPER_DRAWS draws of numbers and classes: which m rows, and (m, draws) of each wanted in its unit or its levels."""
    for own, drawn in draws_by_replacement(model, known, want, PAPER_DRAWS, asked, first, seed, steps):
        yield own, {name: model.schema.scalar(name).drawn(drawn[name]) for name in want}


def scanned(model: MetaVoxel, known: Mapping[str, Given], rows: int) -> Tensor:
    """(rows,) bool: who has a scan, of which such a model can be asked without drawing one along."""
    return there_of({image.name: known[image.name] for image in model.schema.images}, rows)
