"""An answer is the same after a way through JSON, its schema accepts and describes it, and what no
answer holds is refused.
"""

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simulator.base.frozen import validate
from simulator.commands.schema import make_schema
from simulator.config.capacity import Question
from simulator.planner.answer import make_answer
from simulator.planner.search import search
from simulator.planner.store import Store
from simulator.results.answer import Answer
from simulator.results.answer.parts import has_bands, make_table
from tests.cases import cases
from tests.laws.tiny_question import QUESTION, answer
from tests.report import plan_answers

OPTIONAL = sorted(plan_answers.answer().keys() - {"name"})
SCHEMA = jsonschema.Draft202012Validator(make_schema("answer"))


def survives(made):
    text = made.model_dump_json()
    SCHEMA.validate(json.loads(text))
    again = Answer.model_validate_json(text)
    return again == made and Answer.model_validate(made.model_dump(mode="json")) == made


def test_a_whole_answer_survives_the_file():
    assert has_bands(answer())
    assert survives(answer())


@cases(3)
@given(
    limit=st.sampled_from([0.002, 0.02, 0.2]),
    price=st.sampled_from([0.0, 2.5]),
    spare=st.sampled_from([{}, {"gpus": 1}]),
    models=st.sampled_from([QUESTION["models"], QUESTION["models"][1:]]),
)
def test_answers_to_drawn_questions_survive_the_file(limit, price, spare, models):
    table = QUESTION | {
        "models": models,
        "targets": {"tpot_s": {"p90": limit}},
        "clusters": [{"cluster": "h100-sxm", "max_gpus": 4, "price_per_gpu_hour": price}],
        "spare": spare,
        "crossover": {"inputs": [1024], "outputs": [256], "networks": [1.0], "eps": [1]},
    }
    asked = validate(Question, table, "test")
    made = make_answer(search(asked, Path(), Store(None), workers=1))
    assert survives(made)
    assert (made.recommended is None) == (made.why_not is not None)
    assert made.headline


@cases(40)
@given(left_out=st.sets(st.sampled_from(OPTIONAL)), is_banded=st.booleans())
def test_an_answer_without_some_of_its_parts_survives_the_file(left_out, is_banded):
    table = plan_answers.answer()
    table = plan_answers.banded(table) if is_banded else table
    made = Answer.model_validate({key: table[key] for key in table if key not in left_out})
    assert survives(made)
    assert all(len(make_table(rows)) == len(rows) for rows in (made.candidates, made.losses))


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"recommended": {"cost": 3.0}},
        {"idle": {"unused_gpus": "many"}},
        {"candidates": [{**plan_answers.row("m", True, 2, 5.0), "color_low": 1.0}]},
    ],
)
def test_what_no_answer_holds_is_refused(change):
    with pytest.raises(ValidationError):
        Answer.model_validate(plan_answers.answer() | change)


def test_the_answer_of_an_infinite_number_has_none_there():
    row = plan_answers.row("m", True, 2, 5.0, gpus_high=float("inf"))
    made = Answer.model_validate(plan_answers.answer(candidates=[row]))
    assert made.candidates[0].model_dump(mode="json")["gpus_high"] is None
