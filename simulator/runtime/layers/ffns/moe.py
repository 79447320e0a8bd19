"""Mixtures of experts in one process."""

from __future__ import annotations

import torch
from torch import Tensor

from simulator.config.ffns.moe import MoE
from simulator.config.sparsity import Pruning
from simulator.runtime.layers.experts import Experts
from simulator.runtime.layers.feed_forward import SharedExpert
from simulator.runtime.layers.kinds import Admission, FFNLayer
from simulator.runtime.layers.router import Router
from simulator.runtime.layers.weights import WHOLE, Part, Weights


class MixtureOfExperts(FFNLayer):
    """All experts of a layer in one process: the reference of distributed runs, and the layer that
    is trained. A part has the same features of every expert.
    """

    def __init__(
        self, spec: MoE, hidden_size: int, part: Part = WHOLE, pruning: Pruning | None = None
    ) -> None:
        super().__init__()
        self.moe = spec
        self.router = Router(spec, hidden_size)
        self.experts = Experts(spec, hidden_size, list(range(spec.num_experts)), part, pruning)
        self.shared = SharedExpert(spec, hidden_size, part) if spec.num_shared_experts else None

    def load(self, weights: Weights, name: str, like: Tensor) -> None:
        self.router.load(weights, f"{name}.router")
        self.experts.load(weights, f"{name}.experts", like)
        if self.shared is not None:
            self.shared.load(weights, f"{name}.shared", like)

    def forward(
        self, x_TH: Tensor, ids_TJ: Tensor | None = None, admission: Admission | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pass every token through its experts, except for dropped choices; arguments are those of
        the router.

        Returns:
            ``[T, H]``, and the ids that were used, ``[T, K]``.
        """
        topk_ids_TK, weight_TK = self.router(x_TH, ids_TJ, admission)
        id_N = topk_ids_TK.flatten()
        order = id_N.argsort(stable=True)[int((id_N < 0).sum()) :]
        token = order // self.moe.top_k
        rows_E = id_N[order].bincount(minlength=self.moe.num_experts).tolist()
        expert_NH = self.experts(x_TH[token], rows_E) * weight_TK.flatten()[order, None]
        result = torch.zeros_like(x_TH).index_add(0, token, expert_NH)
        return (result if self.shared is None else result + self.shared(x_TH)), topk_ids_TK
