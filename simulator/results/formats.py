"""Formats of metrics on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable

from simulator.base.formats import TIMES, UNDEFINED, number, seconds
from simulator.results.metrics import METRICS

KEY_METRICS = (
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "tpot_p99_s",
    "output_tokens_per_s_per_gpu",
    "goodput_per_s",
    "slo_attainment",
    "cost_per_million_output_tokens",
)
"""Metrics of the short comparison; the full table shows all of ``METRICS``."""

_SHARE_DIGITS = 9
"""Digits of a share that are kept; the rest is rounding of a sum of times."""


def metric(name: str, value: float, currency: str) -> str:
    """Write a value of a column of ``summary.csv``, with its unit unless :func:`heading_unit` has
    it.

    >>> metric("slo_attainment", 0.987, ""), metric("ttft_p50_s", 1.5, "")
    ('98.7 %', '1.50 s')
    >>> metric("slo_attainment", 0.9999, ""), metric("wait_share", -6.6e-18, "")
    ('99.9 %', '0 %')
    >>> metric("cost_per_million_output_tokens", 0.5, "USD")
    '0.500 USD'
    """
    if not math.isfinite(value):
        return UNDEFINED
    unit = METRICS[name].unit
    if unit == "s":
        return seconds(value, keep_zeros=True)
    if unit == "ratio":
        share = round(value, _SHARE_DIGITS)
        # Never all unless it is.
        return f"{number(100 * min(share, 0.999 if share < 1 else share), keep_zeros=True)} %"
    if unit == "x":
        return f"{value:.2f}{TIMES}"
    return (
        f"{number(value, keep_zeros=bool(unit))} {currency if unit == 'currency' else ''}".rstrip()
    )


def heading_unit(name: str) -> str:
    """Unit that stands once, beside the metric's label; times, shares and prices have theirs in
    each value.

    >>> heading_unit("goodput_per_s"), heading_unit("ttft_p50_s")
    ('request/s', '')
    """
    unit = METRICS[name].unit
    return "" if unit in ("s", "ratio", "x", "currency") else unit


def better_way(name: str, *, is_open: bool) -> str:
    """Direction that is better, ``higher`` or ``lower``; empty where neither is.

    >>> [better_way("output_tokens_per_s", is_open=is_open) for is_open in (True, False)]
    ['', 'higher']
    """
    return "" if is_open and METRICS[name].is_given else METRICS[name].better


def winners(name: str, values: Iterable[float], *, is_open: bool) -> set[int]:
    """Positions of the best values of a metric, including those that read the same as the best one;
    none where there is nothing to compare, all read the same, or neither direction is better.

    Args:
        is_open: requests arrive by the clock, so that how many are served is given, not won.

    >>> winners("ttft_p50_s", [0.3, 0.2, float("nan")], is_open=True)
    {1}
    >>> winners("mfu", [0.1, 0.2], is_open=True)
    set()
    >>> winners("tpot_p50_s", [0.1470, 0.1474, 0.2], is_open=True)
    {0, 1}
    >>> [winners("output_tokens_per_s", [147, 150], is_open=is_open) for is_open in (True, False)]
    [set(), {1}]
    """
    defined = {place: value for place, value in enumerate(values) if math.isfinite(value)}
    shown = {place: metric(name, value, "") for place, value in defined.items()}
    better = better_way(name, is_open=is_open)
    if not better or len(set(shown.values())) < 2:
        return set()
    choose = max if better == "higher" else min
    best = shown[choose(defined, key=lambda place: defined[place])]
    return {place for place, text in shown.items() if text == best}
