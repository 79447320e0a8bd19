"""Offloading of routed experts: a GPU holds a few of each layer, the others lie in memory below."""

from __future__ import annotations

from typing import Annotated, Literal

from simulator.base.frozen import Frozen, Policy
from simulator.base.kinds import PolicyOf
from simulator.base.quantities import ExpertCount, TokenBudget


class OffloadSpec(Frozen):
    """Routed experts that lie below a GPU's memory, and its cache of some of them."""

    tier: Literal["dram", "storage"] = "dram"
    """Memory that holds all experts: ``dram`` or ``storage`` of the cluster's ``[host]``."""
    slots: ExpertCount
    """Experts of each layer that stay in the GPU's memory."""
    uploads: ExpertCount | None = None
    """Most missing experts that a layer brings to the GPU in one step, those with most tokens
    first; the processor computes the others where they lie. 0 = it computes all that are missing,
    absent = all are brought."""
    bring_from_tokens: TokenBudget | None = None
    """Fewest tokens of a step in which all missing experts are brought, whatever ``uploads`` says:
    many tokens share what is brought (32 in llama.cpp, ``GGML_OP_OFFLOAD_MIN_BATCH``); absent =
    steps of all sizes are alike."""
    caching: Annotated[Policy, PolicyOf("caching")] = {"kind": "lru"}
    """Caching policy: which experts stay in the slots."""
    prefetching: Annotated[Policy, PolicyOf("prefetching")] = {"kind": "none"}
    """Prefetching policy: which experts are brought before their layer asks for them."""

    @property
    def brings_experts(self) -> bool:
        """Whether some steps bring experts to the GPU."""
        return self.uploads != 0 or self.bring_from_tokens is not None
