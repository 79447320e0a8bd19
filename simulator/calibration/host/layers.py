"""Small models whose layers are timed as shards run them, and the amounts that each moment's time
is explained by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.base.frozen import validate
from simulator.config.model import ModelSpec
from simulator.deployment.expert_plan import POOL_TOKENS
from simulator.policies.dispatch.per_rank import PerRank
from simulator.policies.placement import Placed
from simulator.runtime.job import Job, RoutedExperts, Step
from simulator.runtime.shard import ShardStep
from simulator.work.layout import Layout

REPEATS = 8
"""Times that each kind of step is run, each time with other tokens: the same ones again would find
their experts in a cache."""
_LAYERS = 2
_HEADS = 4
_SPLIT_HEAD_SIZE = 32


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

    def model(self, num_ranks: int) -> ModelSpec:
        """Attention and feed-forward block, twice, and next to no vocabulary."""
        ffn: dict[str, Any] = {"kind": "dense", "intermediate_size": self.width}
        if self.num_experts:
            ffn = {
                "kind": "moe",
                "num_experts": self.num_experts,
                "top_k": self.top_k,
                "intermediate_size": self.width,
            }
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
        """On ``num_ranks`` data-parallel ranks, experts spread evenly and chosen with a mild
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

    def every_step(self, num_ranks: int) -> Iterator[Step]:
        """Its steps over all ranks, each several times; the first of each is for warming up."""
        for kind, (sequences, new, context) in enumerate(self.steps):
            for repeat in range(REPEATS + 1):
                number = kind * (REPEATS + 1) + repeat
                total = sequences if self.is_split else sequences * num_ranks
                yield Step(number, total, new, context, offset=997 * number)


@dataclass
class Samples:
    """Measured seconds of one kind of moment, and what they are explained by."""

    seconds: list[float] = field(default_factory=list)
    amounts: list[dict[str, float]] = field(default_factory=list)
    matrices: list[list[tuple[float, int, float]]] = field(default_factory=list)
    """Products in it: rows, weights of the matrix, and how many such products."""
    working_bytes: list[float] = field(default_factory=list)

    def add(
        self,
        seconds: float,
        working_bytes: float,
        matrices: list[tuple[float, int, float]],
        **amounts: float,
    ) -> None:
        """Note one."""
        self.seconds.append(seconds)
        self.amounts.append(amounts)
        self.matrices.append(matrices)
        self.working_bytes.append(working_bytes)


def collect(
    samples: dict[str, Samples], shape: Shape, job: Job, step: Step, run: list[ShardStep]
) -> None:
    """Explain the moments of a step."""
    num_ranks, hidden = job.layout.num_ranks, shape.hidden_size
    working = (
        4.0 * job.model.num_parameters * (1 if shape.num_experts or shape.is_split else num_ranks)
    )
    _exchanges(samples, shape, step, run, working)
    if shape.is_split:
        return
    for rank, shard in enumerate(run):
        tokens = shard.num_tokens
        if tokens == 0:
            continue
        for layer in range(_LAYERS):
            own: dict[str, list[float]] = {"attention": [], "dense": [], "experts": []}
            for moment in shard.moments:
                if moment.layer == layer and moment.phase in own:
                    own[moment.phase].append(moment.end_s - moment.start_s)
            _attention(samples, shape, job, step, tokens, own["attention"][0], working)
            values = float(tokens * hidden)
            if not shape.num_experts:
                matrices = [
                    (float(tokens), 2 * hidden * shape.width, 1.0),
                    (float(tokens), hidden * shape.width, 1.0),
                ]
                samples["ffn"].add(
                    own["dense"][0],
                    working,
                    matrices,
                    values=values,
                    hidden=float(tokens * shape.width),
                )
                continue
            router = [(float(tokens), hidden * shape.num_experts, 1.0)]
            samples["router"].add(
                own["dense"][0],
                working,
                router,
                values=values,
                scores=float(tokens * shape.num_experts),
            )
            _experts(samples, shape, job, step, rank, layer, shard, own["experts"], working)


def _exchanges(
    samples: dict[str, Samples], shape: Shape, step: Step, run: list[ShardStep], working: float
) -> None:
    """An exchange lasts from its last rank's coming, mean over ranks, and is explained by the
    busiest rank's bytes.

    What the mean rank waits for the last one has two reasons: more work (``spread``, over the
    mean), and chance.
    """
    for number, moment in enumerate(run[0].moments):
        if not moment.is_together:
            continue
        met_s = max(shard.moments[number].start_s for shard in run)
        waited_s = met_s - float(np.mean([shard.moments[number].start_s for shard in run]))
        spread = 0.0
        if moment.phase == "combine":
            pairs_R = [shard.pairs_L[moment.layer] for shard in run]
            spread = (max(pairs_R) - sum(pairs_R) / len(pairs_R)) * float(
                shape.hidden_size * shape.width
            )
        samples[f"{moment.phase} wait"].add(max(waited_s, 1e-6), working, [], spread=spread)
        seconds = float(np.mean([max(shard.moments[number].end_s - met_s, 1e-6) for shard in run]))
        if moment.phase == "collective":
            num_bytes = 4.0 * shape.hidden_size * step.num_tokens
        else:
            row_bytes = 4.0 * shape.hidden_size
            rows_SR = np.array([shard.rows_LR[moment.layer] for shard in run], dtype=float)
            np.fill_diagonal(rows_SR, 0.0)
            num_bytes = row_bytes * max(rows_SR.sum(axis=0).max(), rows_SR.sum(axis=1).max())
        samples[moment.phase].add(seconds, working, [], bytes=float(num_bytes))


def _attention(
    samples: dict[str, Samples],
    shape: Shape,
    job: Job,
    step: Step,
    tokens: int,
    seconds: float,
    working: float,
) -> None:
    mixer = next(iter(job.model.mixers.values()))
    matrices = [
        (float(tokens), linear.num_parameters, 1.0) for linear in mixer.linears(shape.hidden_size)
    ]
    term = mixer.context_terms()[0]
    sequences = tokens // step.new_tokens
    values = float(tokens * shape.hidden_size)
    heads = float(tokens * mixer.linears(shape.hidden_size)[0].out_features)
    if step.kind == "decode":
        entries = sequences * (step.context_tokens + 1)
        samples["decode"].add(
            seconds,
            working,
            matrices,
            values=values,
            heads=heads,
            bytes=entries * term.cached_elements_per_entry * 4,
        )
        return
    pairs = sequences * step.new_tokens * (step.new_tokens + 1) / 2
    samples["prompt"].add(
        seconds,
        working,
        matrices,
        values=values,
        heads=heads,
        flops=pairs * term.prefill_flops_per_pair,
    )


def _experts(
    samples: dict[str, Samples],
    shape: Shape,
    job: Job,
    step: Step,
    rank: int,
    layer: int,
    run: ShardStep,
    seconds: list[float],
    working: float,
) -> None:
    hidden, num_ranks = shape.hidden_size, job.layout.num_ranks
    if step.num_tokens == 0:
        return
    rows_E = _rows(job, step, layer)
    own_E = rows_E[
        [e for e in range(shape.num_experts) if e * num_ranks // shape.num_experts == rank]
    ]
    matrices = [
        (float(rows), size, 1.0)
        for rows in own_E
        if rows
        for size in (2 * hidden * shape.width, hidden * shape.width)
    ]
    pairs, touched = float(own_E.sum()), float((own_E > 0).sum())
    middle = seconds[0] if len(seconds) == 1 else seconds[1]
    samples["experts"].add(
        middle,
        working,
        matrices,
        touched=touched,
        values=pairs * hidden,
        hidden=pairs * shape.width,
    )
    if len(seconds) == 3:
        num_bytes = 4.0 * hidden * sum(run.rows_LR[layer])
        samples["pack"].add(
            seconds[0], working, [], choices=float(run.num_tokens * shape.top_k), bytes=num_bytes
        )
        samples["unpack"].add(seconds[2], working, [], bytes=num_bytes)


def _rows(job: Job, step: Step, layer: int) -> NDArray[np.int64]:
    ids_TK = job.topk_ids_TK(layer, step.offset, step.num_tokens)
    if ids_TK is None or job.moe is None:
        raise ValueError("experts of a timed model are planned")
    return np.bincount(ids_TK.ravel(), minlength=job.moe.num_experts)


def shapes() -> Iterator[Shape]:
    """Models that are timed: small enough to take seconds, apart enough to tell constants from
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
