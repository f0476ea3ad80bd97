"""The same brain at another age: a scan is encoded under its own facts and decoded under changed ones.

Both ways follow the deterministic path (DDIM, Song et al. 2021) between the scan and the noise that would have made it:
the noise is what is this person's own, the facts are what is changed. The decoding under the unchanged facts is taken as
the zero: only the difference is added to the scan, so that whatever the change does not touch keeps every detail.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from metavoxel.asked import whole
from metavoxel.clocks import alpha, sigma
from metavoxel.data.conform import Geometry, conform, restore_change
from metavoxel.data.volume import Volume, read_volume, write_series, write_volume
from metavoxel.errors import MetavoxelError
from metavoxel.files import atomic_write, make_folder, remove_others
from metavoxel.loading import Progress, grid_of
from metavoxel.model import MetaVoxel
from metavoxel.posterior import Posterior, encode_facts
from metavoxel.question import Given
from metavoxel.schema import Categorical, Image, full_level

STEPS = 25
NEAREST = 0.03
"""The level t that stands for the scan itself: nearer than this the path's noise cannot be told from rounding."""
REFINEMENTS = 2
"""Evaluations a step on the way up, to find the point from which the way down leads back."""


@dataclass(frozen=True)
class Counterfactuals:
    """One scan under several sets of facts."""

    scan: Volume
    geometry: Geometry
    own: Mapping[str, object]
    """The facts that the scan was encoded under."""
    changes: Sequence[Mapping[str, object]]
    deltas: np.ndarray
    """(changes, *shape) on the model's grid: what each change adds, bright tissue being 1."""
    name: str

    def __len__(self) -> int:
        return len(self.changes)

    def volume(self, number: int) -> Volume:
        """The scan under one set of changed facts, on its own voxels and in its own units."""
        change = restore_change(self.deltas[number], self.geometry)
        return Volume(self.scan.array + change.array, self.scan.affine)

    def frame(self) -> pd.DataFrame:
        """One row a change: the facts, and `mean_change`, the mean absolute change of a voxel, bright tissue being 1."""
        facts = pd.DataFrame([{**self.own, **change} for change in self.changes])
        return facts.assign(mean_change=np.abs(self.deltas).mean(tuple(range(1, self.deltas.ndim))))

    def save(self, folder: str | Path) -> list[Path]:
        """counterfactuals.csv, one NIfTI a change, and for several changes all of them as one 4-D series."""
        folder = make_folder(folder)
        files = [folder / "counterfactuals.csv"]
        with atomic_write(files[0]) as file:
            self.frame().to_csv(file, index=False)
        for number, change in enumerate(self.changes):
            label = re.sub(r"[^\w.+-]", "-", "_".join(f"{name}-{value}" for name, value in change.items()))
            files.append(folder / f"{label}_{self.name}.nii.gz")
            write_volume(self.volume(number), files[-1])
        if len(self) > 1:
            files.append(folder / f"series_{self.name}.nii.gz")
            write_series([self.volume(number) for number in range(len(self))], files[-1])
        remove_others(folder, files, f"series_{self.name}.nii.gz")
        return files


@torch.no_grad()
def counterfactual(
    model: MetaVoxel,
    scan: str | Path,
    changes: Sequence[Mapping[str, object]] | Mapping[str, object],
    own: Mapping[str, object] | None = None,
    name: str | None = None,
    steps: int = STEPS,
    progress: Progress = lambda done, total: None,
) -> Counterfactuals:
    """The scan as it would be under each of `changes`, for example [{"age": 60}, {"age": 80, "sex": "M"}]; or under one.

    own: the person's facts as they are; what is not given is answered from the scan (mean, most probable level). name:
    which image of the model the scan is (default: its first). Nothing is random.
    """
    image = model.schema.image(name) if name else model.first_image()
    changes = [changes] if isinstance(changes, Mapping) else changes
    if not changes or not all(changes):
        raise MetavoxelError("no fact is changed; say which, for example age=80")
    for change in changes:
        encode_facts(model.schema, change, model.device)
    whole("steps", steps, 1)
    volume = read_volume(scan)
    conformed = conform(volume, grid_of(image, Path(scan)))
    entries = model.codecs[image.name].encode(torch.from_numpy(conformed.array).float()[None].to(model.device))
    told = model.posterior(own).with_image(image.name, Given(entries), conformed.geometry)
    facts = {**own_facts(told), **(own or {})}
    path = _Path(model, image, steps)
    total = steps * (REFINEMENTS + 1 + len(changes))
    code = path.encode(entries, facts, lambda done: progress(done * REFINEMENTS, total))
    made = []
    for number, change in enumerate(({}, *changes)):
        before = steps * (REFINEMENTS + number)
        made.append(path.decode(code, {**facts, **change}, partial(_report, progress, before, total)))
    zero, *changed = (model.codecs[image.name].decode(x)[0].cpu().numpy() for x in made)
    return Counterfactuals(volume, conformed.geometry, facts, list(changes), np.stack(changed) - zero, image.name)


def own_facts(posterior: Posterior) -> dict[str, object]:
    """The model's best answer to every fact that is not known, each from one evaluation."""
    facts: dict[str, object] = {}
    for variable in posterior.schema.scalars:
        if variable.name in posterior.known:
            continue
        if isinstance(variable, Categorical):
            chances = posterior.probability(variable.name)
            facts[variable.name] = max(chances, key=chances.__getitem__)
        else:
            facts[variable.name] = round(posterior.mean(variable.name), 4)
    return facts


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


class _Path:
    """The deterministic path of one image under given facts, between NEAREST and pure noise."""

    def __init__(self, model: MetaVoxel, image: Image, steps: int) -> None:
        self.model, self.image = model, image
        self.levels = torch.linspace(NEAREST, 1, steps + 1).tolist()

    def encode(self, x: Tensor, facts: Mapping[str, object], report: Callable[[int], None]) -> Tensor:
        """Entries (1, channels, *grid) -> the noise that would have made them."""
        x = alpha(self._tau(self.levels[0])) * x
        for number, (t, s) in enumerate(pairwise(self.levels)):
            tau_t, tau_s = self._tau(t), self._tau(s)
            clean = self._clean(x, t, facts)
            for _ in range(REFINEMENTS - 1):
                clean = self._clean(self._moved(x, clean, tau_t, tau_s), s, facts)
            x = self._moved(x, clean, tau_t, tau_s)
            report(number + 1)
        return x

    def decode(self, x: Tensor, facts: Mapping[str, object], report: Callable[[int], None]) -> Tensor:
        """Noise -> clean entries."""
        for number, (t, s) in enumerate(pairwise(reversed(self.levels))):
            x = self._moved(x, self._clean(x, t, facts), self._tau(t), self._tau(s))
            report(number + 1)
        return self._clean(x, self.levels[0], facts)

    def _moved(self, x: Tensor, clean: Tensor, tau_t: Tensor, tau_s: Tensor) -> Tensor:
        """From level t to level s, either way, along the line through x and its clean prediction."""
        return alpha(tau_s) * clean + sigma(tau_s) / sigma(tau_t) * (x - alpha(tau_t) * clean)

    def _clean(self, x: Tensor, t: float, facts: Mapping[str, object]) -> Tensor:
        schema, device = self.model.schema, x.device
        known = encode_facts(schema, facts, device)
        state = {v.name: torch.zeros(1, *v.entry_shape, device=device) for v in schema.images} | {
            name: value.value for name, value in known.items()
        }
        times = {v.name: full_level(v, 0.0 if v.name in known else 1.0, 1, device) for v in schema}
        state[self.image.name], times[self.image.name] = x, full_level(self.image, t, 1, device)
        return self.model.denoiser(state, times)[self.image.name]

    def _tau(self, t: float) -> Tensor:
        return self.image.clock.tau(torch.tensor(t, device=self.model.device))
