"""Rows of exchange tables as what the simulator prices: kernels, operation, and the load of the
busiest rank and wire.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.accelerator import AcceleratorSpec
from simulator.config.calibration.exchange import ExchangeFit, Load
from simulator.validation.sizes import MOST_CHOICES, MOST_EXPERTS, MOST_RANKS, numbers, refusals
from simulator.validation.traffic import routed

Floats = NDArray[np.float64]

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
_MOST = {
    "num_ranks": MOST_RANKS,
    "topk": MOST_CHOICES,
    "num_experts": MOST_EXPERTS,
    "sms": _MOST_SMS,
}
_DEEPSEEK = (7168, 8, 256)
"""Hidden size, experts of a token, experts: DeepSeek-V3, whose router takes 4 of 8 groups of
experts."""


class Moves(NamedTuple):
    """Exchanges of one kind on one sort of GPU: ``n`` rows of a table."""

    load: Load
    scale_up_s: Floats
    """``[n]`` seconds of the busiest wire inside domains, at its peak; likewise between."""
    scale_out_s: Floats
    num_sms: Floats
    """``[n]`` multiprocessors that the kernels hold; 0 where the row does not say."""
    wrong: NDArray[np.object_]
    """``[n]`` why the row's numbers are none of an exchange, or such ranks are not joined; ``""``
    where all is well."""

    def start_s(self, fit: ExchangeFit) -> Floats:
        """Latency of each row."""
        return fit.start_s(self.load)

    def carry_s(self, fit: ExchangeFit, accelerator: AcceleratorSpec) -> Floats:
        """Copying and wires of each row."""
        wires = np.maximum(
            self.scale_up_s / fit.scale_up_fraction, self.scale_out_s / fit.scale_out_fraction
        )
        return fit.hidden_s(
            fit.copying_s(self.load, accelerator.num_multiprocessors, self.num_sms), wires
        )

    def transfer_s(self, fit: ExchangeFit, accelerator: AcceleratorSpec) -> Floats:
        """The transfer alone, as kernel timings see it."""
        return np.asarray(
            np.maximum(fit.floor_s, self.start_s(fit) + self.carry_s(fit, accelerator))
        )

    def notify_s(self, fit: ExchangeFit, accelerator: AcceleratorSpec) -> Floats:
        """Telling how much will come."""
        return fit.told_s(
            self.load, self.carry_s(fit, accelerator), accelerator.num_multiprocessors, self.num_sms
        )

    def total_s(self, fit: ExchangeFit, accelerator: AcceleratorSpec) -> Floats:
        """Both."""
        return np.asarray(self.transfer_s(fit, accelerator) + self.notify_s(fit, accelerator))


def moves(
    rows: pd.DataFrame,
    accelerator: str,
    dispatch: str,
    groups: str = "none",
) -> Moves:
    """Read rows.

    Args:
        rows: with ``num_ranks``, ``hidden_size``, ``topk``, ``num_experts``, ``num_tokens``,
            ``value_bytes``, ``sms``.
        dispatch: the policy that sends the kernels' copies.
        groups: whose limit on groups of experts holds: ``none``, ``deepep`` or ``deepseek``.
    """
    sizes = numbers(
        rows, ("num_ranks", "hidden_size", "topk", "num_experts", "num_tokens", "value_bytes")
    )
    sms = numbers(rows, ("sms",)) if "sms" in rows.columns else {"sms": np.zeros(len(rows))}
    sms = {"sms": np.nan_to_num(sms["sms"], nan=0.0)}
    wrong = refusals(sizes | sms, {"value_bytes": 0.0, "sms": 0.0}, _MOST, ("value_bytes",))
    wrong[(sizes["topk"] > sizes["num_experts"]) & (wrong == "")] = "topk is above num_experts"
    ranks, hidden, top_k, experts, tokens, value_bytes = np.where(
        wrong == "", np.stack(list(sizes.values())), 1.0
    )
    shapes, shape = np.unique(
        np.stack([ranks, hidden, top_k, experts], axis=1), axis=0, return_inverse=True
    )
    found = np.full((len(shapes), 5), np.nan)
    for s, (r, h, k, e) in enumerate(shapes.astype(int).tolist()):
        limit = _limit(groups, r, h, k, e)
        one = routed(accelerator, r, dispatch, e, k, *limit)
        if one is not None:
            found[s] = one
    copies, crossing, up, out, nodes = found[shape.ravel()].T
    wrong[np.isnan(copies) & (wrong == "")] = "so many of its GPUs are not joined"
    vectors = tokens * hidden * value_bytes
    load = Load(
        tokens,
        tokens * copies,
        tokens * crossing,
        hidden * value_bytes,
        experts,
        np.nan_to_num(nodes, nan=1.0),
    )
    return Moves(load, vectors * up, vectors * out, np.where(wrong == "", sms["sms"], 0.0), wrong)


def _limit(
    groups: str, num_ranks: int, hidden: int, top_k: int, num_experts: int
) -> tuple[int, int]:
    nodes = -(-num_ranks // 8)
    if groups == "deepep" and nodes > _DEEPEP_GROUPS:
        return nodes, _DEEPEP_GROUPS
    if groups == "deepseek" and (hidden, top_k, num_experts) == _DEEPSEEK:
        return 8, 4
    return 1, 1
