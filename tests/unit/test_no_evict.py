"""Reserving the whole output at admission: fewer requests run, and none is ever preempted."""

from dataclasses import replace

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.commands.check import check
from simulator.commands.run import run as run_scenario
from simulator.engine.timeline import run_plan
from simulator.workload.traces import take_requests
from tests.parts import freeze
from tests.small_scenario import small_scenario


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_cache_may_have_a_share_of_what_weights_leave(share):
    table = {"name": "tested", "model": "llama-3.1-8b", "cluster": "l40s-1"}
    table |= {"scheduling": {"kind": "no_evict"}, "free_memory_fraction": share}
    capacity, driver_bytes = freeze(table).serving.capacity, 0.55 * 2**30
    used = driver_bytes + capacity.weights_bytes + capacity.step_bytes
    assert capacity.kv_bytes == pytest.approx(share * (capacity.total_bytes - used))
    parts = capacity.weights_bytes + capacity.kv_bytes + capacity.reserve_bytes
    assert parts == pytest.approx(capacity.total_bytes)


@pytest.mark.parametrize("kind", ["one replica", "two", "pools"])
@pytest.mark.parametrize("is_closed", [False, True])
def test_longer_prompts_than_a_step_takes_are_refused_and_nobody_waits_for_them(
    tiny, kind, is_closed
):
    """As TensorRT-LLM refuses them: "should not exceed max_num_tokens" (#9277)."""
    trace = tiny.trace(60, 100.0, longest_input=600, longest_output=20)
    if is_closed:
        trace = replace(trace, has_arrivals=False, concurrency=4)

    def serve_by(is_chunked, trace):
        rules = {"kind": "no_evict", "token_budget": 256, "chunked_prompts": is_chunked}
        keys = {"scheduling": rules, "replicas": 2 if kind == "two" else 1}
        if kind == "pools":
            keys["prefill"] = {"replicas": 1, "scheduling": rules}
        return run_plan(tiny.plan("dense", **keys), trace).requests

    found = [serve_by(is_chunked, trace) for is_chunked in (False, True)]
    is_long = trace.num_input > 256
    assert 10 < is_long.sum() < 50
    outcome = found[False]["outcome"]
    assert (outcome[is_long] == "refused").all()
    assert (outcome[~is_long] == "finished").all()
    assert (found[True]["outcome"] == "finished").all()
    if is_closed:
        assert found[False]["arrival_s"].notna().all()
    else:
        alone = serve_by(False, take_requests(trace, np.flatnonzero(~is_long)))
        kept = found[False][~is_long].reset_index(drop=True)
        for name in ("first_token_s", "finish_s"):
            np.testing.assert_allclose(kept[name], alone[name], rtol=1e-12)


def test_refused_requests_are_foretold_counted_and_miss_every_target(tmp_path):
    (tmp_path / "log.csv").write_text(
        "arrival_s,num_input,num_output\n"
        + "".join(f"{0.1 * i},{300 if i % 4 == 0 else 100},4\n" for i in range(20))
    )
    text = small_scenario("llama-3.1-8b", 1)
    text = text[text.index("[[deployments]]") :].replace('"chunked"', '"no_evict"')
    path = tmp_path / "scenario.toml"
    path.write_text('[workload]\nrequests = "log.csv"\nslo = { e2e_s = 60.0 }\n' + text)
    (note,) = (note for note in check(str(path), []).notes if "refuses" in note)
    assert "5 of 20 requests" in note
    results = run_scenario(path)
    row = results.summary.iloc[0]
    assert (row["num_requests"], row["num_refused"], row["num_lost"]) == (15, 5, 0)
    assert row["slo_attainment"] == 0.75
    path.write_text(path.read_text().replace("kind = ", "chunked_prompts = true, kind = "))
    assert not any("refuses" in note for note in check(str(path), []).notes)
    assert run_scenario(path).summary.iloc[0]["num_refused"] == 0


def test_room_is_kept_for_all_tokens_that_requests_may_ask_for(tiny):
    """As TensorRT-LLM does, whatever the true lengths are: fewer run at once, and none is
    preempted. A limit beyond the cache is what an empty one takes.
    """
    trace = tiny.trace(60, 500.0, longest_input=200, longest_output=40)
    rules = {"kind": "no_evict", "token_budget": 2048}

    def serve_with(limit):
        own = {} if limit is None else {"max_tokens": np.maximum(limit, trace.num_output)}
        plan = tiny.with_blocks(tiny.plan("dense", scheduling=rules), 256)
        return run_plan(plan, replace(trace, attributes=own))

    told = serve_with(None)
    same = serve_with(trace.num_output)
    np.testing.assert_array_equal(told.requests["finish_s"], same.requests["finish_s"])
    most = {}
    for limit in (200, 1000, 1 << 20):
        found = serve_with(limit)
        assert (found.requests["outcome"] == "finished").all()
        assert found.requests["num_preemptions"].sum() == 0
        most[limit] = found.steps["running"].max()
        mean_s = (found.requests["first_token_s"] - found.requests["arrival_s"]).mean()
        assert mean_s > (told.requests["first_token_s"] - told.requests["arrival_s"]).mean()
    assert told.steps["running"].max() > most[200] > most[1000] > most[1 << 20] == 1


def test_a_workload_says_max_tokens_or_check_says_that_they_are_assumed(tmp_path):
    path = tmp_path / "scenario.toml"
    text = small_scenario("llama-3.1-8b", 1).replace('"chunked"', '"no_evict"')

    def notes_with(lines):
        path.write_text(text.replace("num_requests = 5", f"num_requests = 5\n{lines}"))
        return [note for note in check(str(path), []).notes if "max_tokens" in note]

    (note,) = notes_with("")
    assert "are assumed: own admit by them" in note
    assert notes_with("max_tokens = 64") == []
    with pytest.raises(UserError, match="outputs have up to 4 tokens"):
        notes_with("max_tokens = 3")
    text = text.replace('"no_evict"', '"chunked"')
    assert notes_with("") == [], "nobody reads them"
