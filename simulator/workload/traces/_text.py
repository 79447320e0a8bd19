"""Lengths of texts whose tokens are not counted in the file."""

from __future__ import annotations

CHARACTERS_PER_TOKEN = 4.0
"""Characters of a token, a rule of thumb for English under byte-pair tokenizers with 32k to 200k
entries (OpenAI's tokenizer page says the same). Wrong by 10-30 % for code, and by a factor of two
or more for Chinese: count tokens with the model's own tokenizer where it matters."""

APPROXIMATION = (
    f"tokens estimated from text at {CHARACTERS_PER_TOKEN:g} characters each; "
    "count them with the model's tokenizer"
)


def estimated_tokens(text: str) -> int:
    """Estimate the tokens in a text, at least 1.

    >>> estimated_tokens("a question of 32 characters long")
    8
    """
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))
