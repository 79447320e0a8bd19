"""Routing policies, recordings and the files they come in."""

import json

import numpy as np
import pytest

from simulator.base.errors import UserError
from simulator.base.plugins import build
from simulator.config.ffns.moe import MoE
from simulator.policies.routing.group_limited import GroupLimited
from simulator.policies.routing.lognormal import Lognormal
from simulator.policies.routing.replay import Replay
from simulator.policies.routing.zipf import Zipf
from tests.shared import shared_file

NUM_LAYERS = 4


def moe(num_experts=16, top_k=2, **groups):
    return MoE(kind="moe", num_experts=num_experts, top_k=top_k, intermediate_size=1, **groups)


def recorded_ids(num_tokens=300, num_experts=16, top_k=2, num_layers=NUM_LAYERS):
    scores_LTE = np.random.default_rng(0).random((num_layers, num_tokens, num_experts))
    return scores_LTE.argsort(axis=2)[:, :, :top_k].astype(np.uint8)


@pytest.fixture
def save(tmp_path):
    def write(name="trace.npz", **arrays):
        np.savez(tmp_path / name, **arrays)
        return str(tmp_path / name)

    return write


def prepare(shape=None, num_layers=NUM_LAYERS, **fields):
    return Replay(**fields).prepare(shape or moe(), num_layers, np.random.default_rng(0))


def route(router, run_lengths, layer=0, seed=0):
    return router.topk_ids(
        layer, np.array(run_lengths, dtype=np.int64), np.random.default_rng(seed)
    )


def share_of_experts(router, num_experts, layer=0, num_tokens=40_000):
    count_E = np.bincount(route(router, [1] * num_tokens, layer).ravel(), minlength=num_experts)
    return count_E / count_E.sum()


# Synthetic


def test_zipf_shares_fall_with_the_rank_and_every_layer_has_its_own_order():
    router = Zipf(exponent=1.0).prepare(moe(32, 2), 2, np.random.default_rng(0))
    wanted = np.arange(1, 33) ** -1.0
    shares = [share_of_experts(router, 32, layer) for layer in range(2)]
    for share_E in shares:
        assert np.allclose(np.sort(share_E)[::-1], wanted / wanted.sum(), rtol=0.04, atol=1e-3)
    assert np.argsort(shares[0]).tolist() != np.argsort(shares[1]).tolist()


@pytest.mark.parametrize("affinity", [0.0, 0.5, 0.8, 1.0])
def test_affinity_and_persistence_leave_popularity_as_it_was_drawn(affinity):
    plain = Lognormal(sigma=0.7).prepare(moe(64, 6), 1, np.random.default_rng(4))
    kept = Lognormal(sigma=0.7, affinity=affinity, persistence=0.4).prepare(
        moe(64, 6), 1, np.random.default_rng(4)
    )
    wanted_E, got_E = (
        share_of_experts(plain, 64),
        np.bincount(route(kept, [200] * 400).ravel(), minlength=64) / 480_000,
    )
    popular_E = wanted_E > np.median(wanted_E)
    assert np.allclose(got_E[popular_E], wanted_E[popular_E], rtol=0.08)


@pytest.mark.parametrize("persistence", [0.3, 0.45, 0.8])
@pytest.mark.parametrize(
    "shape", [moe(64, 6), moe(256, 8, num_groups=8, num_limited_groups=4), moe(16, 1)]
)
def test_consecutive_tokens_of_a_run_share_the_persistence_and_runs_are_strangers(
    shape, persistence
):
    router = Lognormal(sigma=0.3, persistence=persistence).prepare(
        shape, 1, np.random.default_rng(0)
    )
    ids_TK = route(router, [500] * 4)
    assert shared_with_previous(ids_TK) == pytest.approx(persistence, abs=0.03)
    alone = shared_with_previous(route(router, [1] * 2000))
    assert alone == pytest.approx(shape.top_k / shape.num_experts, abs=0.03)


def test_persistence_by_layer_is_interpolated_and_a_number_is_of_all_layers():
    shape, lengths = moe(64, 6), [500] * 8

    def shares(**keys):
        policy = build("routing", {"kind": "lognormal", "sigma": 0.3, **keys}, "test")
        router = policy.prepare(shape, 5, np.random.default_rng(0))
        return [shared_with_previous(route(router, lengths, layer)) for layer in range(5)]

    rising = shares(persistence={"4": 0.8, "0": 0.2})
    assert rising == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8], abs=0.03)
    assert shares(persistence={"1": 0.3, "3": 0.6})[::4] == pytest.approx([0.3, 0.6], abs=0.03)
    assert shares(persistence=0.4) == shares(persistence={"2": 0.4})


@pytest.mark.parametrize("affinity", [0.0, 0.6])
def test_repetition_is_a_part_of_persistence_that_keeps_all_experts(affinity):
    shape = moe(64, 6)
    policy = Lognormal(sigma=0.3, affinity=affinity, persistence=0.5, repetition=0.3)
    ids_TK = route(policy.prepare(shape, 1, np.random.default_rng(0)), [500] * 8)
    assert shared_with_previous(ids_TK) == pytest.approx(0.5, abs=0.03)
    whole = (np.sort(ids_TK[1:], axis=1) == np.sort(ids_TK[:-1], axis=1)).all(axis=1).mean()
    assert whole == pytest.approx(0.3, abs=0.03)
    without = Lognormal(sigma=0.3, affinity=affinity, persistence=0.5)
    other_TK = route(without.prepare(shape, 1, np.random.default_rng(0)), [500] * 8)
    assert (np.sort(other_TK[1:]) == np.sort(other_TK[:-1])).all(axis=1).mean() < 0.1


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"persistence": {"first": 0.3}}, "MoE layers by their numbers, .* got first"),
        ({"persistence": {}}, "MoE layers by their numbers, .* got none"),
        ({"persistence": {"3": 1.0}}, r"persistence\.3 must be at most 0.999, got 1.0"),
        ({"persistence": {"4": 0.3}}, "names layer 4, and the model's 4 MoE layers"),
        ({"persistence": {"0": 0.5, "3": 0.1}, "repetition": 0.2}, "in layer 3 it is more"),
        ({"kind": "group_limited", "num_groups": 3, "num_limited_groups": 2}, "must divide"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(keys, told):
    table = keys if "kind" in keys else {"kind": "lognormal", "sigma": 0.3, **keys}

    def prepare_it():
        build("routing", table, "test").prepare(moe(), NUM_LAYERS, np.random.default_rng(0))

    with pytest.raises(UserError, match=told):
        prepare_it()


def shared_with_previous(ids_TK):
    return (ids_TK[1:, :, None] == ids_TK[:-1, None, :]).any(axis=2).mean()


def test_every_run_is_of_one_domain():
    router = Lognormal(sigma=4.0, num_domains=2).prepare(moe(64, 1), 1, np.random.default_rng(1))
    hot = {
        int(np.bincount(ids).argmax()) for ids in route(router, [400] * 20)[:, 0].reshape(20, 400)
    }
    assert len(hot) == 2


def test_a_batch_larger_than_one_chunk_keeps_its_persistence_at_the_seams():
    router = Lognormal(sigma=0.0, persistence=0.99).prepare(
        moe(256, 8), 1, np.random.default_rng(0)
    )
    ids_TK = route(router, [6000])
    shared_T = (ids_TK[1:, :, None] == ids_TK[:-1, None, :]).any(axis=2).mean(axis=1)
    assert shared_T.min() > 0.5


def test_group_limited_keeps_a_token_in_its_groups_on_a_model_without_any():
    router = GroupLimited(num_groups=4, num_limited_groups=1).prepare(
        moe(16, 2), 1, np.random.default_rng(0)
    )
    ids_TK = route(router, [100])
    assert (ids_TK[:, 0] // 4 == ids_TK[:, 1] // 4).all()


# Replay of tokens


def test_a_run_is_consecutive_recorded_tokens_of_one_sequence(save):
    ids_LTK = recorded_ids()
    router = prepare(trace=save(ids=ids_LTK, seq_lens=[100, 200]))
    position = {
        tuple(row): token
        for token, row in enumerate(ids_LTK.transpose(1, 0, 2).reshape(300, -1).tolist())
    }
    for seed in range(20):
        rows = np.concatenate(
            [route(router, [60], layer, seed) for layer in range(NUM_LAYERS)], axis=1
        )
        tokens = np.array([position[tuple(row)] for row in rows.tolist()])
        # One step on, except where a sequence ended; then the start of a sequence.
        jumps = tokens[1:][np.diff(tokens) != 1]
        assert set(jumps.tolist()) <= {0, 100}
        assert len(jumps) <= 1


def test_a_run_longer_than_any_recorded_sequence_goes_on_with_others(save):
    router = prepare(trace=save(ids=recorded_ids(), seq_lens=[3] * 100))
    assert route(router, [1000, 1, 50]).shape == (1051, 2)


def test_npy_of_a_serving_engines_response_is_read(tmp_path):
    np.save(tmp_path / "r.npy", recorded_ids().transpose(1, 0, 2))
    assert route(prepare(trace=str(tmp_path / "r.npy")), [5]).shape == (5, 2)


def test_domain_and_phase_select_sequences(save):
    ids = np.zeros((NUM_LAYERS, 20, 1), dtype=np.int64)
    ids[:, 10:] = 1
    arrays = {
        "ids": ids,
        "seq_lens": [10, 10],
        "domain": ["law", "code"],
        "phase": "prefill",
        "num_experts": 16,
    }
    trace = save(**arrays)
    assert (
        route(prepare(moe(top_k=1), trace=trace, domain="code", phase="prefill"), [40]).tolist()
        == [[1]] * 40
    )
    with pytest.raises(UserError, match="no domain 'cod'; did you mean 'code'"):
        prepare(moe(top_k=1), trace=trace, domain="cod")
    with pytest.raises(UserError, match="no phase 'decode'"):
        prepare(moe(top_k=1), trace=trace, phase="decode")


def test_padding_rows_are_left_out(save):
    ids = recorded_ids().astype(np.int64)
    ids[1, 5:] = -1
    router = prepare(trace=save(ids=ids, seq_lens=[300]))
    seen = {tuple(row) for row in route(router, [1] * 200, layer=0).tolist()}
    assert seen <= {tuple(row) for row in ids[0, :5].tolist()}


@pytest.mark.parametrize(
    ("shape", "num_layers", "said"),
    [
        (moe(top_k=4), NUM_LAYERS, "recorded with top-2, but the model uses top-4"),
        (moe(num_experts=8), NUM_LAYERS, "recorded with 16 experts .* but the model has 8"),
        (moe(), 6, "recorded 4 MoE layers, but the model has 6"),
    ],
)
def test_a_recording_of_another_model_is_refused(save, shape, num_layers, said):
    with pytest.raises(UserError, match=said):
        prepare(shape, num_layers, trace=save(ids=recorded_ids(), seq_lens=[300]))


def test_missing_layers_are_filled_only_where_the_user_says_so(save):
    ids_LTK = recorded_ids(num_layers=2)
    trace = save(ids=ids_LTK, seq_lens=[300], layers=[0, 3])
    with pytest.raises(
        UserError,
        match=r'recorded 2 MoE layers \(0, 3\), but the model has 4; set layers = "nearest"',
    ):
        prepare(trace=trace)
    router = prepare(trace=trace, layers="nearest")
    assert np.array_equal(route(router, [9], layer=2), route(router, [9], layer=3))
    assert not np.array_equal(route(router, [9], layer=1), route(router, [9], layer=2))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weights": np.ones(3)}, "missing array 'ids'"),
        ({"ids": np.ones((2, 3))}, "ids must be whole numbers"),
        ({"ids": np.zeros((NUM_LAYERS, 9, 2), dtype=np.int64)}, "names an expert twice"),
        ({"ids": np.full((NUM_LAYERS, 9, 2), -1)}, "holds no recorded token"),
        ({"ids": recorded_ids(), "seq_lens": [299]}, "seq_lens sum to 299, but ids has"),
    ],
)
def test_a_recording_that_makes_no_sense_is_refused(save, arrays, message):
    with pytest.raises(UserError, match=message):
        prepare(trace=save(**arrays))


@pytest.mark.parametrize("name", ["no.npz", "no.npy", "no.json", "no.pt", "no.txt"])
def test_a_file_that_is_missing_or_something_else_is_refused(tmp_path, name):
    for _ in range(2):
        with pytest.raises(UserError, match=name):
            prepare(trace=str(tmp_path / name))
        (tmp_path / name).write_bytes(b"this is not it")


# Replay of counts


def table(tmp_path, **content):
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_counts_are_reproduced(save):
    count_LE = np.random.default_rng(0).integers(100, 1000, size=(NUM_LAYERS, 16))
    router = prepare(trace=save(counts=count_LE))
    for layer in range(NUM_LAYERS):
        assert np.allclose(
            share_of_experts(router, 16, layer), count_LE[layer] / count_LE[layer].sum(), rtol=0.06
        )


def test_a_table_of_models_and_domains_gives_the_model_that_fits(tmp_path):
    counts = {"hot 0": [[90, 10, 10, 10]], "hot 3": [[10, 10, 10, 90]]}
    trace = table(tmp_path, models={"small": counts, "large": {"a": [[1] * 8]}}, layers=[0])
    assert share_of_experts(prepare(moe(4, 1), 1, trace=trace, domain="hot 3"), 4).argmax() == 3
    both = share_of_experts(prepare(moe(4, 1), 1, trace=trace), 4)
    assert both[0] == pytest.approx(both[3], abs=0.02)
    with pytest.raises(
        UserError, match=r"set model to one of: small \(4 experts\), large \(8 experts\)"
    ):
        prepare(moe(16, 1), 1, trace=trace)
    with pytest.raises(UserError, match="counted 8 experts, but the model has 16"):
        prepare(moe(16, 1), 1, trace=trace, model="large")
    with pytest.raises(UserError, match="no domain 'hot 1'"):
        prepare(moe(4, 1), 1, trace=trace, domain="hot 1")


EVEN = {"counts": [[1, 1, 1, 1]]}


@pytest.mark.parametrize(
    ("content", "fields", "top_k", "said"),
    [
        ({"other": 1}, {}, 1, "missing key 'models', 'counts' or 'logical_count'"),
        ({"counts": [[1, "x", 1, 1]]}, {}, 1, "counts must be numbers"),
        ({"counts": [[0, 0, 0, 0]]}, {}, 1, "layer 0 has no counts"),
        (EVEN, {"phase": "decode"}, 1, "does not tell phases apart"),
        (EVEN, {"model": "olmoe"}, 1, "the table has no 'models'"),
        ({"counts": [[70, 10, 10, 10]]}, {}, 2, "one expert has 70% .*top-2 .* at most 50%"),
    ],
)
def test_counts_that_make_no_sense_are_refused(tmp_path, content, fields, top_k, said):
    with pytest.raises(UserError, match=said):
        prepare(moe(4, top_k), 1, trace=table(tmp_path, **content), **fields)


# SGLang's recorder


def test_sglang_per_token_ids_are_mapped_from_slots_to_experts(tmp_path, torch):
    expert_LP = torch.tensor(
        [[0, 0, 0, 0, 0], [3, 2, 1, 0, 3]]
    )  # five slots; layer 0 is dense and records nothing
    prefill = {"forward_mode": 1, "extend_seq_lens": [2, 1], "positions": [0, 1, 0]}
    prefill["topk_ids_of_layer"] = torch.tensor(
        [[[-1], [-1], [-1], [-1]], [[4], [0], [1], [-1]]], dtype=torch.int32
    )
    decodes = [
        {
            "forward_mode": 2,
            "extend_seq_lens": None,
            "positions": [position, position + 5],
            "topk_ids_of_layer": torch.tensor([[[-1], [-1]], [[2], [3]]], dtype=torch.int32),
        }
        for position in (10, 11, 12)
    ]
    path = tmp_path / "recorder.pt"
    torch.save({"records": [prefill, *decodes], "last_physical_to_logical_map": expert_LP}, path)

    shape = moe(4, 1)
    seen = route(prepare(shape, 1, trace=str(path), phase="prefill"), [1] * 100)
    assert set(seen.ravel().tolist()) == {3, 2}
    # Three decode passes of the same two sequences: a run of three tokens stays in one of them.
    runs = {
        tuple(
            route(prepare(shape, 1, trace=str(path), phase="decode"), [3], seed=s).ravel().tolist()
        )
        for s in range(30)
    }
    assert {(1, 1, 1), (0, 0, 0)} <= runs
    with pytest.raises(UserError, match="recorded with 4 experts"):
        prepare(moe(8, 1), 1, trace=str(path))


def test_sglang_per_pass_counts_are_summed_over_passes_and_slots(tmp_path, torch):
    record = {"forward_mode": 1, "global_physical_count": torch.tensor([[30, 20, 30, 20]])}
    path = tmp_path / "recorder.pt"
    torch.save(
        {"records": [record, record], "last_physical_to_logical_map": torch.tensor([[0, 1, 2, 0]])},
        path,
    )
    share_E = share_of_experts(prepare(moe(3, 1), 1, trace=str(path)), 3)
    assert share_E == pytest.approx([0.5, 0.2, 0.3], abs=0.02)


@pytest.mark.measured
@pytest.mark.parametrize("mode", ["stat", "per_token"])
def test_sglang_samples_of_deepseek_v2_lite_are_read(mode):
    trace = str(shared_file(f"traces/formats/sglang_expert_distribution_recorder_{mode}.pt"))
    router = prepare(moe(64, 6), 26, trace=trace)
    assert route(router, [100, 1, 1], layer=25).shape == (102, 6)
    with pytest.raises(UserError, match="recorded 26 MoE layers, but the model has 27"):
        prepare(moe(64, 6), 27, trace=trace)
