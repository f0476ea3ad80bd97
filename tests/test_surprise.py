"""A scan unlike the training people is told from them; people like them are not warned about."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import metavoxel as mv
from metavoxel.surprise import LIMIT, Usual, features


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 8) of ink from 0 to 1; labels."""
    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8) / 16).astype(np.float32), labels.astype(str)


@pytest.fixture(scope="module")
def model(digits: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> mv.MetaVoxel:
    schema = mv.Schema([mv.Image("digit", (8, 8)), mv.Categorical("label", tuple("0123456789"))])
    config = mv.preset("tiny", augment=False, reading=0, net={"widths": (16, 32), "patch": 1, "token_width": 32},
                       joint={"steps": 60, "batch": 64, "validate_every": 30})  # fmt: skip
    images, labels = digits
    folder: Path = tmp_path_factory.mktemp("digits") / "model"
    return mv.fit(schema, {"digit": images[:1200]}, pd.DataFrame({"label": labels[:1200]}), folder, config, quiet=True)


def test_strange_images_surprise(model: mv.MetaVoxel, digits: tuple[np.ndarray, np.ndarray]) -> None:
    fresh = digits[0][1200:1500]
    rng = np.random.default_rng(0)
    strange = {
        "upside down and mirrored in one axis": np.swapaxes(fresh, 1, 2),
        "another contrast": 1 - fresh,
        "noise": np.clip(fresh + rng.normal(0, 0.25, fresh.shape), 0, 1).astype(np.float32),
        "five times as bright": 5 * fresh,
        "nothing at all": np.zeros_like(fresh),
    }
    usual = model.surprise("digit", fresh)
    assert (usual > LIMIT).mean() < 0.03
    for kind, images in strange.items():
        scores = model.surprise("digit", images)
        auc = roc_auc_score([0] * len(usual) + [1] * len(scores), np.concatenate([usual, scores]))
        assert auc > 0.9, (kind, auc)


def test_a_score_depends_on_the_scan_alone(model: mv.MetaVoxel, digits: tuple[np.ndarray, np.ndarray]) -> None:
    some = digits[0][1200:1208]
    together = model.surprise("digit", some)
    assert np.allclose(together, [model.surprise("digit", image[None])[0] for image in some], rtol=1e-3)


def test_it_is_kept_with_the_model(model: mv.MetaVoxel, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    again = mv.load(model.save(tmp_path / "again"))
    assert np.allclose(again.surprise("digit", digits[0][:4]), model.surprise("digit", digits[0][:4]), rtol=1e-4)


def test_few_people_are_not_trusted_to_say_what_is_usual() -> None:
    generator = torch.Generator().manual_seed(0)
    few = Usual.of(0.1 * torch.randn(3, 4, generator=generator))
    assert float(few.surprise(0.1 * torch.randn(500, 4, generator=generator)).median()) < 2


def test_features_do_not_depend_on_facts(model: mv.MetaVoxel, digits: tuple[np.ndarray, np.ndarray]) -> None:
    entries = model.codecs["digit"].encode(torch.from_numpy(digits[0][:3]))
    assert features(model.denoiser, model.schema.images[0], entries).shape == (3, 4)
