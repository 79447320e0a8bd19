"""Parts of a model on one rank, and one forward pass through them with the other ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from simulator.config.ffns.moe import MoE
from simulator.config.sparsity import choose_experts
from simulator.policies.contracts import list_rows
from simulator.runtime.exchange import ExpertMap, Packer
from simulator.runtime.job import TORCH_DTYPES, Job, Step
from simulator.runtime.layers.cached_experts import CachedExperts
from simulator.runtime.layers.experts import Experts
from simulator.runtime.layers.feed_forward import SharedExpert
from simulator.runtime.layers.kinds import (
    Cached,
    Chunk,
    FFNLayer,
    MixerLayer,
    build_ffn,
    mixer_layer,
)
from simulator.runtime.layers.router import Router
from simulator.runtime.layers.transformer import Norm
from simulator.runtime.layers.weights import Weights, empty, fill
from simulator.runtime.timeline import Timeline
from simulator.runtime.transport import Transport

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass
class Pass:
    """Results of one forward pass."""

    hidden_TH: Tensor
    """Hidden vectors of the rank's tokens."""
    topk_ids_LTK: list[NDArray[np.int64] | None] = field(default_factory=list)
    """Experts used by the rank's tokens, by layer."""
    pairs_L: list[int] = field(default_factory=list)
    """Token-expert pairs that the rank computed, by MoE layer."""
    rows_LR: list[list[int]] = field(default_factory=list)
    """Rows sent to each rank, by MoE layer."""


class ExpertLayer(nn.Module):
    """One rank's share of an MoE layer: its experts, the router (a copy on each rank) and its part
    of the shared expert.
    """

    def __init__(self, job: Job, moe: MoE, rank: int, layer: int, moe_layer: int) -> None:
        super().__init__()
        hidden = job.model.hidden_size
        self.rank, self.layer, self.moe_layer, self.job = rank, layer, moe_layer, job
        self.map = ExpertMap(job, moe_layer)
        self.packer = Packer(job)
        self.router = Router(moe, hidden)
        own = self.map.experts_of(rank)
        self.num_slots = len(own)
        self.cached: CachedExperts | None = None
        if job.offload is not None:
            dtype = TORCH_DTYPES[job.dtype]
            self.cached = CachedExperts(moe, hidden, own, job.offload, moe_layer, dtype)
            own = []
        pruning = choose_experts(job.pruning)
        self.experts = Experts(moe, hidden, own, job.expert_part(rank), pruning)
        self.shared = (
            SharedExpert(moe, hidden, job.dense_part(rank)) if moe.num_shared_experts else None
        )

    def use_job(self, job: Job, rank: int) -> None:
        """Go on as a rank of another job, whose experts are held here already."""
        self.job, self.rank, self.map = job, rank, ExpertMap(job, self.moe_layer)

    def load(self, weights: Weights, name: str, like: Tensor) -> None:
        """Fill in the weights of this rank's share."""
        self.router.load(weights, f"{name}.router")
        (self.cached or self.experts).load(weights, f"{name}.experts", like)
        if self.shared is not None:
            self.shared.load(weights, f"{name}.shared", like)

    def run(
        self,
        norm: Norm,
        x_TH: Tensor,
        step: Step,
        first_token: int,
        transport: Transport,
        timeline: Timeline,
        done: Pass,
    ) -> Tensor:
        """Compute the layer's output for every token, a partial sum where tokens do not travel."""
        with timeline.busy("dense", self.layer):
            normed = norm(x_TH)
            planned_TJ = self.job.ids_TJ(self.moe_layer, step.offset + first_token, len(x_TH))
            ids_TK, weight_TK = self.router(
                normed,
                None if planned_TJ is None else torch.from_numpy(planned_TJ).to(x_TH.device),
                self.job.admission(self.map.slots, self._find_sources(len(x_TH)), first_token),
            )
            result: Tensor | None = None if self.shared is None else self.shared(normed)
        chosen_TK = ids_TK.cpu().numpy()
        done.topk_ids_LTK.append(chosen_TK)
        routed = (self._travelling if self.job.layout.travels else self._staying)(
            normed, weight_TK, chosen_TK, first_token, transport, timeline, done
        )
        return routed if result is None else routed + result

    def _find_sources(self, num_tokens: int) -> NDArray[np.int64] | None:
        """Rank that each of this rank's tokens is on; ``None`` where every rank has every token."""
        return np.full(num_tokens, self.rank) if self.job.layout.travels else None

    def _choices(
        self, ids_TK: NDArray[np.int64], first_token: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rank and local slot of every choice of this rank's tokens."""
        return self.map.choices(ids_TK, self._find_sources(len(ids_TK)), first_token)

    def _staying(
        self,
        x_TH: Tensor,
        weight_TK: Tensor,
        ids_TK: NDArray[np.int64],
        first_token: int,
        transport: Transport,
        timeline: Timeline,
        done: Pass,
    ) -> Tensor:
        """Compute the pairs of this rank's own experts, where every rank has every token; the
        all-reduce behind adds them up.
        """
        with timeline.busy("experts", self.layer):
            rank_TK, local_TK = self._choices(ids_TK, first_token)
            token_N, choice_N = np.nonzero(rank_TK == self.rank)
            slot_N = local_TK[token_N, choice_N]
            order = np.argsort(slot_N, kind="stable")
            token = torch.from_numpy(token_N[order]).to(x_TH.device)
            choice = torch.from_numpy(choice_N[order] // self.map.moe_tp).to(x_TH.device)
            rows_P = np.bincount(slot_N, minlength=self.num_slots).tolist()
            compute = self.cached or self.experts
            expert_NH = compute(x_TH[token], rows_P) * weight_TK[token, choice][:, None]
            result = torch.zeros_like(x_TH).index_add_(0, token, expert_NH)
        done.pairs_L.append(len(token_N))
        return result

    def _travelling(
        self,
        x_TH: Tensor,
        weight_TK: Tensor,
        ids_TK: NDArray[np.int64],
        first_token: int,
        transport: Transport,
        timeline: Timeline,
        done: Pass,
    ) -> Tensor:
        """Send tokens to the ranks of their experts, compute, and bring the outputs back."""
        num_ranks = self.job.layout.num_ranks
        with timeline.busy("experts", self.layer):
            rank_TK, local_TK = self._choices(ids_TK, first_token)
            rows = list_rows(self.map.dispatch, rank_TK, self.map.node_R)
            outgoing = self.packer.pack(
                x_TH, weight_TK.repeat_interleave(self.map.moe_tp, dim=1), local_TK, rows, num_ranks
            )
        with timeline.meet("dispatch", self.layer):
            received, rows_R = transport.all_to_all(outgoing.payload_NB, outgoing.rows_R)
        with timeline.busy("experts", self.layer):
            incoming = self.packer.unpack(received, len(self.experts.expert_P))
            answer = self.packer.answer(self.experts(incoming.x_PH, incoming.rows_P), incoming)
        with timeline.meet("combine", self.layer):
            returned, _ = transport.all_to_all(answer, rows_R, outgoing.rows_R)
        with timeline.busy("experts", self.layer):
            result = self.packer.gather(returned, outgoing, len(x_TH))
        done.pairs_L.append(len(incoming.x_PH))
        done.rows_LR.append(outgoing.rows_R)
        return result


class RankModel(nn.Module):
    """One rank's part of a whole model."""

    def __init__(self, job: Job, rank: int) -> None:
        super().__init__()
        model, part = job.model, job.dense_part(rank)
        hidden = model.hidden_size
        self.job, self.rank = job, rank
        self.embedding = empty(model.vocab_size, hidden)
        self.norm = Norm(hidden)
        self.head = None if model.ties_embeddings else empty(part.num(model.vocab_size), hidden)
        self.mixers, self.mixer_norms, self.ffns, self.ffn_norms = (
            nn.ModuleDict() for _ in range(4)
        )
        moe_layers = 0
        for layer, (mixer, ffn) in enumerate(model.layer_names):
            if mixer != "none":
                spec = model.mixers[mixer]
                self.mixers[str(layer)] = mixer_layer(spec, model.name)(spec, hidden, part)
                self.mixer_norms[str(layer)] = Norm(hidden)
            if ffn == "none":
                continue
            self.ffn_norms[str(layer)] = Norm(hidden)
            block = model.ffns[ffn]
            if block.experts is None:
                self.ffns[str(layer)] = build_ffn(block, hidden, job.pruning, model.name, part)
            else:
                self.ffns[str(layer)] = ExpertLayer(job, block.experts, rank, layer, moe_layers)
                moe_layers += 1

    @property
    def cached_experts(self) -> list[CachedExperts]:
        """Experts of the MoE layers that lie on disk, in their order."""
        return [layer.cached for layer in self.expert_layers if layer.cached is not None]

    @property
    def expert_layers(self) -> list[ExpertLayer]:
        """MoE layers, in their order."""
        return [ffn for ffn in self.ffns.values() if isinstance(ffn, ExpertLayer)]

    def use_job(self, job: Job, rank: int) -> None:
        """Go on as a rank of another job, whose experts are held here already."""
        self.job, self.rank = job, rank
        for layer in self.expert_layers:
            layer.use_job(job, rank)

    def load(self, weights: Weights) -> None:
        """Fill in every weight of this rank."""
        model, part = self.job.model, self.job.dense_part(self.rank)
        fill(self.embedding, weights.tensor("embedding", tuple(self.embedding.shape)))
        self.norm.load(weights, "norm")
        if self.head is not None:
            fill(self.head, part.cut(weights.tensor("head", (model.vocab_size, model.hidden_size))))
        for layer, mixer in self.mixers.items():
            _check_kind(mixer, MixerLayer).load(weights, f"layers.{layer}.mixer")  # type: ignore[type-abstract]
            _check_kind(self.mixer_norms[layer], Norm).load(weights, f"layers.{layer}.mixer_norm")
        for layer, ffn in self.ffns.items():
            block = ffn if isinstance(ffn, ExpertLayer) else _check_kind(ffn, FFNLayer)  # type: ignore[type-abstract]
            block.load(weights, f"layers.{layer}.ffn", self.embedding)
            _check_kind(self.ffn_norms[layer], Norm).load(weights, f"layers.{layer}.ffn_norm")

    def run(
        self,
        token_ids_T: Tensor,
        chunk: Chunk,
        caches: list[Cached] | None,
        step: Step,
        first_token: int,
        transport: Transport,
        timeline: Timeline,
    ) -> Pass:
        """Run one forward pass; every rank records the same operations in the same order.

        Args:
            first_token: index of this rank's first token in the whole batch.
        """
        layout = self.job.layout
        with timeline.busy("dense", -1):
            x_TH = self.embedding[token_ids_T]
        done = Pass(x_TH)
        mixers = 0
        for layer in range(self.job.model.num_layers):
            key = str(layer)
            if key in self.mixers:
                with timeline.busy("attention", layer):
                    mixed = self.mixers[key](
                        self.mixer_norms[key](x_TH),
                        chunk,
                        None if caches is None else caches[mixers],
                    )
                mixers += 1
                x_TH = self._add(x_TH, mixed, layer, layout.tp > 1, transport, timeline)
            if key not in self.ffns:
                continue
            norm, ffn = _check_kind(self.ffn_norms[key], Norm), self.ffns[key]
            if isinstance(ffn, ExpertLayer):
                added = ffn.run(norm, x_TH, step, first_token, transport, timeline, done)
            else:
                with timeline.busy("dense", layer):
                    added = ffn(norm(x_TH))
            x_TH = self._add(x_TH, added, layer, layout.tp > 1, transport, timeline)
        with timeline.busy("dense", -1):
            done.hidden_TH = self.norm(x_TH)
            last = done.hidden_TH[chunk.new_tokens - 1 :: chunk.new_tokens]
            functional.linear(last, self._head())
        return done

    def _head(self) -> Tensor:
        return (
            self.job.dense_part(self.rank).cut(self.embedding) if self.head is None else self.head
        )

    @staticmethod
    def _add(
        x_TH: Tensor,
        added: Tensor,
        layer: int,
        is_partial: bool,
        transport: Transport,
        timeline: Timeline,
    ) -> Tensor:
        if is_partial:
            with timeline.meet("collective", layer):
                added = transport.all_reduce(added.contiguous())
        return x_TH + added


def _check_kind(module: nn.Module, kind: type[AnyModule]) -> AnyModule:
    """Check the type of a module, which ``ModuleDict`` does not declare."""
    if not isinstance(module, kind):
        raise TypeError(f"expected {kind.__name__}, found {type(module).__name__}")
    return module
