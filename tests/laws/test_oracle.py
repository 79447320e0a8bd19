"""Requests are served as the engines' own schedulers served them: ``python -m tests.oracle`` on all
of the answers, and a few that ship (vLLM 0.32.0, Apache-2.0: its ``Scheduler`` and
``AsyncScheduler`` with their KV cache manager, run without a model at a fixed price of a step).
"""

from pathlib import Path

import numpy as np
import pytest

from tests import oracle
from tests.reference.outcomes import tabulate
from tests.reference.serve import serve_by_rules
from tests.shared import shared_file

SAMPLES = sorted((Path(oracle.__file__).parent / "oracle_samples").glob("*.gz"))


def price(_, parts_d):
    """Seconds of a step, as the engines' schedulers were given it."""
    tokens = sum(part.num_tokens for parts in parts_d for part in parts)
    return oracle.STEP_S + oracle.TOKEN_S * tokens


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_every_request_of_the_samples_gets_its_tokens_when_it_did(path):
    for case in oracle.read_cases(path):
        assert oracle.serve_case(case).first == "", (case.where, case.setting)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_the_slow_reference_serves_the_samples_as_they_were_served(path):
    for case in oracle.read_cases(path):
        pools = serve_by_rules(case.plan, case.trace, price, oracle.find_delay(case))
        rows = tabulate(pools)
        for name, known in case.times.items():
            np.testing.assert_allclose(rows[name], known, rtol=0, atol=oracle.TOLERANCE_S)


def test_without_the_step_in_flight_hardly_a_request_is_served_as_it_was():
    """The samples are of traces in which the rule matters."""
    cases = [case for path in SAMPLES for case in oracle.read_cases(path)]
    found = [
        oracle.serve_case(oracle.work_ahead(case, 0))
        for case in cases
        if case.plan.serving.rules.steps_ahead
    ]
    assert sum(one.num_equal for one in found) < 0.2 * sum(one.num_requests for one in found)


@pytest.mark.parametrize("name", ["vllm-0.32.0.jsonl.gz"])
def test_at_least_98_of_100_traces_are_served_as_the_engine_did(name, capsys):
    assert oracle.main([str(shared_file(f"oracles/{name}"))]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("136 of 136 traces equal")
