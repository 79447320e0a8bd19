"""A sentence on experts that moved during a run: how often, how much, at what cost, and to what
effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from simulator.results.formats import num_bytes, seconds, seconds_text

_SMALL = 0.02
"""Share of the unmoved imbalance that a move has to take away to be called a gain."""


def tell_rebalances(facts: Mapping[str, Any], short: str) -> str | None:
    """Describe the moves of a deployment's experts; ``None`` where none moved. Moves that were made
    for real have their predicted seconds beside the measured ones.

    Args:
        facts: the deployment's entry in ``run.json``.
        short: name of the deployment in sentences.
    """
    moves: Sequence[dict[str, Any]] = facts.get("rebalances") or []
    if not moves:
        return None
    once = len(moves) == 1
    copies = f"{mean(moved['num_experts'] for moved in moves):,.0f}"
    size = num_bytes(mean(moved["num_bytes"] for moved in moves))
    took = seconds_text(mean(moved["seconds"] for moved in moves))
    if all("predicted_s" in moved for moved in moves):
        took += f" (predicted: {seconds_text(mean(moved['predicted_s'] for moved in moves))})"
    alone = [moved["alone_s"] for moved in moves if moved.get("alone_s") is not None]
    if alone:
        took += f" ({seconds_text(mean(alone))} with the links to themselves)"
    stopped_s = sum(moved["seconds"] for moved in moves if moved["stops"])
    total = "" if once else f", {seconds_text(stopped_s)} in all"
    num_parts = mean(moved.get("num_parts", 1) for moved in moves)
    apart = f"but between its {num_parts:.3g} parts" if num_parts > 1 else ""
    no_step = f"in which a replica forms no step {apart}".rstrip()
    meanwhile = f"{no_step}{total}" if stopped_s else "in the background of steps"
    text = (
        f"Experts of {short} move {'once' if once else f'{len(moves):,} times'}: {copies} copies "
        f"({size} in each replica{'' if once else ', on average'}) in {took}, {meanwhile}."
    )
    judged = [moved for moved in moves if moved["imbalance_next"] is not None]
    if not judged:
        return text
    next_, unmoved = (
        mean(moved[key] for moved in judged) for key in ("imbalance_next", "imbalance_unmoved")
    )
    gained = unmoved - next_ > _SMALL * unmoved
    verdict = "had they stayed" if gained else "had they stayed: moving gains nothing"
    return (
        f"{text} Until it is looked at again the busiest rank has {next_:.2f} times the mean "
        f"rank's load, and would have {unmoved:.2f} times {verdict}."
    )


def tell_move(moved: Mapping[str, Any]) -> str:
    """Describe one move in few words: what it carried, how long it took and what it changed."""
    return (
        f"{moved['num_experts']:,} copies of experts, {num_bytes(moved['num_bytes'])} in "
        f"{seconds(moved['seconds'])}: {moved['imbalance_before']:.2f} to "
        f"{moved['imbalance_after']:.2f}"
    )
