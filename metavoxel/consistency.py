"""Whether a joint model agrees with itself. Every conditional is learnt apart, so p(a | x) p(b | a, x) need not be
p(b | x) p(a | b, x); how far it is from that is how far the model is from being a joint law at all."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations

import pandas as pd
import torch
from torch import Tensor

from metavoxel.diffusion import encode_once, expect
from metavoxel.methods import draw_facts
from metavoxel.processes import Discrete
from metavoxel.question import Denoiser, Given, laid_out, there_of
from metavoxel.schema import Schema, State

QUANTILE = 0.95


def contradictions(
    schema: Schema,
    denoiser: Denoiser,
    asked: Iterable[Mapping[str, Given]],
    free: Sequence[str],
    draws: int,
    seed: int,
    on_rows: Callable[[int], None] = lambda done: None,
) -> pd.DataFrame:
    """Over all batches of given values in `asked`, the columns that `MetaVoxel.consistency` promises. on_rows: told how
    many are done."""
    gaps: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in permutations(free, 2)}
    first = 0
    for known in asked:
        reader = encode_once(denoiser, schema, known)
        direct = expect(reader, schema, known, free)
        drawn = draw_facts(reader, schema, known, free, draws, seed, first_row=first)
        rows = len(drawn[free[0]])
        first += rows
        # of people of whom nothing is there, where anything is given at all, it is the same question again
        seen = there_of(known, rows) if known else torch.ones(rows, dtype=torch.bool)
        for name, way in gaps:
            through = by_way_of(reader, schema, known, name, way, drawn[way])
            gaps[name, way].append(_gap(schema, name, direct, through, drawn[name])[seen])
        on_rows(first)
    found = []
    for (name, way), parts in gaps.items():
        gap = torch.cat(parts)
        found.append({"variable": name, "through": way, "gap": float(gap.mean()),
                      "gap_q95": float(gap.quantile(QUANTILE)) if len(gap) else math.nan, "rows": len(gap)})  # fmt: skip
    return pd.DataFrame(found)


def by_way_of(
    reader: Denoiser, schema: Schema, known: Mapping[str, Given], name: str, way: str, values: Tensor
) -> Tensor:
    """The prediction of `name` averaged over values (rows, draws) of `way`: E[x] or p(x), (rows, ...)."""
    rows, draws = values.shape
    each = torch.arange(rows, device=values.device).repeat_interleave(draws)
    state, times = laid_out(schema.scalars, known, each, rows)  # the reader holds the scans
    state[way], times[way] = values.flatten(), torch.zeros_like(times[way])
    answer = reader(state, times)[name]
    if isinstance(schema[name].process, Discrete):
        answer = answer.exp()
    return answer.unflatten(0, (rows, draws)).mean(1)


def _gap(schema: Schema, name: str, direct: State, through: Tensor, drawn: Tensor) -> Tensor:
    """(rows,): total variation of a class's probabilities; a number's means in sd of its draws (rows, draws)."""
    if isinstance(schema[name].process, Discrete):
        return 0.5 * (direct[name].exp() - through).abs().sum(-1)
    return (direct[name] - through).abs() / drawn.std(1).clamp_min(1e-6)
