"""Inputs of steps: token ids and caches, drawn from the seed, so that any process can draw them
again.
"""

from __future__ import annotations

import zlib
from functools import partial

import numpy as np
import torch
from torch import Tensor

from simulator.config.mixers import Mixer
from simulator.runtime.job import TORCH_DTYPES, Job, Step
from simulator.runtime.layers.kinds import Cached, mixer_layer

_KEPT = 4
"""Sets of caches that a rank keeps: steps of one shape read the same."""


def token_ids(job: Job, step: Step) -> Tensor:
    """Ids of all ranks' new tokens, sequence after sequence: from the job's text where it has one,
    otherwise drawn.
    """
    if job.texts:
        turn, which = divmod(step.number, len(job.texts))
        text = job.texts[which]
        first = turn * step.num_tokens
        read = np.take(text, range(first, first + step.num_tokens), mode="wrap").astype(np.int64)
        return torch.from_numpy(read % job.model.vocab_size)
    generator = _generator(job.seed, f"tokens {step.number}")
    return torch.randint(job.model.vocab_size, (step.num_tokens,), generator=generator)


class Contexts:
    """Caches of the context for mixers. Their contents do not change the work, so they are drawn
    instead of computed.
    """

    def __init__(self, job: Job, rank: int, device: torch.device) -> None:
        self.job, self.part, self.device = job, job.dense_part(rank), device
        self._kept: dict[tuple[int, int, int], list[Cached]] = {}

    def draw_caches(self, step: Step, first: int, end: int) -> list[Cached]:
        """Caches of sequences ``first`` to ``end - 1``, one for each layer with a mixer."""
        key = (step.context_tokens, first, end)
        if key not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            model = self.job.model
            self._kept[key] = [
                self._draw(layer, model.mixers[name], *key)
                for layer, (name, _) in enumerate(model.layer_names)
                if name != "none"
            ]
        return self._kept[key]

    def _draw(self, layer: int, mixer: Mixer, context: int, first: int, end: int) -> Cached:
        job = self.job
        draws = [
            partial(_draw, job.seed, f"cache {layer} {sequence}") for sequence in range(first, end)
        ]
        drawn = mixer_layer(mixer, job.model.name).draw_cache(mixer, context, self.part, draws)
        return tuple(one.to(device=self.device, dtype=TORCH_DTYPES[job.dtype]) for one in drawn)


def _draw(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    generator = _generator(seed, name)
    return torch.randn(shape, generator=generator)


def _generator(seed: int, name: str) -> torch.Generator:
    # PyTorch's generator looks at the low 32 bits of its seed only, so both must be in them.
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
