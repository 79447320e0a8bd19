"""Tokens that models are trained on until they have the same loss, by scaling laws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from simulator.base.data import available_files
from simulator.base.errors import UserError
from simulator.config.law_file import FOLDER, LawFile, load_law, measure_size
from simulator.config.laws import ModelSize
from simulator.config.model import ModelSpec

_FEWEST, _MOST = 1e6, 1e18
_HALVINGS = 80


class TokensToLoss(NamedTuple):
    """Tokens of a training that ends at a loss."""

    loss: float
    """Loss in nats a token."""
    tokens: float
    """Tokens by the law that was asked for; infinite where the model never gets there."""
    by_law: dict[str, float]
    """Tokens by each law that predicts losses of both models, by title."""
    outside: tuple[str, ...]
    """Quantities beyond the range that the law was fitted in."""

    def describe(self) -> dict[str, object]:
        """Describe it for ``run.json``; a law by which the model never gets there has ``None``."""
        by_law = {law: one if math.isfinite(one) else None for law, one in self.by_law.items()}
        return {"loss": self.loss, "tokens_by_law": by_law, "outside": list(self.outside)}


def find_tokens_to_loss(
    model: ModelSpec, reference: ModelSpec, tokens: float, law: str, where: str
) -> TokensToLoss:
    """Find the tokens after which a model is as good as a reference is after ``tokens`` tokens.

    Raises:
        UserError: if there is no such law, or it predicts no losses of such models.
    """
    asked = load_law(law, where)
    sizes = measure_size(model), measure_size(reference)
    loss = _predict(asked, sizes[1], tokens, where)
    found = tokens if sizes[0] == sizes[1] else _solve(asked, sizes[0], loss, where)
    outside = [
        *asked.list_outside(sizes[1], tokens),
        *(asked.list_outside(sizes[0], found) if math.isfinite(found) else ()),
    ]
    return TokensToLoss(
        loss, found, dict(_ask_all(sizes, tokens, where)), tuple(dict.fromkeys(outside))
    )


def _ask_all(
    sizes: tuple[ModelSize, ModelSize], tokens: float, where: str
) -> Iterator[tuple[str, float]]:
    """Yield the tokens by every law that holds for both models."""
    for name in available_files(FOLDER):
        law = load_law(name, where)
        try:
            loss = _predict(law, sizes[1], tokens, where)
            yield law.title, _solve(law, sizes[0], loss, where)
        except UserError:
            continue


def _predict(law: LawFile, size: ModelSize, tokens: float, where: str) -> float:
    try:
        loss = law.law.predict_loss(size, tokens)
    except UserError as error:
        raise UserError(f"{where} [training.quality]: {law.name}: {error}") from None
    if loss is None or law.law.predict_loss(size, _FEWEST) == law.law.predict_loss(size, _MOST):
        raise UserError(
            f"{where} [training.quality]: {law.title} predicts no loss by tokens; joint-moe does"
        )
    return loss


def _solve(law: LawFile, size: ModelSize, loss: float, where: str) -> float:
    """Find the fewest tokens after which a law predicts a loss; infinite where there are none."""
    if _predict(law, size, _MOST, where) > loss:
        return math.inf
    low, high = _FEWEST, _MOST
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if _predict(law, size, middle, where) > loss:
            low = middle
        else:
            high = middle
    return high
