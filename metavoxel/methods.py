"""How what is known takes part in a question. Three methods, one sampler: they differ in what is handed to it.

direct: known values are shown as they are (level 0), what is neither known nor wanted is ignored (level 1). Exact if the
denoiser is, and few steps will do; needs training with a level for each variable (times: mixture).
replacement: known values are noised along with the rest (paper, Eq. 3). For any model; biased even with a perfect one.
repaint: replacement that goes back up and down again (Lugmayr et al. 2022). Less biased, at `repeats` times the price.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from metavoxel.diffusion import Coverage, Denoiser, Given, sample, tied
from metavoxel.errors import MetavoxelError
from metavoxel.processes import Discrete
from metavoxel.schema import Image, Schema, State
from metavoxel.solvers import ANCESTRAL, DDIM, DPM2M, Solver
from metavoxel.times import Plan, even_plan, facts_plan, images_plan, repaint_plan

Method = Literal["direct", "replacement", "repaint"]
METHODS: tuple[Method, ...] = get_args(Method)

SCALAR_STEPS = 20
IMAGE_STEPS = 50
"""Also the paper's steps for replacement, and repaint's."""
JUMP = REPEATS = 10


@dataclass(frozen=True)
class Walk:
    """What `diffusion.sample` is asked."""

    given: Mapping[str, Given]
    want: Sequence[str]
    """All that is walked: what is wanted, then what only goes along."""
    plan: Plan
    solver: Solver

    def moves(self, name: str) -> bool:
        """Whether the variable changes on the way. A scan that does is encoded anew at every step, for every draw."""
        return name in self.want or (name in self.given and self.given[name].level is tied)


def walk(
    schema: Schema,
    coverage: Coverage,
    known: Mapping[str, Given],
    want: Sequence[str],
    method: Method | None = None,
    steps: int | None = None,
    jump: int | None = None,
    repeats: int | None = None,
) -> Walk:
    """The walk that answers a question by a method (default: direct where training allows it, else replacement).

    steps: from noise to data; direct has a default of SCALAR_STEPS where no image is walked (1 for a class alone), all else
    of IMAGE_STEPS.
    jump, repeats: of repaint; every stretch of `jump` steps is walked `repeats` times. Default JUMP and REPEATS.
    Raises MetavoxelError for an unknown method and for options that it has no use for.
    """
    if method is None:
        method = "direct" if coverage.separate or not known else "replacement"
    if method not in METHODS:
        raise MetavoxelError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    for option, value in {"steps": steps, "jump": jump, "repeats": repeats}.items():
        if value is not None and value < 1:
            raise MetavoxelError(f"{option} must be at least 1, got {value}")
        if value is not None and option != "steps" and method != "repaint":
            raise MetavoxelError(f"{option} belongs to method='repaint', not to {method!r}; choose that or leave it out")
    if method != "direct" or not coverage.separate:  # with one level for all, nothing can be ignored
        unknown = [v.name for v in schema if v.name not in known or known[v.name].mask is not None]
        want = list(dict.fromkeys([*want, *unknown]))
    if method == "direct":
        draws_images = any(isinstance(schema[name], Image) for name in want)
        plan_of_images = images_plan if coverage.separate else even_plan
        plan = plan_of_images(steps or IMAGE_STEPS) if draws_images else plan_of_facts(schema, want, steps)
        return Walk(known, want, plan, DPM2M)
    known = {name: replace(value, level=tied) for name, value in known.items()}
    steps = steps or IMAGE_STEPS
    if method == "replacement":
        return Walk(known, want, even_plan(steps), DDIM)
    # going back adds fresh noise, which a deterministic way down keeps too much of: with an exact denoiser DDIM leaves
    # 1.2 to 2.8 times the error of ancestral steps
    return Walk(known, want, repaint_plan(steps, jump or JUMP, repeats or REPEATS), ANCESTRAL)


def plan_of_facts(schema: Schema, want: Sequence[str], steps: int | None = None) -> Plan:
    """steps: default SCALAR_STEPS; but a class that is wanted alone is drawn in one, since what the network says of it at
    level 1 is its law already."""
    alone = len(want) == 1 and isinstance(schema[want[0]].process, Discrete)
    return even_plan(1) if alone and steps is None else facts_plan(steps or SCALAR_STEPS)


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
    """`sample` of numbers and classes by the direct method's plan and solver: (rows, n) each."""
    plan = plan_of_facts(schema, want, steps)
    return sample(denoiser, schema, given, want, n, plan, DPM2M, seed, first_row=first_row)
