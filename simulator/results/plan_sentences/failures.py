"""Sentences on what of a recommended cluster stands idle, and on what is left when GPUs or nodes
are lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from simulator.results.answer import Answer, DeploymentRow, SpareGpus, SpareRow
from simulator.results.formats import count, percent
from simulator.results.plan_text import count_gpus, per_hour


def explain_idle(answer: Answer, best: DeploymentRow) -> Iterator[str]:
    """Why the cluster is as large as it is, and why some of its GPUs stand idle."""
    if answer.spare.lost:
        yield _explain_spare(answer, best.gpus)
    yield from _explain_replicas(answer, best)
    idle = 0 if best.gpus_used is None else best.gpus - best.gpus_used
    if idle <= 0:
        return
    kept = min(answer.spare.gpus, idle)
    if idle > kept:
        why = "the cluster comes in no smaller size, and another replica there would add headroom"
        why = f"{kept} of them are what may be lost; {why}" if kept else why
    else:
        why = (
            "they are what may be lost; latencies assume that they serve nothing, and improve "
            "while replicas run there, too"
        )
    yield f"{idle} of its {best.gpus} GPUs {'stands' if idle == 1 else 'stand'} idle: {why}."


def _explain_replicas(answer: Answer, best: DeploymentRow) -> Iterator[str]:
    """Explain how many replicas are spare (N+k), and for what share of the time they are enough."""
    spare = answer.spare
    if spare.availability is None or spare.enough_low is None or spare.alone_low is None:
        return
    needed, asked = best.replicas + best.prefill_replicas, _state_nines(spare.availability)
    enough = _state_shares(spare.enough_low, spare.enough_high or spare.enough_low)
    alone = _state_shares(spare.alone_low, spare.alone_high or spare.alone_low)
    rates = f"at the failure rates of [failures] ({asked} % is asked at the higher rate)"
    if not spare.replicas:
        keeps = f"{count(needed, 'replica')} keep{'s' * (needed == 1)} every target"
        yield f"{keeps}, and no spare one is needed: all serve for {alone} of the time {rates}."
        return
    total = f"{needed + spare.replicas} replicas"
    least = f"of {total} at least {needed} serve{'s' * (needed == 1)}"
    if best.prefill_replicas:
        least = f"with {total} enough of each pool serve"
    gpus = spare.replica_gpus or 0
    cost = _state_cost(answer, best.cost_per_hour * gpus / best.gpus)
    yield (
        f"The cluster has room for {count(needed, 'replica')} and {spare.replicas} spare: {least} "
        f"for {enough} of the time {rates}; without spare ones it would be {alone}. {gpus} of its "
        f"{count_gpus(best.gpus)} {'is' if gpus == 1 else 'are'} spare{cost}"
        f"{_state_without(answer)}."
    )


def _state_shares(low: float, high: float) -> str:
    """A share of the time from the highest rate of failures to the lowest."""
    first, last = _state_nines(low), _state_nines(high)
    return f"{first} %" if first == last else f"{first} to {last} %"


def explain_losses(answer: Answer) -> Iterator[str]:
    """The most that may be lost with every target still met, for what share of the time no more is,
    what the next loss does, and what it would take to stand that.
    """
    if answer.spare.availability is None:
        yield from _tell_share_of_time(answer)
    rows = [row for row in answer.losses if row.nodes_lost or row.gpus_lost]
    kept = [row for row in rows if row.met]
    if kept:
        yield f"With {kept[-1].lost} lost it still meets every target."
    missed = next((row for row in rows if not row.met), None)
    if missed is None or any(row.nodes_lost for row in kept):
        return
    whole = answer.losses[0].attainment
    usual = "" if whole is None else f", {percent(whole)} with nothing lost"
    if missed.text:
        said = f"With {missed.lost} lost {missed.text}"
    else:
        served = (
            ""
            if missed.attainment is None
            else f": {percent(missed.attainment)} of requests are served within their limits{usual}"
        )
        said = f"With {missed.lost} lost a target is missed{served}"
    spare = _find_spare(answer, missed.lost)
    if spare is not None and spare.gpus:
        said += f"; to keep every target then takes {state_cluster(answer, spare)}"
        said += _state_whole_nodes(answer, spare)
    yield f"{said}."


def _tell_share_of_time(answer: Answer) -> Iterator[str]:
    """Tell for what share of the time no more is lost than the recommended cluster was asked to
    stand.
    """
    row = _find_spare(answer, answer.spare.lost or "nothing")
    if row is not None and (enough := share_of_time(row)):
        what = f"No more than {answer.spare.lost} is out" if answer.spare.lost else "All GPUs work"
        yield f"{what} for {enough} of the time, at the failure rates of [failures]."


def share_of_time(row: SpareRow) -> str:
    """Share of the time in which no more is lost, from the highest rate of failures to the lowest,
    such as ``99.2 to 99.87 %``; empty where it is not known.
    """
    if row.enough_low is None or row.enough_high is None:
        return ""
    return _state_shares(row.enough_low, row.enough_high)


def _state_nines(share: float) -> str:
    """A share near 1 as a percentage, with two digits of what is missing, and six nines at most.

    >>> _state_nines(0.99871), _state_nines(0.9999987), _state_nines(0.93)
    ('99.87', '99.9999', '93')
    """
    missing = max(100 * (1 - share), 1e-4)
    digits = max(0, 1 - math.floor(math.log10(missing)))
    told = min(share, 0.999999)
    return f"{100 * told:.{min(digits, 4)}f}".rstrip("0").rstrip(".")


def _find_spare(answer: Answer, lost: str) -> SpareRow | None:
    return next((row for row in answer.spare_nodes if row.lost == lost), None)


def _explain_spare(answer: Answer, size: int) -> str:
    """Explain which machines may be lost, and which cluster would do if none were."""
    spare = answer.spare
    alone = f" on {spare.nodes} nodes, a replica on each" if spare.is_spread else ""
    said = f"The cluster has {count_gpus(size)}{alone}, since {spare.lost} may be lost"
    said += _state_whole_nodes(answer, spare)
    return f"{said}{_state_without(answer)}."


def _state_without(answer: Answer) -> str:
    """Tell the size without anything spare, after a semicolon; empty where it is not known."""
    without = _find_spare(answer, "nothing")
    if without is None or not without.gpus:
        return ""
    cost = _state_cost(answer, without.cost_per_hour)
    return f"; without the spare {count_gpus(without.gpus)} would do{cost}"


def state_cluster(answer: Answer, row: SpareRow) -> str:
    """A cluster with its nodes and cost."""
    cost = _state_cost(answer, row.cost_per_hour)
    return f"{count_gpus(row.gpus or 0)} on {count(row.nodes or 0, 'node')}{cost}"


def _state_whole_nodes(answer: Answer, row: SpareRow | SpareGpus) -> str:
    """Tell the size in whole nodes, after a semicolon; empty where the cluster has them already."""
    if not row.gpus_in_whole_nodes:
        return ""
    cost = _state_cost(answer, row.cost_per_hour_in_whole_nodes)
    whole = count_gpus(row.gpus_in_whole_nodes)
    return f"; where only whole nodes are rented it takes {whole}{cost}"


def _state_cost(answer: Answer, cost: float | None) -> str:
    """A cost after a comma; empty where there is none."""
    return f", {per_hour(cost, answer)}" if cost else ""
