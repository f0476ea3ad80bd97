"""How what is known takes part in a question. Three methods, one sampler: they differ in what is handed to it.

direct: known values are shown as they are (level 0), what is neither known nor wanted is ignored (level 1). Exact if the
denoiser is, and few steps will do; needs training with a level for each variable (times: mixture).
replacement: known values are noised along with the rest (paper, Eq. 3). For any model; biased even with a perfect one.
repaint: replacement that goes back up and down again (Lugmayr et al. 2022). Less biased, at `repeats` times the price.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from metavoxel.asked import whole
from metavoxel.diffusion import sample
from metavoxel.errors import MetavoxelError
from metavoxel.processes import Discrete
from metavoxel.question import Coverage, Denoiser, Given, TellsLaws, tied
from metavoxel.schema import Image, Schema, State
from metavoxel.solvers import ANCESTRAL, BY_LAW, DDIM, DPM2M, Solver
from metavoxel.times import Plan, even_plan, facts_plan, images_plan, repaint_plan

Method = Literal["direct", "replacement", "repaint"]
METHODS: tuple[Method, ...] = get_args(Method)

IMAGE_STEPS = 20
"""Of the direct method; 250 draw no better images (docs/benchmarks.md)."""
MEAN_STEPS = 15
"""Of a number, by a denoiser that tells its mean only; by one that tells its law, one step is exact."""
PAPER_STEPS = 50
"""Of the paper's replacement, and of repaint."""
JUMP = REPEATS = 10
STAGE_SEED = 1 << 40
"""Between the seeds of stages: their numbers must not be the same."""


@dataclass(frozen=True)
class Stage:
    """Variables that are walked together, along which plan and how; what was drawn in stages before is known."""

    want: Sequence[str]
    plan: Plan
    solver: Solver


@dataclass(frozen=True)
class Walk:
    """What `diffusion.sample` is asked: p(a, b, c) = p(a) p(b | a) p(c | a, b), a stage each."""

    given: Mapping[str, Given]
    stages: Sequence[Stage]
    """All that is walked: what is wanted, and what only goes along."""

    @property
    def steps(self) -> int:
        return sum(len(stage.plan) for stage in self.stages)

    def moves(self, name: str) -> bool:
        """Whether the variable changes on the way. A scan that does is encoded anew at every step, for every draw."""
        walked = any(name in stage.want for stage in self.stages)
        return walked or (name in self.given and self.given[name].level is tied)


def walk(
    schema: Schema,
    coverage: Coverage,
    known: Mapping[str, Given],
    want: Sequence[str],
    method: Method | None = None,
    steps: int | None = None,
    jump: int | None = None,
    repeats: int | None = None,
    *,
    laws: bool = False,
) -> Walk:
    """The walk that answers a question by a method (default: direct where training allows it, else replacement).

    steps: from noise to data, of each number and of the images; default PAPER_STEPS. By the direct method facts come first,
    one by one, then images given the facts, by default in IMAGE_STEPS. A class takes one step: what the network says of it
    at level 1 is its law already. So does a number by default, if the denoiser tells its law (`laws`), else MEAN_STEPS.
    jump, repeats: of repaint; every stretch of `jump` steps is walked `repeats` times. Default JUMP and REPEATS.
    Raises MetavoxelError for an unknown method and for options that it has no use for.
    """
    if method is None:
        method = "direct" if coverage.separate or not known else "replacement"
    if method not in METHODS:
        raise MetavoxelError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    for option, value in {"steps": steps, "jump": jump, "repeats": repeats}.items():
        if value is None:
            continue
        whole(option, value, 1)
        if option != "steps" and method != "repaint":
            raise MetavoxelError(f"{option} belongs to method='repaint', not to {method!r}; choose that or leave it out")
    if method != "direct" or not coverage.separate:  # with one level for all, nothing can be ignored
        unknown = [v.name for v in schema if v.name not in known or known[v.name].mask is not None]
        want = list(dict.fromkeys([*want, *unknown]))
    if method == "direct":
        plain = [Stage(want, even_plan(steps or PAPER_STEPS), DPM2M)]
        return Walk(known, _one_by_one(schema, want, steps, laws) if coverage.separate else plain)
    known = {name: replace(value, level=tied) for name, value in known.items()}
    steps = steps or PAPER_STEPS
    if method == "replacement":
        return Walk(known, [Stage(want, even_plan(steps), DDIM)])
    # going back adds fresh noise, which a deterministic way down keeps too much of: with an exact denoiser DDIM leaves
    # 1.2 to 2.8 times the error of ancestral steps
    return Walk(known, [Stage(want, repaint_plan(steps, jump or JUMP, repeats or REPEATS), ANCESTRAL)])


def _one_by_one(schema: Schema, want: Sequence[str], steps: int | None, laws: bool) -> list[Stage]:
    """Classes, then numbers, each alone, images last: each stage is a question that training asks often. Numbers walked
    together are not: what a few noised ones say of one another adds up to draws twice as wide as they should be."""
    classes = [name for name in want if isinstance(schema[name].process, Discrete)]
    images = [name for name in want if isinstance(schema[name], Image)]
    numbers = [name for name in want if name not in classes and name not in images]
    by_law, by_mean = (even_plan(steps or 1), BY_LAW), (facts_plan(steps or MEAN_STEPS), DPM2M)
    stages = [Stage([name], even_plan(1), ANCESTRAL) for name in classes]
    stages += [Stage([name], *(by_law if laws else by_mean)) for name in numbers]
    return stages + ([Stage(images, images_plan(steps or IMAGE_STEPS), DPM2M)] if images else [])


def draw(
    denoiser: Denoiser,
    schema: Schema,
    asked: Walk,
    n: int,
    seed: int = 0,
    *,
    first_row: int = 0,
    first_draw: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
) -> State:
    """n draws of all that is walked for each row of what is given: (rows, n, *entry_shape). See `diffusion.sample`."""
    drawn: State = {}
    done = 0
    for number, stage in enumerate(asked.stages):
        known = {**asked.given, **{name: Given(x.flatten(0, 1), each=True) for name, x in drawn.items()}}
        drawn |= sample(denoiser, schema, known, stage.want, n, stage.plan, stage.solver, seed + number * STAGE_SEED,
                        first_row=first_row, first_draw=first_draw, on_step=partial(_after, on_step, done))  # fmt: skip
        done += len(stage.plan)
    return drawn


def _after(on_step: Callable[[int], None], before: int, step: int) -> None:
    on_step(before + step)


def draw_facts(
    denoiser: Denoiser,
    schema: Schema,
    given: Mapping[str, Given],
    want: Sequence[str],
    n: int,
    seed: int = 0,
    *,
    steps: int | None = None,
    first_row: int = 0,
) -> State:
    """`draw` of numbers and classes by the direct method: (rows, n) each."""
    asked = walk(schema, denoiser.coverage, given, want, steps=steps, laws=isinstance(denoiser, TellsLaws))
    return draw(denoiser, schema, asked, n, seed, first_row=first_row)
