"""What every execution must keep, whichever backend ran it; and jobs that are harder than the ones
scenarios describe.
"""

import dataclasses
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from simulator.policies.overflow import RoutedTokens, may_drop
from simulator.policies.placement import Placed
from simulator.policies.replica_choice import Origins
from simulator.runtime.in_process import InProcessBackend
from simulator.runtime.job import Step
from simulator.runtime.layers.transformer import Transformer
from simulator.runtime.layers.weights import save_weights
from simulator.runtime.reference import Reference
from simulator.runtime.timeline import combine
from tests.admission_by_loops import admit_by_loops
from tests.parts import change_plan
from tests.replicas_by_loops import choose_by_loops

FP32 = 2e-5
"""Hidden vectors behind a norm are of order one; sums over some hundred terms in another order
differ in the sixth digit."""
BF16 = 0.1
"""Eight bits of mantissa: one step is 0.008 at one and 0.016 at two, and values up to four pass
through some ten roundings."""


def prompts(number=0, sequences=5, tokens=3, offset=10):
    return Step(number, sequences, tokens, 0, offset, keeps_output=True)


def decode(number=1, sequences=7, context=6, offset=0):
    return Step(number, sequences, 1, context, offset, keeps_output=True)


STEPS = (
    prompts(),  # 5 sequences: no multiple of any number of ranks, and none left for some of 8
    decode(),
    Step(
        2, 3, 2, 5, 4093, keeps_output=True
    ),  # new tokens on a context, across the end of the pool of choices
    prompts(3, sequences=1, tokens=1),  # one token: nothing at all on every other rank
)


@contextmanager
def running(job):
    backend = InProcessBackend(job.layout.num_ranks)
    try:
        yield backend, backend.load(job)
    finally:
        backend.close()


def check_job(job, steps=STEPS, tolerance=FP32):
    with running(job) as (backend, _):
        check(job, backend, Reference(job), steps, tolerance)


def check(job, backend, reference, steps=STEPS, tolerance=FP32):
    """Run the steps, and hold every one to the reference and to the laws."""
    for step in steps:
        check_step(job, step, backend.step(step), reference, tolerance)


def check_step(job, step, outs, reference, tolerance=FP32):
    found = hidden(job, outs)
    expected = reference.hidden_vectors(step)
    assert found.shape == expected.shape == (step.num_tokens, job.model.hidden_size)
    assert np.isfinite(expected).all()
    assert np.abs(found - expected).max() <= tolerance
    check_laws(job, step, outs)


def hidden(job, outs):
    """Hidden vectors of all tokens, in their order; the ranks of a tensor-parallel group have the
    same.
    """
    tp = job.layout.tp
    for rank in range(job.layout.num_ranks):
        assert np.array_equal(outs[rank].hidden_TH, outs[rank - rank % tp].hidden_TH)
    return np.concatenate([outs[rank].hidden_TH for rank in range(0, len(outs), tp)])


def check_laws(job, step, outs):
    layout = job.layout
    firsts = range(0, layout.num_ranks, layout.tp)
    assert [out.rank for out in outs] == list(range(layout.num_ranks))
    assert sum(outs[rank].num_tokens for rank in firsts) == step.num_tokens
    measured = combine([out.moments for out in outs])
    assert abs(sum(measured.phases.values()) - measured.duration_s) <= 1e-9
    assert all(seconds >= 0 for seconds in measured.phases.values())
    if job.experts is None:
        return
    ids_LTK = np.concatenate([outs[rank].topk_ids_LTK for rank in firsts], axis=1)
    shape = (job.model.num_moe_layers, step.num_tokens, job.moe.top_k)
    assert ids_LTK.shape == shape
    for layer in range(job.model.num_moe_layers):
        planned_TJ = job.ids_TJ(layer, step.offset, step.num_tokens)
        is_kept_TK = ids_LTK[layer] >= 0
        if planned_TJ is not None:
            tokens = RoutedTokens(
                planned_TJ,
                ranks_of(job, layer, planned_TJ, step)[:, :: layout.moe_tp] // layout.moe_tp,
                job.moe.top_k,
                sources(job, step),
                job.moe.num_experts,
                job.experts.placed.num_ranks,
            )
            admitted_TK = admit_by_loops(job.experts.overflow, tokens)
            assert np.array_equal(ids_LTK[layer], admitted_TK)
        elif not may_drop(job.experts.overflow):
            assert is_kept_TK.all()
        pairs_R = np.array([out.pairs_L[layer] for out in outs])
        assert pairs_R.sum() == is_kept_TK.sum() * layout.moe_tp
        rank_TK = ranks_of(job, layer, ids_LTK[layer], step)
        kept_N = rank_TK[rank_TK >= 0]
        assert np.array_equal(pairs_R, np.bincount(kept_N, minlength=layout.num_ranks))
        if layout.travels:
            sent_SR = np.array([out.rows_LR[layer] for out in outs])
            np.fill_diagonal(sent_SR, 0)
            assert np.array_equal(
                sent_SR, job.experts.dispatch.copies(rank_TK, sources(job, step), job.node_R)
            )


def ranks_of(job, layer, ids_TK, step):
    """Ranks that hold the copies of each token's experts that it goes to, by loops, -1 where a
    choice was dropped.
    """
    placed, moe_tp = job.experts.placed, job.layout.moe_tp
    position_T = np.arange(len(ids_TK))
    origins = Origins(position_T, 0 * position_T, position_T % placed.num_ranks)
    if job.layout.travels:
        source_T = sources(job, step) * job.layout.tp
        origins = Origins(position_T, source_T, source_T // moe_tp)
    expert_P, rank_P = placed.expert_LP[layer], placed.rank_LP[layer]
    slot_TK = choose_by_loops(
        job.experts.replica_choice, expert_P, rank_P, job.node_R[::moe_tp], ids_TK, origins
    )
    part_TKM = rank_P[slot_TK][..., None] * moe_tp + np.arange(moe_tp)
    rank_TKM = np.where(slot_TK[..., None] < 0, -1, part_TKM)
    return rank_TKM.reshape(len(ids_TK), -1)


def sources(job, step):
    """Rank of each token: whole sequences, the first ranks having one more where they do not
    divide.
    """
    groups = np.array_split(np.arange(step.num_sequences), job.layout.attention_dp)
    return np.repeat(
        np.arange(job.layout.attention_dp), [len(group) * step.new_tokens for group in groups]
    )


def replicated(placed, num_experts, extra, rng):
    """The placement with ``extra`` more slots: copies of random experts on random ranks, one expert
    being on every rank.
    """
    layers, ranks = len(placed.expert_LP), placed.num_ranks
    experts = np.concatenate(
        [np.zeros((layers, ranks)), rng.integers(0, num_experts, (layers, extra))], axis=1
    )
    places = np.concatenate(
        [np.tile(np.arange(ranks), (layers, 1)), rng.integers(0, ranks, (layers, extra))], axis=1
    )
    expert_LP = np.concatenate([placed.expert_LP, experts], axis=1).astype(np.int64)
    rank_LP = np.concatenate([placed.rank_LP, places], axis=1).astype(np.int64)
    order = rng.permutation(expert_LP.shape[1])
    return Placed(expert_LP[:, order], rank_LP[:, order], ranks)


def with_placed(plan, placed):
    return change_plan(plan, experts=dataclasses.replace(plan.placement.experts, placed=placed))


def by_its_router(job):
    """The job where the router's own choice counts."""
    return dataclasses.replace(job, experts=dataclasses.replace(job.experts, topk_ids_LTK=None))


def with_noise(job, folder):
    """The job with weights from a file in which no bias is zero and no norm is one, as those that
    are drawn from a seed are.
    """
    tensors, generator = {}, torch.Generator().manual_seed(5)

    def tensor(name, shape):
        values = torch.randn(shape, generator=generator)
        scale, base = (
            (shape[-1] ** -0.5, 0.0) if len(shape) > 1 else (0.3, float(name.endswith("norm")))
        )
        return tensors.setdefault(name, base + scale * values)

    Transformer(job.model, job.pruning).load(SimpleNamespace(tensor=tensor))
    path = Path(folder) / f"noise-{len(list(Path(folder).iterdir()))}.safetensors"
    save_weights(iter(tensors.items()), path)
    return dataclasses.replace(job, weights=str(path))
