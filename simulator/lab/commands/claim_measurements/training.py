"""Measurement of faster training: a small mixture of experts and dense twins, trained here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from simulator.base.formats import seconds
from simulator.base.frozen import Frozen
from simulator.base.progress import Progress
from simulator.base.quantities import value_range
from simulator.lab.commands.claim_measurements import Trial
from simulator.lab.commands.claim_tests import RIVALS
from simulator.lab.results.claims import Case
from simulator.runtime import require

if TYPE_CHECKING:
    from simulator.runtime.recording.comparison import Outcome

_TOKENS = 8192
"""Held-out tokens that losses are measured on."""


class Training(Frozen):
    """Time in which each model comes to the mixture's last loss, as ``moesim trace record train``
    trains them.
    """

    minutes: Annotated[float, value_range(0.01, 1440, "minutes")] = 10
    """Minutes that all trainings take together."""
    seeds: Annotated[int, value_range(1, 100)] = 3
    """Trainings of each model, which bands reach over."""

    @property
    def command(self) -> str:
        return f"moesim trace record train OUT.npz --minutes {self.minutes:g} --seeds {self.seeds}"

    def identify(self) -> str:
        return self.model_dump_json()

    def expect_s(self) -> float:
        require("torch", "training a model")
        return self.minutes * 60

    def measure(self, tick: Progress) -> Trial:
        require("torch", "training a model")
        from simulator.commands.record_training import train_and_record
        from simulator.runtime.load import others_share, read_use
        from simulator.runtime.shard import Shard

        before = [read_use(Shard(0, 1))]
        made = train_and_record(None, self.minutes, None, _TOKENS, range(self.seeds), tick)
        share = others_share(before, [read_use(Shard(0, 1))])
        sentences = (made.headline, *made.findings)
        return Trial(tuple(_compare(made.outcomes)), sentences, share)


def _compare(outcomes: list[Outcome]) -> Iterator[Case]:
    """Ratio of the times to the mixture's loss, for each dense twin."""
    from simulator.runtime.recording.comparison import TimeRatio
    from simulator.runtime.recording.models import SAME_TOTAL

    moe, *twins = outcomes
    for row in twins:
        is_large = row.model == SAME_TOTAL
        longest_s = max(row.seconds, moe.seconds)
        never = row.num_reached == 0
        at_least = "at least; " if 0 < row.num_reached < row.num_seeds else ""
        time = row.time_to_moe_loss or TimeRatio(longest_s / moe.seconds, None, None)
        reached = (
            f"not in {seconds(longest_s)}"
            if row.seconds_to_moe_loss is None
            else seconds(row.seconds_to_moe_loss)
        )
        yield Case(
            rival=RIVALS["total_params" if is_large else "active_params"],
            conditions={"until": f"a loss of {moe.held_out_loss:.2f} nats a byte"},
            ratio=None if never else time.ratio,
            low=None if never else time.low,
            high=None if never else time.high,
            runs="moe" if never else "both",
            moe=seconds(moe.seconds),
            other=reached,
            counts=is_large,
            note=f"{at_least}reached in {row.num_reached} of {row.num_seeds} seeds",
        )
