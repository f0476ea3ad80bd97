"""Whether joint draws of a whole table are like other people of it: of made laws, and of scikit-learn's tables.

    python bench/joint_tables.py

The energy distance (Szekely and Rizzo 2013) of draws from people who were not trained on, numbers by their sd, classes as 0
and 1; beside that of as many training people (the floor), of a normal copula, and of columns drawn by themselves.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from common import clock, record
from pandas.api.types import is_numeric_dtype
from scipy.spatial.distance import cdist
from scipy.stats import norm, rankdata
from sklearn.datasets import load_diabetes, load_wine, make_moons

import metavoxel as mv

DRAWS, PEOPLE = 2000, 3000
FACTORS = 1, 4
"""Normal factors in what the network says of a number."""
CONFIG = mv.preset(
    "tiny",
    net={"token_width": 48, "token_depth": 2},
    joint={"steps": 1000, "batch": 128, "rate": 2e-3, "validate_every": 250},
)


def two_moons(rng: np.random.Generator) -> pd.DataFrame:
    points = make_moons(2 * PEOPLE, noise=0.08, random_state=int(rng.integers(1 << 30)))[0]
    return pd.DataFrame(points, columns=["a", "b"])


def ring(rng: np.random.Generator) -> pd.DataFrame:
    angle, radius = rng.uniform(0, 2 * np.pi, 2 * PEOPLE), 1 + 0.1 * rng.normal(size=2 * PEOPLE)
    return pd.DataFrame({"a": radius * np.cos(angle), "b": radius * np.sin(angle)})


def four_numbers(rng: np.random.Generator) -> pd.DataFrame:
    """Correlations up to .95; the last is skewed."""
    mix = np.array([[1, 0, 0, 0], [0.95, 0.31, 0, 0], [0.6, -0.6, 0.53, 0], [-0.8, 0.3, 0.3, 0.42]])
    numbers = rng.normal(size=(2 * PEOPLE, 4)) @ mix.T
    numbers[:, 3] = np.exp(numbers[:, 3])
    return pd.DataFrame(numbers, columns=list("abcd"))


def toy(load: Callable[..., object]) -> Callable[[np.random.Generator], pd.DataFrame]:
    """One of scikit-learn's, its rows shuffled; few classes stay classes."""

    def table(rng: np.random.Generator) -> pd.DataFrame:
        frame = load(as_frame=True).frame  # type: ignore[attr-defined]
        frame = frame.sample(frac=1, random_state=int(rng.integers(1 << 30)), ignore_index=True)
        frame.columns = frame.columns.str.replace("/", "_over_")  # no file's name may hold it
        few = frame["target"].nunique() < 5
        return frame.assign(target="class " + frame["target"].astype(str)) if few else frame

    return table


TABLES = {
    "two_moons": two_moons, "ring": ring, "four_numbers": four_numbers,
    "wine": toy(load_wine), "diabetes": toy(load_diabetes),
}  # fmt: skip


def coordinates(table: pd.DataFrame, like: pd.DataFrame) -> np.ndarray:
    """(rows, d): numbers in sd of `like`, a column a level of classes."""
    columns = []
    for name in like:
        if not is_numeric_dtype(like[name]):
            columns += [(table[name] == level).to_numpy(float) for level in sorted(like[name].unique())]
        else:
            columns.append(table[name].to_numpy(float) / like[name].std())
    return np.stack(columns, 1)


def energy(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """Without bias: of two samples of one law it is 0 on average."""
    x, y = (coordinates(table, other) for table in (one, other))
    within = sum(cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    return float(2 * cdist(x, y).mean() - within)


def copula(train: pd.DataFrame, n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Each column as it is, tied by a normal law of its ranks; classes by their codes."""
    codes = train.apply(lambda column: column if is_numeric_dtype(column) else column.astype("category").cat.codes)
    scores = norm.ppf(np.apply_along_axis(rankdata, 0, codes.to_numpy(float)) / (len(train) + 1))
    drawn = norm.cdf(rng.multivariate_normal(np.zeros(train.shape[1]), np.corrcoef(scores.T), n))
    places = (drawn * len(train)).astype(int)
    order = codes.to_numpy().argsort(0)
    return pd.DataFrame({name: train[name].to_numpy()[order[places[:, i], i]] for i, name in enumerate(train)})


def main() -> None:
    rng = np.random.default_rng(0)
    figures: dict[str, object] = {}
    with clock(figures, "seconds"):
        for name, make in TABLES.items():
            table = make(rng)
            train, others = table.iloc[: len(table) // 2].reset_index(drop=True), table.iloc[len(table) // 2 :]
            variables = [mv.Continuous(key) if is_numeric_dtype(column) else mv.Categorical(key, tuple(sorted(set(column))))
                         for key, column in train.items()]  # fmt: skip
            for factors in FACTORS:
                config = replace(CONFIG, net=replace(CONFIG.net, factors=factors))
                with tempfile.TemporaryDirectory() as folder:
                    model = mv.fit(mv.Schema(variables), {}, train, folder, config, quiet=True)
                with clock(figures, f"{name}_seconds_for_{DRAWS}_draws"):
                    drawn = model.sample(n=DRAWS).frame()
                figures[f"{name}_energy_{factors}_factors"] = energy(drawn, others)
            apart = pd.DataFrame({column: rng.permutation(train[column].to_numpy()) for column in train})
            figures |= {
                f"{name}_energy_training_people": energy(train, others),
                f"{name}_energy_normal_copula": energy(copula(train, DRAWS, rng), others),
                f"{name}_energy_columns_apart": energy(apart, others),
            }  # fmt: skip
            print({key: value for key, value in figures.items() if key.startswith(name)}, flush=True)
    size = f"{DRAWS} draws; half of each table trains, {CONFIG.joint.steps} steps of {CONFIG.joint.batch}"
    record("joint_tables", size, figures)


if __name__ == "__main__":
    main()
