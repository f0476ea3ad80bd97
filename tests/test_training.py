"""Training: a stopped run ends where an unbroken one would; bad runs are told in one line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import metavoxel as mv
from metavoxel.augment import augment
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


def test_augment_keeps_size_and_angles() -> None:
    """A ball stays a ball of the same volume on a grid that is not a cube; no mirror image is upside down."""
    axes = torch.meshgrid(*[torch.arange(size) - (size - 1) / 2 for size in (24, 32, 20)], indexing="ij")
    ball = (sum(axis**2 for axis in axes) < 36).float()
    ball[:, :, 10:] *= 0.5  # the top half is darker
    many = augment(ball[None, None].repeat(64, 1, 1, 1, 1), Noise(0, torch.arange(64)))[:, 0]
    volume = (many > 0.2).float().sum((1, 2, 3))
    assert (volume / (ball > 0.2).sum() - 1).abs().max() < 0.08
    lower, upper = many[:, :, :, :8].sum((1, 2, 3)), many[:, :, :, 12:].sum((1, 2, 3))
    assert (lower > upper).all()
    again = augment(ball[None, None].repeat(64, 1, 1, 1, 1), Noise(0, torch.arange(64)))[:, 0]
    assert torch.equal(many, again)


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
