"""The answer: what to deploy, what else would do, what it hangs on; every number in it can be
traced to a finding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from simulator.config.capacity import Spare
from simulator.planner import words
from simulator.planner.basis import basis
from simulator.planner.crossover import crossover_of
from simulator.planner.explore import sized_as_found
from simulator.planner.findings import best_of_each, headroom_of, row_of
from simulator.planner.handover import handover
from simulator.planner.losses import whole_nodes
from simulator.planner.pareto import pareto
from simulator.planner.row_bands import held
from simulator.planner.search import Found
from simulator.planner.sizes import around
from simulator.planner.why_not import nearest, of_each_model


def summary(
    found: Found, doubts: dict[str, Any] | None = None, target: Path | None = None
) -> dict[str, Any]:
    """The answer as JSON: numbers, no objects.

    Args:
        doubts: what :func:`simulator.planner.uncertainty.doubts` found, to be part of it.
        target: as of :func:`simulator.planner.handover.scenario_text`.
    """
    met = [finding for finding in found.findings if finding.sized is not None]
    doubted = dict(doubts or {})
    bands: list[dict[str, Any]] = doubted.pop("bands", None) or [{} for _ in met]
    rows = [row_of(found, finding) | band for finding, band in zip(met, bands, strict=True)]
    by_option = {finding.option: row for finding, row in zip(met, rows, strict=True)}
    answer: dict[str, Any] = {
        "name": found.question.name,
        "seed": found.question.seed,
        "currency": found.question.power.currency,
        "targets": _targets(found),
        "models": [
            {"name": model.name, "is_moe": model.moe is not None} for model in found.space.models
        ],
        "spare": _spare(found),
        "clusters": [machines.offer.cluster for machines in found.space.machines],
        "num_simulated": _num_simulated(found),
        "num_legal": found.num_legal,
        "num_ruled_out": sum(found.ruled.counts.values()),
        "ruled_out": [
            {"reason": reason, "count": count, "example": found.ruled.examples[reason]}
            for reason, count in found.ruled.counts.items()
        ],
        "traffic": {
            "rate_per_s": found.traffic.rate_per_s,
            "num_requests": found.traffic.num_requests,
            "lead_requests": found.traffic.lead,
            "lasts_s": found.traffic.duration_s,
            "stay_s": found.traffic.stay_s,
            "is_steady": found.traffic.is_steady,
            "lengthened_from": found.asked_requests,
            "mean_input": found.traffic.num_input,
            "mean_output": found.traffic.num_output,
        },
        "clusters_ruled_out": {
            one.offer.cluster: one.beyond for one in found.space.machines if one.beyond
        },
        "why_not_models": of_each_model(found),
        "best_of_each_model": {
            name: by_option[finding.option] for name, finding in best_of_each(found).items()
        },
        "candidates": rows,
        "pareto": pareto(found, bands),
        "crossover": doubted.pop("crossover") if "crossover" in doubted else crossover_of(found),
    }
    if met:
        room = doubted.pop("headroom") if "headroom" in doubted else headroom_of(found, met[0])
        sure = doubted.get("confidence") or {}
        ends = sure.get("headroom_low"), sure.get("headroom_high")
        answer["recommended"] = (
            rows[0] | {"headroom": room} | (held("headroom", room, ends) if sure else {})
        )
        answer["sizes"] = doubted.pop("sizes") if "sizes" in doubted else around(found, met[0])
        answer["basis"] = basis(found)
        answer["handover"] = handover(found, target)
    else:
        answer["why_not"] = nearest(found)
    answer |= doubted
    answer["headline"], answer["reasons"] = words.headline(answer), words.reasons(answer)
    return answer


def _num_simulated(found: Found) -> int:
    """Searches for a size; once for deployments whose first round was of all requests, however many
    replicas they turned out to need.
    """
    first = [replace(finding, option=sized_as_found(finding)) for finding in found.first]
    return len(first) + sum(finding not in first for finding in found.findings)


def _spare(found: Found) -> dict[str, Any]:
    """What may be lost, how many GPUs the recommended deployment holds free for that, on how many
    nodes its cluster is, and what whole nodes would take where replicas are rented on nodes of
    their own.
    """
    best = next((finding for finding in found.findings if finding.sized is not None), None)
    lost = found.question.spare
    table: dict[str, Any] = {"lost": str(lost) if lost != Spare() else "", "gpus": 0}
    if best is None or best.sized is None:
        return table
    sides, space = (best.option.design, best.option.prefill), found.space
    machines, host_gpus = space.machines[best.option.design.machines], space.host_gpus(*sides)
    return table | {
        "gpus": space.spare_gpus(*sides),
        "nodes": -(-best.sized.size // host_gpus),
        "is_spread": host_gpus < machines.spec.gpus_per_node,
        **whole_nodes(machines, host_gpus, best.num_gpus, lost),
    }


def _targets(found: Found) -> dict[str, float]:
    """Limits by target, named as in an outcome."""
    targets = found.question.targets
    limits = {
        f"{name}.{level}": limit
        for name in ("ttft_s", "tpot_s", "e2e_s")
        for level, limit in getattr(targets, name).limits().items()
    }
    shares = {"attainment": targets.attainment, "output_tokens_per_s": targets.output_tokens_per_s}
    return limits | {name: limit for name, limit in shares.items() if limit is not None}
