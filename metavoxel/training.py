"""One training loop for the autoencoder and the joint model.

All randomness of step k comes from (seed, k), so a run that was stopped and resumed ends where an unbroken one would.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metavoxel.checkpoint import load_weights, read_tensors, write_tensors
from metavoxel.config import Optimiser
from metavoxel.errors import MetavoxelError
from metavoxel.muon import Muon
from metavoxel.progress import Bars

LOG_EVERY = 20
SAVE_SECONDS = 300.0
"""What a run that is stopped loses at most."""

Step = Callable[[nn.Module, int], tuple[Tensor, dict[str, float]]]
"""(module, step number) -> loss to minimise and its parts to log."""
Validate = Callable[[nn.Module], dict[str, float]]
"""Module -> figures on held-out people; the checkpoint with the lowest "loss" is kept."""


def optimise(
    module: nn.Module,
    step: Step,
    validate: Validate,
    settings: Optimiser,
    folder: Path,
    stage: str,
    matrices: Sequence[Tensor] = (),
    *,
    earliest: int = 0,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, float]:
    """Trains `module` in place and leaves it with the best averaged weights; returns their validation figures.

    matrices: those of its weights that Muon may train, if the settings have a rate for them; the rest is AdamW's.
    earliest: the step before which parts of it have not begun to learn, so that no weights are taken from there.

    Writes folder/metrics.jsonl (one line each LOG_EVERY steps and validation) and, at every validation and every five
    minutes, folder/STAGE.safetensors, from which `resume` goes on.
    """
    run = _Run(module, settings, folder, stage, matrices, min(earliest, settings.steps))
    if resume:
        run.load()
    device = next(module.parameters()).device.type
    half = settings.precision == "bfloat16" or (settings.precision == "auto" and device == "cuda")
    mixed = torch.autocast(device, torch.bfloat16, enabled=half)
    started, at_start = time.monotonic(), run.step
    with Bars(quiet) as bars:
        bar = bars.add_task(stage, total=settings.steps, completed=run.step, note="")
        module.train()
        while run.step < settings.steps:
            with mixed:
                loss, parts = step(module, run.step)
            run.descend(loss)
            if run.step % LOG_EVERY == 0:
                pace = (run.step - at_start) / (time.monotonic() - started)
                run.log({"loss": loss.item(), **parts, "steps_per_second": pace})
            if run.step % settings.validate_every == 0 or run.step == settings.steps:
                run.judge(validate, mixed)
                if run.step >= run.earliest:
                    bars.update(bar, note=f"validation {run.best_figures['loss']:.3f} at best")
            elif time.monotonic() - run.saved > SAVE_SECONDS:
                run.save()
            bars.update(bar, completed=run.step)
    module.load_state_dict(run.best)
    module.eval()
    return run.best_figures


class _Run:
    """What changes during training: weights, their average, the optimiser, the best so far."""

    def __init__(
        self, module: nn.Module, settings: Optimiser, folder: Path, stage: str, matrices: Sequence[Tensor], earliest: int
    ) -> None:
        self.module, self.settings, self.folder, self.stage, self.earliest = module, settings, folder, stage, earliest
        self.optimisers = _optimisers(module, settings, matrices)
        self.step, self.saved = 0, time.monotonic()
        self.average = self._weights()
        self.best, self.best_figures = self._weights(), {"loss": math.inf}

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def descend(self, loss: Tensor) -> None:
        s = self.settings
        if not torch.isfinite(loss):
            raise MetavoxelError(
                f"training of the {self.stage} met a loss that is not a number at step {self.step}; lower its rate "
                f"(now {s.rate:g}) or use precision: float32, then --resume"
            )
        self.module.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), s.clip)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                pace = min(1, (self.step + 1) / max(1, s.warmup)) * _cosine(self.step / s.steps)
                group["lr"] = optimiser.defaults["lr"] * pace
            optimiser.step()
        self.step += 1
        decay = min(s.average, self.step / (self.step + 10))  # early weights are forgotten quickly
        for name, tensor in self.module.state_dict().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)

    def judge(self, validate: Validate, mixed: torch.autocast) -> None:
        """Validates the averaged weights, keeps them if they are the best, and saves the run."""
        current = self._weights()
        self.module.load_state_dict(self.average)
        self.module.eval()
        with torch.no_grad(), mixed:
            figures = validate(self.module)
        self.module.load_state_dict(current)
        self.module.train()
        self.log({f"validation_{name}": value for name, value in figures.items()})
        if self.step >= self.earliest and figures["loss"] < self.best_figures["loss"]:
            self.best = {name: tensor.clone() for name, tensor in self.average.items()}
            self.best_figures = {**figures, "step": self.step}
        self.save()

    def log(self, figures: dict[str, float]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "metrics.jsonl").open("a") as lines:
            lines.write(json.dumps({"stage": self.stage, "step": self.step, **figures}) + "\n")

    @property
    def path(self) -> Path:
        return self.folder / f"{self.stage}.safetensors"

    def save(self) -> None:
        tensors = {f"weights/{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        for which, optimiser in enumerate(self.optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser{which}/{index}/{name}": torch.as_tensor(x) for name, x in state.items()}
        settings = json.loads(json.dumps(asdict(self.settings)))
        write_tensors(self.path, tensors, {"step": self.step, "best": self.best_figures, "settings": settings})
        self.saved = time.monotonic()

    def load(self) -> None:
        """Goes on from the last save, if there is one; figures logged after it are dropped."""
        if not self.path.exists():
            return self._forget_figures_after(0)
        tensors, saved = read_tensors(self.path)
        if saved["settings"] != json.loads(json.dumps(asdict(self.settings))):
            raise MetavoxelError(f"{self.path}: was trained with other settings; use the same ones, or no --resume")
        load_weights(self.module, _part(tensors, "weights"), self.path)
        own = self.module.state_dict()
        self.average, self.best = (
            {name: x.to(own[name].device) for name, x in _part(tensors, part).items()} for part in ("average", "best")
        )
        self.step, self.best_figures = saved["step"], saved["best"]
        for which, optimiser in enumerate(self.optimisers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in _part(tensors, f"optimiser{which}").items():
                index, name = key.split("/")
                state.setdefault(int(index), {})[name] = tensor
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        self._forget_figures_after(self.step)

    def _forget_figures_after(self, step: int) -> None:
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [line for line in lines if line["stage"] != self.stage or line["step"] <= step]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))


def _optimisers(
    module: nn.Module, settings: Optimiser, matrices: Sequence[Tensor]
) -> list[torch.optim.Optimizer]:
    own = list(matrices) if settings.matrix_rate else []
    chosen = {id(weight) for weight in own}
    rest = [weight for weight in module.parameters() if id(weight) not in chosen]
    adam = torch.optim.AdamW(rest, lr=settings.rate, weight_decay=settings.weight_decay, betas=(0.9, 0.99))
    return [adam, Muon(own, settings.matrix_rate, settings.weight_decay)] if own else [adam]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = len(prefix) + 1
    return {name[start:]: tensor for name, tensor in tensors.items() if name.startswith(prefix + "/")}


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))
