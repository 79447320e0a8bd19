"""Sentences on ranks that were lost while shards ran, as a deployment's failures have it, and on
experts that moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.report import style
from simulator.results.executed import KINDS, Executed
from simulator.results.formats import num_bytes, percent, seconds_text
from simulator.results.rebalances_text import tell_rebalances


def tell_all_changes(executed: Executed) -> Iterator[str]:
    """Tell what changed while each deployment ran, measured beside predicted."""
    for name in executed.deployments:
        facts = style.facts(executed, name)
        if told := tell_rebalances(facts, name):
            yield told
        for cache in facts.get("caches") or []:
            yield _tell_cache(name, cache)
        changes = [told for change in facts.get("changes") or [] if (told := _tell_change(change))]
        if changes:
            yield f"Of {name}, {'; '.join(changes)}. Every step in flight was run again."
        elif facts.get("failures") and "clock_s" in facts:
            yield (
                f"No GPU of {name} has failed: its measured steps, with what came between them, "
                f"took {seconds_text(facts['clock_s'])}."
            )


def _tell_cache(name: str, cache: dict[str, Any]) -> str:
    """Tell what steps of one kind found in memory and read from the disk."""
    return (
        f"In {KINDS[cache['kind']]} {name} found {percent(cache['hit_rate'])} of its experts in "
        f"memory (predicted: {percent(cache['predicted_hit_rate'])}), and read "
        f"{num_bytes(cache['read_bytes'])} of the others from the disk in "
        f"{seconds_text(cache['read_s'])} (predicted: {seconds_text(cache['predicted_read_s'])})."
    )


def _tell_change(change: dict[str, Any]) -> str:
    """Tell one change; empty for one that the next one tells."""
    ranks, at = _name_ranks(change["ranks"]), seconds_text(change["at_s"])
    one = len(change["ranks"]) == 1
    took = f"{seconds_text(change['seconds'])} (predicted: {seconds_text(change['predicted_s'])})"
    if change["kind"] == "hangs":
        are = "is" if one else "are"
        return f"{ranks} {are} lost at {at} in step {change['step']}, which is noticed after {took}"
    if change["kind"] == "shrinks":
        left = change["num_gpus"]
        goes = "the one that is left goes" if left == 1 else f"the {left} that are left go"
        size = change["loaded_bytes"]
        loads = f" and {num_bytes(size)} of experts loaded on one" if size else " and none loaded"
        return f"{goes} on {took} later, with the experts that they have copies of{loads}"
    if change["kind"] == "grows":
        joins = "joins" if one else "join"
        return f"{ranks} {joins} again at {at}, for which steps wait {took}"
    return f"all start anew in {took}" if change["kind"] == "starts" else ""


def _name_ranks(ranks: list[int]) -> str:
    """Name some ranks.

    >>> _name_ranks([1]), _name_ranks([0, 2, 3])
    ('rank 1', 'ranks 0, 2 and 3')
    """
    *firsts, last = map(str, ranks)
    return f"ranks {', '.join(firsts)} and {last}" if firsts else f"rank {last}"
