"""Files of ``workloads/laws``: a scaling law with its fitted coefficients, the range it was fitted
in and its source.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simulator.base.data import find_file, load_once
from simulator.base.frozen import Frozen, validate
from simulator.base.kinds import OneOf
from simulator.base.quantities import (
    IS_LABEL,
    Expansion,
    Label,
    ModelParameters,
    TrainingTokens,
    value_range,
)
from simulator.base.reading import read_toml
from simulator.base.text import count_text
from simulator.config.laws import ModelSize, ScalingLaw
from simulator.config.model import ModelSpec

FOLDER = "workloads/laws"
_NAMES = {
    "total_parameters": "parameters",
    "active_parameters": "active parameters",
    "tokens": "tokens of training",
    "expansion": "times the feed-forward weights that a token uses",
    "granularity": "experts a token",
}
_SLACK = 1.001
"""Factor beyond a printed end that still counts as inside: ends are rounded."""

_Pair = Field(strict=False, min_length=2, max_length=2)


class FittedRange(Frozen):
    """Lowest and highest value of each quantity among the models that a law was fitted on; an
    absent one does not enter it.
    """

    total_parameters: Annotated[tuple[ModelParameters, ...], _Pair] | None = None
    """All parameters, as the law counts them."""
    active_parameters: Annotated[tuple[ModelParameters, ...], _Pair] | None = None
    """Parameters that one token uses, as the law counts them."""
    tokens: Annotated[tuple[TrainingTokens, ...], _Pair] | None = None
    """Tokens of training."""
    expansion: Annotated[tuple[Expansion, ...], _Pair] | None = None
    """Ratio of feed-forward weights to those that one token uses; 1 = dense."""
    granularity: Annotated[tuple[Expansion, ...], _Pair] | None = None
    """Number of experts of one token in a layer."""


class LawFile(Frozen):
    """A scaling law as its authors fitted it."""

    name: Label
    """Name of the law; absent = the file's."""
    title: Label
    """Name of the law as people cite it."""
    source: Label
    """Publication, with the place of the formula and of the coefficients in it."""
    law: Annotated[ScalingLaw, OneOf("laws")]
    """Formula and its coefficients."""
    fitted: FittedRange = FittedRange()
    """Range of the models that the law was fitted on."""
    loss_rmse: Annotated[Annotated[float, value_range(0, 10, "nats a token")] | None, IS_LABEL] = (
        None
    )
    """Published root mean square error of predicted losses, nats a token; absent = none is."""
    notes: Label = ""
    """Remarks in free text."""

    def find_equal_dense(self, size: ModelSize, tokens: float) -> float:
        """Parameters of the dense model as good as a model of ``size``."""
        return self.law.find_equal_dense(size, tokens)

    def list_outside(self, size: ModelSize, tokens: float) -> list[str]:
        """Quantities of a model that lie outside the fitted range, each in words; empty where the
        law was fitted on such models.
        """
        told = []
        for name, value in self.law.measure(size, tokens).items():
            ends = getattr(self.fitted, name)
            if ends is not None and not ends[0] / _SLACK <= value <= ends[1] * _SLACK:
                told.append(
                    f"{count_text(value)} {_NAMES[name]}, fitted from {count_text(ends[0])} to "
                    f"{count_text(ends[1])}"
                )
        return told


def load_law(name: str, where: str) -> LawFile:
    """Read the law called ``name``, a shipped or a user's file.

    Raises:
        UserError: if there is none of that name, or its file is wrong.
    """

    def load() -> LawFile:
        path = find_file(FOLDER, name, where)
        return validate(LawFile, {"name": path.stem, **read_toml(path)}, str(path))

    return load_once(("law", name), load)


def measure_size(model: ModelSpec) -> ModelSize:
    """Size of a model as scaling laws ask for it."""
    embedding = float(model.num_embedding_parameters + model.num_head_parameters)
    active = model.num_used_parameters - embedding
    if model.moe is None:
        return ModelSize(active, active, embedding)
    blocks = [model.ffns[ffn] for _, ffn in model.layer_names if model.has_experts(ffn)]
    every = sum(block.num_parameters(model.hidden_size) for block in blocks)
    used = sum(block.num_active_parameters(model.hidden_size) for block in blocks)
    return ModelSize(
        model.num_parameters - embedding,
        active,
        embedding,
        max(every / used, 1.0),
        float(model.moe.top_k + model.moe.num_shared_experts),
    )
