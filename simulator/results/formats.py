"""Formats of numbers on the page: three significant digits, SI prefixes, a dash for undefined
values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from simulator.results.metrics import METRICS

UNDEFINED = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
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
_TIMES = ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s"))
_LONG_TIMES = ((60.0, "min"), (3600.0, "h"))
_BYTES = ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB"), (1e15, "PB"))
_COUNTS = ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T"))


def number(value: float, keep_zeros: bool = False) -> str:
    """Write three significant digits, never fewer than the whole part, with commas between
    thousands.

    Args:
        keep_zeros: write trailing zeros too, so that the numbers of a table line up.

    >>> [number(v) for v in (0.0012345, 1.5, 46.7, 12345.6, 0)]
    ['0.00123', '1.5', '46.7', '12,346', '0']
    >>> number(1.5, keep_zeros=True)
    '1.50'
    >>> number(float("nan")) == UNDEFINED
    True
    """
    if not math.isfinite(value):
        return UNDEFINED
    if value == 0:
        return "0"
    digits = 2 - math.floor(
        math.log10(float(f"{abs(value):.2e}"))
    )  # rounded first: 9.999 becomes 10.0
    if digits > 7:
        return f"{value:.2e}"
    if digits <= 0:
        return f"{value:,.0f}"
    text = f"{value:,.{digits}f}"
    return text if keep_zeros else text.rstrip("0").rstrip(".")


def _choose_scale(value: float, scales: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    rounded = float(f"{abs(value):.2e}")  # so that 999.9 ms becomes 1 s
    return next(((size, name) for size, name in reversed(scales) if rounded >= size), scales[0])


def _with_unit(
    value: float, scales: tuple[tuple[float, str], ...], space: str, keep_zeros: bool = False
) -> str:
    if not math.isfinite(value):
        return UNDEFINED
    size, name = _choose_scale(value, scales)
    return f"{number(value / size, keep_zeros)}{space}{name}".rstrip()


def seconds(value: float, keep_zeros: bool = False) -> str:
    """Write a time in the unit that reads best.

    >>> [seconds(v) for v in (16.3e-6, 0.0123, 0.9999, 75.0)]
    ['16.3 µs', '12.3 ms', '1 s', '75 s']
    """
    return "0 s" if value == 0 else _with_unit(value, _TIMES, " ", keep_zeros)


def seconds_text(value: float) -> str:
    """Write a time for a sentence, three digits: ``8.04 ms``, ``1.2 s``, ``31.6 min``."""
    if math.isnan(value):
        return "undefined"
    for limit, scale, unit in (
        (1e-3, 1e6, "us"),
        (1.0, 1e3, "ms"),
        (120.0, 1.0, "s"),
        (7200.0, 1 / 60, "min"),
    ):
        if value < limit:
            return f"{value * scale:.3g} {unit}"
    return f"{value / 3600:.3g} h"


def num_bytes(value: float) -> str:
    """Write a number of bytes with an SI prefix.

    >>> num_bytes(80e9)
    '80 GB'
    """
    return _with_unit(value, _BYTES, " ")


def count(number_of: int, noun: str) -> str:
    """Write a number of things.

    >>> count(1, "node"), count(1200, "node")
    ('1 node', '1,200 nodes')
    """
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"


def percent(share: float) -> str:
    """Write a share in whole hundredths; near 1 with a digit more.

    >>> percent(0.627), percent(0.9453), percent(0.95)
    ('63 %', '94.5 %', '95 %')
    """
    digits = 1 if 0.9 < share < 1 else 0
    return f"{100 * share:.{digits}f}".removesuffix(".0") + " %"


def parameters(value: float) -> str:
    """Write a parameter count for people.

    >>> parameters(46_702_792_704)
    '46.7B'
    """
    return _with_unit(value, _COUNTS, "")


def time_axis(largest_s: float) -> tuple[float, str]:
    """Choose the unit (its seconds, its name) for an axis that reaches ``largest_s``.

    >>> time_axis(0.08), time_axis(4.0), time_axis(1800.0)
    ((0.001, 'ms'), (1.0, 's'), (60.0, 'min'))
    """
    scales = _TIMES + tuple((size, name) for size, name in _LONG_TIMES if largest_s > 5 * size)
    return _choose_scale(largest_s, scales) if math.isfinite(largest_s) else (1.0, "s")


def time_ticks(low_s: float, high_s: float) -> dict[str, list[float] | list[str]]:
    """Choose ticks of a logarithmic axis of times in seconds, each with the unit that reads best,
    few enough for a phone.

    >>> time_ticks(0.0004, 700)["ticktext"]
    ['1 ms', '10 ms', '100 ms', '1 s', '10 s', '100 s']
    >>> time_ticks(0.02, 0.21)["ticktext"]
    ['20 ms', '50 ms', '100 ms', '200 ms']
    """
    decades = range(math.floor(math.log10(low_s)), math.ceil(math.log10(high_s)) + 1)
    steps = (1, 2, 5) if high_s < 30 * low_s else (1, 3) if high_s < 2000 * low_s else (1,)
    values = [float(f"{step}e{decade}") for decade in decades for step in steps]
    shown = [value for value in values if low_s <= value <= high_s]
    return {"tickvals": shown, "ticktext": [seconds(value) for value in shown]}


def bytes_axis(largest: float) -> tuple[float, str]:
    """Choose the unit (its bytes, its name) for an axis that reaches ``largest`` bytes."""
    return _choose_scale(largest, _BYTES) if math.isfinite(largest) else (1.0, "B")


def log_ticks(low: float, high: float) -> dict[str, list[float] | list[str]]:
    """Choose ticks of a logarithmic axis from ``low`` to ``high``: 1, 2, 5, 10 and so on, or powers
    of ten over a wide range.

    >>> log_ticks(0.9, 21)["ticktext"], log_ticks(0.1, 1e4)["ticktext"]
    (['1', '2', '5', '10', '20'], ['0.1', '1', '10', '100', '1,000', '10,000'])
    """
    digits = (1, 2, 5) if high < 300 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{digit}e{power}") for power in powers for digit in digits]
    shown = [value for value in values if low <= value <= high]
    return {"tickvals": shown, "ticktext": [number(value) for value in shown]}


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
