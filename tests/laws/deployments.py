"""Deployments and traces drawn by seed, for tests that hold two ways of serving to each other."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd

from simulator.engine import timeline
from simulator.engine.by_ranks import ByRanks
from simulator.engine.step_log import LOG_COLUMNS
from simulator.results.phases import STEP_PHASES
from tests.parts import change_plan
from tests.tables import price_filling

SPLITS = [
    ("dense", {"tp": 2}),
    ("moe", {"attention_dp": 4, "ep": 4}),
    ("sliding-moe", {"tp": 2, "ep": 2}),
    ("latent-moe", {"attention_dp": 2, "ep": 2}),
    ("state-moe", {"tp": 2}),
    ("dense", {"pp": 2}),
    ("compressed-moe", {"attention_dp": 2}),
]
SCHEDULERS = [
    {"kind": "chunked"},
    {"kind": "chunked", "reserve_full_isl": False, "watermark": 0.01},
    {"kind": "prefill_first"},
    {"kind": "no_evict", "chunked_prompts": True},
]
STEP_PARTS = [f"{phase}_s" for phase in STEP_PHASES]
BALANCERS = ["least_outstanding", "least_tokens", "prefix_aware", "random", "round_robin"]


def draw_deployment(tiny, seed):
    """A plan and a trace: any split, scheduler, balancer and number of replicas, one pool or two,
    open or closed loops, caches that are large or hardly hold two sequences.
    """
    rng = np.random.default_rng(seed)
    name, split = SPLITS[rng.integers(len(SPLITS))]
    scheduling = SCHEDULERS[rng.integers(len(SCHEDULERS))] | {
        "token_budget": int(rng.choice([64, 256, 1024])),
        "max_sequences": int(rng.choice([4, 16, 64])),
    }
    keys = {
        "num_layers": 2,
        "replicas": int(rng.choice([1, 2, 5])),
        "balancing": {"kind": str(rng.choice(BALANCERS))},
        "scheduling": scheduling,
        "cluster": "h100-sxm-128",
    }
    if rng.random() < 0.3 and "pp" not in split:
        keys["engine"] = str(rng.choice(["vllm", "sglang"]))
        keys["prefill"] = {"parallel": {"tp": 2}, "replicas": int(rng.choice([1, 3]))}
        keys["prefill"] |= {"layerwise": bool(rng.random() < 0.5), "scheduling": scheduling}
    more = np.random.default_rng([seed, 1])  # what was drawn before there were orders stays
    by_priority = more.random() < 0.3
    if by_priority:
        keys["order"] = {"kind": "priority"}
        keys["order"] |= {"ageing_s": 0.05} if more.random() < 0.5 else {}
    scheduling["steps_ahead"] = int(np.random.default_rng([seed, 2]).integers(2))
    plan = tiny.plan(name, seed=1, **split, **keys)
    trace = tiny.trace(
        int(rng.choice([1, 30, 90])),
        float(rng.choice([50.0, 400.0, 5000.0])),
        int(rng.choice([60, 700])),
        int(rng.choice([1, 8, 60])),
        seed=int(rng.integers(1000)),
        concurrency=None if rng.random() < 0.6 else int(rng.choice([1, 7, 40])),
    )
    if by_priority:
        priority = more.integers(more.integers(1, 5), size=trace.num_requests)
        trace = dataclasses.replace(trace, attributes={"priority": priority})
    if rng.random() < 0.3:  # many at one instant
        trace = dataclasses.replace(trace, arrival_s=np.round(trace.arrival_s, 2))
    if rng.random() < 0.4:
        most = int((trace.num_input + trace.num_output).max())
        plan = shrink_cache(plan, most, float(rng.uniform(1.0, 3.0)))
    return plan, trace


def shrink_cache(plan, longest, times_longest):
    """The same plan with a KV cache of so many of its longest requests."""
    capacity = plan.serving.capacity
    blocks = int(capacity.blocks_for(longest) * times_longest) + 2
    smaller = dataclasses.replace(capacity, kv_bytes=blocks * capacity.block_bytes)
    prefill = plan.prefill and shrink_cache(plan.prefill, longest, times_longest)
    return change_plan(plan, capacity=smaller, prefill=prefill)


EQUAL = ["prefill_tokens", "running", "waiting", "limited_by"]
ADDED = [*STEP_PARTS, "read_bytes", "dropped_pairs", "decode_tokens", "decodes", "num_steps"]


def find_ends(served, name, replica):
    """When requests end at a replica."""
    pool = served.pools[name]
    return set(pool.requests.each.finish_s[pool.requests.each.replica == replica])


def join_rows(steps, ends_s):
    """Rows of single steps of one replica joined as the log does it: runs of at most 32 decode
    steps of as many sequences beside the same queue, up to one with which a request ends. The last
    step stays alone.
    """
    rows = steps.to_dict("records")
    joined, may_join = [], False
    for number, row in enumerate(rows):
        run = joined[-1] if joined and number < len(rows) - 1 else None
        if (
            run is not None
            and may_join
            and not row["prefill_tokens"]
            and all(run[column] == row[column] for column in EQUAL)
            and run["decodes"] == row["decodes"] * run["num_steps"]
            and run["num_steps"] < 32
        ):
            total_s = run["duration_s"] + row["duration_s"]
            run["load_imbalance"] = (
                run["load_imbalance"] * run["duration_s"]
                + row["load_imbalance"] * row["duration_s"]
            ) / total_s
            run["duration_s"] = row["start_s"] + row["duration_s"] - run["start_s"]
            run["kv_used"] = row["kv_used"]
            for column in ADDED:
                run[column] += row[column]
        else:
            joined.append(row)
        may_join = row["start_s"] + row["duration_s"] not in ends_s
    return pd.DataFrame(joined, columns=steps.columns).astype(float)


def check_same_events(compiled, simpy):
    """Two ways of serving are the same, but for last digits: SimPy adds up differences."""
    pd.testing.assert_frame_equal(
        compiled.requests_table(), simpy.requests_table(), rtol=1e-9, atol=1e-12
    )
    for name in compiled.pools:
        own = compiled.steps_of(name)
        for replica in range(compiled.pools[name].plan.serving.replicas):
            rows, steps = own[own["replica"] == replica], simpy.steps_of(name)
            steps = steps[steps["replica"] == replica]
            if rows["num_steps"].sum() == len(steps) + 1:
                # Formed ahead when nobody knew that all would end, it is cut off where ranks are.
                assert not rows[["prefill_tokens", "decode_tokens"]].iloc[-1].any()
                steps = pd.concat([steps, rows[-1:]])
            other = join_rows(steps, find_ends(simpy, name, replica))
            np.testing.assert_allclose(rows, other, rtol=1e-9, atol=1e-12)


def _keep_batches(requests, ranks):
    """The formed step as it is now, before another is formed."""
    kept = requests._replace(each=requests.each.copy())
    return kept, ranks._make(array.copy() for array in ranks)


def serve_by_events(monkeypatch, plan, trace, tables, ingress_delay_s=None, until=None):
    """Serve as the ``rank`` fidelity does, but let every step be one timeout of the price in one of
    ``tables``, and caches arrive when they are priced to.
    """

    class Priced(timeline.LoopState):
        def __init__(self, *state):
            super().__init__(*state[:-1], False)

    class ByTable(ByRanks):
        def __init__(self, *args):
            super().__init__(*args)
            self.taken = SimpleNamespace(add=lambda step: None)
            self.tables = {}

        def take_step(self, env, replica, number, batches, row, prices, _):
            prices = prices or self.pool.prices
            if prices not in self.tables:
                self.tables[prices] = tables.start(prices, self.stream)
            requests, ranks = batches
            priced, table = np.zeros(len(LOG_COLUMNS)), self.tables[prices]
            priced[1] = price_filling(table, prices, self.stream, requests, ranks, priced)
            priced[0] = row[0]
            priced[2:8] = row[2:8]
            row[:] = priced
            yield env.timeout(row[1])

    with monkeypatch.context() as patch:
        patch.setattr(timeline, "ByRanks", ByTable)
        patch.setattr(timeline, "LoopState", Priced)
        patch.setattr(timeline, "read_batches", _keep_batches)
        return timeline.serve(plan, trace, "rank", ingress_delay_s=ingress_delay_s, until=until)
