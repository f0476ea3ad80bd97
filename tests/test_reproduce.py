"""The commands of docs/how-to/reproduce-the-paper.md as they are written there: those at full size with both configs made
small, those for phantoms with fewer people and steps."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from monai.networks.nets.resnet import resnet50
from typer.main import get_command

from metavoxel.cli import app
from metavoxel.codecs import Latent
from metavoxel.config import PRESETS, Config, Optimiser, from_dict, preset, read_config
from metavoxel.denoiser import make_denoiser
from metavoxel.evaluate import baselines
from metavoxel.evaluate.figures import Findings
from metavoxel.evaluate.sizes import sizes
from metavoxel.image_law import law_sizes
from metavoxel.nets.autoencoder import Autoencoder
from metavoxel.schema import Categorical, Continuous, Image, Schema

PAGE = Path(__file__).parents[1] / "docs/how-to/reproduce-the-paper.md"
CONFIGS = PAGE.parent / "paper"
FULL, PHANTOMS = "# Reproduce the paper's tables", "## The same on phantoms"
WEIGHTS = "RadImageNet-ResNet50_notop.pth"
FEW: dict[str, Any] = {"steps": 4, "batch": 8, "validate_every": 2}
FEWER: dict[str, Any] = {"steps": 2, "batch": 8, "validate_every": 1}
GIVEN = ("nothing", "other facts", "scan", "scan and other facts")
DRAWING = ("model", "image-only", "paper", "continuous-sex")

Run = Callable[..., tuple[int, str]]


def commands(heading: str) -> list[list[str]]:
    """The words of each command in the first block under a heading."""
    block = PAGE.read_text().split(heading)[1].split("```")[1]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("metavoxel ")]


@pytest.mark.parametrize("heading", [FULL, PHANTOMS])
def test_every_command_has_these_options(heading: str) -> None:
    found = commands(heading)
    assert [words[0] for words in found][-6:] == ["split", "train", "baselines", *["evaluate"] * 3]
    for words in found:
        get_command(app).commands[words[0]].make_context(words[0], words[1:])  # type: ignore[attr-defined]


def test_the_configs_are_of_one_grid_and_theirs_is_the_preset() -> None:
    ours, theirs = (read_config(CONFIGS / name, "paper") for name in ("ours.yaml", "theirs.yaml"))
    assert from_dict(yaml.safe_load((CONFIGS / "theirs.yaml").read_text()), "theirs.yaml") == preset("paper") == theirs
    assert read_config(CONFIGS / "ours.yaml", "tiny") == ours  # nothing is left to the preset that it is laid over
    for key in ("shape", "spacing", "codec", "autoencoder", "encoding", "validation"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.times.separate and not theirs.times.separate
    small = preset("small")
    assert (ours.net, ours.times, ours.joint) == (small.net, small.times, small.joint)
    named = {word for words in commands(FULL) for word in words if word.endswith(".yaml")}
    assert named == {path.name for path in CONFIGS.iterdir()}


def test_the_page_says_how_large_they_are() -> None:
    """Built without memory for their weights."""
    for name, said in (("ours.yaml", "39 million"), ("theirs.yaml", "526 million")):
        config = read_config(CONFIGS / name, "paper")
        image = Image("T1w", config.shape, tuple(config.spacing), config.codec)
        channels, grid = config.autoencoder.latent_channels, config.autoencoder.latent_grid(config.shape)
        latent = Latent(channels, grid, (0.0,) * channels, (1.0,) * channels, 1.0, *law_sizes((channels, *grid)))
        facts = [Continuous("age", "years", config.scaling["*"]), Categorical("sex", ("F", "M"), config.chain)]
        schema = Schema([image, *facts]).fit(pd.DataFrame({"age": [20.0, 90.0], "sex": ["F", "M"]}))
        with torch.device("meta"):
            coder = Autoencoder(config.autoencoder, config.shape)
            denoiser = make_denoiser(schema.with_latents({"T1w": latent}), config.net, config.times)
        for network, words in ((coder, "10 million"), (denoiser, said)):
            assert f"{round(sum(p.numel() for p in network.parameters()) / 1e6)} million" == words
            assert words in PAGE.read_text()


def test_who_changes_their_config_changes_all_that_have_their_network(tmp_path: Path) -> None:
    own = tmp_path / "theirs.yaml"
    own.write_text((CONFIGS / "theirs.yaml").read_text().replace("[256, 512, 768]", "[32, 64, 96]"))
    found = sizes("paper", own)
    assert found.paper == found.joint == read_config(own, "paper") != preset("paper")


def without_long_training(patch: pytest.MonkeyPatch, **few: Config) -> None:
    """DenseNet and ViT, which no config makes small, are small and of few steps; few: other sizes."""
    narrow: dict[str, Any] = {"densenet": {"init_features": 4, "growth_rate": 2},
                              "vit": {"patch": 8, "width": 16, "depth": 1, "heads": 2}}  # fmt: skip
    quick = partial(replace, **narrow, dedicated=Optimiser(**FEW), **few)
    patch.setattr(baselines, "sizes", lambda name, config: quick(sizes(name, config)))


def write_small(name: str, folder: Path) -> None:
    """A config of the page, made small as the page says."""
    content = yaml.safe_load((CONFIGS / name).read_text())
    content |= {"shape": [32, 40, 32], "spacing": 5.0}
    content["autoencoder"]["channels"] = [8, 8, 8, 8]
    content["net"] |= {"widths": [8, 16, 16]}
    content["encoding"] |= FEWER
    content["joint"] |= FEW
    (folder / name).write_text(yaml.safe_dump(content))


def carry_out(found: list[list[str]], fewer: dict[str, str], run: Run) -> None:
    for words in found:
        words = [fewer.get(word, word) for word in words]
        status, error = run(*words)
        assert status == 0, f"{' '.join(words)}: {error}"


def assert_both_tables(spaces: tuple[str, ...]) -> None:
    ours, theirs = (Findings.load(Path(folder) / "metrics.json") for folder in ("report-ours", "report-paper"))

    def has(found: Findings, *what: str, **whose: str) -> None:
        figure = found.value(*what, **whose)
        assert figure is not None and np.isfinite(figure.value), (what, whose)

    for found in (ours, theirs):
        assert not [sentence for sentence in found.left_out if "grid" in sentence]
    for who in (*DRAWING, "real scans"):  # Table 1
        for space in spaces:
            for metric in ("fid", "mmd"):
                has(ours, "images", "T1w", f"{space}: {metric}", who=who)
    for who in ("model", "paper", "continuous-sex", "densenet", "vit"):
        for given in ("scan", "scan and other facts"):
            has(ours, "accuracy", "age", "mae", who=who, given=given)
            has(ours, "accuracy", "sex", "accuracy", who=who, given=given)
    for found in (ours, theirs):  # Table 2
        has(found, "accuracy", "age", "mae", who="constant", given="nothing")
        for given in GIVEN:
            has(found, "accuracy", "age", "mae", given=given)
            has(found, "accuracy", "age", "mae_sd", given=given)
            has(found, "calibration", "age", "draws_variance", given=given)
    beside = pd.read_csv("side-by-side/comparison.csv")
    assert {"age", "sex"} == set(beside["variable"])
    assert set(GIVEN) == set(beside["given"])


@pytest.mark.slow
def test_the_recipe_gives_both_of_the_papers_tables(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the configs made small, of phantoms for the prepared cohort, and weights at random for RadImageNet's."""
    without_long_training(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("ours.yaml", "theirs.yaml"):
        write_small(name, tmp_path)
    network = resnet50(spatial_dims=2, n_input_channels=3, feed_forward=False, bias_downsample=False)
    torch.save(network.state_dict(), tmp_path / WEIGHTS)
    assert run("phantom", "prepared", "-n", 30)[0] == 0
    found = [words for words in commands(FULL) if words[0] != "prepare"]
    carry_out(found, {"0.095": "0.2", "100": "6", "2000": "6"}, run)
    assert_both_tables(("voxels", "anatomy", "densenet", "radimagenet"))
    assert len(list(Path("cache").glob("autoencoder-*"))) == 2  # ours, and one for all of theirs


@pytest.mark.slow
def test_so_does_that_for_phantoms(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(PRESETS, "tiny", {**PRESETS["tiny"], "reading": 2, "joint": FEW})
    paper = replace(sizes("tiny").paper, joint=Optimiser(**FEW), encoding=Optimiser(**FEWER))
    without_long_training(monkeypatch, paper=paper)
    monkeypatch.chdir(tmp_path)
    found = [[*words, "--scans", "6"] if words[0] == "evaluate" and "--compare" not in words else words
             for words in commands(PHANTOMS)]  # fmt: skip
    carry_out(found, {"600": "30"}, run)
    assert_both_tables(("voxels", "anatomy", "densenet"))
    ours = Findings.load(Path("report-ours/metrics.json"))
    for who in ("linear", "trees", "exact"):
        assert ours.value("accuracy", "age", "mae", who=who, given="scan") is not None, who
        assert ours.value("accuracy", "sex", "accuracy", who=who, given="scan") is not None, who
