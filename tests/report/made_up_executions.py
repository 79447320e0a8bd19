"""Executions made up with a seeded generator, so that their page is tested without PyTorch."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pandas as pd

from simulator.results.executed import RANK_COLUMNS, STEP_COLUMNS, SUMMARY_COLUMNS, Executed
from simulator.results.phases import STEP_PHASES
from simulator.results.tables import SPAN_COLUMNS

MACHINE = "AMD EPYC, 2 cores"
HOSTILE = "<script>alert('x')</script> & <b>bold</b>"
TOKENS = {"prompt": 512, "decode": 32}
WARM_UP, STEPS = 2, 6
FAULTS = ["deployment", "step", "ranks", "what", "recovery_s"]
MOE_SHARES = dict(zip(STEP_PHASES, (0.2, 0.05, 0.3, 0.1, 0.15, 0.1, 0.0, 0.1), strict=True))
DENSE_SHARES = dict(zip(STEP_PHASES, (0.2, 0.5, 0.0, 0.0, 0.0, 0.05, 0.15, 0.1), strict=True))


def deployment(
    name: str, speed: float, *, is_moe: bool = False, total: int = 26_000_000, **facts: Any
) -> dict[str, Any]:
    """What one deployment is, and how many prompts' tokens it computes in a second."""
    active = 4_300_000 if is_moe else total
    described = {
        "model": "moe" if is_moe else f"dense-{total}",
        "is_moe": is_moe,
        "num_gpus": 2,
        "pruning": None,
    }
    described |= {
        "model_title": f"Model of {name}",
        "total_parameters": total,
        "active_parameters": active,
        "warnings": [],
    }
    described["assumptions"] = (
        [{"what": "routing", "value": "zipf", "kind": "assumed", "source": "a test"}]
        if is_moe
        else []
    )
    return {"name": name, "speed": speed, "facts": described | facts}


def make(
    deployments: list[dict[str, Any]],
    *,
    kinds: tuple[str, ...] = ("prompt", "decode"),
    faults: tuple[tuple[Any, ...], ...] = (),
    ranks: int = 2,
    layers: int = 3,
    off: float = 0.8,
    difference: float = 3e-6,
    others: float = 0.0,
    **run: Any,
) -> Executed:
    """An execution in which every prediction takes ``off`` of the time, and decode is ten times
    slower a token than prompts.
    """
    rng = np.random.default_rng(0)
    tables: dict[str, list[Any]] = {name: [] for name in ("summary", "steps", "ranks", "spans")}
    for made in deployments:
        for place, kind in enumerate(kinds):
            step_s = TOKENS[kind] / made["speed"] * (10 if kind == "decode" else 1)
            shares = MOE_SHARES if made["facts"]["is_moe"] else DENSE_SHARES
            numbers = range(place * (WARM_UP + STEPS) + WARM_UP, (place + 1) * (WARM_UP + STEPS))
            duration_s = {
                "measured": step_s * rng.uniform(0.9, 1.1, STEPS),
                "predicted": np.full(STEPS, off * step_s),
            }
            for source, all_s in duration_s.items():
                for number, took_s in zip(numbers, all_s, strict=True):
                    phases = {f"{phase}_s": share * took_s for phase, share in shares.items()}
                    row = {
                        "deployment": made["name"],
                        "kind": kind,
                        "source": source,
                        "number": number,
                        "tokens": TOKENS[kind],
                    }
                    tables["steps"].append({**row, "duration_s": took_s, **phases})
                for rank, layer in itertools.product(range(ranks), range(layers)):
                    start_s = layer / layers * all_s[-1]
                    for phase, share in shares.items():
                        length_s = share * all_s[-1] / layers
                        tables["spans"].append(
                            (
                                made["name"],
                                f"{kind}, {source}",
                                rank,
                                phase,
                                layer,
                                start_s,
                                length_s,
                            )
                        )
                        start_s += length_s
            if made["facts"]["is_moe"]:
                for number, rank, layer in itertools.product(numbers, range(ranks), range(layers)):
                    pairs = int(rng.integers(10, 100))
                    tables["ranks"].append(
                        (made["name"], kind, number, rank, layer, pairs, pairs // 2)
                    )
            middle_s = float(np.median(duration_s["measured"]))
            numbers_row = (
                TOKENS[kind] / middle_s,
                TOKENS[kind] / (off * step_s),
                middle_s,
                off * step_s,
                off * step_s / middle_s - 1,
                off * step_s / (middle_s * (1 - others)) - 1,
                others,
                0.0,
            )
            parameters = (made["facts"]["total_parameters"], made["facts"]["active_parameters"])
            tables["summary"].append((made["name"], kind, *numbers_row, difference, *parameters))
    chance = {"mean": 1.3, "low": 1.1, "high": 1.6}
    facts = {
        made["name"]: made["facts"]
        | {
            "shown_steps": {
                kind: {
                    "number": place * (WARM_UP + STEPS) + WARM_UP + 1,
                    "uniform_imbalance": chance if made["facts"]["is_moe"] else None,
                }
                for place, kind in enumerate(kinds)
            }
        }
        for made in deployments
    }
    described = {
        "name": "a test",
        "seed": 1,
        "command": "moesim execute test",
        "machine": MACHINE,
        "nodes": "1 node(s)",
        "wall_s": 3.0,
    }
    described |= {
        "calibration": {"title": "This machine", "machine": MACHINE, "source": "a test"},
        "deployments": facts,
    }
    described["scenario"] = {
        "execution": {
            "prompts": 8,
            "prompt_tokens": 64,
            "sequences": 32,
            "context_tokens": 128,
            "steps": STEPS,
        }
    }
    return Executed(
        run=described | run,
        summary=pd.DataFrame(tables["summary"], columns=list(SUMMARY_COLUMNS)),
        steps=pd.DataFrame(tables["steps"], columns=list(STEP_COLUMNS)),
        ranks=pd.DataFrame(tables["ranks"], columns=list(RANK_COLUMNS)),
        spans=pd.DataFrame(tables["spans"], columns=list(SPAN_COLUMNS)),
        faults=pd.DataFrame(list(faults), columns=FAULTS),
    )


MOE = deployment("MoE, 2 ranks", 2400, is_moe=True)
TOTAL = deployment("Dense, total", 1000)
ACTIVE = deployment("Dense, active", 4800, total=4_300_000)
HALF = deployment("Dense, half", 2000, pruning="unstructured (sparsity 0.5)")
LOST = (
    ("MoE, 2 ranks", 4, "1", "rank 1 died", 2.5),
    ("MoE, 2 ranks", 8, "0 1", "node 0 <died>", 12.25),
)


def changed(made: Executed) -> Executed:
    """An execution whose mixture of experts lost a rank, got it back, and moved experts."""
    change: dict[str, Any] = {"pool": "both", "replicas": [0], "ranks": [1], "loaded_bytes": 0.0}
    change |= {"starts": False, "num_requests": 0, "num_gpus": 3, "serves_s": 0.75}
    changes = [
        change | {"kind": "hangs", "at_s": 0.5, "step": 4, "seconds": 0.25, "predicted_s": 5.0},
        change
        | {"kind": "shrinks", "at_s": 0.75, "step": 4, "seconds": 0.125, "predicted_s": 1.2}
        | {"loaded_bytes": 4.2e6},
        change
        | {"kind": "grows", "at_s": 2.0, "step": 11, "seconds": 0.1, "predicted_s": 1.2}
        | {"num_gpus": 4},
    ]
    moved = {"at_s": 0.1, "pool": "both", "num_experts": 12, "num_bytes": 4.2e6, "seconds": 0.01}
    moved |= {"imbalance_before": 1.5, "imbalance_after": 1.1, "stops": True, "step": 12}
    moved |= {"imbalance_next": None, "imbalance_unmoved": None, "predicted_s": 0.02}
    run = dict(made.run)
    first = made.deployments[0]
    more = {"changes": changes, "rebalances": [moved], "clock_s": 3.0}
    run["deployments"] = run["deployments"] | {first: run["deployments"][first] | more}
    return dataclasses.replace(made, run=run)


def bare(made: Executed) -> Executed:
    """Without what only describes it."""
    told = made.run["deployments"].items()
    steps = {name: {"shown_steps": facts["shown_steps"]} for name, facts in told}
    return dataclasses.replace(made, run={"deployments": steps})


CASES = {
    "all": lambda: make([MOE, TOTAL, ACTIVE, HALF]),
    "faults": lambda: make([MOE, TOTAL], faults=LOST),
    "changes": lambda: changed(make([MOE, TOTAL])),
    "one": lambda: make([TOTAL], kinds=("decode",)),
    "no mixture": lambda: make([TOTAL, ACTIVE], kinds=("prompt",)),
    "only pruned": lambda: make([HALF]),
    "many ranks": lambda: make(
        [MOE, deployment("MoE, again", 1000, is_moe=True), TOTAL], ranks=24, layers=40
    ),
    "hostile": lambda: make(
        [deployment(HOSTILE, 100, is_moe=True, model_title=HOSTILE), TOTAL], name=HOSTILE
    ),
    "ten": lambda: make(
        [
            deployment(f"a deployment with a name that is very long indeed, no. {i}", 100 + i)
            for i in range(10)
        ]
    ),
    "no spans": lambda: dataclasses.replace(make([MOE, TOTAL]), spans=make([]).spans),
    "bare": lambda: bare(make([MOE, TOTAL])),
}
