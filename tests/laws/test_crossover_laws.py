"""Laws of the map of where a mixture of experts wins."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.config.capacity import Crossover, Question
from simulator.config.engine import find_kv_transfer
from simulator.cost.kernels.attention import kernels_s
from simulator.planner.analytical import Curve
from simulator.planner.crossover import (
    ALIKE,
    BEST,
    MEMORY,
    WEIGHTS,
    Place,
    Steady,
    compare_models,
    crossover,
    make_fixed_traffic,
)
from simulator.planner.screen import Judge, Rates, Served
from simulator.planner.space import ReplicaShape, Space
from simulator.report.plan_figures.crossover import _cell
from simulator.results.answer.crossover import CrossoverMap, FullPoint, LoadPoint
from simulator.results.crossover_text import describe_flips
from simulator.step.prices import Prices
from simulator.work.context import total_sums
from tests.cases import cases

HERE = Path()
PLACE = Place("moe", "dense", 512, 256, 1.0)
BUDGET = 2048
ASKED = Crossover(batches=(1.0, 8.0, 32.0), eps=(1, 4))
WORKLOAD = {
    "requests": {
        "arrivals": {"kind": "poisson", "rate_per_s": 4.0},
        "lengths": {"kind": "fixed"},
        "num_requests": 9,
    }
}
QUESTION = {
    "name": "small",
    "workload": WORKLOAD,
    "targets": {"tpot_s": {"p90": 0.05}},
    "models": [{"model": "gpt-oss-20b"}, {"model": "llama-3.1-8b"}],
    "clusters": [{"cluster": "h100-sxm", "max_gpus": 8}],
    "space": {"tp": [1, 2], "attention_dp": [1, 4], "token_budgets": [2048]},
    "crossover": {
        "inputs": [1024],
        "outputs": [256, 2048],
        "eps": [1, 4],
        "networks": [0.25, 1.0, 4.0],
    },
}


def question(**keys):
    return validate(Question, {**QUESTION, **keys}, "test")


@pytest.fixture(scope="module")
def found():
    return crossover(question(), HERE, [0, 1], 0)


def steady(plan, num_input=512, num_output=256):
    layout = plan.placement.layout
    shape = ReplicaShape(
        0, 0, layout.tp, layout.attention_dp, layout.ep, "", "bf16", 0, plan.spec.overlap
    )
    traffic = make_fixed_traffic(num_input, num_output)
    return Steady(shape, "split", Curve(plan, traffic, BUDGET), traffic, BUDGET)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("dense", {"tp": 2}),
        ("moe", {"attention_dp": 4, "ep": 4}),
        ("moe", {"attention_dp": 4, "ep": 4, "overlap": "two_batch"}),
        ("sliding-moe", {"tp": 2, "attention_dp": 2}),
    ],
)
def test_no_term_of_a_step_is_negative(tiny, name, split):
    curve = Curve(tiny.plan(name, **split), make_fixed_traffic(512, 256), BUDGET)
    decodes = np.geomspace(0.25, 256, 12)
    for prompts in (np.zeros(12), decodes / 256):
        assert min(part.min() for part in curve.terms(decodes, prompts, 512.0)) >= 0


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("name", ["dense", "sliding-moe", "latent-moe", "compressed-moe"])
def test_equal_sequences_look_back_as_their_batch_does(tiny, name, phase):
    plan, traffic = tiny.plan(name), make_fixed_traffic(512, 256)
    curve, prices = Curve(plan, traffic, BUDGET), Prices(plan.placement, BUDGET)
    context, new = (0, 512) if phase == "prefill" else (traffic.contexts[0], 1)
    for number in (1, 3, 40):
        seconds = 0.0
        for term in prices.context_kernels:
            rates = prices.rates[term, phase]
            sums = total_sums(
                np.full(number, context),
                np.full(number, new),
                term.window + int(rates.window_block),
                term.compression,
                rates.tile_rows,
            )
            seconds += term.num_layers * kernels_s(np.array([list(rates)]), sums[None])[0]
        assert curve.attention_s(phase, np.array([float(number)]))[0] == pytest.approx(seconds)


@pytest.mark.parametrize("split", [{}, {"attention_dp": 4, "ep": 4}])
def test_what_a_replica_carries_is_what_it_holds_over_how_long_it_stays(tiny, split):
    """Little's law, of sequences that decode and of prompts that are computed."""
    plan = tiny.plan("moe", **split)
    traffic = make_fixed_traffic(512, 256)
    judge, curve = Judge(Space(question(), HERE), traffic), Curve(plan, traffic, BUDGET)
    decoding, prefilling = judge.decoding(plan, curve), judge.prefilling(plan, curve, BUDGET)
    for served, stay_s in (
        (decoding, 256 * decoding.tpot_s),
        (judge.both(plan, curve, BUDGET), 256 * judge.both(plan, curve, BUDGET).tpot_s),
        (prefilling, judge.prompt_s(curve, BUDGET)),
    ):
        np.testing.assert_allclose(
            served.rates * stay_s, served.batches * plan.placement.layout.num_batches, rtol=1e-9
        )
    assert decoding.possible.all()
    assert prefilling.possible.all()


def test_prompts_wait_as_in_a_queue_of_equal_services(tiny):
    plan, traffic = tiny.plan("moe"), make_fixed_traffic(512, 256)
    judge, curve = Judge(Space(question(), HERE), traffic), Curve(plan, traffic, BUDGET)
    served = judge.prefilling(plan, curve, BUDGET)
    handshake_s = find_kv_transfer(plan.spec.engine).handshake_s
    at_once_s = (
        plan.placement.calibration.engine.first_token_s + handshake_s + judge.alone_s(curve, BUDGET)
    )
    busy = served.batches
    np.testing.assert_allclose(
        (served.ttft_s - at_once_s) * 2 * (1 - busy), busy * judge.prompt_s(curve, BUDGET)
    )


@pytest.mark.parametrize("num_input", [600, 512, 3000])
def test_a_full_step_has_parts_of_prompts_but_never_less_than_one(tiny, num_input):
    traffic = make_fixed_traffic(num_input, 256)
    judge, curve = Judge(Space(question(), HERE), traffic), Curve(tiny.plan("moe"), traffic, BUDGET)
    together = max(1.0, BUDGET / num_input)
    [step_s] = curve.step_s(np.zeros(1), np.array([together]), num_input)
    assert judge.prompt_s(curve, BUDGET) == pytest.approx(step_s / together)


def test_where_no_load_keeps_the_targets_the_lightest_is_shown():
    judge = Judge(Space(question(), HERE), make_fixed_traffic(512, 256))
    loads, always = np.array([1.0, 2.0, 4.0]), np.full(3, True)
    slow = Served(loads, np.array([9.0, 10.0, 11.0]), np.array([1.0, 2.0, 3.0]), always, loads)
    assert judge.best(slow) == Rates(0.0, 0.0, 9.0, 1.0)
    mixed = slow._replace(tpot_s=np.array([0.01, 0.04, 0.07]))
    assert judge.best(mixed) == Rates(2.0, 4.0, 0.04, 2.0)


@pytest.mark.parametrize(("budget", "steps"), [(512, 1), (511, 2), (200, 3)])
def test_a_prompt_alone_takes_as_many_steps_as_it_has_parts(tiny, budget, steps):
    traffic = make_fixed_traffic(512, 256)
    judge, curve = Judge(Space(question(), HERE), traffic), Curve(tiny.plan("moe"), traffic, BUDGET)
    [part_s] = curve.step_s(np.zeros(1), np.array([budget / 512]), 512.0)
    assert judge.alone_s(curve, budget) == pytest.approx(steps * part_s)


@pytest.mark.parametrize("pair", [("dense", "dense"), ("one-expert", "dense")])
def test_a_model_ties_with_itself_and_one_expert_with_the_dense_block(tiny, pair):
    rows = list(compare_models(*([steady(tiny.plan(name))] for name in pair), ASKED, PLACE))
    assert [row.pairing for row in rows if isinstance(row, FullPoint)] == [BEST, ALIKE]
    for row in rows:
        assert row.ratio == pytest.approx(1, abs=0.02 if pair[0] != pair[1] else 0)
    if pair[0] == pair[1]:
        assert {row.winner for row in rows} == {None}


def test_a_faster_network_never_lowers_the_mixture_of_experts(found):
    places = ("input", "output", "batch_per_gpu", "ep", "pairing", "gpus", "time_per_token_s")
    for name in ("cells", "at_same_time", "at_full_load"):
        by_place = {}
        for row in getattr(found, name):
            by_place.setdefault(tuple(getattr(row, key, None) for key in places), []).append(row)
        assert all(len(rows) == 3 for rows in by_place.values())
        for rows in by_place.values():
            made = [row.moe_tokens_per_s_gpu or 0.0 for row in rows]
            assert made == sorted(made), rows


def test_every_row_says_who_wins_and_why(found):
    terms = {*found.terms, "context length", "tokens of a step", WEIGHTS}
    for name in ("cells", "at_same_time", "at_full_load"):
        for row in getattr(found, name):
            assert (row.ratio is not None) == row.fits
            if row.winner is not None:
                assert row.deciding_term in terms
                assert not row.fits or (row.ratio > 1) == (row.winner == row.moe)


def test_each_model_is_given_its_best_split(found):
    for name in ("at_same_time", "at_full_load"):
        for row in getattr(found, name):
            if row.pairing == ALIKE and row.fits:
                best = next(
                    other
                    for other in getattr(found, name)
                    if other.pairing == BEST
                    and all(
                        getattr(other, key, None) == getattr(row, key, None)
                        for key in ("input", "output", "network", "time_per_token_s")
                    )
                )
                assert best.moe_tokens_per_s_gpu >= row.moe_tokens_per_s_gpu
                assert best.dense_tokens_per_s_gpu >= row.dense_tokens_per_s_gpu


def test_the_same_question_has_the_same_map(found):
    again = crossover(question(), HERE, [0, 1], 0)
    assert again.model_dump_json() == found.model_dump_json()


def test_a_smaller_cache_holds_fewer_and_decides_where_it_is_all_that_differs(tiny):
    plan = tiny.plan("moe", attention_dp=4, ep=4)
    roomy, cramped = (steady(tiny.with_blocks(plan, blocks)) for blocks in (4000, 400))
    assert cramped.most < roomy.most
    rows = compare_models([roomy], [cramped], Crossover(batches=(20.0,), eps=(4,)), PLACE)
    first = {type(row): row for row in reversed(list(rows))}
    assert first[FullPoint].deciding_term == MEMORY
    assert first[FullPoint].ratio > 1
    assert first[LoadPoint].fits is False
    assert first[LoadPoint].deciding_term == MEMORY


def test_requests_longer_than_the_context_have_no_place():
    asked = question(crossover={**QUESTION["crossover"], "inputs": [200_000], "networks": [1.0]})
    cells = crossover(asked, HERE, [0, 1], 0).cells
    assert {(row.winner, row.fits) for row in cells} == {(None, False)}


def test_two_dense_models_have_no_map():
    asked = question(models=[{"model": "llama-3.1-8b"}, {"model": "qwen3-8b"}], crossover={})
    assert crossover(asked, HERE, [0, 1], 0) is None


@pytest.mark.parametrize(("key", "value"), [("models", ["mixtral-8x7b"]), ("cluster", "b200-sxm")])
def test_names_that_the_question_does_not_have_are_refused(key, value):
    with pytest.raises(UserError, match=f"crossover.{key} names .* not among the question's own"):
        question(crossover={key: value})


def uncertain_rows(ratios, widths, **axis):
    """Rows of one pair and length, along an axis; a width of 0 is no band."""
    ((name, values),) = axis.items()
    place = {"moe": "M", "dense": "D", "input": 1024, "output": 1024, "network": 1.0, "fits": True}
    rows = []
    for value, ratio, width in zip(values, ratios, widths, strict=True):
        row = {"ratio": ratio, "winner": "M" if ratio > 1 else "D", "deciding_term": "compute"}
        edges = {"ratio_low": ratio / (1 + width), "ratio_high": ratio * (1 + width)}
        row |= edges if width else dict.fromkeys(edges)
        rows.append(place | row | {name: value, "moe_tokens_per_s_gpu": 1.0})
    return rows


def read(cells=(), full=()):
    models = {"moe": ["M"], "dense": ["D"]}
    found = {"models": models, "cells": cells, "at_full_load": full}
    return list(map(str, describe_flips(CrossoverMap.model_validate(found))))


RATIOS = st.lists(
    st.tuples(st.floats(0.3, 3.0).filter(lambda r: abs(r - 1) > 0.01), st.sampled_from([0, 0.2])),
    min_size=1,
    max_size=6,
)


def test_flips_say_where_the_winner_changes():
    rows = uncertain_rows([0.5, 0.8, 1.5], [0, 0, 0], batch_per_gpu=[1, 4, 16])
    (said,) = read(cells=[row | {"ep": 8} for row in rows])
    assert re.search(r"D up to 4 .*M from 16 ", said)
    rows = uncertain_rows([1.2, 0.7], [0, 0], output=[1024, 8192])
    (said,) = read(full=[row | {"gpus": 8} for row in rows])
    assert re.search(r"M at 1k/1k .*D at 1k/8k ", said)


@cases(60)
@given(RATIOS)
def test_readings_of_the_map_are_as_unsure_as_its_cells(found):
    ratios, widths = zip(*found, strict=True)
    cells = uncertain_rows(ratios, widths, batch_per_gpu=range(1, len(found) + 1))
    cells = [LoadPoint.model_validate(row | {"ep": 8}) for row in cells]
    marked = sum(" ?" in _cell(row) for row in cells)
    (said,) = read(cells=cells)
    alone = said.count("\N{MULTIPLICATION SIGN} ?")
    together = sum(int(count) for count in re.findall(r"\(\?\) at (\d+) of", said))
    assert alone + together == marked


@cases(60)
@given(RATIOS)
def test_each_ratio_that_is_read_alone_carries_the_mark_of_its_cell(found):
    ratios, widths = zip(*found, strict=True)
    sizes = [1024 * 2**n for n in range(len(found))]
    full = [
        FullPoint.model_validate(row | {"gpus": 8})
        for row in uncertain_rows(ratios, widths, output=sizes)
    ]
    said = read(full=full)
    if len({row.winner for row in full}) < 2:
        assert said == []
    else:
        assert said[0].count(" ?") == sum(" ?" in _cell(row) for row in full)
