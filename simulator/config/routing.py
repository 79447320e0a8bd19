"""Default skew of expert popularity, for models whose routing nobody has measured."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.base.findings import Finding
from simulator.base.frozen import Policy

MEDIAN_SIGMA = 0.55
"""Spread of the logarithm of expert popularity: the median of the models that were measured or that
figures were published of (Mixtral-8x7B 0.1, stdlib-moe 0.44, OLMoE 0.45, gpt-oss-20b 0.55,
DeepSeek-V2-Lite 0.62, DeepSeek-R1 1.06, Qwen1.5-MoE 1.2; their files say from what). Uniform
routing would flatter every mixture of experts."""
ASSUMED_SOURCE = (
    f"Assumed: sigma {MEDIAN_SIGMA}, the median of seven models (0.1 to 1.2); nothing was "
    "given for this one."
)
_SOURCED = "; sigma is assumed: {sigma}, the median of seven models (0.1 to 1.2)"


def complete_routing(routing: Policy | None, source: str) -> tuple[Policy, str]:
    """A routing policy's table and where it comes from, completed by what is assumed: the whole of
    it, or the ``sigma`` that a ``lognormal`` one leaves out.
    """
    if routing is None:
        return {"kind": "lognormal", "sigma": MEDIAN_SIGMA}, ASSUMED_SOURCE
    if routing.get("kind") == "lognormal" and "sigma" not in routing:
        added = _SOURCED.format(sigma=MEDIAN_SIGMA)
        return {**routing, "sigma": MEDIAN_SIGMA}, f"{source or 'the model file'}{added}"
    return routing, source


def routing_note(model: str, source: str) -> Iterator[Finding]:
    """Find whether the routing of a model is assumed."""
    if source == ASSUMED_SOURCE or _SOURCED.format(sigma=MEDIAN_SIGMA) in source:
        yield Finding("note.assumed_routing", model=model, sigma=MEDIAN_SIGMA)
