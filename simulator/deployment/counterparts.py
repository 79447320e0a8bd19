"""The model of a deployment: read from its file, or the counterpart of another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from simulator.base.data import load_once
from simulator.base.errors import UserError
from simulator.base.frozen import validate
from simulator.base.plugins import build
from simulator.config.ffns import FFN
from simulator.config.ffns.dense import DenseFFN
from simulator.config.ffns.moe import MoE
from simulator.config.model import LayerRun, ModelSpec, complete_routing, load_model
from simulator.config.pairing import DenseOf, ModelChoice, MoeOf
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


_FARTHEST = 8.0
"""Binary logarithm of the most that a counterpart's path may be larger or smaller."""
_HALVINGS = 20
_STEPS = (256, 128, 64, 32, 16, 8, 4, 2, 1)
"""Multiples that widths are rounded to, the first that comes close enough: kernels want large
ones."""
_CLOSE = 2e-3
"""Relative distance from the reference that is close enough."""
_CLOSEST = 1e-2
"""Relative distance beyond which there is no counterpart."""

Layer = tuple[str, str]
"""Names of a layer's mixer and of its feed-forward block."""
Block = Callable[[int], FFN]
"""Function from the features that a token uses in a feed-forward block to the block."""


class Counterpart(NamedTuple):
    """A model made to be equal to another."""

    model: ModelSpec
    value: float
    """Value of the measure that it was made for."""
    wanted: float
    """Value of the reference."""


def make_dense(reference: ModelSpec, measure: Measure, where: str) -> Counterpart:
    """Make the dense model that is equal to a mixture of experts.

    Raises:
        UserError: if the reference is dense, or no dense model comes within 1 %.
    """
    moe = reference.moe
    if moe is None:
        raise UserError(
            f"{where}: dense_of takes a mixture of experts, and {reference.name} is dense; name it "
            "by model, or make a mixture of experts with moe_of"
        )

    def block(width: int) -> FFN:
        return DenseFFN(
            kind="dense",
            intermediate_size=width,
            is_gated=moe.is_gated,
            has_bias=moe.has_expert_bias,
        )

    changes = {
        "weight_dtype": reference.expert_dtype or reference.weight_dtype,
        "expert_dtype": None,
        "routing": None,
        "routing_source": "",
    }
    return _match(_change(reference, changes), block, 1, reference, measure, where)


def make_moe(reference: ModelSpec, asked: MoeOf, measure: Measure, where: str) -> Counterpart:
    """Make the mixture of experts that is equal to a dense model.

    Raises:
        UserError: if the reference has experts already, or none comes within 1 %.
    """
    if reference.moe is not None:
        raise UserError(
            f"{where}: moe_of takes a dense model, and {reference.name} is a mixture of experts; "
            "name it by model, or make its dense counterpart with dense_of"
        )
    blocks = [reference.ffns[ffn] for _, ffn in reference.layer_names if ffn != "none"]

    def block(width: int) -> FFN:
        return MoE(
            kind="moe",
            num_experts=asked.num_experts,
            top_k=asked.top_k,
            intermediate_size=width // asked.top_k,
            is_gated=blocks[0].has_gate,
            has_expert_bias=blocks[0].has_biases,
        )

    routing, source = complete_routing(None, "")
    changes = {"routing": routing, "routing_source": source}
    return _match(_change(reference, changes), block, asked.top_k, reference, measure, where)


def _match(
    start: ModelSpec, block: Block, parts: int, reference: ModelSpec, measure: Measure, where: str
) -> Counterpart:
    """Scale the path of a token until the measure is the reference's, then close with the width of
    the feed-forward blocks, which is a multiple of ``parts``.
    """
    wanted = measure.of_model(reference)
    width = _used_width(reference)

    def scale(power: float) -> tuple[ModelSpec, int]:
        root = 2.0 ** (power / 3)
        inner = max(round(width * root / parts), 1) * parts
        return _scale(start, root, block(inner)), inner

    low, high = -_FARTHEST, _FARTHEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if measure.of_model(scale(middle)[0]) < wanted:
            low = middle
        else:
            high = middle
    shape, inner = scale(high)
    found = _close(shape, block, parts, inner, measure.of_model, wanted)
    if abs(found.value - wanted) > _CLOSEST * wanted:
        raise UserError(
            f"{where}: no counterpart of {reference.name} has its {measure.words} "
            f"({measure.value_text(wanted)}); the nearest has {measure.value_text(found.value)}: "
            "choose another measure"
        )
    return found


def _close(
    shape: ModelSpec,
    block: Block,
    parts: int,
    inner: int,
    of_model: Callable[[ModelSpec], float],
    wanted: float,
) -> Counterpart:
    """The width of the feed-forward blocks that comes closest, in the coarsest steps that come
    close enough.
    """

    def widen(width: int) -> ModelSpec:
        return _change(shape, {"ffns": {"ffn": block(width)}})

    best: Counterpart | None = None
    for step in (each * parts for each in _STEPS):
        low, high = 1, max(4 * inner // step, 2)
        while low < high:
            middle = (low + high) // 2
            if of_model(widen(middle * step)) < wanted:
                low = middle + 1
            else:
                high = middle
        for number in {max(low - 1, 1), low}:
            model = widen(number * step)
            one = Counterpart(model, of_model(model), wanted)
            if best is None or abs(one.value - wanted) < abs(best.value - wanted):
                best = one
        assert best is not None, "two widths were tried"
        if abs(best.value - wanted) <= _CLOSE * wanted:
            break
    assert best is not None, "there are steps"
    return best


def _scale(model: ModelSpec, root: float, block: FFN) -> ModelSpec:
    """Model of ``root`` times the depth, hidden size and heads, its layers' kinds in the same
    order and proportion.
    """
    finest = max(model.hidden_size // 16, 1)  # of narrow models, so that rounding stays small
    step = math.gcd(model.hidden_size, 128, 1 << (finest.bit_length() - 1))
    depth = max(round(model.num_layers * root), 1)
    changes = {
        "hidden_size": max(round(model.hidden_size * root / step), 1) * step,
        "mixers": {name: mixer.scale_heads(root) for name, mixer in model.mixers.items()},
        "ffns": {"ffn": block},
        "layers": (LayerRun(pattern=_stretch(model.layer_names, depth)),),
    }
    return _change(model, changes)


def _stretch(layers: Sequence[Layer], depth: int) -> tuple[Layer, ...]:
    """A sequence of ``depth`` layers in which kinds have the shares and the order that they have
    in ``layers``: each next one is of the kind that lags most behind its share.
    """
    kinds = [(mixer, "none" if ffn == "none" else "ffn") for mixer, ffn in layers]
    lag: Counter[Layer] = Counter()  # in parts of a layer, of which there are as many as layers
    stretched: list[Layer] = []
    given, left = iter(kinds), 0  # each of the given layers has ``depth`` parts
    for _ in range(depth):
        missing = len(layers)
        while missing:
            if not left:
                kind, left = next(given), depth
            taken = min(missing, left)
            lag[kind] += taken
            missing, left = missing - taken, left - taken
        stretched.append(max(lag, key=lambda kind: lag[kind]))
        lag[stretched[-1]] -= len(layers)
    return tuple(stretched)


def _change(model: ModelSpec, changes: Mapping[str, object]) -> ModelSpec:
    """Model with some fields replaced, not validated: hundreds are tried. A copy would keep what
    the model has computed of itself.
    """
    fields = {name: getattr(model, name) for name in ModelSpec.model_fields}
    return ModelSpec.model_construct(**{**fields, **changes})


def _used_width(model: ModelSpec) -> float:
    """Features that a token uses in a feed-forward block, the mean over the layers that have
    one.
    """
    blocks = [model.ffns[ffn] for _, ffn in model.layer_names if ffn != "none"]
    widths = [
        block.inner_width
        + (block.experts.top_k * block.experts.intermediate_size if block.experts else 0)
        for block in blocks
    ]
    return sum(widths) / len(widths)
