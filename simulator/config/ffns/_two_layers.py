"""A feed-forward network of two layers, with or without a gate: what dense blocks and experts are
made of.
"""

from __future__ import annotations

from simulator.config._config_json import ConfigKeys
from simulator.config.linear import Linear


def make_linears(
    hidden_size: int, intermediate_size: int, is_gated: bool, name: str
) -> tuple[Linear, ...]:
    """Make the matrices of the network; a gate is stacked on the projection up."""
    up = 2 * intermediate_size if is_gated else intermediate_size
    return (
        Linear(f"{name} up", hidden_size, up, "column"),
        Linear(f"{name} down", intermediate_size, hidden_size, "row"),
    )


def num_biases(hidden_size: int, intermediate_size: int, is_gated: bool) -> int:
    """Numbers in its biases, one a feature that a matrix puts out."""
    return (2 if is_gated else 1) * intermediate_size + hidden_size


def read_gate(read: ConfigKeys) -> bool:
    """Whether a ``config.json`` describes networks with a gate.

    Raises:
        UserError: if its activation is missing or not known.
    """
    activation = next(
        filter(None, map(read.find, ("mlp_hidden_act", "hidden_activation", "hidden_act"))), None
    )
    if activation is None:
        raise read.error("missing key 'hidden_act'")
    known = {"silu": True, "swiglu": True, "relu2": False}.get(
        str(activation), read.convention.is_gated
    )
    if known is None:
        raise read.error(
            f"hidden_act is '{activation}': whether the feed-forward block has "
            "a gate cannot be told"
        )
    return known
