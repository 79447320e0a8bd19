"""Bounds on requests that can be served in virtual time: spans and lengths that arrays and whole
numbers hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.base.quantities import MOST_REQUESTS, MOST_TOKENS, YEAR_S, mistaken_unit
from simulator.workload.traces import RequestTrace


def check_bounds(trace: RequestTrace, where: str) -> RequestTrace:
    """Check that a trace can be served, and return it.

    Args:
        where: its file, or the section that generates it, for errors.

    Raises:
        UserError: if there are more than 50 million requests, they span more than a year, or one is
            longer than any model's context.
    """
    if trace.num_requests > MOST_REQUESTS:
        raise UserError(
            f"{where}: holds {trace.num_requests:,} requests; at most {MOST_REQUESTS:,} are served"
        )
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0]) if trace.num_requests else 0.0
    if not span_s <= YEAR_S:
        raise UserError(
            f"{where}: arrival times span {span_s:,.6g} seconds, must span at most {YEAR_S:,.0f}; "
            + mistaken_unit("seconds", is_high=True)
        )
    _check_lengths(trace.num_input, f"{where}: prompts")
    _check_lengths(trace.num_output, f"{where}: outputs")
    return trace


def _check_lengths(lengths: NDArray[np.int64], what: str) -> None:
    longest = int(lengths.max(initial=1))
    if longest > MOST_TOKENS:
        raise UserError(
            f"{what} must have at most {MOST_TOKENS:,} tokens, the longest has {longest:,}; "
            + mistaken_unit("tokens", is_high=True)
        )
