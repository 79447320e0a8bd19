"""What is achieved of the peaks: data files in ``cluster_configs/calibration``, fitted on measurements or assumed, and said so."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from simulator.data import find_file
from simulator.spec.base import Frozen, NonNegative, Policy, Positive, Size, validate
from simulator.spec.loading import read_toml

Kind = Literal["measured", "interpolated", "fitted", "published", "assumed"]


class Fit(Frozen):
    """Numbers with one origin."""

    kind: Kind
    source: str = Field(min_length=1)
    """What they were fitted on, or why they are assumed."""
    median_error: NonNegative | None = None
    """Median absolute relative error on what they were fitted on."""


class KernelFit(Fit):
    """A roofline with a floor: ``FLOPs / (peak x compute)`` against ``bytes / (peak x memory)``, plus ``floor_s``."""

    compute_fraction: Positive
    """Of the peak FLOP/s, for whole tiles."""
    memory_fraction: Positive
    """Of the peak memory rate."""
    floor_s: NonNegative
    """Shortest time of the kernel, launch included."""
    min_split_k: Size = 4096
    """A GEMM with fewer tiles than multiprocessors is split along ``k`` into parts of at least this many."""
    quantise_bytes: NonNegative = 0.0
    """Moved for each number of a GEMM's input to convert it to the weights' format, in a pass before the product."""


class OperationFit(Fit):
    """A collective: a latency that grows with the number of nodes, and achieved shares of the wires' peaks."""

    latency_s: NonNegative
    """Inside one fast domain."""
    scale_out_latency_s: NonNegative
    """Across domains: at one doubling, less ``latency_per_doubling_s``."""
    latency_per_doubling_s: NonNegative
    """Added for each doubling of the number of nodes."""
    latency_per_rank_s: NonNegative = 0.0
    """Added for each further rank."""
    scale_up_fraction: Positive
    scale_out_fraction: Positive
    max_nodes: Size = 1
    """Largest number of nodes in what it was fitted on; beyond it the result is extrapolated, and says so."""

    def total_latency_s(self, num_nodes: int, num_ranks: int) -> float:
        """Latency of one operation over ``num_ranks`` ranks in ``num_nodes`` domains, seconds."""
        ranks_s = self.latency_per_rank_s * max(0, num_ranks - 2)
        if num_nodes <= 1:
            return self.latency_s + ranks_s
        doublings = (num_nodes - 1).bit_length()
        return self.scale_out_latency_s + self.latency_per_doubling_s * doublings + ranks_s


class EngineFit(Fit):
    """The serving engine's own time."""

    step_s: NonNegative
    """Between two forward passes: scheduling, input preparation, sampling, output handling."""
    sequence_s: NonNegative
    """Added for each sequence in the step."""
    layer_s: NonNegative
    """Small kernels of one layer (norms, rotary embedding, residuals), beyond their bytes."""


class Calibration(Frozen):
    """One file: achieved fractions of one accelerator family."""

    compute: ClassVar[Policy] = {"kind": "roofline"}
    communication: ClassVar[Policy] = {"kind": "alpha_beta"}
    shared_cores: ClassVar[int | None] = None

    title: str
    gemm: dict[str, KernelFit]
    """Dense matrices by weight dtype; ``other`` for dtypes that have no entry."""
    grouped_gemm: dict[str, KernelFit]
    """Routed experts by weight dtype; ``other`` likewise."""
    attention: dict[Literal["prefill", "decode"], KernelFit]
    dispatch: OperationFit
    combine: OperationFit
    all_reduce: OperationFit
    engine: EngineFit

    def kernel(self, family: Literal["gemm", "grouped_gemm"], dtype: str) -> KernelFit:
        """The fit for ``dtype``, or the one that the file names for others (its ``kind`` says that it is assumed)."""
        fits: dict[str, KernelFit] = getattr(self, family)
        return fits[dtype] if dtype in fits else fits["other"]

    def fits(self, weights: str, experts: str | None, *, travels: bool, is_split: bool) -> dict[str, Fit]:
        """The entries that a plan's prices use, by what they price."""
        found: dict[str, Fit] = {f"{weights} matrices": self.kernel("gemm", weights)}
        if experts is not None:
            found[f"{experts} experts"] = self.kernel("grouped_gemm", experts)
        if travels:
            found |= {"dispatch": self.dispatch, "combine": self.combine}
        if is_split:
            found["all-reduce"] = self.all_reduce
        found |= {"attention over prompts": self.attention["prefill"], "attention in decode": self.attention["decode"]}
        found["engine overhead"] = self.engine
        return found


def load_calibration(name: str, where: str) -> Calibration:
    """The calibration of an accelerator family called ``name``.

    Raises:
        UserError: if there is none, or its file is wrong.
    """
    path = find_file("cluster_configs/calibration", name, where)
    return validate(Calibration, read_toml(path), str(path))
