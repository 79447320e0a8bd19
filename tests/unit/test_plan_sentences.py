"""Sentences of a plan's answer that say how sure it is, and what else there would be."""

import pytest

from simulator.results.answer import Answer, Confidence, SpareRow
from simulator.results.plan_sentences.confidence import tell_confidence, tell_start
from simulator.results.plan_sentences.failures import state_cluster
from simulator.results.plan_sentences.reasons import _tell_other_model


def sure(**figures):
    return Answer(name="p", confidence=Confidence(**figures))


@pytest.mark.parametrize(
    ("starts", "is_said"), [(0.5, True), (0.94, True), (0.95, False), (1, False)]
)
def test_what_may_not_start_is_said_where_it_is_not_sure(starts, is_said):
    said = list(tell_start(sure(starts=starts)))
    assert len(said) == is_said
    assert all(one.startswith("It may not start: ") for one in said)


@pytest.mark.parametrize("answer", [Answer(name="p"), sure(starts=None)])
def test_nothing_is_said_of_a_start_that_nothing_is_known_of(answer):
    assert not list(tell_start(answer))


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
    answer = Answer.model_validate(table)
    [said] = _tell_other_model(answer, answer.recommended)
    assert said.endswith(f" would be b on 4{price}.")


@pytest.mark.parametrize(
    ("less", "share", "said"),
    [
        (0.0, 1.0, "It costs as much as the second choice whatever"),
        (0.004, 0.996, "It costs as much as the second choice whatever"),
        (0.005, 1.0, "It costs less than the second choice with a probability of "),
        (0.3, 1.0, "with a probability of 30 %, and no more with "),
        (0.0, 0.6, " with a probability of 0 %, and no more with 60 %."),
        (0.6, 0.6, "It costs less than the second choice with a probability of 60 %."),
        (None, 0.6, "It costs no more than the second choice with a probability of 60 %."),
    ],
)
def test_the_second_choice_costs_as_much_only_if_it_is_hardly_ever_dearer(less, share, said):
    [told] = tell_confidence(sure(beats_second=share, cheaper_than_second=less))
    assert said in told


@pytest.mark.parametrize(
    ("nodes", "said"), [(1, "on 1 node"), (2, "on 2 nodes"), (1200, "on 1,200 nodes")]
)
def test_a_cluster_is_told_with_its_nodes(nodes, said):
    row = SpareRow(lost="1 node", nodes=nodes, gpus=8, cost_per_hour=0.0)
    assert state_cluster(Answer(name="p"), row) == f"8 GPUs {said}"


def test_what_is_nearly_certain_reads_so():
    said = " ".join(tell_confidence(sure(cheaper_than_second=0.007, beats_second=0.993)))
    assert "a probability of < 1 %, and no more with > 99 %." in said
    assert "has a probability of < 1 %, " in next(tell_start(sure(starts=0.003)))
