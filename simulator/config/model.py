"""A transformer: which mixer and which feed-forward block each layer has, and the exact counts that
follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from simulator.base.data import find_file, load_once
from simulator.base.errors import UserError
from simulator.base.findings import Finding
from simulator.base.frozen import Frozen, ListOf, PairOf, Policy, SomeOf, validate
from simulator.base.home import fetch
from simulator.base.kinds import OneOf, PolicyOf
from simulator.base.quantities import (
    IS_LABEL,
    MOST_LAYERS,
    Label,
    Layers,
    Parameters,
    PrintedParameters,
    Sources,
    TokenCount,
    TokenExtent,
    Width,
    value_range,
)
from simulator.base.reading import read_json, read_toml
from simulator.config.dtypes import DType
from simulator.config.ffns import FFN
from simulator.config.ffns.moe import MoE
from simulator.config.mixers import Mixer
from simulator.config.named import change, split_name
from simulator.config.own_kinds import try_kinds

_MOST_MODEL_EXPERTS = 1 << 18
"""Experts of all layers together, 18 times those of DeepSeek-V3: popularities are
drawn for all."""
_MOST_MODEL_CHOICES = 1 << 14
"""Experts that a token uses in all layers together, 35 times those of DeepSeek-V3: the choices of
thousands of tokens are held at once."""
_MOST_OFF = 0.1
"""Most that what the makers print may be off from the layers, as a share, unless it is explained:
rounded numbers are."""


class LayerRun(Frozen):
    """A pattern of layers, repeated. Each layer is ``[mixer, ffn]`` by name; ``"none"`` where it
    lacks one.
    """

    repeat: Layers = 1
    """Number of times that the pattern is repeated."""
    pattern: SomeOf[PairOf[str]]
    """Layers, each ``[mixer, ffn]`` by name; ``"none"`` where it lacks one."""


class Published(Frozen):
    """Size of the model as its makers print it."""

    total_parameters: Annotated[float, value_range(1, 1e15, "parameters"), IS_LABEL]
    """Number of parameters that the makers print."""
    active_parameters: Annotated[
        Annotated[float, value_range(1, 1e15, "parameters")] | None, IS_LABEL
    ] = None
    """Number of parameters of one token that the makers print; absent = they print none."""
    total_rounded_to: Annotated[PrintedParameters, IS_LABEL] = 0.0
    """Value of the last digit that the makers print of the parameters, where it is coarser than 2 %
    of the number (17B: 1e9)."""
    active_rounded_to: Annotated[PrintedParameters, IS_LABEL] = 0.0
    """Value of the last digit that the makers print of the parameters of one token."""
    disagreement: Label = ""
    """Reason why a count that follows from the layers differs by more than 1 % and by more than
    half of the last printed digit."""


class ModelSpec(Frozen):
    """A dense or mixture-of-experts transformer, layer by layer."""

    name: Label
    """Name of the model; absent = the file's."""
    title: Label = ""
    """Name as the makers write it."""
    repositories: Annotated[ListOf[str], IS_LABEL] = ()
    """Repositories of the weights on Hugging Face (``owner/name``), in the formats that have been
    published."""
    hidden_size: Width
    """Numbers of one token's vector between layers."""
    vocab_size: TokenExtent
    """Number of tokens in the vocabulary."""
    mixers: dict[str, Annotated[Mixer, OneOf("mixers")]]
    """Attention and other sequence mixers, by name."""
    ffns: dict[str, Annotated[FFN, OneOf("ffns")]]
    """Feed-forward blocks, by name."""
    layers: SomeOf[LayerRun]
    """Layers from the first to the last, in runs of a repeated pattern."""
    ties_embeddings: bool = False
    """Whether the output matrix is the embedding table."""
    num_positions: TokenCount = 0
    """Number of learned position embeddings (GPT-3); 0 for rotary ones."""
    norm_vectors: Annotated[int, value_range(1, 2, "vectors")] = 1
    """Vectors of ``hidden_size`` in one norm: 1 for RMSNorm, 2 for LayerNorm."""
    num_extra_parameters: Parameters = 0
    """Parameters in no block, used by every token (hyper-connections and the like)."""
    weight_dtype: DType = "bf16"
    """Number format of the weights as released; a deployment may say otherwise."""
    expert_dtype: DType | None = None
    """Number format of routed experts, where they are stored differently (gpt-oss: mxfp4)."""
    max_context_tokens: Annotated[int, value_range(1, 1 << 40, "tokens")] | None = None
    """Longest context of the model, tokens; absent = not known."""
    active_counts_embedding: bool = True
    """Whether the makers' count of active parameters includes the input embedding table."""
    active_counts_head: bool = True
    """Whether the makers' count of active parameters includes the output matrix."""
    published: Published | None = None
    """Size as the makers print it, to be checked against the layers."""
    is_rumour: Annotated[bool, IS_LABEL] = False
    """Whether the numbers are not published by the makers: marked wherever the model appears."""
    routing: Annotated[Policy, PolicyOf("routing")] | None = None
    """Default routing policy of the model's experts; absent = log-normal popularity with the median
    spread of measured models (:data:`MEDIAN_SIGMA`)."""
    routing_source: Label = ""
    """Source of the skew in ``routing``."""
    notes: Label = ""
    """Remarks in free text."""
    sources: Sources = Field(default_factory=dict)
    """Source of each group of numbers."""

    @model_validator(mode="after")
    def _own_kinds_answer(self) -> Self:
        try_kinds((*self.mixers.values(), *self.ffns.values()), self.hidden_size)
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for run in self.layers:
            for mixer, ffn in run.pattern:
                if mixer != "none" and mixer not in self.mixers:
                    raise ValueError(
                        f"layers name the mixer '{mixer}', which is not in mixers "
                        f"({', '.join(self.mixers)})"
                    )
                if ffn != "none" and ffn not in self.ffns:
                    raise ValueError(
                        f"layers name the ffn '{ffn}', which is not in ffns "
                        f"({', '.join(self.ffns)})"
                    )
        patterns = [layer for run in self.layers for layer in run.pattern]
        own = {"mixers": self.mixers.keys(), "ffns": self.ffns.keys()}
        for (key, names), named in zip(own.items(), zip(*patterns, strict=True), strict=True):
            for name in names - {*named}:
                raise ValueError(f"{key} has '{name}', which no layer has; leave it out")
        return self

    @model_validator(mode="after")
    def _is_not_too_deep(self) -> Self:
        depth = sum(run.repeat * len(run.pattern) for run in self.layers)
        if depth > MOST_LAYERS:
            raise ValueError(f"layers ({depth:,}) must be at most {MOST_LAYERS:,} in all")
        return self

    @model_validator(mode="after")
    def _experts_can_be_drawn(self) -> Self:
        if self.moe is None:
            return self
        for what, each, most in (
            ("num_experts", self.moe.num_experts, _MOST_MODEL_EXPERTS),
            ("top_k", self.moe.top_k, _MOST_MODEL_CHOICES),
        ):
            if each * self.num_moe_layers > most:
                raise ValueError(
                    f"{what} ({each:,}) times the {self.num_moe_layers:,} layers with experts must "
                    f"be at most {most:,} experts"
                )
        return self

    @model_validator(mode="after")
    def _experts_agree(self) -> Self:
        shapes = {
            (experts.num_experts, experts.top_k, experts.intermediate_size)
            for experts in (ffn.experts for ffn in self.ffns.values())
            if experts is not None
        }
        if len(shapes) > 1:
            raise ValueError(
                "all ffns with experts must have the same num_experts, top_k and intermediate_size"
            )
        return self

    @cached_property
    def layer_names(self) -> tuple[tuple[str, str], ...]:
        """``(mixer, ffn)`` of every layer, from the first to the last."""
        return tuple(
            layer for run in self.layers for _ in range(run.repeat) for layer in run.pattern
        )

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.layer_names)

    @cached_property
    def moe(self) -> MoE | None:
        """The routed experts (all layers that have some have the same shape), or ``None`` for a
        dense model.
        """
        return next(filter(None, (ffn.experts for ffn in self.ffns.values())), None)

    @cached_property
    def moe_layers(self) -> tuple[int, ...]:
        """Numbers of the layers with routed experts."""
        return tuple(n for n, (_, ffn) in enumerate(self.layer_names) if self.has_experts(ffn))

    @property
    def num_moe_layers(self) -> int:
        """``L``, layers with routed experts."""
        return len(self.moe_layers)

    def has_experts(self, ffn: str) -> bool:
        """Whether the block of that name has routed experts; ``"none"`` has none."""
        return ffn != "none" and self.ffns[ffn].experts is not None

    @cached_property
    def has_latent_cache(self) -> bool:
        """Whether a mixer caches latent vectors (MLA)."""
        return any(mixer.is_latent for mixer in self.mixers.values())

    @property
    def num_embedding_parameters(self) -> int:
        """The input embedding table, learned positions included."""
        return (self.vocab_size + self.num_positions) * self.hidden_size

    @property
    def num_head_parameters(self) -> int:
        """The output matrix; 0 when it is the embedding table."""
        return 0 if self.ties_embeddings else self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """Number of parameters, embeddings included, multi-token-prediction modules excluded."""
        return self._num_parameters(active_only=False)

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token uses, with the embedding and the output matrix counted as the
        model's makers count them.
        """
        left_out = 0
        if not self.active_counts_embedding and not self.ties_embeddings:
            left_out += self.num_embedding_parameters
        if not self.active_counts_head:
            left_out += self.num_head_parameters
        return self.num_used_parameters - left_out

    @property
    def num_used_parameters(self) -> int:
        """Parameters that one token uses, the embedding and the output matrix among them."""
        return self._num_parameters(active_only=True)

    def _num_parameters(self, *, active_only: bool) -> int:
        norm = self.norm_vectors * self.hidden_size
        total = (
            self.num_embedding_parameters
            + self.num_head_parameters
            + norm
            + self.num_extra_parameters
        )
        for mixer, ffn in self.layer_names:
            if mixer != "none":
                total += self.mixers[mixer].num_parameters(self.hidden_size) + norm
            if ffn != "none":
                block = self.ffns[ffn]
                count = block.num_active_parameters if active_only else block.num_parameters
                total += count(self.hidden_size) + norm
        return total


def load_model(name: str, where: str, folder: Path | None = None) -> ModelSpec:
    """The model called ``name``: a shipped or user's name, or the path of a TOML or Hugging Face
    ``config.json``.

    Args:
        name: ends in ``.toml`` or ``.json`` where it is a path; changes of keys may follow
            (:mod:`simulator.config.named`).
        where: what the error of an unknown name begins with (the file and section that named it).
        folder: paths are relative to this folder (the scenario's), then to the current one.

    Raises:
        UserError: if there is no such model, or its file is wrong.
    """
    return load_once(("model", name, folder), lambda: _load_model(name, where, folder))


def _load_model(name: str, where: str, folder: Path | None) -> ModelSpec:
    base, changes = split_name(name)
    if base.endswith((".toml", ".json")):
        path = _find_path(base, folder)
    else:
        path = find_file("workloads/models", base, where)
    if path.suffix == ".json":
        from simulator.config.huggingface import model_table

        table = model_table(read_json(path), path)
    else:
        table = read_toml(path)
        table.setdefault("name", path.stem)
    found = validate(ModelSpec, table, str(path))
    _check_published(found, str(path))
    # Its makers neither print the size of another model nor publish its weights.
    model = change(found, changes, str(path), published=None, repositories=())
    if model.routing != found.routing and "routing_source" not in changes:
        model = model.model_copy(update={"routing_source": f"Given in place: {name}"})
    return _complete(model)


def _check_published(model: ModelSpec, where: str) -> None:
    """Refuse a file whose layers are of another size than its makers print.

    Raises:
        UserError: with both numbers.
    """
    said = model.published
    if said is None or said.disagreement:
        return
    for name, counted, printed, digit in (
        ("total", model.num_parameters, said.total_parameters, said.total_rounded_to),
        ("active", model.num_active_parameters, said.active_parameters, said.active_rounded_to),
    ):
        if printed and abs(counted - printed) > max(_MOST_OFF * printed, digit / 2):
            raise UserError(
                f"{where}: published.{name}_parameters ({printed:.3g}) and the layers' own "
                f"({counted:.3g}) differ by more than {_MOST_OFF:.0%}; correct either, leave "
                "published out, or say why in published.disagreement"
            )


def _complete(model: ModelSpec) -> ModelSpec:
    """The model with what is assumed of its routing where its file does not say."""
    if model.moe is None:
        return model
    routing, source = complete_routing(model.routing, model.routing_source)
    return model.model_copy(update={"routing": routing, "routing_source": source})


def _find_path(name: str, folder: Path | None) -> Path:
    beside = fetch((folder or Path()) / name)
    return beside if beside.exists() else fetch(Path(name))


# Default skew of expert popularity, for models whose routing nobody has measured.


MEDIAN_SIGMA = 0.55
"""Spread of the logarithm of expert popularity: the median of the models that were measured or that
figures were published of (Mixtral-8x7B 0.1, stdlib-moe 0.44, OLMoE 0.45, gpt-oss-20b 0.55,
DeepSeek-V2-Lite 0.62, DeepSeek-R1 1.06, Qwen1.5-MoE 1.2; their files say from what). Uniform
routing would flatter every mixture of experts."""
ASSUMED_SOURCE = (
    f"Assumed: sigma {MEDIAN_SIGMA}, the median of seven models (0.1 to 1.2); nothing was "
    "given for this one."
)
_SOURCED = "; sigma is assumed: {sigma}, the median of seven models (0.1 to 1.2)"


def complete_routing(routing: Policy | None, source: str) -> tuple[Policy, str]:
    """A routing policy's table and where it comes from, completed by what is assumed: the whole of
    it, or the ``sigma`` that a ``lognormal`` one leaves out.
    """
    if routing is None:
        return {"kind": "lognormal", "sigma": MEDIAN_SIGMA}, ASSUMED_SOURCE
    if routing.get("kind") == "lognormal" and "sigma" not in routing:
        added = _SOURCED.format(sigma=MEDIAN_SIGMA)
        return {**routing, "sigma": MEDIAN_SIGMA}, f"{source or 'the model file'}{added}"
    return routing, source


def routing_note(model: str, source: str) -> Iterator[Finding]:
    """Find whether the routing of a model is assumed."""
    if source == ASSUMED_SOURCE or _SOURCED.format(sigma=MEDIAN_SIGMA) in source:
        yield Finding("note.assumed_routing", model=model, sigma=MEDIAN_SIGMA)
