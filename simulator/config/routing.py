"""Default skew of expert popularity, for models whose routing nobody has measured."""

from __future__ import annotations

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


def routing_note(model: str, source: str) -> str | None:
    """Note on a model whose routing is assumed; ``None`` where it was given."""
    if source != ASSUMED_SOURCE and _SOURCED.format(sigma=MEDIAN_SIGMA) not in source:
        return None
    return (
        f"{model}: how unevenly tokens use its experts was not given; assumed is log-normal "
        f"popularity with sigma {MEDIAN_SIGMA}, the median of seven models (0.1 to 1.2). "
        'Give routing = { kind = "lognormal", sigma = ... }, or replay a recording'
    )
