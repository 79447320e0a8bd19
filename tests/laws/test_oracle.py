"""Requests are served as the engines' own schedulers served them: ``python -m tests.oracle`` on all
of the answers, and a few that ship (both Apache-2.0, run without a model at a fixed price of a
step: vLLM 0.32.0's ``Scheduler`` and ``AsyncScheduler`` with their KV cache manager, SGLang
0.5.23's ``Scheduler`` with its tree).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.base.errors import UserError
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


def test_an_engine_that_does_not_know_when_outputs_end_computes_a_token_more():
    [case] = [
        one
        for path in SAMPLES
        for one in oracle.read_cases(path)
        if "max_tokens" in one.trace.attributes
    ]
    knows = case._replace(trace=replace(case.trace, attributes={}))
    served = [oracle.serve_case(one) for one in (case, knows)]
    assert served[0].num_equal == served[0].num_requests
    assert served[1].num_equal < 0.2 * served[1].num_requests


@pytest.mark.parametrize("limits", [[0, 5], [np.nan, 5.0], [np.inf, 5.0], ["many", "few"]])
def test_limits_on_outputs_that_are_none_are_refused(tiny, limits):
    trace = replace(tiny.trace(2), attributes={"max_tokens": np.array(limits)})
    with pytest.raises(UserError, match=r"max_tokens .* fill it, or leave it out"):
        tiny.serve(tiny.plan("dense", num_layers=2), trace)


@pytest.mark.parametrize(("engine", "count"), [("vllm-0.32.0", 136), ("sglang-0.5.23", 346)])
def test_every_trace_is_served_as_the_engine_did(engine, count, capsys):
    assert oracle.main([str(shared_file(f"oracles/{engine}.jsonl.gz"))]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"{count} of {count} traces equal")
