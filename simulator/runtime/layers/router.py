"""Router: the experts of each token, and their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulator.config.ffns.moe import MoE
from simulator.runtime.layers.kinds import Admission
from simulator.runtime.layers.weights import Weights, empty, fill

_GROUP_VOTERS = 2
"""Number of experts whose scores are summed into their group's score (DeepSeek-V3,
arXiv:2412.19437)."""


class Router(nn.Module):
    """Router that scores every expert and takes the best ``top_k``; weights are the chosen scores,
    normalised to sum to one.
    """

    def __init__(self, moe: MoE, hidden_size: int) -> None:
        super().__init__()
        self.moe = moe
        self.weight = empty(moe.num_experts, hidden_size)
        self.bias = empty(moe.num_experts) if moe.has_router_bias else None

    def load(self, weights: Weights, name: str) -> None:
        """Fill in the weights called ``name.weight`` and ``name.bias``."""
        fill(self.weight, weights.tensor(f"{name}.weight", tuple(self.weight.shape)))
        if self.bias is not None:
            fill(self.bias, weights.tensor(f"{name}.bias", tuple(self.bias.shape)))

    def forward(
        self, x_TH: Tensor, ids_TJ: Tensor | None = None, admission: Admission | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose experts, or score those that were chosen already.

        Args:
            x_TH: tokens.
            ids_TJ: experts to use instead of the router's own choice (a replayed recording): the
                ``K`` that each token chose, and perhaps the next ones.
            admission: choice of the experts that compute each token; by default all that it chose
                do.

        Returns:
            ``topk_ids_TK`` (int64, -1 where a choice is dropped) and ``weight_TK`` in ``x_TH``'s
                format: scores over the sum of those that the token chose.
        """
        score_TE = self.scores(x_TH)
        if ids_TJ is None:
            ids_TJ = self.choose(
                score_TE, self.moe.top_k if admission is None else admission.num_choices
            )
        own_TK = ids_TJ[:, : self.moe.top_k]
        topk_ids_TK = own_TK if admission is None else admission.admit(ids_TJ)
        weight_TK = score_TE.gather(1, topk_ids_TK.clamp_min(0))
        total_T1 = score_TE.gather(1, own_TK).sum(dim=1, keepdim=True)
        return topk_ids_TK, (weight_TK / total_T1).to(x_TH.dtype)

    def scores(self, x_TH: Tensor) -> Tensor:
        """Scores of every expert, positive, in fp32: those of softmax sum to one, the others are
        independent.
        """
        logit_TE = functional.linear(x_TH, self.weight).float()
        if self.moe.scoring == "softmax":
            score_TE = logit_TE.softmax(dim=1)
        else:
            score_TE = (
                logit_TE.sigmoid()
                if self.moe.scoring == "sigmoid"
                else functional.softplus(logit_TE).sqrt()
            )
        return score_TE.clamp_min(
            1e-20
        )  # replayed experts may all have a score of zero, and weights are divided by their sum

    def choose(self, score_TE: Tensor, num_choices: int) -> Tensor:
        """Choose the ids of the best ``num_choices``, best first. A bias moves the choice but not
        the weights, as in balancing without an auxiliary loss.

        With groups, only experts of the best ``num_limited_groups`` groups can be chosen.
        """
        moe = self.moe
        if self.bias is not None:
            score_TE = score_TE + self.bias.float()
        if moe.num_groups > 1:
            per_group = score_TE.unflatten(1, (moe.num_groups, -1))
            group_TG = per_group.topk(min(_GROUP_VOTERS, per_group.shape[2]), dim=2).values.sum(
                dim=2
            )
            best_TG = group_TG.topk(moe.num_limited_groups, dim=1).indices
            may_TG = torch.zeros_like(group_TG, dtype=torch.bool).scatter_(1, best_TG, True)
            score_TE = per_group.masked_fill(~may_TG[..., None], float("-inf")).flatten(1)
        return score_TE.topk(num_choices, dim=1).indices
