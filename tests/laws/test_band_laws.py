"""Laws of an answer's bands: they hold what they say, what two deployments share cancels, and what
is there twice beats itself.
"""

import copy
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from simulator.base.frozen import validate
from simulator.config.capacity import Question
from simulator.planner.answer import summary
from simulator.planner.confidence import Costs, Doubted, noise_of, over, table_of
from simulator.planner.draws import (
    DRAWS,
    Draws,
    Table,
    band_of,
    firsts,
    gpus_at,
    loading,
    none_cheaper,
    share,
)
from simulator.planner.estimate import Estimator, Pool, Reach
from simulator.planner.explore import Finding, Sized
from simulator.planner.margin import Error, margin
from simulator.planner.row_bands import held, rows
from simulator.planner.screen import Option
from simulator.planner.search import search
from simulator.planner.space import Design
from simulator.planner.store import Store
from simulator.planner.uncertainty import doubts
from simulator.planner.versus import _expected
from simulator.planner.whatif import AS_ASKED, Trials

QUESTION = {
    "name": "tiny",
    "seed": 3,
    "workload": {
        "requests": {
            "arrivals": {"kind": "poisson", "rate_per_s": 60.0},
            "lengths": {"kind": "fixed", "num_input": 400, "num_output": 40},
            "num_requests": 240,
        }
    },
    "targets": {"ttft_s": {"p90": 0.6}, "tpot_s": {"p90": 0.02}},
    "models": [{"model": "gpt-oss-20b"}, {"model": "llama-3.1-8b"}],
    "clusters": [{"cluster": "h100-sxm", "max_gpus": 64}],
    "space": {
        "tp": [1],
        "attention_dp": [1],
        "token_budgets": [2048],
        "redundant_experts": [0.0],
        "overlap": ["none"],
    },
}
MANY = tuple(range(1, 4001))


def option(model, tp=1, prefill=None):
    return Option(
        Design(model, 0, tp, 1, 1, "", "bf16", 0, "none"),
        2048,
        prefill,
        1,
        1,
        0.0,
        0.0,
        1,
        1,
        0.01,
        0.1,
    )


def table(band=(0.8, 1.5), own="", parts=None, least=1):
    """Of a deployment that needs GPUs in proportion to its steps' seconds."""
    slower = np.exp(np.linspace(-2, 2, 201)).tolist()
    return Table(
        band,
        band,
        "",
        parts or {"a": 1.0},
        slower,
        [max(least, round(400 * factor)) for factor in slower],
        own=own,
    )


@lru_cache(maxsize=1)
def found():
    return search(validate(Question, QUESTION, "test"), Path(), Store(None), workers=1)


@lru_cache(maxsize=1)
def answer():
    return summary(found(), doubts(found(), Store(None), workers=1))


@lru_cache(maxsize=1)
def roomy():
    """As found, but that machines come in any number."""
    space = copy.copy(found().space)
    space.machines = [machines._replace(sizes=MANY) for machines in space.machines]
    return found()._replace(space=space)


def trials():
    return Trials(found().question.model_dump_json(), str(Path()), None)


def costs(*tables):
    """Draws of the costs of deployments with these tables."""
    options = [option(model) for model in range(2)][: len(tables)]
    findings = [Finding(one, Sized(400, 400), None, 400.0, 400) for one in options]
    drawn = Costs(roomy(), dict(zip(options, tables, strict=True)))
    return [drawn.of(finding) for finding in findings]


@pytest.mark.parametrize("own", ["", "mine"])
@pytest.mark.parametrize("parts", [{"a": 1.0}, {"a": 0.7, "b": 0.2, "c": 0.1}])
def test_the_band_of_a_known_log_normal_comes_out(parts, own):
    """Whatever a step is made of, four of five draws lie in the calibration's band, and so do GPUs
    in proportion to them.
    """
    one, draws = table(own=own, parts=parts), Draws(7, 40_000)
    assert math.fsum(weight**2 for weight in loading(parts, own).values()) == pytest.approx(1.0)
    slowness = draws.slowness(one)
    assert np.quantile(slowness, [0.1, 0.5, 0.9]) == pytest.approx(
        [0.8, math.sqrt(1.2), 1.5], rel=0.02
    )
    assert band_of(draws.gpus(one, MANY)) == pytest.approx((320, 600), rel=0.03)


def test_what_is_shared_cancels_and_the_rest_does_not():
    """The same deployment twice: a ratio of 1 in every draw; with errors of its own or other
    kernels the ratio has a band.
    """
    mine, same = costs(table(own="mine"), table(own="mine"))
    assert band_of(over(mine, same)) == (1.0, 1.0)
    assert (share(mine <= same, mine, same), share(mine < same, mine, same)) == (1.0, 0.0)
    widths = []
    for other in (table(own="theirs"), table(own="theirs", parts={"b": 1.0})):
        mine, theirs = costs(table(own="mine"), other)
        low, high = band_of(over(mine, theirs))
        widths.append(high / low)
        assert share(mine < theirs, mine, theirs) == pytest.approx(0.5, abs=0.05)
    assert 1.1 < widths[0] < widths[1]


def test_what_errs_together_does_not_change_the_order():
    """Two deployments whose steps consist of the same terms: the dearer one never wins; with
    different terms it may.
    """

    def probability(parts):
        near = Table((0.5, 2.0), (0.5, 2.0), "", {"a": 1.0}, [0.1, 1.0, 10.0], [1, 16, 64])
        options = option(0), option(1)
        findings = [
            Finding(one, Sized(size, size), None, float(size), size)
            for one, size in zip(options, (16, 24), strict=True)
        ]
        tables = near, near._replace(parts=parts, gpus=[2, 24, 64])
        drawn = Costs(found(), dict(zip(options, tables, strict=True)))
        mine, theirs = (drawn.of(finding) for finding in findings)
        return float((mine <= theirs).mean())

    assert probability({"a": 1.0}) == 1.0
    assert 0.5 < probability({"b": 1.0}) < 1.0


def test_gpus_between_what_was_tried():
    tried = Table((0.8, 1.25), (0.8, 1.25), "", {}, [0.8, 1.0, 1.25], [4, 8, 0])
    slower = np.array([0.1, 0.8, 0.81, 1.0, 1.05, 1.2, 9.0])
    assert gpus_at(tried, (1, 2, 4, 8, 16), slower).tolist() == [4, 4, 8, 8, 8, np.inf, np.inf]


def test_other_samples_count_as_often_as_each_other():
    draws = Draws(3)
    one = table(band=(0.999, 1.001))
    noisy = draws.gpus(one._replace(noise=(1.0, 1.0, 2.0)), MANY)
    tabulated = draws.gpus(
        one._replace(by_sample=(one.gpus, one.gpus, [2 * gpus for gpus in one.gpus])), MANY
    )
    for gpus in (noisy, tabulated):
        assert (gpus > 600).mean() == pytest.approx(0.25, abs=0.03)


def test_a_harder_sample_and_slower_steps_are_not_rounded_up_twice():
    """Sizes double: either alone takes the next size, and both together hardly ever two sizes
    more.
    """
    one = Table(
        (0.98, 1.1), (0.98, 1.1), "", {"a": 1.0}, [0.9, 1.0, 1.08, 1.2, 1.6], [8, 8, 16, 16, 16]
    )
    alone, harder = (
        Draws(3).gpus(one._replace(noise=noise), (8, 16, 32)) for noise in ((), (2.0, 2.0, 2.0))
    )
    assert set(alone) == {8.0, 16.0}
    assert set(harder) == {8.0, 16.0}
    assert (harder == 16).mean() > (alone == 16).mean() + 0.1
    beyond = Draws(3).gpus(one._replace(noise=(4.0, 4.0, 4.0)), (8, 16, 32))
    assert (beyond >= 32).mean() == pytest.approx(0.75, abs=0.03)


def test_a_sample_that_no_size_is_enough_for_fails():
    first = found().findings[0]
    own = table()
    rows = [{"gpus": [gpus]} for gpus in (own.gpus[own.slower.index(1.0)], 0, 0)]
    compared = Doubted(first, None, None, None, {first.option: own}, rows, [], (1.0, 1.0))
    noise = noise_of(compared, 0)
    assert noise == (1.0, math.inf, math.inf)
    draws = Draws(5)
    failing = np.isin(
        draws.sample,
        [number for number, ratio in zip(DRAWS, noise, strict=True) if math.isinf(ratio)],
    )
    needed = draws.gpus(own._replace(noise=noise), MANY)
    assert np.isinf(needed[failing]).all()
    assert (needed[~failing] == draws.gpus(own, MANY)[~failing]).all()


def test_somebody_is_first_wherever_anybody_is():
    drawn = np.exp(np.random.default_rng(1).standard_normal((5, 2000)))
    drawn[:, :100] = np.inf
    assert firsts(drawn).sum() == pytest.approx(0.95)
    assert none_cheaper(drawn) == pytest.approx(firsts(drawn))
    twice = np.concatenate([drawn, drawn])
    assert firsts(twice) == pytest.approx([*firsts(drawn), *np.zeros(5)])
    assert none_cheaper(twice) == pytest.approx(np.tile(none_cheaper(drawn), 2))


@pytest.mark.parametrize(
    ("least", "most"), [(3.0, 4.0), (0.5, 0.7), (30.0, math.inf), (0.01, 0.02)]
)
def test_a_closed_form_is_fitted_to_what_was_found(least, most):
    reach = Reach(
        1, np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.5, 0.7, 1.1, 1.9]), np.ones(4), np.ones(4)
    )
    slack, scale = reach.fitted(least, most)
    assert least * (1 - 1e-9) <= scale * reach.carries(1.0, slack) < most
    carried = [reach.carries(slower, slack) for slower in (0.5, 0.8, 1.0, 1.2, 2.0, 9.0)]
    assert carried == sorted(carried, reverse=True)
    assert carried[-1] == 0.0
    assert reach.fitted(2.5, 4.0) == (1.0, 1.0)


@pytest.mark.parametrize("rate", [0.3, 10.0, 100.0, 900.0])
@pytest.mark.parametrize(("replicas", "fewer"), [(1, 0), (2, 1), (16, 12), (7, 6)])
def test_a_closed_form_needs_what_was_found(rate, replicas, fewer):
    reach = Reach(
        1, np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.5, 0.7, 1.1, 1.9]), np.ones(4), np.ones(4)
    )
    slack, scale = reach.fitted(rate / replicas, rate / fewer if fewer else math.inf)
    assert fewer < Pool(reach, replicas, slack, scale, ()).needed(rate, 1.0) <= replicas


def test_a_closed_form_starts_where_simulation_is_and_never_falls():
    for estimate, finding in [
        (Estimator(trials(), samples=True).estimate(one), one) for one in found().findings
    ]:
        if finding.sized is None:
            continue
        own = estimate.table
        assert own.gpus[own.slower.index(1.0)] == finding.sized.size
        for gpus in (own.gpus, *own.by_sample):
            needed = [number or math.inf for number in gpus]
            assert needed == sorted(needed)
        for low, high in estimate.factors.values():
            assert low <= 1.0 <= high


def test_a_closed_form_is_near_what_simulation_finds():
    """Over the calibration's whole band, of both models: within the step of sizes that a tenth more
    load takes.
    """
    for model in range(2):
        finding = trials().find(option(model), AS_ASKED)
        simulated = table_of(trials(), finding.option)
        closed = Estimator(trials()).estimate(finding).table
        sizes = found().space.machines[0].sizes
        for factor in simulated.slower:
            if not simulated.edges[0] <= factor <= simulated.edges[1]:
                continue
            true = simulated.gpus[simulated.slower.index(factor)]
            low, high = (
                gpus_at(closed, sizes, np.array([factor * off]))[0] for off in (0.85, 1.15)
            )
            assert low <= true <= high


def test_a_model_and_itself_are_alike_for_sure():
    one = Error({"a": 0.6, "mine": 0.8}, 0.1, 0.2)
    assert margin(1.0, one, one) == (1.0, 1.0, 0.5)
    apart = margin(1.0, one, one._replace(weights={"a": 0.6, "theirs": 0.8}))
    assert apart.low < 1.0 < apart.high
    assert apart.above == pytest.approx(0.5)
    assert margin(1.2, one, one._replace(gives=math.inf)) == (None, None, None)
    nearer, further = (
        margin(1.1, one, one._replace(weights={"b": 1.0})),
        margin(1.4, one, one._replace(weights={"b": 1.0})),
    )
    assert 0.5 < nearer.above < further.above < 1.0


def test_a_cell_of_the_map_has_a_band():
    cells = [row for row in answer()["crossover"]["cells"] if row["fits"]]
    assert cells
    for row in cells:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["moe_requests_per_s_gpu"] * row["output"] == pytest.approx(
            row["moe_tokens_per_s_gpu"], rel=1e-3
        )
    same_time = [
        row for row in answer()["crossover"]["at_same_time"] if row["ratio_low"] is not None
    ]
    assert all(row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in same_time)


def figures(value):
    """All figures of an answer that have a band, with it."""
    if isinstance(value, dict):
        for name in value:
            if f"{name}_low" in value:
                yield value[name], value[f"{name}_low"], value[f"{name}_high"]
            yield from figures(value[name])
    elif isinstance(value, list):
        for one in value:
            yield from figures(one)


def test_every_band_holds_its_figure():
    banded = [(one, low, high) for one, low, high in figures(answer()) if one is not None]
    assert len(banded) > 100
    for one, low, high in banded:
        assert low is None or low <= one * (1 + 1e-12)
        assert high is None or one <= high * (1 + 1e-12)
    assert held("gpus", None, (1.0, 2.0)) == {}


def test_every_deployment_has_bands():
    named = {
        "cost_per_hour",
        "cost_per_million_output_tokens",
        "gpus",
        "output_tokens_per_s",
        "ttft_s.p90",
        "tpot_s.p90",
    }
    everywhere = [
        *answer()["candidates"],
        *answer()["best_of_each_model"].values(),
        answer()["moe_vs_dense"]["moe"],
    ]
    for row in everywhere:
        assert row["band"] in ("simulated", "closed form")
        assert all(f"{name}_low" in row for name in named)
    assert sum(row["is_best_probability"] for row in answer()["candidates"]) == pytest.approx(
        1.0, abs=0.02
    )
    assert all(
        row["none_cheaper_probability"] >= row["is_best_probability"]
        for row in answer()["candidates"]
    )
    for name in ("cost_ratio", "cost_per_hour"):
        assert all(f"{name}_low" in row for row in answer()["sensitivity"])
    assert all("goodput_per_s_low" in row and "note" in row for row in answer()["losses"])
    assert all("gpus_low" in row for row in answer()["spare_nodes"])
    assert (
        answer()["recommended"]["headroom_low"]
        <= answer()["recommended"]["headroom"]
        <= answer()["recommended"]["headroom_high"]
    )
    points = answer()["pareto"]
    assert {point["kind"] for point in points} == {"closed form", "simulated"}
    assert all(
        point["tokens_per_s_user_low"]
        <= point["tokens_per_s_user"]
        <= point["tokens_per_s_user_high"]
        for point in points
    )


def test_a_deployment_that_is_there_twice_is_as_likely_the_best():
    """Of rows that cost the same in every draw, the one listed first is taken."""
    first = found().findings[0]
    doubled = found()._replace(
        findings=[
            first,
            Finding(first.option._replace(budget=1024), *list(vars(first).values())[1:]),
        ]
    )
    own = table(own="mine")
    drawn = Costs(doubled, {finding.option: own for finding in doubled.findings})
    compared = Doubted(first, None, None, None, {first.option: own}, [], [], (1.0, 1.0))
    bands = rows(
        doubled,
        compared._replace(slowed=[{"slower": 1.0, "measured": {}, "ratios": {}}]),
        drawn,
        {},
    )
    assert [one["is_best_probability"] for one in bands.values()] == [1.0, 0.0]
    assert [one["none_cheaper_probability"] for one in bands.values()] == [1.0, 1.0]


def test_pools_and_plain_replicas_of_as_many_gpus_can_be_ordered():
    plain, pooled = option(0)._replace(replicas=2), option(0, prefill=option(0).design)
    for rate in (0.125, 1.0, 8.0):
        assert sorted([pooled, plain], key=lambda one: _expected(found(), one, rate))[0] == plain
