"""``moesim trace cache``: hit rates of caches that hold a few experts of each layer, by replay of a
recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simulator.base.errors import UserError
from simulator.base.frozen import Policy
from simulator.base.plugins import available, build
from simulator.config.model import load_model
from simulator.policies.routing import RecordedSequences
from simulator.work.expert_cache import CacheRules, CacheUses, replay_cache, spread_streams


class CacheHits(NamedTuple):
    """Replay of a recording through a cache of one kind and size."""

    caching: str
    """Caching policy."""
    slots: int
    """Experts of each layer in the cache."""
    hit_rate: float
    """Share of the experts that steps used which were in the cache."""
    ahead_rate: float
    """Share of the experts that steps used which had been fetched ahead."""
    uploads: float
    """Experts of one layer that a step brought to fast memory, on average: those that were missing,
    and those that were fetched ahead."""


def replay_recording(
    recording: Path,
    model: str,
    slots: Sequence[int] = (),
    streams: int = 1,
    caching: Sequence[Policy] = (),
    prefetching: Policy | None = None,
) -> list[CacheHits]:
    """Replay the second half of a recording's sequences through caches of experts, one token of
    each stream a step; policies learn from the first half.

    Args:
        recording: ids of tokens, in any format that ``routing = { kind = "replay" }`` reads.
        model: name or path of the model that they were recorded of.
        slots: experts of a layer in the cache; by default a quarter, a half and three quarters.
        streams: sequences that are served at once.
        caching: tables of caching policies; by default one of each kind.
        prefetching: table of a prefetching policy; by default none.

    Raises:
        UserError: if the recording cannot be read, holds no tokens, or is of another model.
    """
    spec = load_model(model, "--model", Path.cwd())
    if spec.moe is None:
        raise UserError(f"--model {model}: is dense and has no experts to keep; name a MoE model")
    moe = spec.moe
    replay = build("routing", {"kind": "replay", "trace": str(recording), "exact": True}, "trace")
    router = replay.prepare(moe, spec.num_moe_layers, np.random.default_rng(0))
    recorded: RecordedSequences = router.recorded
    cut = _find_middle(recorded)
    earlier_LTK, later_LTK = recorded.ids_LTK[:, :cut], recorded.ids_LTK[:, cut:]
    ids_SLX = spread_streams(later_LTK, streams)
    if not len(ids_SLX):
        raise UserError(
            f"{recording}: its second half has {later_LTK.shape[1]:,} tokens, fewer than "
            f"{streams:,} streams; lower --streams"
        )
    tables = list(caching) or [{"kind": kind} for kind in available("caching")]
    ahead = build("prefetching", prefetching or {"kind": "none"}, "--prefetching")
    sizes = list(slots) or sorted({-(-moe.num_experts * part // 4) for part in (1, 2, 3)})
    found = []
    for table in tables:
        policy = build("caching", table, "--caching")
        for size in sizes:
            rules = CacheRules(size, moe.num_experts, policy, ahead)
            uses = replay_cache(rules, ids_SLX, earlier_LTK, moe.num_experts)
            found.append(_summarize(table["kind"], size, uses))
    return found


def _find_middle(recorded: RecordedSequences) -> int:
    """Find the token at which a sequence begins and that halves the recording best; its middle
    where it is one sequence.
    """
    half = recorded.ids_LTK.shape[1] // 2
    starts = recorded.start_Q[1:]
    return half if not len(starts) else int(starts[np.abs(starts - half).argmin()])


def _summarize(kind: str, slots: int, uses: CacheUses) -> CacheHits:
    used = max(int(uses.used_SL.sum()), 1)
    return CacheHits(
        caching=kind,
        slots=slots,
        hit_rate=uses.hit_rate,
        ahead_rate=float(uses.ahead_SL.sum() / used),
        uploads=float((uses.uploaded_SL + uses.fetched_SL).mean()),
    )
