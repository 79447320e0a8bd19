"""An answer that contradicts itself is refused, and what requests do not determine is said: a real
answer is changed in one place at a time.
"""

import copy

import pytest

from simulator.commands import plan
from simulator.results.answer import Answer
from simulator.results.answer.relations import (
    CERTAIN,
    ON_AVERAGE,
    ContradictionError,
    check_answer,
    find_undetermined,
)
from tests.laws.tiny_question import QUESTION, answer_table

pytestmark = pytest.mark.slow


def read(**changes):
    """The answer with other values by path, ``losses__0__met``; ``_DOT_`` is a dot."""
    table = copy.deepcopy(answer_table())
    for path, value in changes.items():
        *outer, last = [
            int(key) if key.isdecimal() else key.replace("_DOT_", ".") for key in path.split("__")
        ]
        inner = table
        for key in outer:
            inner = inner[key]
        inner[last] = value
    return Answer.model_validate(table)


def test_a_real_answer_keeps_every_relation():
    check_answer(read())


WIDE = {"recommended__headroom_low": 0.1, "recommended__headroom_high": 9.0}
CONTRADICTIONS = [
    ({"recommended__gpus": 64}, "recommended row"),
    ({"recommended": None}, "recommended row"),
    ({"candidates__0__worst_ratio": 1.2, "recommended__worst_ratio": 1.2}, "rows that meet"),
    ({"candidates__1__tpot_s_DOT_p90": 9.0}, "rows that meet"),
    ({"candidates__1__cost_per_million_output_tokens_low": 1e9}, "bands hold"),
    ({"candidates__1__cost_per_hour_low": 0.0}, "bands hold"),
    ({"confidence__cheaper_than_second": 0.9, "confidence__dearer_than_second": 0.9}, "add up"),
    ({"confidence__moe_beats_dense": 1.0, "confidence__moe_costs_no_more_than_dense": 0.5}, "add"),
    ({"candidates__0__is_best_probability": 1.5, "recommended__is_best_probability": 1.5}, "add"),
    ({"confidence__meets_targets": 1.0, "losses__0__met": False}, "surely"),
    ({"confidence__meets_targets": 0.5, "confidence__headroom_low": 1.2}, "headroom"),
    ({"confidence__meets_targets": 0.98, "confidence__headroom_low": 0.9}, "headroom"),
    ({"confidence__meets_targets": 0.995, "recommended__headroom": 0.9, **WIDE}, "surely"),
    (
        {"recommended__headroom": 2.04, **WIDE, "sensitivity__0__cost_per_hour": None},
        "twice the traffic",
    ),
]


@pytest.mark.parametrize(("changes", "relation"), CONTRADICTIONS, ids=str)
def test_a_contradiction_is_refused_by_name(changes, relation):
    with pytest.raises(ContradictionError, match=relation):
        check_answer(read(**changes))


def test_every_certain_relation_is_tried():
    names = {each.__name__.replace("_", " ") for each in CERTAIN}
    tried = {name for name in names for _, relation in CONTRADICTIONS if relation in name}
    assert names - tried == {"models are named once"}
    name = next(iter(read().best_of_each_model))
    with pytest.raises(ContradictionError, match="models are named once"):
        check_answer(read(why_not_models={name: {"text": "it misses"}}))


UNDETERMINED = [
    (
        {
            "sizes__also_meets": {
                "gpus": 1, "worst_target": "tpot_s.p90", "worst_ratio": 0.99, "measured": 0.1,
                "sampling_error": 0.02,
            }
        },
        "smallest size",
    ),
    ({"spare_nodes__1__cost_per_hour": 9e9, "spare_nodes__1__cost_per_hour_high": None}, "stands"),
    ({"sensitivity__0__cost_ratio": 0.5, "sensitivity__0__cost_ratio_low": 0.4}, "twice the traffic"),
    ({"recommended__headroom": 0.8, **WIDE, "confidence__meets_targets": 0.5}, "busiest stretch"),
    ({"traffic__num_requests": 150}, "to better than"),
    ({"confidence__figures__tpot_s_DOT_p90": {"value": 0.02, "low": 0.01, "high": 0.02}}, "error"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "what"), UNDETERMINED, ids=str)
def test_what_holds_in_the_mean_is_a_note_with_figures_and_a_remedy(changes, what):
    answer = read(**changes)
    check_answer(answer)
    notes = [one for one in find_undetermined(answer) if what in one.what]
    assert notes
    assert all(one.figures and one.text and one.would for one in notes)


def test_every_relation_in_the_mean_is_tried():
    assert len(UNDETERMINED) == len(ON_AVERAGE)
    for relation, (changes, _) in zip(ON_AVERAGE, UNDETERMINED, strict=True):
        assert any(relation(read(**changes)))


def test_nothing_is_written_of_an_answer_that_contradicts_itself(tmp_path, monkeypatch):
    def contradict(answer):
        raise ContradictionError("the answer contradicts itself (a test): so it is")

    monkeypatch.setattr("simulator.planner.answer.check_answer", contradict)
    with pytest.raises(ContradictionError):
        plan.plan(QUESTION, folder=tmp_path / "out", cache=tmp_path / "cache", workers=1)
    assert not (tmp_path / "out").exists()
