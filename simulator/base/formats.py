"""Formats of numbers for people: three significant digits, SI prefixes, a dash where undefined."""

from __future__ import annotations

import math

UNDEFINED = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"

_NO_BOUND = 1e6
"""Ratio from which on there is none to speak of."""
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


def batched_tokens(limit: int) -> str:
    """Name the limit on the tokens of a step.

    >>> batched_tokens(8192)
    'max 8,192 batched tokens'
    """
    return f"max {limit:,} batched tokens"


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


def share_text(share: float) -> str:
    """Write a share of requests: never all or none unless it is.

    >>> share_text(0.98), share_text(0.99999), share_text(1.0), share_text(0.0)
    ('98.0 %', '99.9 %', '100 %', 'none')
    """
    if share in (0.0, 1.0):
        return "100 %" if share else "none"
    return f"{100 * min(max(share, 0.001), 0.999):.1f} %"


def chance_text(chance: float) -> str:
    """Write a probability in words.

    >>> chance_text(0.934), chance_text(1.0), chance_text(0.001)
    ('93 %', 'more than 99 %', 'less than 1 %')
    """
    if chance > 0.99:
        return "more than 99 %"
    return "less than 1 %" if chance < 0.01 else f"{100 * chance:.0f} %"


def amount(value: float) -> str:
    """Write an amount of money: cents where they show.

    >>> amount(5.98), amount(0.39816), amount(23920.0), amount(0.0)
    ('5.98', '0.398', '23,920', '0')
    """
    return f"{value:,.2f}" if 1 <= abs(value) < 1000 else number(value, keep_zeros=value != 0)


def times(ratio: float) -> str:
    """Write a ratio as a multiple; ``far`` where it is unbounded.

    >>> [times(ratio).replace(TIMES, "x") for ratio in (1.04, 1.5, 12.34, 1e9)]
    ['1.04x', '1.5x', '12x', 'far']
    """
    if ratio >= _NO_BOUND:
        return "far"
    digits = 2 if ratio < 1.1 else 1 if ratio < 10 else 0
    return f"{ratio:,.{digits}f}{TIMES}"


def chance(value: float) -> str:
    """A probability in whole hundredths; what is not quite certain or not quite impossible reads
    so.

    >>> [chance(value) for value in (0.0, 0.001, 0.627, 0.999, 1.0)]
    ['0 %', '< 1 %', '63 %', '> 99 %', '100 %']
    """
    if 0 < value < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < value < 1 else percent(value)


def nines(share: float) -> str:
    """Write a share near 1 as a percentage, with two digits of what is missing, and six nines at
    most.

    >>> nines(0.99871), nines(0.9999987), nines(0.93)
    ('99.87', '99.9999', '93')
    """
    missing = max(100 * (1 - share), 1e-4)
    digits = max(0, 1 - math.floor(math.log10(missing)))
    told = min(share, 0.999999)
    return f"{100 * told:.{min(digits, 4)}f}".rstrip("0").rstrip(".")


def k_tokens(number_of: int) -> str:
    """Write a number of tokens, in whole thousands of 1024 where it is.

    >>> k_tokens(8192), k_tokens(1000)
    ('8k', '1000')
    """
    return str(number_of) if number_of % 1024 else f"{number_of // 1024}k"


def gain_text(gain: float) -> str:
    """Write a gain in percent, with its sign.

    >>> gain_text(0.2), gain_text(-0.0001)
    ('+20.0', '+0.0')
    """
    return f"{round(100 * gain, 1) + 0.0:+.1f}"


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
