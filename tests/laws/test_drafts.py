"""Speculation: drafts change how many steps an output takes and what a step costs, and nothing
about which tokens come.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from simulator.commands.deployments import prepare_run
from simulator.config.model import load_model
from simulator.engine.pool import PoolState
from simulator.engine.timeline import run_plan, serve
from simulator.planner.analytical import Curve
from simulator.planner.screen import Judge
from simulator.planner.traffic import Traffic
from simulator.policies.speculation import Drafts
from simulator.scenario.jobs import load_scenario
from simulator.step.prices import Prices
from simulator.work.layout import Layout
from simulator.work.memory import Precision, cache_size, weight_bytes
from simulator.workload.traces import RequestTrace
from tests.cases import seeds
from tests.laws.deployments import check_same_events, draw_deployment, serve_by_events
from tests.parts import change_plan, freeze
from tests.single_steps import take_apart


def draw_drafting(tiny, seed):
    """Any deployment without a pipeline, with drafts of some tokens."""
    while True:
        plan, trace = draw_deployment(tiny, seed)
        if plan.placement.layout.pp == 1:
            break
        seed += 10_000
    rng = np.random.default_rng([seed, 11])
    accepted = tuple(rng.uniform(0, 1, int(rng.integers(1, 5))).round(2).tolist())
    module = (int(rng.integers(0, 3)), int(rng.choice([0, 512])), float(rng.uniform(0, 1e-3)))
    return change_plan(plan, drafts=Drafts(accepted, *module)), trace


def with_drafts(plan, *accepted, num_layers=0, vocab_size=0, launch_s=0.0):
    return change_plan(plan, drafts=Drafts(accepted, num_layers, vocab_size, launch_s))


@pytest.mark.parametrize(
    ("engine", "kind", "steps_ahead", "max_sequences"),
    [
        ("vllm@0.13.0", "module", 0, 1024),
        ("vllm@0.14.0", "module", 1, 1024),
        ("vllm@0.14.0", "ngram", 0, 1024),
        ("sglang@0.5.10", "module", 0, 12),
        ("sglang@0.5.11", "module", 1, 12),
        ("sglang@0.5.11", "ngram", 0, 12),
        ("trtllm@1.0.0", "module", 1, 2048),
    ],
)
def test_engines_work_ahead_with_drafts_as_their_releases_do(
    engine, kind, steps_ahead, max_sequences
):
    table = {"name": "x", "model": "deepseek-v2-lite", "cluster": "h200-sxm-8", "engine": engine}
    table["speculation"] = {"kind": kind, "accepted": 0.8}
    table["parallel"] = {"attention_dp": 4, "ep": 4}
    plan = freeze(table, 1)
    assert plan.steps_ahead == steps_ahead
    assert plan.serving.rules.max_sequences == max_sequences


@seeds(7000, 20)
def test_whatever_is_drafted_every_token_comes_once(tiny, seed):
    plan, trace = draw_drafting(tiny, seed)
    served = tiny.serve(plan, trace)
    pool = served.pools.get("decode") or served.pools["both"]
    assert (pool.requests.each.generated == trace.num_output).all() or "decode" in served.pools
    assert (served.requests_table()["outcome"] == "finished").all()
    gaps = sum(own.ranks.gap_counts.sum() for own in served.pools.values())
    steps = served.steps_of("decode" if "decode" in served.pools else "both")
    tokens, decodes = steps["decode_tokens"], steps["decodes"]
    # A step formed ahead may hold a request that its draft has ended, once each.
    most_in_vain = (trace.num_output > 1).sum() if plan.steps_ahead else 0
    assert decodes.sum() - most_in_vain <= gaps <= (trace.num_output - 1).sum()
    if not served.requests_table()["num_preemptions"].any():
        assert gaps <= decodes.sum(), "one a delivery, but the first"
    assert (tokens >= decodes).all() or most_in_vain
    assert (tokens <= decodes * (1 + plan.placement.drafts.num_tokens)).all()
    for own in served.pools.values():
        caches = own.ranks.caches
        free = (
            caches.free_blocks + caches.num_full + caches.num_evictable * own.limits.prefix_blocks
        )
        assert (free == caches.capacity_blocks).all()


@seeds(7100, 10)
def test_drafts_do_the_same_at_every_fidelity(tiny, monkeypatch, seed):
    plan, trace = draw_drafting(tiny, seed)
    compiled = tiny.serve(plan, trace)
    check_same_events(compiled, serve_by_events(monkeypatch, plan, trace, tiny.tables))


def one(num_output):
    return RequestTrace(np.zeros(1), np.array([64]), np.array([num_output]), provenance="one")


def single_steps(plan, trace):
    return take_apart(serve(plan, trace).steps_of("both").assign(pool="both"))


@pytest.mark.parametrize("vocab_size", [0, 512])
def test_each_pass_takes_a_layer_the_output_matrix_and_its_launches(tiny, vocab_size):
    """A layer is what a model of two takes more than one of one; the first pass is over the
    prompt's 64 tokens, each further one over one.
    """
    launch_s = 3e-4
    (one_s, one_decode_s), (two_s, two_decode_s) = (
        single_steps(tiny.plan("dense", num_layers=number), one(2))["duration_s"]
        for number in (1, 2)
    )
    plan = tiny.plan("dense", num_layers=2)
    engine, compute = plan.placement.calibration.engine, plan.placement.compute
    hidden, vocabulary = 1024, vocab_size or 8192

    def matrix_s(tokens, inner, outer):
        return float(compute.gemm_s(np.array([tokens]), inner, outer, "bf16", 1)[0])

    head_s = one_s - (two_s - one_s) - engine.step_s - engine.sequence_s
    assert head_s == pytest.approx(matrix_s(1, hidden, 8192))
    head_s = matrix_s(1, hidden, vocabulary)
    first_s = two_s - one_s + matrix_s(64, 2 * hidden, hidden) + head_s + launch_s
    further_s = two_decode_s - one_decode_s + matrix_s(1, 2 * hidden, hidden) + head_s + launch_s
    for drafted in (1, 2, 5):
        drafting = with_drafts(
            plan, *[0.5] * drafted, num_layers=1, vocab_size=vocab_size, launch_s=launch_s
        )
        prompt_s = single_steps(drafting, one(2))["duration_s"].iloc[0]
        assert prompt_s - two_s == pytest.approx(first_s + (drafted - 1) * further_s)


def test_one_acceptance_is_a_list_of_equal_ones(tiny):
    number, listed = (
        tiny.plan("dense", speculation={"kind": "module", **keys}).placement.drafts
        for keys in ({"tokens": 3, "accepted": 0.6}, {"accepted": [0.6, 0.6, 0.6]})
    )
    assert number == listed


def test_a_request_alone_is_as_much_faster_as_was_derived(tiny):
    """Leviathan et al., theorem 3.8: (1 - a^(g + 1)) / ((1 - a) (g c + 1)) times, where a step of
    some tokens more takes no longer, which reading weights makes nearly so.
    """
    accepted, drafted = 0.6, 3
    plan, trace = tiny.plan("dense", tp=2), one(4000)
    looked_up = with_drafts(plan, *[accepted] * drafted)
    drafting = with_drafts(plan, *[accepted] * drafted, num_layers=1, launch_s=1e-4)
    taken = [serve(own, trace).steps_of("both") for own in (plan, looked_up, drafting)]
    slow, verifying, fast = (float(own["duration_s"].sum()) for own in taken)
    per_step = [float(own["duration_s"].sum() / own["num_steps"].sum()) for own in taken]
    assert 1.0 <= per_step[1] / per_step[0] < 1.2
    cost = (per_step[2] / per_step[1] - 1) / drafted
    assert cost > 1e-4 / per_step[1]
    expected = (1 - accepted ** (drafted + 1)) / ((1 - accepted) * (drafted * cost + 1))
    assert slow / fast == pytest.approx(expected * per_step[0] / per_step[1], rel=0.05)
    assert slow > verifying


def test_only_the_pool_that_decodes_drafts(tiny):
    speculation = {"kind": "module", "tokens": 2, "accepted": 0.8}
    pools = tiny.plan("dense", tp=2, speculation=speculation, prefill={"parallel": {"tp": 2}})
    assert pools.placement.drafts.accepted == (0.8, 0.8)
    assert pools.prefill.placement.drafts.num_tokens == 0


def test_a_module_has_weights_and_a_cache():
    """DeepSeek-V3's own parameters of its module are 11.5B (README_WEIGHTS.md of its repository),
    with 576 numbers of a token in the cache; an output matrix of its own comes on top.
    """
    model, whole = load_model("deepseek-v3", "test"), Layout(1, 1, 1)
    precision = Precision("bf16", "bf16", "bf16", "bf16", "bf16")

    def module_bytes(drafts):
        without = weight_bytes(model, whole, precision)
        return weight_bytes(model, whole, precision, drafts=drafts) - without

    own = module_bytes(Drafts((0.85,), 1))
    assert own / 2 == pytest.approx(11.5e9, rel=0.01)
    assert module_bytes(Drafts((0.85,))) == 0
    headed = module_bytes(Drafts((0.85,), 1, 32_000))
    assert headed - own == pytest.approx(32_000 * model.hidden_size * 2)
    caches = [cache_size(model, whole, precision, Drafts((0.85,), n)) for n in (0, 1)]
    assert caches[1].bytes_per_token - caches[0].bytes_per_token == 576 * 2


def test_memory_of_a_deployment_holds_its_module(tiny):
    speculation = {"kind": "module", "accepted": 0.8}
    without, drafting = (
        tiny.plan("moe", attention_dp=4, ep=4, **keys).serving.capacity
        for keys in ({}, {"speculation": speculation})
    )
    assert drafting.module_bytes == drafting.weights_bytes - without.weights_bytes > 0
    assert without.kv_bytes - drafting.kv_bytes == pytest.approx(drafting.module_bytes)
    # Four layers' and the module's one.
    assert drafting.cache.bytes_per_token == pytest.approx(without.cache.bytes_per_token * 5 / 4)
    assert drafting.tokens < without.tokens


def share_experts(experts, distance):
    """Share of the experts of tokens in the pool that those behind them have too, by place in a
    run.
    """
    ids_LTK, run = experts.topk_ids_LTK, experts.run_tokens
    whole = ids_LTK.shape[1] // run * run - run
    both = ids_LTK[:, :whole, :, None] == ids_LTK[:, distance : whole + distance, None, :]
    return both.any(axis=3).mean(axis=(0, 2)).reshape(-1, run).mean(axis=0)


def test_tokens_of_a_draft_share_experts_as_neighbours_do(tiny):
    """Within a run as many as ``persistence`` says, across runs as many as chance."""
    routing = {"kind": "lognormal", "sigma": 0.0, "persistence": 0.5}
    keys = {"attention_dp": 4, "ep": 4, "routing": routing}
    without = tiny.plan("moe", **keys).placement.experts
    drafting = tiny.plan(
        "moe", speculation={"kind": "module", "accepted": [0.9] * 3}, **keys
    ).placement.experts
    chance = 2 / 16
    assert share_experts(without, 1) == pytest.approx([chance], abs=0.02)
    assert share_experts(drafting, 1) == pytest.approx([0.5] * 3 + [chance], abs=0.02)


def test_a_verified_draft_reads_the_union_of_its_tokens_experts(tiny):
    routing = {"kind": "lognormal", "sigma": 0.0, "persistence": 0.5}
    speculation = {"kind": "module", "accepted": [1.0] * 3, "layers": 1}
    read = {}
    for persistence in (0.0, 0.5):
        keys = {"routing": {**routing, "persistence": persistence}, "speculation": speculation}
        plan = tiny.plan("moe", **keys)
        prices = Prices(plan.placement, 4)
        steps = [prices.expert_step(n % 4, np.array([4]), 37 * n) for n in range(400)]
        read[persistence] = np.mean([one.read_bytes for one in steps]) / prices.experts.expert_bytes
    # Of 16 experts, 2 a token: by chance 16 (1 - (7/8)^4) of four tokens.
    assert read[0.0] == pytest.approx(16 * (1 - (7 / 8) ** 4), rel=0.03)
    assert read[0.5] < 0.8 * read[0.0]


@pytest.mark.parametrize("name", ["dense", "latent-moe"])
@pytest.mark.parametrize("accepted", [(0.9,), (0.9, 0.7, 0.5)])
def test_the_closed_form_has_the_passes_that_steps_have(tiny, name, accepted):
    """Steps of eight decodes as the table prices them, and as a plan's screen does."""
    speculation = {"kind": "module", "accepted": list(accepted)}
    plan = tiny.plan(name, speculation=speculation)
    alike = np.full(8, 500), np.full(8, 40)
    trace = RequestTrace(np.zeros(8), *alike, provenance="alike")
    steps = serve(plan, trace).steps_of("both")
    decoding = steps[(steps["decodes"] == 8 * steps["num_steps"]) & (steps["prefill_tokens"] == 0)]
    decode_s = decoding["duration_s"].sum() / decoding["num_steps"].sum()
    curve = Curve(plan, Traffic.measure(trace), 2048)
    step_s = float(curve.step_s(np.array([8.0]), np.zeros(1), 0.0)[0])
    assert step_s == pytest.approx(decode_s, rel=0.03)


def test_a_plan_s_rates_rise_with_what_is_kept_and_fall_with_the_module(tiny):
    def best(accepted, **keys):
        spec = {"kind": "module", "tokens": 3, "accepted": accepted, **keys}
        plan = tiny.plan("dense", speculation=spec)
        alike = np.full(8, 500), np.full(8, 40)
        traffic = Traffic.measure(RequestTrace(np.arange(8.0), *alike, provenance="alike"))
        judge = SimpleNamespace(traffic=traffic)
        for name in ("_batches", "_rates"):
            setattr(judge, name, getattr(Judge, name).__get__(judge))
        served = Judge.decoding(judge, plan, Curve(plan, traffic, 2048))
        return served.tpot_s[0], served.rates.max()

    (slow_s, few), (fast_s, many) = best(0.0), best(1.0)
    assert slow_s == pytest.approx(4 * fast_s)
    assert many == pytest.approx(4 * few)
    launched_s, _ = best(1.0, launch_s=1e-3)
    assert launched_s - fast_s == pytest.approx(3 * (1e-3 - 9.1e-5) / 4)


@pytest.mark.parametrize("budget", [66, 70])
def test_a_step_whose_drafts_are_cut_can_be_shown(tiny, budget):
    """Many sequences fill a step, so that the last draft has fewer tokens."""
    plan = tiny.plan(
        "moe",
        attention_dp=4,
        ep=4,
        scheduling={"kind": "chunked", "token_budget": budget, "max_sequences": 128},
    )
    plan = with_drafts(plan, 0.7, 0.7, 0.7, num_layers=1)
    record = run_plan(plan, tiny.trace(600, 50_000.0, 8, 40))
    steps = record.steps
    computed = steps["prefill_tokens"] + steps["decodes"] * 4
    assert (computed > 4 * budget).any(), "some drafts are cut"
    assert set(record.sampled_steps) >= {"decode"}


def test_a_cache_without_room_for_the_longest_draft_is_refused_before_anything_runs(monkeypatch):
    """What ``check`` accepts, ``run`` starts."""
    asked = []
    monkeypatch.setattr(
        "simulator.commands.deployments.check_requests",
        lambda capacity, tokens, where: asked.append(tokens),
    )
    module = 'deployments.0.speculation={kind="module",tokens=3,accepted=0.7}'
    scenario = load_scenario("mixtral_vs_llama2", ["workload.num_requests=20", module])
    plans, trace = prepare_run(scenario)
    longest = int((trace.num_input + trace.num_output).max())
    assert asked == [longest + 3, longest]
    for plan, tokens in zip(plans, asked, strict=True):
        assert PoolState(plan, trace)._longest == tokens
