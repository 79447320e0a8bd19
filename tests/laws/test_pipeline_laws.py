"""Laws of pipeline stages: what their steps cost against stages that really take batches in order,
and what more of them may do.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import simpy

from simulator.config.deployment import ParallelSpec
from simulator.config.model import load_model
from simulator.engine.step_log import LOG_COLUMNS
from simulator.engine.table import ATTENTION, price_pipeline
from simulator.engine.timeline import run_plan
from simulator.work.layout import make_layout, stage_layers
from simulator.work.memory import Precision, cache_size, weight_bytes

ROUNDS = 300
BF16 = Precision("bf16", "bf16", "bf16", "bf16", "bf16")


def stages_s(layers_rb, head_rb, sends_rb, engine_rb, counts):
    """Seconds in which stages that take batches in order have passed on all rounds of all
    batches.
    """
    env = simpy.Environment()
    shares = np.array(counts) / sum(counts)
    stages = [simpy.Resource(env) for _ in counts]
    engine = simpy.Resource(env)

    def batch(b):
        for r in range(len(layers_rb)):
            with engine.request() as turn:
                yield turn
                yield env.timeout(engine_rb[r, b])
            for s, stage in enumerate(stages):
                last = s == len(stages) - 1
                with stage.request() as turn:
                    yield turn
                    yield env.timeout(layers_rb[r, b] * shares[s] + head_rb[r, b] * last)
                if not last:
                    yield env.timeout(sends_rb[r, b] / (len(stages) - 1))

    for b in range(layers_rb.shape[1]):
        env.process(batch(b))
    env.run()
    return env.now


def lockstep_s(layers_rb, head_rb, sends_rb, engine_rb, counts):
    """The same as the engine has it: step after step."""
    total, pp = 0.0, len(counts)
    for layers, head, sends, engine in zip(layers_rb, head_rb, sends_rb, engine_rb, strict=True):
        parts = np.zeros((pp, len(LOG_COLUMNS) - ATTENTION))
        parts[:, 0], parts[:, 1], parts[:, 6], parts[:, 7] = layers, head, sends, engine
        row = np.zeros(len(LOG_COLUMNS))
        step_s = price_pipeline(
            parts, head, sends, pp, max(counts) / sum(counts), counts[-1] / sum(counts), row
        )
        assert row[ATTENTION : ATTENTION + 8].sum() == pytest.approx(step_s)
        total += step_s
    return total


@pytest.mark.parametrize("counts", [(40, 40), (31, 30), (15, 15, 16, 15), (1, 2, 1)])
@pytest.mark.parametrize("uneven", [0.0, 0.5])
@pytest.mark.parametrize(("head", "engine"), [(0.0, 0.0), (0.1, 0.05), (1.0, 0.02), (0.05, 0.7)])
def test_steps_are_the_steady_state_of_stages_that_take_batches_in_order(
    counts, uneven, head, engine
):
    pp = len(counts)
    layers = np.tile(1.0 + uneven * np.linspace(0, 1, pp), (ROUNDS, 1))
    arrays = (
        layers,
        head * layers,
        np.full_like(layers, 0.01 * (pp - 1)),
        np.full_like(layers, engine),
    )
    assert lockstep_s(*arrays, counts) == pytest.approx(stages_s(*arrays, counts), rel=0.02)


@pytest.mark.parametrize("pp", [2, 4])
@pytest.mark.parametrize("kind", ["nearly alike", "uneven", "prompts now and then"])
def test_steps_of_changing_batches_take_nearly_what_stages_take(pp, kind):
    """Batches wait for the slowest once a step here, and among stages where they meet: what that
    costs is a few per cent.
    """
    rng = np.random.default_rng(pp)
    layers = rng.lognormal(0.0, 0.1 if kind == "nearly alike" else 0.3, (ROUNDS, pp))
    if kind == "prompts now and then":
        layers = np.where(rng.random((ROUNDS, pp)) < 0.1, 5.0, 1.0)
    arrays = layers, 0.02 * layers, np.full_like(layers, 0.01), np.full_like(layers, 0.05)
    assert 0.98 < lockstep_s(*arrays, (10,) * pp) / stages_s(*arrays, (10,) * pp) < 1.06


@pytest.mark.parametrize("name", ["llama-3.1-70b", "deepseek-v3", "gpt-oss-120b", "gpt-3-175b"])
def test_more_stages_never_need_more_memory(name):
    model = load_model(name, "test")
    layouts = [make_layout(ParallelSpec(pp=pp), model, "test") for pp in (1, 2, 4, 8)]
    weights = [weight_bytes(model, layout, BF16) for layout in layouts]
    assert weights == sorted(weights, reverse=True)
    assert all(first / 2 <= second < first for first, second in itertools.pairwise(weights))
    whole = cache_size(model, layouts[0], BF16).bytes_per_token
    for pp, layout in zip((1, 2, 4, 8), layouts, strict=True):
        layers = stage_layers(model.num_layers, pp)
        assert [layer for stage in layers for layer in stage] == list(range(model.num_layers))
        assert max(map(len, layers)) - min(map(len, layers)) <= 1
        assert layout.num_gpus == pp
        # Every layer's cache or every other one's grows, so a stage may keep half a layer more than
        # its share.
        share = cache_size(model, layout, BF16).bytes_per_token / whole
        assert 1 / pp <= share <= (max(map(len, layers)) + 1) / model.num_layers


@pytest.mark.parametrize("fidelity", ["rank", "message"])
@pytest.mark.parametrize(
    ("name", "split"), [("moe", {"tp": 2, "ep": 2, "pp": 2}), ("dense", {"tp": 8, "pp": 2})]
)
def test_the_detailed_fidelities_confirm_the_table(tiny, name, split, fidelity):
    trace = tiny.trace(num_requests=12)
    step, other = (
        run_plan(tiny.plan(name, **split), trace, chosen).requests for chosen in ("step", fidelity)
    )
    assert other["finish_s"].to_numpy() == pytest.approx(step["finish_s"].to_numpy(), rel=0.05)


def test_one_sequence_alone_is_not_faster_over_more_stages(tiny):
    trace = tiny.trace(num_requests=4, concurrency=1)
    ends = [
        run_plan(tiny.plan("dense", tp=2, pp=pp), trace).requests["finish_s"].max()
        for pp in (1, 2, 4)
    ]
    assert ends == sorted(ends)
    assert len(set(ends)) == 3


def test_twice_the_stages_are_at_most_twice_as_fast(tiny):
    """With as many sequences in each batch in flight, and nearly that where there are many."""
    ends = []
    for pp in (1, 2):
        trace = tiny.trace(num_requests=256 * pp, rate_per_s=1e9)
        trace = dataclasses.replace(
            trace, num_input=np.full(256 * pp, 512), num_output=np.full(256 * pp, 32)
        )
        scheduling = {"kind": "chunked", "max_sequences": 128 * pp}
        plan = tiny.plan("dense", num_layers=32, pp=pp, scheduling=scheduling)
        ends.append(run_plan(plan, trace).requests["finish_s"].max())
    assert 1.0 <= ends[1] / ends[0] < 1.2


def test_pools_may_be_pipelines(tiny):
    trace = tiny.trace(num_requests=16)
    plans = [
        tiny.plan("dense", tp=2, pp=pp, prefill={"parallel": {"pp": pp}, "layerwise": layerwise})
        for pp in (1, 2)
        for layerwise in (False, True)
    ]
    found = [run_plan(plan, trace).requests for plan in plans]
    moved = [requests["transfer_bytes"].sum() for requests in found]
    assert moved == pytest.approx([moved[0]] * 4)
    assert all(requests["finish_s"].notna().all() for requests in found)
    # Twice the GPUs on either side carry half of every cache each.
    assert plans[2].transfer.send_s(100) == pytest.approx(plans[0].transfer.send_s(100) / 2)
