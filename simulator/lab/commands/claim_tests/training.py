"""Claim of faster training: a step of each model on the same machines, and the tokens that each
needs for the same loss by a scaling law.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import product
from typing import Annotated, NamedTuple

from pydantic import Field

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, Policy
from simulator.base.progress import Progress
from simulator.base.quantities import Gpus, TokenExtent, TrainingTokens, value_range
from simulator.base.text import count_text
from simulator.commands.train import train
from simulator.config.cluster import load_kind
from simulator.config.deployment import DeploymentSpec
from simulator.config.law_file import load_law, measure_size
from simulator.config.model import ModelSpec, load_model
from simulator.config.pairing import DenseOf
from simulator.deployment.counterparts import choose_model
from simulator.deployment.training.quality import find_tokens_to_loss
from simulator.lab.commands.claim_tests import RIVALS, Cases, Telling, check_tried, name_rival
from simulator.lab.results.claims import Case, Figure, Finding, Spread, measure_seeds

_TOO_FAST, _TOO_SLOW = 1.3, 1.1
"""Factors by which ratios may be too high and too low: published trainings of mixtures of experts
are simulated up to some 30 % too fast, those of dense models within 10 %
(``tests/validation/test_published_training.py``)."""
_EP = 8
"""Expert-parallel size of every split of a mixture of experts."""
_SPLITS: dict[bool, tuple[dict[str, int], ...]] = {
    True: ({"ep": _EP}, {"pp": 2, "ep": _EP}, {"pp": 4, "ep": _EP}, {"tp": 2, "pp": 2, "ep": _EP}),
    False: ({}, {"tp": 2}, {"tp": 4}, {"tp": 8}, {"tp": 4, "pp": 2}, {"tp": 8, "pp": 2}),
}
"""Splits that are tried, of mixtures of experts and of dense models."""
_MEMORIES = ({"recompute": "selective"}, {"recompute": "full"}, {"recompute": "full", "zero": 3})
"""Savings of memory that are tried for each split, the least first."""


class _Split(NamedTuple):
    """A split that fits, with its rate."""

    keys: dict[str, object]
    tokens_per_s_gpu: float


class Training(Frozen):
    """GPU time to the loss that the mixture of experts reaches on ``tokens``."""

    model: str
    """Mixture of experts."""
    clusters: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Kinds of machines."""
    gpus: Gpus
    """GPUs that train."""
    sequence_tokens: Annotated[tuple[TokenExtent, ...], Field(strict=False, min_length=1)]
    """Tokens of a training sequence."""
    batch_tokens: TrainingTokens
    """Tokens of a step."""
    tokens: Annotated[tuple[TrainingTokens, ...], Field(strict=False, min_length=1)]
    """Tokens that the mixture of experts is trained on."""
    laws: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Scaling laws, each of which makes the dense model that is as good by it."""
    skews: Annotated[
        tuple[Annotated[float, value_range(0, 10)], ...], Field(strict=False, min_length=1)
    ]
    """Standard deviations of the logarithm of expert popularity; 0 = even, as balancing aims at."""

    def find(self, seeds: Sequence[int], tick: Progress) -> Finding:
        self._check_names()
        cases: list[Case] = []
        steps: list[Case] = []
        places = list(product(self.clusters, self.sequence_tokens))
        for number, (cluster, sequence) in enumerate(places):
            show = partial(tick, f"training steps on {cluster}, {sequence:,} tokens")
            show(0, None)
            own = self._measure_mixture(cluster, sequence, seeds)
            for tokens in self.tokens:
                cases += self._compare_losses(cluster, sequence, tokens, own)
            steps += self._compare_steps(cluster, sequence, own)
            tick("training steps", number + 1, len(places))
        check_tried(cases)
        every, figures = (*cases, *steps), (*self._list_sizes(), *self._list_outside())
        return self._tell(cases, steps).model_copy(update={"cases": every, "figures": figures})

    def _check_names(self) -> None:
        """Refuse laws and machines that do not exist, and machines that no split of a mixture of
        experts fills, before anything is simulated.
        """
        for law in self.laws:
            load_law(law, "claim [trial]")
        for cluster in self.clusters:
            load_kind(cluster, "claim [trial]")
        if self.gpus % _EP:
            raise UserError(
                f"claim [trial]: gpus is {self.gpus}, and experts are tried over {_EP} GPUs; name "
                f"a multiple of {_EP}"
            )

    def _measure_mixture(
        self, cluster: str, sequence: int, seeds: Sequence[int]
    ) -> dict[float, tuple[float, ...]]:
        """Tokens per second of a GPU by skew, over seeds; empty where no split fits."""
        best = self._find_split({"model": self.model}, cluster, sequence, True)
        if best is None:
            return {}
        rates = {}
        for skew in self.skews:
            routing = {"kind": "lognormal", "sigma": skew} if skew else {"kind": "uniform"}
            rates[skew] = tuple(
                self._train({**best.keys, "routing": routing}, sequence, seed)
                for seed in (seeds if skew else seeds[:1])
            )
        return rates

    def _measure_rival(self, pair: Policy, cluster: str, sequence: int) -> float | None:
        """Tokens per second of a GPU, of a dense model; ``None`` where no split fits."""
        best = self._find_split({"dense_of": pair}, cluster, sequence, False)
        return None if best is None else best.tokens_per_s_gpu

    def _find_split(
        self, entry: Policy, cluster: str, sequence: int, is_mixture: bool
    ) -> _Split | None:
        """The fastest split that fits; ``None`` where none does."""
        found = []
        for split in _SPLITS[is_mixture]:
            for memory in _MEMORIES:
                keys = {
                    **entry,
                    **memory,
                    "cluster": cluster,
                    "num_gpus": self.gpus,
                    "parallel": split,
                }
                try:
                    found.append(_Split(keys, self._train(keys, sequence, 0)))
                except UserError:  # does not fit, or does not divide: the next one may
                    continue
                break  # what saves more memory takes longer
        return max(found, key=lambda one: one.tokens_per_s_gpu, default=None)

    def _train(self, keys: Policy, sequence: int, seed: int) -> float:
        batch = max(int(self.batch_tokens // sequence), self.gpus)
        training = {"sequence_tokens": sequence, "global_batch": batch}
        return _measure_rate(json.dumps([training, {"name": "one", **keys}]), seed)

    def _pair(self, measure: str, tokens: float = 0.0, law: str = "") -> Policy:
        """The table that makes a rival; tokens and law matter to the iso-loss one only."""
        equal: Policy = {"kind": measure}
        if measure == "quality":
            equal |= {"law": law, "tokens": tokens}
        return {"model": self.model, "equal": equal}

    def _compare_losses(
        self, cluster: str, sequence: int, tokens: float, rates: dict[float, tuple[float, ...]]
    ) -> Iterator[Case]:
        moe = load_model(self.model, "claim [trial]")
        for (measure, rival), law in product(RIVALS.items(), self.laws):
            pair = self._pair(measure, tokens, law)
            other = self._measure_rival(pair, cluster, sequence)
            dense = _make_rival(pair)
            needed = find_tokens_to_loss(dense, moe, tokens, law, "claim [trial]").tokens
            for skew in self.skews:
                own = rates.get(skew)
                case = partial(
                    Case,
                    rival=rival,
                    conditions={
                        "machines": cluster,
                        "sequences": f"{sequence:,} tokens",
                        "tokens": count_text(tokens),
                        "law": law,
                        "skew": _name_skew(skew),
                    },
                )
                if own is None or other is None:
                    if own is not None or other is not None:
                        yield case(runs="moe" if own else "rival")
                    continue
                hours = tokens / own[0] / 3600
                if math.isinf(needed):
                    note = "the dense model does not reach that loss on any number of tokens"
                    yield case(runs="moe", moe=f"{hours:,.0f} GPU-hours", note=note)
                    continue
                dense_hours = needed / other / 3600
                yield case(
                    **_span([needed / tokens * rate / other for rate in own])._asdict(),
                    moe=f"{hours:,.0f} GPU-hours on {count_text(tokens)} tokens",
                    other=f"{dense_hours:,.0f} GPU-hours on {count_text(needed)} tokens",
                )

    def _compare_steps(
        self, cluster: str, sequence: int, rates: dict[float, tuple[float, ...]]
    ) -> Iterator[Case]:
        """Tokens per second alone, which is no learning: beside the verdict."""
        for measure, rival in RIVALS.items():
            if measure == "quality":
                continue
            other = self._measure_rival(self._pair(measure), cluster, sequence)
            if other is None:
                continue
            for skew, own in rates.items():
                yield Case(
                    rival=f"{rival}, per token",
                    conditions={
                        "machines": cluster,
                        "sequences": f"{sequence:,} tokens",
                        "skew": _name_skew(skew),
                    },
                    **_span([rate / other for rate in own])._asdict(),
                    moe=f"{own[0]:,.0f} tokens/s a GPU",
                    other=f"{other:,.0f} tokens/s a GPU",
                    counts=False,
                )

    def _list_sizes(self) -> Iterator[Figure]:
        for measure, rival in RIVALS.items():
            by_law = {f", by {law}": law for law in self.laws} if measure == "quality" else {"": ""}
            for more, law in by_law.items():
                pairs = [self._pair(measure, tokens, law) for tokens in self.tokens]
                sizes = [count_text(_make_rival(pair).num_parameters) for pair in pairs]
                yield Figure(
                    label=f"Parameters of the {name_rival(rival)} model{more}",
                    value=" to ".join(dict.fromkeys(sizes)),
                )

    def _list_outside(self) -> Iterator[Figure]:
        moe = load_model(self.model, "claim [trial]")
        for name in self.laws:
            law = load_law(name, "claim [trial]")
            outside = law.list_outside(measure_size(moe), self.tokens[0])
            told = "; ".join(outside) if outside else "inside of what it was fitted on"
            yield Figure(label=f"Asked of: {law.title}", value=told)

    def _tell(self, cases: Sequence[Case], steps: Sequence[Case]) -> Finding:
        beside = Cases.by_rival(cases, RIVALS)
        per_token = Cases.by(steps, "rival")
        large = f"{RIVALS['total_params']}, per token"
        return Telling.load("training").tell(
            cases,
            {**beside, "steps": per_token.get(large, Cases())},
            {
                "rivals": {name_rival(RIVALS[measure]): own for measure, own in beside.items()},
                "steps": {name_rival(rival): own for rival, own in per_token.items()},
            },
        )


def _make_rival(pair: Policy) -> ModelSpec:
    made = DenseOf.model_validate(pair)
    return choose_model(DeploymentSpec(name="rival", dense_of=made, cluster="any"), "claim")


def _span(ratios: Sequence[float]) -> Spread:
    """Median of ratios over seeds, with a band over seeds and over the error of simulations."""
    middle, low, high = measure_seeds(ratios)
    return Spread(middle, low / _TOO_FAST, high * _TOO_SLOW)


@lru_cache(maxsize=1024)
def _measure_rate(table: str, seed: int) -> float:
    """Tokens per second of a GPU, kept: rivals come again with other tokens and laws.

    Raises:
        UserError: if the deployment does not fit.
    """
    training, deployment = json.loads(table)
    scenario = {"name": "claim", "seed": seed, "training": training, "deployments": [deployment]}
    return float(train(scenario).summary["tokens_per_s_per_gpu"].iloc[0])


def _name_skew(sigma: float) -> str:
    return f"sigma {sigma:g}" if sigma else "even"
