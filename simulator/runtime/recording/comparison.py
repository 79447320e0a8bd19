"""Comparison of training curves: which model learned faster, in sentences that the
numbers decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.config.model import ModelSpec
from simulator.runtime.recording.models import MOE, SAME_ACTIVE, SAME_TOTAL

_WORDS = {
    SAME_TOTAL: "dense model of the same total size",
    SAME_ACTIVE: "dense model of the same active size",
}
_CLEAR = 2.0
"""Standard errors above which a difference is stated."""


SAME_TOKENS, SAME_TIME = "same tokens", "same time"
"""Names of the two runs: all models for the same number of steps, and the dense ones again for as
long as the mixture of experts computed."""


@dataclass(frozen=True)
class Above:
    """Held-out loss less that of the mixture of experts, on the same sequences, in nats
    per byte.
    """

    loss: float
    error: float | None
    """Standard error over sequences; ``None`` for a single one."""

    @property
    def is_clear(self) -> bool:
        """Whether the difference is more than chance."""
        return self.error is None or abs(self.loss) >= _CLEAR * self.error


@dataclass(frozen=True)
class Outcome:
    """Result of one model, beside the mixture of experts."""

    model: str
    num_parameters: int
    num_active_parameters: int
    tokens: int
    """Tokens of every model in the first run."""
    seconds: float
    """Seconds of the model's own steps for those tokens."""
    train_loss: float
    held_out_loss: float
    above_moe: Above
    same_time_tokens: int
    """Tokens that it was trained on in as much time as the mixture of experts had computed."""
    same_time_loss: float
    same_time_above_moe: Above
    seconds_to_moe_loss: float | None
    """Seconds at which it reached the mixture of experts' last loss, in the faster of both runs;
    ``None`` if it did not."""


def outcomes(
    models: dict[str, ModelSpec],
    curve: pd.DataFrame,
    loss_Q: dict[str, dict[str, NDArray[np.float64]]],
) -> list[Outcome]:
    """Compare the models, the mixture of experts first.

    Args:
        curve: columns ``run``, ``model``, ``step``, ``tokens``, ``seconds``, ``train_loss``,
            ``held_out_loss``.
        loss_Q: held-out loss of each sequence at the end, by run and model. The mixture of experts
            is in the first run only.
    """
    moe_Q = loss_Q[SAME_TOKENS][MOE]
    target = float(moe_Q.mean())
    rows = []
    for name, model in models.items():
        second = SAME_TOKENS if name == MOE else SAME_TIME
        by_run = {
            run: curve[(curve["run"] == run) & (curve["model"] == name)]
            for run in (SAME_TOKENS, second)
        }
        last = by_run[SAME_TOKENS].iloc[-1]
        times = [
            find_time_reached(
                own["seconds"].to_numpy(float), own["held_out_loss"].to_numpy(float), target
            )
            for own in by_run.values()
        ]
        row = Outcome(
            model=name,
            num_parameters=model.num_parameters,
            num_active_parameters=model.num_active_parameters,
            tokens=int(last["tokens"]),
            seconds=float(last["seconds"]),
            train_loss=float(last["train_loss"]),
            held_out_loss=float(last["held_out_loss"]),
            above_moe=_compare_losses(loss_Q[SAME_TOKENS][name], moe_Q),
            same_time_tokens=int(by_run[second]["tokens"].iloc[-1]),
            same_time_loss=float(by_run[second]["held_out_loss"].iloc[-1]),
            same_time_above_moe=_compare_losses(loss_Q[second][name], moe_Q),
            seconds_to_moe_loss=min((time for time in times if time is not None), default=None),
        )
        rows.append(row)
    return rows


def _compare_losses(loss_Q: NDArray[np.float64], moe_Q: NDArray[np.float64]) -> Above:
    above_Q = loss_Q - moe_Q
    error = float(above_Q.std(ddof=1) / math.sqrt(len(above_Q))) if len(above_Q) > 1 else None
    return Above(float(above_Q.mean()), error)


def find_time_reached(
    seconds: NDArray[np.float64], loss: NDArray[np.float64], target: float
) -> float | None:
    """Find the time at which a curve first reaches ``target`` or less, linear between its points;
    ``None`` if it never does.

    >>> find_time_reached(np.array([0.0, 10.0, 20.0]), np.array([4.0, 3.0, 2.0]), 2.5)
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
    """State the result in a sentence, whichever way it came out."""
    moe, total, active = (
        next(row for row in rows if row.model == name) for name in (MOE, SAME_TOTAL, SAME_ACTIVE)
    )
    return (
        f"After {moe.seconds:.3g} s of its own compute the mixture of experts reached a held-out "
        f"loss of {moe.held_out_loss:.2f} nats a byte; in the same time the dense model of the "
        f"same total size reached {total.same_time_loss:.2f} and the one of the same active "
        f"size {active.same_time_loss:.2f}: {_fastest(moe, total, active)}."
    )


def findings(rows: list[Outcome]) -> list[str]:
    """State further results, and what the numbers cannot say."""
    moe, *twins = rows
    said = [f"{_time(row)}." for row in twins]
    same = [f"the {_WORDS[row.model]} {_difference(row.above_moe)}" for row in twins]
    said.append(
        f"On the same {moe.tokens:,} tokens, whatever they took, the mixture of experts ended "
        f"at {moe.held_out_loss:.3f}, {' and '.join(same)} (nats a byte; "
        "standard error over sequences)."
    )
    longer = [
        f"{row.seconds / moe.seconds:.2f} times as long for the {_WORDS[row.model]}"
        for row in twins
    ]
    said.append(f"Those tokens took {' and '.join(longer)} as for the mixture of experts.")
    said.append(
        "One seed, one learning rate for all, none tuned, on this machine's processor: "
        "it says nothing of larger models or longer training. In each run a model's learning rate "
        "falls to its end, so its last loss is what a run of that length gives."
    )
    return said


def _fastest(moe: Outcome, *twins: Outcome) -> str:
    """Say which model learned most in the same time, and whether that is more than chance."""
    best = min((moe, *twins), key=lambda row: row.same_time_loss)
    if best is moe:
        level = [row for row in twins if not row.same_time_above_moe.is_clear]
        return (
            f"no clear difference to the {_WORDS[level[0].model]}"
            if level
            else "the mixture of experts learned fastest"
        )
    if not best.same_time_above_moe.is_clear:
        return f"no clear difference between the mixture of experts and the {_WORDS[best.model]}"
    return f"the {_WORDS[best.model]} learned fastest"


def _time(row: Outcome) -> str:
    name = f"The {_WORDS[row.model]}"
    if row.seconds_to_moe_loss is None:
        return (
            f"{name} did not reach the mixture's loss in any run; "
            f"its longest took {row.seconds:.3g} s and ended at {row.held_out_loss:.2f}"
        )
    return f"{name} needed {row.seconds_to_moe_loss:.3g} s to reach the mixture's loss"


def _difference(above: Above) -> str:
    spread = (
        f"{abs(above.loss):.3f} ± {above.error:.3f}"
        if above.error is not None
        else f"{abs(above.loss):.3f}"
    )
    if not above.is_clear:
        return f"level with it ({spread} apart)"
    return f"{spread} {'above' if above.loss > 0 else 'below'} it"
