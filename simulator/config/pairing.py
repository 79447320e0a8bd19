"""Counterparts: the dense model that is equal to a mixture of experts in some measure, and the
mixture of experts that is equal to a dense model.
"""

from __future__ import annotations

from typing import Annotated, Protocol, Self, TypeVar

from pydantic import BeforeValidator, model_validator

from simulator.base.frozen import Frozen, Policy
from simulator.base.kinds import PolicyOf
from simulator.base.quantities import Experts, TopK
from simulator.config.model import ModelSpec
from simulator.config.named import ModelName


def _name_kind(given: object) -> object:
    return {"kind": given} if isinstance(given, str) else given


Equal = Annotated[
    Policy, BeforeValidator(_name_kind), PolicyOf("deployment.equal", may_be_name=True)
]
"""Measure by name, or by its table where it has keys: ``"quality"``, ``{ kind = "quality", law =
"routed-s-base" }``."""


class DenseOf(Frozen):
    """Dense counterpart of a mixture of experts, of the same mixers and vocabulary."""

    model: ModelName
    """Name of a mixture of experts, or the path of a TOML file or a Hugging Face
    ``config.json``."""
    equal: Equal
    """Measure that both have as much of."""


class MoeOf(Frozen):
    """Mixture of experts for a dense model, of the same mixers and vocabulary."""

    model: ModelName
    """Name of a dense model, or the path of a TOML file or a Hugging Face ``config.json``."""
    equal: Equal
    """Measure that both have as much of."""
    num_experts: Experts = 64
    """Number of experts in each layer; 64 as OLMoE's."""
    top_k: TopK = 8
    """Number of experts that each token uses; 8 as OLMoE's."""

    @model_validator(mode="after")
    def _uses_some(self) -> Self:
        if self.top_k >= self.num_experts:
            raise ValueError(
                f"top_k ({self.top_k}) must be below num_experts ({self.num_experts}): a model "
                "whose tokens use all experts is dense"
            )
        return self


class ModelChoice(Protocol):
    """Entry of a file that names a model, or one that is made for it."""

    @property
    def model(self) -> str:
        """Name or path; empty where the model is made."""

    @property
    def dense_of(self) -> DenseOf | None:
        """Dense counterpart to be made."""

    @property
    def moe_of(self) -> MoeOf | None:
        """Mixture of experts to be made."""


Choice = TypeVar("Choice", bound=ModelChoice)


def check_one_model(choice: Choice) -> Choice:
    """Return an entry; one that names no model, or two, is refused.

    Raises:
        ValueError: naming the keys.
    """
    given = [
        key
        for key, value in (
            ("model", choice.model),
            ("dense_of", choice.dense_of),
            ("moe_of", choice.moe_of),
        )
        if value
    ]
    if not given:
        raise ValueError(
            'names no model; give model = "...", or dense_of or moe_of = '
            '{ model = "...", equal = "total_params" }'
        )
    if len(given) > 1:
        raise ValueError(f"names its model twice, by {' and '.join(given)}; give one")
    return choice


def model_text(choice: ModelChoice) -> str:
    """Name of an entry's model: ``mixtral-8x7b``; ``dense of mixtral-8x7b, equal quality``."""
    for words, made in (("dense", choice.dense_of), ("MoE", choice.moe_of)):
        if made is not None:
            return f"{words} of {made.model}, equal {str(made.equal['kind']).replace('_', ' ')}"
    return choice.model


def reference_name(choice: ModelChoice) -> str:
    """Name or path of the model that an entry names, or that its model is made for."""
    made = choice.dense_of or choice.moe_of
    return choice.model if made is None else made.model


def has_experts(choice: ModelChoice, reference: ModelSpec) -> bool:
    """Whether an entry's model has routed experts, given the one of :func:`reference_name`."""
    is_mixture = reference.moe is not None and choice.dense_of is None
    return is_mixture or choice.moe_of is not None


def describe_pairing(choice: ModelChoice) -> dict[str, str] | None:
    """Reference and measure of an entry whose model is made, as plain texts for results."""
    made = choice.dense_of or choice.moe_of
    return None if made is None else {"reference": made.model, "equal": str(made.equal["kind"])}
