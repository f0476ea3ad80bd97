"""The report's first table: what a reader in a hurry takes away, a row a variable."""

from collections.abc import Sequence

from metavoxel.evaluate.accuracy import SECTION as ACCURACY
from metavoxel.evaluate.accuracy import SHOWN, best_of, shown_value
from metavoxel.evaluate.asking import NOTHING, PAPER_DRAWS
from metavoxel.evaluate.calibrated import LEAST_PEOPLE, faults, in_doubt
from metavoxel.evaluate.calibrated import SECTION as CALIBRATION
from metavoxel.evaluate.claims import Claim, in_words, main_claims
from metavoxel.evaluate.figures import CONSTANT, EXACT, Findings
from metavoxel.methods import PAPER_STEPS
from metavoxel.page import Section, Table


def summary_section(findings: Findings, claims: Sequence[Claim], at_once: bool) -> Section:
    """The model's answers to `main_claims` beside the best baseline's, the limit, a constant; whether their widths are at
    fault. at_once: whether one evaluation of the network gave them, or the draws of the paper's inference."""
    main = main_claims(claims)
    asked = {(claim.variable.name, claim.given) for claim in main}
    wrong = asked & set(faults(findings, claims))
    rows = []
    for claim in main:
        name, metric = claim.variable.name, next(iter(SHOWN[claim.is_class]))
        unit = getattr(claim.variable, "unit", "")
        label = f"{name}: {SHOWN[claim.is_class][metric]}{f', {unit}' if unit else ''}"
        best = best_of(findings, name, metric, claim.given)
        held = findings.value(CALIBRATION, name, "coverage_90", given=claim.given)
        at_fault = (name, claim.given) in wrong
        calibrated = "fault" if at_fault else "no fault shown" if len(claim.rows) >= LEAST_PEOPLE else "too few people"
        rows.append({
            in_words(claim.given): label,
            "model": shown_value(findings.value(ACCURACY, name, metric, given=claim.given)),
            "best baseline": f"{shown_value(best)} ({best.who})" if best else "",
            "exact limit": shown_value(findings.value(ACCURACY, name, metric, who=EXACT, given=claim.given)),
            "constant": shown_value(findings.value(ACCURACY, name, metric, who=CONSTANT, given=NOTHING)),
            "calibration": f"{calibrated}: 90 % hold {held.value:.0%}" if held else calibrated,
        })
    header = [column for column in rows[0] if any(row[column] not in ("", "-") for row in rows)]
    few = min(len(claim.rows) for claim in main) < LEAST_PEOPLE
    good = (f"are at fault in how sure they are in {len(wrong)} case{'s' * (len(wrong) > 1)}" if wrong
            else "are of too few people to tell whether they are as sure as they should be" if few
            else f"show no fault in how sure they are that {in_doubt(main)} could reveal")  # fmt: skip
    table = Table(header, [[row[column] for column in header] for row in rows])
    how = "one evaluation of the network each" if at_once else f"{PAPER_DRAWS} draws of {PAPER_STEPS} evaluations each"
    said = f"The model's {len(main)} answers, {how}, {good}."
    return Section("In short", said, table=table,
                   note="Brackets: 95 % intervals over people.")  # fmt: skip
