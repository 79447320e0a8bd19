"""The model of a deployment, or of a candidate of a plan: read from its file, or made as the
counterpart of another.
"""

from __future__ import annotations

from pathlib import Path

from simulator.base.data import load_once
from simulator.base.frozen import validate
from simulator.base.plugins import build
from simulator.config.model import ModelSpec, load_model
from simulator.config.pairing import DenseOf, ModelChoice, MoeOf
from simulator.deployment.counterparts import Counterpart, make_dense, make_moe
from simulator.deployment.equal import Equality, Measure


def choose_model(choice: ModelChoice, where: str, folder: Path | None = None) -> ModelSpec:
    """Read an entry's model, or make it.

    Args:
        folder: paths are relative to this folder, then to the current one.

    Raises:
        UserError: if there is no such model, or no counterpart.
    """
    made = choice.dense_of or choice.moe_of
    if made is None:
        return load_model(choice.model, where, folder)
    key = ("counterpart", type(made).__name__, made.model_dump_json(), folder)
    return load_once(key, lambda: _make(made, where, folder))


def _make(made: DenseOf | MoeOf, where: str, folder: Path | None) -> ModelSpec:
    place = f"{where} [{'dense_of' if isinstance(made, DenseOf) else 'moe_of'}]"
    reference = load_model(made.model, place, folder)
    equality: Equality = build("deployment.equal", made.equal, f"{place} [equal]")
    measure = equality.make_measure(reference, f"{place} [equal]")
    if isinstance(made, DenseOf):
        return _describe("dense", reference, measure, make_dense(reference, measure, place))
    return _describe("MoE", reference, measure, make_moe(reference, made, measure, place))


def _describe(kind: str, reference: ModelSpec, measure: Measure, found: Counterpart) -> ModelSpec:
    """A counterpart with a name, the rule that it was made by, and what it comes to; validated as
    a file would be.
    """
    title = reference.title or reference.name
    values = [measure.value_text(value) for value in (found.value, found.wanted)]
    shape = f"{found.model.num_layers} layers of {found.model.hidden_size:,} numbers"
    note = (
        f"Made, not released: the {kind} counterpart of {title} with equal {measure.words} "
        f"({values[0]}, the reference {values[1]}), {shape}. Depth and width are scaled by the "
        "cube root of the size of what a token passes through, and the width of the feed-forward "
        "blocks closes the rest."
    )
    words = measure.words.replace(" ", "-")
    table = found.model.model_dump() | {
        "name": f"{kind.lower()}-of-{reference.name}-equal-{words}",
        "title": f"{kind[0].upper()}{kind[1:]} of {title}, equal {measure.words}",
        "repositories": (),
        "published": None,
        "active_counts_embedding": True,
        "active_counts_head": True,
        "notes": " ".join([note, *measure.notes]),
        "sources": {"shape": "made by moesim as its notes say"},
    }
    return validate(ModelSpec, table, found.model.name)
