"""Claim that models on devices will rely on sparsity: which model is the best that a device
of some memory runs at a usable speed, for one user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, NamedTuple

from pydantic import Field

from simulator.base.errors import UserError
from simulator.base.frozen import Frozen, Policy
from simulator.base.progress import Progress
from simulator.base.quantities import Experts, TokenRate, Tokens, TopK, TrainingTokens
from simulator.base.text import count_text
from simulator.commands.run import run
from simulator.config.cluster import load_kind
from simulator.config.deployment import DeploymentSpec
from simulator.config.dtypes import DType
from simulator.config.ffns.moe import MoE
from simulator.config.law_file import load_law, measure_size
from simulator.config.model import ModelSpec
from simulator.deployment.counterparts import choose_model
from simulator.lab.commands.claim_tests import Cases, Telling, check_tried
from simulator.lab.results.claims import Case, Figure, Finding, Runs

_SLOTS = (0.75, 0.5, 0.25)
"""Shares of each layer's experts that stay in the GPU's memory where all have no room, the largest
first."""
_ALIKE = 0.05
"""Relative difference in parameters that leaves open which model is better: sizes that are tried
lie farther apart."""


class _Runs(NamedTuple):
    """A model that a device runs."""

    name: str
    is_mixture: bool
    qualities: tuple[float, ...]
    """Parameters of the dense model that is as good, by each law."""
    tokens_per_s: tuple[float, ...]
    """Output tokens per second of one user, over seeds."""
    offload: str
    """Place of its experts in words; empty where everything fits."""

    @property
    def quality(self) -> float:
        """Parameters of the dense model that is as good, by the first law."""
        return self.qualities[0]

    @property
    def text(self) -> str:
        """Name, size by quality and speed."""
        more = f", {self.offload}" if self.offload else ""
        return f"{self.name} ({self.tokens_per_s[0]:.3g} tokens/s{more})"


class Device(Frozen):
    """Best quality by a scaling law at a least speed, of mixtures of experts and of dense models in
    the same number format.
    """

    devices: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Clusters of one GPU: a desktop, laptops, a phone."""
    mixtures: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Released mixtures of experts to try, each beside the dense model that is as good."""
    dense: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Dense models to try, each beside the mixtures of experts that are as large."""
    shapes: Annotated[
        tuple[Annotated[tuple[Experts, TopK], Field(strict=False)], ...],
        Field(strict=False, min_length=1),
    ]
    """Experts of these mixtures, and how many of them a token uses."""
    speeds: Annotated[tuple[TokenRate, ...], Field(strict=False, min_length=1)]
    """Least output tokens per second."""
    weight_dtype: DType
    """Number format of weights."""
    law: str
    """Scaling law that says how good a mixture of experts is."""
    other_laws: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Scaling laws that may say otherwise, over which bands reach."""
    tokens: TrainingTokens
    """Tokens of training of all models."""
    prompt_tokens: Tokens = 300
    """Tokens of a prompt."""
    output_tokens: Tokens = 100
    """Tokens of an answer."""

    def find(self, seeds: Sequence[int], tick: Progress) -> Finding:
        cases: list[Case] = []
        figures: list[Figure] = []
        for number, device in enumerate(self.devices):
            tick("devices", number, len(self.devices))
            found = list(self._try_models(device, seeds))
            title = load_kind(device, "claim [trial]")[0].title
            cases += [self._compare(title, speed, found) for speed in self.speeds]
            ranked = sorted(found, key=lambda one: -one.quality)
            told = [f"{one.text}, as good as {count_text(one.quality)} dense" for one in ranked]
            figures.append(Figure(label=f"What runs on {title}", value="; ".join(told)))
        tried = tuple(case for case in cases if case.runs != "neither")
        check_tried(tried)
        return self._tell(tried).model_copy(update={"figures": tuple(figures)})

    def _try_models(self, device: str, seeds: Sequence[int]) -> Iterator[_Runs]:
        """Every model that the device runs, offloaded where it has no room otherwise."""
        laws = [load_law(name, "claim [trial]") for name in (self.law, *self.other_laws)]
        for entry in self._list_entries():
            spec = DeploymentSpec.model_validate({"name": "one", "cluster": device, **entry})
            model = choose_model(spec, "claim [trial]")
            size = measure_size(model)
            quality = tuple(law.find_equal_dense(size, self.tokens) for law in laws)
            name = _name(spec, model)
            if (speed := self._measure(device, entry, seeds[:1])) is not None:
                yield _Runs(name, model.moe is not None, quality, speed, "")
            elif model.moe is not None and spec.moe_of is None:
                yield from self._try_offloaded(device, entry, name, model.moe, quality, seeds)

    def _list_entries(self) -> Iterator[Policy]:
        quality: Policy = {"kind": "quality", "law": self.law, "tokens": self.tokens}
        for name in self.mixtures:
            yield {"model": name}
            yield {"dense_of": {"model": name, "equal": quality}}
        for name in self.dense:
            yield {"model": name}
            for num_experts, top_k in self.shapes:
                experts = {"num_experts": num_experts, "top_k": top_k}
                yield {"moe_of": {"model": name, "equal": "total_params", **experts}}

    def _try_offloaded(
        self,
        device: str,
        entry: Policy,
        name: str,
        moe: MoE,
        quality: tuple[float, ...],
        seeds: Sequence[int],
    ) -> Iterator[_Runs]:
        """The model with as many of its experts in the GPU's memory as fit, and the others in the
        memory below, computed there or brought.
        """
        host = load_kind(device, "claim [trial]")[0].host
        tier = "dram" if host is not None and host.dram is not None else "storage"
        uploads: Policy = {"uploads": 0, "caching": {"kind": "popularity"}}
        for share in _SLOTS:
            slots = max(int(share * moe.num_experts), moe.top_k)
            offload = {"slots": slots, "tier": tier, **(uploads if tier == "dram" else {})}
            speed = self._measure(device, {**entry, "offload": offload}, seeds)
            if speed is not None:
                where = "main memory" if tier == "dram" else "storage"
                yield _Runs(name, True, quality, speed, f"experts in {where}")
                return

    def _measure(
        self, device: str, entry: Policy, seeds: Sequence[int]
    ) -> tuple[float, ...] | None:
        """Output tokens per second over seeds; ``None`` where the model does not fit."""
        lengths = {
            "kind": "fixed",
            "num_input": self.prompt_tokens,
            "num_output": self.output_tokens,
        }
        arrivals = {"kind": "closed_loop", "concurrency": 1}
        shared = {"cluster": device, "engine": "any", "weight_dtype": self.weight_dtype}
        table: dict[str, object] = {
            "name": "claim",
            "workload": {
                "num_requests": 3,
                "requests": {"arrivals": arrivals, "lengths": lengths},
            },
            "deployments": [{"name": "one", **shared, **entry}],
        }
        try:
            times = [run(table | {"seed": seed}).summary["tpot_p50_s"].iloc[0] for seed in seeds]
        except UserError:
            return None
        return tuple(1.0 / time_s for time_s in times)

    def _compare(self, device: str, speed: float, found: Sequence[_Runs]) -> Case:
        """The best mixture that is fast enough with every seed against the best dense model."""
        case = partial(
            Case,
            rival="the best dense model that is fast enough",
            conditions={"device": device, "least speed": f"{speed:g} tokens/s"},
        )
        fast = [one for one in found if min(one.tokens_per_s) >= speed]
        maybe = [one for one in found if max(one.tokens_per_s) >= speed]
        moe, dense = (_find_best(fast, is_mixture) for is_mixture in (True, False))
        if moe is None or dense is None:
            runs: Runs = "moe" if moe else "rival" if dense else "neither"
            only = moe or dense
            return case(runs=runs, note=f"only {only.text}" if only else "")
        ratios = [
            best_moe.qualities[law] / best_dense.qualities[law]
            for law in range(len(moe.qualities))
            for some in (fast, maybe)
            if (best_moe := _find_best(some, True, law))
            if (best_dense := _find_best(fast, False, law))
        ]
        return case(
            ratio=moe.quality / dense.quality,
            low=min(ratios) * (1 - _ALIKE),
            high=max(ratios) * (1 + _ALIKE),
            moe=f"{moe.text}, as good as {count_text(moe.quality)} dense",
            other=dense.text,
        )

    def _tell(self, cases: Sequence[Case]) -> Finding:
        by_speed = Cases.by(cases, "least speed")
        return Telling.load("device").tell(
            cases,
            {
                "speeds": ", ".join(f"at {speed} {own:whether}" for speed, own in by_speed.items()),
                **self.model_dump(include={"weight_dtype", "prompt_tokens", "law"}),
                "laws": ", ".join(self.other_laws) or "no others",
                "tokens": count_text(self.tokens),
            },
            {"devices": Cases.by(cases, "device"), "speeds": by_speed},
        )


def _find_best(found: Sequence[_Runs], is_mixture: bool, law: int = 0) -> _Runs | None:
    """The best mixture, or dense model, by a law; ``None`` where there is none."""
    own = (one for one in found if one.is_mixture == is_mixture)
    return max(own, key=lambda one: one.qualities[law], default=None)


def _name(spec: DeploymentSpec, model: ModelSpec) -> str:
    """Name of a model for people; of one that is made by its sizes."""
    if spec.dense_of is not None:
        return f"a dense {count_text(model.num_parameters)}"
    if spec.moe_of is not None:
        total, active = count_text(model.num_parameters), count_text(model.num_used_parameters)
        return f"a mixture of {total} with {active} active"
    return model.title or model.name
