"""A joint law agrees with itself both ways; a model whose conditionals come from different laws does not."""

import math
from pathlib import Path

import oracle
import pytest
import torch
from oracle import Oracle

import metavoxel as mv
from metavoxel.consistency import contradictions
from metavoxel.errors import MetavoxelError
from metavoxel.question import Given
from metavoxel.schema import State, Times

ROWS, DRAWS = oracle.draw(6, seed=11), 400
SCAN = {"scan": Given(ROWS["scan"])}
FREE = ["diagnosis", "stage", "score"]


class Contradictory(Oracle):
    """Thinks the diagnosis worse wherever it is told the score."""

    def __call__(self, state: State, times: Times) -> State:
        clean = super().__call__(state, times)
        told = (times["score"] == 0)[:, None]
        return {**clean, "diagnosis": torch.log_softmax(clean["diagnosis"] + told * torch.tensor([0.0, 0.0, 5.0]), -1)}


def test_an_exact_law_agrees_with_itself() -> None:
    table = contradictions(oracle.schema(), Oracle(), [SCAN], FREE, DRAWS, 0)
    assert len(table) == 6 and (table["rows"] == 6).all()
    assert (table["gap"] < 2 / math.sqrt(DRAWS)).all(), table


def test_a_contradiction_shows_where_it_is_and_nowhere_else() -> None:
    batches = [{"scan": Given(ROWS["scan"][part])} for part in (slice(0, 4), slice(4, 6))]
    table = contradictions(oracle.schema(), Contradictory(), batches, FREE, DRAWS, 0).set_index(["variable", "through"])
    assert table.loc[("diagnosis", "score"), "gap"] > 0.1
    assert table.loc[("stage", "score"), "gap"] < 2 / math.sqrt(DRAWS)
    assert table.loc[("diagnosis", "score"), "gap_q95"] >= table.loc[("diagnosis", "score"), "gap"]


def test_users_run_it_on_a_cohort(untrained: Path, phantoms: Path) -> None:
    model = mv.load(untrained)
    table = model.consistency(phantoms, draws=16)
    assert set(table["variable"]) == {v.name for v in model.schema.scalars}
    assert (table["gap"] >= 0).all() and table["rows"].eq(len(mv.read_cohort(phantoms))).all()
    cohort = mv.read_cohort(phantoms)
    cohort.scans["T1w"] = [*cohort.scans["T1w"][:-3], None, None, None]
    assert model.consistency(cohort, draws=16)["rows"].eq(len(cohort) - 3).all()  # who is not there contradicts nothing
    with pytest.raises(MetavoxelError, match="at least two"):
        model.consistency(phantoms, given=[model.schema.scalars[0].name])
