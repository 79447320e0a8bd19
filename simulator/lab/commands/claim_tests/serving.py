"""Claim of faster inference than dense models of the same size: the best split of each
over one machine, at the same requests in flight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

from pydantic import Field

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen
from simulator.base.progress import Progress
from simulator.base.quantities import Factor, Gpus, Requests, Tokens, value_range
from simulator.commands.run import run
from simulator.config.dtypes import DType
from simulator.lab.commands.claim_tests import RIVALS, Cases, Telling, check_tried, name_rival
from simulator.lab.results.claims import Case, Figure, Finding, Runs, measure_seeds
from simulator.planner.conditions import Change, apply_conditions
from simulator.planner.crossover import BEST, crossover
from simulator.results.answer.crossover import MapPoint
from simulator.scenario.jobs import load_question

_EVEN = 1e-6
"""Factor on a popularity's spread that makes routing even; a factor must be above 0."""
_PLACE = ("in flight", "prompt", "network", "skew", "engine")
"""Conditions of a case, besides the model."""
_FULL = "as many as fit"
"""Load of a model that has no room for more."""


class Serving(Frozen):
    """Output tokens per second of a mixture of experts and of dense models on the same GPUs."""

    models: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Mixtures of experts."""
    cluster: str
    """Kind of machines, such as ``h100-sxm``."""
    gpus: Gpus
    """GPUs that each model may be split over."""
    engines: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Serving engines, whose kernels differ."""
    weight_dtype: DType
    """Number format of weights."""
    batches: Annotated[tuple[Factor, ...], Field(strict=False, min_length=1)]
    """Sequences on a GPU."""
    prompts: Annotated[tuple[Tokens, ...], Field(strict=False, min_length=1)]
    """Tokens of a prompt."""
    output_tokens: Tokens
    """Tokens of an answer."""
    networks: Annotated[tuple[Factor, ...], Field(strict=False, min_length=1)]
    """Factors on the rate of all links."""
    skews: Annotated[
        tuple[Annotated[float, value_range(0, 10)], ...], Field(strict=False, min_length=1)
    ]
    """Factors on the spread of each model's expert popularity; 0 = even."""
    served_requests: Requests = 200
    """Requests of chat traffic that the first model and its rival serve in full."""

    def find(self, seeds: Sequence[int], tick: Progress) -> Finding:
        self._check_load()
        found: dict[tuple[str, ...], list[MapPoint]] = {}
        rounds = list(product(self.models, self.engines, self.skews, seeds))
        for number, (model, engine, skew, seed) in enumerate(rounds):
            tick("conditions of serving", number, len(rounds))
            for key, point in self._map_conditions(model, engine, skew, seed):
                found.setdefault(key, []).append(point)
        every = (_make_case(*key, points=points) for key, points in found.items())
        cases = tuple(case for case in every if case.runs != "neither")
        check_tried(cases)
        tick("requests served", 0, None)
        return self._tell(cases).model_copy(update={"figures": tuple(self._serve(seeds))})

    def _check_load(self) -> None:
        """Refuse a batch of less than one request on all GPUs together."""
        least = min(self.batches)
        if least * self.gpus < 1:
            raise UserError(
                f"claim [trial]: batches has {least:g} on each of {self.gpus} GPUs, less than one "
                f"request in all; use at least {1 / self.gpus:g}"
            )

    def _map_conditions(
        self, model: str, engine: str, skew: float, seed: int
    ) -> Iterator[tuple[tuple[str, ...], MapPoint]]:
        """Points under all conditions, the mixture with the better of its expert-parallel sizes;
        rivals of other measures at the model's own skew only.
        """
        measures = list(RIVALS) if skew == 1.0 else ["total_params"]
        question = load_question(self._ask(model, engine, measures), seed=seed)
        asked = apply_conditions(Change(skew=max(skew, _EVEN)), question, Path.cwd())
        answer = crossover(asked, Path.cwd(), range(len(measures) + 1), 0)
        if answer is None:
            return
        loads = [(self._name_load(point.batch_per_gpu), point) for point in answer.cells]
        full = [(_FULL, point) for point in answer.at_full_load if point.pairing == BEST]
        rivals = dict(zip(answer.models.dense, measures, strict=True))
        best: dict[tuple[str, ...], MapPoint] = {}
        for load, point in [*loads, *full]:
            place = (load, f"{point.input:,} tokens", f"{point.network:g}x", _name_skew(skew))
            key = (rivals[point.dense], point.moe, *place, engine)
            made, known = point.moe_tokens_per_s_gpu, best.get(key)
            if known is None or (made or 0.0) > (known.moe_tokens_per_s_gpu or 0.0):
                best[key] = point
        yield from best.items()

    def _name_load(self, batch: float) -> str:
        total = round(batch * self.gpus)
        return "1 request in all" if total == 1 else f"{total} requests in all"

    def _ask(self, model: str, engine: str, measures: Sequence[str]) -> dict[str, object]:
        shared = {"weight_dtypes": [self.weight_dtype], "engine": engine}
        lengths = {
            "kind": "fixed",
            "num_input": self.prompts[0],
            "num_output": self.output_tokens,
        }
        arrivals = {"kind": "poisson", "rate_per_s": 8.0}
        pairs = [{"model": model, "equal": measure} for measure in measures]
        return {
            "name": "claim",
            "workload": {
                "num_requests": 100,
                "requests": {"arrivals": arrivals, "lengths": lengths},
            },
            "targets": {"tpot_s": {"p90": 0.1}},
            "models": [{"model": model, **shared}, *({"dense_of": one, **shared} for one in pairs)],
            "clusters": [{"cluster": self.cluster}],
            "space": {"max_gpus_per_replica": self.gpus},
            "crossover": {
                "inputs": self.prompts,
                "outputs": [self.output_tokens],
                "batches": self.batches,
                "eps": [1, self.gpus],
                "networks": self.networks,
                "times_s": [0.1],
            },
        }

    def _serve(self, seeds: Sequence[int]) -> Iterator[Figure]:
        """Chat traffic served in full by the first model and by the dense one as large."""
        model = self.models[0]
        machine = {
            "cluster": f"{self.cluster}-{self.gpus}",
            "weight_dtype": self.weight_dtype,
            "engine": self.engines[0],
        }
        shared = {"attention_dp": self.gpus, "ep": self.gpus}
        pair = {"model": model, "equal": "total_params"}
        table = {
            "workload": {"requests": "azure-conv", "num_requests": self.served_requests},
            "deployments": [
                {"name": "moe", "model": model, **machine, "parallel": shared},
                {"name": "moe tp", "model": model, **machine, "parallel": {"tp": self.gpus}},
                {"name": "dense", "dense_of": pair, **machine, "parallel": {"tp": self.gpus}},
            ],
        }
        ratios = []
        times = []
        for seed in seeds:
            summary = run({**table, "name": "claim", "seed": seed}).summary
            by_name = summary.set_index("deployment")["tpot_p50_s"]
            own = min(by_name["moe"], by_name["moe tp"])
            ratios.append(by_name["dense"] / own)
            times.append((own, by_name["dense"]))
        spread = measure_seeds(ratios)
        own, dense = times[0]
        yield Figure(
            label=(
                f"{self.served_requests} requests of chat traffic served in full on {self.gpus} "
                f"GPUs, {model} beside the iso-total-params model"
            ),
            value=(
                f"{own * 1e3:.3g} ms against {dense * 1e3:.3g} ms for an output token, "
                f"{spread.ratio:.2f} times as fast ({spread.low:.2f} to {spread.high:.2f} over "
                "seeds)"
            ),
        )

    def _tell(self, cases: Sequence[Case]) -> Finding:
        large = Cases(case for case in cases if case.counts)
        by_load = Cases.by(large, "in flight")
        first, full = next(iter(by_load.values())), by_load.get(_FULL, Cases())
        others = Cases.by_rival(cases, [one for one in RIVALS if one != "total_params"])
        each_side = {
            f"{_FULL} on each side" if load == _FULL else load: own for load, own in by_load.items()
        }
        return Telling.load("serving").tell(
            cases,
            {"first": first, "full": full, "gpus": self.gpus},
            {
                "loads": each_side,
                "rivals": {name_rival(RIVALS[measure]): own for measure, own in others.items()},
            },
        )


def _name_skew(factor: float) -> str:
    if factor == 0:
        return "even"
    return "as measured" if factor == 1 else f"{factor:g} times as measured"


def _make_case(measure: str, model: str, *place: str, points: Sequence[MapPoint]) -> Case:
    """Case of one place; its band is over seeds and over the error of prices."""
    case = partial(
        Case,
        rival=RIVALS[measure],
        conditions={"model": model, **dict(zip(_PLACE, place, strict=True))},
        counts=measure == "total_params",
    )
    first = points[0]
    ratios = [point.ratio for point in points if point.ratio is not None]
    if not ratios:
        own, other = first.moe_tokens_per_s_gpu, first.dense_tokens_per_s_gpu
        runs: Runs = "moe" if own else "rival" if other else "neither"
        return case(runs=runs, note=first.deciding_term or "")
    bands = [band for point in points if (band := point.band_of("ratio")) is not None]
    return case(
        ratio=measure_seeds(ratios).ratio,
        low=min([*ratios, *(band.low for band in bands)]),
        high=max([*ratios, *(band.high for band in bands)]),
        moe=f"{first.moe_tokens_per_s_gpu or 0:,.0f} tokens/s a GPU",
        other=f"{first.dense_tokens_per_s_gpu or 0:,.0f} tokens/s a GPU",
        note=first.deciding_term or "",
    )
