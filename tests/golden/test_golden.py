"""Did a published number move? ``make golden`` writes the files again; read the difference before
committing it.
"""

import json

import pandas as pd
import pytest

from tests.golden.collect import (
    ANSWERS,
    KEY,
    MADE_WITH,
    NUMBERS,
    TOLERANCE,
    describe_machine,
    list_cases,
    number_case,
)


def read_rows(case):
    if case.fidelity == "plan":
        rows = pd.read_csv(ANSWERS, index_col=0)
        return rows.loc[rows.index == case.name]
    rows = pd.read_csv(NUMBERS, index_col=KEY)
    levels = rows.index.get_level_values
    return rows[(levels("fidelity") == case.fidelity) & (levels("scenario") == case.name)]


@pytest.mark.parametrize("case", list_cases(), ids=lambda case: f"{case.fidelity}-{case.name}")
def test_no_number_moved(case):
    found, wanted = number_case(case), read_rows(case)
    assert set(found.index) == set(wanted.index)
    wanted = wanted.loc[found.index]
    digests = [column for column in found if column.endswith("_sha")]
    numbers = [column for column in found if column not in digests]
    pd.testing.assert_frame_equal(
        found[numbers], wanted[numbers], rtol=TOLERANCE, atol=1e-15, check_dtype=False
    )
    same_machine = json.loads(MADE_WITH.read_text()) == describe_machine()
    # Elsewhere the last digits of times may differ, but who went where may not.
    exact = digests if same_machine else [column for column in digests if column == "choices_sha"]
    pd.testing.assert_frame_equal(found[exact], wanted[exact], check_dtype=False)


def test_every_row_has_its_case():
    named = {
        (fidelity, scenario) for fidelity, scenario, _ in pd.read_csv(NUMBERS, index_col=KEY).index
    }
    named |= {("plan", question) for question in pd.read_csv(ANSWERS, index_col=0).index}
    assert named == set(map(tuple, list_cases()))
