"""An accelerator: peaks only, in SI base units, a source for each number. What is achieved of them is calibration."""

from __future__ import annotations

from simulator.data import find_file
from simulator.spec.base import Frozen, Positive, Size, validate
from simulator.spec.loading import read_toml


class AcceleratorSpec(Frozen):
    """Vendor peaks of one accelerator (GPU, or a laptop's SoC)."""

    name: str
    title: str
    bf16_flops_per_s: Positive
    """Dense, without sparsity; likewise below."""
    fp8_flops_per_s: Positive | None = None
    """Absent: the hardware has none, and fp8 weights are computed at the bf16 rate."""
    int8_flops_per_s: Positive | None = None
    fp4_flops_per_s: Positive | None = None
    memory_bytes: Positive
    memory_bytes_per_s: Positive
    num_multiprocessors: Size
    """Streaming multiprocessors, compute units or GPU cores: what a kernel's tiles are spread over."""
    board_power_w: Positive
    calibration: str
    """File in ``cluster_configs/calibration`` that says what of the peaks is achieved."""
    notes: str = ""
    sources: dict[str, str]
    """A source for each number above."""

    def flops_per_s(self, dtype: str) -> float:
        """Peak dense rate for matrices stored as ``dtype``, computed at the nearest format that the hardware has."""
        four = self.fp4_flops_per_s if dtype in ("mxfp4", "nvfp4") else None
        if dtype == "int8" and self.int8_flops_per_s:
            return self.int8_flops_per_s
        if dtype in ("fp8", "int8", "mxfp4", "nvfp4"):
            return four or (self.fp8_flops_per_s if dtype != "int8" else None) or self.bf16_flops_per_s
        if dtype == "fp32":
            return self.bf16_flops_per_s / 2
        return self.bf16_flops_per_s


def load_accelerator(name: str, where: str) -> AcceleratorSpec:
    """The accelerator called ``name``.

    Raises:
        UserError: if there is none, or its file is wrong.
    """
    path = find_file("cluster_configs/accelerators", name, where)
    return validate(AcceleratorSpec, {"name": path.stem, **read_toml(path)}, str(path))
