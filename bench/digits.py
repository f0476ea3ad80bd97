"""Real images, identity codec: scikit-learn's digits. Label from image in one evaluation; images from a label.

    python bench/digits.py
"""

import tempfile

import numpy as np
import pandas as pd
import torch
from common import clock, record
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

import metavoxel as mv
from metavoxel.diffusion import expect
from metavoxel.question import Given

CONFIG = mv.preset(
    "tiny",
    augment=False,
    reading=0,
    mean_by_facts=False,
    questions=2,
    times={"read": 0.35},
    net={"widths": (48, 96), "patch": 1, "token_width": 64},
    joint={"steps": 880, "batch": 128, "rate": 2e-3, "average": 0.99, "validate_every": 220},
)
DRAWS = 100


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    names = labels.astype(str)
    train, test = train_test_split(np.arange(len(images)), test_size=1 / 3, random_state=0, stratify=labels)
    figures: dict[str, object] = {}
    schema = mv.Schema([mv.Image("digit", (8, 8)), mv.Categorical("label", tuple("0123456789"))])
    with tempfile.TemporaryDirectory() as folder, clock(figures, "training_seconds"):
        model = mv.fit(schema, {"digit": images[train]}, pd.DataFrame({"label": names[train]}), folder, CONFIG)
    with torch.no_grad(), clock(figures, "answer_seconds"):
        known = {"digit": Given(model.codecs["digit"].encode(torch.from_numpy(images[test])))}
        p = expect(model.denoiser, model.schema, known, ["label"])["label"].exp().numpy()
    judge = SVC(gamma="scale", C=10).fit(images[train].reshape(len(train), -1), labels[train])
    figures["label_from_image_accuracy"] = float((p.argmax(1) == labels[test]).mean())
    figures["svc_accuracy_on_real_images"] = float(judge.score(images[test].reshape(len(test), -1), labels[test]))
    right = []
    with clock(figures, "drawing_seconds"):
        for digit in range(10):
            draws = model.sample({"label": str(digit)}, ["digit"], DRAWS, seed=digit)
            right.append((judge.predict(draws["digit"].reshape(DRAWS, -1)) == digit).mean())
    figures["drawn_images_recognised"] = float(np.mean(right))
    figures["drawn_images_recognised_worst_digit"] = float(np.min(right))
    record("digits", f"{len(train)} training, {len(test)} test images of 8 x 8; {10 * DRAWS} drawn", figures)


if __name__ == "__main__":
    main()
