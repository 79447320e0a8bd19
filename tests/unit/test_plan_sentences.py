"""Sentences of a plan's answer that say how sure it is, and what else there would be."""

import pytest

from simulator.results import plan_sentences as sentences
from simulator.results.answer import Answer, Confidence, SpareRow
from simulator.results.plan_sentences import (
    _tell_other_model,
    explain_traffic,
    state_cluster,
    tell_confidence,
    tell_rate,
    tell_start,
)
from tests.report.plan_answers import answer, row


def sure(**figures):
    return Answer(name="p", confidence=Confidence(**figures))


@pytest.mark.parametrize(
    ("starts", "is_said"), [(0.5, True), (0.94, True), (0.95, False), (1, False)]
)
def test_what_may_not_start_is_said_where_it_is_not_sure(starts, is_said):
    said = list(tell_start(sure(starts=starts)))
    assert len(said) == is_said
    assert all(one.startswith("It may not start: ") for one in said)


@pytest.mark.parametrize("made", [Answer(name="p"), sure(starts=None)])
def test_nothing_is_said_of_a_start_that_nothing_is_known_of(made):
    assert not list(tell_start(made))


@pytest.mark.parametrize(("cost", "price"), [(12.0, ", 12.00 USD per hour"), (0.0, "")])
def test_the_best_other_model_is_told_with_its_price_where_it_has_one(cost, price):
    rows = {
        name: {
            "model": name,
            "is_moe": is_moe,
            "cost_per_hour": cost,
            "gpus": 4,
            "deployment": f"{name} on 4",
            "worst_ratio": 0.5,
        }
        for name, is_moe in (("a", True), ("b", False))
    }
    table = {"name": "p", "recommended": rows["a"], "best_of_each_model": rows}
    made = Answer.model_validate(table)
    [said] = _tell_other_model(made, made.recommended)
    assert said.endswith(f" would be b on 4{price}.")


@pytest.mark.parametrize(
    ("less", "more", "said"),
    [
        (0.0, 0.0, "It costs as much as the second choice whatever"),
        (0.0, 0.004, "It costs as much as the second choice whatever"),
        (0.3, 0.0, "cheaper with a probability of 30 %, as dear with 70 %, and dearer with 0 %."),
        (0.0, 0.4, "cheaper with a probability of 0 %, as dear with 60 %, and dearer with 40 %."),
        (0.6, 0.4, "cheaper with a probability of 60 %, as dear with 0 %, and dearer with 40 %."),
    ],
)
def test_the_second_choice_costs_as_much_only_if_it_is_hardly_ever_dearer(less, more, said):
    odds = {"cheaper_than_second": less, "dearer_than_second": more}
    [told] = tell_confidence(sure(as_dear_as_second=1 - less - more, **odds))
    assert said in told


@pytest.mark.parametrize(
    ("nodes", "said"), [(1, "on 1 node"), (2, "on 2 nodes"), (1200, "on 1,200 nodes")]
)
def test_a_cluster_is_told_with_its_nodes(nodes, said):
    row = SpareRow(lost="1 node", nodes=nodes, gpus=8, cost_per_hour=0.0)
    assert state_cluster(Answer(name="p"), row) == f"8 GPUs {said}"


def test_what_is_nearly_certain_reads_so():
    odds = {"as_dear_as_second": 0.0, "dearer_than_second": 0.993}
    said = " ".join(tell_confidence(sure(cheaper_than_second=0.007, **odds)))
    assert "a probability of < 1 %, as dear with 0 %, and dearer with > 99 %." in said
    assert "has a probability of < 1 %, " in next(tell_start(sure(starts=0.003)))


def headline(table):
    return sentences.headline(Answer.model_validate(table))


def reasons(table):
    return sentences.reasons(Answer.model_validate(table))


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
    targets = {"tpot_s.p90": 0.05, "ttft_s.p90": 1.0}
    return {
        "name": "tiny plan",
        "recommended": best | {"headroom": 1.3},
        "best_of_each_model": found,
        "models": models,
        "currency": "EUR",
        "targets": targets,
    }


@pytest.mark.parametrize(
    ("moe", "dense", "said"),
    [
        (10.0, 25.0, "the best dense model, dense, costs 2.5\N{MULTIPLICATION SIGN} as much"),
        (30.0, 15.0, "the best mixture of experts, moe, costs 2.0\N{MULTIPLICATION SIGN} as much"),
        (20.0, 20.0, "the best dense model, dense, costs the same"),
        (
            0.0,
            0.0,
            (
                "no price, since the machines are there; the best dense model, dense, "
                "needs 2 GPUs (h100-sxm-2)"
            ),
        ),
    ],
)
def test_the_headline_holds_the_kinds_against_each_other(moe, dense, said):
    assert said in headline(rows(moe, dense))


def test_the_headline_says_what_the_list_cannot_do():
    answer = rows(10.0, 20.0)
    del answer["best_of_each_model"]["dense"]
    assert headline(answer).endswith("no dense model of the list does (dense).")
    assert "10.00 EUR per hour, 1.00 EUR per million output tokens" in headline(answer)


def test_the_reasons_say_what_binds_and_what_is_left():
    said = reasons(rows(10.0, 20.0))
    assert any(
        line.startswith("What binds is the time per output token (p90): 45 ms, limit 50 ms")
        for line in said
    )
    assert any("1.30\N{MULTIPLICATION SIGN} this traffic" in line for line in said)
    easy = rows(10.0, 20.0)
    easy["recommended"] |= {"worst_ratio": 0.33, "tpot_s.p90": 0.0165}
    (line,) = [line for line in reasons(easy) if "limit 50 ms" in line]
    assert line.startswith(
        "Closest to its limit is the time per output token (p90): 16.5 ms, limit 50 ms"
    )
    easy["targets"] |= {"ttft_s.p90": 1.0, "attainment": 0.9}
    easy["recommended"] |= {"ttft_s.p90": 0.4, "attainment": 0.95}
    easy["recommended"] |= {"worst_target": "backlog", "worst_ratio": 0.92}
    (line,) = [line for line in reasons(easy) if "limit 50 ms" in line]
    assert line.startswith("What binds is the backlog of requests that pile up: it is at 92 %")
    assert [part.split(" (")[0].split(": ")[0] for part in line.split("; ")[1:]] == [
        "share of requests within their limits",
        "time to first token",
        "time per output token",
    ]


def test_bands_sizes_and_reasons_are_said_plainly():
    answer = rows(10.0, 20.0)
    del answer["best_of_each_model"]["dense"]
    answer["why_not_models"] = {
        "dense": {
            "target": "tpot_s.p90",
            "text": "misses TPOT by 1.2x on 8 GPUs, all that limits.gpus = 8 allows",
        }
    }
    answer["confidence"] = {"needed_cost_low": 10.0, "needed_cost_high": 10.0}
    answer["sizes"] = {
        "larger": {
            "gpus": 4, "cost_per_hour": 20.0, "deployment": "other on 4 x h100-sxm", ("worst_target"): ("tpot_s.p90"), ("worst_ratio"): 0.4,
        }
    }  # fmt: skip
    assert (
        "no dense model of the list does (dense misses TPOT by 1.2x on 8 GPUs, all that limits.gpus = 8 allows)"
        in headline(answer)
    )
    said = " ".join(reasons(answer))
    assert "the cluster needed costs 10.00 EUR per hour at both ends (80 % band)" in said
    assert (
        "The next size up is 4 GPUs for 20.00 EUR per hour; the best there is other on 4 x h100-sxm; the time per"
        in said
    )
    answer["confidence"] = {"needed_cost_low": 10.0, "needed_cost_high": None}
    assert "10.00 EUR per hour to no cluster within the limits is enough" in " ".join(
        reasons(answer)
    )


def test_machines_and_models_that_are_ruled_out_are_named():
    answer = rows(10.0, 20.0)
    answer["models"].append({"name": "other", "is_moe": True})
    answer["why_not_models"] = {"other": {"text": "its weights do not fit"}}
    answer["clusters_ruled_out"] = {
        "h200-sxm": "even 1 GPU of h200-sxm would cost 9.00 EUR per hour"
    }
    said = reasons(answer)
    assert "other is ruled out: its weights do not fit." in said
    assert "h200-sxm is ruled out: even 1 GPU of h200-sxm would cost 9.00 EUR per hour." in said


def test_what_the_traffic_hides_is_said():
    answer = rows(10.0, 20.0)
    assert not any("steady state" in line or "context" in line for line in reasons(answer))
    answer["traffic"] = {"rate_per_s": 20.0, "is_steady": False, "num_requests": 60, "lasts_s": 3.0}
    answer["recommended"] |= {"too_long_share": 0.0004, "preempted_share": 0.37}
    said = reasons(answer)
    assert any(line.startswith("37 % of the requests lose their KV blocks") for line in said)
    assert any(
        line.startswith("The 60 requests arrive within 3 s, which is too short for a steady state")
        for line in said
    )
    assert (
        "fewer than 0.1 % of the requests are longer than moe's context, and are counted as served."
        in said
    )


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
    traffic = Answer.model_validate(made).traffic
    assert tell_rate(traffic) == rate
    said = list(explain_traffic(traffic))
    assert len(said) == is_far
    for line in said:
        assert "happen to arrive at 1.84 a second, where the workload asks for 2:" in line


def test_headroom_has_its_band():
    answer = rows(10.0, 20.0)
    answer["recommended"] |= {"headroom_low": 1.1, "headroom_high": 1.6}
    assert "It would carry 1.30x this traffic with all targets met; 80 % band: 1.10x to 1.60x." in [
        line.replace("\N{MULTIPLICATION SIGN}", "x") for line in reasons(answer)
    ]


def test_the_time_that_a_spare_is_enough_for_is_told():
    answer = rows(10.0, 20.0)
    answer["spare_nodes"] = [
        {"lost": "nothing", "gpus": 8, "enough_low": 0.9901, "enough_high": 0.99984},
        {"lost": "1 GPU", "gpus": 16, "enough_low": 0.99998, "enough_high": 0.9999997},
    ]
    rates = "at the failure rates of [failures]."
    told = f"All GPUs work for 99.01 to 99.984 % of the time, {rates}"
    assert told in reasons(answer)
    answer["spare"] = {"lost": "1 GPU", "gpus": 1}
    told = f"No more than 1 GPU is out for 99.998 to 99.9999 % of the time, {rates}"
    assert told in reasons(answer)


def test_spare_replicas_are_told_with_what_they_are_enough_for():
    answer = rows(10.0, 20.0)
    answer["recommended"] |= {"replicas": 4, "spare_replicas": 1, "gpus": 40, "gpus_used": 40}
    answer["recommended"]["cost_per_hour"] = 100.0
    answer["spare"] = {"availability": 0.999, "replicas": 1, "replica_gpus": 8}
    answer["spare"] |= {"enough_low": 0.99951, "enough_high": 0.999987}
    answer["spare"] |= {"alone_low": 0.984, "alone_high": 0.9968}
    said = next(line for line in reasons(answer) if "spare" in line)
    assert said == (
        "The cluster has room for 4 replicas and 1 spare: of 5 replicas at least 4 serve for "
        "99.951 to 99.9987 % of the time at the failure rates of [failures] (99.9 % is asked "
        "at the higher rate); without spare ones it would be 98.4 to 99.68 %. 8 of its 40 GPUs are "
        "spare, 20.00 EUR per hour."
    )
    answer["spare"] |= {"replicas": 0, "replica_gpus": 0}
    said = next(line for line in reasons(answer) if "spare" in line)
    assert said.startswith(
        "4 replicas keep every target, and no spare one is needed: all serve for"
    )


def test_a_spare_is_named_as_the_cause_of_the_size():
    answer = rows(10.0, 20.0)
    answer["recommended"] |= {"gpus": 16, "gpus_used": 8}
    answer["spare"] = {"lost": "1 node", "gpus": 8, "nodes": 2}
    answer["spare_nodes"] = [
        {"lost": "nothing", "nodes_lost": 0, "gpus_lost": 0, "gpus": 1, "cost_per_hour": 0.625}
    ]
    said = reasons(answer)
    assert (
        "The cluster has 16 GPUs, since 1 node may be lost; without the spare 1 GPU would do, 0.625 EUR per hour."
        in said
    )
    assert any(
        line.startswith("8 of its 16 GPUs stand idle: they are what may be lost") for line in said
    )
    answer["spare"], answer["recommended"]["gpus_used"] = {"lost": "", "gpus": 0}, 12
    assert any(
        line.startswith("4 of its 16 GPUs stand idle: the cluster comes in no smaller size")
        for line in reasons(answer)
    )


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"a": None, "b": None}, "No quality score is given for any model"),
        ({"a": 0.7, "b": None, "c": None}, "No quality score is given for b, c:"),
        ({"a": 0.7, "b": 0.6}, None),
        ({"a": None}, None),
    ],
)
def test_a_quality_that_nobody_gave_is_not_taken_for_an_equal_one(scores, said):
    made = answer(best_of_each_model={
        name: row(name, name == "a", 2, 5.98, quality=score) for name, score in scores.items()
    })  # fmt: skip
    told = [reason for reason in reasons(made) if "quality" in reason]
    assert len(told) == (said is not None)
    assert all(reason.startswith(said) for reason in told)
