"""Results of ``moesim sparsity``: bytes and speeds of sparse matrices, and where each wins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StorageCurve:
    """Bytes of a matrix in one format by sparsity, over those of the whole matrix."""

    format: str
    """Format for people: ``csr, 16-bit``."""
    sparsities: tuple[float, ...]
    shares: tuple[float, ...]
    """Bytes over those of the whole matrix."""
    break_even: float | None
    """Sparsity from which the format takes fewer bytes; ``None`` where it never does, or has one
    sparsity alone."""


@dataclass(frozen=True)
class SpeedCurve:
    """Time with the whole matrix over time with the pruned one by sparsity, on one machine."""

    machine: str
    """Machine for people."""
    device: str
    """``cpu`` or ``gpu``."""
    kernels: str
    """Kernels, as calibrations name them."""
    dtype: str
    tokens: int
    """Tokens of the product."""
    kind: str
    """Whether its prices are fitted, published, measured or assumed."""
    source: str
    sparsities: tuple[float, ...]
    speed_ups: tuple[float, ...]
    break_even: float | None
    """Least sparsity at which the pruned product is as fast; ``None`` where none is."""
    sparsity_range: tuple[float, float] | None
    """Sparsities that were measured; ``None`` where nobody says."""
    rows_range: tuple[float, float] | None
    """Tokens that were measured; ``None`` where nobody says."""

    def is_measured(self, sparsity: float) -> bool:
        """Whether the product lies within what its calibration was measured for."""
        low, high = self.sparsity_range or (0.0, 1.0)
        least, most = self.rows_range or (0.0, float("inf"))
        return low <= sparsity <= high and least <= self.tokens <= most

    @property
    def tokens_text(self) -> str:
        """Tokens for people."""
        return "1 token" if self.tokens == 1 else f"{self.tokens:,} tokens"

    @property
    def was_measured(self) -> bool:
        """Whether any product of the curve lies within what was measured."""
        return self.kind != "assumed" and any(map(self.is_measured, self.sparsities))

    @property
    def seen_from(self) -> float | None:
        """Least sparsity within what was measured at which the pruned product is as fast; ``None``
        where none is.
        """
        seen = zip(self.sparsities, self.speed_ups, strict=True)
        return next((at for at, up in seen if up >= 1 and self.is_measured(at)), None)

    def find_speed(self, sparsity: float) -> float | None:
        """Speed-up at a sparsity of the curve; ``None`` at others."""
        return dict(zip(self.sparsities, self.speed_ups, strict=True)).get(sparsity)

    @property
    def break_even_text(self) -> str:
        """Break-even for people: ``51.1 %``, ``50 % or less``, ``never``; empty where the kernels
        have one sparsity alone.
        """
        if len(self.sparsities) == 1:
            return ""
        if self.break_even is None:
            return "never"
        is_least = 0 < self.break_even == self.sparsities[0]
        return f"{self.break_even:.0%} or less" if is_least else f"{self.break_even:.1%}"

    @property
    def basis(self) -> str:
        """Basis of the break-even for people: ``fitted``, ``published, extrapolated``."""
        at = self.sparsities if self.break_even is None else (self.break_even,)
        return self.kind if any(map(self.is_measured, at)) else f"{self.kind}, extrapolated"


@dataclass(frozen=True)
class PublishedPoint:
    """A published speed, with what is predicted for it where that is independent of it."""

    title: str
    device: str
    """``cpu`` or ``gpu``."""
    sparsity: float
    speed_up: float
    tokens: int | None
    rests: str
    """``compared`` with a prediction, ``fitted`` where a calibration rests on it, or ``shown``."""
    conditions: str
    source: str
    machine: str | None = None
    """Machine for people, as curves name it; ``None`` where there is no calibration of it."""
    predicted: float | None = None
    low: float | None = None
    """Least speed-up by the calibration's band."""
    high: float | None = None
    """Most speed-up by the calibration's band."""


@dataclass(frozen=True)
class PublishedLossRow:
    """Perplexity of a pruned model beside the whole one's, as published."""

    model: str
    method: str
    pattern: str
    whole: float
    pruned: float
    source: str


@dataclass(frozen=True)
class PublishedReductionRow:
    """Accuracy that a model lost with some of its experts, as published."""

    model: str
    method: str
    experts: int
    experts_left: int
    points: float
    """Points of accuracy lost, mean of zero-shot tasks."""
    source: str


@dataclass(frozen=True)
class MeasuredSpeeds:
    """Speeds of the runtime's pruned layers on this machine, against whole matrices."""

    machine: str
    """Processor and cores."""
    made: str
    """Date, and version of PyTorch."""
    out_features: int
    in_features: int
    others_share: float
    """Share of the cores that other programs took meanwhile."""
    curves: tuple[SpeedCurve, ...]


@dataclass(frozen=True)
class SparseData:
    """Activations or inputs with zeros, in every format."""

    rows: int
    columns: int
    dtype: str
    density: float
    """Share of the values that are not zero."""
    whole_bytes: float
    formats: tuple[tuple[str, float, float], ...]
    """Format, bytes, and density below which it takes fewer bytes than the whole; 0 where it never
    does."""


@dataclass(frozen=True)
class SparsityResults:
    """Everything that ``moesim sparsity`` tells."""

    out_features: int
    in_features: int
    dtype: str
    storage: tuple[StorageCurve, ...]
    speeds: tuple[SpeedCurve, ...]
    published: tuple[PublishedPoint, ...]
    losses: tuple[PublishedLossRow, ...]
    reductions: tuple[PublishedReductionRow, ...]
    data: SparseData
    measured: MeasuredSpeeds | None = None
    """Speeds measured on this machine; ``None`` where nobody asked."""
