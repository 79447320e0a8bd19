"""Training: the batch of a step, and deployments that train a model on it."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from simulator.base.frozen import Frozen, ListOf, Policy
from simulator.base.kinds import PolicyOf
from simulator.base.quantities import (
    MOST_RANKS,
    Factor,
    Gpus,
    Label,
    Price,
    Share,
    Stages,
    TokenExtent,
    TrainingTokens,
    value_range,
)
from simulator.config.named import ClusterName, ModelName
from simulator.config.pairing import DenseOf, MoeOf, check_one_model

Gpu = Annotated[int, value_range(1, MOST_RANKS, "ranks")]
TrainingDType = Literal["bf16", "fp16", "fp8", "fp8_block", "fp32"]
"""Formats that trainings compute in and send. On accelerators fp32 products are priced at half of
the bf16 rate, as TF32 has them."""
BatchSequences = Annotated[int, value_range(1, 10_000_000, "sequences")]


class EqualLoss(Frozen):
    """Loss that every deployment trains to, by a scaling law."""

    as_good_as: str
    """Name of a deployment, or of a model, that is as good as wanted after ``total_tokens``: all
    train until they have its loss."""
    law: str = "joint-moe"
    """Name of a file in ``workloads/laws`` that predicts losses of all the models."""


class TrainingSpec(Frozen):
    """Batch of a step, alike for every deployment."""

    sequence_tokens: TokenExtent
    """Tokens of a training sequence."""
    global_batch: BatchSequences
    """Sequences of one step on all GPUs together."""
    total_tokens: TrainingTokens | None = None
    """Tokens of the whole training, for its days and cost; absent = these are not told."""
    quality: EqualLoss | None = None
    """Loss that all train to, in place of equally many tokens; absent = all train on
    ``total_tokens``."""

    @model_validator(mode="after")
    def _knows_how_long(self) -> Self:
        if self.quality is not None and self.total_tokens is None:
            raise ValueError(
                "quality needs total_tokens: those that the deployment as_good_as is trained on"
            )
        return self


class TrainingParallel(Frozen):
    """Split of a training over GPUs. The GPUs that remain hold other sequences: data parallelism is
    ``num_gpus / (tp x cp x pp)``.
    """

    tp: Gpu = 1
    """Tensor parallelism: ranks that share attention heads and dense blocks, and the tokens between
    them (sequence parallelism)."""
    cp: Gpu = 1
    """Context parallelism: groups of tensor-parallel ranks that share the tokens of a sequence, and
    pass keys and values on in a ring."""
    pp: Stages = 1
    """Pipeline stages."""
    layout: Annotated[str, Field(max_length=1000)] | None = None
    """Layers of each chunk in Megatron-Core's form (``--pipeline-model-parallel-layout``), such as
    ``Et*3|(tt|)*29|L``: a bar between chunks in the order of layers, E the embedding table, t a
    layer, L the output matrix; absent = as evenly as possible, with those two in chunks of their
    own where there are more chunks than layers."""
    ep: Gpu | None = None
    """Expert parallelism: ranks of a stage that share the routed experts whole; absent = 1, and
    experts are split like dense blocks."""


class OptimizerSpec(Frozen):
    """Optimizer: bytes that it keeps for each parameter. The defaults are those of Adam with a
    master copy in fp32 (Rajbhandari et al., ZeRO, arXiv:1910.02054, section 3.1).
    """

    state_bytes: Annotated[float, value_range(0, 64, "bytes")] = 8.0
    """Bytes of moments for each parameter: two of fp32; 4 with moments in bf16."""
    master_bytes: Annotated[float, value_range(0, 8, "bytes")] = 4.0
    """Bytes of the master copy of each parameter; 0 where there is none."""
    gradient_dtype: Literal["fp32", "bf16"] = "fp32"
    """Number format in which gradients are added up and travel."""


class RoutingFrom(Frozen):
    """Routing from some point of the training on, as balancing takes hold of the router."""

    after_tokens: TrainingTokens
    """Tokens after which the training routes so."""
    routing: Annotated[Policy, PolicyOf("routing")]
    """Routing policy from then on."""


class TrainingDeployment(Frozen):
    """A model, the machines that train it, and how they share the work."""

    name: Label = Field(min_length=1)
    """Name of the deployment, which differs from the others'."""
    model: ModelName = ""
    """Name of a model, or the path of a TOML file or a Hugging Face ``config.json``; absent =
    ``dense_of`` or ``moe_of`` says which one is made."""
    dense_of: DenseOf | None = None
    """Dense counterpart of a mixture of experts, in the place of ``model``."""
    moe_of: MoeOf | None = None
    """Mixture of experts for a dense model, in the place of ``model``."""
    cluster: ClusterName
    """Kind of machines, such as ``h100-sxm``."""
    num_gpus: Gpus
    """GPUs that train: whole nodes where there are several, or whole trays of racks, equally many
    on the fewest racks that hold them."""
    gpus_per_node: Gpu | None = None
    """GPUs of each node or rack that the job takes, where it does not take what ``num_gpus`` says:
    128 GPUs on racks of 72 lie on two, and with 32 on four."""
    parallel: TrainingParallel = TrainingParallel()
    """Split over the GPUs."""
    pipelining: Annotated[Policy, PolicyOf("pipelining")] = {"kind": "one_f_one_b"}
    """Pipelining policy: the order of the passes of micro-batches in each stage."""
    micro_batch: BatchSequences = 1
    """Sequences that a data-parallel rank computes at once; the step's others are accumulated."""
    dtype: TrainingDType = "bf16"
    """Number format that matrix products compute in."""
    dispatch_dtype: TrainingDType = "bf16"
    """Number format of activations, and of their gradients, on their way to the experts; bf16 as
    Megatron-LM sends them also in a training in fp8 without DeepEP's quantised kernels."""
    recompute: Literal["none", "selective", "experts", "full"] = "none"
    """Activations that are made again in the backward pass. ``selective``: those of norms and
    activation functions, at no noticeable time; ``experts``: those of routed experts as well, whose
    tokens travel once more (``--recompute-modules moe`` of Megatron-LM); ``full``: all but the
    inputs of layers, for another forward pass (Korthikanti et al., arXiv:2205.05198)."""
    zero: Annotated[int, value_range(0, 3)] = 1
    """Parts of the training state that data-parallel ranks share out: 1 the optimizer's, 2 the
    gradients as well, 3 the weights as well (ZeRO, arXiv:1910.02054; FSDP)."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Optimizer and the bytes that it keeps."""
    overlap_gradients: bool = True
    """Whether gradients travel beneath the last micro-batch's backward passes, and updated weights
    beneath the first one's forward passes (Megatron-LM's ``--overlap-grad-reduce`` and
    ``--overlap-param-gather``)."""
    routing: Annotated[Policy, PolicyOf("routing")] | None = None
    """Routing policy: which experts tokens choose; absent = the model's own default."""
    later: ListOf[RoutingFrom] = ()
    """Routings that follow ``routing`` in the course of the training, in order of tokens."""
    overflow: Annotated[Policy, PolicyOf("overflow")] | None = None
    """Overflow policy: choices that an expert has no room for (capacity); absent = none are
    dropped."""
    dispatch: Annotated[Policy, PolicyOf("dispatch")] = {"kind": "deepep_auto"}
    """Dispatch policy: how tokens travel to their experts and back."""
    backward_ratio: Factor = 2.0
    """Ratio of the seconds of a backward matrix product to those of the forward one: the gradients
    of inputs and of weights are a product each. Assumed: backward kernels were not measured."""
    memory_fraction: Share = 0.95
    """Share of a GPU's memory that training may fill; the rest is CUDA's, NCCL's and what falls
    between blocks of the allocator. Assumed."""
    price_per_gpu_hour: Price | None = None
    """Price of one GPU for one hour, in the cluster file's currency; absent = the cluster
    file's."""
    uptime: Share = 1.0
    """Share of the time that trains, failures and checkpoints taken off, for days and cost. Llama 3
    is published with more than 0.9 (arXiv:2407.21783, section 3.3.4)."""
    calibration: str | None = None
    """Name of a file in ``cluster_configs/calibration``; absent = the accelerator's."""

    _names_one_model = model_validator(mode="after")(check_one_model)

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        at = [one.after_tokens for one in self.later]
        if any(late <= soon for soon, late in pairwise(at)):
            raise ValueError("later must be in order of after_tokens, no two alike")
        return self
