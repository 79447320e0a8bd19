"""Reasons why one deployment's output tokens take less time than another's: terms that add up to
the difference, over all steps of the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from simulator.base.findings import Finding
from simulator.results.phases import STEP_PHASES

SAME = 1.02
"""Ratio of times below which they count as equal: closer than the fidelities agree among
themselves."""
_WORTH_SAYING = 0.05
"""Share of the longer time above which a term is named."""
_NUM_NAMED = 2
"""Number of terms that are named on either side."""
_MUCH = 0.2
"""Share of an output token's time above which steps that compute prompts are mentioned."""
_UNITS = ((1e-6, "us"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h"))


class Terms(NamedTuple):
    """Difference in seconds and its terms, in whole last digits of one unit, so that the shown
    numbers add up.
    """

    unit: str
    digits: int
    total: float
    gained: dict[str, float]
    """Phases that the quicker deployment spends less on, the largest first."""
    lost: dict[str, float]
    """Phases that it spends more on, as positive numbers."""
    rest: float
    """Difference of all other phases."""

    def text(self, value: float) -> str:
        """Write a number of the difference with its unit."""
        return f"{value:,.{self.digits}f} {self.unit}"


def explain(
    token_time: pd.DataFrame, best: str, second: str, short: dict[str, str]
) -> Iterator[Finding]:
    """Explain why an output token of one deployment is quicker than one of the other; empty where
    either has none.

    Args:
        token_time: :data:`simulator.results.token_time.COLUMNS`.
        best, second: the deployments, the better one first.
        short: name of each deployment in sentences.
    """
    spent = {name: phase_seconds(token_time, name) for name in (best, second)}
    total_s = {name: sum(parts.values()) for name, parts in spent.items()}
    if not all(total_s.values()):
        return
    quick, slow = sorted(total_s, key=lambda name: total_s[name])
    if total_s[slow] < SAME * total_s[quick]:
        yield Finding("why.alike", quick_s=total_s[quick], slow_s=total_s[slow])
    else:
        terms = split_difference(spent[quick], spent[slow])
        shown = round(total_s[quick] / _unit_s(terms.unit), terms.digits)
        yield Finding(
            "why.differs",
            quick=short[quick],
            slow=short[slow],
            is_best=quick == best,
            quick_shown=shown,
            **terms._asdict(),
        )
    yield from _find_prompts(token_time, (best, second), short)


def phase_seconds(token_time: pd.DataFrame, name: str) -> dict[str, float]:
    """Seconds of an output token by phase over all kinds of steps."""
    own = token_time[token_time["deployment"] == name]
    return {phase: float(own[f"{phase}_s"].sum()) for phase in STEP_PHASES}


def split_difference(quick: dict[str, float], slow: dict[str, float]) -> Terms:
    """Split ``sum(slow) - sum(quick)`` into terms: the two largest on either side, and the rest.

    >>> quick, slow = {"experts": 0.010, "wait": 0.004}, {"experts": 0.030, "wait": 0.001}
    >>> terms = split_difference(quick, slow)
    >>> terms.text(terms.total), terms.gained, terms.lost, terms.rest
    ('17.0 ms', {'experts': 20.0}, {'wait': 3.0}, 0.0)
    """
    longest_s = sum(slow.values())
    unit, digits = _scale(longest_s, longest_s - sum(quick.values()))
    scale = _unit_s(unit)

    def to_scale(time_s: float) -> float:
        return round(time_s / scale, digits)

    # Both totals are shown, so the difference is that of what is shown.
    total = to_scale(longest_s) - to_scale(sum(quick.values()))
    saved = sorted(((slow[phase] - quick[phase], phase) for phase in slow), reverse=True)
    named = [entry for entry in saved if abs(entry[0]) > _WORTH_SAYING * longest_s]
    gained = {phase: to_scale(saved_s) for saved_s, phase in named if saved_s > 0}
    lost = {phase: to_scale(-saved_s) for saved_s, phase in reversed(named) if saved_s < 0}
    gained, lost = (dict(list(side.items())[:_NUM_NAMED]) for side in (gained, lost))
    rest = round(total - sum(gained.values()) + sum(lost.values()), digits)
    return Terms(unit, digits, round(total, digits), gained, lost, rest + 0.0)


def _scale(longest_s: float, difference_s: float) -> tuple[str, int]:
    """Choose the unit in which a time reads best, and digits that show a difference to
    a hundredth.
    """
    unit_s, unit = next(
        (entry for entry in reversed(_UNITS) if longest_s >= 1.5 * entry[0]), _UNITS[0]
    )
    finest = difference_s / unit_s / 100
    return unit, min(3, max(0, math.ceil(-math.log10(finest)))) if finest > 0 else 3


def _unit_s(unit: str) -> float:
    return next(unit_s for unit_s, name in _UNITS if name == unit)


def _find_prompts(
    token_time: pd.DataFrame, names: tuple[str, ...], short: dict[str, str]
) -> Iterator[Finding]:
    """Find the share of an output token's time in steps that compute prompts, where it is large."""
    shares = {}
    for name in names:
        own = token_time[token_time["deployment"] == name].set_index("kind")["token_s"]
        shares[short[name]] = float(own.reindex(["mixed", "prefill"]).sum() / own.sum())
    if max(shares.values()) >= _MUCH:
        yield Finding("why.prompts", shares=shares)
