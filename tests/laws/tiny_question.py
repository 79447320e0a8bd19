"""A question small enough to search in seconds, its answer, and deployments with made-up costs."""

import copy
from functools import lru_cache
from pathlib import Path

import numpy as np

from simulator.base.frozen import validate
from simulator.config.calibration.engine import UNSAID
from simulator.config.capacity import Question
from simulator.planner.answer import make_answer
from simulator.planner.calibration_error import CalibrationError, LatencyBands
from simulator.planner.conditions import Trials
from simulator.planner.explore import ClusterSize, Evaluation
from simulator.planner.samples import CostSamples, GpuDemand
from simulator.planner.screen import Candidate
from simulator.planner.search import search
from simulator.planner.space import ReplicaShape
from simulator.planner.store import Store
from simulator.planner.uncertainty.assessment import assess
from tests.small_scenario import poisson

ENGINE = f"vllm@{UNSAID}"
"""No release, whose own times and bands may move with a fit."""
QUESTION = {
    "name": "tiny",
    "seed": 3,
    "workload": poisson(60.0, 400, 40, 240),
    "targets": {"ttft_s": {"p90": 0.6}, "tpot_s": {"p90": 0.02}},
    "models": [{"model": name, "engine": ENGINE} for name in ("gpt-oss-20b", "llama-3.1-8b")],
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


def candidate(model, tp=1, prefill=None):
    return Candidate(
        ReplicaShape(model, 0, tp, 1, 1, "", "bf16", 0, "none"),
        2048,
        prefill,
        1,
        1,
        0.0,
        1,
        1,
        0.01,
        0.1,
    )


def error(token=(0.8, 1.5), first_token=None, source="", parts=None, own=""):
    """A calibration's error of one term alone, or of several."""
    bands = LatencyBands(token, first_token or token, source)
    return CalibrationError(bands, parts or {"a": 1.0}, own)


def demand(least=1, **keys):
    """Demand of a deployment that needs GPUs in proportion to its steps' seconds."""
    slower = np.exp(np.linspace(-2, 2, 201)).tolist()
    return GpuDemand(error(**keys), slower, [max(least, round(400 * factor)) for factor in slower])


@lru_cache(maxsize=1)
def found():
    return search(validate(Question, QUESTION, "test"), Path(), Store(None), workers=1)


@lru_cache(maxsize=1)
def answer():
    return make_answer(found(), assess(found(), workers=1))


@lru_cache(maxsize=1)
def answer_table():
    """The answer as plan.json holds it."""
    return answer().model_dump(mode="json")


@lru_cache(maxsize=1)
def roomy():
    """The space that was found, but that machines come in any number."""
    space = copy.copy(found().space)
    space.machines = [machines._replace(sizes=MANY) for machines in space.machines]
    return found()._replace(space=space)


def trials():
    return Trials(found().question.model_dump_json(), str(Path()), None)


def costs(*demands):
    """Samples of the costs of deployments with these demands."""
    candidates = [candidate(model) for model in range(2)][: len(demands)]
    evaluations = [Evaluation(one, ClusterSize(400, 400), None, 400.0) for one in candidates]
    drawn = CostSamples(roomy(), dict(zip(candidates, demands, strict=True)))
    return [drawn.draw_costs(evaluation) for evaluation in evaluations]
