"""Recording of the choices of a deployment's routers while its shards run for real."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from simulator.base.errors import UserError
from simulator.base.progress import Progress
from simulator.config.execution import ExecutionSpec
from simulator.policies.overflow.none import Dropless
from simulator.runtime.job import Job, Step
from simulator.runtime.ray_backend import RayBackend
from simulator.runtime.recording.trace_file import Recording


def record_shards(
    backend: RayBackend,
    job: Job,
    execution: ExecutionSpec,
    texts: dict[str, bytes],
    tokens: int,
    provenance: str,
    tick: Progress,
) -> Recording:
    """Run prompts through the shards, with the routers choosing, until enough tokens are recorded.

    Args:
        texts: text by domain; each step reads the next one in turn, every byte a token.

    Raises:
        UserError: if the deployment has no experts, or its scenario no prompts.
    """
    if job.experts is None or job.moe is None:
        raise UserError(f"deployment '{job.name}': {job.model.name} is dense and routes nothing")
    if execution.prompts == 0:
        raise UserError("execution.prompts is 0, so there are no prompts to record")
    # What routers choose, not what is left of it.
    chooses = dataclasses.replace(job.experts, topk_ids_LTK=None, overflow=Dropless())
    backend.load(
        dataclasses.replace(
            job,
            experts=chooses,
            texts=tuple(np.frombuffer(text, dtype=np.uint8) for text in texts.values()),
        )
    )
    num_steps = -(-tokens // (execution.prompts * execution.prompt_tokens))
    found, domains = [], []
    names = list(texts)
    for number in range(num_steps):
        shards = backend.step(
            Step(number, execution.prompts, execution.prompt_tokens, 0, 0, keeps_output=True)
        )
        first = shards[:: job.layout.tp]
        found += [
            shard.topk_ids_LTK
            for shard in first
            if shard.topk_ids_LTK is not None and shard.num_tokens
        ]
        domains += [names[number % len(names)]] * execution.prompts
        tick("recording", number + 1, num_steps)
    return Recording(
        topk_ids_LTK=np.concatenate(found, axis=1),
        seq_lens_Q=np.full(len(domains), execution.prompt_tokens, dtype=np.int64),
        domain_Q=domains,
        num_experts=job.moe.num_experts,
        provenance=(
            f"{provenance} torch {torch.__version__}, {backend.size} shards, seed {job.seed}."
        ),
    )
