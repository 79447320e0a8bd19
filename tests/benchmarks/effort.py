"""How much is measured: sizes and repetitions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """Sizes of everything that is measured."""

    name: str
    share: float
    """The part of each scenario's requests that is served."""
    rounds: int
    """Repetitions of what takes less than a second or two; an odd number."""
    requests: tuple[int, ...]
    """Sizes over which the cost of requests is followed."""
    replicas: tuple[int, ...]
    """Sizes over which the cost of replicas is followed."""
    ranks: tuple[int, ...]
    """Ranks over which DeepSeek-V3's experts are spread."""
    layers: tuple[int, ...]
    """Layers of DeepSeek-V3, cut short or made longer; the first three are dense."""
    steps: tuple[tuple[str, int], ...]
    """Fidelities and ranks of the single steps."""
    run_requests: tuple[int, int]
    """Sizes of whole runs: what the second takes beyond the first is what requests take."""
    compiles: bool
    """Whether a start with nothing compiled is measured too."""

    def take(self, count: int) -> int:
        """The share of a scenario's requests, but enough to be served."""
        return max(round(self.share * count), 64)


FULL = Effort(
    name="full",
    share=1.0,
    rounds=5,
    requests=(10_000, 30_000, 100_000, 300_000, 1_000_000),
    replicas=(1, 4, 16, 64, 256, 1_000),
    ranks=(8, 16, 32, 64, 128),
    layers=(8, 16, 32, 64),
    steps=(
        ("rank", 64),
        ("rank", 256),
        ("rank", 1_024),
        ("message", 16),
        ("message", 32),
    ),
    run_requests=(100_000, 1_000_000),
    compiles=True,
)
QUICK = Effort(
    name="quick",
    share=0.1,
    rounds=3,
    requests=(3_000, 30_000, 300_000),
    replicas=(1, 16, 256),
    ranks=(8, 16, 32),
    layers=(8, 16, 32),
    steps=(("rank", 64), ("message", 16)),
    run_requests=(10_000, 50_000),
    compiles=False,
)
