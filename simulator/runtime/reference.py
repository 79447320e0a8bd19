"""Reference of a step in one process, with one whole model, which every distributed run
must equal.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from simulator.runtime.inputs import Contexts, token_ids
from simulator.runtime.job import TORCH_DTYPES, Job, Step
from simulator.runtime.layers.kinds import Chunk
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.layers.weights import weights_from
from simulator.work.layout import Layout


class Reference:
    """Whole model of a job."""

    def __init__(self, job: Job) -> None:
        self.use_placement(job)
        with torch.no_grad():
            self.model = Transformer(job.model, job.pruning).to(TORCH_DTYPES[job.dtype])
            self.model.load(weights_from(job.weights, job.seed))
        self._contexts = Contexts(_whole(job), 0, torch.device("cpu"))

    def use_placement(self, job: Job) -> None:
        """Let tokens overflow as they do with the experts of another job, which has the same
        weights.
        """
        self.job = job
        self._slots = [job.slot_map(layer) for layer in range(job.model.num_moe_layers)]

    def hidden_vectors(self, step: Step) -> NDArray[np.float32]:
        """Hidden vectors of all tokens behind the last norm, ``[T, H]``."""
        job = self.job
        chunk = Chunk(step.num_sequences, step.new_tokens, step.context_tokens)
        ids = [
            job.ids_TJ(layer, step.offset, step.num_tokens)
            for layer in range(job.model.num_moe_layers)
        ]
        known = [torch.from_numpy(ids_TJ) for ids_TJ in ids if ids_TJ is not None]
        caches = (
            self._contexts.draw_caches(step, 0, step.num_sequences) if step.context_tokens else None
        )
        source_T = job.find_sources(step)
        admissions = [job.admission(slots, source_T) for slots in self._slots]
        with torch.inference_mode():
            hidden_TH, _ = self.model(
                token_ids(job, step),
                chunk,
                caches,
                torch.stack(known) if known else None,
                admissions,
            )
        found: NDArray[np.float32] = hidden_TH.float().numpy()
        return found


def _whole(job: Job) -> Job:
    """Put the job on one rank."""
    return replace(job, layout=Layout(1, 1, 1))
