"""The exact answers of phantoms under each set of given facts: row by row, and against people drawn from the law."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import metavoxel as mv
from metavoxel.data import phantom
from metavoxel.data.phantom_render import NUMBERS
from metavoxel.evaluate.asking import BOTH, NOTHING, OTHERS, SCAN, Answers
from metavoxel.evaluate.claims import POSTERIOR
from metavoxel.evaluate.exact import ExactAnswers
from metavoxel.variables import infer_schema


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> mv.Cohort:
    out = tmp_path_factory.mktemp("ill") / "people"
    return mv.read_cohort(phantom.write_cohort(out, 40, seed=311, diagnosis=True, missing=0.3))


def exact_of(cohort: mv.Cohort, folder) -> ExactAnswers:
    """As for a model of all that the cohort holds."""
    schema = infer_schema(cohort, mv.preset("tiny")).fit(cohort.table)
    answers = Answers(SimpleNamespace(schema=schema), cohort, folder)
    return ExactAnswers(pd.read_csv(cohort.root / POSTERIOR, sep="\t"), answers)


def test_each_row_is_told_what_is_known_of_it(cohort, tmp_path):
    law = exact_of(cohort, tmp_path)
    truth = pd.read_csv(cohort.root / POSTERIOR, sep="\t")[["participant_id", *NUMBERS]]
    facts = cohort.table[["age", "sex", "diagnosis", "mmse"]].reset_index(drop=True)
    for name in facts:
        answered = {given: law.of(name, given) for given in (NOTHING, OTHERS, SCAN, BOTH)}
        columns = [c for c in answered[BOTH] if c.startswith(f"{name}_")]
        assert all(set(columns) <= set(table) and len(table) == 40 for table in answered.values())
        others = facts.drop(columns=name)
        for given, table in answered.items():
            there = facts[name].notna() & (others.notna().any(axis=1) if given in (OTHERS, BOTH) else True)
            assert list(table[columns[0]].notna()) == list(there)
        for row in np.flatnonzero(there)[:6]:
            told = [other for other in others if pd.notna(others[other][row])]
            own = truth.iloc[[row]].assign(**{"diagnosis": "", **{other: others[other][row] for other in told}})
            own = own.assign(mmse=pd.to_numeric(own["mmse"])) if "mmse" in told else own
            for given in (OTHERS, BOTH):
                one = phantom.posterior(own, told, anatomy=given == BOTH)[columns].to_numpy(float)[0]
                np.testing.assert_allclose(answered[given].loc[row, columns].to_numpy(float), one, rtol=1e-9)


def test_a_model_of_facts_beyond_the_law_has_an_exact_answer_to_nothing_only(cohort, tmp_path):
    table = cohort.table.assign(height=np.linspace(150, 190, 40))
    wider = replace(cohort, table=table, columns={**cohort.columns, "height": cohort.columns["age"]})
    law = exact_of(wider, tmp_path)
    assert not {"age_mean"} & set(law.of("age", BOTH)) and law.of("height", OTHERS).empty
    assert "age_mean" in law.of("age", NOTHING) and "age_mean" in law.of("age", SCAN)


def test_without_anatomy_it_is_the_law_of_the_facts_alone():
    """Against shares and means among 100,000 people who have the same facts."""
    pool = phantom.subjects(100_000, seed=312, diagnosis=True)
    few = pool.drop_duplicates(["sex", "diagnosis", "mmse"])
    told = phantom.posterior(few, ["sex", "diagnosis", "mmse"], anatomy=False).set_index(few.index)
    alike = pool.groupby(["sex", "diagnosis", "mmse"])["age"].agg(["mean", "sem", "size"])
    alike = alike.reindex(pd.MultiIndex.from_frame(few[["sex", "diagnosis", "mmse"]]))
    many = alike["size"].to_numpy() > 200
    z = (alike["mean"].to_numpy() - told["age_mean"].to_numpy())[many] / alike["sem"].to_numpy()[many]
    assert many.sum() > 40 and np.abs(z).max() < 4.5 and z.std() == pytest.approx(1, abs=0.35)
    by_score = pool.drop_duplicates("mmse")
    ill = phantom.posterior(by_score, ["mmse"], anatomy=False)["diagnosis_p_dementia"].to_numpy()
    seen = (pool["diagnosis"] == "dementia").groupby(pool["mmse"]).agg(["mean", "size"]).loc[by_score["mmse"]]
    error = np.sqrt(np.maximum(ill * (1 - ill), 1e-4) / seen["size"].to_numpy())
    assert (np.abs(seen["mean"].to_numpy() - ill) < 4.5 * error).all()
    by_illness = pool.drop_duplicates("diagnosis")
    score = phantom.posterior(by_illness, ["diagnosis"], anatomy=False)["mmse_mean"].to_numpy()
    scores = pool.groupby("diagnosis")["mmse"].mean().loc[by_illness["diagnosis"]]
    assert scores.to_numpy() == pytest.approx(score, abs=0.05)
