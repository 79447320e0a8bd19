"""A step has one price: the table that compiled code reads and the analytical one that plans go by
are held to the program of operations that ranks execute, on deployments drawn at random.
"""

from copy import deepcopy

import numpy as np
import pytest

from simulator.engine import timeline
from simulator.engine.by_ranks import ByRanks
from simulator.engine.loop_state import LoopState
from simulator.engine.state import start_ranks, start_requests
from simulator.engine.step_log import LOG_COLUMNS
from simulator.engine.table import start_table
from simulator.engine.timeline import run_plan
from simulator.planner.analytical import Curve
from simulator.planner.crossover import make_fixed_traffic
from simulator.step.mixes import single_mix
from simulator.step.prices import Prices
from simulator.workload.traces import RequestTrace
from tests.cases import seeds
from tests.tables import price_filling

pytestmark = pytest.mark.shipped_draws

PRUNED_EXPERTS = {"kind": "two_four", "blocks": "experts"}
SPLITS = [
    ("dense", {"tp": 4}),
    ("dense", {"pp": 2, "tp": 2}),
    ("dense", {"pruning": {"kind": "two_four"}, "weight_dtype": "bf16", "tp": 2}),
    ("dense", {"attention_dp": 2}),
    ("moe", {"attention_dp": 4, "ep": 4}),
    ("moe", {"tp": 4}),
    ("moe", {"tp": 2, "attention_dp": 2, "ep": 4}),
    ("moe", {"attention_dp": 4, "ep": 4, "overlap": "two_batch"}),
    ("moe", {"attention_dp": 2, "ep": 2, "pp": 2}),
    ("latent-moe", {"attention_dp": 4, "ep": 4}),
    ("sliding-moe", {"tp": 2, "ep": 2}),
    ("compressed-moe", {"attention_dp": 2, "ep": 2}),
    ("state-moe", {"tp": 2}),
    ("one-expert", {"tp": 2}),
    ("moe", {"attention_dp": 4, "ep": 4, "overflow": {"kind": "capacity", "factor": 1.0}}),
    ("moe", {"tp": 2, "pruning": PRUNED_EXPERTS, "weight_dtype": "bf16"}),
    ("moe", {"attention_dp": 4, "ep": 4, "reduction": {"kind": "merge", "num_experts": 12}}),
    ("dense", {"pp": 2, "pruning": {"kind": "two_four"}, "weight_dtype": "bf16"}),
]
POOLS = {"prefill": {"parallel": {"tp": 2}, "replicas": 1}}
DRAFTS = {"speculation": {"kind": "module", "tokens": 3, "accepted": 0.7}}
DRAFTING = [
    ("dense", {"tp": 2, **DRAFTS}),
    ("sliding-dense", {"attention_dp": 2, **DRAFTS}),
    ("dense", {"pruning": {"kind": "two_four"}, "weight_dtype": "bf16", **DRAFTS}),
    ("latent-moe", {"attention_dp": 4, "ep": 4, **DRAFTS}),
    ("moe", {"tp": 2, "attention_dp": 2, "ep": 4, **DRAFTS, **POOLS}),
]
"""Passes that draft have curves of their own (:mod:`tests.laws.test_drafts`)."""
EVERY = [*SPLITS, *DRAFTING]


def draw_plan(tiny, seed):
    rng = np.random.default_rng(seed)
    name, split = EVERY[seed % len(EVERY)]
    keys = dict(split)
    keys.setdefault("engine", str(rng.choice(["vllm", "sglang", "trtllm"])))
    keys["scheduling"] = {
        "kind": "chunked",
        "token_budget": int(rng.choice([128, 512])),
        "max_sequences": int(rng.choice([8, 32])),
    }
    if keys.get("pp", 1) == 1 and rng.random() < 0.3 and "overlap" not in keys:
        keys |= POOLS
    return tiny.plan(name, seed=1, **keys)


def price_both(monkeypatch, plan, trace):
    """Of every step of a run by ranks: what the table says, and what the ranks took."""
    prices = []
    read_batches = timeline.read_batches

    class Both(ByRanks):
        def __init__(self, *args):
            super().__init__(*args)
            self.tables = {}

        def take_step(self, env, replica, number, formed, row, own, *rest):
            (state, batches), known = formed, own or self.pool.prices
            if known not in self.tables:
                self.tables[known] = start_table(single_mix(known))
            asked = self.tables[known], known, self.stream
            table_s = price_filling(*asked, *state, np.zeros(len(LOG_COLUMNS)))
            taken = yield from super().take_step(env, replica, number, batches, row, own, *rest)
            prices.append((table_s, row[1]))
            return taken

    def read(*state):
        """Of a copy, since the next step may be formed ahead, in the same rows."""
        return deepcopy(state), read_batches(*state)

    class Apart(LoopState):
        """Caches have links of their own: a step that shares some takes longer than its price."""

        def __init__(self, *state):
            super().__init__(*state[:-1], False)

    with monkeypatch.context() as patch:
        patch.setattr(timeline, "ByRanks", Both)
        patch.setattr(timeline, "LoopState", Apart)
        patch.setattr(timeline, "read_batches", read)
        run_plan(plan, trace, "rank")
    return np.array(prices).T


@seeds(0, len(EVERY))
def test_the_table_is_what_ranks_take_on_the_same_batches(tiny, monkeypatch, seed):
    plan = draw_plan(tiny, seed)
    trace = tiny.trace(24, 80.0, longest_input=400, longest_output=12, seed=seed)
    by_table, by_ranks = price_both(monkeypatch, plan, trace)
    if plan.placement.experts is None:
        np.testing.assert_allclose(by_table, by_ranks, rtol=1e-9)
        return
    # Steps differ in which experts their few tokens choose; the table has their mean.
    assert by_table.sum() == pytest.approx(by_ranks.sum(), rel=0.015)
    assert np.quantile(np.abs(by_table / by_ranks - 1), 0.9) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "split"),
    [
        ("qwen1.5-moe-a2.7b", {"attention_dp": 4, "ep": 4}),
        ("gpt-oss-20b", {"attention_dp": 2, "ep": 2}),
    ],
)
def test_shipped_mixtures_agree_in_the_mean_and_step_by_step(tiny, monkeypatch, model, split):
    """Within 2 % in the mean over more than 200 steps, and 5 % in nine steps of ten."""
    plan = tiny.plan(model, **split)
    trace = tiny.trace(60, 25.0, longest_input=1500, longest_output=80, seed=3)
    by_table, by_ranks = price_both(monkeypatch, plan, trace)
    assert len(by_table) >= 200
    assert by_table.sum() == pytest.approx(by_ranks.sum(), rel=0.02)
    assert np.quantile(np.abs(by_table / by_ranks - 1), 0.9) < 0.05


def price_decodes(plan, table, prices, count, context):
    """By the table, a step that decodes for ``count`` sequences of each rank."""
    dp, pp = plan.placement.layout.attention_dp, plan.placement.layout.pp
    total = count * dp * pp
    trace = RequestTrace(np.zeros(total), np.full(total, context), np.full(total, 2), "")
    requests = start_requests(trace, with_prefixes=False)
    ranks = start_ranks(dp * pp, count, 1 << 30, 0, pp)
    ranks.running[:] = np.arange(total).reshape(dp * pp, count)
    ranks.each.num_running[:], ranks.chunk[:] = count, 1
    requests.each.computed[:], requests.each.generated[:] = context, 1
    row = np.zeros(len(LOG_COLUMNS))
    return price_filling(table, prices, "steps", requests, ranks, row)


@pytest.mark.parametrize("place", range(len(SPLITS)))
def test_the_closed_form_is_the_table_on_even_batches(tiny, place):
    name, split = SPLITS[place]
    plan, traffic = tiny.plan(name, **split), make_fixed_traffic(512, 256)
    curve, prices = Curve(plan, traffic, 2048), Prices(plan.placement, 2048)
    table = start_table(single_mix(prices))
    context = int(traffic.contexts.mean())
    # Of two halves that hide behind each other it knows the longer alone.
    within = 0.1 if plan.spec.overlap == "two_batch" else 0.01
    for count in (1, 4, 16, 64, 256):
        closed = curve.step_s(np.array([float(count)]), np.zeros(1), 512.0)[0]
        assert closed == pytest.approx(
            price_decodes(plan, table, prices, count, context), rel=within
        )


@pytest.mark.parametrize("sequences", [64, 512, 513, 2048])
def test_the_engines_own_time_grows_no_faster_than_measured_beyond_what_was_measured(
    tiny, sequences
):
    prices = Prices(tiny.plan("dense").placement, 4096)
    engine = prices.placement.calibration.engine
    one_s, more_s = prices.overheads_s(np.array([sequences, sequences + 1.0]), np.zeros(2))
    grown_s = one_s - engine.step_s
    assert grown_s <= sequences * engine.sequence_s * (1 + 1e-12)
    assert more_s > one_s
    if sequences > 512:
        most_s = 512 * engine.sequence_s + (sequences - 512) * 2e-6
        assert grown_s == pytest.approx(most_s, rel=1e-12)
