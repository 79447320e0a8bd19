"""Every term of a step's price, by hand: a model of two layers on GPUs of round figures, with
kernels of which nothing overlaps, so that times add up.

Tokens choose all four experts, so that no choice is left to chance.
"""

import numpy as np
import pytest

from simulator.base.frozen import validate
from simulator.config.deployment import DeploymentSpec
from simulator.config.model import load_model
from simulator.deployment.plan import make_plan
from simulator.engine.timeline import run_plan
from simulator.results.phases import STEP_PHASES
from simulator.step.expert_prices import find_imbalance
from simulator.work.flops import count_decode_step, expert_flops, served_flops, trained_flops
from simulator.workload.traces import RequestTrace

ASSUMED = 'kind = "assumed", source = "round figures"'
FILES = {
    "cluster_configs/accelerators/lab.toml": """
        title = "GPU of round figures"
        bf16_flops_per_s = 10e12
        memory_bytes = 10e9
        memory_bytes_per_s = 1e12
        num_multiprocessors = 1
        board_power_w = 100.0
        calibration = "lab"
    """,
    "cluster_configs/calibration/lab.toml": f"""
        title = "Kernels of round figures"
        gemm.any.other = {{ compute_fraction = 1.0, memory_fraction = 1.0, floor_s = 1e-6, overlap = 1.0, reread = 0.0, {ASSUMED} }}
        pruned.two_four.bf16 = {{ compute_ratio = 0.75, memory_ratio = 0.5, skips_zeros = true, floor_s = 1e-6, {ASSUMED} }}
        engine.any = {{ step_s = 1e-3, sequence_s = 1e-5, layer_s = 5e-6, prompt_layer_s = 1e-4, prompt_expert_layer_s = 2e-4, first_token_s = 0.01, {ASSUMED} }}
        [grouped_gemm.any]
        other = {{ compute_fraction = 0.5, memory_fraction = 0.5, floor_s = 2e-6, slot_s = 1e-7, touched_s = 3e-7, overlap = 1.0, tile_rows = [16], tile_reread = 0.0, choice_passes = 0.5, {ASSUMED} }}
        [attention.any]
        prefill = {{ compute_fraction = 0.5, memory_fraction = 0.5, floor_s = 3e-6, {ASSUMED} }}
        decode = {{ compute_fraction = 0.25, memory_fraction = 0.25, floor_s = 4e-6, {ASSUMED} }}
        [collective.any]
        all_reduce = {{ protocols.ring = {{ latency_s = 6e-6, fraction = 0.5 }}, scale_out_fraction = 0.5, scale_out_latency_s = 3e-5, latency_per_doubling_s = 1e-5, {ASSUMED} }}
        all_gather = {{ protocols.ring = {{ latency_s = 7e-6, fraction = 0.5 }}, scale_out_fraction = 0.25, scale_out_latency_s = 2e-5, latency_per_doubling_s = 1e-5, {ASSUMED} }}
        reduce_scatter = {{ protocols.ring = {{ latency_s = 8e-6, fraction = 0.5 }}, scale_out_fraction = 0.5, {ASSUMED} }}
        [exchange.normal]
        dispatch = {{ latency_s = 1e-5, latency_per_byte_s = 1e-8, latency_per_expert_s = 1e-7, scale_out_latency_s = 3e-5, latency_per_doubling_s = 1e-5, num_sms = 1, overlap = 1.0, token_s = 1e-8, copy_s = 2e-8, scale_up_fraction = 0.5, scale_out_fraction = 0.5, {ASSUMED} }}
        combine = {{ latency_s = 2e-5, scale_out_latency_s = 4e-5, latency_per_doubling_s = 2e-5, num_sms = 1, overlap = 1.0, token_s = 3e-8, copy_s = 4e-8, scale_up_fraction = 0.25, scale_out_fraction = 0.25, {ASSUMED} }}
        [exchange.beside]
        dispatch = {{ latency_s = 1e-5, scale_out_latency_s = 0.0, latency_per_doubling_s = 0.0, num_sms = 0, overlap = 1.0, copy_s = 3e-8, scale_up_fraction = 0.01, scale_out_fraction = 0.01, {ASSUMED} }}
        combine = {{ latency_s = 2e-5, scale_out_latency_s = 0.0, latency_per_doubling_s = 0.0, num_sms = 0, overlap = 1.0, copy_s = 7e-8, scale_up_fraction = 0.01, scale_out_fraction = 0.01, {ASSUMED} }}
    """,
    "cluster_configs/lab.toml": """
        title = "Two nodes of two such GPUs"
        accelerator = "lab"
        num_gpus = 4
        gpus_per_node = 2
        topology.kind = "switch"
        scale_up = { bytes_per_s = 100e9, latency_s = 1e-6 }
        scale_out = { bytes_per_s = 10e9, latency_s = 5e-6 }
        [host]
        dram = { memory_bytes = 64e9, bytes_per_s = 100e9, achieved = 0.5 }
        link = { bytes_per_s = 20e9, latency_s = 1e-5, achieved = 0.5 }
        processor = { flops_per_s = 1e12, achieved = 0.5 }
    """,
    "workloads/models/lab.toml": """
        hidden_size = 128
        vocab_size = 1024
        routing.kind = "uniform"
        layers = [{ pattern = [["full", "dense"], ["full", "moe"]] }]
        mixers.full = { kind = "gqa", num_heads = 4, num_kv_heads = 2, head_size = 32 }
        [ffns]
        dense = { kind = "dense", intermediate_size = 256 }
        moe = { kind = "moe", num_experts = 4, top_k = 4, intermediate_size = 128, num_shared_experts = 1, shared_intermediate_size = 128 }
    """,
}
FILES["workloads/models/tied.toml"] = (
    "ties_embeddings = true\n" + FILES["workloads/models/lab.toml"]
)
PROMPT = 16
"""Tokens of each prompt, which fill the rows of one tile."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """``lab(attention_dp=2, ep=2)``: a plan of the model on these GPUs."""
    folder = tmp_path_factory.mktemp("lab")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def plan(tp=1, attention_dp=1, ep=1, pp=1, **keys):
        table = {
            "name": "lab",
            "model": "lab",
            "cluster": "lab",
            "engine": "any",
            "replicas": 1,
            "parallel": {"tp": tp, "attention_dp": attention_dp, "ep": ep, "pp": pp},
            "dispatch": {"kind": "per_rank"},
            # Tables of experts are exact at their ends.
            "scheduling": {"token_budget": PROMPT, "max_sequences": PROMPT},
            **keys,
        }
        return make_plan(validate(DeploymentSpec, table, "test"), 1, "test", folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield plan


@pytest.fixture(scope="module")
def model(lab):
    return load_model("lab", "test")


def matrix(rows, inputs, outputs):
    """A launch, two FLOPs for each weight and row of whole tiles of 16 x 128, and the bytes of
    weights, input and result, 16 bits each.
    """
    tile_rows, columns = -(-rows // 16) * 16, -(-outputs // 128) * 128
    num_bytes = 2 * (inputs * outputs + rows * (inputs + outputs))
    return 1e-6 + 2 * tile_rows * inputs * columns / 10e12 + num_bytes / 1e12


def attention(kernel, rows, pairs, entries, tp=1):
    """One layer: projections (128 queries, 128 keys and values), the engine's small kernels that
    pass the hidden vectors eight times, and scores of four heads of 32 over keys and values of two.
    """
    floor_s, share = {"prefill": (3e-6, 0.5), "decode": (4e-6, 0.25)}[kernel]
    projections_s = matrix(rows, 128, 256 // tp) + matrix(rows, 128 // tp, 128)
    small_s = 5e-6 + 8 * rows * 128 * 2 / 1e12
    # QK and PV; queries, outputs, and keys and values before and when they are cached.
    flops, entry_bytes, token_bytes = 4 * 4 * 32 / tp, 2 * 2 * 32 * 2 / tp, 512 * 2 / tp
    scores_s = pairs * flops / (share * 10e12)
    moved_s = (entries * entry_bytes + rows * token_bytes) / (share * 1e12)
    return projections_s + small_s + floor_s + scores_s + moved_s


PREFILL = {"rows": PROMPT, "pairs": 136, "entries": 16}
"""Causal: 1 + 2 + ... + 16 pairs."""


def decode(context):
    return {"kernel": "decode", "rows": 1, "pairs": context, "entries": context}


def gated(rows, width, tp=1):
    return matrix(rows, 128, 2 * width // tp) + matrix(rows, width // tp, 128)


def dense(rows, tp=1):
    """The first layer's block; the second one's router and shared expert."""
    return gated(rows, 256, tp) + matrix(rows, 128, 4) + gated(rows, 128, tp)


def head(sequences, tp=1):
    return matrix(sequences, 128, 1024 // tp)


def experts(*rows, seen, width=128):
    """Two kernels over the experts in as many slots, and the passes over their rows between, of
    which half a pass is over all choices that the rank sees.
    """
    busy, tiles = sum(r > 0 for r in rows), sum(-(-r // 16) for r in rows)
    total_s = 0.0
    for inputs, outputs in ((128, 2 * width), (width, 128)):
        flops = tiles * 2 * 16 * inputs * (-(-outputs // 128) * 128)
        num_bytes = 2 * (busy * inputs * outputs + sum(rows) * (inputs + outputs))
        launch_s = 2e-6 + len(rows) * 1e-7 + busy * 3e-7
        total_s += launch_s + flops / 5e12 + num_bytes / 0.5e12
    return total_s + (sum(rows) + 0.5 * seen) * (3 * width + 4 * 128) * 2 / 0.5e12


def overhead(sequences=1, prompts=False):
    """Of the step, its sequences, and launches of two layers, one with experts, for prompts."""
    return 1e-3 + sequences * 1e-5 + prompts * (2 * 1e-4 + 2e-4)


WHOLE = [
    {
        "attention": 2 * attention("prefill", **PREFILL),
        "dense": dense(16) + head(1),
        "experts": experts(16, 16, 16, 16, seen=64),
        "overhead": overhead(prompts=True),
    },
    {
        "attention": 2 * attention(**decode(17)),
        "dense": dense(1) + head(1),
        "experts": experts(1, 1, 1, 1, seen=4),
        "overhead": overhead(),
    },
]
"""The step of a prompt, and that of the token behind it, on one GPU."""


def reduced(tokens, port_bytes_per_s=0.5 * 100e9, start_s=6e-6):
    """Four all-reduces of 256 bytes a token over two ranks: each sends half, twice."""
    return 4 * (start_s + tokens * 256 / port_bytes_per_s)


def exchanged(way, tokens, others, num_slots=4):
    """Vectors of 256 bytes to each other rank, copied and then carried."""
    start_s, byte_s, slot_s, token_s, copy_s, share = {
        "dispatch": (1e-5, 1e-8, 1e-7, 1e-8, 2e-8, 0.5),
        "combine": (2e-5, 0.0, 0.0, 3e-8, 4e-8, 0.25),
    }[way]
    start_s += 256 * byte_s + num_slots * slot_s
    wire_s = tokens * others * 256 / (share * 100e9)
    if others == 3:  # of two nodes, by the slower links: one doubling
        start_s = {"dispatch": 3e-5 + 1e-5, "combine": 4e-5 + 2e-5}[way]
        wire_s = tokens * others * 256 / (share * 10e9)
    return start_s + tokens * token_s + tokens * others * copy_s + wire_s


def spread(others, *placed, num_slots=4):
    """Steps in which each of several ranks has a prompt, and the experts get these rows."""
    ranks = others + 1
    return [
        step
        | {"experts": experts(*rows, seen=ranks * tokens * 4)}
        | {way: exchanged(way, tokens, others, num_slots) for way in ("dispatch", "combine")}
        for step, tokens, rows in zip(WHOLE, (16, 1), placed, strict=True)
    ]


BESIDE = {"dispatch": (1e-5, 3e-8), "combine": (2e-5, 7e-8)}
"""Latency, and copying of a vector, of kernels that leave the GPU while links carry slowly."""


def beside(way, tokens):
    """Seconds that such kernels hold the GPU, and all of them."""
    latency_s, copy_s = BESIDE[way]
    held_s = latency_s + tokens * copy_s
    return held_s, held_s + tokens * 256 / (0.01 * 100e9)


def beside_shared_experts(rows):
    held_s, whole_s = beside("dispatch", rows)
    dispatch_s = max(held_s, whole_s - gated(rows, 128))
    return {"dispatch": dispatch_s, "combine": beside("combine", rows)[1]}


def in_two_chunks(rows):
    """The first chunk has the latency, and each holds the GPU for the same share. Half of the
    experts hides the second one's way there, the other half the first one's way back.
    """
    found = {}
    for way, waits_for in (("dispatch", 0), ("combine", 1)):
        held_s, whole_s = beside(way, rows)
        second_s = (whole_s - BESIDE[way][0]) / 2
        chunks = whole_s - second_s, second_s
        found[way] = chunks[waits_for] + held_s * chunks[1 - waits_for] / whole_s
    return found


def sent(num_bytes):
    """An all-gather between two GPUs of one node stands for a send."""
    return 7e-6 + num_bytes / (0.5 * 100e9)


def offloaded(copied_s, held_share, rows):
    """Half of the experts computed behind their arrival, or none."""
    gpu_s = experts(*[rows] * 4, seen=4 * rows)
    return max(gpu_s * held_share, copied_s) + gpu_s * (1 - held_share)


EXPERT_BYTES = 2 * (128 * 256 + 128 * 128)
ARRIVAL_S = 1e-5 + 2 * EXPERT_BYTES / 10e9
"""Two experts behind each other, over half of 20 GB/s."""


def below(rows):
    """The vectors' way to the processor and back; it reads four experts, or multiplies longer."""
    read_s, flops = 4 * EXPERT_BYTES / 50e9, 4 * rows * 2 * EXPERT_BYTES / 2
    return 2 * 1e-5 + max(read_s, flops / 0.5e12)


def sparse(rows, inputs, outputs):
    """Half of the products at three quarters of twice the rate, and half of the values with an
    index of two bits each, at half the rate; a further launch.
    """
    columns, num_bytes = -(-outputs // 128) * 128, inputs * outputs * (1 + 1 / 8)
    moved = num_bytes + 2 * rows * (inputs + outputs)
    return 2e-6 + 2 * 16 * inputs * columns / (2 * 0.75 * 10e12) + moved / 0.5e12


def halve_first_block(rows):
    pruned = sparse(rows, 128, 512) + sparse(rows, 256, 128)
    return {"dense": dense(rows) - gated(rows, 256) + pruned + head(1)}


def drafted(rows, context, prompts):
    """Two drafts of a module like the last layer, behind a matrix over two vectors: a pass over the
    step's tokens, and one over a token behind them.
    """
    seen = context + rows
    first = PREFILL | {"kernel": "prefill"}
    if not prompts:
        first = {"kernel": "decode", "rows": 3, "pairs": 17 + 18 + 19, "entries": 19}
    further = decode(seen + 1)
    return {
        "attention": 3 * attention(**first) + attention(**further),
        "dense": dense(rows)
        + head(1 if prompts else 3)
        + sum(matrix(n, 256, 128) + matrix(n, 128, 4) + gated(n, 128) + head(1) for n in (rows, 1)),
        "experts": 2 * experts(*[rows] * 4, seen=4 * rows) + experts(1, 1, 1, 1, seen=4),
        "overhead": overhead(prompts=prompts) + 2 * 1e-4,
    }


def merge(steps, *changes):
    return [step | each for step, each in zip(steps, changes, strict=True)]


SPREAD = spread(1, (32, 32), (2, 2))
TRAVELLING = {"attention_dp": 2, "ep": 2, "dispatch": {"kind": "per_rank", "kernels": "beside"}}
CASES = {
    "one GPU": ({}, WHOLE),
    "two tensor-parallel ranks": (
        {"tp": 2},
        merge(
            WHOLE,
            *(
                {
                    "attention": 2 * attention(**chunk, tp=2),
                    "dense": dense(rows, tp=2) + head(1, tp=2),
                    "experts": experts(*[rows] * 4, seen=4 * rows, width=64),
                    "collective": reduced(rows),
                }
                for chunk, rows in ((PREFILL | {"kernel": "prefill"}, 16), (decode(17), 1))
            ),
        ),
    ),
    "two expert-parallel ranks": (
        {"attention_dp": 2, "ep": 2},
        SPREAD,
    ),
    # The first two experts, as loaded as the others, get the spare slots; copies take turns.
    "spare slots": (
        {"attention_dp": 2, "ep": 2, "placement": {"kind": "eplb", "num_slots": 6}},
        spread(1, (32, 16, 16), (2, 1, 1), num_slots=6),
    ),
    "expert-parallel ranks of two nodes": (
        {"attention_dp": 4, "ep": 4},
        spread(3, (64,), (4,)),
    ),
    "shared experts while tokens travel": (
        {**TRAVELLING, "overlap": "shared_experts"},
        merge(SPREAD, beside_shared_experts(16), beside_shared_experts(1)),
    ),
    "tokens that travel in two chunks": (
        {**TRAVELLING, "exchange_chunks": 2},
        merge(SPREAD, in_two_chunks(16), in_two_chunks(1)),
    ),
    "experts that arrive": (
        {"offload": {"slots": 2}},
        merge(WHOLE, *({"experts": offloaded(ARRIVAL_S, 0.5, rows)} for rows in (16, 1))),
    ),
    "experts on the processor": (
        {"offload": {"slots": 0, "uploads": 0}},
        merge(WHOLE, *({"experts": below(rows)} for rows in (16, 1))),
    ),
    "half of the weights": (
        {"pruning": {"kind": "two_four"}},
        merge(WHOLE, halve_first_block(16), halve_first_block(1)),
    ),
    "drafts": (
        {"speculation": {"kind": "module", "tokens": 2, "accepted": 1.0, "launch_s": 1e-4}},
        [drafted(16, 0, prompts=True), drafted(3, 16, prompts=False)],
    ),
}


def prompts_of(plan):
    """A prompt for each data-parallel rank, and three tokens of output."""
    count = plan.placement.layout.attention_dp
    return RequestTrace(np.zeros(count), np.full(count, PROMPT), np.full(count, 3), "made up")


@pytest.mark.parametrize("case", CASES)
def test_a_step_takes_what_its_terms_add_up_to(lab, case):
    keys, wanted = CASES[case]
    plan = lab(**keys)
    steps = run_plan(plan, prompts_of(plan)).steps
    for (_, step), terms in zip(steps.head(2).iterrows(), wanted, strict=True):
        found = {phase: step[f"{phase}_s"] for phase in STEP_PHASES}
        assert found == pytest.approx(dict.fromkeys(STEP_PHASES, 0.0) | terms, rel=1e-9, abs=1e-15)
        assert step.duration_s == pytest.approx(sum(terms.values()))


def test_a_pipeline_with_one_batch_idles_at_all_stages_but_one(lab):
    prompt, token = run_plan(plan := lab(pp=2), prompts_of(plan)).steps.head(2).itertuples()
    for step, terms, rows in ((prompt, WHOLE[0], 16), (token, WHOLE[1], 1)):
        send_s = sent(rows * 2 * 256)  # the block's output, and the residual beside it
        assert step.collective_s == pytest.approx(send_s / 2)
        assert step.duration_s == pytest.approx(sum(terms.values()) + send_s)
        assert step.wait_s == pytest.approx(step.duration_s / 2)


def test_a_cache_travels_between_pools_by_the_slower_wires(lab):
    """Two GPUs of prefill and one of decode lie in two nodes. The receiver's 16 tokens of 512 bytes
    keep its link busy longest.
    """
    plan = lab(prefill={"parallel": {"tp": 2}, "replicas": 1, "handshake_s": 0.5})
    (request,) = run_plan(plan, prompts_of(plan)).requests.itertuples()
    assert request.transfer_bytes == 16 * 512
    assert request.transfer_s == pytest.approx(0.5 + 5e-6 + 16 * 512 / (0.7 * 10e9))


def test_a_first_token_takes_its_way_to_the_engine_and_a_step(lab):
    plan = lab()
    (request,) = run_plan(plan, prompts_of(plan)).requests.itertuples()
    prompt_s, token_s = (sum(terms.values()) for terms in WHOLE)
    assert request.first_token_s == pytest.approx(0.01 + prompt_s)
    last_s = token_s + 2 * (attention(**decode(18)) - attention(**decode(17)))
    assert request.finish_s == pytest.approx(0.01 + prompt_s + token_s + last_s)


def test_imbalance_is_the_busiest_rank_over_the_mean_one():
    pairs = np.array([[6.0, 2.0, 4.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0]])
    assert find_imbalance(pairs).tolist() == [1.5, 1.0, 1.0]


LAYER_WEIGHTS = 2 * 128 + 128 * 256 + 128 * 128
DENSE_WEIGHTS, SHARED_WEIGHTS = 128 * 512 + 256 * 128, 128 * 4 + 128 * 256 + 128 * 128
TABLE_BYTES = 2 * 1024 * 128
"""Of the embedding table, and of the output head."""
BESIDE_BYTES = 2 * (2 * LAYER_WEIGHTS + DENSE_WEIGHTS + SHARED_WEIGHTS)
"""All but these and the experts."""
ACTIVE = 2 * (LAYER_WEIGHTS - 2 * 128) + DENSE_WEIGHTS + SHARED_WEIGHTS + 4 * EXPERT_BYTES // 2
"""Weights that a token is multiplied with, without the output head."""
SPARE = {"kind": "eplb", "num_slots": 6}


@pytest.mark.parametrize(
    ("keys", "tables", "slots"),
    [
        ({}, 2, 4),
        ({"model": "tied"}, 1, 4),
        ({"attention_dp": 2, "ep": 2}, 2, 2),
        ({"attention_dp": 2, "ep": 2, "placement": SPARE}, 2, 3),
        ({"offload": {"slots": 0, "uploads": 0}}, 2, 0),
        ({"offload": {"slots": 2}}, 2, 4),  # and two on their way
    ],
)
def test_memory_is_divided_to_the_last_byte(lab, keys, tables, slots):
    """Of engines that no file describes: nine tenths of the whole, less 2 GB."""
    capacity = lab(**keys).serving.capacity
    assert capacity.weights_bytes == tables * TABLE_BYTES + BESIDE_BYTES + slots * EXPERT_BYTES
    assert capacity.kv_bytes == 0.9 * 10e9 - 2e9 - capacity.weights_bytes
    assert capacity.cache.bytes_per_token == 2 * (2 * 2 * 32) * 2
    assert capacity.num_blocks == capacity.kv_bytes // (16 * 512)


@pytest.mark.parametrize("name", ["lab", "tied"])
def test_steps_read_their_weights_and_caches_once(lab, name):
    """Three steps, with the output head and without a table that is another one."""
    record = run_plan(plan := lab(model=name), prompts_of(plan))
    weights = BESIDE_BYTES + TABLE_BYTES + 4 * EXPERT_BYTES
    assert record.read_bytes == 3 * weights + (16 + 17 + 18) * 512


def test_flops_are_two_for_each_weight_and_four_for_each_pair_of_a_head(model):
    """A prompt of 16 tokens and two of output: 17 tokens pass the layers, and two the head."""
    pairs = 2 * (136 + 17) * 4 * 4 * 32
    two, of_head = np.array([2]), 2 * 1024 * 128
    served = served_flops(model, np.array([PROMPT]), two, np.array([0]))
    assert served == 17 * 2 * ACTIVE + pairs + 2 * of_head
    cached = served_flops(model, np.array([PROMPT]), two, np.array([15]))
    assert cached == 2 * 2 * ACTIVE + 2 * (16 + 17) * 4 * 4 * 32 + 2 * of_head
    trained = 16 * (2 * ACTIVE + of_head) + 2 * 136 * 4 * 4 * 32
    assert trained_flops(model, 16) == 3 * trained
    assert expert_flops(model) == 3 * 4 * EXPERT_BYTES


def test_a_decode_step_reads_weights_once_and_caches_for_each_sequence(model):
    step = count_decode_step(model, 2, 17)
    assert step.flops == 2 * (2 * ACTIVE + 2 * 1024 * 128 + 2 * 17 * 4 * 4 * 32)
    assert step.weight_bytes == BESIDE_BYTES + TABLE_BYTES + 4 * EXPERT_BYTES
    assert step.cache_bytes == 2 * 17 * 512
