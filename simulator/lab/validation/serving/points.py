"""A row of a table of serving points, read: what ran, how it was split, and how it was loaded.

Columns that may be missing or empty are read from the row's ``id`` where they are written there.
Columns that such tables do not have but a user's may (:data:`LOAD_COLUMNS`) come before whatever an
id suggests. Three quirks of such tables:

- ``batch_size`` counts the requests of one attention data-parallel rank, so the concurrency of the
  whole deployment, which ids give as ``_c64_``, is that times ``attention_dp_size``.
- ``tp_size`` or ``attention_dp_size`` of 64 beside experts of 8 x 8 (16 beside 4 x 4): the product
  of both expert splits was counted as GPUs, though one rank has both roles. What ran had 8 (4) GPUs
  with experts spread whole over all of them: the same measurement is in the table under ids that
  say ``_tp8_ep8_``. The rule: equal expert splits whose product is the number of ranks.
- Expert splits of 0 or 1 on a dense model say nothing.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import pandas as pd

from simulator.lab.validation.serving.campaigns import Campaign, find_campaign, load_campaigns

COLUMNS = ("id", "backend", "model_path", "system", "mode", "isl", "osl")
"""A table must have these; ``backend_version``, ``gemm_quant_mode``, ``moe_quant_mode``,
``precision``, ``batch_size`` and the sizes of splits are used where they are, and
:data:`LOAD_COLUMNS`."""
LOAD_COLUMNS = ("length_range", "concurrency", "speculative", "campaign")
"""Optional: the shortest length over the longest, requests in flight, whether decodes verify drafts
(``true``, ``false``, or how many tokens a draft has), and a file of ``workloads/campaigns``."""
_DRAFTED_WORDS, _UNDRAFTED_WORDS = ("true", "yes", "on"), ("false", "no", "off", "none")
"""Words of a column that say whether decodes verify drafts."""
_MOST_DRAFTED = 16
_CONCURRENCY = re.compile(r"_c(\d+)(?:_|$)")
_SPLIT_IN_ID = re.compile(r"_tp(\d+)(?:_0)?(?:_ep(\d+))?")


class Pool(NamedTuple):
    """Equal replicas, each split the same way."""

    tp: int
    attention_dp: int
    ep: int
    workers: int = 1
    """Number of workers where the table says it; else one."""
    batch: float | None = None
    """Requests of one attention data-parallel rank, where the table says."""
    pp: int = 1

    @property
    def num_ranks(self) -> int:
        """GPUs of a replica."""
        return self.tp * self.attention_dp * self.pp


class Point(NamedTuple):
    """Measured point."""

    engine: str
    version: str
    repository: str
    system: str
    gemm_format: str
    """Format of dense matrices as the table writes it; empty where it does not."""
    moe_format: str
    """Format of experts as the table writes it; empty where it does not."""
    num_input: int
    num_output: int
    concurrency: int
    decode: Pool
    """The only pool of an aggregated deployment."""
    prefill: Pool | None
    campaign: str
    """File of ``workloads/campaigns``: how the engine was started, and requests were sent."""
    is_drafted: bool
    """Whether the campaign's runs of that release had drafts though no table says so."""
    says_workers: bool
    """Whether the table says how many workers the pools of a disaggregated deployment have."""
    shortest: float = 1.0
    """Shortest length over the one that is asked for; lengths are drawn between, and are equal
    where it is 1."""
    drafted: int | None = None
    """Tokens of a draft that each decode verifies, 0 without; ``None`` where the table does not
    say."""

    @property
    def asked(self) -> tuple[int, int, int]:
        """Tokens in and out, and requests in flight."""
        return self.num_input, self.num_output, self.concurrency


class UnreadableError(ValueError):
    """A row that does not say what ran."""


def read_point(row: dict[str, object]) -> Point:
    """Read one row.

    Raises:
        UnreadableError: with the reason.
    """
    name = _text(row.get("id"))
    mode = _text(row.get("mode")).lower()
    if mode not in ("agg", "disagg"):
        raise UnreadableError(f"mode '{mode}' is neither agg nor disagg")
    num_input, num_output = _whole(row, "isl"), _whole(row, "osl")
    if num_input is None or num_output is None or num_input < 1 or num_output < 1:
        raise UnreadableError("isl and osl must be whole numbers of tokens, at least 1")
    prefill = None
    if mode == "agg":
        decode = _pool(row, "", name)
    else:
        prefill, decode = _pool(row, "prefill_", name), _pool(row, "decode_", name)
        if max(prefill.pp, decode.pp) > 1:
            raise UnreadableError("pools with pipeline parallelism are not compared")
    campaign = _campaign(row, name)
    engine, version = _text(row.get("backend")).lower(), _text(row.get("backend_version"))
    return Point(
        engine=engine,
        version=version,
        repository=_text(row.get("model_path")),
        system=_text(row.get("system")),
        gemm_format=_text(row.get("gemm_quant_mode")) or _text(row.get("precision")),
        moe_format=_text(row.get("moe_quant_mode")) or _text(row.get("precision")),
        num_input=num_input,
        num_output=num_output,
        concurrency=_concurrency(row, name, decode),
        decode=decode,
        prefill=prefill,
        campaign=campaign,
        is_drafted=_is_drafted(load_campaigns()[campaign], engine, version, name),
        says_workers=None
        not in (_whole(row, "prefill_num_workers"), _whole(row, "decode_num_workers")),
        shortest=_shortest(row, load_campaigns()[campaign]),
        drafted=_read_drafts(row, load_campaigns()[campaign]),
    )


def _campaign(row: dict[str, object], name: str) -> str:
    said = _text(row.get("campaign")) or find_campaign(name)
    if said not in load_campaigns():
        raise UnreadableError(f"campaign '{said}' is not one of {', '.join(load_campaigns())}")
    return said


def _is_drafted(campaign: Campaign, engine: str, version: str, name: str) -> bool:
    return any(
        runs.engine == engine and re.search(runs.release, version) and re.search(runs.ids, name)
        for runs in campaign.drafted
    )


def _shortest(row: dict[str, object], campaign: Campaign) -> float:
    said = _text(row.get("length_range"))
    if not said:
        return campaign.client.shortest
    shortest = _number(row, "length_range")
    if shortest is None or not 0 < shortest <= 1:
        raise UnreadableError(
            f"length_range '{said}' is not the shortest length over the longest, "
            "above 0 and at most 1"
        )
    return shortest


def _read_drafts(row: dict[str, object], campaign: Campaign) -> int | None:
    said = _text(row.get("speculative")).lower()
    if said in (*_DRAFTED_WORDS, *_UNDRAFTED_WORDS):
        return campaign.drafts.tokens if said in _DRAFTED_WORDS else 0
    tokens = _whole(row, "speculative")
    if said and (tokens is None or not 0 <= tokens <= _MOST_DRAFTED):
        raise UnreadableError(
            f"speculative '{said}' is neither true, false nor a number of draft tokens "
            f"up to {_MOST_DRAFTED}"
        )
    return tokens


def _concurrency(row: dict[str, object], name: str, decode: Pool) -> int:
    said = _text(row.get("concurrency"))
    if said:
        number = _number(row, "concurrency")
        if number is None or number < 1:
            raise UnreadableError(f"concurrency '{said}' is not a number of requests in flight")
        return round(number)
    found = _CONCURRENCY.search(name)
    if found:
        return max(1, int(found[1]))
    if decode.batch is None:
        raise UnreadableError(
            "neither concurrency, the id nor batch_size says how many requests are in flight"
        )
    return max(1, round(decode.batch * decode.attention_dp * decode.workers))


def _pool(row: dict[str, object], prefix: str, name: str) -> Pool:
    in_id = _SPLIT_IN_ID.search(name) if not prefix else None
    tp = _whole(row, f"{prefix}tp_size") or (int(in_id[1]) if in_id else None)
    if tp is None:
        raise UnreadableError(f"neither {prefix}tp_size nor the id says how the model is split")
    dp = _whole(row, f"{prefix}attention_dp_size") or 1
    moe_tp = _whole(row, f"{prefix}moe_tp_size") or 0
    moe_ep = _whole(row, f"{prefix}moe_ep_size") or 0
    if moe_tp > 1 and moe_tp == moe_ep and tp * dp == moe_tp * moe_ep:
        tp, dp = (moe_tp, 1) if dp == 1 else (1, moe_tp)
        moe_tp = 1
    elif moe_tp * moe_ep > tp * dp and dp == 1 and not (moe_tp * moe_ep) % tp:
        dp = moe_tp * moe_ep // tp  # the attention's data parallelism was left out
    ep = max(1, moe_ep)
    if tp * dp % ep:
        raise UnreadableError(f"{prefix}moe_ep_size {ep} does not divide {tp * dp} ranks")
    workers = _whole(row, f"{prefix}num_workers") if prefix else None
    if workers is not None and workers < 1:
        raise UnreadableError(f"{prefix}num_workers {workers} is less than one")
    return Pool(
        tp,
        dp,
        ep,
        workers or 1,
        _number(row, f"{prefix}batch_size"),
        _whole(row, f"{prefix}pp_size") or 1,
    )


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value).strip()


def _number(row: dict[str, Any], column: str) -> float | None:
    try:
        value = float(row.get(column, math.nan))
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _whole(row: dict[str, object], column: str) -> int | None:
    value = _number(row, column)
    return None if value is None else int(value)
