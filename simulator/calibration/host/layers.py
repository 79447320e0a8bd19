"""Small models whose layers are timed as shards run them, and the amounts that each moment's time
is explained by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import gmean

from simulator.base.arrays import Floats
from simulator.base.frozen import validate
from simulator.config.model import ModelSpec
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.policies.dispatch.per_rank import PerRank
from simulator.policies.placement import Placed
from simulator.runtime.job import Job, RoutedExperts, Step
from simulator.runtime.shard import ShardStep, threads_per_rank
from simulator.runtime.timeline import Moment
from simulator.work.layout import Layout

REPEATS = 1
"""Times that each kind of step is run in a round, behind one that warms up, with other tokens: the
same ones again would find their experts in a cache."""
_LAYERS = 2
"""Layers of a timed model: the second one finds caches as a model's layers do."""
_HEADS, _SPLIT_HEAD_SIZE = 4, 32
"""Heads of a whole model, and the size of a head of one that is split, which has one for each
rank."""
_VALUE_BYTES = 4.0
"""Bytes of a number in single precision, which shards compute in."""
_CLOCK_S = 1e-6
"""Shortest that is told from nothing."""
_PACKED = ("pack", "experts", "unpack")
"""Moments of a rank's experts where rows are exchanged."""


@dataclass(frozen=True)
class Shape:
    """One model to time."""

    hidden_size: int
    width: int
    num_experts: int = 0
    top_k: int = 1
    steps: tuple[tuple[int, int, int], ...] = ()
    """Sequences of each rank, new tokens and context tokens of each."""
    is_split: bool = False
    """Whether the ranks split the model as tensor parallelism does, rather than the sequences."""

    @property
    def matrices(self) -> tuple[int, int]:
        """Weights of the matrices of a block or an expert: gate and value in one, and back."""
        return 2 * self.hidden_size * self.width, self.hidden_size * self.width

    def model(self, num_ranks: int) -> ModelSpec:
        """Attention and feed-forward block, twice, and next to no vocabulary."""
        ffn: dict[str, object] = {"kind": "dense", "intermediate_size": self.width}
        if self.num_experts:
            ffn |= {"kind": "moe", "num_experts": self.num_experts, "top_k": self.top_k}
        heads, head_size = (
            (num_ranks, _SPLIT_HEAD_SIZE) if self.is_split else (_HEADS, self.hidden_size // _HEADS)
        )
        mixer = {"kind": "gqa", "num_heads": heads, "num_kv_heads": heads, "head_size": head_size}
        table = {
            "name": f"timed {self}",
            "hidden_size": self.hidden_size,
            "vocab_size": 32,
            "mixers": {"a": mixer},
            "ffns": {"f": ffn},
            "layers": [{"repeat": _LAYERS, "pattern": [["a", "f"]]}],
        }
        return validate(ModelSpec, table, "calibration")

    def job(self, num_ranks: int, rng: np.random.Generator) -> Job:
        """Job on ``num_ranks`` data-parallel ranks, experts spread evenly and chosen with a mild
        skew.
        """
        experts = None
        if self.num_experts:
            expert_P = np.arange(self.num_experts)
            rank_P = expert_P * num_ranks // self.num_experts
            weight_E = (1.0 + expert_P) ** -0.3
            key_LTE = rng.gumbel(size=(_LAYERS, POOL_TOKENS, self.num_experts)) + np.log(
                rng.permutation(weight_E)
            )
            ids_LTK = np.argsort(-key_LTE, axis=2)[:, :, : self.top_k].astype(np.int16)
            placed = Placed(
                np.tile(expert_P, (_LAYERS, 1)), np.tile(rank_P, (_LAYERS, 1)), num_ranks
            )
            experts = RoutedExperts(ids_LTK, placed, PerRank())
        return Job(
            name=str(self),
            model=self.model(num_ranks),
            layout=Layout(num_ranks, 1, 1)
            if self.is_split
            else Layout(1, num_ranks, num_ranks if experts else 1),
            node_R=np.zeros(num_ranks, dtype=np.int64),
            dtype="fp32",
            dispatch_dtype="fp32",
            combine_dtype="fp32",
            experts=experts,
            pruning=None,
            seed=0,
            weights=None,
        )

    def every_kind(self, num_ranks: int, turn: int) -> Iterator[list[Step]]:
        """Steps of a round over all ranks, by kind; the first of each kind is for warming up."""
        for kind, (sequences, new, context) in enumerate(self.steps):
            first = (turn * len(self.steps) + kind) * (REPEATS + 1)
            total = sequences if self.is_split else sequences * num_ranks
            yield [
                Step(number, total, new, context, offset=997 * number)
                for number in range(first, first + REPEATS + 1)
            ]


class Sample(NamedTuple):
    """Measured seconds of one moment, and what they are explained by."""

    seconds: float
    working_bytes: float
    """Bytes of weights that all ranks of the machine use in turn."""
    matrices: Sequence[tuple[float, int]]
    """Products in it: rows, and weights of the matrix."""
    amounts: dict[str, float]
    turn: int = 0
    """Round of the calibration that it was timed in."""
    pace_s: float = 1.0
    """Seconds of the reference when it was timed."""

    def at_pace(self, reference_s: float) -> Sample:
        """The sample while the reference takes ``reference_s``."""
        return self._replace(seconds=self.seconds * reference_s / self.pace_s, pace_s=reference_s)


def find_computed_s(moment: Moment, num_ranks: int) -> float:
    """Seconds that a rank computed in a moment: by the clock of its thread where it has only one,
    which other programs do not hold up.
    """
    is_alone = threads_per_rank(num_ranks) == 1
    return moment.cpu_s if is_alone else moment.end_s - moment.start_s


def collect(
    samples: dict[str, list[Sample]],
    shape: Shape,
    job: Job,
    step: Step,
    run: list[ShardStep],
    pace_R: Floats,
) -> None:
    """Explain the moments of a step, around which the reference took ``pace_R`` seconds."""
    collector = _Collector(samples, shape, job, step, run, pace_R)
    for number, moment in enumerate(run[0].moments):
        if moment.is_together:
            collector.add_exchange(number, moment.phase, moment.layer)
    if not shape.is_split and step.num_tokens:
        for rank, shard in enumerate(run):
            for layer in range(_LAYERS if shard.num_tokens else 0):
                collector.add_layer(rank, layer)


@dataclass(frozen=True)
class _Collector:
    """One step of a timed model, whose moments become samples."""

    samples: dict[str, list[Sample]]
    shape: Shape
    job: Job
    step: Step
    run: list[ShardStep]
    pace_R: Floats

    def _add(
        self,
        kind: str,
        seconds: float,
        pace_s: float,
        matrices: Sequence[tuple[float, int]] = (),
        **amounts: float,
    ) -> None:
        """Note a moment."""
        model, shape = self.job.model, self.shape
        copies = 1 if shape.num_experts or shape.is_split else len(self.run)
        working_bytes = _VALUE_BYTES * model.num_parameters * copies
        turn = self.step.number // (len(shape.steps) * (REPEATS + 1))
        self.samples[kind].append(Sample(seconds, working_bytes, matrices, amounts, turn, pace_s))

    def add_exchange(self, number: int, phase: str, layer: int) -> None:
        """Note an exchange, which lasts from its last rank's coming, mean over ranks, and is
        explained by the busiest rank's bytes.

        What the mean rank waits for the last one has two reasons: more work (``spread``, over the
        mean), and chance.
        """
        starts = [shard.moments[number].start_s for shard in self.run]
        ends = [shard.moments[number].end_s for shard in self.run]
        met_s, hidden, pace_s = max(starts), self.shape.hidden_size, float(gmean(self.pace_R))
        spread = 0.0
        if phase == "combine":
            pairs_R = [shard.pairs_L[layer] for shard in self.run]
            over = max(pairs_R) - sum(pairs_R) / len(pairs_R)
            spread = over * float(hidden * self.shape.width)
        wait_s = max(met_s - float(np.mean(starts)), _CLOCK_S)
        self._add(f"{phase} wait", wait_s, pace_s, spread=spread)
        vectors = self.step.num_tokens
        if phase != "collective":
            rows_SR = np.array([shard.rows_LR[layer] for shard in self.run], dtype=float)
            np.fill_diagonal(rows_SR, 0.0)
            vectors = max(rows_SR.sum(axis=0).max(), rows_SR.sum(axis=1).max())
        seconds = float(np.mean([max(end_s - met_s, _CLOCK_S) for end_s in ends]))
        self._add(phase, seconds, pace_s, bytes=float(_VALUE_BYTES * hidden * vectors))

    def add_layer(self, rank: int, layer: int) -> None:
        """Note what one rank computes in a layer."""
        shape, shard, pace_s = self.shape, self.run[rank], float(self.pace_R[rank])
        own: dict[str, list[float]] = defaultdict(list)
        for moment in shard.moments:
            if moment.layer == layer:
                own[moment.phase].append(max(find_computed_s(moment, len(self.run)), _CLOCK_S))
        tokens, hidden = float(shard.num_tokens), shape.hidden_size
        self._add_attention(shard.num_tokens, own["attention"][0], pace_s)
        values = tokens * hidden
        if shape.num_experts:
            scores, router = tokens * shape.num_experts, [(tokens, hidden * shape.num_experts)]
            self._add("router", own["dense"][0], pace_s, router, values=values, scores=scores)
            self._add_experts(rank, layer, own["experts"])
        else:
            matrices = [(tokens, size) for size in shape.matrices]
            hidden_values = tokens * shape.width
            self._add("ffn", own["dense"][0], pace_s, matrices, values=values, hidden=hidden_values)

    def _add_attention(self, tokens: int, seconds: float, pace_s: float) -> None:
        """Note a rank's attention, of prompts or of decoding."""
        mixer, step = next(iter(self.job.model.mixers.values())), self.step
        linears = mixer.linears(self.shape.hidden_size)
        matrices = [(float(tokens), linear.num_parameters) for linear in linears]
        term, sequences = mixer.context_terms()[0], tokens // step.new_tokens
        values = float(tokens * self.shape.hidden_size)
        heads = float(tokens * linears[0].out_features)
        if step.kind == "decode":
            entries = sequences * (step.context_tokens + 1)
            num_bytes = entries * term.cached_elements_per_entry * _VALUE_BYTES
            self._add(
                "decode", seconds, pace_s, matrices, values=values, heads=heads, bytes=num_bytes
            )
        else:
            pairs = sequences * step.new_tokens * (step.new_tokens + 1) / 2
            flops = pairs * term.prefill_flops_per_pair
            self._add("prompt", seconds, pace_s, matrices, values=values, heads=heads, flops=flops)

    def _add_experts(self, rank: int, layer: int, seconds: list[float]) -> None:
        """Note a rank's experts, and their packing where rows are exchanged."""
        shape, shard, pace_s = self.shape, self.run[rank], float(self.pace_R[rank])
        ids_TK = self.job.ids_TJ(layer, self.step.offset, self.step.num_tokens)
        if ids_TK is None:
            raise ValueError("experts of a timed model are planned")
        rows_E = np.bincount(ids_TK.ravel(), minlength=shape.num_experts)
        own_E = rows_E[np.arange(shape.num_experts) * len(self.run) // shape.num_experts == rank]
        matrices = [(float(rows), size) for rows in own_E if rows for size in shape.matrices]
        pairs = float(own_E.sum())
        self._add(
            "experts",
            seconds[len(seconds) // 2],
            pace_s,
            matrices,
            touched=float((own_E > 0).sum()),
            values=pairs * shape.hidden_size,
            hidden=pairs * shape.width,
        )
        if len(seconds) == len(_PACKED):
            num_bytes = _VALUE_BYTES * shape.hidden_size * sum(shard.rows_LR[layer])
            choices = float(shard.num_tokens * shape.top_k)
            self._add("pack", seconds[0], pace_s, choices=choices, bytes=num_bytes)
            self._add("unpack", seconds[2], pace_s, bytes=num_bytes)


def shapes() -> Iterator[Shape]:
    """Models to time: small enough to take seconds, apart enough to tell constants from
    slopes.
    """
    prompts = ((1, 1, 0), (4, 4, 0), (4, 32, 0), (16, 64, 0))
    for hidden, width, experts, top_k in (
        (128, 256, 8, 1),
        (128, 512, 32, 4),
        (256, 512, 16, 2),
        (512, 512, 8, 2),
        (512, 256, 32, 1),
    ):
        yield Shape(hidden, width, experts, top_k, prompts)
    for hidden, width in ((128, 256), (256, 2048), (512, 1024)):
        yield Shape(hidden, width, steps=(*prompts, (4, 1, 64), (32, 1, 128), (16, 1, 512)))
    for hidden, width in ((128, 256), (512, 1024), (256, 8192)):
        yield Shape(hidden, width, steps=prompts, is_split=True)
