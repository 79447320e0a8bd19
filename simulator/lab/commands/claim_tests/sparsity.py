"""Claim that sparsity means less compute and less storage: counted exactly for mixtures of experts,
and for pruned matrices beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from simulator.base.frozen import Frozen, Policy
from simulator.base.progress import Progress
from simulator.base.quantities import Ratio, Sequences, TrainingTokens
from simulator.base.text import count_text
from simulator.config.deployment import DeploymentSpec
from simulator.config.model import ModelSpec, load_model
from simulator.config.pairing import DenseOf
from simulator.config.sparsity import Pruning, TwoFour, Unstructured, stored_bytes
from simulator.deployment.counterparts import choose_model
from simulator.lab.commands.claim_tests import RIVALS, Cases, Telling, name_rival
from simulator.lab.results.claims import Case, Chart, Curve, Figure, Finding
from simulator.work.flops import count_decode_step, matmul_flops_per_token
from simulator.work.sparsity import count_idle, stored_bytes_of

_SIDE = 4096
"""Rows and columns of the matrix whose formats are compared."""
_CONTEXT = 1024
"""Tokens of context in a decode step."""
_VALUE_BYTES = 2.0
"""Bytes of each weight of the pruned matrix: 16 bits."""
_EQUAL = 0.05
"""Relative difference below which two sizes are called equal: counterparts are made to 1 %, and
small parts of some models are stored in another format."""
_FORMATS = {"csr": "CSR, 32-bit columns", "tiled_csl": "tiled, 16-bit places", "bitmap": "bitmap"}


class Sparsity(Frozen):
    """Compute, storage and bytes that are read, by counting."""

    models: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Mixtures of experts to count."""
    batches: Annotated[tuple[Sequences, ...], Field(strict=False, min_length=1)]
    """Sequences of a decode step."""
    sparsities: Annotated[tuple[Ratio, ...], Field(strict=False, min_length=1)]
    """Shares of weights that pruning takes away."""
    tokens: TrainingTokens = 1e12
    """Tokens of training at which dense models are as good."""

    def find(self, seeds: Sequence[int], tick: Progress) -> Finding:
        cases: list[Case] = []
        for number, moe in enumerate(self._load_models()):
            tick("counting", number, len(self.models))
            cases += self._count_mixture(moe)
        cases += self._count_pruned()
        charts = self._draw_idle(), self._draw_formats()
        return _tell(cases).model_copy(
            update={"figures": tuple(self._list_figures()), "charts": charts}
        )

    def _load_models(self) -> list[ModelSpec]:
        return [load_model(name, "claim [trial]") for name in self.models]

    def _count_mixture(self, moe: ModelSpec) -> Iterator[Case]:
        for measure, rival in RIVALS.items():
            dense = self._make_rival(moe, measure)
            own, other = (matmul_flops_per_token(one, with_head=True) for one in (moe, dense))
            counts = measure != "active_params"
            yield _compare(moe, rival, "compute of a token", own, other, "FLOPs", counts)
            own, other = (stored_bytes_of(one) for one in (moe, dense))
            yield _compare(moe, rival, "weights to store", own, other, "B", counts)
            for batch in self.batches:
                own, other = (
                    count_decode_step(one, batch, _CONTEXT).weight_bytes for one in (moe, dense)
                )
                what = f"weights to read, {batch} at once"
                yield _compare(moe, rival, what, own, other, "B", counts)

    def _make_rival(self, moe: ModelSpec, measure: str) -> ModelSpec:
        equal: Policy = {"kind": measure}
        if measure == "quality":
            equal["tokens"] = self.tokens
        pair = DenseOf(model=moe.name, equal=equal)
        spec = DeploymentSpec(name="rival", dense_of=pair, cluster="any")
        return choose_model(spec, "claim [trial]")

    def _count_pruned(self) -> Iterator[Case]:
        whole = _SIDE * _SIDE * _VALUE_BYTES
        for pruning in self._list_prunings():
            kept = stored_bytes(pruning, _SIDE, _SIDE, _VALUE_BYTES)
            ratio = whole / kept
            yield Case(
                rival="itself, before pruning",
                conditions={
                    "model": f"pruned, {_name(pruning)}",
                    "what": "weights to store",
                    "taken away": f"{pruning.sparsity:.0%}",
                },
                ratio=ratio,
                low=ratio,
                high=ratio,
                moe=f"{kept / 1e6:.3g} MB",
                other=f"{whole / 1e6:.3g} MB",
            )

    def _list_prunings(self) -> Iterator[Pruning]:
        yield TwoFour(kind="two_four")
        for form in ("csr", "tiled_csl", "bitmap"):
            for share in self.sparsities:
                yield Unstructured(kind="unstructured", sparsity=share, format=form)

    def _list_figures(self) -> Iterator[Figure]:
        for moe in self._load_models():
            idle = count_idle(moe, 1)
            yield Figure(
                label=f"{moe.title or moe.name}: idle for one token",
                value=(
                    f"{idle.weights:.0%} of its weights, {idle.compute:.0%} of the compute, "
                    f"{idle.read:.0%} of the bytes to read, 0 % of the bytes to store"
                ),
            )
        for form, words in _FORMATS.items():
            yield Figure(
                label=f"Pruned matrix in 16 bits, {words}",
                value=f"smaller than the whole one from {_break_even(form):.0%} taken away",
            )

    def _draw_idle(self) -> Chart:
        batches = tuple(float(2**power) for power in range(10))
        curves = []
        for moe in self._load_models():
            shares = tuple(100 * count_idle(moe, int(batch)).read for batch in batches)
            curves.append(Curve(name=moe.title or moe.name, x=batches, y=shares))
        return Chart(
            title="What a batch leaves unread",
            caption=(
                "Share of the stored weights that one decode step does not read. For one user most "
                "of a mixture of experts lies idle; a full batch reads all of it."
            ),
            x="sequences decoded at once",
            y="weights not read (%)",
            curves=tuple(curves),
            is_log=True,
        )

    def _draw_formats(self) -> Chart:
        places = tuple(percent / 100 for percent in range(0, 100, 5))
        curves = [
            Curve(
                name=f"pruned, {words}",
                x=tuple(100 * place for place in places),
                y=tuple(_relative_bytes(form, place) for place in places),
            )
            for form, words in _FORMATS.items()
        ]
        for moe in self._load_models():
            idle = 100 * count_idle(moe, 1).weights
            curves.append(Curve(name=moe.title or moe.name, x=(idle,), y=(1.0,)))
        return Chart(
            title="Pruning and natural sparsity on one axis",
            caption=(
                "Bytes to store, relative to the whole matrix in 16 bits, by the share of weights "
                "that a token does not use. Pruned weights are gone, but the places of the others "
                "take room; a mixture of experts keeps every weight (its points lie at 1)."
            ),
            x="weights that a token does not use (%)",
            y="bytes to store (of the whole)",
            curves=tuple(curves),
        )


def _compare(
    moe: ModelSpec, rival: str, what: str, own: float, other: float, unit: str, counts: bool
) -> Case:
    ratio = 1.0 if abs(other / own - 1) < _EQUAL else other / own
    return Case(
        rival=rival,
        conditions={"model": moe.title or moe.name, "what": what},
        ratio=ratio,
        low=ratio,
        high=ratio,
        moe=f"{count_text(own)} {unit}",
        other=f"{count_text(other)} {unit}",
        counts=counts,
    )


def _name(pruning: Pruning) -> str:
    return _FORMATS[pruning.format] if isinstance(pruning, Unstructured) else "2:4"


def _relative_bytes(form: str, sparsity: float) -> float:
    pruning = Unstructured.model_validate(
        {"kind": "unstructured", "sparsity": sparsity, "format": form}
    )
    return stored_bytes(pruning, _SIDE, _SIDE, _VALUE_BYTES) / (_SIDE * _SIDE * _VALUE_BYTES)


def _break_even(form: str) -> float:
    """Smallest share of weights, in hundredths, from which on a format is smaller than the whole
    matrix.
    """
    return next(step / 100 for step in range(100) if _relative_bytes(form, step / 100) < 1)


def _tell(cases: Sequence[Case]) -> Finding:
    def pick(rival: str, what: str) -> Cases:
        return Cases(
            case
            for case in cases
            if case.rival == RIVALS[rival] and case.conditions["what"].startswith(what)
        )

    smallest = min(
        (
            case
            for case in cases
            if case.counts and case.conditions["what"].startswith("weights to read")
        ),
        key=lambda case: case.ratio or 0.0,
    )
    facts: dict[str, object] = {form: _break_even(form) for form in ("csr", "bitmap")}
    for name, what in (("compute", "compute"), ("storage", "weights to store")):
        large, good = pick("total_params", what), pick("quality", what)
        facts |= {name: Cases(large + good), f"{name}_large": large, f"{name}_good": good}
    batch = smallest.conditions["what"].partition(", ")[2]
    facts["worst"] = (
        f"{smallest.ratio:.2g} times, {smallest.conditions['model']} beside the "
        f"{name_rival(smallest.rival)} model, {batch}"
    )
    return Telling.load("sparsity").tell(cases, facts)
