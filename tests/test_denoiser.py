"""The network as a denoiser: any schema, any question; what it may not depend on; no dead part."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from gradients import dead_parts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import metavoxel as mv
from metavoxel.build import FACTS_ROWS, _Data, _without_images
from metavoxel.codecs import Standard
from metavoxel.denoiser import JointDenoiser
from metavoxel.diffusion import expect, joint_loss, sample
from metavoxel.nets.joint import NetSettings
from metavoxel.noise import Noise
from metavoxel.question import Given
from metavoxel.schema import (
    Categorical,
    Continuous,
    Image,
    Latent,
    Observed,
    Ordinal,
    Schema,
    State,
    Times,
    full_level,
)
from metavoxel.solvers import ANCESTRAL, DDIM, DPM2M
from metavoxel.times import MixtureTimes, even_plan

SETTINGS = NetSettings(widths=(8, 16), patch=1, token_width=16, token_depth=1, heads=2, registers=2)
SMALL = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Case:
    schema: Schema
    net: NetSettings
    given: tuple[str, ...]
    want: tuple[str, ...]
    masked: tuple[str, ...]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    grid = draw(st.sampled_from([(5, 7), (4, 6), (1, 3), (5, 7, 3), (2, 3, 4)]))
    channels = draw(st.lists(st.integers(1, 3), max_size=2))
    numbers, classes, scales = (draw(st.integers(0, 3)) for _ in range(3))
    variables: list[object] = [
        Image(f"image{i}", grid, latent=Latent(c, grid, (0.0,) * c, (1.0,) * c)) for i, c in enumerate(channels)
    ]
    variables += [Continuous(f"number{i}", scale=Standard(0.0, 1.0)) for i in range(numbers)]
    for i in range(classes):
        chain = draw(st.sampled_from(["uniform", "absorbing", "marginal"]))
        variables.append(Categorical(f"class{i}", ("a", "b", "c"), chain=chain, marginal=(0.5, 0.3, 0.2)))
    variables += [Ordinal(f"scale{i}", ("0", "1"), marginal=(0.5, 0.5)) for i in range(scales)]
    if not variables:
        variables.append(Continuous("number", scale=Standard(0.0, 1.0)))
    schema = Schema(draw(st.permutations(variables)))  # type: ignore[arg-type]
    roles = {name: draw(st.sampled_from(["given", "wanted", "ignored"])) for name in schema.names}
    if "wanted" not in roles.values():
        roles[draw(st.sampled_from(schema.names))] = "wanted"
    want = tuple(name for name, role in roles.items() if role == "wanted")
    masked = tuple(image.name for image in schema.images if image.name in want and draw(st.booleans()))
    net = NetSettings(
        widths=(8, 16), blocks=draw(st.integers(1, 2)), patch=draw(st.integers(1, 2)), token_width=16,
        token_depth=1, heads=2, registers=draw(st.integers(1, 2)),
    )  # fmt: skip
    return Case(schema, net, tuple(name for name, role in roles.items() if role == "given"), want, masked)


def values(schema: Schema, n: int) -> State:
    """Clean values of n rows."""
    state = {}
    for v in schema:
        if isinstance(v, Image | Continuous):
            state[v.name] = torch.randn(n, *v.entry_shape)
        else:
            state[v.name] = torch.randint(len(v.levels), (n,))
    return state


def everyone(schema: Schema, n: int) -> Observed:
    return {v.name: torch.ones(n, dtype=torch.bool) for v in schema}


def waken(denoiser: JointDenoiser) -> JointDenoiser:
    """Layers that start at 0 get weights, so that everything has an effect."""
    for parameter in denoiser.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return denoiser.eval()


def levels(schema: Schema, n: int, t: float, **of: float) -> Times:
    return {v.name: full_level(v, of.get(v.name, t), n) for v in schema}


MIXED = Schema(
    (
        Image("scan", (6, 5, 7), latent=Latent(2, (6, 5, 7), (0.0, 0.0), (1.0, 1.0))),
        Image("other", (6, 5, 7), latent=Latent(1, (6, 5, 7), (0.0,), (1.0,))),
        Continuous("age", scale=Standard(0.0, 1.0)),
        Categorical("sex", ("F", "M"), chain="absorbing", marginal=(0.5, 0.5)),
        Categorical("diagnosis", ("a", "b", "c"), chain="marginal", marginal=(0.5, 0.3, 0.2)),
        Ordinal("stage", ("0", "1", "2"), marginal=(0.4, 0.3, 0.3)),
    )
)


@SMALL
@given(case=cases())
def test_any_schema_trains_a_step(case: Case) -> None:
    schema, n = case.schema, 3
    denoiser = JointDenoiser(schema, case.net, MixtureTimes())
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    observed = {v.name: torch.tensor([True, False, True]) for v in schema}
    for step in range(2):
        noise = Noise(step, torch.arange(n))
        times = MixtureTimes(partial=0.5).draw(schema, observed, noise)
        loss = joint_loss(denoiser, schema, values(schema, n), observed, times, noise)
        assert set(loss.parts) == set(schema.names) and torch.isfinite(loss.total) and loss.total >= 0
        optimiser.zero_grad()
        loss.total.backward()
        gradients = [p.grad for p in denoiser.parameters() if p.grad is not None]
        assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
        optimiser.step()


@SMALL
@given(case=cases(), solver=st.sampled_from([ANCESTRAL, DDIM, DPM2M]))
def test_any_schema_answers_any_question(case: Case, solver: object) -> None:
    schema, rows, n = case.schema, 2, 3
    denoiser = waken(JointDenoiser(schema, case.net, MixtureTimes()))
    x = values(schema, rows)
    question = {name: Given(x[name]) for name in case.given}
    for name in case.masked:
        question[name] = Given(x[name], mask=torch.rand(rows, *schema[name].level_shape) < 0.5)
    with torch.no_grad():
        draws = sample(denoiser, schema, question, case.want, n, even_plan(2), solver)  # type: ignore[arg-type]
        answers = expect(denoiser, schema, question, case.want)
    rows = rows if question else 1
    assert list(draws) == list(answers) == list(case.want)
    for name in case.want:
        v = schema[name]
        assert draws[name].shape == (rows, n, *v.entry_shape)
        if isinstance(v, Image | Continuous):
            assert torch.isfinite(draws[name]).all() and torch.isfinite(answers[name]).all()
            assert answers[name].shape == (rows, *v.entry_shape)
        else:
            assert ((draws[name] >= 0) & (draws[name] < len(v.levels))).all()
            assert answers[name].shape == (rows, len(v.levels))
            torch.testing.assert_close(answers[name].exp().sum(1), torch.ones(rows))


@SMALL
@given(case=cases(), t=st.sampled_from([0.0, 0.3, 1.0]))
def test_frozen_scans_answer_as_the_whole_network_does(case: Case, t: float) -> None:
    schema, rows, draws = case.schema, 2, 3
    if not schema.images or not schema.scalars:
        return
    denoiser = waken(JointDenoiser(schema, case.net, MixtureTimes()))
    x = values(schema, rows * draws)
    for image in schema.images:
        x[image.name] = x[image.name][::draws].repeat_interleave(draws, 0)
    times = levels(schema, rows * draws, 0.6, **{image.name: t for image in schema.images})
    with torch.no_grad():
        whole = denoiser(x, times)
        names = [image.name for image in schema.images]
        frozen = denoiser.freeze({k: x[k][::draws] for k in names}, {k: times[k][::draws] for k in names})
        scalars = [v.name for v in schema.scalars]
        answers = frozen({k: x[k] for k in scalars}, {k: times[k] for k in scalars})
    assert set(answers) == set(scalars)
    for name, answer in answers.items():
        torch.testing.assert_close(answer, whole[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("images", [MIXED.images, ()], ids=["scans", "facts"])
def test_what_many_draws_ask_alike_is_asked_once(images: tuple[Image, ...]) -> None:
    """Draws that differ by noise alone, or by a class; not those that have numbers of their own."""
    schema, scans, draws = Schema((*images, *MIXED.scalars)), 3 if images else 1, 40
    denoiser = waken(JointDenoiser(schema, SETTINGS, MixtureTimes()))
    x = values(schema, scans * draws)
    rows: list[int] = []
    denoiser.net.tokens.register_forward_pre_hook(lambda module, told: rows.append(len(told[1]["sex"])))
    seen = {image.name: x[image.name][:scans] for image in images}
    for known, kinds in (((), 1), (("sex",), 2), (("age",), draws), (("sex", "age"), draws)):
        times = levels(schema, scans * draws, 1.0, **dict.fromkeys(known, 0.0))
        shown = {image.name: torch.zeros(scans, *image.level_shape) for image in images}
        with torch.no_grad():
            frozen = denoiser.freeze(seen, shown)
            told, once = frozen.raw(x, times), rows[-1]
            each = frozen._raw(x, times)
        assert once == scans * kinds
        for v in schema.scalars:
            if v.name not in known:
                torch.testing.assert_close(told[v.name], each[v.name], atol=1e-5, rtol=1e-4)


def test_combinations_of_many_classes_are_told_apart() -> None:
    """Of 40 classes there are more than a whole number counts; answers about the last still follow the first."""
    schema = Schema([Categorical(f"c{i:02d}", ("a", "b", "c", "d"), marginal=(0.25,) * 4) for i in range(40)])
    denoiser = waken(JointDenoiser(schema, SETTINGS, MixtureTimes()))
    x = {name: torch.zeros(8, dtype=torch.int64) for name in schema.names}
    x["c00"] = torch.arange(8) % 2
    times = levels(schema, 8, 0.0, c39=1.0)
    with torch.no_grad():
        frozen = denoiser.freeze({}, {})
        told = frozen.raw(x, times)["c39"]
        torch.testing.assert_close(told, frozen._raw(x, times)["c39"])
    assert not torch.allclose(told[0], told[1], atol=1e-6)


@SMALL
@given(case=cases())
def test_what_stands_in_for_an_absent_value_does_not_matter(case: Case) -> None:
    schema, n = case.schema, 4
    denoiser = waken(JointDenoiser(schema, case.net, MixtureTimes()))
    noise = Noise(0, torch.arange(n))
    absent = [name for name in schema.names if name not in case.given]
    times = levels(schema, n, 0.4, **dict.fromkeys(absent, 1.0))
    state = values(schema, n)
    priors = [{name: schema[name].process.prior(noise, schema[name].entry_shape) for name in absent} for _ in range(2)]
    with torch.no_grad():
        one, two = (denoiser({**state, **prior}, times) for prior in priors)
    for name in schema.names:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-5)


def test_known_entries_come_back_as_they_are_and_absent_ones_are_the_networks_alone() -> None:
    denoiser, n = waken(JointDenoiser(MIXED, SETTINGS, MixtureTimes())), 3
    x = values(MIXED, n)
    with torch.no_grad():
        known, absent = denoiser(x, levels(MIXED, n, 0.0)), denoiser(x, levels(MIXED, n, 1.0))
    for v in MIXED:
        if isinstance(v, Image | Continuous):
            torch.testing.assert_close(known[v.name], x[v.name])
        else:
            assert torch.equal(known[v.name].argmax(1), x[v.name])
        assert torch.isfinite(absent[v.name]).all()
        torch.testing.assert_close(absent[v.name][0], absent[v.name][1])  # nothing is known of either row


def test_each_entry_of_an_image_has_a_level_of_its_own() -> None:
    denoiser, n = waken(JointDenoiser(MIXED, SETTINGS, MixtureTimes())), 2
    x, times = values(MIXED, n), levels(MIXED, n, 0.5)
    half = times["scan"].clone()
    half[:, :, :3], half[:, :, 3:] = 0.0, 1.0
    hidden = x["scan"].clone()
    hidden[:, :, 3:] = torch.randn_like(hidden[:, :, 3:])
    with torch.no_grad():
        one, two = (denoiser({**x, "scan": scan}, {**times, "scan": half}) for scan in (x["scan"], hidden))
        whole = denoiser(x, times)
    torch.testing.assert_close(one["scan"][:, :, :3], x["scan"][:, :, :3])
    for name in MIXED.names:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one["age"], whole["age"])


def test_answers_depend_on_what_is_given() -> None:
    """Every variable is heard by every other: numbers, classes and images alike."""
    denoiser, n = waken(JointDenoiser(MIXED, SETTINGS, MixtureTimes())), 2
    x, times = values(MIXED, n), levels(MIXED, n, 0.5)
    with torch.no_grad():
        before = denoiser(x, times)
        for v in MIXED:
            other = (x[v.name] + 1) % 2 if not isinstance(v, Image | Continuous) else x[v.name] + 1
            after, later = denoiser({**x, v.name: other}, times), denoiser(x, {**times, v.name: times[v.name] + 0.2})
            for name in MIXED.names:
                assert not torch.equal(before[name], after[name]), (v.name, name)
                assert not torch.equal(before[name], later[name]), (v.name, name)


@pytest.mark.parametrize("schema", [MIXED, Schema(MIXED.scalars), Schema(MIXED.scalars[:1])], ids=["mixed", "facts", "one"])
def test_of_whom_nothing_is_told_the_answer_is_the_law_over_people(schema: Schema) -> None:
    """However wrong the network: the variable's own noised value counts, by Bayes' rule, and nothing else."""
    denoiser, n = waken(JointDenoiser(schema, SETTINGS, MixtureTimes())), 3
    x = values(schema, n)
    for v in schema.scalars:
        with torch.no_grad():
            alone = denoiser(x, levels(schema, n, 1.0, **{v.name: 0.6}))[v.name]
            told = denoiser(x, levels(schema, n, 1.0, **{v.name: 0.6, schema.names[0]: 0.5}))[v.name]
        tau = v.clock.tau(torch.full((n,), 0.6))
        if isinstance(v, Continuous):
            own = v.law.given(x[v.name], tau).mean()
        else:
            own = torch.log_softmax(torch.tensor(v.marginal).log() + v.process.likelihood(x[v.name], tau), -1)
        torch.testing.assert_close(alone, own)
        assert v.name == schema.names[0] or not torch.allclose(told, own, atol=1e-4)


@pytest.mark.parametrize(
    "schema",
    [MIXED, Schema(MIXED.images), Schema(MIXED.scalars), Schema(MIXED.images[:1] + MIXED.scalars[:1])],
    ids=["mixed", "images", "scalars", "one of each"],
)
def test_no_part_of_the_network_is_dead(schema: Schema) -> None:
    # widths of 8 would be normalised channel by channel, which takes out the biases before
    denoiser, n = JointDenoiser(schema, replace(SETTINGS, widths=(16, 32)), MixtureTimes()), 16

    def loss(step: int) -> Tensor:
        noise = Noise(step, torch.arange(n))
        times = MixtureTimes().draw(schema, everyone(schema, n), noise)
        return joint_loss(denoiser, schema, values(schema, n), everyone(schema, n), times, noise).total

    assert not dead_parts(denoiser, loss, steps=6)


def test_draws_are_the_same_one_by_one_and_in_a_batch() -> None:
    denoiser, rows, n = waken(JointDenoiser(MIXED, SETTINGS, MixtureTimes())), 3, 4
    x, want = values(MIXED, rows), ["age", "sex", "other"]
    for names in (("scan", "stage"), ("scan", "other", "stage")):
        wanted = [name for name in want if name not in names]

        def ask(rows: slice, n: int, wanted: list[str] = wanted, names: tuple[str, ...] = names, **place: int) -> State:
            question = {name: Given(x[name][rows]) for name in names}
            with torch.no_grad():
                return sample(denoiser, MIXED, question, wanted, n, even_plan(3), seed=2, **place)

        together = ask(slice(None), n)
        for row in range(rows):
            for draw in range(n):
                alone = ask(slice(row, row + 1), 1, first_row=row, first_draw=draw)
                for name in wanted:
                    # sums over an image run in another order, which leaves some 1e-5
                    torch.testing.assert_close(alone[name][0, 0], together[name][row, draw], atol=5e-5, rtol=1e-5)


def test_an_untrained_network_loses_what_the_marginal_does() -> None:
    """Heads start at 0, so a fresh network's loss on standard-normal data stands near 1 in every part at level 1."""
    schema, n = MIXED, 400
    denoiser = JointDenoiser(schema, SETTINGS, MixtureTimes())
    times = levels(schema, n, 1.0)
    with torch.no_grad():
        loss = joint_loss(denoiser, schema, values(schema, n), everyone(schema, n), times, Noise(0, torch.arange(n)))
    for v in schema:
        # uniform guesses over this many levels, over the marginal's entropy
        classes = not isinstance(v, Image | Continuous)
        expected = math.log(len(v.levels)) / v.baseline_loss(torch.tensor(math.inf)) if classes else 1.0  # type: ignore[union-attr]
        assert float(loss.parts[v.name]) == pytest.approx(float(expected), rel=0.2), v.name


def test_images_start_from_the_mean_of_such_people(tmp_path: Path) -> None:
    """Hardly trained, the model draws bright images of the old and flat ones of men, as the cohort has them."""
    rng = np.random.default_rng(0)
    age, male = rng.uniform(20, 90, 300), rng.random(300) < 0.5
    images = rng.normal(0, 0.1, (300, 6, 6)) + 0.01 * age[:, None, None]
    images[:, :3] += 0.5 * male[:, None, None]
    table = pd.DataFrame({"age": age, "sex": np.where(male, "M", "F")}).mask(rng.random((300, 2)) < 0.1)
    schema = mv.Schema([mv.Image("scan", (6, 6)), mv.Continuous("age"), mv.Categorical("sex", ("F", "M"))])
    config = mv.preset("tiny", augment=False, reading=0, net={"widths": (8,), "patch": 1, "token_width": 16},
                       joint={"steps": 1, "batch": 8, "validate_every": 1})  # fmt: skip
    model = mv.fit(schema, {"scan": images}, table, tmp_path / "m", config, quiet=True)
    mean = {(a, s): model.sample({"age": a, "sex": s}, ["scan"], n=200, steps=5).mean("scan")
            for a in (30, 80) for s in ("F", "M")}  # fmt: skip
    assert (mean[80, "F"] - mean[30, "F"]).mean() == pytest.approx(0.5, abs=0.1)
    assert (mean[80, "M"] - mean[80, "F"])[:3].mean() == pytest.approx(0.5, abs=0.12)
    assert (mean[80, "M"] - mean[80, "F"])[3:].mean() == pytest.approx(0.0, abs=0.12)


def test_facts_are_asked_of_people_without_a_scan_as_well(tmp_path: Path) -> None:
    """One absent image serves all; an age is asked of many whose sex is told, and of many of whom nothing is."""
    scalars = {"age": torch.linspace(-2, 2, 30), "sex": torch.arange(30) % 2}
    known = {name: torch.arange(30) > 2 for name in scalars}
    image = mv.Image("scan", (6, 6), latent=Latent(1, (6, 6), (0.0,), (1.0,)))
    schema = mv.Schema([image, mv.Continuous("age"), mv.Categorical("sex", ("F", "M"), marginal=(0.5, 0.5))])
    data = _Data(schema, {}, scalars, known, torch.device("cpu"))
    x0, observed, times, noise = _without_images(data, torch.arange(30), MixtureTimes(), seed=1)
    assert x0["scan"].shape == (1, 1, 6, 6) and not observed["scan"].any() and (times["scan"] == 1).all()
    assert len(noise) == len(times["age"]) == len(x0["sex"]) == FACTS_ROWS
    asked = observed["age"] & (times["age"] == 1)
    assert (asked & (times["sex"] == 0)).float().mean() > 0.05 and (asked & (times["sex"] == 1)).float().mean() > 0.05
    assert (times["age"][~observed["age"]] == 1).all()


def test_a_model_of_images_alone_trains(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(20, 6, 6))
    config = mv.preset("tiny", augment=False, net={"widths": (8,), "patch": 1, "token_width": 16},
                       joint={"steps": 1, "batch": 4, "validate_every": 1})  # fmt: skip
    schema = mv.Schema([mv.Image("scan", (6, 6))])
    model = mv.fit(schema, {"scan": images}, pd.DataFrame(index=range(20)), tmp_path / "m", config, quiet=True)
    assert model.sample(n=2, steps=2)["scan"].shape == (2, 6, 6)


def test_the_last_layers_learn_the_ends_that_a_normal_law_does_not_know() -> None:
    """Entries that are 0 or 1 by chance, at half noise: the law can only shrink, the last layers learn to choose."""
    image = Image("scan", (6, 6), latent=Latent(1, (6, 6), (0.0,), (1.0,)))
    torch.manual_seed(0)
    denoiser = JointDenoiser(Schema([image]), SETTINGS, MixtureTimes())
    x = (torch.rand(400, 1, 6, 6) < 0.5).float()
    denoiser.law("scan").fit(lambda rows: x[rows], torch.arange(400), torch.zeros(400, 0))
    optimiser = torch.optim.Adam(denoiser.net.last.parameters(), lr=0.02)
    losses = []
    for k in range(80):
        times = {"scan": full_level(image, 0.2, 400)}
        loss = joint_loss(denoiser, Schema([image]), {"scan": x}, everyone(Schema([image]), 400), times,
                          Noise(k, torch.arange(400))).total  # fmt: skip
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
