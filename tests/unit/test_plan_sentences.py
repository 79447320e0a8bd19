"""What is found of a plan's answer: how sure it is, and what else there would be."""

import pytest

from simulator.results.answer import Answer, Confidence
from simulator.results.plan_sentences import (
    explain_traffic,
    find_confidence,
    find_rate,
    find_start,
    reasons,
)
from tests.report.plan_answers import answer, row


def sure(**figures):
    return Answer(name="p", confidence=Confidence(**figures))


def read(table):
    return Answer.model_validate(table)


def find(table, kind):
    """The facts of the findings of a kind."""
    return [one.facts for one in reasons(read(table)) if one.kind == f"plan.{kind}"]


def rows(moe_cost, dense_cost):
    def row(model, is_moe, cost):
        return {
            "deployment": f"{model} on 2 x h100-sxm", "model": model, "is_moe": is_moe, "gpus": 2, ("cluster"): ("h100-sxm-2"),
            "cost_per_hour": cost, "cost_per_million_output_tokens": cost / 10, "token_budget": 8192, ("worst_target"): ("tpot_s.p90"),
            "worst_ratio": 0.9, "tpot_s.p90": 0.045,
        }  # fmt: skip

    found = {"moe": row("moe", True, moe_cost), "dense": row("dense", False, dense_cost)}
    best = min(found.values(), key=lambda row: row["cost_per_hour"])
    models = [{"name": "moe", "is_moe": True}, {"name": "dense", "is_moe": False}]
    return {
        "name": "tiny plan",
        "recommended": best | {"headroom": 1.3},
        "best_of_each_model": found,
        "models": models,
        "currency": "EUR",
        "targets": {"tpot_s.p90": 0.05, "ttft_s.p90": 1.0},
    }


@pytest.mark.parametrize(
    ("made", "chances"),
    [
        (Answer(name="p"), []),
        (sure(starts=None), []),
        (sure(starts=0.5), [0.5]),
        (sure(starts=0.94), [0.94]),
        (sure(starts=0.95), []),
        (sure(starts=1), []),
    ],
)
def test_what_may_not_start_is_said_where_it_is_not_sure(made, chances):
    assert [one.facts["chance"] for one in find_start(made)] == chances


@pytest.mark.parametrize(
    ("less", "more", "is_same"),
    [(0, 0, True), (0, 0.004, True), (0.3, 0, False), (0, 0.4, False), (0.6, 0.4, False)],
)
def test_the_second_choice_costs_as_much_only_if_it_is_hardly_ever_dearer(less, more, is_same):
    odds = {"cheaper_than_second": less, "dearer_than_second": more}
    [found] = find_confidence(sure(as_dear_as_second=1 - less - more, **odds))
    assert found.facts["is_same"] == is_same


def test_the_reasons_say_what_binds_and_what_is_left():
    made = rows(10.0, 20.0)
    assert [one["factor"] for one in find(made, "headroom")] == [1.3]
    made["recommended"] |= {"worst_ratio": 0.33, "tpot_s.p90": 0.0165}
    assert not find(made, "binds")[0]["binds"]
    made["targets"] |= {"ttft_s.p90": 1.0, "attainment": 0.9}
    made["recommended"] |= {"ttft_s.p90": 0.4, "attainment": 0.95}
    made["recommended"] |= {"worst_target": "backlog", "worst_ratio": 0.92}
    (found,) = find(made, "binds")
    assert found["binds"]
    assert [one.facts["words"].split(" (")[0] for one in found["kept"]] == [
        "backlog of requests",
        "share of requests within their limits",
        "time to first token",
        "time per output token",
    ]


def test_machines_and_models_that_are_ruled_out_are_named():
    made = rows(10.0, 20.0)
    made["models"].append({"name": "other", "is_moe": True})
    made["why_not_models"] = {"other": {"text": "its weights do not fit"}}
    made["clusters_ruled_out"] = {"h200-sxm": "even 1 GPU of it would cost 9.00 EUR per hour"}
    assert [one["name"] for one in find(made, "ruled_out")] == ["h200-sxm", "other"]


@pytest.mark.parametrize(
    ("drawn", "asked", "rate", "is_far"),
    [
        (1.8412, 2.0, "1.84 a second on average, asked for 2", True),
        (1.98, 2.0, "1.98 a second on average, asked for 2", False),
        (2.0001, 2.0, "2 a second on average", False),
        (1.8412, None, "1.84 a second on average", False),
    ],
)
def test_a_drawn_rate_is_told_beside_the_one_asked_for(drawn, asked, rate, is_far):
    made = rows(10.0, 20.0)
    made["traffic"] = {"rate_per_s": drawn, "asked_rate_per_s": asked, "num_requests": 500}
    traffic = read(made).traffic
    assert str(find_rate(traffic)) == rate
    assert [one.kind for one in explain_traffic(traffic)] == ["traffic.far_from_asked"] * is_far


@pytest.mark.parametrize(
    ("scores", "unscored"),
    [
        ({"a": None, "b": None}, [{"names": ["a", "b"], "is_all": True}]),
        ({"a": 0.7, "b": None, "c": None}, [{"names": ["b", "c"], "is_all": False}]),
        ({"a": 0.7, "b": 0.6}, []),
        ({"a": None}, []),
    ],
)
def test_a_quality_that_nobody_gave_is_not_taken_for_an_equal_one(scores, unscored):
    made = answer(best_of_each_model={
        name: row(name, name == "a", 2, 5.98, quality=score) for name, score in scores.items()
    })  # fmt: skip
    assert find(made, "unscored") == unscored


@pytest.mark.parametrize(
    ("formats", "names"),
    [(("mxfp4", "bf16"), [["moe in mxfp4", "dense in bf16"]]), (("fp8_block", "fp8"), [])],
)
def test_weights_of_other_widths_are_told_with_their_comparison(formats, names):
    moe, dense = (
        row(name, name == "moe", 2, 5.98) | {"deployment": f"{name} {one}, 1 replica on 2 GPUs"}
        for name, one in zip(("moe", "dense"), formats, strict=True)
    )
    made = answer(moe_vs_dense={"moe": moe, "dense": dense, "text": "One costs less."})
    assert [one["names"] for one in find(made, "formats")] == names
