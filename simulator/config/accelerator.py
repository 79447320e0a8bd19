"""An accelerator: peaks only, in SI base units, a source for each number. What is achieved of them
is calibration.
"""

from __future__ import annotations

from collections.abc import Iterator

from simulator.base.data import find_file
from simulator.base.findings import Finding
from simulator.base.frozen import Frozen, validate
from simulator.base.quantities import (
    BytesPerSecond,
    Factor,
    FlopsPerSecond,
    Label,
    MemoryBytes,
    Multiprocessors,
    Sources,
    Watts,
)
from simulator.base.reading import read_toml
from simulator.config.named import change, split_name

_ARITHMETIC = {
    "fp8": "fp8",
    "fp8_block": "fp8",
    "mxfp4_mxfp8": "fp8",
    "int8": "int8",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
}
"""Arithmetic that multiplies each format where hardware has it; others are expanded to 16 bits
everywhere."""

_PEAKS = ("bf16_flops_per_s", "fp8_flops_per_s", "int8_flops_per_s", "fp4_flops_per_s")
"""Keys that are peak rates of matrix products."""


_SHIPPED: dict[str, tuple[float, float, str]] = {
    "bf16_flops_per_s": (2e12, 2.5e15, "FLOP/s"),
    "fp8_flops_per_s": (2.96e14, 5e15, "FLOP/s"),
    "fp4_flops_per_s": (1.87e15, 1.5e16, "FLOP/s"),
    "int8_flops_per_s": (1.535e14, 5e15, "op/s"),
    "memory_bytes": (1.6e10, 2.79e11, "B"),
    "visible_memory_bytes": (1e10, 2.98e11, "B"),
    "memory_bytes_per_s": (4e10, 8e12, "B/s"),
    "bytes_per_s": (1e10, 9e11, "B/s"),
    "latency_s": (0.0, 5e-6, "s"),
}
"""Least and most of any shipped accelerator, and of any shipped cluster's links."""
_FAR = 10.0
"""Factor beyond these from which on a number is told: rather a wrong unit than a new machine."""


def list_odd(spec: Frozen, what: str) -> Iterator[Finding]:
    """List numbers of an accelerator or of links that are far from every shipped one's."""
    for key, (low, high, unit) in _SHIPPED.items():
        value = getattr(spec, key, None)
        if value is not None and not low / _FAR <= value <= high * _FAR:
            yield Finding(
                "note.odd_number", what=what, key=key, value=value, unit=unit, low=low, high=high
            )


class AcceleratorSpec(Frozen):
    """Vendor peaks of one accelerator (GPU, or a laptop's SoC)."""

    name: str
    """Name of the accelerator, which is that of its file."""
    title: Label
    """Name as the vendor writes it, for reports."""
    bf16_flops_per_s: FlopsPerSecond
    """Peak rate of dense bf16 matrix products, FLOP/s, without sparsity."""
    fp8_flops_per_s: FlopsPerSecond | None = None
    """Peak rate of dense fp8 matrix products, FLOP/s; absent = the hardware has none, and fp8
    weights are computed at the bf16 rate."""
    int8_flops_per_s: FlopsPerSecond | None = None
    """Peak rate of dense int8 matrix products, operations per second; absent = the hardware has
    none."""
    fp4_flops_per_s: FlopsPerSecond | None = None
    """Peak rate of dense fp4 matrix products, FLOP/s; absent = the hardware has none."""
    memory_bytes: MemoryBytes
    """Memory in bytes, as the vendor prints it (10^9 bytes to the GB)."""
    visible_memory_bytes: MemoryBytes | None = None
    """Memory in bytes that the driver reports as the whole: an "80 GB" H100 shows 85.5e9, since its
    chips count in powers of two. Absent = not known, and the vendor's number is used."""
    memory_bytes_per_s: BytesPerSecond
    """Peak rate of the memory, bytes per second."""
    num_multiprocessors: Multiprocessors
    """Streaming multiprocessors, compute units or GPU cores, over which the tiles of a kernel are
    spread."""
    board_power_w: Watts
    """Power of one board at full load, watts."""
    calibration: str
    """File in ``cluster_configs/calibration`` that says what of the peaks is achieved."""
    notes: Label = ""
    """Remarks in free text."""
    sources: Sources = {}
    """A source for each number above; needed in files of the project."""

    @property
    def servable_memory_bytes(self) -> float:
        """Memory that a serving engine divides into weights, activations and KV blocks: what the
        driver shows, where known.
        """
        return self.visible_memory_bytes or self.memory_bytes

    def flops_per_s(self, dtype: str) -> float:
        """Peak dense rate for matrices whose weights are stored as ``dtype``.

        A format that the hardware cannot multiply is expanded to bf16 first, as weight-only kernels
        do: fp8 on A100, mxfp4 on H100 (whose measured kernels stay below the bf16 peak), int4
        everywhere.
        """
        if dtype == "fp32":
            return self.bf16_flops_per_s / 2
        return self._arithmetic.get(_ARITHMETIC.get(dtype, "")) or self.bf16_flops_per_s

    def with_speed(self, memory: float, arithmetic: float) -> AcceleratorSpec:
        """The accelerator with its rates of memory and of matrix products multiplied."""
        if memory == arithmetic == 1.0:
            return self
        peaks = {name: getattr(self, name) for name in _PEAKS}
        rates = {name: rate * arithmetic for name, rate in peaks.items() if rate is not None}
        return self.model_copy(
            update={**rates, "memory_bytes_per_s": self.memory_bytes_per_s * memory}
        )

    def lacks(self, dtype: str) -> str | None:
        """The arithmetic that would multiply weights stored as ``dtype`` and that the hardware does
        not have; ``None`` if there is none.
        """
        wanted = _ARITHMETIC.get(dtype)
        return wanted if wanted and self._arithmetic[wanted] is None else None

    @property
    def _arithmetic(self) -> dict[str, float | None]:
        return {
            "fp8": self.fp8_flops_per_s,
            "int8": self.int8_flops_per_s,
            "fp4": self.fp4_flops_per_s,
        }


def load_accelerator(name: str, where: str) -> AcceleratorSpec:
    """The accelerator called ``name``.

    Raises:
        UserError: if there is none, or its file is wrong.
    """
    base, changes = split_name(name)
    path = find_file("cluster_configs/accelerators", base, where)
    found = validate(AcceleratorSpec, {"name": path.stem, **read_toml(path)}, str(path))
    return change(found, changes, str(path))


class Speeds(Frozen):
    """Factors on the speed of each part, beside ``network_speed`` for the links; all twice as fast,
    a step takes half.
    """

    memory: Factor = 1.0
    """Factor on the rate of the GPUs' memory."""
    arithmetic: Factor = 1.0
    """Factor on the GPUs' peak rates of matrix products, in all number formats."""
    kernels: Factor = 1.0
    """Factor on the speed of what kernels do beside reading memory and multiplying: launches,
    starts of tiles, exponentials, and the copies of those that exchange tokens."""
    latency: Factor = 1.0
    """Factor by which latencies of exchanges and links are shorter."""
    engine: Factor = 1.0
    """Factor on the speed of the engine's own work: between forward passes, and before first
    tokens."""
    below: Factor = 1.0
    """Factor on the speed of what lies below the GPUs' memory: main memory, storage, the links to
    the GPUs, and the processor."""
