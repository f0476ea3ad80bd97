"""The exact posterior of phantoms under each set of given facts, from the anatomy that they were made of."""

from itertools import compress

import pandas as pd

from metavoxel.data import phantom
from metavoxel.data.phantom_render import NUMBERS
from metavoxel.evaluate.asking import BOTH, NOTHING, OTHERS, SCAN, Answers
from metavoxel.schema import Categorical


class ExactAnswers:
    """What the phantoms' law says of each row of a cohort.

    table: what `metavoxel phantom` wrote of these rows, in their order; NaN for people whom it does not hold. That another
    fact is missing tells the law as little as it tells the model, although a score's gaps hang on age.
    """

    def __init__(self, table: pd.DataFrame, answers: Answers) -> None:
        self.table, self.answers = table.reset_index(drop=True), answers
        law = ("age", "sex", "diagnosis", "mmse") if "diagnosis" in table else ("age", "sex")
        self.facts = [v.name for v in answers.model.schema.scalars if v.name in law]
        self.knows_all = len(self.facts) == len(answers.model.schema.scalars)
        self.people = self.table[list(NUMBERS)].assign(participant_id=self.table.index)
        for v in answers.model.schema.scalars:
            if v.name in law:
                cells = answers.cohort.column(v.name).reset_index(drop=True)
                self.people[v.name] = cells if isinstance(v, Categorical) else pd.to_numeric(cells, errors="coerce")
        if "diagnosis" in law and "diagnosis" not in self.people:
            self.people["diagnosis"] = ""  # of the law, though the model does not know it

    def of(self, name: str, given: str) -> pd.DataFrame:
        """In the columns of `predict`, one row for each of the cohort's: empty for who is not asked. Without columns where
        the law does not hold all facts that the question tells."""
        asked = self.answers.asked(name, given) & self.people[list(NUMBERS)].notna().all(axis=1).to_numpy()
        if given == SCAN:
            return self.table[asked].reindex(self.table.index)
        if name not in self.facts or not (self.knows_all or given == NOTHING):
            return pd.DataFrame(index=self.table.index)
        told = [fact for fact in self.facts if fact != name and given in (OTHERS, BOTH)]
        people = self.people[asked]
        known = people[told].notna().to_numpy(bool)
        parts = [
            phantom.posterior(people[(known == there).all(axis=1)], list(compress(told, there)), anatomy=given == BOTH)
            for there in sorted(set(map(tuple, known)))
        ]
        return pd.concat(parts).reindex(self.table.index) if parts else pd.DataFrame(index=self.table.index)
