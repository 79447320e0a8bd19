"""The sentence on mixtures of experts against dense models at the same targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from simulator.results.answer.certainty import Flip, RatePoint
from simulator.results.answer.deployments import DeploymentRow
from simulator.results.formats import TIMES

_KINDS = {"moe": "MoE", "dense": "dense"}


def compare_kinds(
    moe: DeploymentRow,
    dense: DeploymentRow,
    ratio: float | None,
    rates: Sequence[RatePoint],
    flips: Sequence[Flip],
) -> str:
    """The best of both kinds at the same targets, and where the cheaper one changes."""
    if ratio is None:
        return f"{moe.model} and {dense.model} have no price to compare."
    if dense.cost_per_hour == 0:
        return (
            f"At the same targets {moe.model} (MoE) takes {ratio:.2f}{TIMES} the GPUs "
            f"of {dense.model} (dense), which cost nothing."
        )
    if ratio == 1:
        said = f"At the same targets {moe.model} (MoE) and {dense.model} (dense) cost the same"
    else:
        said = (
            f"At the same targets {moe.model} (MoE) costs {ratio:.2f}{TIMES} "
            f"what {dense.model} (dense) does"
        )
    return f"{said}; {_locate_flips(rates, flips)}."


def state_only_kind(has_moe: bool, listed_moe: Iterable[bool]) -> str:
    """The kind that is the only choice.

    Args:
        has_moe: whether it is the mixture of experts.
        listed_moe: by model of the question, whether it is a mixture of experts.
    """
    present, absent = ("mixture-of-experts", "dense")[:: 1 if has_moe else -1]
    is_listed = any(is_moe != has_moe for is_moe in listed_moe)
    why = "meets the targets within the limits" if is_listed else "is among the models"
    return f"No {absent} model {why}, so a {present} one is the only choice."


def _locate_flips(rates: Sequence[RatePoint], flips: Sequence[Flip]) -> str:
    turned = [
        (
            f"at {flip.rate:.2g}{TIMES} the traffic ({flip.requests_per_s:.3g} requests/s) "
            f"from {_KINDS[flip.before]} to {_KINDS[flip.after]}"
        )
        for flip in flips
        if flip.what == "traffic" and flip.rate is not None
    ]
    turned += [f"with {flip.change} to {_KINDS[flip.after]}" for flip in flips if flip.rate is None]
    if turned:
        return "the cheaper kind changes " + " and ".join(turned)
    known = [point for point in rates if point.cost_ratio is not None]
    ratios = [point.cost_ratio for point in known if point.cost_ratio is not None]
    if not ratios:
        return "nothing that was tried changes that"
    least, most = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    between = least if least == most else f"between {least} and {most}"
    stays = (
        "both go on costing the same"
        if least == most == "1.00"
        else f"the MoE's cost stays {between} of the dense model's"
    )
    return f"from {known[0].rate:g}{TIMES} to {known[-1].rate:g}{TIMES} the traffic {stays}"
