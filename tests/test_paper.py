"""The paper's mode: one time for all, noise predicted, unit weights; what it refuses."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from gradients import dead_parts
from torch import Tensor, nn

import metavoxel as mv
from metavoxel import build
from metavoxel.clocks import LDM_BETAS, LDM_STEPS, Cosine, ScaledLinear, alpha, sigma
from metavoxel.codecs import Standard
from metavoxel.config import PRESETS, from_dict, read_config, to_dict
from metavoxel.data.columns import ColumnGuess
from metavoxel.denoiser import LearnedDenoiser, make_denoiser
from metavoxel.diffusion import joint_loss, noise_error, sample, weighed
from metavoxel.nets.joint import NetSettings
from metavoxel.nets.paper import PaperNet, PaperSettings
from metavoxel.noise import Noise
from metavoxel.paper import PaperDenoiser, clean_value
from metavoxel.processes import Discrete
from metavoxel.question import Given, tied
from metavoxel.schema import Image, Latent, Schema, State, Times, full_level
from metavoxel.solvers import DDIM
from metavoxel.times import MixtureTimes, SharedTimes, even_plan
from metavoxel.variables import infer_schema

TINY = PaperSettings(widths=(8, 16), heads=2, context=8)
CLOCK = ScaledLinear()
GRID = (3, 5)


def images(grid: tuple[int, ...], *channels: int) -> list[Image]:
    return [Image(f"scan{i}", grid, latent=Latent(c, grid, (0.0,) * c, (1.0,) * c), clock=CLOCK)
            for i, c in enumerate(channels)]  # fmt: skip


def facts() -> list[object]:
    return [
        mv.Continuous("age", scale=Standard(0.0, 1.0), clock=CLOCK),
        mv.Categorical("sex", ("F", "M"), chain="uniform", marginal=(0.5, 0.5)),
        mv.Categorical("diagnosis", ("a", "b", "c"), chain="absorbing", marginal=(0.4, 0.3, 0.3)),
        mv.Ordinal("stage", ("0", "1", "2"), marginal=(0.4, 0.3, 0.3)),
    ]


def values(schema: Schema, n: int) -> State:
    return {v.name: torch.randint(len(v.levels), (n,)) if isinstance(v.process, Discrete)
            else torch.randn(n, *v.entry_shape) for v in schema}  # fmt: skip


def levels(schema: Schema, n: int, t: float) -> Times:
    return {v.name: full_level(v, t, n) for v in schema}


def everyone(schema: Schema, n: int) -> dict[str, Tensor]:
    return {v.name: torch.ones(n, dtype=torch.bool) for v in schema}


def people(n: int, seed: int = 0) -> tuple[np.ndarray, pd.DataFrame]:
    """Small images (n, *GRID) that show age on the left and sex on the right."""
    rng = np.random.default_rng(seed)
    age, male = rng.normal(50, 15, n), rng.random(n) < 0.5
    scans = rng.normal(0, 0.4, (n, *GRID))
    scans[:, :, :3] += (age[:, None, None] - 50) / 15
    scans[:, :, 3:] += np.where(male, 1.0, -1.0)[:, None, None]
    return scans, pd.DataFrame({"age": age, "sex": np.where(male, "M", "F")})


def variables() -> Schema:
    sex = mv.Categorical("sex", ("F", "M"), chain="uniform")
    return Schema([Image("scan", GRID, clock=CLOCK), mv.Continuous("age", clock=CLOCK), sex])


def config(**changes: object) -> mv.Config:
    small = {"architecture": "paper", "widths": (8,), "heads": 2, "context": 16}
    joint = {"steps": 2, "batch": 4, "rate": 3e-3, "matrix_rate": 0, "validate_every": 1}
    own = {"net": small, "times": {"kind": "shared"}, "augment": False, "joint": joint}
    return mv.preset("tiny", **{**own, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> mv.MetaVoxel:
    torch.manual_seed(0)
    net = {"architecture": "paper", "widths": (16,), "attending": 0, "heads": 2, "context": 16}
    joint = {"steps": 150, "batch": 16, "rate": 5e-3, "matrix_rate": 0, "warmup": 10, "average": 0.97,
             "validate_every": 150}  # fmt: skip
    scans, table = people(400)
    folder = tmp_path_factory.mktemp("paper") / "model"
    return mv.fit(variables(), {"scan": scans}, table, folder, config(net=net, joint=joint), quiet=True)


@pytest.mark.parametrize("grid", [(5, 7), (1, 3), (3, 5, 4), (1, 2, 9)])
@pytest.mark.parametrize("told", [True, False])
def test_any_grid_goes_with_facts_and_without(grid: tuple[int, ...], told: bool) -> None:
    schema, n = Schema([*images(grid, 2, 1), *(facts() if told else [])]), 3
    denoiser = PaperDenoiser(schema, replace(TINY, widths=(8, 8, 16)), SharedTimes())
    clean = denoiser(values(schema, n), levels(schema, n, 0.5))
    assert set(clean) == set(schema.names)
    for v in schema:
        assert torch.isfinite(clean[v.name]).all()
        assert clean[v.name].shape == ((n, len(v.levels)) if isinstance(v.process, Discrete) else (n, *v.entry_shape))


@pytest.mark.parametrize("grid", [(3, 5), (3, 2, 2)])
def test_no_part_of_the_network_is_dead(grid: tuple[int, ...]) -> None:
    schema, n = Schema([*images(grid, 2, 1), *facts()]), 8
    denoiser = PaperDenoiser(schema, replace(TINY, widths=(16, 16)), SharedTimes())

    def loss(step: int) -> Tensor:
        noise = Noise(step, torch.arange(n))
        times = SharedTimes().draw(schema, everyone(schema, n), noise)
        return joint_loss(denoiser, schema, values(schema, n), everyone(schema, n), times, noise).total

    assert not dead_parts(denoiser, loss, steps=4)


@pytest.mark.parametrize("clock", [Cosine(), ScaledLinear()])
@pytest.mark.parametrize("t", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_noise_becomes_the_clean_value(clock: Cosine | ScaledLinear, t: float) -> None:
    x0, eps, tau = torch.randn(1000), torch.randn(1000), clock.tau(torch.tensor(t))
    x = alpha(tau) * x0 + sigma(tau) * eps
    torch.testing.assert_close(clean_value(x, eps, tau), x0, atol=1e-3, rtol=1e-3)


def test_at_the_last_level_the_clean_value_is_told_or_is_the_mean() -> None:
    x0, eps, last = torch.randn(1000), torch.randn(1000), torch.ones(())
    tau = ScaledLinear().tau(last)  # the paper's schedule ends with something left
    torch.testing.assert_close(clean_value(alpha(tau) * x0 + sigma(tau) * eps, eps, tau), x0, atol=1e-3, rtol=1e-3)
    assert torch.equal(clean_value(eps, eps + 0.1, Cosine().tau(last)), torch.zeros(1000))


def test_the_schedule_is_that_of_latent_diffusion() -> None:
    betas = torch.linspace(LDM_BETAS[0] ** 0.5, LDM_BETAS[1] ** 0.5, LDM_STEPS, dtype=torch.float64) ** 2
    discrete = torch.cat([torch.zeros(1), -torch.log1p(-betas).cumsum(0).float()])
    tau = ScaledLinear().tau(torch.linspace(0, 1, LDM_STEPS + 1))
    assert tau[0] == 0 and (tau.diff() > 0).all()
    torch.testing.assert_close(tau, discrete, atol=2e-3, rtol=0.02)


class _Off(nn.Module):
    """A network whose noise is off by `delta` everywhere, and whose classes are even."""

    def __init__(self, clean: State, delta: float) -> None:
        super().__init__()
        self.clean, self.delta = clean, delta

    def forward(self, scan: Tensor, scalars: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        tau = CLOCK.tau(t)
        wide = tau.reshape(-1, 1, 1, 1)
        noise = (scan - alpha(wide) * self.clean["scan0"]) / sigma(wide)
        age = (scalars[:, 0] - alpha(tau) * self.clean["age"]) / sigma(tau)
        return noise + self.delta, [age[:, None] + self.delta, torch.zeros(len(t), 2)]


@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_the_loss_is_the_papers(delta: float) -> None:
    """Eq. 5: squared errors of the noise and cross-entropy, weights 1, at levels of all kinds."""
    schema, n = Schema([*images(GRID, 2), *facts()[:2]]), 64
    denoiser = PaperDenoiser(schema, TINY, SharedTimes())
    x0 = values(schema, n)
    denoiser.net = _Off(x0, delta)
    noise = Noise(0, torch.arange(n))
    times = SharedTimes().draw(schema, everyone(schema, n), noise)
    loss = joint_loss(denoiser, schema, x0, everyone(schema, n), times, noise)
    assert float(loss.parts["scan0"]) == pytest.approx(delta**2, rel=0.01, abs=1e-4)
    assert float(loss.parts["age"]) == pytest.approx(delta**2, rel=0.01, abs=1e-4)
    assert float(loss.parts["sex"]) == pytest.approx(np.log(2), rel=1e-4)
    assert float(loss.total) == pytest.approx(sum(map(float, loss.parts.values())))


def test_a_network_that_is_off_tells_numbers_within_their_range_and_pays_in_full() -> None:
    """Beside noise it would be ages of thousands of years, from which no sampler comes back."""
    age = replace(facts()[0], span=(-1.5, 2.0))  # type: ignore[type-var]
    schema, n = Schema([*images(GRID, 1), age]), 64
    denoiser = PaperDenoiser(schema, TINY, SharedTimes())
    x0 = {"scan0": torch.randn(n, 1, *GRID), "age": torch.linspace(-1.5, 2.0, n)}
    denoiser.net = _Off(x0, 0.5)
    noise, near = Noise(0, torch.arange(n)), levels(schema, n, 0.999)
    assert denoiser(x0, near)["age"].min() == -1.5 and denoiser(x0, near)["age"].max() <= 2.0
    loss = joint_loss(denoiser, schema, x0, everyone(schema, n), near, noise)
    assert float(loss.parts["age"]) == pytest.approx(0.25, rel=0.01)
    denoiser.net = _Off(x0, 0.0)
    whole = denoiser({name: alpha(CLOCK.tau(torch.tensor(0.5))) * x for name, x in x0.items()}, levels(schema, n, 0.5))
    torch.testing.assert_close(whole["age"], x0["age"], atol=1e-3, rtol=1e-3)


def test_missing_values_carry_no_loss_and_leave_the_time_alone() -> None:
    schema, n = Schema([*images(GRID, 1), *facts()[:2]]), 4
    denoiser = PaperDenoiser(schema, TINY, SharedTimes())
    seen: list[Tensor] = []
    denoiser.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[2]))
    observed = everyone(schema, n) | {"age": torch.zeros(n, dtype=torch.bool)}
    noise = Noise(0, torch.arange(n))
    times = SharedTimes().draw(schema, observed, noise)
    loss = joint_loss(denoiser, schema, values(schema, n), observed, times, noise)
    assert loss.parts["age"] == 0 and (times["age"] == 1).all()
    assert torch.equal(seen[0], times["sex"])


def test_kept_images_answer_as_the_whole_network_does() -> None:
    schema, rows, draws = Schema([*images(GRID, 1), *facts()]), 2, 3
    denoiser = PaperDenoiser(schema, TINY, SharedTimes()).eval()
    x, times = values(schema, rows * draws), levels(schema, rows * draws, 0.4)
    x["scan0"] = x["scan0"][::draws].repeat_interleave(draws, 0)
    with torch.no_grad():
        whole = denoiser(x, times)
        frozen = denoiser.freeze({"scan0": x["scan0"][::draws]}, {"scan0": times["scan0"][::draws]})
        names = [v.name for v in schema.scalars]
        answers = frozen({k: x[k] for k in names}, {k: times[k] for k in names})
    assert set(answers) == set(names)
    for name in names:
        torch.testing.assert_close(answers[name], whole[name])


class Whole:
    """A denoiser that takes no short cut: what is asked of frozen scans, the whole network answers."""

    def __init__(self, denoiser: LearnedDenoiser, images: State | None = None, times: Times | None = None) -> None:
        self.denoiser, self.coverage, self.device = denoiser, denoiser.coverage, denoiser.device
        self.images, self.times = images or {}, times or {}

    def freeze(self, images: State, times: Times) -> "Whole":
        return Whole(self.denoiser, images, times)

    def __call__(self, state: State, times: Times) -> State:
        return self.denoiser({**self.images, **state}, {**self.times, **times})


@pytest.mark.parametrize("settings", [TINY, NetSettings(widths=(8, 16), patch=1, token_width=16, heads=2)])
@torch.no_grad()
def test_scans_noised_along_are_read_and_never_decoded(
    settings: PaperSettings | NetSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacement asks for facts: the same draws as by the whole network, without its way up to the images."""
    schema = Schema([*images(GRID, 1), *facts()])
    denoiser = make_denoiser(schema, settings, SharedTimes()).eval()
    for parameter in denoiser.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    given, want = {"scan0": Given(torch.randn(2, 1, *GRID), level=tied)}, [v.name for v in schema.scalars]
    whole = sample(Whole(denoiser), schema, given, want, 3, even_plan(5), DDIM)
    monkeypatch.setattr(denoiser.net, "ups" if isinstance(settings, PaperSettings) else "decoder", None)
    drawn = sample(denoiser, schema, given, want, 3, even_plan(5), DDIM)
    for name in want:
        torch.testing.assert_close(drawn[name], whole[name])


def test_several_times_are_refused() -> None:
    schema = Schema([*images(GRID, 1), *facts()[:1]])
    denoiser = PaperDenoiser(schema, TINY, SharedTimes())
    known = levels(schema, 2, 0.5) | {"scan0": torch.zeros(2, *schema.images[0].level_shape)}
    with pytest.raises(mv.MetavoxelError, match="knows one time for all variables and was asked with several"):
        denoiser(values(schema, 2), known)


def test_it_learns_what_the_variables_say_of_one_another(trained: mv.MetaVoxel) -> None:
    """On fresh people its loss is far below that of the exact answer from each variable's own value alone."""
    scans, table = people(512, seed=1)
    schema, n = trained.schema, len(table)
    x0, _ = schema.encode(table)
    x0["scan"] = trained.codecs["scan"].encode(torch.from_numpy(scans).float())
    noise, times = Noise(5, torch.arange(n)), levels(schema, n, 0.4)

    def alone(state: State, times: Times, x0: State) -> State:
        clean = {}
        for v in schema:
            tau = v.clock.tau(times[v.name])
            if isinstance(v.process, Discrete):
                clean[v.name] = torch.log_softmax(v.process.likelihood(state[v.name], tau), -1)
            else:
                clean[v.name] = alpha(tau) * state[v.name]  # E[x_0 | x_t] under N(0, 1)
        return weighed(clean, schema, times, x0, noise_error)

    with torch.no_grad():
        ours, marginal = (
            joint_loss(denoiser, schema, x0, everyone(schema, n), times, noise).parts
            for denoiser in (trained.denoiser, SimpleNamespace(judge=alone))
        )
    shares = {name: float(ours[name] / marginal[name]) for name in schema.names}
    assert max(shares.values()) < 0.7, shares


@torch.no_grad()
def test_replacement_reads_a_scan(trained: mv.MetaVoxel) -> None:
    """The paper's inference: the scan noised along with the rest, 50 steps, 3 draws."""
    scans, table = people(20, seed=2)
    entries = trained.codecs["scan"].encode(torch.from_numpy(scans).float())
    draws = sample(trained.denoiser, trained.schema, {"scan": Given(entries, level=tied)}, ["age", "sex"], 3,
                   even_plan(50), DDIM)  # fmt: skip
    age = trained.schema.scalar("age").decode(draws["age"]).mean(1)
    male = (draws["sex"].float().mean(1) > 0.5).numpy()
    assert np.corrcoef(age, table["age"])[0, 1] > 0.8
    assert np.abs(age - table["age"]).mean() < 9  # of a standard deviation of 15
    assert (male == (table["sex"] == "M")).mean() > 0.9


@torch.no_grad()
def test_it_generates_people(trained: mv.MetaVoxel) -> None:
    """Their images show the age and sex drawn with them. (The spread takes ten times the training: errors near t = 1 are
    amplified.)"""
    draws = trained.sample(n=48, steps=20)
    assert np.isfinite(draws["scan"]).all() and abs(draws.mean("age") - 50) < 15
    assert np.corrcoef(draws["scan"][:, :, :3].mean((1, 2)), draws["age"])[0, 1] > 0.6
    assert np.corrcoef(draws["scan"][:, :, 3:].mean((1, 2)), draws["sex"] == "M")[0, 1] > 0.6


def test_round_trip(trained: mv.MetaVoxel, tmp_path: Path) -> None:
    loaded = mv.load(trained.save(tmp_path / "m"))
    assert isinstance(loaded.denoiser, PaperDenoiser) and loaded.schema == trained.schema
    assert loaded.describe()["architecture"] == "paper"
    one, two = (model.sample(n=3, seed=1, steps=4) for model in (trained, loaded))
    assert np.array_equal(one["age"], two["age"]) and np.array_equal(one["scan"], two["scan"])


def test_what_shared_times_cannot_answer_is_refused(trained: mv.MetaVoxel) -> None:
    with pytest.raises(mv.MetavoxelError, match="trained with one shared time"):
        trained.sample({"sex": "F"}, ["age"], method="direct")
    assert trained.sample({"sex": "F"}, ["age"], n=3, steps=4)["age"].shape == (3,)  # by replacement, unless told otherwise


def test_a_stopped_training_goes_on_as_if_unbroken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans, table = np.random.default_rng(0).normal(size=(20, 3, 5, 4)), people(20)[1]
    schema = Schema([Image("scan", (3, 5, 4), clock=CLOCK), *variables().scalars])
    settings = config(joint={"steps": 4, "batch": 4, "matrix_rate": 0, "validate_every": 2})

    def fit(folder: str, **options: bool) -> mv.MetaVoxel:
        return mv.fit(schema, {"scan": scans}, table, tmp_path / folder, settings, quiet=True, **options)

    whole = fit("whole")
    calls = []

    def stops(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return joint_loss(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "joint_loss", stops)
        fit("broken")
    assert all(isinstance(arguments[0], PaperDenoiser) for arguments in calls)
    resumed = fit("broken", resume=True)
    for name, tensor in whole.denoiser.state_dict().items():
        assert torch.equal(tensor, resumed.denoiser.state_dict()[name]), name


def test_shared_times_train_the_joint_network_too(tmp_path: Path) -> None:
    scans, table = people(20)
    settings = mv.preset("tiny", augment=False, times={"kind": "shared"}, joint={"steps": 1, "batch": 4},
                         net={"widths": (8,), "patch": 1, "token_width": 16})  # fmt: skip
    model = mv.fit(variables(), {"scan": scans}, table, tmp_path / "m", settings, quiet=True)
    assert set(model.summary["validation"]) == {"loss", "scan", "age", "sex", "step"}  # type: ignore[call-overload]


def test_shared_times_ask_one_question_a_row() -> None:
    schema, n = Schema([*images(GRID, 1), *facts()[:2]]), 5
    x0, _, times, noise = build._questions(
        schema, values(schema, n), everyone(schema, n), mv.preset("tiny", questions=4), SharedTimes(),
        Noise(0, torch.arange(n)),
    )  # fmt: skip
    assert len(noise) == len(x0["age"]) == n
    assert torch.equal(times["age"], times["sex"]) and torch.equal(times["age"], times["scan0"][:, 0, 0, 0])


def test_a_model_to_start_from_keeps_its_architecture(trained: mv.MetaVoxel, tmp_path: Path) -> None:
    scans, table = people(20)
    model = mv.fit(trained.schema, {"scan": scans}, table, tmp_path / "m", config(), start=trained, quiet=True)
    assert model.config.net == trained.config.net
    with pytest.raises(mv.MetavoxelError, match="to start from: architecture: paper knows one time"):
        mv.fit(trained.schema, {"scan": scans}, table, tmp_path / "n", mv.preset("tiny"), start=trained, quiet=True)


def test_the_papers_preset_is_the_papers(tmp_path: Path) -> None:
    paper = mv.preset("paper")
    assert isinstance(paper.net, PaperSettings) and isinstance(paper.times, SharedTimes)
    guesses = {"age": ColumnGuess("age", "continuous", "years", (), 0, ""),
               "sex": ColumnGuess("sex", "categorical", None, ("F", "M"), 0, "")}  # fmt: skip
    table = pd.DataFrame({"participant_id": ["a", "b"], "age": [20.0, 60.0], "sex": ["F", "M"]})
    schema = infer_schema(mv.Cohort(table, {"T1w": [None, None]}, guesses, tmp_path), paper)
    assert schema["T1w"].clock == schema["age"].clock == ScaledLinear() and schema["sex"].clock == Cosine()
    assert schema["sex"].process.chain.stationary == (0.5, 0.5)  # type: ignore[union-attr]
    fitted = schema.fit(pd.DataFrame({"age": [20.0, 60.0, 70.0, 90.0], "sex": ["F", "M", "F", "M"]}))
    assert fitted.scalar("age").encode([20.0, 55.0, 90.0])[0].tolist() == [-1.0, 0.0, 1.0]
    assert Schema.from_yaml(fitted.to_yaml()) == fitted
    with torch.device("meta"):
        net = PaperNet(paper.net, 3, paper.autoencoder.latent_channels, (1, 2))
    assert sum(p.numel() for p in net.parameters()) > 1e8


def test_settings_of_before_there_were_architectures_load(tmp_path: Path) -> None:
    before = {name: {k: v for k, v in part.items() if k != "architecture"} if name == "net" else part
              for name, part in to_dict(mv.preset("tiny")).items() if name != "clock"}  # fmt: skip
    assert "architecture" not in before["net"]
    assert from_dict(before, "model.json") == mv.preset("tiny")
    assert from_dict(to_dict(mv.preset("paper")), "model.json") == mv.preset("paper")


def test_settings_of_another_architecture_stand_alone(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("net: {architecture: paper, widths: [8, 16], heads: 2}\ntimes: {kind: shared}\n")
    assert read_config(file).net == PaperSettings(widths=(8, 16), heads=2)
    file.write_text("net: {architecture: joint, registers: 2}\n")
    widths = PRESETS["tiny"]["net"]["widths"]
    assert read_config(file).net == NetSettings(widths=widths, patch=2, token_width=96, registers=2)
    assert mv.preset("paper", net={"heads": 4}).net.widths == (256, 512, 768)


def test_settings_of_a_kind_need_not_name_the_usual_one() -> None:
    assert mv.preset("tiny", times={"read": 0.7}).times == MixtureTimes(read=0.7)
    with pytest.raises(mv.MetavoxelError, match="times: 'separate' is unknown; choose one of 'mixture', 'shared'"):
        mv.preset("tiny", times={"kind": "separate"})
    with pytest.raises(mv.MetavoxelError, match="net: 'unet' is unknown; choose one of 'joint', 'paper'"):
        mv.preset("tiny", net={"architecture": "unet"})
    with pytest.raises(mv.MetavoxelError, match="autoencoder: channels of 4 must be a multiple of 8"):
        mv.preset("tiny", autoencoder={"channels": (4, 8)})


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ({"architecture": "paper"}, r"preset tiny: architecture: paper knows one time.*set times: \{kind: shared\}"),
        ({"architecture": "papr"}, "preset tiny: net: .*'papr'.*'joint', 'paper'"),
        ({"architecture": "paper", "patch": 2}, "net.paper.patch"),
        ({"architecture": "paper", "heads": 3}, "must be a multiple of heads"),
    ],
)
def test_wrong_settings_are_named(net: dict[str, object], message: str) -> None:
    with pytest.raises(mv.MetavoxelError, match=message) as error:
        mv.preset("tiny", net=net)
    assert "\n" not in str(error.value)


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    table = people(20)[1]
    with pytest.raises(mv.MetavoxelError, match="works on an image and these variables hold none; use architecture: joint"):
        mv.fit(Schema(variables().scalars), {}, table, tmp_path / "m", config(), quiet=True)
