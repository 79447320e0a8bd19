"""The compiled engine and the slow reference of ``tests/reference``, which is written from the
engines' published rules: the same requests, steps and gaps.

Faults that were put into the compiled engine by hand and are noticed: a block too many for a
sequence, steps that form before requests of that instant come, no watermark, another victim than
the latest admitted, the newest prefix evicted, prefixes given back from the front, a lost block
found that is taken, retraction of those with the most tokens.
"""

import ast
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine.timeline import serve
from simulator.results.tables import (
    ADMISSION_LIMITS,
    GAP_BINS_PER_DECADE,
    NUM_GAP_BINS,
    SHORTEST_GAP_S,
)
from tests.cases import cases
from tests.laws.reference_cases import draw_case
from tests.laws.reference_prices import Prices, fill_from
from tests.reference.outcomes import tabulate
from tests.reference.serve import serve_by_rules

REFERENCE = Path(__file__).parents[1] / "reference"
ADDED = ["prefill_tokens", "decode_tokens", "decodes"]
EMITTED = ["prefill_tokens", "decode_tokens"]
ALIKE = ["running", "waiting", "limited_by"]


def check_same(tiny, plan, trace, ingress_delay_s):
    found = serve(plan, trace, fill=fill_from(tiny.tables), ingress_delay_s=ingress_delay_s)
    trace = found.trace  # when clients of a closed loop begin is a law's
    known = serve_by_rules(plan, trace, Prices(plan, trace, tiny.tables), ingress_delay_s)
    check_requests(found, tabulate(known))
    for pool in known:
        check_gaps(found.pools[pool.name].ranks, pool)
        steps = found.steps_of(pool.name)
        for number, replica in enumerate(pool.replicas):
            check_steps(steps[steps["replica"] == number], replica.steps)


def check_requests(found, known):
    own = found.requests_table()[list(known)]
    own["outcome"] = own["outcome"].astype(str)
    pd.testing.assert_frame_equal(own, known, check_dtype=False, check_exact=True)


def check_steps(rows, steps):
    """A row of the log stands for a run of steps: as many as it says, which are alike. One that
    nobody needs, formed before the last request ended, may be there or not.
    """
    steps = pd.DataFrame([vars(step) for step in steps])
    if len(steps) and not steps.iloc[-1][EMITTED].any():
        steps = steps.iloc[:-1]
    if len(rows) and not rows.iloc[-1][EMITTED].any():
        rows = rows.iloc[:-1]
    assert rows["num_steps"].sum() == len(steps)
    if not len(steps):
        return
    first = np.cumsum(rows["num_steps"].to_numpy()) - rows["num_steps"].to_numpy()
    last = first + rows["num_steps"].to_numpy() - 1
    for column in ADDED:
        found = np.add.reduceat(steps[column].to_numpy(), first)
        np.testing.assert_array_equal(rows[column], found, column)
    steps["limited_by"] = steps["limited_by"].map(ADMISSION_LIMITS.index)
    for column in ALIKE:
        found = np.repeat(rows[column].to_numpy(), rows["num_steps"])
        np.testing.assert_array_equal(found, steps[column], column)
    start_s, end_s = steps["start_s"].to_numpy(), (steps["start_s"] + steps["duration_s"])
    np.testing.assert_array_equal(rows["start_s"], start_s[first])
    np.testing.assert_allclose(
        rows["start_s"] + rows["duration_s"], end_s.to_numpy()[last], rtol=1e-9
    )
    np.testing.assert_allclose(rows["kv_used"], steps["kv_used"].to_numpy()[last], rtol=1e-12)


def check_gaps(ranks, pool):
    counts = np.zeros(NUM_GAP_BINS, dtype=np.int64)
    for gap_s in itertools.chain(*(replica.gaps_s for replica in pool.replicas)):
        decades = math.log10(max(gap_s, SHORTEST_GAP_S) / SHORTEST_GAP_S)
        counts[min(int(decades * GAP_BINS_PER_DECADE), NUM_GAP_BINS - 1)] += 1
    np.testing.assert_array_equal(ranks.gap_counts.sum(axis=0), counts)


@cases(50, soak=1000)
@given(st.integers(0, 2**32 - 1))
def test_requests_steps_and_gaps_are_those_of_the_published_rules(tiny, seed):
    check_same(tiny, *draw_case(tiny, seed))


def test_the_reference_knows_nothing_of_the_engine():
    """A reference that shared the engine's code would prove nothing."""
    files = sorted(REFERENCE.glob("*.py"))
    assert len(files) > 5
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                names = [
                    alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")
                ]
            assert not [name for name in names if name.startswith("simulator.engine")], path.name
