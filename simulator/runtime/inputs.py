"""What steps read: token ids and caches, drawn from the seed, so that any process can draw them
again.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from simulator.config.attention import GroupedQueryAttention
from simulator.runtime.job import TORCH_DTYPES, Job, Step
from simulator.runtime.layers.attention import Cache, supported

_KEPT = 4
"""Sets of caches that a rank keeps: steps of one shape read the same."""


def token_ids(job: Job, step: Step) -> Tensor:
    """Ids of all ranks' new tokens, sequence after sequence: of the job's text where it has one,
    else drawn.
    """
    if job.texts:
        turn, which = divmod(step.number, len(job.texts))
        text = job.texts[which]
        first = turn * step.num_tokens
        read = np.take(text, range(first, first + step.num_tokens), mode="wrap").astype(np.int64)
        return torch.from_numpy(read % job.model.vocab_size)
    generator = _generator(job.seed, f"tokens {step.number}")
    return torch.randint(job.model.vocab_size, (step.num_tokens,), generator=generator)


def attention_layers(job: Job) -> list[tuple[int, GroupedQueryAttention]]:
    """Number and spec of every layer with attention."""
    model = job.model
    names = [
        (layer, mixer) for layer, (mixer, _) in enumerate(model.layer_names) if mixer != "none"
    ]
    return [(layer, supported(model.mixers[mixer], model.name)) for layer, mixer in names]


class Contexts:
    """Keys and values of contexts. What stands in a cache does not change the work, so it is drawn
    rather than computed.
    """

    def __init__(self, job: Job, rank: int, device: torch.device) -> None:
        self.job, self.part, self.device = job, job.dense_part(rank), device
        self._kept: dict[tuple[int, int, int], list[Cache]] = {}

    def of(self, step: Step, first: int, end: int) -> list[Cache]:
        """Caches of sequences ``first`` to ``end - 1``, one a layer with attention."""
        key = (step.context_tokens, first, end)
        if key not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = [
                self._draw(layer, spec, *key) for layer, spec in attention_layers(self.job)
            ]
        return self._kept[key]

    def _draw(
        self, layer: int, spec: GroupedQueryAttention, context: int, first: int, end: int
    ) -> Cache:
        shape = (2, spec.num_kv_heads, context, spec.head_size)
        heads = [
            self.part.cut(_draw(self.job.seed, f"cache {layer} {sequence}", shape), 1)
            for sequence in range(first, end)
        ]
        empty = torch.empty(0, 2, self.part.num(spec.num_kv_heads), *shape[2:])
        pairs = (torch.stack(heads) if heads else empty).to(
            device=self.device, dtype=TORCH_DTYPES[self.job.dtype]
        )
        return Cache(pairs[:, 0].contiguous(), pairs[:, 1].contiguous())


def _draw(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    generator = _generator(seed, name)
    return torch.randn(shape, generator=generator)


def _generator(seed: int, name: str) -> torch.Generator:
    # PyTorch's generator looks at the low 32 bits of its seed only, so both must be in them.
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
