"""Formats of a plan's numbers, on the page and in its sentences."""

from __future__ import annotations

import html
import textwrap
from typing import Protocol

from simulator.base.formats import amount, count, number, percent, seconds, times
from simulator.results.answer import Answer, DeploymentRow
from simulator.results.answer.crossover import MapPoint
from simulator.results.answer.deployments import BACKLOG, TARGETS

_HOVER_WIDTH = 44
KINDS = ("MoE", "dense", "pruned")


def target_text(name: str) -> str:
    """A target in words.

    >>> target_text("ttft_s.p90"), target_text("attainment")
    ('time to first token (p90)', 'share of requests within their limits')
    """
    what, _, level = name.partition(".")
    return f"{TARGETS[what].text}{f' ({level})' if level else ''}"


def target_short(name: str) -> str:
    """A target's heading in a table.

    >>> target_short("ttft_s.p90"), target_short("attainment")
    ('TTFT p90', 'within limits')
    """
    what, _, level = name.partition(".")
    return f"{TARGETS[what].heading} {level}".rstrip()


def value_text(name: str, value: float) -> str:
    """A target's value with its unit.

    >>> value_text("ttft_s.p90", 0.125), value_text("attainment", 0.987)
    ('125 ms', '98.7 %')
    """
    if name in ("attainment", BACKLOG):
        return f"{number(100 * value)} %"
    return seconds(value) if "_s." in name else f"{number(value)} tokens/s"


def is_floor(name: str) -> bool:
    """Whether a target asks for at least so much."""
    return name in ("attainment", "output_tokens_per_s")


def limit_text(name: str, limit: float) -> str:
    """A target with its limit.

    >>> limit_text("tpot_s.p90", 0.05)
    'TPOT p90 ≤ 50 ms'
    """
    return f"{target_short(name)} {'≥' if is_floor(name) else '≤'} {value_text(name, limit)}"


def money(value: float, currency: str) -> str:
    """An amount with its currency.

    >>> money(5.98, "USD")
    '5.98 USD'
    """
    return f"{amount(value)} {currency}"


def per_hour(value: float, answer: Answer) -> str:
    """A cost per hour in the plan's currency."""
    return f"{money(value, answer.currency)} per hour"


def hourly(answer: Answer, value: float) -> str:
    """An end of the cost's band: per hour, or GPUs where machines have no price."""
    if answer.recommended is not None and answer.recommended.cost_per_hour == 0:
        return f"{number(value)} {'GPU' if value == 1 else 'GPUs'}"
    return per_hour(value, answer)


def doubt(point: MapPoint) -> str:
    """The mark behind a ratio that is not clear."""
    return "" if point.is_clear else " ?"


def share(ratio: float) -> str:
    """Write a share of a limit: in hundredths, or as a multiple.

    >>> share(0.5), share(1.5)
    ('50 %', '150 %')
    """
    return percent(ratio) if ratio < 10 else times(ratio)


def count_gpus(number_of: int) -> str:
    """A number of GPUs."""
    return count(number_of, "GPU")


def gpus(row: DeploymentRow) -> str:
    """Machines of a row: ``2 GPUs (h100-sxm-2)``."""
    return f"{row.gpus} {'GPU' if row.gpus == 1 else 'GPUs'} ({row.cluster})"


class OfModel(Protocol):
    """A row of a model."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def is_moe(self) -> bool:
        """Whether it is a mixture of experts."""

    @property
    def is_pruned(self) -> bool:
        """Whether weights of it are pruned."""


def kind_of(row: OfModel) -> str:
    """Kind of a row's model, one of :data:`KINDS`."""
    if row.is_pruned:
        return "pruned"
    return "MoE" if row.is_moe else "dense"


def hover(first: str, *lines: str) -> str:
    """Text for a hover box: escaped, in lines that fit a phone, what it is about in bold.

    >>> hover("a & b", "", "1 GPU")
    '<b>a &amp; b</b><br>1 GPU'
    """
    bold = [f"<b>{html.escape(part, quote=False)}</b>" for part in _wrap(first)]
    return "<br>".join(
        [*bold, *(html.escape(part, quote=False) for line in lines for part in _wrap(line))]
    )


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, _HOVER_WIDTH, break_on_hyphens=False)
