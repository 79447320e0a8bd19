"""Kinds of text of requests, drawn by shares that follow the clock."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.base.errors import UserError
from simulator.config.workload import DomainMix, DomainsSpec
from simulator.workload.traces import RequestTrace


def draw_domains(
    trace: RequestTrace, spec: DomainsSpec, rng: np.random.Generator, where: str
) -> RequestTrace:
    """Draw the kind of text of every request, by its time of arrival.

    Raises:
        UserError: if the source tells kinds of text apart itself, or the mix changes with the time
            and the requests have none (a closed loop).
    """
    mixes = list_mixes(spec)
    if trace.domains:
        raise UserError(
            f"{where} domains: the requests have kinds of text of their own "
            f"({', '.join(trace.domains)}); leave domains out, or the column domain"
        )
    if trace.concurrency is not None and len(mixes) > 1:
        raise UserError(
            f"{where} domains: a closed loop has no arrival times that mixes could follow; "
            "give one mix"
        )
    names = tuple(dict.fromkeys(name for mix in mixes for name in mix.shares))
    share_ND = find_shares(spec, names, trace.arrival_s)
    chance_N = rng.random(trace.num_requests)
    # The last domain takes what rounding leaves.
    domain_N = (chance_N[:, None] >= np.cumsum(share_ND, axis=1)[:, :-1]).sum(axis=1)
    return replace(trace, domains=names, domain=domain_N.astype(np.int64))


def list_mixes(spec: DomainsSpec) -> list[DomainMix]:
    """List the mixes of a spec whose file, if it names one, has been read
    (:mod:`simulator.workload.reading`).
    """
    assert not isinstance(spec.mixes, str)
    return spec.mixes


def find_shares(
    spec: DomainsSpec, names: tuple[str, ...], at_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Find the share of each kind of text at some times, ``[N, D]``; rows sum to 1.

    >>> mixes = [{"shares": {"a": 1}}, {"at_s": 10, "shares": {"b": 1}}]
    >>> spec = DomainsSpec.model_validate({"mixes": mixes, "changes": "linear"})
    >>> find_shares(spec, ("a", "b"), np.array([0.0, 4.0, 99.0])).tolist()
    [[1.0, 0.0], [0.6, 0.4], [0.0, 1.0]]
    """
    mixes = list_mixes(spec)
    table_MD = np.array([[mix.shares.get(name, 0.0) for name in names] for mix in mixes])
    table_MD = table_MD / table_MD.sum(axis=1, keepdims=True)
    times_M = np.array([mix.at_s for mix in mixes])
    now_s = at_s if spec.period_s is None else at_s % spec.period_s
    if spec.changes == "step":
        place_N = np.maximum(np.searchsorted(times_M, now_s, side="right") - 1, 0)
        return np.asarray(table_MD[place_N])
    if spec.period_s is not None:  # the last mix turns into the first one of the next period
        times_M = np.append(times_M, times_M[0] + spec.period_s)
        table_MD = np.vstack([table_MD, table_MD[:1]])
        now_s = np.where(now_s < times_M[0], now_s + spec.period_s, now_s)
    columns = [np.interp(now_s, times_M, table_MD[:, d]) for d in range(len(names))]
    return np.stack(columns, axis=1)
