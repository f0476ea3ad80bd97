"""The public methods of conditioning: what each asks of the sampler, how right it is, and what is refused."""

from collections.abc import Mapping

import numpy as np
import oracle
import pandas as pd
import pytest
import torch
from oracle import CLASSES, GRID, Oracle
from scipy.stats import chisquare, ks_2samp

import metavoxel as mv
from metavoxel.diffusion import sample
from metavoxel.latents import ImageCodec
from metavoxel.methods import MEAN_STEPS, PAPER_STEPS, Stage, draw, walk
from metavoxel.posterior import Posterior
from metavoxel.question import Given, tied
from metavoxel.solvers import ANCESTRAL, BY_LAW, DDIM, DPM2M
from metavoxel.times import MixtureTimes, SharedTimes, even_plan, facts_plan, images_plan, repaint_plan

pytestmark = pytest.mark.usefixtures("small_images")

SCHEMA = oracle.schema()
ROW = oracle.draw(1, seed=3)
SCAN = Given(ROW["scan"])
HALF = Given(ROW["scan"], mask=torch.tensor([True, False, False]).expand(1, 1, *GRID))
SEPARATE, SHARED = MixtureTimes(), SharedTimes()


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six voxels need not be drawn in small batches."""
    monkeypatch.setattr("metavoxel.posterior.IMAGE_BATCH", 1000)


def ask(known: Mapping[str, Given], coverage: object = SEPARATE) -> Posterior:
    """The exact denoiser behind the public API."""
    codecs = {"scan": ImageCodec(SCHEMA.image("scan"))}
    return Posterior(SCHEMA, Oracle(coverage=coverage), codecs, known)  # type: ignore[arg-type]


def error(posterior: Posterior, method: str, n: int, **options: int) -> float:
    """Greatest error of a class's probability, given the scan."""
    drawn = posterior.sample(["diagnosis"], n, method=method, **options).probability("diagnosis")  # type: ignore[arg-type]
    exact = Oracle().ask(dict(posterior.known)).probabilities["diagnosis"][0]
    return float((torch.tensor(list(drawn.values())) - exact).abs().max())


def test_direct_is_exact_where_replacement_is_biased_and_repaint_less_so() -> None:
    posterior, n = ask({"scan": SCAN}), 400
    direct = error(posterior, "direct", n)
    replaced = error(posterior, "replacement", n)
    repainted = error(posterior, "repaint", n, steps=25, jump=5)
    assert direct < 0.05 < 0.1 < replaced
    assert repainted < 0.6 * replaced


def test_a_method_is_a_choice_of_levels_plan_and_solver() -> None:
    direct = walk(SCHEMA, SEPARATE, {"scan": SCAN}, ["score"])
    assert direct.given == {"scan": SCAN}
    assert direct.stages == [Stage(["score"], facts_plan(MEAN_STEPS), DPM2M)]
    by_law = walk(SCHEMA, SEPARATE, {"scan": SCAN}, ["score"], laws=True)
    assert by_law.stages == [Stage(["score"], [(1.0, 0.0)], BY_LAW)]
    image = walk(SCHEMA, SEPARATE, {"scan": HALF}, ["scan"], steps=7)
    assert image.stages == [Stage(["scan"], images_plan(7), DPM2M)]

    replaced = walk(SCHEMA, SEPARATE, {"scan": SCAN}, ["score"], "replacement")
    assert replaced.given["scan"].level is tied and replaced.given["scan"].value is SCAN.value
    assert replaced.stages == [Stage(["score", "diagnosis", "stage"], even_plan(PAPER_STEPS), DDIM)]

    repainted = walk(SCHEMA, SEPARATE, {"scan": HALF}, ["score"], "repaint", steps=6, jump=3, repeats=2)
    assert repainted.given["scan"].level is tied and repainted.given["scan"].mask is HALF.mask
    assert repainted.stages == [Stage(["score", "diagnosis", "stage", "scan"], repaint_plan(6, 3, 2), ANCESTRAL)]


def test_classes_come_first_then_numbers_then_images() -> None:
    asked = walk(SCHEMA, SEPARATE, {}, ["scan", "score", "stage", "diagnosis"], steps=9)
    assert [list(stage.want) for stage in asked.stages] == [["stage"], ["diagnosis"], ["score"], ["scan"]]
    assert [len(stage.plan) for stage in asked.stages] == [1, 1, 9, 9] and asked.steps == 20


@pytest.mark.parametrize("laws", [True, False], ids=["by law", "by mean"])
def test_stages_draw_the_joint_law(laws: bool) -> None:
    """One after another with an exact denoiser: each pair of classes as often as the law says, scores as they give."""
    n = 6000
    asked = walk(SCHEMA, SEPARATE, {}, ["score", "stage", "diagnosis"], laws=laws)
    drawn = draw(Oracle(), SCHEMA, asked, n, seed=3)
    assert list(drawn) == ["stage", "diagnosis", "score"]
    counts = torch.zeros_like(oracle.WEIGHTS)
    counts.index_put_((drawn["diagnosis"][0], drawn["stage"][0]), torch.ones(n, dtype=counts.dtype), accumulate=True)
    assert chisquare(counts.flatten(), n * oracle.WEIGHTS.flatten()).pvalue > 1e-3
    rows = oracle.draw(20_000, seed=11)
    for kind in range(CLASSES):
        ours, real = drawn["score"][0][drawn["diagnosis"][0] == kind], rows["score"][rows["diagnosis"] == kind]
        assert ks_2samp(ours, real).pvalue > 1e-3, kind


def test_draws_in_stages_are_the_same_one_by_one_and_together() -> None:
    rows = oracle.draw(3, seed=5)
    asked = walk(SCHEMA, SEPARATE, {"scan": Given(rows["scan"])}, ["score", "diagnosis"])
    together = draw(Oracle(), SCHEMA, asked, 4, seed=1)
    for row in range(3):
        one = walk(SCHEMA, SEPARATE, {"scan": Given(rows["scan"][row : row + 1])}, ["score", "diagnosis"])
        last = draw(Oracle(), SCHEMA, one, 1, seed=1, first_row=row, first_draw=3)
        assert last["diagnosis"][0, 0] == together["diagnosis"][row, 3]
        torch.testing.assert_close(last["score"][0, 0], together["score"][row, 3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("known", "method", "moves"),
    [
        ({"scan": SCAN}, "direct", False),
        ({}, "direct", False),
        ({"scan": SCAN}, "replacement", True),
        ({"stage": Given(ROW["stage"])}, "replacement", True),
    ],
)
def test_a_scan_at_rest_is_told_from_one_that_moves(known: dict[str, Given], method: str, moves: bool) -> None:
    assert walk(SCHEMA, SEPARATE, known, ["score"], method).moves("scan") == moves  # type: ignore[arg-type]


def test_a_model_of_one_shared_time_is_asked_by_replacement() -> None:
    asked = {"scan": SCAN}, ["score"]
    assert walk(SCHEMA, SHARED, *asked) == walk(SCHEMA, SEPARATE, *asked, "replacement")
    posterior = ask({"scan": SCAN}, SHARED)
    drawn = posterior.sample(["diagnosis"], 20, seed=2)
    everything = ["diagnosis", "stage", "score"]
    by_hand = sample(Oracle(), SCHEMA, {"scan": Given(ROW["scan"], level=tied)}, everything, 20, even_plan(50), DDIM, 2)
    np.testing.assert_array_equal(drawn["diagnosis"], SCHEMA.scalar("diagnosis").decode(by_hand["diagnosis"][0]))
    assert list(drawn.values) == ["diagnosis"]


def test_a_model_of_one_shared_time_that_is_told_nothing_walks_everything() -> None:
    plain = walk(SCHEMA, SHARED, {}, ["score"])
    assert plain.stages == [Stage(["score", "diagnosis", "stage", "scan"], even_plan(PAPER_STEPS), DPM2M)]
    drawn = ask({}, SHARED).sample(["diagnosis"], 300).probability("diagnosis")
    truth = oracle.WEIGHTS.sum(1)
    assert max(abs(p - q) for p, q in zip(drawn.values(), truth.tolist())) < 4 * 0.5 / 300**0.5 and len(drawn) == CLASSES


@pytest.mark.parametrize("method", ["replacement", "repaint"])
def test_what_is_known_of_an_image_comes_back_as_it_was(method: str) -> None:
    options = {"repeats": 2} if method == "repaint" else {}
    drawn = ask({"scan": HALF}, SHARED).sample(["scan"], 3, steps=4, method=method, **options)["scan"]  # type: ignore[arg-type]
    known = np.broadcast_to(ROW["scan"][:, 0, :, 0], (3, 2))
    np.testing.assert_array_equal(drawn[..., 0], known)
    assert drawn[..., 1:].std(0).min() > 0


@pytest.mark.parametrize("method", ["direct", "replacement", "repaint"])
def test_a_draw_depends_on_its_index_and_not_on_how_many_are_made(method: str, monkeypatch) -> None:
    monkeypatch.setattr("metavoxel.posterior.IMAGE_BATCH", 2)
    options = {"jump": 2, "repeats": 2} if method == "repaint" else {}
    posterior = ask({"scan": HALF})
    many, one = (posterior.sample(n=n, seed=4, steps=4, method=method, **options) for n in (3, 1))  # type: ignore[arg-type]
    np.testing.assert_allclose(many["score"][:1], one["score"], atol=1e-5)


@pytest.mark.parametrize(
    ("known", "coverage", "options", "message"),
    [
        ({}, SEPARATE, {"method": "magic"}, "unknown method 'magic'; choose from direct, replacement, repaint"),
        ({}, SEPARATE, {"jump": 5}, "jump belongs to method='repaint', not to 'direct'"),
        ({"scan": SCAN}, SHARED, {"repeats": 5}, "repeats belongs to method='repaint', not to 'replacement'"),
        ({}, SEPARATE, {"method": "repaint", "jump": 0}, "jump must be a whole number of at least 1, got 0"),
        ({}, SEPARATE, {"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"scan": SCAN}, SHARED, {"method": "direct"}, "cannot condition on 'scan' directly; .*replacement"),
        ({"scan": HALF}, SHARED, {"method": "direct"}, "cannot condition on 'scan' directly; .*replacement"),
        ({"scan": HALF}, MixtureTimes(partial=0.0), {"method": "direct"}, "never showed part of 'scan'; .*replacement"),
        ({"score": Given(ROW["score"])}, SEPARATE, {"method": "replacement"}, "'score' is both given and wanted"),
    ],
)
def test_options_that_contradict_are_refused_in_one_line(known, coverage, options, message) -> None:
    with pytest.raises(mv.MetavoxelError, match=message) as error:
        ask(known, coverage).sample(["score"], 2, **options)
    assert "\n" not in str(error.value)


def test_a_network_of_one_shared_time_answers_at_the_command_line(run, refused, untrained, scan, tmp_path) -> None:
    model = mv.load(untrained)
    shared = mv.MetaVoxel(model.schema, model.denoiser, model.codecs, mv.preset("tiny", times={"kind": "shared"}), {})
    folder = shared.save(tmp_path / "shared")
    for method, options in (("replacement", []), ("repaint", ["--jump", 1, "--repeats", 2])):
        out = tmp_path / method
        status, told = run("sample", folder, "--given", f"T1w={scan}", "--want", "age", "-n", 2, "--steps", 2,
                           "--method", method, *options, "-o", out)  # fmt: skip
        assert status == 0, told
        assert list(pd.read_csv(out / "samples.csv").columns) == ["draw", "age"]
    for words, options in (
        ("unknown method 'magic'", ["--method", "magic"]),
        ("jump belongs to method='repaint'", ["--jump", 3]),
        ("directly", ["--method", "direct"]),
    ):
        assert words in refused("sample", folder, "--given", f"T1w={scan}", *options, "-o", tmp_path / "x")
    assert not (tmp_path / "x").exists()
