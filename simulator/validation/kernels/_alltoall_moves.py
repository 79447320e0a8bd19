"""Rows of exchange tables as loads of the busiest rank and wire, which the simulator prices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration.exchange import ExchangeFit, Load
from simulator.validation.kernels._answering import Places
from simulator.validation.kernels._fitting import Chosen, Floats
from simulator.validation.sizes import MOST_CHOICES, MOST_EXPERTS, MOST_RANKS, numbers, refusals
from simulator.validation.traffic import draw_choices

_SCALE_BYTES = 4 / 128
"""An fp32 scale for 128 values goes with fp8."""
VALUE_BYTES = {
    "fp8": 1.0 + _SCALE_BYTES,
    "bfloat16": 2.0,
    "float16": 2.0,
    "half": 2.0,
    "nvfp4": 0.5 + 1 / 16,
    "fp4": 0.5 + 1 / 16,
    "mxfp4": 0.5 + 1 / 32,
    "mxfp8": 1.0 + 1 / 32,
}
"""Bytes of one value as it travels, by names in tables."""
_DEEPEP_GROUPS = 4
"""DeepEP's own benchmark lets a token use at most four nodes (``num_topk_groups = min(num_nodes,
4)``)."""
_MOST_SMS = 1024.0
"""Several times what any GPU has."""
_MOST = {
    "num_ranks": MOST_RANKS,
    "topk": MOST_CHOICES,
    "num_experts": MOST_EXPERTS,
    "sms": _MOST_SMS,
}
"""Largest values by column, where they are not those of any column."""
_SIZES = ("num_ranks", "hidden_size", "topk", "num_experts", "num_tokens", "value_bytes")
_DEEPSEEK = (7168, 8, 256)
"""Hidden size, experts of a token, experts: DeepSeek-V3, whose router takes 4 of 8 groups of
experts."""


class Moves(NamedTuple):
    """Exchanges of one kind on one sort of GPU: ``n`` rows of a table."""

    load: Load
    scale_up_s: Floats
    """``[n]`` seconds of the busiest wire inside domains, at its peak."""
    scale_out_s: Floats
    """``[n]`` seconds of the busiest wire between domains, at its peak."""
    num_sms: Floats
    """``[n]`` multiprocessors that the kernels hold; 0 where the row does not say."""
    num_ranks: Floats
    wrong: NDArray[np.object_]
    """``[n]`` why the row's numbers are none of an exchange, or such ranks are not joined; ``""``
    where all is well."""

    def take(self, rows: Places | Chosen) -> Moves:
        """Select some of the rows."""
        load = Load(*(np.asarray(values)[rows] for values in self.load))
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in self._fields[1:]}
        return self._replace(load=load, **columns)

    @classmethod
    def join(cls, parts: Sequence[Moves]) -> Moves:
        """Rows of all parts, one after the other."""
        loads = zip(*(part.load for part in parts), strict=True)
        others = zip(*(part[1:] for part in parts), strict=True)
        return cls(Load(*map(np.concatenate, loads)), *map(np.concatenate, others))

    def carry_s(self, fit: ExchangeFit, accelerator: AcceleratorSpec) -> Floats:
        """Seconds of copying and wires."""
        wires = np.maximum(
            self.scale_up_s / fit.scale_up_fraction, self.scale_out_s / fit.scale_out_fraction
        )
        copying = fit.copying_s(self.load, accelerator.num_multiprocessors, self.num_sms)
        return fit.overlapped_s(copying, wires)

    def transfer_s(self, fit: ExchangeFit, accelerator: AcceleratorSpec) -> Floats:
        """Seconds of the transfer alone, as kernel timings see it."""
        seconds = fit.start_s(self.load) + self.carry_s(fit, accelerator)
        return np.asarray(np.maximum(fit.floor_s, seconds))

    def notify_s(self, fit: ExchangeFit, accelerator: AcceleratorSpec) -> Floats:
        """Seconds of telling how much will come."""
        carrying_s = self.carry_s(fit, accelerator)
        return fit.announce_s(self.load, carrying_s, accelerator.num_multiprocessors, self.num_sms)


def read_moves(rows: pd.DataFrame, accelerator: str, dispatch: str, groups: str) -> Moves:
    """Read rows.

    Args:
        rows: with ``num_ranks``, ``hidden_size``, ``topk``, ``num_experts``, ``num_tokens``,
            ``value_bytes``, and ``sms`` where it is known.
        dispatch: the policy that sends the kernels' copies.
        groups: whose limit on groups of experts holds: ``none``, ``deepep`` or ``deepseek``.
    """
    sizes = numbers(rows, _SIZES)
    sms = numbers(rows, ("sms",))["sms"] if "sms" in rows.columns else np.zeros(len(rows))
    sms = np.nan_to_num(sms, nan=0.0)
    least = {"value_bytes": 0.0, "sms": 0.0}
    wrong = refusals(sizes | {"sms": sms}, least, _MOST, ("value_bytes",))
    wrong[(sizes["topk"] > sizes["num_experts"]) & (wrong == "")] = "topk is above num_experts"
    ranks, hidden, top_k, experts, tokens, value_bytes = np.where(
        wrong == "", np.stack(list(sizes.values())), 1.0
    )
    shapes, shape = np.unique(
        np.stack([ranks, hidden, top_k, experts], axis=1), axis=0, return_inverse=True
    )
    found = np.full((len(shapes), 5), np.nan)
    for s, (r, h, k, e) in enumerate(shapes.astype(int).tolist()):
        one = draw_choices(accelerator, r, dispatch, e, k, *_limit(groups, r, h, k, e))
        if one is not None:
            found[s] = one
    copies, crossing, up, out, nodes = found[shape.ravel()].T
    wrong[np.isnan(copies) & (wrong == "")] = "so many of its GPUs are not joined"
    vector_bytes, nodes = hidden * value_bytes, np.nan_to_num(nodes, nan=1.0)
    load = Load(tokens, tokens * copies, tokens * crossing, vector_bytes, experts, nodes)
    vectors = tokens * hidden * value_bytes
    sms = np.where(wrong == "", sms, 0.0)
    return Moves(load, vectors * up, vectors * out, sms, ranks, wrong)


def _limit(
    groups: str, num_ranks: int, hidden: int, top_k: int, num_experts: int
) -> tuple[int, int]:
    """Groups of experts, and how many of them a token may use."""
    nodes = -(-num_ranks // 8)
    if groups == "deepep" and nodes > _DEEPEP_GROUPS:
        return nodes, _DEEPEP_GROUPS
    if groups == "deepseek" and (hidden, top_k, num_experts) == _DEEPSEEK:
        return 8, 4
    return 1, 1
