"""Laws of the texts that a training's sequences are of: few sequences load ranks unevenly, many as
all texts together, and some of a micro-batch's tokens stand for all.
"""

from pathlib import Path

import numpy as np
import pytest

from simulator.deployment.training.plan import make_training_plan
from simulator.scenario.jobs import SCENARIOS, load_job
from simulator.step import training
from simulator.step.training import find_rank_imbalance, price_micro_batch

KINDS = {"kind": "lognormal", "sigma": 1.0, "num_domains": 4}


def prices_of(routing, micro_batch=1, sequence_tokens=1024, overflow=None, **parallel):
    deployment = {
        "name": "it",
        "model": "olmoe-1b-7b",
        "cluster": "h100-sxm",
        "num_gpus": 16,
        "parallel": {"ep": 8, **parallel},
        "micro_batch": micro_batch,
        "routing": routing,
        "recompute": "full",
        **({"overflow": overflow} if overflow else {}),
    }
    training = {"sequence_tokens": sequence_tokens, "global_batch": 1024, "total_tokens": 1e12}
    scenario = load_job({"training": training, "deployments": [deployment]}, SCENARIOS)
    plan = make_training_plan(scenario.deployments[0], scenario.training, 0, "test", Path())
    return price_micro_batch(plan)


def imbalance_of(prices):
    return np.mean(
        [step.pairs_R.max() / step.pairs_R.mean() for own in prices.expert_steps_M for step in own]
    )


def test_a_micro_batch_of_one_text_is_less_even_than_one_of_many():
    one = imbalance_of(prices_of(KINDS, tp=8))  # one sequence on the eight ranks
    few = imbalance_of(prices_of(KINDS, tp=2))
    many = imbalance_of(prices_of(KINDS, micro_batch=16))
    assert one > 1.1 * few
    assert few > 1.02 * many
    mixed = prices_of(KINDS, micro_batch=16)
    mixed._prices.choices = None  # tokens of all kinds of text
    assert many == pytest.approx(imbalance_of(mixed), rel=0.05)


def test_routing_without_kinds_of_text_has_one_micro_batch_that_stands_for_all():
    known = prices_of({**KINDS, "num_domains": 1})
    assert known.num_drawn == len(known.expert_steps_M) == 1
    assert prices_of(KINDS).num_drawn == len(prices_of(KINDS).expert_steps_M) == 4
    assert find_rank_imbalance(known) >= 1.0


def test_tokens_of_a_sequence_are_of_its_text_wherever_it_lies():
    """Groups that share a sequence hold parts of its front and of its back."""
    whole, shared = (prices_of(KINDS, 1, 4096, tp=2, cp=cp) for cp in (1, 2))
    for prices, groups in ((whole, 4), (shared, 4)):
        numbers = [set(own.tolist()) for own in prices.batch.requests]
        assert len(numbers) == groups
    assert [own.tolist() for own in whole.batch.requests] == [[0], [1], [2], [3]]
    assert [own.tolist() for own in shared.batch.requests] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    choices = shared._prices.choices
    tokens_T = choices.find_tokens(shared.batch)
    kind_T = tokens_T // 4096  # as many were drawn of each kind
    assert [len(set(part.tolist())) for part in kind_T.reshape(2, -1)] == [1, 1]
    assert len(np.unique(tokens_T[:4096])) == 4096  # a sequence as long as what was drawn


def test_the_keys_and_values_of_a_whole_sequence_go_round_the_ring():
    """OLMoE has 16 heads of 128 with keys and values of their own: 8 of them on each of two ranks
    of tensor parallelism, in two bytes an element.
    """
    prices = prices_of(KINDS, 1, 4096, tp=2, cp=2)
    [mixer] = prices.placement.model.mixers
    num_bytes = 4096 * 2 * 8 * 128 * 2
    reduced_s = prices._ring.all_reduces_s(np.array([float(num_bytes)]), (0, 2))
    assert prices._gather_s(prices._ring, mixer) == pytest.approx(reduced_s[0] / 2)


@pytest.mark.parametrize("sequence_tokens", [4096, 65536])  # that long, texts repeat
def test_some_tokens_stand_for_all(monkeypatch, sequence_tokens):
    some = prices_of(KINDS, 1, sequence_tokens)
    texts = some._prices.choices
    looked_up = texts.list_tokens(some.placement, some.batch)._recorded_T
    kinds = {int(texts.group_N[own[0]]) for own in some.batch.requests}
    assert len(set(looked_up.tolist())) > 0.6 * min(4096 * len(kinds), len(looked_up))
    monkeypatch.setattr(training, "_MOST_TOKENS", 1 << 30)
    every = prices_of(KINDS, 1, sequence_tokens)
    assert imbalance_of(some) == pytest.approx(imbalance_of(every), rel=0.02)
    for few, all_ in zip(some.expert_steps_M, every.expert_steps_M, strict=True):
        few_s, all_s = (sum(step.experts_R.max() for step in own) for own in (few, all_))
        assert few_s == pytest.approx(all_s, rel=0.02)
        for one, other in zip(few, all_, strict=True):
            assert one.pairs_R.sum() == pytest.approx(other.pairs_R.sum(), rel=0.01)


def test_popularity_that_drifts_makes_no_kinds_of_text():
    drifting = prices_of({"kind": "lognormal", "sigma": 1.0, "num_domains": 1, "drift_s": 3600.0})
    assert drifting.num_drawn == 1
    assert drifting._prices.choices is None


@pytest.mark.parametrize("overflow", [{"kind": "none"}, {"kind": "capacity", "factor": 1.0}])
def test_where_tokens_may_be_dropped_all_are_looked_up(overflow):
    prices = prices_of(KINDS, 4, 1024, overflow=overflow)
    looked_up = prices._prices.choices.list_tokens(prices.placement, prices.batch)
    total = int(prices.batch.tokens_d.sum())
    assert total > training._MOST_TOKENS
    some = training._MOST_TOKENS
    assert len(looked_up._recorded_T) == (some if overflow["kind"] == "none" else total)
    assert all(
        step.dropped_pairs > 0 or overflow["kind"] == "none"
        for own in prices.expert_steps_M
        for step in own
    )
