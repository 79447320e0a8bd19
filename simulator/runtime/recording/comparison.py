"""What the training curves say: which model learned faster, in words that the numbers decide."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.runtime.recording.models import MOE, SAME_ACTIVE, SAME_TOTAL
from simulator.spec.model import ModelSpec

_WORDS = {SAME_TOTAL: "dense model of the same total size", SAME_ACTIVE: "dense model of the same active size"}
_CLEAR = 2.0
"""Standard errors from which on a difference is called one."""


@dataclass(frozen=True)
class Outcome:
    """One model at the end of the run, beside the mixture of experts."""

    model: str
    num_parameters: int
    num_active_parameters: int
    tokens: int
    seconds: float
    """Of its own steps."""
    train_loss: float
    held_out_loss: float
    loss_above_moe: float
    """Held-out loss less the mixture of experts', on the same sequences; its standard error over sequences is next."""
    loss_above_moe_error: float
    loss_at_first_end: float
    """Held-out loss when it had computed as long as the fastest model took for the whole run."""
    seconds_to_moe_loss: float | None
    """When it reached the mixture of experts' last loss; ``None`` if it did not."""


def outcomes(models: dict[str, ModelSpec], curve: pd.DataFrame, loss_Q: dict[str, NDArray[np.float64]]) -> list[Outcome]:
    """A row a model.

    Args:
        curve: columns ``model``, ``step``, ``tokens``, ``seconds``, ``train_loss``, ``held_out_loss``.
        loss_Q: held-out loss of each sequence at the end, by model.
    """
    target = float(curve.loc[curve["model"] == MOE, "held_out_loss"].iloc[-1])
    first_end_s = float(curve.groupby("model")["seconds"].max().min())
    rows = []
    for name, model in models.items():
        own = curve[curve["model"] == name]
        last = own.iloc[-1]
        above_Q = loss_Q[name] - loss_Q[MOE]
        error = float(above_Q.std(ddof=1) / math.sqrt(len(above_Q))) if len(above_Q) > 1 else math.nan
        row = Outcome(
            model=name,
            num_parameters=model.num_parameters,
            num_active_parameters=model.num_active_parameters,
            tokens=int(last["tokens"]),
            seconds=float(last["seconds"]),
            train_loss=float(last["train_loss"]),
            held_out_loss=float(last["held_out_loss"]),
            loss_above_moe=float(above_Q.mean()),
            loss_above_moe_error=error,
            loss_at_first_end=float(np.interp(first_end_s, own["seconds"], own["held_out_loss"])),
            seconds_to_moe_loss=reached(own["seconds"].to_numpy(float), own["held_out_loss"].to_numpy(float), target),
        )
        rows.append(row)
    return rows


def reached(seconds: NDArray[np.float64], loss: NDArray[np.float64], target: float) -> float | None:
    """When a curve first is at ``target`` or below, on straight lines between its points; ``None`` if it never is.

    >>> reached(np.array([0.0, 10.0, 20.0]), np.array([4.0, 3.0, 2.0]), 2.5)
    15.0
    """
    is_there = loss <= target
    if not is_there.any():
        return None
    first = int(is_there.argmax())
    if first == 0:
        return float(seconds[0])
    share = (loss[first - 1] - target) / (loss[first - 1] - loss[first])
    return float(seconds[first - 1] + share * (seconds[first] - seconds[first - 1]))


def headline(rows: list[Outcome]) -> str:
    """The result in a sentence, whichever way it came out."""
    moe, total, active = (next(row for row in rows if row.model == name) for name in (MOE, SAME_TOTAL, SAME_ACTIVE))
    twins = f"the dense model of the same total size {_time(total, moe)}, the one of the same active size {_time(active, moe)}"
    return (
        f"After {moe.seconds:.3g} s of its own compute and {moe.tokens:,} tokens the mixture of experts reached a held-out loss of "
        f"{moe.held_out_loss:.2f} nats a byte; {twins}."
    )


def findings(rows: list[Outcome]) -> list[str]:
    """What else the numbers say, and what they cannot."""
    moe, *twins = rows
    said = [f"On the same {moe.tokens:,} tokens the {_WORDS[row.model]} ended {_difference(row)}." for row in twins]
    longer = [f"{row.seconds / moe.seconds:.2f} times as long for the {_WORDS[row.model]}" for row in twins]
    said.append(f"The same tokens took {' and '.join(longer)} as for the mixture of experts.")
    first_end_s = min(row.seconds for row in rows)
    losses = ", ".join(f"{row.loss_at_first_end:.3f} ({row.model})" for row in rows)
    said.append(f"After {first_end_s:.3g} s of its own compute each, when the fastest was done, the held-out losses were {losses}.")
    said.append(
        "One run, one seed, one learning rate for all, on this machine's processor: it says nothing of larger models. All learning "
        "rates fall over the same steps, so at the same time a slower model is compared before its rate has fallen, which makes it "
        "look worse than a run of that length would."
    )
    return said


def _time(row: Outcome, moe: Outcome) -> str:
    if row.seconds_to_moe_loss is None:
        return f"did not reach it in its {row.seconds:.3g} s (it ended at {row.held_out_loss:.2f})"
    return f"needed {row.seconds_to_moe_loss:.3g} s, {row.seconds_to_moe_loss / max(moe.seconds, 1e-9):.2g} times as long"


def _difference(row: Outcome) -> str:
    size, error = abs(row.loss_above_moe), row.loss_above_moe_error
    spread = f"{size:.3f} ± {error:.3f} nats" if math.isfinite(error) else f"{size:.3f} nats"
    if math.isfinite(error) and size < _CLEAR * error:
        return f"level with it ({spread} apart, standard error over sequences)"
    return f"{spread} {'above' if row.loss_above_moe > 0 else 'below'} it (standard error over sequences)"
