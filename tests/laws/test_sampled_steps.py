"""Which steps the tables of ranks, traffic and spans show: the run's own where ranks are
simulated.
"""

import json

import numpy as np
import pytest

from simulator.commands.run import run as run_scenario
from simulator.engine.by_ranks import ByRanks
from tests.small_scenario import small_scenario

SPLIT = {
    "attention_dp": 4,
    "ep": 4,
    "scheduling": {"kind": "chunked", "token_budget": 64, "max_sequences": 64},
}
"""With a table of few entries, which is quickly filled."""
DETAILED = ["rank", "message"]


@pytest.fixture
def formed(monkeypatch):
    """Every step that a run forms: by replica, its batches in order."""
    found = {}
    take_step = ByRanks.take_step

    def keep(self, env, replica, number, batches, *rest):
        found.setdefault(replica, []).append(batches)
        return take_step(self, env, replica, number, batches, *rest)

    monkeypatch.setattr(ByRanks, "take_step", keep)
    return found


def log_row(record, step):
    """The row of the log that a sampled step names."""
    own = record.steps[record.steps["replica"] == step.replica]
    return own.iloc[step.number]


@pytest.mark.parametrize("fidelity", DETAILED)
@pytest.mark.parametrize(
    "keys", [SPLIT, {**SPLIT, "overlap": "two_batch"}, {"tp": 2, "replicas": 2}]
)
def test_a_shown_step_is_one_that_the_run_took(tiny, formed, fidelity, keys):
    record = tiny.run(tiny.plan("moe", **keys), tiny.trace(12, 2000.0), fidelity)
    assert set(record.sampled_steps) == {"decode", "prefill"}
    for phase, step in record.sampled_steps.items():
        assert step.source == "run"
        (batch,) = formed[step.replica][step.number]
        together = np.add(step.prefill_tokens, step.decode_tokens)
        assert together.tolist() == batch.tokens_d.tolist()
        row = log_row(record, step)
        assert (row["start_s"], row["duration_s"]) == (step.start_s, step.duration_s)
        assert row["prefill_tokens"] == sum(step.prefill_tokens)
        assert row["decode_tokens"] == sum(step.decode_tokens)
        spans = record.spans[record.spans["phase"] == phase]
        by_rank_s = spans.groupby("rank")["duration_s"].sum()
        assert by_rank_s.to_numpy() == pytest.approx(step.duration_s, rel=0, abs=1e-9)


@pytest.mark.parametrize("fidelity", ["step", *DETAILED])
@pytest.mark.parametrize("overlap", ["none", "two_batch"])
def test_its_tables_are_of_that_step(tiny, fidelity, overlap):
    """Prompt tokens and decodes of both halves, where a step runs in halves."""
    plan = tiny.plan("moe", overlap=overlap, **SPLIT)
    record = tiny.run(plan, tiny.trace(12, 2000.0), fidelity)
    for phase, step in record.sampled_steps.items():
        tokens = sum(step.prefill_tokens) + sum(step.decode_tokens)
        ranks = record.ranks[record.ranks["phase"] == phase]
        pairs = ranks.groupby("layer")["num_pairs"].sum()
        assert (pairs == tokens * plan.placement.model.moe.top_k).all()
        in_spans = record.spans[
            (record.spans["phase"] == phase) & (record.spans["name"] == "experts")
        ]
        assert in_spans["duration_s"].sum() == pytest.approx(ranks["experts_s"].sum(), rel=1e-9)


def test_a_prompt_alone_is_shown_on_the_one_rank_that_had_it(tiny):
    """An even spread over ranks would hide who waits for whom."""
    plan = tiny.plan("moe", **SPLIT)
    trace = tiny.trace(4, 1.0, longest_input=200, longest_output=4)
    by_fidelity = {f: tiny.run(plan, trace, f).sampled_steps["prefill"] for f in ("rank", "step")}
    assert np.count_nonzero(by_fidelity["rank"].prefill_tokens) == 1
    assert np.count_nonzero(by_fidelity["step"].prefill_tokens) == 4


def test_a_step_without_known_ranks_is_representative(tiny):
    record = tiny.run(tiny.plan("moe", **SPLIT), tiny.trace(12, 2000.0))
    steps = record.steps[["prefill_tokens", "decodes", "num_steps"]]
    taken = {(p, d // count) for p, d, count in steps.itertuples(index=False)}
    for phase, step in record.sampled_steps.items():
        assert (sum(step.prefill_tokens), sum(step.decode_tokens)) in taken
        assert (sum(step.prefill_tokens) > 0) == (phase == "prefill")
        assert step.source == "representative"
        assert step.number is step.replica is step.start_s is step.duration_s is None
        assert np.ptp(step.prefill_tokens) <= 1
        assert np.ptp(step.decode_tokens) <= 1


def test_of_a_pipeline_the_fullest_batch_is_shown(tiny, formed):
    record = tiny.run(tiny.plan("moe", pp=2, **SPLIT), tiny.trace(12, 2000.0), "rank")
    for step in record.sampled_steps.values():
        batches = formed[step.replica][step.number]
        together = np.add(step.prefill_tokens, step.decode_tokens).tolist()
        assert together in [batch.tokens_d.tolist() for batch in batches]
        assert sum(together) == max(int(batch.tokens_d.sum()) for batch in batches)
        assert step.num_batches == 2


def test_of_pools_each_shows_a_step_of_its_own(tiny):
    keys = {"prefill": {"parallel": {"attention_dp": 2, "ep": 2}, "replicas": 2}, "replicas": 2}
    record = tiny.run(tiny.plan("moe", **keys, **SPLIT), tiny.trace(12, 2000.0), "rank")
    pool_of = record.steps.groupby("replica")["pool"].first()
    for phase, step in record.sampled_steps.items():
        assert pool_of[step.replica] == phase
        row = log_row(record, step)
        assert (row["start_s"], row["duration_s"]) == (step.start_s, step.duration_s)
        assert len(step.decode_tokens) == {"decode": 4, "prefill": 2}[phase]


@pytest.mark.parametrize("fidelity", ["step", "rank"])
def test_run_json_says_which_steps_the_tables_are_of(tmp_path, fidelity):
    path = tmp_path / "small.toml"
    path.write_text(small_scenario("mixtral-8x7b", 4))
    results = run_scenario(path, fidelity=fidelity)
    shown = json.loads(json.dumps(results.run, allow_nan=False))["deployments"]["own"][
        "shown_steps"
    ]
    assert set(shown) == set(results.ranks["phase"]) == set(results.spans["phase"])
    steps = results.steps["own"].set_index("start_s")
    for step in shown.values():
        assert len(step["prefill_tokens"]) == len(step["decode_tokens"]) == 4
        assert 1 < step["uniform_imbalance"]["mean"] < 4
        if fidelity == "rank":
            assert steps.loc[step["start_s"], "duration_s"] == step["duration_s"]
        else:
            assert (step["source"], step["start_s"]) == ("representative", None)
