"""Small models whose layers are timed as shards run them, and the amounts that each moment's time is explained by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.dispatch.per_rank import PerRank
from simulator.placement import Placed
from simulator.plan import POOL_TOKENS
from simulator.runtime.job import Job, RoutedExperts, Step
from simulator.runtime.shard import ShardStep
from simulator.spec.base import validate
from simulator.spec.mixers import GroupedQueryAttention
from simulator.spec.model import ModelSpec
from simulator.work.layout import Layout

REPEATS = 5
"""Times that each step is run; the median of each moment counts."""
_LAYERS = 2
_HEADS = 4


@dataclass(frozen=True)
class Shape:
    """One model to time."""

    hidden_size: int
    width: int
    num_experts: int = 0
    top_k: int = 1
    steps: tuple[tuple[int, int, int], ...] = ()
    """Sequences of each rank, new tokens and context tokens of each."""

    def model(self) -> ModelSpec:
        """Attention and feed-forward block, twice, and next to no vocabulary."""
        ffn: dict[str, Any] = {"kind": "dense", "intermediate_size": self.width}
        if self.num_experts:
            ffn = {"kind": "moe", "num_experts": self.num_experts, "top_k": self.top_k, "intermediate_size": self.width}
        mixer = {"kind": "gqa", "num_heads": _HEADS, "num_kv_heads": _HEADS, "head_size": self.hidden_size // _HEADS}
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
        """On ``num_ranks`` data-parallel ranks, experts spread evenly and chosen with a mild skew."""
        experts = None
        if self.num_experts:
            expert_P = np.arange(self.num_experts)
            rank_P = expert_P * num_ranks // self.num_experts
            weight_E = (1.0 + expert_P) ** -0.3
            key_LTE = rng.gumbel(size=(_LAYERS, POOL_TOKENS, self.num_experts)) + np.log(rng.permutation(weight_E))
            ids_LTK = np.argsort(-key_LTE, axis=2)[:, :, : self.top_k].astype(np.int16)
            placed = Placed(np.tile(expert_P, (_LAYERS, 1)), np.tile(rank_P, (_LAYERS, 1)), num_ranks)
            experts = RoutedExperts(ids_LTK, placed, PerRank())
        return Job(
            name=str(self),
            model=self.model(),
            layout=Layout(1, num_ranks, num_ranks if experts else 1),
            node_R=np.zeros(num_ranks, dtype=np.int64),
            dtype="fp32",
            dispatch_dtype="fp32",
            combine_dtype="fp32",
            experts=experts,
            pruning=None,
            seed=0,
            weights=None,
        )

    def step(self, number: int, num_ranks: int) -> Step:
        """One of its steps over all ranks."""
        sequences, new, context = self.steps[number]
        return Step(number, sequences * num_ranks, new, context, offset=997 * number)


@dataclass
class Samples:
    """Measured seconds of one kind of moment, and what they are explained by."""

    seconds: list[float] = field(default_factory=list)
    amounts: list[dict[str, float]] = field(default_factory=list)
    matrices: list[list[tuple[float, int, float]]] = field(default_factory=list)
    """Products in it: rows, weights of the matrix, and how many such products."""
    working_bytes: list[float] = field(default_factory=list)

    def add(self, seconds: float, working_bytes: float, matrices: list[tuple[float, int, float]], **amounts: float) -> None:
        """Note one."""
        self.seconds.append(seconds)
        self.amounts.append(amounts)
        self.matrices.append(matrices)
        self.working_bytes.append(working_bytes)


def collect(samples: dict[str, Samples], shape: Shape, job: Job, step: Step, runs: list[list[ShardStep]]) -> None:
    """Explain the moments of a step that was run several times."""
    num_ranks, hidden = job.layout.num_ranks, shape.hidden_size
    working = 4.0 * job.model.num_parameters * (num_ranks if not shape.num_experts else 1)
    for rank in range(num_ranks):
        tokens = runs[0][rank].num_tokens
        if tokens == 0:
            continue
        seconds = np.median([[m.end_s - m.start_s for m in run[rank].moments] for run in runs], axis=0)
        labels = [(m.phase, m.layer) for m in runs[0][rank].moments]
        for layer in range(_LAYERS):
            own = {
                phase: [seconds[i] for i, label in enumerate(labels) if label == (phase, layer)]
                for phase in ("attention", "dense", "experts")
            }
            _attention(samples, shape, job, step, tokens, float(own["attention"][0]), working)
            if not shape.num_experts:
                matrices = [(float(tokens), 2 * hidden * shape.width, 1.0), (float(tokens), hidden * shape.width, 1.0)]
                samples["ffn"].add(float(own["dense"][0]), working, matrices, values=tokens * hidden, hidden=tokens * shape.width)
                continue
            router = [(float(tokens), hidden * shape.num_experts, 1.0)]
            samples["router"].add(
                float(own["dense"][0]), working, router, values=tokens * hidden, scores=tokens * shape.num_experts
            )
            _experts(samples, shape, job, step, rank, layer, runs[0][rank], [float(s) for s in own["experts"]], working)


def _attention(
    samples: dict[str, Samples], shape: Shape, job: Job, step: Step, tokens: int, seconds: float, working: float
) -> None:
    mixer = next(iter(job.model.mixers.values()))
    if not isinstance(mixer, GroupedQueryAttention):
        raise TypeError("only grouped-query attention is timed")
    matrices = [(float(tokens), linear.num_parameters, 1.0) for linear in mixer.linears(shape.hidden_size)]
    term = mixer.context_terms()[0]
    sequences = tokens // step.new_tokens
    values = float(tokens * shape.hidden_size)
    if step.kind == "decode":
        entries = sequences * (step.context_tokens + 1)
        samples["decode"].add(seconds, working, matrices, values=values, bytes=entries * term.cached_elements_per_entry * 4)
        return
    pairs = sequences * step.new_tokens * (step.new_tokens + 1) / 2
    samples["prompt"].add(seconds, working, matrices, values=values, flops=pairs * term.prefill_flops_per_pair)


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
    rows_E = _rows(job, step, layer)
    own_E = rows_E[[e for e in range(shape.num_experts) if e * num_ranks // shape.num_experts == rank]]
    matrices = [(float(rows), size, 1.0) for rows in own_E if rows for size in (2 * hidden * shape.width, hidden * shape.width)]
    pairs, touched = float(own_E.sum()), float((own_E > 0).sum())
    middle = seconds[0] if len(seconds) == 1 else seconds[1]
    samples["experts"].add(middle, working, matrices, touched=touched, values=pairs * hidden, hidden=pairs * shape.width)
    if len(seconds) == 3:
        num_bytes = 4.0 * hidden * sum(run.rows_LR[layer])
        samples["pack"].add(seconds[0], working, [], choices=float(run.num_tokens * shape.top_k), bytes=num_bytes)
        samples["unpack"].add(seconds[2], working, [], bytes=num_bytes)


def _rows(job: Job, step: Step, layer: int) -> NDArray[np.int64]:
    ids_TK = job.topk_ids_TK(layer, step.offset, step.num_tokens)
    if ids_TK is None or job.moe is None:
        raise ValueError("experts of a timed model are planned")
    return np.bincount(ids_TK.ravel(), minlength=job.moe.num_experts)


def shapes() -> Iterator[Shape]:
    """Models that are timed: small enough to take seconds, apart enough to tell constants from slopes."""
    prompts = ((1, 1, 0), (1, 16, 0), (2, 64, 0), (4, 256, 0))
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
