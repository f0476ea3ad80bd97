"""Training: a stopped run ends where an unbroken one would; bad runs are told in one line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metavoxel as mv
from metavoxel.augment import _rigid, augment
from metavoxel.checkpoint import read_tensors, write_tensors
from metavoxel.config import Optimiser
from metavoxel.noise import Noise
from metavoxel.training import optimise


class _Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)


TRUTH = torch.tensor([[1.0], [-2.0], [0.5]])


def _step(module: nn.Module, k: int):
    x = Noise(7, torch.arange(64) + 64 * k).normal(3)
    loss = ((module.layer(x) - x @ TRUTH) ** 2).mean()
    return loss, {"square": loss.item()}


def _validate(module: nn.Module) -> dict[str, float]:
    x = Noise(8, torch.arange(100)).normal(3)
    return {"loss": ((module.layer(x) - x @ TRUTH) ** 2).mean().item()}


def test_optimise_learns_a_line(tmp_path: Path) -> None:
    module = _Line()
    figures = optimise(module, _step, _validate, Optimiser(steps=300, rate=0.05, average=0.9, validate_every=100),
                       tmp_path, "line", quiet=True)  # fmt: skip
    assert figures["loss"] < 1e-3
    assert torch.allclose(module.layer.weight, TRUTH.T, atol=0.05)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [100, 200, 300]


def test_resumed_run_equals_unbroken_one(tmp_path: Path) -> None:
    settings = Optimiser(steps=60, rate=0.05, validate_every=20)
    whole = _Line()
    optimise(whole, _step, _validate, settings, tmp_path / "whole", "line", quiet=True)

    def stops_at_45(module: nn.Module, k: int):
        if k == 45:
            raise KeyboardInterrupt
        return _step(module, k)

    with pytest.raises(KeyboardInterrupt):
        optimise(_Line(), stops_at_45, _validate, settings, tmp_path / "broken", "line", quiet=True)
    resumed = _Line()
    optimise(resumed, _step, _validate, settings, tmp_path / "broken", "line", resume=True, quiet=True)
    assert torch.equal(whole.layer.weight, resumed.layer.weight)
    without_pace = [
        [{k: v for k, v in json.loads(line).items() if k != "steps_per_second"} for line in path.read_text().splitlines()]
        for path in (tmp_path / "whole" / "metrics.jsonl", tmp_path / "broken" / "metrics.jsonl")
    ]
    assert without_pace[0] == without_pace[1]


def test_resume_refuses_other_settings(tmp_path: Path) -> None:
    optimise(_Line(), _step, _validate, Optimiser(steps=4, validate_every=2), tmp_path, "line", quiet=True)
    with pytest.raises(mv.MetavoxelError, match="other settings"):
        optimise(_Line(), _step, _validate, Optimiser(steps=8), tmp_path, "line", resume=True, quiet=True)


def test_diverging_run_says_what_to_do(tmp_path: Path) -> None:
    def nan(module: nn.Module, k: int):
        return module.layer.weight.sum() * float("nan"), {}

    with pytest.raises(mv.MetavoxelError, match="lower its rate"):
        optimise(_Line(), nan, _validate, Optimiser(steps=4), tmp_path, "line", quiet=True)


def test_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(100)}, {"step": 3})
    tensors, metadata = read_tensors(path)
    assert metadata == {"step": 3}
    assert torch.equal(tensors["a"], torch.ones(100))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(mv.MetavoxelError, match=r"x\.safetensors: truncated"):
        read_tensors(path)


def test_augment_moves_are_rigid_on_a_grid_that_is_not_a_cube() -> None:
    """A smooth, elongated blob keeps its mass and the lengths of its three axes, wherever it is turned and moved to."""
    shape = (24, 32, 20)
    points = torch.stack(torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"), -1)
    blob = torch.exp(-(points**2 / torch.tensor([4.0, 16.0, 8.0])).sum(-1) / 2)
    grid = _rigid(64, 3, torch.Size((64, 1, *shape)), Noise(0, torch.arange(64)))
    moved = F.grid_sample(blob.expand(64, 1, *shape), grid, align_corners=False, padding_mode="zeros")[:, 0]

    def axes(image: torch.Tensor) -> torch.Tensor:
        weight = image.flatten() / image.sum()
        offset = points.reshape(-1, 3) - weight @ points.reshape(-1, 3)
        return torch.linalg.eigvalsh((weight[:, None] * offset).T @ offset)

    assert (moved.sum((1, 2, 3)) / blob.sum() - 1).abs().max() < 0.02
    lengths = torch.stack([axes(image) for image in moved])
    assert (lengths / axes(blob) - 1).abs().max() < 0.10  # linear interpolation widens a little; a shear or scale does more
    assert (moved - blob).abs().amax((1, 2, 3)).min() > 0.01


def test_augment_keeps_up_up_and_repeats() -> None:
    brain = torch.zeros(24, 32, 20)
    brain[6:18, 8:24, 4:10], brain[6:18, 8:24, 10:16] = 1.0, 0.5  # the top half is darker
    first, again = (augment(brain.expand(64, 1, 24, 32, 20), Noise(0, torch.arange(64)))[:, 0] for _ in range(2))
    assert (first[..., :8].sum((1, 2, 3)) > first[..., 12:].sum((1, 2, 3))).all()
    assert (first[:, :, :, 0] == 0).all()
    assert torch.equal(first, again)


def _table(n: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    sex = rng.choice(["F", "M"], n)
    height = rng.normal(np.where(sex == "M", 178, 165), 7)
    frame = pd.DataFrame({"sex": sex, "height": height.round(1)})
    return frame.mask(rng.random(frame.shape) < 0.1)


@pytest.mark.slow
def test_tabular_model_learns_bayes_rule(tmp_path: Path) -> None:
    """p(sex | height) of two normals with equal priors is a logistic curve; the model must follow it."""
    schema = mv.Schema([mv.Continuous("height", unit="cm"), mv.Categorical("sex", ("F", "M"))])
    config = mv.preset("tiny", net={"token_width": 32}, joint={"steps": 1500, "batch": 128, "rate": 3e-3})
    model = mv.fit(schema, {}, _table(4000), tmp_path / "m", config, quiet=True)
    for height in (160, 168, 171.5, 175, 185):
        draws = model.sample(given={"height": height}, want=["sex"], n=2000)
        exact = 1 / (1 + np.exp(-(13 / 49) * (height - 171.5)))
        assert draws.probability("sex")["M"] == pytest.approx(exact, abs=0.06)
    tall = model.sample(given={"sex": "M"}, want=["height"], n=2000)
    assert tall.mean("height") == pytest.approx(178, abs=0.8)
    assert tall.std("height") == pytest.approx(7, abs=0.7)
