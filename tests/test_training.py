"""Training: a stopped run ends where an unbroken one would; bad runs are told in one line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import metavoxel as mv
from metavoxel import training
from metavoxel.augment import augment
from metavoxel.checkpoint import read_tensors, write_tensors
from metavoxel.config import Optimiser
from metavoxel.muon import orthogonal
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


@pytest.mark.parametrize("earliest", [0, 30, 99])
def test_no_weights_are_taken_from_before_all_parts_learn(tmp_path: Path, earliest: int) -> None:
    """However good they look by what is judged: an image's decoder that was never trained may cost nothing there."""

    def ever_worse(module: nn.Module) -> dict[str, float]:
        seen.append(module.layer.weight.detach().clone())  # type: ignore[union-attr, operator]
        return {"loss": float(len(seen))}

    seen: list[torch.Tensor] = []
    module = _Line()
    settings = Optimiser(steps=60, rate=0.05, validate_every=20)
    figures = optimise(module, _step, ever_worse, settings, tmp_path, "line", earliest=earliest, quiet=True)
    assert figures["step"] == {0: 20, 30: 40, 99: 60}[earliest]
    assert torch.equal(module.layer.weight, seen[figures["step"] // 20 - 1])  # type: ignore[arg-type, operator]


@pytest.mark.parametrize("matrix_rate", [0.0, 0.02])
@pytest.mark.parametrize(("validate_every", "save_seconds", "goes_on_at"), [(20, 300.0, 40), (60, 0.0, 45), (60, 300.0, 0)])
def test_resumed_run_equals_unbroken_one(
    tmp_path: Path, monkeypatch, matrix_rate: float, validate_every: int, save_seconds: float, goes_on_at: int
) -> None:
    """Saved at validations, and in between where they are long apart."""
    monkeypatch.setattr(training, "SAVE_SECONDS", save_seconds)
    settings = Optimiser(steps=60, rate=0.05, matrix_rate=matrix_rate, validate_every=validate_every)
    whole = _Line()
    optimise(whole, _step, _validate, settings, tmp_path / "whole", "line", [whole.layer.weight], quiet=True)

    def stops_at_45(module: nn.Module, k: int):
        if k == 45:
            raise KeyboardInterrupt
        return _step(module, k)

    with pytest.raises(KeyboardInterrupt):
        stopped = _Line()
        optimise(stopped, stops_at_45, _validate, settings, tmp_path / "broken", "line", [stopped.layer.weight], quiet=True)
    taken: list[int] = []

    def counted(module: nn.Module, k: int):
        taken.append(k)
        return _step(module, k)

    resumed = _Line()
    optimise(resumed, counted, _validate, settings, tmp_path / "broken", "line", [resumed.layer.weight], resume=True,
             quiet=True)  # fmt: skip
    assert taken == list(range(goes_on_at, 60))
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


def test_augment_moves_whole_voxels_and_only_scales_intensities() -> None:
    """Every changed brain is a flip, a shift and a gain of the first: sorted, intensities differ by a factor."""
    torch.manual_seed(0)
    brain = torch.zeros(40, 48, 36)
    brain[8:30, 10:40, 6:30] = torch.rand(22, 30, 24)
    first, again = (augment(brain.expand(64, 1, 40, 48, 36), Noise(0, torch.arange(64))) for _ in range(2))
    assert torch.equal(first, again)
    gain = first.amax((1, 2, 3, 4)) / brain.max()
    assert gain.std() > 0.02 and (gain - 1).abs().max() < 0.25
    assert torch.allclose((first[:, 0] / gain.reshape(-1, 1, 1, 1)).flatten(1).sort(1).values,
                          brain.flatten().sort().values.expand(64, -1), atol=1e-6)  # fmt: skip
    tops = {int((image[0] > 0).any(0).any(0).nonzero()[-1]) for image in first}
    assert tops == {28, 29, 30}  # 3 % of 36 voxels is one
    left = {int((image[0] > 0).flatten(1).any(1).nonzero()[0]) for image in first}
    assert left >= {7, 8, 9, 10, 11}  # 8 as it is, 10 flipped
    plain = first / gain.reshape(-1, 1, 1, 1, 1)
    in_place = [any(torch.allclose(image[0], x, atol=1e-6) for x in (brain, brain.flip(0))) for image in plain]
    assert 0.5 < sum(in_place) / 64 < 0.9


def test_augment_loses_what_it_moves_over_the_edge() -> None:
    moved = augment(torch.ones(64, 1, 40, 40), Noise(1, torch.arange(64)))[:, 0]
    assert ((moved[:, 0] == 0).all(1) | (moved[:, 0] > 0).any(1)).all()
    assert (moved[:, 0] == 0).all(1).any() and (moved[:, -1] == 0).all(1).any()


def test_orthogonal_evens_out_the_singular_values() -> None:
    torch.manual_seed(0)
    for shape in ((40, 12), (12, 40), (16, 16)):
        u, _, v = torch.linalg.svd(torch.randn(*shape), full_matrices=False)
        values = torch.linalg.svdvals(orthogonal(u @ torch.diag(torch.logspace(0, -1, len(v))) @ v))
        assert values.min() > 0.6 and values.max() < 1.3
        exact = u @ v
        close = torch.nn.functional.cosine_similarity(orthogonal(exact).flatten(), exact.flatten(), dim=0)
        assert close > 0.99


def test_muon_learns_faint_directions_before_adam(tmp_path: Path) -> None:
    """Most directions are faint, as between scans of people, each as telling. Rates: the best of each."""
    torch.manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(16, 16)).Q
    scale = torch.logspace(0, -1.5, 16)
    truth = mixing.T @ torch.diag(1 / scale) @ torch.linalg.qr(torch.randn(16, 16)).Q

    def step(module: nn.Module, k: int):
        x = Noise(3, torch.arange(64) + 64 * k).normal(16) * scale @ mixing
        return ((module(x) - x @ truth) ** 2).mean(), {}

    errors = {}
    for name, changes in {"adam": {"rate": 1.0}, "muon": {"matrix_rate": 1.0}}.items():
        module = nn.Linear(16, 16)
        settings = Optimiser(steps=150, warmup=1, average=0.5, validate_every=150, weight_decay=0.0, **changes)
        judge = {"validate": lambda m: {"loss": step(m, 10**6)[0].item()}}
        errors[name] = optimise(module, step, settings=settings, folder=tmp_path / name, stage="x",
                                matrices=[module.weight], quiet=True, **judge)  # fmt: skip
    assert errors["muon"]["loss"] < 0.7 * errors["adam"]["loss"]


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
