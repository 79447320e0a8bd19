"""What is found of a plan's answer: how sure it is, and what else there would be."""

import pytest

from simulator.results.answer import Answer, Confidence
from simulator.results.plan_sentences import (
    explain_traffic,
    find_confidence,
    find_other_model,
    find_rate,
    find_start,
    headline,
    reasons,
)
from tests.report.plan_answers import answer, row

TIMES = "\N{MULTIPLICATION SIGN}"


def sure(**figures):
    return Answer(name="p", confidence=Confidence(**figures))


def read(table):
    return Answer.model_validate(table)


def find(table, kind):
    """The facts of the findings of a kind."""
    return [one.facts for one in reasons(read(table)) if one.kind == f"plan.{kind}"]


def told(table):
    return [str(one).replace(TIMES, "x") for one in reasons(read(table))]


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


@pytest.mark.parametrize(("cost", "price"), [(12.0, ", 12.00 EUR per hour"), (0.0, "")])
def test_the_best_other_model_is_told_with_its_price_where_it_has_one(cost, price):
    made = read(rows(cost, cost))
    [found] = find_other_model(made, made.recommended)
    assert str(found) == f"The best dense model would be dense on 2 x h100-sxm{price}."


@pytest.mark.parametrize(
    ("less", "more", "is_same"),
    [(0, 0, True), (0, 0.004, True), (0.3, 0, False), (0, 0.4, False), (0.6, 0.4, False)],
)
def test_the_second_choice_costs_as_much_only_if_it_is_hardly_ever_dearer(less, more, is_same):
    odds = {"cheaper_than_second": less, "dearer_than_second": more}
    [found] = find_confidence(sure(as_dear_as_second=1 - less - more, **odds))
    assert found.facts["is_same"] == is_same
    assert ("whatever the simulator's error" in str(found)) == is_same


def test_what_is_nearly_certain_reads_so():
    odds = {"as_dear_as_second": 0.0, "dearer_than_second": 0.993}
    [found] = find_confidence(sure(cheaper_than_second=0.007, **odds))
    assert "a probability of < 1 %, as dear with 0 %, and dearer with > 99 %." in str(found)


@pytest.mark.parametrize(
    ("moe", "dense", "said"),
    [
        (10.0, 25.0, f"the best dense model, dense, costs 2.5{TIMES} as much."),
        (30.0, 15.0, f"the best mixture of experts, moe, costs 2.0{TIMES} as much."),
        (20.0, 20.0, "the best dense model, dense, costs the same."),
        (0.0, 0.0, "every target; the best dense model, dense, needs 2 GPUs (h100-sxm-2)."),
    ],
)
def test_the_headline_holds_the_kinds_against_each_other(moe, dense, said):
    assert str(headline(read(rows(moe, dense)))).endswith(said)


def test_the_headline_says_what_the_list_cannot_do():
    made = rows(10.0, 20.0)
    del made["best_of_each_model"]["dense"]
    assert str(headline(read(made))) == (
        "moe on 2 GPUs meets every target for 10.00 EUR an hour; no dense model of the list does."
    )
    text = "misses TPOT by 1.2x on 8 GPUs, all that limits.gpus = 8 allows"
    made["why_not_models"] = {"dense": {"target": "tpot_s.p90", "text": text}}
    [stopped] = [one for one in reasons(read(made)) if one.kind == "plan.without_rival"]
    assert [(name, why.text) for name, why in stopped.facts["stopped"]] == [("dense", text)]


def test_the_reasons_say_what_binds_and_what_is_left():
    made = rows(10.0, 20.0)
    said = "What binds is the time per output token (p90): 45 ms, limit 50 ms."
    assert said in told(made)
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


@pytest.mark.parametrize(
    ("high", "ends"),
    [(10.0, "at both ends"), (23.0, "to 23.00 EUR per hour"), (None, "to no cluster within the")],
)
def test_the_band_of_the_cost_is_said_plainly(high, ends):
    made = rows(10.0, 20.0) | {"confidence": {"needed_cost_low": 10.0, "needed_cost_high": high}}
    assert any(f"the cluster needed costs 10.00 EUR per hour {ends}" in line for line in told(made))


def test_the_next_size_up_is_told():
    made = rows(10.0, 20.0)
    larger = {"gpus": 4, "cost_per_hour": 20.0, "deployment": "other on 4 x h100-sxm"}
    made["sizes"] = {"larger": larger | {"worst_target": "tpot_s.p90", "worst_ratio": 0.4}}
    assert (
        "The next size up is 4 GPUs for 20.00 EUR per hour; the best there is other on 4 x "
        "h100-sxm; the time per output token (p90) is at 40 % of its limit."
    ) in told(made)


def test_machines_and_models_that_are_ruled_out_are_named():
    made = rows(10.0, 20.0)
    made["models"].append({"name": "other", "is_moe": True})
    made["why_not_models"] = {"other": {"text": "its weights do not fit"}}
    made["clusters_ruled_out"] = {"h200-sxm": "even 1 GPU of it would cost 9.00 EUR per hour"}
    assert [one["name"] for one in find(made, "ruled_out")] == ["h200-sxm", "other"]


def test_what_the_traffic_hides_is_said():
    made = rows(10.0, 20.0)
    assert not any("steady state" in line or "context" in line for line in told(made))
    made["traffic"] = {"rate_per_s": 20.0, "is_steady": False, "num_requests": 60, "lasts_s": 3.0}
    made["recommended"] |= {"too_long_share": 0.0004, "preempted_share": 0.37}
    kinds = [one.kind for one in reasons(read(made)) if one.kind.startswith("traffic.")]
    assert kinds == ["traffic.short", "traffic.preempted", "traffic.too_long"]
    assert any(line.startswith("fewer than 0.1 % of the requests are") for line in told(made))


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


def test_headroom_has_its_band():
    made = rows(10.0, 20.0)
    made["recommended"] |= {"headroom_low": 1.1, "headroom_high": 1.6}
    said = "It would carry 1.30x this traffic with all targets met; 80 % band: 1.10x to 1.60x."
    assert said in told(made)


def test_the_time_that_a_spare_is_enough_for_is_told():
    made = rows(10.0, 20.0)
    made["spare_nodes"] = [
        {"lost": "nothing", "gpus": 8, "enough_low": 0.9901, "enough_high": 0.99984},
        {"lost": "1 GPU", "gpus": 16, "enough_low": 0.99998, "enough_high": 0.9999997},
    ]
    assert find(made, "share_of_time") == [{"lost": "", "enough": "99.01 to 99.984 %"}]
    made["spare"] = {"lost": "1 GPU", "gpus": 1}
    assert find(made, "share_of_time") == [{"lost": "1 GPU", "enough": "99.998 to 99.9999 %"}]


def test_spare_replicas_are_told_with_what_they_are_enough_for():
    made = rows(10.0, 20.0)
    made["recommended"] |= {"replicas": 4, "spare_replicas": 1, "gpus": 40, "gpus_used": 40}
    made["recommended"]["cost_per_hour"] = 100.0
    made["spare"] = {"availability": 0.999, "replicas": 1, "replica_gpus": 8}
    made["spare"] |= {"enough_low": 0.99951, "enough_high": 0.999987}
    made["spare"] |= {"alone_low": 0.984, "alone_high": 0.9968}
    assert (
        "The cluster has room for 4 replicas and 1 spare: of 5 replicas at least 4 serve for "
        "99.951 to 99.9987 % of the time at the failure rates of [failures] (99.9 % is asked "
        "at the higher rate); without spare ones it would be 98.4 to 99.68 %. 8 of its 40 GPUs are "
        "spare, 20.00 EUR per hour."
    ) in told(made)
    made["spare"] |= {"replicas": 0, "replica_gpus": 0}
    assert find(made, "no_spare_replicas")


def test_a_spare_is_named_as_the_cause_of_the_size():
    made = rows(10.0, 20.0)
    made["recommended"] |= {"gpus": 16, "gpus_used": 8}
    made["spare"] = {"lost": "1 node", "gpus": 8, "nodes": 2}
    made["spare_nodes"] = [{"lost": "nothing", "gpus": 1, "cost_per_hour": 0.625}]
    assert (
        "The cluster has 16 GPUs, since 1 node may be lost; without the spare 1 GPU would do, 0.625 EUR per hour."
        in told(made)
    )
    assert find(made, "idle") == [{"idle": 8, "gpus": 16, "kept": 8}]
    made["spare"], made["recommended"]["gpus_used"] = {"lost": "", "gpus": 0}, 12
    assert find(made, "idle") == [{"idle": 4, "gpus": 16, "kept": 0}]


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
