"""Did a published number move? ``make golden`` writes the files again; read the difference before
committing it.
"""

import json

import numpy as np
import pandas as pd
import pytest

from tests.golden.collect import (
    ANSWERS,
    KEY,
    MADE_WITH,
    NUMBERS,
    TOLERANCE,
    TRAININGS,
    describe_machine,
    list_cases,
    number_case,
    read_rows,
    read_sums,
)

COUNTS = ("choices_sha", "gaps_sha")
"""Digests of whole numbers."""


@pytest.mark.parametrize("case", list_cases(), ids=lambda case: f"{case.fidelity}-{case.name}")
def test_no_number_moved(case):
    found, known = number_case(case), read_rows(case)
    assert set(found.index) == set(known.index)
    assert list(found.columns) == list(known.columns)
    known = known.loc[found.index]
    digests, sums = (
        [column for column in found if column.endswith(end)] for end in ("_sha", "_sums")
    )
    numbers = [column for column in found if column not in (*digests, *sums)]
    pd.testing.assert_frame_equal(
        found[numbers], known[numbers], rtol=TOLERANCE, atol=1e-15, check_dtype=False
    )
    for column in sums:
        for name in found.index:
            one, other = (read_sums(frame.loc[name, column]) for frame in (found, known))
            np.testing.assert_allclose(one, other, TOLERANCE, 1e-15, err_msg=f"{name}: {column}")
    same_machine = json.loads(MADE_WITH.read_text()) == describe_machine()
    # Elsewhere the last digits of times may differ, but who went where may not, nor in which bins,
    # each half a percent wide, gaps are counted.
    exact = digests if same_machine else [one for one in digests if one in COUNTS]
    pd.testing.assert_frame_equal(found[exact], known[exact], check_dtype=False)


def test_every_row_has_its_case():
    named = {
        (fidelity, scenario) for fidelity, scenario, _ in pd.read_csv(NUMBERS, index_col=KEY).index
    }
    named |= {("plan", question) for question in pd.read_csv(ANSWERS, index_col=0).index}
    named |= {
        ("train", scenario) for scenario, _ in pd.read_csv(TRAININGS, index_col=KEY[1:]).index
    }
    assert named == set(map(tuple, list_cases()))
