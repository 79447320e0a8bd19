"""The crossover map of an answer: where a mixture of experts beats a dense model."""

from __future__ import annotations

from typing import NamedTuple

from simulator.results.answer.parts import Banded, Part


class Side(NamedTuple):
    """One of the two models at a place of the map."""

    name: str
    """Name of the model."""
    tokens_per_s_gpu: float | None
    """Output tokens per second of one GPU; ``None`` where the model does not fit."""
    sequences_per_gpu: float | None
    """Sequences decoding on one GPU."""
    time_per_token_s: float | None
    """Seconds per output token."""
    split: str | None
    """The best split in words."""


class MapPoint(Banded):
    """A mixture of experts against a dense model with requests of one length on one network."""

    moe: str
    """Name of the mixture of experts."""
    dense: str
    """Name of the dense model."""
    input: int
    """Prompt tokens of a request."""
    output: int
    """Output tokens of a request."""
    network: float
    """Factor on the network's speed."""
    fits: bool
    """Whether both models fit."""
    moe_tokens_per_s_gpu: float | None = None
    """Output tokens per second of one GPU with the mixture of experts."""
    moe_requests_per_s_gpu: float | None = None
    """Requests per second of one GPU with the mixture of experts."""
    moe_sequences_per_gpu: float | None = None
    """Sequences decoding on one GPU with the mixture of experts."""
    moe_time_per_token_s: float | None = None
    """Seconds per output token with the mixture of experts."""
    moe_split: str | None = None
    """The best split of the mixture of experts in words."""
    dense_tokens_per_s_gpu: float | None = None
    """Output tokens per second of one GPU with the dense model."""
    dense_requests_per_s_gpu: float | None = None
    """Requests per second of one GPU with the dense model."""
    dense_sequences_per_gpu: float | None = None
    """Sequences decoding on one GPU with the dense model."""
    dense_time_per_token_s: float | None = None
    """Seconds per output token with the dense model."""
    dense_split: str | None = None
    """The best split of the dense model in words."""
    ratio: float | None = None
    """Output tokens per second of the mixture of experts over those of the dense model."""
    moe_wins_probability: float | None = None
    """Probability that the mixture of experts makes more."""
    winner: str | None = None
    """Name of the model that makes more; null where both are alike or neither fits."""
    deciding_term: str | None = None
    """Deciding term: the part of a step, or the kind of memory, in which the winner saves most."""
    share: float | None = None
    """Share of the deciding term in all that the winner saves."""

    @property
    def sides(self) -> tuple[Side, Side]:
        """The mixture of experts and the dense model."""
        return (
            Side(
                self.moe,
                self.moe_tokens_per_s_gpu,
                self.moe_sequences_per_gpu,
                self.moe_time_per_token_s,
                self.moe_split,
            ),
            Side(
                self.dense,
                self.dense_tokens_per_s_gpu,
                self.dense_sequences_per_gpu,
                self.dense_time_per_token_s,
                self.dense_split,
            ),
        )

    @property
    def is_clear(self) -> bool:
        """Whether the ratio's band, if it has one, lies on one side of equal."""
        band = self.band_of("ratio")
        return band is None or band.low > 1 or band.high < 1


class LoadPoint(MapPoint):
    """A mixture of experts and a dense model at the same number of sequences on a GPU."""

    batch_per_gpu: float
    """Sequences decoding on one GPU."""
    ep: int
    """GPUs over which experts are spread; 1 without expert parallelism."""


class SpeedPoint(MapPoint):
    """A mixture of experts and a dense model at the same time per output token, in seconds."""

    pairing: str = ""
    """Splits that are compared: the best of each, or the same tensor parallelism."""
    gpus: int | None = None
    """GPUs of tensor parallelism on both sides; null for the best of each."""
    time_per_token_s: float
    """Seconds that an output token may take."""


class FullPoint(MapPoint):
    """A mixture of experts and a dense model, each at its full load."""

    pairing: str = ""
    """Splits that are compared: the best of each, or the same tensor parallelism."""
    gpus: int | None = None
    """GPUs of tensor parallelism on both sides; null for the best of each."""


class MapModels(Part):
    """Names of the models of a map."""

    moe: tuple[str, ...]
    """Mixtures of experts."""
    dense: tuple[str, ...]
    """Dense models."""


class CrossoverMap(Part):
    """Three readings of where a mixture of experts beats a dense model."""

    models: MapModels
    """The models that are compared."""
    cluster: str = ""
    """Name of the kind of machines."""
    terms: tuple[str, ...] = ()
    """Terms that may decide, in the order of a step."""
    cells: tuple[LoadPoint, ...] = ()
    """Points at the same load of a GPU."""
    at_same_time: tuple[SpeedPoint, ...] = ()
    """Points at the same time per output token."""
    at_full_load: tuple[FullPoint, ...] = ()
    """Points with each model at its full load."""
    flips: tuple[str, ...] = ()
    """Sentences on where the winner changes."""
