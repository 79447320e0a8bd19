"""Comparison of training curves over seeds: which model learned faster, in sentences that the
numbers decide.

Models of one seed see the same batches, so differences are taken seed by seed. Bands are Student's
over the seeds (W. S. Gosset, "The probable error of a mean", Biometrika 6, 1908).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.base.formats import seconds as _seconds
from simulator.config.model import ModelSpec
from simulator.runtime.recording.models import MOE, SAME_ACTIVE, SAME_TOTAL

_WORDS = {
    SAME_TOTAL: "dense model of the same total size",
    SAME_ACTIVE: "dense model of the same active size",
}
_LEVEL = 0.95
"""Probability of a band; a difference is stated where its band leaves out none."""

SAME_TOKENS, SAME_TIME = "same tokens", "same time"
"""Names of the two runs: all models for the same number of steps, and the dense ones again for as
long as the mixture of experts computed."""

Losses = dict[str, list[dict[str, NDArray[np.float64]]]]
"""Held-out loss of each sequence at the end of training, by run, seed (in order) and model."""


@dataclass(frozen=True)
class Above:
    """Held-out loss less that of the mixture of experts, on the same sequences, in nats
    per byte.
    """

    loss: float
    half_width: float | None
    """Half of the 95 % band, over seeds; of one seed, over sequences; ``None`` for one of each."""

    @property
    def is_clear(self) -> bool:
        """Whether the difference is more than chance."""
        return self.half_width is None or abs(self.loss) >= self.half_width

    @property
    def text(self) -> str:
        """Difference and half of its band: ``+0.123 ± 0.045``."""
        return f"{self.loss:+.3f}" + (f" ± {self.half_width:.3f}" if self.half_width else "")


@dataclass(frozen=True)
class TimeRatio:
    """Time in which a model came to the mixture's last loss, over the mixture's own time."""

    ratio: float
    """Geometric mean over seeds."""
    low: float | None
    """Lower end of the 95 % band over seeds; ``None`` for one seed."""
    high: float | None
    """Upper end of the band."""


@dataclass(frozen=True)
class Outcome:
    """Result of one model, beside the mixture of experts: means over seeds."""

    model: str
    num_parameters: int
    num_active_parameters: int
    learning_rate: float
    """Highest learning rate, tuned for this model."""
    tokens: int
    """Tokens of every model in the first run."""
    seconds: float
    """Seconds of the model's own steps for those tokens."""
    step_s: float
    """Seconds of its median step."""
    step_band_s: tuple[float, float]
    """10th and 90th percentile of its steps' seconds, over all seeds."""
    simulated_step_s: float | None
    """Seconds of the simulated step; ``None`` without a calibration of this machine."""
    train_loss: float
    held_out_loss: float
    above_moe: Above
    same_time_tokens: int
    """Tokens that it was trained on in as much time as the mixture of experts had computed."""
    same_time_loss: float
    same_time_above_moe: Above
    num_seeds: int
    num_reached: int
    """Seeds in which it reached the mixture's last loss in either run."""
    seconds_to_moe_loss: float | None
    """Seconds at which it did, in the faster of both runs, geometric mean; ``None`` unless in every
    seed."""
    time_to_moe_loss: TimeRatio | None
    """Ratio of those seconds to the mixture's; ``None`` unless in every seed."""


def compare_models(
    models: dict[str, ModelSpec],
    rates: dict[str, float],
    curve: pd.DataFrame,
    losses: Losses,
    step_s: dict[str, NDArray[np.float64]],
    simulated_s: dict[str, float],
) -> list[Outcome]:
    """Compare the models, the mixture of experts first.

    Args:
        rates: highest learning rate of each model.
        curve: columns ``run``, ``seed``, ``model``, ``step``, ``tokens``, ``seconds``,
            ``train_loss``, ``held_out_loss``.
        losses: the mixture of experts is in the first run only.
        step_s: seconds of every step of the first run, by model.
        simulated_s: seconds of the simulated step, of the models that it is known of.
    """
    moe = [loss_Q[MOE] for loss_Q in losses[SAME_TOKENS]]
    rows = []
    for name, model in models.items():
        second = SAME_TOKENS if name == MOE else SAME_TIME
        last = _find_ends(curve, SAME_TOKENS, name)
        again = _find_ends(curve, second, name)
        seconds = float(last["seconds"].mean())
        moe_s = float(_find_ends(curve, SAME_TOKENS, MOE)["seconds"].mean())
        times = [
            time
            for seed, moe_Q in zip(last["seed"], moe, strict=True)
            if (time := _find_first(curve, seed, name, float(moe_Q.mean()))) is not None
        ]
        has_all = len(times) == len(last)
        row = Outcome(
            model=name,
            num_parameters=model.num_parameters,
            num_active_parameters=model.num_active_parameters,
            learning_rate=rates[name],
            tokens=int(last["tokens"].iloc[0]),
            seconds=seconds,
            step_s=float(np.median(step_s[name])),
            step_band_s=(
                float(np.percentile(step_s[name], 10)),
                float(np.percentile(step_s[name], 90)),
            ),
            simulated_step_s=simulated_s.get(name),
            train_loss=float(last["train_loss"].mean()),
            held_out_loss=float(last["held_out_loss"].mean()),
            above_moe=_find_above([own[name] for own in losses[SAME_TOKENS]], moe),
            same_time_tokens=int(again["tokens"].iloc[0]),
            same_time_loss=float(again["held_out_loss"].mean()),
            same_time_above_moe=_find_above([own[name] for own in losses[second]], moe),
            num_seeds=len(last),
            num_reached=len(times),
            seconds_to_moe_loss=float(np.exp(np.log(times).mean())) if has_all else None,
            time_to_moe_loss=_find_ratio(np.array(times) / moe_s) if has_all else None,
        )
        rows.append(row)
    return rows


def _find_ends(curve: pd.DataFrame, run: str, model: str) -> pd.DataFrame:
    """Last row of each seed."""
    own = curve[(curve["run"] == run) & (curve["model"] == model)]
    return own.groupby("seed", sort=False).tail(1)


def _find_first(curve: pd.DataFrame, seed: int, model: str, target: float) -> float | None:
    """Seconds at which a model reached a loss in the faster of its runs of one seed."""
    own = curve[(curve["seed"] == seed) & (curve["model"] == model)]
    times = [
        find_time_reached(
            run["seconds"].to_numpy(float), run["held_out_loss"].to_numpy(float), target
        )
        for _, run in own.groupby("run", sort=False)
    ]
    return min((time for time in times if time is not None), default=None)


def _find_above(own: Sequence[NDArray[np.float64]], moe: Sequence[NDArray[np.float64]]) -> Above:
    """Difference of losses of each sequence, ``[Q]`` for every seed."""
    above = [own_Q - moe_Q for own_Q, moe_Q in zip(own, moe, strict=True)]
    means = np.array([above_Q.mean() for above_Q in above])
    return Above(float(means.mean()), _find_half_width(means if len(means) > 1 else above[0]))


def _find_half_width(values: NDArray[np.float64]) -> float | None:
    """Half of the 95 % band of the mean of a sample, by Student's distribution; ``None`` for one
    value.

    >>> round(_find_half_width(np.array([1.0, 2.0, 3.0])), 3)
    2.484
    """
    from scipy.stats import t  # half a second, which the command line needs not

    if len(values) < 2:
        return None
    times = float(t.ppf((1 + _LEVEL) / 2, len(values) - 1))
    return times * float(values.std(ddof=1)) / math.sqrt(len(values))


def _find_ratio(ratios: NDArray[np.float64]) -> TimeRatio:
    mean, half = float(np.log(ratios).mean()), _find_half_width(np.log(ratios))
    ends = (None, None) if half is None else (math.exp(mean - half), math.exp(mean + half))
    return TimeRatio(math.exp(mean), *ends)


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
        f"size {active.same_time_loss:.2f}: {_name_fastest(moe, total, active)}."
    )


def list_findings(rows: list[Outcome]) -> list[str]:
    """State further results, and what the numbers cannot say."""
    moe, *twins = rows
    over = f"{moe.num_seeds} seeds" if moe.num_seeds > 1 else "the sequences of one seed"
    timed = [f"the {_WORDS[row.model]} {_difference(row.same_time_above_moe)}" for row in twins]
    same = [f"the {_WORDS[row.model]} {_difference(row.above_moe)}" for row in twins]
    longer = [
        f"{row.seconds / moe.seconds:.2f} times as long for the {_WORDS[row.model]}"
        for row in twins
    ]
    return [
        *(f"{_tell_time(row)}." for row in twins),
        f"In the time of the mixture of experts {' and '.join(timed)} (nats a byte; 95 % bands "
        f"over {over}).",
        f"On the same {moe.tokens:,} tokens, whatever they took, the mixture of experts ended "
        f"at {moe.held_out_loss:.3f}, {' and '.join(same)} (the same bands).",
        f"Those tokens took {' and '.join(longer)} as for the mixture of experts.",
        *_tell_simulated(rows),
        f"{'One seed' if moe.num_seeds == 1 else f'{moe.num_seeds} seeds'} on this machine's "
        "processor: it says nothing of larger models or longer training. In each run a model's "
        "learning rate falls to its end, so its last loss is what a run of that length gives.",
    ]


def _tell_simulated(rows: list[Outcome]) -> list[str]:
    """Tell how long steps took beside simulated ones, where these are known."""
    said = [
        f"{_seconds(row.step_s)} for the {row.model} where {_seconds(row.simulated_step_s)} is "
        f"simulated ({row.step_s / row.simulated_step_s:.2f} times; "
        f"{row.step_band_s[0] / row.simulated_step_s:.2f} to "
        f"{row.step_band_s[1] / row.simulated_step_s:.2f} for four steps in five)"
        for row in rows
        if row.simulated_step_s is not None
    ]
    return [f"A step took {', '.join(said)}."] if said else []


def _name_fastest(moe: Outcome, *twins: Outcome) -> str:
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


def _tell_time(row: Outcome) -> str:
    name = f"The {_WORDS[row.model]}"
    if row.seconds_to_moe_loss is None or row.time_to_moe_loss is None:
        ended = f"its longest took {row.seconds:.3g} s and ended at {row.held_out_loss:.2f}"
        if row.num_reached:
            return (
                f"{name} reached the mixture's loss in {row.num_reached} of {row.num_seeds} seeds; "
                f"{ended}"
            )
        return f"{name} did not reach the mixture's loss in any run; {ended}"
    time = row.time_to_moe_loss
    band = "" if time.low is None else f" ({time.low:.2f} to {time.high:.2f}, 95 % band)"
    return (
        f"{name} needed {row.seconds_to_moe_loss:.3g} s to reach the mixture's loss, "
        f"{time.ratio:.2f} times as long as the mixture{band}"
    )


def _difference(above: Above) -> str:
    spread = (
        f"{abs(above.loss):.3f} ± {above.half_width:.3f}"
        if above.half_width is not None
        else f"{abs(above.loss):.3f}"
    )
    if not above.is_clear:
        return f"level with it ({spread} apart)"
    return f"{spread} {'above' if above.loss > 0 else 'below'} it"
