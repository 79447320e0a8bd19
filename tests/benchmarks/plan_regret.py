"""What the search of `moesim plan` misses: spaces of some hundred deployments, searched, and
simulated whole.

    python tests/benchmarks/plan_regret.py [NAME ...]     # some minutes a space

Prints for each space how many deployments it has, what the search's choice costs over the cheapest
of all (the regret), and the share of the simulations that the search took.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

from simulator.config.capacity import Question
from simulator.parallel.workers import sweep
from simulator.planner.explore import Evaluation, Explorer
from simulator.planner.screen import Candidate
from simulator.planner.search import best_first, search
from simulator.planner.space import Ruled, Space
from simulator.planner.store import Store
from simulator.planner.traffic import Traffic, lasting, traffic_of

SPACES: dict[str, dict[str, Any]] = {
    "small models": {
        "traffic": (30.0, 800, 100, 1.0),
        "ttft": 1.0,
        "tpot": 0.03,
        "models": ["qwen3-8b", "qwen3-30b-a3b"],
    }
    | {"clusters": ["h100-sxm", "b200-sxm"]},
    "long prompts": {
        "traffic": (4.0, 6000, 300, 2.0),
        "ttft": 2.0,
        "tpot": 0.04,
        "models": ["qwen3-32b", "gpt-oss-120b"],
    }
    | {"clusters": ["h100-sxm", "h200-sxm"]},
    "tight targets": {
        "traffic": (40.0, 300, 300, 1.5),
        "ttft": 0.4,
        "tpot": 0.012,
        "models": ["qwen3-8b", "gpt-oss-20b"],
    }
    | {"clusters": ["h100-sxm", "l40s"]},
    "loose targets": {
        "traffic": (60.0, 1000, 200, 1.0),
        "ttft": 5.0,
        "tpot": 0.1,
        "models": ["mixtral-8x7b", "qwen3-32b"],
    }
    | {"clusters": ["h200-sxm", "a100-sxm"]},
}


def question(name: str) -> Question:
    """One of the spaces."""
    space = SPACES[name]
    rate, num_input, num_output, cv = space["traffic"]
    requests = {
        "arrivals": {"kind": "gamma", "rate_per_s": rate, "cv": cv},
        "lengths": {"kind": "fixed", "num_input": num_input, "num_output": num_output},
        "num_requests": 600,
    }
    table = {
        "name": name,
        "seed": 1,
        "workload": {"requests": requests},
        "targets": {"ttft_s": {"p90": space["ttft"]}, "tpot_s": {"p90": space["tpot"]}},
        "models": [{"model": model} for model in space["models"]],
        "clusters": [{"cluster": cluster, "max_gpus": 16} for cluster in space["clusters"]],
        "space": {
            "tp": [1, 2, 4],
            "attention_dp": [1, 2, 4],
            "redundant_experts": [0.0],
            "overlap": ["none"],
        },
    }
    return lasting(Question.model_validate(table), Path())[0]


def everything(asked: Question) -> list[Candidate]:
    """Every deployment, without the screen having a say."""
    space, budgets = Space(asked, Path()), asked.space.token_budgets
    found = []
    for model, machines in itertools.product(range(len(space.models)), range(len(space.machines))):
        shapes = [shape for shape, _ in space.shapes(model, machines, Ruled())]
        pairs = [(shape, None, budget) for shape in shapes for budget in budgets]
        pairs += [(shape, prefill, budgets[-1]) for shape in shapes for prefill in shapes]
        found += [
            Candidate(d, b, p, 1, int(p is not None), 0.0, 0, 0, 0.0, 0.0) for d, p, b in pairs
        ]
    return found


class Exploring:
    """Explores deployments of one question on all requests."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._world: tuple[Space, Traffic] | None = None

    def __call__(self, candidate: Candidate) -> Evaluation:
        """One deployment."""
        if self._world is None:
            asked = Question.model_validate_json(self.text)
            self._world = Space(asked, Path()), traffic_of(asked, Path())
        space, traffic = self._world
        return Explorer(space, candidate, traffic, space.question.seed).find()


def main(names: list[str]) -> None:
    """Search each space, then simulate all of it."""
    for name in names or list(SPACES):
        asked = question(name)
        found = search(asked, Path(), Store(None))
        candidates = everything(asked)
        best = min(sweep(Exploring(asked.model_dump_json()), candidates), key=best_first)
        chosen, space = found.evaluations[0], found.space
        tried = len(found.first) + len(found.evaluations)
        sys.stdout.write(
            f"{name}: {len(candidates)} deployments, {tried} simulated by the search; "
            f"regret {chosen.cost_per_hour / best.cost_per_hour - 1:.1%} "
            f"({space.text(chosen.candidate.shape)} at {chosen.cost_per_hour:.2f}; the best of "
            f"all {space.text(best.candidate.shape)} at {best.cost_per_hour:.2f})\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
