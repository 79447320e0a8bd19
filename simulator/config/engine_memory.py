"""Division of a GPU's memory by a serving engine when it starts, as its files in
``cluster_configs/engines`` have it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simulator.base.frozen import Frozen
from simulator.base.quantities import Amount, Bytes, Share, TokenCount, Width

GIB = 1 << 30
_Names = Annotated[tuple[str, ...], Field(strict=False)]
_Gibibytes = Annotated[float, Field(ge=-1e4, le=1e4)]
_Off = Annotated[tuple[_Gibibytes, _Gibibytes], Field(strict=False)]


class Padding(Frozen):
    """Numbers that the widths of routed experts are rounded up to a multiple of."""

    intermediate: Width = 1
    """Number that a rank's part of the intermediate width is rounded up to a multiple of."""
    hidden: Width = 1
    """Number that the hidden width is rounded up to a multiple of."""


class Reserve(Frozen):
    """Memory that SGLang keeps free on GPUs of some memory: ``share`` is what is left of the
    whole.
    """

    least_memory_bytes: Bytes = 0.0
    """Least memory of a GPU, bytes."""
    gib: _Gibibytes
    """GiB kept free whatever is asked."""
    gib_per_rank: _Gibibytes = 0.0
    """GiB kept free for each rank of a replica."""
    mib_per_token: Annotated[float, Field(ge=0, le=1e4)] = 0.0
    """MiB kept free for each token of a step's budget, of all data-parallel ranks where these
    divide it."""
    mib_per_dp_rank: dict[str, Annotated[float, Field(ge=0, le=1e5)]] = {}
    """MiB kept free for each rank of data-parallel attention, by ranks of a replica; more ranks
    keep as much as the next fewer that are named."""
    least_gib: _Gibibytes = 0.0
    """Least GiB kept free."""


def _find_by_ranks(amounts: dict[str, float], num_ranks: int) -> float:
    """The amount of the most ranks that are not more than these."""
    known = ((int(ranks), amount) for ranks, amount in amounts.items())
    return max((entry for entry in known if entry[0] <= num_ranks), default=(0, 0.0))[1]


class MemoryRules(Frozen):
    """Rules for the part of a GPU's memory that the KV cache gets.

    ``of_total`` (vLLM): a share of the whole, less weights, what a step of the largest size was
    seen to take, and what lies outside PyTorch. ``before_loading`` (SGLang): a share of what was
    free before the weights, less these; activations and graphs live in the rest. ``left``
    (TensorRT-LLM): a share of what weights and a step of the largest size leave.
    """

    kind: Literal["of_total", "before_loading", "left"]
    """Rule of the engine: ``of_total``, ``before_loading`` or ``left``."""
    generations: _Names
    """Generations of accelerators (names of their calibrations) that the rules were read for."""
    share: Share = 0.9
    """Share of the memory, as the rule takes it."""
    reserves: Annotated[tuple[Reserve, ...], Field(strict=False)] = ()
    """Memory kept free, where the share follows from it: the first entry that fits holds."""
    sampler_copies: Amount = 0.0
    """Number of times that the logits of a full batch are held in 32 bits when tokens are drawn."""
    has_expert_workspace: bool = False
    """Whether the inputs and outputs of a step's experts are held besides."""
    outside_gib: dict[str, _Gibibytes] = {}
    """GiB that communication and libraries hold, by ranks of a replica; more ranks hold as much as
    the next fewer that are named."""
    generation_gib: dict[str, _Gibibytes] = {}
    """GiB more on accelerators of some generation."""
    graphs_gib: _Gibibytes = 0.0
    """GiB of captured graphs that are taken off."""
    driver_gib: _Gibibytes = 0.0
    """GiB that the driver shows and PyTorch does not see."""
    padding: dict[str, dict[str, Padding]] = {}
    """Widths that experts are rounded up to, by their number format and generation."""
    off_kind: Literal["fitted", "assumed"] = "fitted"
    """Origin of ``off_gib``: start-up logs, or nowhere."""
    off_gib: _Off
    """10th and 90th percentile of a KV cache in logs less what these rules make of it, GiB."""
    generation_off_gib: dict[str, _Off] = {}
    """Replaces ``off_gib`` on accelerators of some generation, GiB."""

    def outside_bytes(self, num_ranks: int, generation: str) -> float:
        """Bytes outside PyTorch on one GPU of a replica."""
        gib = _find_by_ranks(self.outside_gib, num_ranks)
        return (gib + self.generation_gib.get(generation, 0.0)) * GIB

    def share_on(
        self, memory_bytes: float, num_ranks: int, attention_dp: int, token_budget: TokenCount
    ) -> float:
        """The share on GPUs of some memory, to three digits where it follows from a reserve."""
        reserve = next(
            (one for one in self.reserves if memory_bytes >= one.least_memory_bytes), None
        )
        if reserve is None:
            return self.share
        gib = max(
            reserve.least_gib,
            reserve.gib
            + reserve.gib_per_rank * num_ranks
            + reserve.mib_per_token / 1024 * max(token_budget, 2048)
            + _find_by_ranks(reserve.mib_per_dp_rank, num_ranks)
            / 1024
            * (attention_dp if attention_dp > 1 else 0),
        )
        return max(0.0, round(1 - gib * GIB / memory_bytes, 3))
